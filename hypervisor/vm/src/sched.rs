//! Who runs where and how long: virtual processors over physical ones, fairly, without starvation.
//!
//! Pure: time comes in as ticks of the time-stamp counter, interrupts to other processors go out as sets of
//! processors to kick. Start-time fair queueing with one queue for all processors; the reasons stand in
//! `docs/adr/0010-scheduler.md`. The caller holds one lock around each call and none while a guest runs.
//!
//! What a processor does, for ever:
//! 1. [`Scheduler::pick`]; kick the processors it names.
//! 2. Nothing to run: halt until [`Pick::until`] or an interrupt, then 1.
//! 3. Run the entity until [`Pick::until`]. When the timer or a kick comes, [`Scheduler::attend`]: it tells
//!    anew how long. Collect what was posted to the entity *after* that call, before the next entry.
//! 4. Once the time is over, or the entity blocks or stops: [`Scheduler::give_back`], then 1.
//!
//! Whoever posts something to an entity posts first and calls [`Scheduler::wake`] then. Whoever blocks an
//! entity looks for what was posted first and gives it back then. A wake that comes in between is kept and makes
//! the entity ready again at once: it cannot be lost.

use core::num::NonZeroU16;

use dolmen_arch::{CpuId, CpuSet, MAX_CPUS};

use crate::board::Tsc;

mod asleep;
mod place;
mod set;
mod virtual_time;

use asleep::Deadlines;
use set::EntitySet;
use virtual_time::{ORIGIN, VirtualTime};

/// Most entities.
pub const MAX_ENTITIES: usize = 64;
/// Most guests they belong to.
const MAX_GUESTS: usize = crate::manifest::MAX_GUESTS;

/// Longest turn while others wait, in microseconds.
const SLICE_US: u64 = 5_000;
/// Shortest turn that another entity can cut short, in microseconds.
const SHORTEST_US: u64 = 500;
/// In how many microseconds everybody who waits gets a turn, as far as shortest turns allow.
const ROUND_US: u64 = 20_000;

/// Something to run: a virtual processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entity(u8);

impl Entity {
    /// Its number: 0 for the first that was added.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// What an entity may have.
#[derive(Clone, Copy, Debug)]
pub struct EntityConfig {
    /// Number of the guest it belongs to. A guest's entities that are not asleep share its weight evenly.
    pub guest: usize,
    /// Weight of that guest: what it gets beside others is in proportion.
    pub weight: NonZeroU16,
    /// Where it may run.
    pub affinity: CpuSet,
}

/// What a processor does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Pick {
    /// What it runs; `None` if there is nothing for it.
    pub run: Option<Entity>,
    /// Until when; for an idle processor, when to pick again if nothing else happens.
    pub until: Option<Tsc>,
    /// Processors to kick.
    pub kick: CpuSet,
}

/// How long a processor goes on with what it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Attention {
    /// Until when: the turn is over if this is past.
    pub until: Tsc,
    /// Processors to kick.
    pub kick: CpuSet,
}

/// How an entity comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GiveBack {
    /// It could go on.
    Preempted,
    /// It sleeps until it is woken, or until a time.
    Blocked {
        /// When it wakes by itself.
        until: Option<Tsc>,
    },
    /// It runs no more until it is started anew.
    Stopped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Off,
    /// Asleep; `keeper` looks after its deadline.
    Blocked {
        until: Option<Tsc>,
        keeper: CpuId,
    },
    /// Waits for a processor; `called` was idle and is on its way.
    Ready {
        called: Option<CpuId>,
    },
    Running(CpuId),
}

impl State {
    const fn is_runnable(self) -> bool {
        matches!(self, Self::Ready { .. } | Self::Running(_))
    }
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    config: EntityConfig,
    state: State,
    /// Virtual time at which its present or next turn starts.
    start: VirtualTime,
    /// Where it ran last.
    last: Option<CpuId>,
    /// Has not run since it became ready by a wake or a start.
    fresh: bool,
    /// A wake that came while it ran.
    woken: bool,
    /// Is to be stopped as soon as it comes back.
    stopping: bool,
    /// Ticks it has had.
    used: u64,
}

/// What a processor is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seat {
    /// Has never asked.
    Away,
    /// Between giving back and picking.
    Choosing,
    /// Has nothing to run.
    Idle,
    /// Was idle and has been kicked.
    Called,
    Running(Turn),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Turn {
    entity: Entity,
    since: Tsc,
    end: Tsc,
    /// Entities that shared its guest's weight when it began.
    sharers: u32,
    /// Where the entity is to go on after this turn.
    promised: Option<CpuId>,
}

