//! What follows when a guest stops by itself: the manifest's answers, with a limit and growing pauses.

use dolmen_abi::StopCause;

use super::Nanoseconds;
use crate::manifest::{Answer, GuestConfig};
use crate::policy::StopReason;

const MS: Nanoseconds = 1_000_000;

/// A guest that ran so long before it crashed has its restarts again.
pub(super) const LONG_RUN: Nanoseconds = 60_000 * MS;
/// A guest that ran shorter than this before it rebooted waits a moment.
const SHORT_RUN: Nanoseconds = 1000 * MS;
/// The first pause; it doubles with each crash.
const FIRST_PAUSE: Nanoseconds = 100 * MS;
/// The longest.
const LONGEST_PAUSE: Nanoseconds = 10_000 * MS;

/// What a guest's end means for the machine.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: the others go on.
    GoOn,
    /// It stops.
    HaltMachine,
    /// It is reset.
    ResetMachine,
}

/// What becomes of the guest itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Stay,
    Restart { delay: Nanoseconds },
}

/// The manifest's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// When it resets itself.
    pub on_reboot: Answer,
    /// When it can run no further.
    pub on_crash: Answer,
    /// When it switches itself off.
    pub on_power_off: Answer,
    /// Restarts after crashes that follow each other.
    pub restart_limit: u32,
}

impl Rules {
    /// The answers of a checked manifest.
    pub fn of(config: &GuestConfig) -> Self {
        Self {
            on_reboot: config.on_reboot(),
            on_crash: config.on_crash(),
            on_power_off: config.on_power_off(),
            restart_limit: config.restart_limit,
        }
    }

    /// What follows `cause`, after a run of this length and so many crashes without a long run since.
    pub(super) fn judge(&self, cause: StopCause, run: Nanoseconds, crashes: u32) -> (Verdict, Next) {
        let (answer, pause) = match cause {
            // The machine itself can no longer be trusted.
            StopCause::MACHINE_CHECK => (Answer::HaltMachine, 0),
            StopCause::REBOOT => (self.on_reboot, if run < SHORT_RUN { FIRST_PAUSE } else { 0 }),
            StopCause::POWER_OFF => (self.on_power_off, FIRST_PAUSE),
            _ if self.on_crash == Answer::Restart && crashes >= self.restart_limit => (Answer::Stop, 0),
            _ => (self.on_crash, FIRST_PAUSE.saturating_mul(1 << crashes.min(16)).min(LONGEST_PAUSE)),
        };
        match answer {
            Answer::Restart => (Verdict::GoOn, Next::Restart { delay: pause }),
            Answer::Stop => (Verdict::GoOn, Next::Stay),
            Answer::HaltMachine => (Verdict::HaltMachine, Next::Stay),
            Answer::ResetMachine => (Verdict::ResetMachine, Next::Stay),
        }
    }
}

/// The number that a stop has for guests, and the address or code that goes with it.
pub(super) const fn cause(reason: StopReason) -> (StopCause, u64) {
    match reason {
        StopReason::Reset => (StopCause::REBOOT, 0),
        StopReason::PowerOff => (StopCause::POWER_OFF, 0),
        StopReason::TripleFault => (StopCause::TRIPLE_FAULT, 0),
        StopReason::HaltedForEver => (StopCause::HALTED_FOR_EVER, 0),
        StopReason::InvalidState => (StopCause::INVALID_STATE, 0),
        StopReason::TaskSwitch => (StopCause::TASK_SWITCH, 0),
        StopReason::TablesOutsideRam(gpa) => (StopCause::TABLES_OUTSIDE_RAM, gpa.get()),
        StopReason::UnknownInstruction { gpa, .. } => (StopCause::UNKNOWN_INSTRUCTION, gpa.get()),
        StopReason::MachineCheck => (StopCause::MACHINE_CHECK, 0),
        StopReason::UnexpectedExit(code) => (StopCause::UNEXPECTED_EXIT, code),
    }
}
