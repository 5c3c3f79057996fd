//! The life of one guest: off, loading, running, stopping, stopped; who may change that, and what follows.
//!
//! Pure: a driver takes [`Work`], does it, and says how it went. Work comes in pieces that are short enough to
//! do between two turns of other guests. Promises, which the tests hold it to:
//!
//! - no guest runs before each measured file was compared with its recorded digest, since it stopped last;
//! - its memory is wiped between two runs, and as soon as it stops;
//! - what is asked for while a piece is in hand is noted, and every request ends;
//! - a file that differs from what was measured ends it: nothing starts that guest again.
//!
//! Nothing here is on the way of an exit, and nothing allocates.

use dolmen_abi::{GuestInfo, GuestState, Status, StopCause};

use crate::policy::StopReason;

mod check;
mod rules;

#[cfg(test)]
mod tests;

pub use check::{ChangedFile, Checked, Checker, Component, Components};
pub use rules::{Rules, Verdict};

use rules::Next;

/// Nanoseconds of the host's clock; never falls.
pub type Nanoseconds = u64;

/// Bytes that are wiped at a time.
pub const WIPE_BYTES: u64 = 0x8_0000;
/// Bytes that are hashed at a time: SHA-384 takes the longest of all pieces.
pub const CHECK_BYTES: u64 = 0x4000;

/// What somebody asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Start a guest that does not run.
    Start,
    /// Stop it, for good.
    Stop,
    /// Stop it and start it again.
    Reset,
}

/// What is left of a run: where the processor stood that ended it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LastState {
    /// RIP.
    pub rip: u64,
    /// CR3.
    pub cr3: u64,
    /// An address or code, by cause; or 0.
    pub detail: u64,
}

/// One piece of work, for one driver at a time.
#[derive(Debug, PartialEq, Eq)]
pub enum Work {
    /// Tell all processors of the guest to stop, unless that was done. [`Outcome::Done`] if none runs any more.
    Halt,
    /// Fill this part of the guest's memory with zeroes, and forget what else it left behind.
    Wipe {
        /// First byte, counted from the start of its RAM.
        offset: u64,
        /// How many.
        bytes: u64,
    },
    /// Hash this part of a component with the guest's [`Checker`].
    Check {
        /// Which.
        component: usize,
        /// First byte.
        offset: u64,
        /// How many.
        bytes: u64,
    },
    /// Put the next part of its image into memory. [`Outcome::Done`] with the last part.
    Fill {
        /// The first part: memory holds zeroes only, and whatever was begun before is over.
        begins: bool,
    },
    /// Reset processors, board and service, and let it run. Whoever does that says [`Outcome::Done`] first, and keeps
    /// the guest's life locked until the processors were started, if it then [runs](Lifecycle::is_running):
    /// a stop that comes in between would find none to stop.
    Run,
}

/// How a piece of work went.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing is left of it.
    Done,
    /// The same again, later.
    Again,
    /// The last part of a component was hashed, and this is what came out.
    Compared(Result<Checked, ChangedFile>),
    /// The image cannot be loaded.
    NotLoadable,
}

/// Where a guest is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Off,
    Checking { component: usize, offset: u64 },
    Filling,
    Starting,
    Running,
    Halting,
    Wiping { offset: u64 },
    Waiting { until: Nanoseconds },
    Stopped,
    Refused,
}

/// What follows once the memory is wiped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Stay,
    Restart { delay: Nanoseconds },
}

/// The life of one guest.
#[derive(Debug)]
pub struct Lifecycle {
    rules: Rules,
    components: Components,
    memory: u64,
    state: State,
    after: After,
    /// A driver has a piece of work.
    is_in_hand: bool,
    /// The guest's memory holds zeroes only.
    is_clean: bool,
    /// A stop was asked for while a piece of loading was in hand.
    is_cancelled: bool,
    cause: StopCause,
    last: LastState,
    starts: u32,
    restarts: u32,
    /// Crashes without a long run in between.
    crashes: u32,
    started_at: Nanoseconds,
    stopped_at: Nanoseconds,
}

