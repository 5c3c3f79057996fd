//! The battery-backed clock as firmware leaves it: registers in, seconds out.
//!
//! Registers: MC146818 data sheet, "Time, calendar and alarm locations". Nothing trusts the time; a guest's
//! wall clock starts from it.

/// Registers 00h to 0Bh and the century, as read while no update was in progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RtcRegisters {
    /// 00h.
    pub second: u8,
    /// 02h.
    pub minute: u8,
    /// 04h; bit 7 is PM in 12-hour mode.
    pub hour: u8,
    /// 07h.
    pub day: u8,
    /// 08h.
    pub month: u8,
    /// 09h, within the century.
    pub year: u8,
    /// 0Bh: bit 1 is 24-hour mode, bit 2 is binary (else BCD).
    pub status_b: u8,
}

const HOURS_24: u8 = 1 << 1;
const BINARY: u8 = 1 << 2;
const PM: u8 = 1 << 7;

impl RtcRegisters {
    /// Seconds since 1970-01-01 UTC, or `None` for what is no time. The clock is taken to show UTC, and a
    /// year of this century.
    #[must_use]
    pub fn unix_seconds(&self) -> Option<u64> {
        let (month, day, year) = (self.number(self.month)?, self.number(self.day)?, self.number(self.year)?);
        let (minute, second) = (self.number(self.minute)?, self.number(self.second)?);
        let in_range = (1..=12).contains(&month) && (1..=31).contains(&day) && minute < 60 && second < 60;
        let days = in_range.then(|| days_since_1970(year.checked_add(2000)?, month, day)).flatten()?;
        let hours = days.checked_mul(24)?.checked_add(self.hour_of_day()?)?;
        hours.checked_mul(60)?.checked_add(minute)?.checked_mul(60)?.checked_add(second)
    }

    fn number(&self, value: u8) -> Option<u64> {
        if self.status_b & BINARY != 0 {
            return Some(value.into());
        }
        let (tens, ones) = (value >> 4, value & 0xf);
        (tens < 10 && ones < 10).then(|| u64::from(tens).wrapping_mul(10).wrapping_add(ones.into()))
    }

    fn hour_of_day(&self) -> Option<u64> {
        if self.status_b & HOURS_24 != 0 {
            return self.number(self.hour).filter(|hour| *hour < 24);
        }
        let hour = self.number(self.hour & !PM).filter(|hour| (1..=12).contains(hour))?;
        let noon = if self.hour & PM != 0 { 12 } else { 0 };
        hour.checked_rem(12)?.checked_add(noon)
    }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar, counted in years that begin in March so that the
/// leap day comes last.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    let (year, month) =
        if month < 3 { (year.checked_sub(1)?, month.checked_add(9)?) } else { (year, month.checked_sub(3)?) };
    let leap_days = (year / 4).checked_sub(year / 100)?.checked_add(year / 400)?;
    let month_days = month.checked_mul(153)?.checked_add(2)? / 5;
    // 719,469 days lie between the first of March of year 0, counted from 1, and 1970-01-01.
    year.checked_mul(365)?
        .checked_add(leap_days)?
        .checked_add(month_days)?
        .checked_add(day)?
        .checked_sub(719_469)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BCD_24: RtcRegisters = RtcRegisters {
        second: 0x59,
        minute: 0x07,
        hour: 0x23,
        day: 0x29,
        month: 0x02,
        year: 0x24,
        status_b: 2,
    };

    #[test]
    fn known_moments_have_their_unix_time() {
        let binary = |year, month, day, hour, minute, second| RtcRegisters {
            second,
            minute,
            hour,
            day,
            month,
            year,
            status_b: HOURS_24 | BINARY,
        };
        for (registers, want) in [
            (BCD_24, Some(1_709_248_079)),
            (binary(0, 1, 1, 0, 0, 0), Some(946_684_800)),
            (binary(26, 11, 22, 16, 0, 0), Some(1_795_363_200)),
            (binary(99, 12, 31, 23, 59, 59), Some(4_102_444_799)),
            (RtcRegisters { hour: 0x92, status_b: 0, ..BCD_24 }, Some(1_709_208_479)),
            (RtcRegisters { hour: 0x12, status_b: 0, ..BCD_24 }, Some(1_709_165_279)),
        ] {
            assert_eq!(registers.unix_seconds(), want, "{registers:?}");
        }
    }

    #[test]
    fn what_is_no_time_is_none() {
        for registers in [
            RtcRegisters { month: 0x13, ..BCD_24 },
            RtcRegisters { month: 0, ..BCD_24 },
            RtcRegisters { second: 0x5a, ..BCD_24 },
            RtcRegisters { hour: 0x24, ..BCD_24 },
            RtcRegisters { hour: 0x00, status_b: 0, ..BCD_24 },
            RtcRegisters { day: 0xff, ..BCD_24 },
        ] {
            assert_eq!(registers.unix_seconds(), None, "{registers:?}");
        }
    }
}