/// The scheduler of all processors.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct Scheduler {
    cpus: CpuSet,
    slots: [Option<Slot>; MAX_ENTITIES],
    /// Entities that were added.
    count: usize,
    seats: [Seat; MAX_CPUS],
    /// Entities that wait for a processor, and those that run.
    ready: EntitySet,
    running: EntitySet,
    deadlines: [Deadlines; MAX_CPUS],
    /// Entities of each guest that are ready or run.
    active: [u32; MAX_GUESTS],
    slice: u64,
    shortest: u64,
    round: u64,
    levelled_at: Tsc,
}

impl Scheduler {
    /// Nothing to run, on processors whose counter ticks `tsc_khz` times a millisecond.
    pub const fn new(cpus: CpuSet, tsc_khz: u64) -> Self {
        Self {
            cpus,
            slots: [None; MAX_ENTITIES],
            count: 0,
            seats: [Seat::Away; MAX_CPUS],
            ready: EntitySet::EMPTY,
            running: EntitySet::EMPTY,
            deadlines: [Deadlines::NONE; MAX_CPUS],
            active: [0; MAX_GUESTS],
            slice: ticks(SLICE_US, tsc_khz),
            shortest: ticks(SHORTEST_US, tsc_khz),
            round: ticks(ROUND_US, tsc_khz),
            levelled_at: 0,
        }
    }

    /// Adds an entity that is off. `None` if there are too many, or no processor is there that it may run on.
    pub fn add(&mut self, mut config: EntityConfig) -> Option<Entity> {
        config.affinity = config.affinity.intersection(self.cpus);
        if config.affinity.is_empty() || config.guest >= MAX_GUESTS {
            return None;
        }
        let entity = Entity(u8::try_from(self.count).ok()?);
        *self.slots.get_mut(self.count)? = Some(Slot {
            config,
            state: State::Off,
            start: ORIGIN,
            last: None,
            fresh: false,
            woken: false,
            stopping: false,
            used: 0,
        });
        self.count = self.count.saturating_add(1);
        Some(entity)
    }

    /// Makes an entity that is off ready; the processor to kick.
    pub fn start(&mut self, entity: Entity, now: Tsc) -> Option<CpuId> {
        if self.slot(entity)?.state != State::Off {
            return None;
        }
        self.make_ready(entity, 0);
        self.dispatch(entity, now)
    }

    /// Stops an entity: at once, or when it comes back from the processor to kick. Until [`Self::is_off`], what
    /// belongs to it may still be in use.
    pub fn stop(&mut self, entity: Entity) -> Option<CpuId> {
        let slot = self.slot_mut(entity)?;
        match slot.state {
            State::Off => None,
            State::Running(cpu) => {
                slot.stopping = true;
                Some(cpu)
            }
            State::Blocked { .. } | State::Ready { .. } => {
                self.set_state(entity, State::Off);
                None
            }
        }
    }

    /// Whether an entity neither runs nor will before it is started.
    pub fn is_off(&self, entity: Entity) -> bool {
        self.slot(entity).is_none_or(|slot| slot.state == State::Off)
    }

    /// Ticks that an entity has had, without its present turn.
    pub fn used(&self, entity: Entity) -> u64 {
        self.slot(entity).map_or(0, |slot| slot.used)
    }

    /// There is news for an entity: lets it run, or hear of it where it runs; the processor to kick.
    pub fn wake(&mut self, entity: Entity, now: Tsc) -> Option<CpuId> {
        let slot = self.slot_mut(entity)?;
        match slot.state {
            State::Off | State::Ready { .. } => None,
            State::Running(cpu) => {
                slot.woken = true;
                Some(cpu)
            }
            State::Blocked { .. } => {
                self.make_ready(entity, self.slice);
                self.dispatch(entity, now)
            }
        }
    }

    /// Decides what a processor does next; wakes those asleep that it looks after and that are due.
    pub fn pick(&mut self, cpu: CpuId, now: Tsc) -> Pick {
        self.give_back(cpu, now, GiveBack::Preempted);
        self.set_seat(cpu, Seat::Choosing);
        let mut kick = self.wake_due(cpu, now);
        self.level(now);
        let Some(entity) = self.best_for(cpu) else {
            self.set_seat(cpu, Seat::Idle);
            kick = kick.union(self.call_idle(cpu, now));
            return Pick { run: None, until: self.first_deadline(cpu), kick };
        };
        self.set_state(entity, State::Running(cpu));
        let trade = self.trade(cpu, entity, now);
        let length = if trade.is_some() { self.shortest } else { self.turn_length(cpu) };
        let end = now.saturating_add(length);
        let sharers = self.sharers(entity);
        self.set_seat(cpu, Seat::Running(Turn { entity, since: now, end, sharers, promised: None }));
        kick = trade.map_or(kick, |other| kick.union(CpuSet::only(other)));
        if let Some(slot) = self.slot_mut(entity) {
            slot.last = Some(cpu);
            slot.fresh = false;
        }
        kick = kick.union(self.call_idle(cpu, now));
        let until = self.first_deadline(cpu).map_or(end, |deadline| deadline.min(end));
        Pick { run: Some(entity), until: Some(until), kick }
    }