impl Lifecycle {
    /// A guest that is off, with `memory` bytes of zeroes.
    pub const fn new(rules: Rules, components: Components, memory: u64) -> Self {
        Self {
            rules,
            components,
            memory,
            state: State::Off,
            after: After::Stay,
            is_in_hand: false,
            is_clean: true,
            is_cancelled: false,
            cause: StopCause::NONE,
            last: LastState { rip: 0, cr3: 0, detail: 0 },
            starts: 0,
            restarts: 0,
            crashes: 0,
            started_at: 0,
            stopped_at: 0,
        }
    }

    /// Takes note that the guest was loaded where its files had just been measured, and runs.
    pub const fn started_at_boot(&mut self, now: Nanoseconds) {
        self.is_clean = false;
        self.run(now);
    }

    /// What the guest does, for whoever asks.
    pub const fn state(&self) -> GuestState {
        match self.state {
            State::Off => GuestState::OFF,
            State::Checking { .. } | State::Filling | State::Starting => GuestState::LOADING,
            State::Running => GuestState::RUNNING,
            State::Halting | State::Wiping { .. } => GuestState::STOPPING,
            State::Waiting { .. } => GuestState::RESTARTING,
            State::Stopped => GuestState::STOPPED,
            State::Refused => GuestState::REFUSED,
        }
    }

    /// Whether its processors may run.
    pub const fn is_running(&self) -> bool {
        matches!(self.state, State::Running)
    }

    /// Whether it stays as it is unless somebody starts it.
    pub const fn is_at_rest(&self) -> bool {
        matches!(self.state, State::Off | State::Stopped | State::Refused)
    }

    /// Why it stopped last.
    pub const fn cause(&self) -> StopCause {
        self.cause
    }

    /// What was left of its last run.
    pub const fn last(&self) -> LastState {
        self.last
    }

    /// How often it was started, and how often of these by its own rules.
    pub const fn starts(&self) -> (u32, u32) {
        (self.starts, self.restarts)
    }

    /// How long it has run since its last start, or from then to its stop.
    pub const fn run_time(&self, now: Nanoseconds) -> Nanoseconds {
        match self.state {
            State::Running => now.saturating_sub(self.started_at),
            State::Off
            | State::Checking { .. }
            | State::Filling
            | State::Starting
            | State::Halting
            | State::Wiping { .. }
            | State::Waiting { .. }
            | State::Stopped
            | State::Refused => self.stopped_at.saturating_sub(self.started_at),
        }
    }

    /// Fills in what a list of guests tells of this one's life.
    pub const fn describe(&self, info: &mut GuestInfo, now: Nanoseconds) {
        (info.state, info.cause) = (self.state().0, self.cause.0);
        (info.starts, info.restarts) = (self.starts, self.restarts);
        info.run_ns = self.run_time(now);
        (info.last_rip, info.last_cr3, info.last_detail) = (self.last.rip, self.last.cr3, self.last.detail);
    }

    /// The files as they were measured.
    pub const fn components(&self) -> &Components {
        &self.components
    }

    /// Notes what a manager asks for.
    ///
    /// # Errors
    /// The status that says why not; nothing is then changed.
    pub fn request(&mut self, request: Request, now: Nanoseconds) -> Result<(), Status> {
        match (self.state, request) {
            (State::Refused, _) => return Err(Status::CHANGED_FILE),
            (State::Off | State::Stopped, Request::Start) => self.load(),
            (State::Off | State::Stopped, Request::Stop | Request::Reset) => return Err(Status::WRONG_STATE),
            (State::Waiting { .. }, Request::Start | Request::Reset) => self.load(),
            (State::Waiting { .. }, Request::Stop) => self.state = State::Stopped,
            (State::Halting | State::Wiping { .. }, Request::Stop) => self.after = After::Stay,
            (State::Halting | State::Wiping { .. }, Request::Start | Request::Reset) => {
                self.after = After::Restart { delay: 0 };
            }
            (State::Running, Request::Stop) => self.halt(StopCause::REQUESTED, After::Stay, now),
            (State::Running, Request::Reset) => {
                self.halt(StopCause::REQUESTED, After::Restart { delay: 0 }, now);
            }
            (State::Checking { .. } | State::Filling | State::Starting, Request::Stop) => self.cancel(),
            (State::Checking { .. } | State::Filling | State::Starting, Request::Reset) => {
                // It is about to start anyway; a stop that was asked for before is taken back.
                self.is_cancelled = false;
            }
            (State::Checking { .. } | State::Filling | State::Starting, Request::Start) => {
                if !core::mem::take(&mut self.is_cancelled) {
                    return Err(Status::WRONG_STATE);
                }
            }
            (State::Running, Request::Start) => return Err(Status::WRONG_STATE),
        }
        Ok(())
    }

