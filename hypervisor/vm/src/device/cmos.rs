//! CMOS memory with a real-time clock (Motorola MC146818A), without its interrupts.
//!
//! The clock runs in 24-hour mode and never shows an update in progress. It goes by the host's wall clock; a
//! guest that sets it sets its own difference to that. Bit 7 of the index port, the NMI mask of the PC, has
//! nothing to mask here.

use super::calendar::Civil;

/// Index port; bit 7 masks NMI.
pub const INDEX: u16 = 0x70;
/// Data port.
pub const DATA: u16 = 0x71;

const SECOND: u8 = 0x00;
const MINUTE: u8 = 0x02;
const HOUR: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
/// Where the FADT says that the century is.
pub const CENTURY: u8 = 0x32;

/// 32.768 kHz time base, 1,024 Hz rate: what PC firmware leaves.
const STATUS_A_RESET: u8 = 0x26;
const STATUS_A_BITS: u8 = 0x7f;
const STATUS_B_24_HOURS: u8 = 1 << 1;
const STATUS_B_BINARY: u8 = 1 << 2;
const STATUS_B_SET: u8 = 1 << 7;
/// RAM and time are valid.
const STATUS_D_VALID: u8 = 0x80;

/// The clock and its memory.
#[derive(Debug)]
pub struct Cmos {
    index: u8,
    memory: [u8; 128],
    /// What the guest's setting adds to the host's wall clock, in seconds, wrapping.
    difference: u64,
    /// The time registers while the guest sets them.
    setting: Option<Civil>,
}

impl Default for Cmos {
    fn default() -> Self {
        let mut cmos = Self { index: STATUS_A, memory: [0; 128], difference: 0, setting: None };
        cmos.store(STATUS_A_RESET);
        cmos.select(STATUS_B);
        cmos.store(STATUS_B_24_HOURS);
        cmos
    }
}

impl Cmos {
    /// Writes the index port.
    pub const fn select(&mut self, value: u8) {
        self.index = value & 0x7f;
    }

    /// Reads the register selected; `seconds` is the host's wall clock since 1970.
    pub fn read(&self, seconds: u64) -> u8 {
        match self.index {
            STATUS_C => 0,
            STATUS_D => STATUS_D_VALID,
            WEEKDAY => self.encode(Civil::weekday(seconds.wrapping_add(self.difference))),
            index => match Self::field(&mut self.time(seconds), index) {
                Some(field) => self.encode(*field % 100),
                None if index == CENTURY => self.encode(self.time(seconds).year / 100),
                None => self.stored(index),
            },
        }
    }

    /// Writes the register selected.
    pub fn write(&mut self, value: u8, seconds: u64) {
        match self.index {
            STATUS_A => self.store(value & STATUS_A_BITS),
            STATUS_B => self.write_status_b(value, seconds),
            STATUS_C | STATUS_D | WEEKDAY => {}
            index => {
                let mut time = self.time(seconds);
                if !self.set_field(&mut time, index, self.decode(value)) {
                    self.store(value);
                } else if self.setting.is_some() {
                    self.setting = Some(time);
                } else {
                    self.set_time(time, seconds);
                }
            }
        }
    }

    /// While SET is on, the time registers stand still and take what is written.
    fn write_status_b(&mut self, value: u8, seconds: u64) {
        self.store((value & (STATUS_B_SET | STATUS_B_BINARY)) | STATUS_B_24_HOURS);
        if value & STATUS_B_SET != 0 {
            self.setting = Some(self.time(seconds));
        } else if let Some(time) = self.setting.take() {
            self.set_time(time, seconds);
        }
    }

    /// What is no date is not taken.
    fn set_time(&mut self, time: Civil, seconds: u64) {
        if let Some(wanted) = time.to_seconds() {
            self.difference = wanted.wrapping_sub(seconds);
        }
    }

    fn time(&self, seconds: u64) -> Civil {
        self.setting.unwrap_or_else(|| Civil::from_seconds(seconds.wrapping_add(self.difference)))
    }

    /// The part of `time` that time register `index` shows; for the year, its last two digits.
    const fn field(time: &mut Civil, index: u8) -> Option<&mut u64> {
        Some(match index {
            SECOND => &mut time.second,
            MINUTE => &mut time.minute,
            HOUR => &mut time.hour,
            DAY => &mut time.day,
            MONTH => &mut time.month,
            YEAR => &mut time.year,
            _ => return None,
        })
    }

    /// Puts `value` into `time`; `false` if `index` is no time register.
    fn set_field(&self, time: &mut Civil, index: u8, value: u64) -> bool {
        let (century, year) = (time.year / 100, time.year % 100);
        match Self::field(time, index) {
            Some(field) if index == YEAR => *field = century.wrapping_mul(100).wrapping_add(value),
            Some(field) => *field = value,
            None if index == CENTURY => time.year = value.wrapping_mul(100).wrapping_add(year),
            None => return false,
        }
        true
    }

