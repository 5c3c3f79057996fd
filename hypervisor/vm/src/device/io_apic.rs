//! The I/O APIC: 24 pins, each with a redirection entry (82093AA data sheet; version 20h as in ICH9, which
//! adds the end-of-interrupt register).
//!
//! Messages go out through a closure, since an end of interrupt can bring several.

use crate::bus::{Delivery, Destination, Message};

/// Pins, and redirection entries.
pub const PINS: usize = 24;

/// Register select, window and end of interrupt: offsets in memory.
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const END_OF_INTERRUPT: u64 = 0x40;

const INDEX_ID: u8 = 0x00;
const INDEX_VERSION: u8 = 0x01;
const INDEX_ARBITRATION: u8 = 0x02;
const INDEX_FIRST_ENTRY: u8 = 0x10;

const VERSION: u32 = 0x0017_0020;
const ID_BITS: u32 = 0x0f00_0000;

const ENTRY_LOGICAL: u64 = 1 << 11;
const ENTRY_STATUS: u64 = 1 << 12;
const ENTRY_REMOTE_IRR: u64 = 1 << 14;
const ENTRY_LEVEL: u64 = 1 << 15;
const ENTRY_MASKED: u64 = 1 << 16;
/// Destination, mask, trigger, polarity, destination mode, delivery mode, vector.
const ENTRY_WRITABLE: u64 = 0xff00_0000_0001_ffff & !(ENTRY_STATUS | ENTRY_REMOTE_IRR);

/// One I/O APIC.
#[derive(Debug)]
pub struct IoApic {
    id: u32,
    select: u8,
    entries: [u64; PINS],
    /// Bit n: pin n is asserted, whatever its polarity.
    asserted: u32,
}

impl Default for IoApic {
    fn default() -> Self {
        Self { id: 0, select: 0, entries: [ENTRY_MASKED; PINS], asserted: 0 }
    }
}

impl IoApic {
    /// Reads the register at `offset` of the page; all accesses are of 32 bits.
    pub fn read(&self, offset: u64) -> u32 {
        match (offset, self.select) {
            (SELECT, select) => u32::from(select),
            (WINDOW, INDEX_ID | INDEX_ARBITRATION) => self.id,
            (WINDOW, INDEX_VERSION) => VERSION,
            (WINDOW, index) => self.entry_word(index).unwrap_or(0),
            _ => 0,
        }
    }

    /// Writes the register at `offset` of the page.
    pub fn write(&mut self, offset: u64, value: u32, mut send: impl FnMut(Message)) {
        match (offset, self.select) {
            (SELECT, _) => self.select = value.to_le_bytes()[0],
            (WINDOW, INDEX_ID) => self.id = value & ID_BITS,
            (WINDOW, index) => self.write_entry(index, value, &mut send),
            (END_OF_INTERRUPT, _) => self.end_of_interrupt(value.to_le_bytes()[0], send),
            _ => {}
        }
    }

    /// A device asserts or releases `pin`.
    pub fn set_pin(&mut self, pin: u8, asserted: bool, mut send: impl FnMut(Message)) {
        let bit = 1u32.checked_shl(u32::from(pin)).unwrap_or_default();
        let was = self.asserted & bit != 0;
        self.asserted = if asserted { self.asserted | bit } else { self.asserted & !bit };
        let Some(entry) = self.entries.get_mut(usize::from(pin)) else { return };
        if *entry & ENTRY_LEVEL != 0 {
            Self::serve_level(entry, asserted, &mut send);
        } else if asserted && !was && *entry & ENTRY_MASKED == 0 {
            Self::send(*entry, &mut send);
        }
    }

