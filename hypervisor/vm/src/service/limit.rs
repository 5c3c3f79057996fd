//! A token bucket: so many at once, then one per interval.

/// Says how often a guest may ask for something costly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bucket {
    tokens: u32,
    capacity: u32,
    interval_ms: u64,
    /// Up to when tokens have been given out; nothing before the first use.
    filled_at: Option<u64>,
}

impl Bucket {
    /// Quotes: eight at once, then ten a second.
    pub(super) const QUOTES: Self = Self { tokens: 8, capacity: 8, interval_ms: 100, filled_at: None };

    /// Errands of the TPM: eight at once, then one a second. Enough for an enrolment, and the rest of the time is others'.
    pub(super) const ERRANDS: Self = Self { tokens: 8, capacity: 8, interval_ms: 1000, filled_at: None };

    /// Takes a token, if there is one at `now_ms`.
    pub(super) fn take(&mut self, now_ms: u64) -> bool {
        let since = self.filled_at.unwrap_or(now_ms);
        let earned = now_ms.saturating_sub(since).checked_div(self.interval_ms).unwrap_or(0);
        let full = self.tokens.saturating_add(u32::try_from(earned).unwrap_or(u32::MAX)) >= self.capacity;
        if full {
            (self.tokens, self.filled_at) = (self.capacity, Some(now_ms));
        } else {
            self.tokens = self.tokens.saturating_add(u32::try_from(earned).unwrap_or(u32::MAX));
            self.filled_at = Some(since.saturating_add(earned.saturating_mul(self.interval_ms)));
        }
        match self.tokens.checked_sub(1) {
            Some(rest) => {
                self.tokens = rest;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_served_then_one_per_interval() {
        let mut bucket = Bucket::QUOTES;
        let taken = |bucket: &mut Bucket, now| (0..100).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(&mut bucket, 5), 8);
        assert_eq!(taken(&mut bucket, 104), 0);
        assert_eq!(taken(&mut bucket, 105), 1);
        assert_eq!(taken(&mut bucket, 199), 0);
        assert_eq!(taken(&mut bucket, 305), 2);
        assert_eq!(taken(&mut bucket, 1_000_000), 8);
        assert_eq!(taken(&mut bucket, u64::MAX), 8);
        assert_eq!(taken(&mut bucket, 0), 0);
    }

    #[test]
    fn asking_too_often_does_not_delay_the_next_token() {
        let mut bucket = Bucket::QUOTES;
        let served = (0..=1000).filter(|now| bucket.take(*now)).count();
        assert_eq!(served, 8 + 10);
    }
}
