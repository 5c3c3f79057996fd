//! The timer of a local APIC (SDM vol. 3A, 11.5.4), counting in the guest's time-stamp counter.
//!
//! Its input clock is the time-stamp counter itself, so no rate has to be known or converted. A running
//! count is kept as the moment it ends; the current count is worked out when it is read.

use crate::board::Tsc;

/// What the timer's LVT entry selects by bits 18:17.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
}

impl TimerMode {
    /// Decodes an LVT timer entry; the reserved mode counts once.
    pub(crate) const fn of(lvt: u32) -> Self {
        match (lvt >> 17) & 3 {
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::OneShot,
        }
    }
}

/// Divide configuration, initial count, and the running count.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ApicTimer {
    mode: TimerMode,
    divide: u32,
    initial: u32,
    /// When the count that runs now ends, or the deadline.
    ends: Option<Tsc>,
    /// Shortest period a guest may ask for, in ticks.
    shortest: u64,
}

impl ApicTimer {
    /// A stopped timer; no period is shorter than `shortest` ticks, so that none can flood the host.
    pub(crate) const fn new(shortest: u64) -> Self {
        Self { mode: TimerMode::OneShot, divide: 0, initial: 0, ends: None, shortest }
    }

    /// The LVT entry now selects `mode`. Entering or leaving deadline mode disarms (SDM vol. 3A, 11.5.4.1).
    /// Between the other two the count goes on, and what follows its end is decided then: there is software
    /// that starts the count first.
    pub(crate) fn set_mode(&mut self, mode: TimerMode) {
        if (mode == TimerMode::TscDeadline) != (self.mode == TimerMode::TscDeadline) {
            self.ends = None;
            self.initial = 0;
        }
        self.mode = mode;
    }

    /// The divide configuration register.
    pub(crate) const fn divide(&self) -> u32 {
        self.divide
    }

    /// Writes the divide configuration register; a running count goes on at the new rate.
    pub(crate) fn set_divide(&mut self, value: u32, now: Tsc) {
        let left = self.current(now);
        self.divide = value & 0b1011;
        if self.ends.is_some() && self.mode != TimerMode::TscDeadline {
            self.ends = Some(now.saturating_add(self.ticks(left)));
        }
    }

    /// The initial count register.
    pub(crate) const fn initial(&self) -> u32 {
        self.initial
    }

    /// Writes the initial count register: starts counting, or stops for zero. Ignored in deadline mode.
    pub(crate) fn set_initial(&mut self, count: u32, now: Tsc) {
        if self.mode == TimerMode::TscDeadline {
            return;
        }
        self.initial = count;
        self.ends = (count != 0).then(|| now.saturating_add(self.period()));
    }

    /// The current count register.
    pub(crate) fn current(&self, now: Tsc) -> u32 {
        let Some(ends) = self.ends else { return 0 };
        if self.mode == TimerMode::TscDeadline {
            return 0;
        }
        let mut left = ends.saturating_sub(now);
        if left == 0 && self.mode == TimerMode::Periodic {
            let late = now.saturating_sub(ends).checked_rem(self.period()).unwrap_or_default();
            left = self.period().saturating_sub(late);
        }
        // A period that was made longer than the guest asked for starts with a moment at its initial count.
        u32::try_from(left >> self.shift()).unwrap_or(u32::MAX).min(self.initial)
    }

    /// The deadline register: 0 unless armed, and unless in deadline mode.
    pub(crate) fn deadline(&self) -> Tsc {
        if self.mode == TimerMode::TscDeadline { self.ends.unwrap_or_default() } else { 0 }
    }

    /// Writes the deadline register: arms, or disarms for zero. Ignored outside of deadline mode.
    pub(crate) fn set_deadline(&mut self, deadline: Tsc) {
        if self.mode == TimerMode::TscDeadline {
            self.ends = (deadline != 0).then_some(deadline);
        }
    }

    /// When [`Self::expire`] will next answer yes.
    pub(crate) const fn ends(&self) -> Option<Tsc> {
        self.ends
    }