    /// A processor has ended the level-triggered interrupt `vector`; a pin still asserted asks again.
    pub fn end_of_interrupt(&mut self, vector: u8, mut send: impl FnMut(Message)) {
        for (pin, entry) in (0u32..).zip(&mut self.entries) {
            if *entry & (ENTRY_LEVEL | ENTRY_REMOTE_IRR) == ENTRY_LEVEL | ENTRY_REMOTE_IRR
                && entry.to_le_bytes()[0] == vector
            {
                *entry &= !ENTRY_REMOTE_IRR;
                Self::serve_level(entry, (self.asserted >> pin) & 1 != 0, &mut send);
            }
        }
    }

    fn entry_word(&self, index: u8) -> Option<u32> {
        let at = index.checked_sub(INDEX_FIRST_ENTRY)?;
        let [a, b, c, d, e, f, g, h] = self.entries.get(usize::from(at >> 1))?.to_le_bytes();
        Some(u32::from_le_bytes(if at & 1 == 0 { [a, b, c, d] } else { [e, f, g, h] }))
    }

    fn write_entry(&mut self, index: u8, value: u32, send: &mut impl FnMut(Message)) {
        let Some(at) = index.checked_sub(INDEX_FIRST_ENTRY) else { return };
        let Some(entry) = self.entries.get_mut(usize::from(at >> 1)) else { return };
        let (kept, new) = if at & 1 == 0 {
            (*entry & 0xffff_ffff_0000_0000, u64::from(value))
        } else {
            (*entry & 0x0000_0000_ffff_ffff, u64::from(value) << 32)
        };
        let mut remote = *entry & ENTRY_REMOTE_IRR;
        *entry = (kept | new) & ENTRY_WRITABLE;
        // An edge-triggered entry has none, which is how software without the end-of-interrupt register clears it.
        if *entry & ENTRY_LEVEL == 0 {
            remote = 0;
        }
        *entry |= remote;
        if *entry & ENTRY_LEVEL != 0 {
            Self::serve_level(entry, (self.asserted >> (at >> 1)) & 1 != 0, send);
        }
    }

    fn serve_level(entry: &mut u64, asserted: bool, send: &mut impl FnMut(Message)) {
        if asserted && *entry & (ENTRY_MASKED | ENTRY_REMOTE_IRR) == 0 && Self::send(*entry, send) {
            *entry |= ENTRY_REMOTE_IRR;
        }
    }

