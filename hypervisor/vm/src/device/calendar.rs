//! Calendar arithmetic of the proleptic Gregorian calendar from 1970 on, for the real-time clock.

/// Seconds of a day.
const DAY: u64 = 86_400;
/// Days from 1 March of year 0 to 1 January 1970.
const EPOCH_SHIFT: u64 = 719_468;
/// Days in 400 years.
const ERA: u64 = 146_097;

/// A moment of civil time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Civil {
    pub(crate) year: u64,
    /// 1 to 12.
    pub(crate) month: u64,
    /// 1 to 31.
    pub(crate) day: u64,
    pub(crate) hour: u64,
    pub(crate) minute: u64,
    pub(crate) second: u64,
}

impl Civil {
    /// The civil time `seconds` after the start of 1970.
    ///
    /// Years are counted from March, so that the leap day is a year's last; months then have lengths that
    /// a linear formula gives.
    pub(crate) fn from_seconds(seconds: u64) -> Self {
        let days = (seconds / DAY).saturating_add(EPOCH_SHIFT);
        let in_era = days % ERA;
        let leap_days = (in_era / 1_460).wrapping_sub(in_era / 36_524).wrapping_add(in_era / 146_096);
        let year_of_era = in_era.wrapping_sub(leap_days) / 365;
        let in_year = in_era.wrapping_sub(Self::days_before(year_of_era));
        let from_march = in_year.wrapping_mul(5).wrapping_add(2) / 153;
        let day = in_year.wrapping_sub(Self::days_before_month(from_march)).wrapping_add(1);
        let (month, carry) =
            if from_march < 10 { (from_march.wrapping_add(3), 0) } else { (from_march.wrapping_sub(9), 1) };
        Self {
            year: (days / ERA).wrapping_mul(400).wrapping_add(year_of_era).wrapping_add(carry),
            month,
            day,
            hour: seconds % DAY / 3_600,
            minute: seconds % 3_600 / 60,
            second: seconds % 60,
        }
    }

    /// Seconds since the start of 1970; `None` for what is no date from then on.
    pub(crate) fn to_seconds(self) -> Option<u64> {
        let is_date = (1970..=9999).contains(&self.year)
            && (1..=12).contains(&self.month)
            && (1..=31).contains(&self.day)
            && self.hour < 24
            && self.minute < 60
            && self.second < 60;
        if !is_date {
            return None;
        }
        let (year, from_march) = if self.month > 2 {
            (self.year, self.month.wrapping_sub(3))
        } else {
            (self.year.wrapping_sub(1), self.month.wrapping_add(9))
        };
        let days = (year / 400)
            .checked_mul(ERA)?
            .checked_add(Self::days_before(year % 400))?
            .checked_add(Self::days_before_month(from_march))?
            .checked_add(self.day.wrapping_sub(1))?
            .checked_sub(EPOCH_SHIFT)?;
        let in_day = self.hour.checked_mul(3_600)?.checked_add(self.minute.checked_mul(60)?)?;
        days.checked_mul(DAY)?.checked_add(in_day)?.checked_add(self.second)
    }

    /// 1 to 7 for Sunday to Saturday, as the clock counts.
    pub(crate) const fn weekday(seconds: u64) -> u64 {
        ((seconds / DAY).wrapping_add(4) % 7).wrapping_add(1) // 1970 began on a Thursday
    }

    const fn days_before(year_of_era: u64) -> u64 {
        year_of_era.wrapping_mul(365).wrapping_add(year_of_era / 4).wrapping_sub(year_of_era / 100)
    }

    const fn days_before_month(from_march: u64) -> u64 {
        from_march.wrapping_mul(153).wrapping_add(2) / 5
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_moments_come_out_right() {
        for (seconds, (year, month, day, hour, minute, second), weekday) in [
            (0, (1970, 1, 1, 0, 0, 0), 5),
            (951_782_399, (2000, 2, 28, 23, 59, 59), 2),
            (951_782_400, (2000, 2, 29, 0, 0, 0), 3),
            (951_868_800, (2000, 3, 1, 0, 0, 0), 4),
            (1_704_067_200, (2024, 1, 1, 0, 0, 0), 2),
            (4_107_542_399, (2100, 2, 28, 23, 59, 59), 1),
            (4_107_542_400, (2100, 3, 1, 0, 0, 0), 2),
        ] {
            let civil = Civil { year, month, day, hour, minute, second };
            assert_eq!(Civil::from_seconds(seconds), civil);
            assert_eq!((civil.to_seconds(), Civil::weekday(seconds)), (Some(seconds), weekday), "{civil:?}");
        }
    }

    #[test]
    fn what_is_no_date_has_no_seconds() {
        let date = Civil { year: 2024, month: 1, day: 1, hour: 0, minute: 0, second: 0 };
        for wrong in [
            Civil { year: 1969, ..date },
            Civil { month: 0, ..date },
            Civil { month: 13, ..date },
            Civil { day: 0, ..date },
            Civil { day: 32, ..date },
            Civil { hour: 24, ..date },
            Civil { minute: 60, ..date },
            Civil { second: 60, ..date },
        ] {
            assert_eq!(wrong.to_seconds(), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn every_second_survives_the_round_trip(seconds in 0u64..253_402_300_800) {
            prop_assert_eq!(Civil::from_seconds(seconds).to_seconds(), Some(seconds));
        }
    }
}
