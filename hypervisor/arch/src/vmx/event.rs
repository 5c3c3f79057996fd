//! Event injection and IDT-vectoring information (SDM vol. 3C, 25.8.3 and 25.9.3): one encoding for both.

use crate::bits::low8;
use crate::event::{Event, Vector};

const VALID: u32 = 1 << 31;
const ERROR_CODE_VALID: u32 = 1 << 11;
const TYPE_SHIFT: u32 = 8;
const INTERRUPT: u32 = 0;
const NMI: u32 = 2;
const EXCEPTION: u32 = 3;
const SOFTWARE_INTERRUPT: u32 = 4;
const PRIVILEGED_EXCEPTION: u32 = 5;
const SOFTWARE_EXCEPTION: u32 = 6;

/// What the three fields of an injection hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Injection {
    /// Interruption information.
    pub information: u32,
    /// Error code, where the information says that there is one.
    pub error_code: u32,
    /// Length of the instruction behind the event, where it is a software one.
    pub length: u32,
}

impl Injection {
    /// Nothing.
    pub const NONE: Self = Self { information: 0, error_code: 0, length: 0 };

    /// What injects `event`. Without protection no error code is pushed. A breakpoint or an overflow, and a software
    /// interrupt, return behind an instruction of `length` bytes; without one they are delivered as if there were none.
    pub fn encode(event: Event, is_protected: bool, length: u32) -> Self {
        let (kind, vector, error) = match event {
            Event::Interrupt(vector) => (INTERRUPT, vector, None),
            Event::Nmi => (NMI, Vector::NMI.0, None),
            Event::Exception { vector: vector @ (Vector::BP | Vector::OF), .. } => {
                (SOFTWARE_EXCEPTION, vector.0, None)
            }
            Event::Exception { vector, error_code } => (
                EXCEPTION,
                vector.0,
                (is_protected && vector.has_error_code()).then_some(error_code & 0xffff),
            ),
            Event::SoftwareInterrupt(vector) => (SOFTWARE_INTERRUPT, vector, None),
        };
        let has_error = error.map_or(0, |_| ERROR_CODE_VALID);
        Self {
            information: VALID | has_error | kind << TYPE_SHIFT | u32::from(vector),
            error_code: error.unwrap_or(0),
            length: if matches!(kind, SOFTWARE_INTERRUPT | SOFTWARE_EXCEPTION) {
                length.clamp(1, 15)
            } else {
                0
            },
        }
    }

    /// What delivers an event again whose delivery was cut short: without bits that only tell of the exit.
    pub const fn again(self) -> Self {
        const NMI_UNBLOCKED: u32 = 1 << 12;
        Self { information: self.information & !NMI_UNBLOCKED, ..self }
    }

    /// The event whose delivery an exit cut short, if any. A type that does not exist is no event.
    pub fn decode(self) -> Option<Event> {
        if self.information & VALID == 0 {
            return None;
        }
        let vector = low8(self.information.into());
        let error_code = if self.information & ERROR_CODE_VALID == 0 { 0 } else { self.error_code };
        match (self.information >> TYPE_SHIFT) & 7 {
            INTERRUPT => Some(Event::Interrupt(vector)),
            NMI => Some(Event::Nmi),
            EXCEPTION | PRIVILEGED_EXCEPTION | SOFTWARE_EXCEPTION => {
                Some(Event::Exception { vector: Vector(vector), error_code })
            }
            SOFTWARE_INTERRUPT => Some(Event::SoftwareInterrupt(vector)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(event: Event) -> (u32, u32, u32) {
        let Injection { information, error_code, length } = Injection::encode(event, true, 2);
        (information, error_code, length)
    }

    #[test]
    fn events_encode_as_the_manual_says() {
        let exception = |vector, error_code| Event::Exception { vector, error_code };
        for (event, raw) in [
            (Event::Interrupt(0x41), (0x8000_0041, 0, 0)),
            (Event::Nmi, (0x8000_0202, 0, 0)),
            (Event::INVALID_OPCODE, (0x8000_0306, 0, 0)),
            (Event::GENERAL_PROTECTION, (0x8000_0b0d, 0, 0)),
            (exception(Vector::PF, 0x15), (0x8000_0b0e, 0x15, 0)),
            (exception(Vector::BP, 0), (0x8000_0603, 0, 2)),
            (Event::SoftwareInterrupt(0x80), (0x8000_0480, 0, 2)),
        ] {
            assert_eq!(encoded(event), raw, "{event:?}");
            assert_eq!(Injection::encode(event, true, 2).decode(), Some(event), "{raw:?}");
        }
    }

    #[test]
    fn real_mode_pushes_no_error_code() {
        assert_eq!(Injection::encode(Event::GENERAL_PROTECTION, false, 0).information, 0x8000_030d);
    }

    #[test]
    fn a_length_that_no_instruction_has_never_reaches_an_entry() {
        for (given, want) in [(0, 1), (15, 15), (16, 15)] {
            assert_eq!(Injection::encode(Event::SoftwareInterrupt(3), true, given).length, want);
        }
    }

    #[test]
    fn no_valid_bit_or_no_such_type_is_no_event() {
        let raw = |information| Injection { information, ..Injection::NONE };
        assert_eq!(raw(0x0000_0b0d).decode(), None);
        for kind in [1, 7] {
            assert_eq!(raw(VALID | kind << 8 | 0x20).decode(), None, "{kind}");
        }
        assert_eq!(
            raw(VALID | 5 << 8 | 1).decode(),
            Some(Event::Exception { vector: Vector::DB, error_code: 0 })
        );
    }
}