    /// Notes that the guest stopped by itself, and answers what that means for the machine. Of several
    /// processors that stop at once the first counts, unless another one says that the machine itself fails.
    pub fn ended(&mut self, reason: StopReason, last: LastState, now: Nanoseconds) -> Verdict {
        let (cause, detail) = rules::cause(reason);
        if self.state != State::Running && cause != StopCause::MACHINE_CHECK {
            return Verdict::GoOn;
        }
        if self.run_time(now) >= rules::LONG_RUN {
            self.crashes = 0;
        }
        let (verdict, next) = self.rules.judge(cause, self.run_time(now), self.crashes);
        if cause.is_crash() {
            self.crashes = self.crashes.saturating_add(1);
        }
        let after = match next {
            Next::Stay => After::Stay,
            Next::Restart { delay } => {
                self.restarts = self.restarts.saturating_add(1);
                After::Restart { delay }
            }
        };
        self.halt(cause, after, now);
        self.last = LastState { detail, ..last };
        verdict
    }

    /// The next piece of work, if there is one and nobody else has it. Whoever gets it must say
    /// [how it went](Self::done).
    pub fn take(&mut self, now: Nanoseconds) -> Option<Work> {
        if self.is_in_hand {
            return None;
        }
        if let State::Waiting { until } = self.state
            && until <= now
        {
            self.load();
        }
        let work = match self.state {
            State::Checking { component, offset } => self.check(component, offset),
            State::Filling => Work::Fill { begins: core::mem::take(&mut self.is_clean) },
            State::Starting => Work::Run,
            State::Halting => Work::Halt,
            State::Wiping { offset } => {
                Work::Wipe { offset, bytes: self.memory.saturating_sub(offset).min(WIPE_BYTES) }
            }
            State::Off | State::Running | State::Waiting { .. } | State::Stopped | State::Refused => {
                return None;
            }
        };
        self.is_in_hand = true;
        Some(work)
    }

    /// When [`Self::take`] has something new without anybody asking for it.
    pub const fn next_event(&self) -> Option<Nanoseconds> {
        match self.state {
            State::Waiting { until } => Some(until),
            State::Off | State::Running | State::Stopped | State::Refused => None,
            State::Checking { .. }
            | State::Filling
            | State::Starting
            | State::Halting
            | State::Wiping { .. } => {
                if self.is_in_hand {
                    None
                } else {
                    Some(0)
                }
            }
        }
    }