    /// Sends the message of `entry`; whether it is one whose end will be told.
    fn send(entry: u64, send: &mut impl FnMut(Message)) -> bool {
        let [vector, .., address] = entry.to_le_bytes();
        let delivery = Delivery::of(u32::try_from(entry & 0xffff_ffff).unwrap_or_default());
        let destination = Destination::of_byte(address, entry & ENTRY_LOGICAL != 0);
        let level_triggered = entry & ENTRY_LEVEL != 0;
        match delivery {
            Delivery::Fixed | Delivery::LowestPriority | Delivery::Nmi => {
                send(Message { delivery, vector, level_triggered, destination });
            }
            Delivery::Init | Delivery::StartUp | Delivery::Unsupported => return false,
        }
        delivery != Delivery::Nmi
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn write_entry(io: &mut IoApic, pin: u32, entry: u64) -> Vec<Message> {
        let mut sent = Vec::new();
        for (index, value) in [(0x11 + 2 * pin, entry >> 32), (0x10 + 2 * pin, entry & 0xffff_ffff)] {
            io.write(SELECT, index, |_| {});
            io.write(WINDOW, value as u32, |m| sent.push(m));
        }
        sent
    }

    fn read_low(io: &mut IoApic, pin: u32) -> u32 {
        io.write(SELECT, 0x10 + 2 * pin, |_| {});
        io.read(WINDOW)
    }

    fn pin(io: &mut IoApic, pin: u8, asserted: bool) -> Vec<Message> {
        let mut sent = Vec::new();
        io.set_pin(pin, asserted, |m| sent.push(m));
        sent
    }

    fn message(vector: u8, level_triggered: bool) -> Message {
        let destination = Destination::Physical(3);
        Message { delivery: Delivery::Fixed, vector, level_triggered, destination }
    }

    #[test]
    fn it_shows_24_masked_entries_after_reset() {
        let mut io = IoApic::default();
        io.write(SELECT, 1, |_| {});
        assert_eq!(io.read(WINDOW), 0x0017_0020);
        for n in 0..24 {
            assert_eq!(read_low(&mut io, n), 0x1_0000, "{n}");
        }
        io.write(SELECT, 0x40, |_| {});
        assert_eq!((io.read(WINDOW), io.read(0x30)), (0, 0), "beyond the entries");
    }

    #[test]
    fn an_edge_is_sent_once_for_each_rise() {
        let mut io = IoApic::default();
        assert_eq!(write_entry(&mut io, 4, 0x0300_0000_0000_0031), []);
        assert_eq!(pin(&mut io, 4, true), [message(0x31, false)]);
        assert_eq!(pin(&mut io, 4, true), []);
        assert_eq!(pin(&mut io, 4, false), []);
        assert_eq!(pin(&mut io, 4, true), [message(0x31, false)]);
    }

    #[test]
    fn an_edge_at_a_masked_pin_is_lost() {
        let mut io = IoApic::default();
        assert_eq!(pin(&mut io, 4, true), []);
        assert_eq!(write_entry(&mut io, 4, 0x0300_0000_0000_0031), []);
    }

    #[test]
    fn a_level_is_sent_again_after_its_end_while_it_lasts() {
        let mut io = IoApic::default();
        assert_eq!(pin(&mut io, 9, true), []);
        assert_eq!(write_entry(&mut io, 9, 0x0300_0000_0000_8031), [message(0x31, true)]);
        assert_eq!(read_low(&mut io, 9), 0xc031);
        assert_eq!(pin(&mut io, 9, true), [], "in service");
        let mut sent = Vec::new();
        io.end_of_interrupt(0x31, |m| sent.push(m));
        assert_eq!(sent, [message(0x31, true)]);
        assert_eq!(pin(&mut io, 9, false), []);
        io.write(END_OF_INTERRUPT, 0x31, |m| sent.push(m));
        assert_eq!((sent.len(), read_low(&mut io, 9)), (1, 0x8031));
    }

    #[test]
    fn switching_to_edge_clears_the_remote_irr() {
        let mut io = IoApic::default();
        assert_eq!(pin(&mut io, 9, true), []);
        assert_eq!(write_entry(&mut io, 9, 0x0300_0000_0000_8031).len(), 1);
        assert_eq!(write_entry(&mut io, 9, 0x0300_0000_0001_0031), []);
        assert_eq!(read_low(&mut io, 9), 0x1_0031);
    }

    #[test]
    fn software_cannot_set_the_read_only_bits() {
        let mut io = IoApic::default();
        assert_eq!(write_entry(&mut io, 2, 0xffff_ffff_ffff_ffff), []);
        assert_eq!(read_low(&mut io, 2), 0x1_afff);
    }

    proptest! {
        /// A level interrupt is never sent twice without an end in between.
        #[test]
        fn remote_irr_holds_back_a_second_level_message(
            steps in prop::collection::vec((0u8..4, any::<bool>(), any::<u32>()), 0..100)
        ) {
            let mut io = IoApic::default();
            assert_eq!(write_entry(&mut io, 9, 0x8031), []);
            let mut open = 0i32;
            for (what, asserted, value) in steps {
                let mut sent = 0;
                match what {
                    0 => io.set_pin(9, asserted, |_| sent += 1),
                    1 => {
                        open = 0;
                        io.end_of_interrupt(0x31, |_| sent += 1);
                    }
                    2 => io.set_pin((value & 0xff) as u8 | 16, asserted, |_| {}),
                    _ => {
                        io.write(SELECT, 0x10 + 2 * 9, |_| {});
                        io.write(WINDOW, 0x8031 | (value & 0x1_0000), |_| sent += 1);
                    }
                }
                open += sent;
                prop_assert!(open <= 1);
            }
        }
    }
}