    /// Whether a count has ended by `now`; periods missed altogether are one.
    pub(crate) fn expire(&mut self, now: Tsc) -> bool {
        let Some(ends) = self.ends.filter(|ends| *ends <= now) else { return false };
        self.ends = None;
        if self.mode == TimerMode::Periodic {
            let late = now.saturating_sub(ends).checked_rem(self.period()).unwrap_or_default();
            self.ends = Some(now.saturating_sub(late).saturating_add(self.period()));
        }
        true
    }

    fn period(&self) -> u64 {
        let ticks = self.ticks(self.initial);
        if self.mode == TimerMode::Periodic { ticks.max(self.shortest).max(1) } else { ticks }
    }

    fn ticks(&self, count: u32) -> u64 {
        u64::from(count) << self.shift()
    }

    /// Divides by 2, 4, … 128 for the codes 0 to 6 and by 1 for 7 (SDM vol. 3A, figure 11-10).
    const fn shift(&self) -> u32 {
        let code = (self.divide & 3) | ((self.divide >> 1) & 4);
        code.wrapping_add(1) & 7
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timer(mode: TimerMode) -> ApicTimer {
        let mut timer = ApicTimer::new(100);
        timer.set_mode(mode);
        timer.set_divide(0b1011, 0);
        timer
    }

    #[test]
    fn one_shot_counts_down_once() {
        let mut timer = timer(TimerMode::OneShot);
        timer.set_initial(1000, 50);
        assert_eq!((timer.current(50), timer.current(300), timer.current(2000)), (1000, 750, 0));
        assert!(!timer.expire(1049));
        assert!(timer.expire(1050));
        assert!(!timer.expire(1_000_000));
        assert_eq!(timer.ends(), None);
    }

    #[test]
    fn every_divider_divides_as_its_code_says() {
        for (code, by) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)] {
            let mut timer = ApicTimer::new(1);
            timer.set_divide(code, 0);
            timer.set_initial(10, 0);
            assert_eq!(timer.ends(), Some(10 * by), "code {code}");
        }
    }

    #[test]
    fn a_new_divider_applies_to_what_is_left() {
        let mut timer = timer(TimerMode::OneShot);
        timer.set_initial(1000, 0);
        timer.set_divide(0, 500);
        assert_eq!((timer.current(500), timer.ends()), (500, Some(1500)));
    }

    #[test]
    fn periodic_keeps_its_phase_when_periods_are_missed() {
        let mut timer = timer(TimerMode::Periodic);
        timer.set_initial(1000, 0);
        assert!(timer.expire(1000));
        assert!(timer.expire(4321));
        assert!(!timer.expire(4999));
        assert_eq!((timer.current(4500), timer.ends()), (500, Some(5000)));
        assert_eq!(timer.current(5250), 750, "read before it was noticed that the period ended");
    }

    #[test]
    fn a_period_cannot_be_shorter_than_allowed() {
        let mut timer = timer(TimerMode::Periodic);
        timer.set_initial(7, 0);
        assert_eq!((timer.ends(), timer.current(0), timer.current(97)), (Some(100), 7, 3));
    }

    #[test]
    fn a_deadline_fires_once_and_then_reads_zero() {
        let mut timer = timer(TimerMode::TscDeadline);
        timer.set_initial(5, 0);
        assert_eq!(timer.ends(), None, "the initial count is ignored");
        timer.set_deadline(777);
        assert_eq!((timer.deadline(), timer.current(0)), (777, 0));
        assert!(timer.expire(777));
        assert_eq!((timer.deadline(), timer.ends()), (0, None));
    }

    #[test]
    fn leaving_or_entering_deadline_mode_disarms() {
        let mut timer = timer(TimerMode::TscDeadline);
        timer.set_deadline(777);
        timer.set_mode(TimerMode::OneShot);
        assert_eq!(timer.ends(), None);
        timer.set_deadline(777);
        timer.set_initial(10, 0);
        assert_eq!((timer.ends(), timer.deadline()), (Some(10), 0));
        timer.set_mode(TimerMode::TscDeadline);
        assert_eq!(timer.ends(), None);
    }

    #[test]
    fn absurd_counts_saturate() {
        let mut timer = timer(TimerMode::OneShot);
        timer.set_divide(0b1010, 0);
        timer.set_initial(u32::MAX, u64::MAX - 5);
        assert_eq!(timer.ends(), Some(u64::MAX));
        assert!(!timer.expire(u64::MAX - 1));
    }
}