    /// Goes on from a piece of work that [`Self::take`] gave.
    pub fn done(&mut self, outcome: Outcome, now: Nanoseconds) {
        if !core::mem::take(&mut self.is_in_hand) {
            return;
        }
        match (self.state, outcome) {
            (State::Halting, Outcome::Done) => self.state = State::Wiping { offset: 0 },
            (State::Wiping { offset }, Outcome::Done) => self.wiped(offset.saturating_add(WIPE_BYTES), now),
            (State::Checking { component, offset }, Outcome::Done) => {
                self.checked_part(component, offset.saturating_add(CHECK_BYTES));
            }
            (State::Checking { component, offset }, Outcome::Compared(Ok(checked)))
                if self.components.is_proved(component, offset.saturating_add(CHECK_BYTES), &checked) =>
            {
                self.check_from(component.saturating_add(1));
            }
            (State::Checking { .. }, Outcome::Compared(_)) => self.refuse(now),
            (State::Filling, Outcome::Done) => self.state = State::Starting,
            (State::Starting, Outcome::Done) => self.run(now),
            (State::Checking { .. } | State::Filling | State::Starting, Outcome::NotLoadable) => {
                (self.cause, self.last) = (StopCause::NOT_LOADABLE, LastState::default());
                self.abandon();
            }
            // The same again; or an outcome that this work cannot have, which is no progress either.
            (_, Outcome::Again | Outcome::Done | Outcome::Compared(_) | Outcome::NotLoadable) => {}
        }
        if core::mem::take(&mut self.is_cancelled) {
            self.give_up(now);
        }
    }

    fn load(&mut self) {
        self.is_cancelled = false;
        if self.is_clean {
            self.check_from(0);
        } else {
            (self.state, self.after) = (State::Wiping { offset: 0 }, After::Restart { delay: 0 });
        }
    }

    /// Begins with the first measured component from `first` on, or goes on to filling.
    fn check_from(&mut self, first: usize) {
        self.state = match self.components.measured_from(first) {
            Some(component) => State::Checking { component, offset: 0 },
            None => State::Filling,
        };
    }

    fn check(&self, component: usize, offset: u64) -> Work {
        let length = self.components.length(component);
        Work::Check { component, offset, bytes: length.saturating_sub(offset).min(CHECK_BYTES) }
    }

    /// A part was hashed that was not the last one: that one ends with a comparison, or is done again.
    fn checked_part(&mut self, component: usize, next: u64) {
        if next < self.components.length(component) {
            self.state = State::Checking { component, offset: next };
        }
    }

    fn wiped(&mut self, next: u64, now: Nanoseconds) {
        if next < self.memory {
            self.state = State::Wiping { offset: next };
            return;
        }
        self.is_clean = true;
        match core::mem::replace(&mut self.after, After::Stay) {
            After::Stay => self.state = State::Stopped,
            After::Restart { delay: 0 } => self.load(),
            After::Restart { delay } => self.state = State::Waiting { until: now.saturating_add(delay) },
        }
    }

    const fn run(&mut self, now: Nanoseconds) {
        self.state = State::Running;
        self.started_at = now;
        self.starts = self.starts.saturating_add(1);
    }

    fn halt(&mut self, cause: StopCause, after: After, now: Nanoseconds) {
        (self.state, self.after, self.cause) = (State::Halting, after, cause);
        (self.last, self.stopped_at) = (LastState::default(), now);
    }

    fn refuse(&mut self, now: Nanoseconds) {
        (self.state, self.cause, self.last) = (State::Refused, StopCause::CHANGED_FILE, LastState::default());
        (self.is_cancelled, self.stopped_at, self.started_at) = (false, now, now);
    }

    /// Stops loading: at once, or when the piece in hand is done.
    fn cancel(&mut self) {
        if self.is_in_hand {
            self.is_cancelled = true;
        } else {
            self.cause = StopCause::REQUESTED;
            self.abandon();
        }
    }

    /// Carries out what was asked for while a piece was in hand, now that it is not.
    fn give_up(&mut self, now: Nanoseconds) {
        match self.state {
            State::Running => self.halt(StopCause::REQUESTED, After::Stay, now),
            State::Checking { .. } | State::Filling | State::Starting => {
                self.cause = StopCause::REQUESTED;
                self.abandon();
            }
            State::Off
            | State::Halting
            | State::Wiping { .. }
            | State::Waiting { .. }
            | State::Stopped
            | State::Refused => {}
        }
    }

    /// Leaves a guest that was not running yet.
    const fn abandon(&mut self) {
        self.after = After::Stay;
        self.state = if self.is_clean { State::Stopped } else { State::Wiping { offset: 0 } };
    }
}