    /// Looks again at how long a processor goes on with its entity; wakes those asleep that it looks after and
    /// that are due. The entity counts as told of every wake so far.
    pub fn attend(&mut self, cpu: CpuId, now: Tsc) -> Attention {
        let kick = self.wake_due(cpu, now);
        let Some(Seat::Running(turn)) = self.seat(cpu) else { return Attention { until: now, kick } };
        let mut end = turn.end;
        if let Some(slot) = self.slot_mut(turn.entity) {
            slot.woken = false;
            if slot.stopping {
                end = now;
            }
        }
        let until = self.first_deadline(cpu).map_or(end, |deadline| deadline.min(end));
        Attention { until, kick }
    }

    /// Takes back what a processor runs; it picks next. Nothing if it runs nothing.
    pub fn give_back(&mut self, cpu: CpuId, now: Tsc, how: GiveBack) {
        let Some(Seat::Running(turn)) = self.seat(cpu) else { return };
        self.charge(turn, now);
        self.set_seat(cpu, Seat::Choosing);
        let Some(slot) = self.slot_mut(turn.entity) else { return };
        let ready = State::Ready { called: turn.promised };
        let state = match how {
            _ if slot.stopping => State::Off,
            GiveBack::Stopped => State::Off,
            GiveBack::Preempted => ready,
            GiveBack::Blocked { .. } if slot.woken => ready,
            GiveBack::Blocked { until } => State::Blocked { until, keeper: cpu },
        };
        slot.woken = false;
        slot.stopping = false;
        self.set_state(turn.entity, state);
    }

    /// Length of a turn: shorter the more entities wait.
    fn turn_length(&self, cpu: CpuId) -> u64 {
        /// An entity that waits counts for each processor it may run on in equal parts of this.
        const WHOLE: u64 = 64;
        let waiting = |(_, slot): (Entity, &Slot)| match u64::try_from(slot.config.affinity.len()) {
            Ok(choices) if slot.config.affinity.contains(cpu) => WHOLE.checked_div(choices).unwrap_or(WHOLE),
            _ => 0,
        };
        let crowd: u64 = self.those(self.ready).map(waiting).fold(WHOLE, u64::saturating_add);
        let part = self.round.saturating_mul(WHOLE).checked_div(crowd).unwrap_or(self.slice);
        part.clamp(self.shortest, self.slice.max(self.shortest))
    }

    fn slot(&self, entity: Entity) -> Option<&Slot> {
        self.slots.get(entity.index())?.as_ref()
    }

    fn slot_mut(&mut self, entity: Entity) -> Option<&mut Slot> {
        self.slots.get_mut(entity.index())?.as_mut()
    }

    fn seat(&self, cpu: CpuId) -> Option<Seat> {
        self.seats.get(cpu.index()).copied()
    }

    fn set_seat(&mut self, cpu: CpuId, seat: Seat) {
        if let Some(place) = self.seats.get_mut(cpu.index()) {
            *place = seat;
        }
    }

    /// Changes a state, and all that follows from it: who waits, who runs, whose deadlines are kept, and how many
    /// share the guest's weight.
    fn set_state(&mut self, entity: Entity, state: State) {
        let Some(slot) = self.slot_mut(entity) else { return };
        let before = core::mem::replace(&mut slot.state, state);
        let guest = slot.config.guest;
        self.ready.set(entity, matches!(state, State::Ready { .. }));
        self.running.set(entity, matches!(state, State::Running(_)));
        self.keep_deadline(entity, before, state);
        let Some(active) = self.active.get_mut(guest) else { return };
        match (before.is_runnable(), state.is_runnable()) {
            (false, true) => *active = active.saturating_add(1),
            (true, false) => *active = active.saturating_sub(1),
            (true, true) | (false, false) => {}
        }
    }

    /// Those that wait or run.
    const fn runnable(&self) -> EntitySet {
        self.ready.union(self.running)
    }

    /// The entities of a set, with their slots.
    fn those(&self, set: EntitySet) -> impl Iterator<Item = (Entity, &Slot)> {
        set.into_iter().filter_map(|entity| Some((entity, self.slot(entity)?)))
    }
}

const fn ticks(microseconds: u64, tsc_khz: u64) -> u64 {
    microseconds.saturating_mul(tsc_khz) / 1000
}

#[cfg(test)]
mod fair_tests;
#[cfg(test)]
mod race_tests;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;
