//! EVENTINJ and EXITINTINFO (APM vol. 2, 15.20 and 15.7.2): one encoding for both.

use crate::bits::{low8, low32};
use crate::event::{Event, Vector};

const VALID: u64 = 1 << 31;
const ERROR_CODE_VALID: u64 = 1 << 11;
const TYPE_SHIFT: u32 = 8;
const INTERRUPT: u64 = 0;
const NMI: u64 = 2;
const EXCEPTION: u64 = 3;
const SOFTWARE: u64 = 4;

/// The field that injects `event`.
pub(super) fn encode(event: Event) -> u64 {
    let (kind, vector, error) = match event {
        Event::Interrupt(vector) => (INTERRUPT, vector, None),
        Event::Nmi => (NMI, Vector::NMI.0, None),
        Event::Exception { vector, error_code } => {
            (EXCEPTION, vector.0, vector.has_error_code().then_some(error_code))
        }
        Event::SoftwareInterrupt(vector) => (SOFTWARE, vector, None),
    };
    let error = error.map_or(0, |code| ERROR_CODE_VALID | (u64::from(code) << 32));
    VALID | error | (kind << TYPE_SHIFT) | u64::from(vector)
}

/// The event whose delivery an exit cut short, if any. A type that does not exist is no event.
pub(super) fn decode(raw: u64) -> Option<Event> {
    if raw & VALID == 0 {
        return None;
    }
    let vector = low8(raw);
    match (raw >> TYPE_SHIFT) & 7 {
        INTERRUPT => Some(Event::Interrupt(vector)),
        NMI => Some(Event::Nmi),
        EXCEPTION => {
            let error_code = if raw & ERROR_CODE_VALID == 0 { 0 } else { low32(raw >> 32) };
            Some(Event::Exception { vector: Vector(vector), error_code })
        }
        SOFTWARE => Some(Event::SoftwareInterrupt(vector)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_encode_as_the_manual_says() {
        for (event, raw) in [
            (Event::Interrupt(0x41), 0x8000_0041),
            (Event::Nmi, 0x8000_0202),
            (Event::INVALID_OPCODE, 0x8000_0306),
            (Event::GENERAL_PROTECTION, 0x8000_0b0d),
            (Event::Exception { vector: Vector::PF, error_code: 0x15 }, 0x15_8000_0b0e),
            (Event::SoftwareInterrupt(0x80), 0x8000_0480),
        ] {
            assert_eq!(encode(event), raw, "{event:?}");
            assert_eq!(decode(raw), Some(event), "{raw:#x}");
        }
    }

    #[test]
    fn no_valid_bit_or_no_such_type_is_no_event() {
        assert_eq!(decode(0x0000_0b0d), None);
        for kind in [1, 5, 6, 7] {
            assert_eq!(decode(VALID | kind << 8 | 0x20), None, "{kind}");
        }
    }
}