    fn stored(&self, index: u8) -> u8 {
        self.memory.get(usize::from(index)).copied().unwrap_or_default()
    }

    fn store(&mut self, value: u8) {
        if let Some(byte) = self.memory.get_mut(usize::from(self.index)) {
            *byte = value;
        }
    }

    fn is_binary(&self) -> bool {
        self.stored(STATUS_B) & STATUS_B_BINARY != 0
    }

    /// A number below 100 as a register shows it.
    fn encode(&self, value: u64) -> u8 {
        let coded = if self.is_binary() { value } else { ((value / 10) << 4) | (value % 10) };
        coded.to_le_bytes()[0]
    }

    fn decode(&self, value: u8) -> u64 {
        let value = u64::from(value);
        if self.is_binary() { value } else { (value >> 4).wrapping_mul(10).wrapping_add(value & 0xf) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 2024-02-29 12:34:56, a Thursday.
    const NOW: u64 = 1_709_210_096;
    const TIME: [u8; 8] = [CENTURY, YEAR, MONTH, DAY, HOUR, MINUTE, SECOND, WEEKDAY];

    fn read(cmos: &mut Cmos, index: u8, seconds: u64) -> u8 {
        cmos.select(index);
        cmos.read(seconds)
    }

    fn write(cmos: &mut Cmos, index: u8, value: u8, seconds: u64) {
        cmos.select(index);
        cmos.write(value, seconds);
    }

    fn time(cmos: &mut Cmos, seconds: u64) -> [u8; 8] {
        TIME.map(|index| read(cmos, index, seconds))
    }

    #[test]
    fn it_tells_the_wall_clock_in_bcd() {
        let mut cmos = Cmos::default();
        assert_eq!(time(&mut cmos, NOW), [0x20, 0x24, 0x02, 0x29, 0x12, 0x34, 0x56, 0x05]);
        assert_eq!([0x0a, 0x0b, 0x0c, 0x0d].map(|n| read(&mut cmos, n, NOW)), [0x26, 0x02, 0x00, 0x80]);
    }

    #[test]
    fn it_tells_it_in_binary_when_asked() {
        let mut cmos = Cmos::default();
        write(&mut cmos, STATUS_B, 0x06, NOW);
        assert_eq!(time(&mut cmos, NOW), [20, 24, 2, 29, 12, 34, 56, 5]);
    }

    #[test]
    fn the_nmi_mask_bit_is_no_part_of_the_index() {
        let mut cmos = Cmos::default();
        assert_eq!(read(&mut cmos, 0x80 | DAY, NOW), 0x29);
    }

    #[test]
    fn a_guest_sets_its_clock_as_linux_does_and_it_runs_on() {
        let mut cmos = Cmos::default();
        write(&mut cmos, STATUS_B, 0x82, NOW);
        write(&mut cmos, STATUS_A, 0x76, NOW);
        for (index, value) in
            [(YEAR, 0x30), (MONTH, 0x12), (DAY, 0x31), (HOUR, 0x23), (MINUTE, 0x59), (SECOND, 0x58)]
        {
            write(&mut cmos, index, value, NOW + 7);
        }
        assert_eq!(time(&mut cmos, NOW + 9)[6], 0x58, "stands still while it is being set");
        write(&mut cmos, STATUS_A, 0x26, NOW + 10);
        write(&mut cmos, STATUS_B, 0x02, NOW + 10);
        assert_eq!(time(&mut cmos, NOW + 13), [0x20, 0x31, 0x01, 0x01, 0x00, 0x00, 0x01, 0x04]);
    }

    #[test]
    fn nonsense_is_not_taken_for_a_time() {
        let mut cmos = Cmos::default();
        write(&mut cmos, MONTH, 0x99, NOW);
        assert_eq!(read(&mut cmos, MONTH, NOW), 0x02);
    }

    #[test]
    fn memory_keeps_what_is_written() {
        let mut cmos = Cmos::default();
        write(&mut cmos, 0x0f, 0x0a, NOW);
        write(&mut cmos, 0x7f, 0x55, NOW);
        assert_eq!((read(&mut cmos, 0x0f, NOW), read(&mut cmos, 0x7f, NOW)), (0x0a, 0x55));
    }

    proptest! {
        #[test]
        fn no_sequence_of_accesses_panics(steps in prop::collection::vec(any::<(u8, u8, u64)>(), 0..100)) {
            let mut cmos = Cmos::default();
            for (index, value, seconds) in steps {
                write(&mut cmos, index, value, seconds);
                let _value = read(&mut cmos, index, seconds);
            }
        }
    }
}
