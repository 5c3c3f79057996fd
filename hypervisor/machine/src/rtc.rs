//! Reads the battery-backed clock.

use dolmen_platform::rtc::RtcRegisters;

use crate::port;

const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;
const STATUS_A: u8 = 0x0a;
const UPDATE_IN_PROGRESS: u8 = 0x80;
/// Reads before a clock that never holds still is given up.
const TRIES: u32 = 100_000;

/// Seconds since 1970-01-01 UTC, or `None` where no clock shows a time.
#[must_use]
pub fn unix_seconds() -> Option<u64> {
    // Two equal readings outside an update are a time.
    let mut last = None;
    for _ in 0..TRIES {
        if read(STATUS_A) & UPDATE_IN_PROGRESS != 0 {
            continue;
        }
        let now = registers();
        if last == Some(now) {
            return now.unix_seconds();
        }
        last = Some(now);
    }
    None
}

fn registers() -> RtcRegisters {
    RtcRegisters {
        second: read(0x00),
        minute: read(0x02),
        hour: read(0x04),
        day: read(0x07),
        month: read(0x08),
        year: read(0x09),
        status_b: read(0x0b),
    }
}

fn read(register: u8) -> u8 {
    port::write8(INDEX, register);
    port::read8(DATA)
}
