//! Deadlines of those asleep: each is looked after by the processor on which it fell asleep.

use dolmen_arch::{CpuId, CpuSet};

use super::set::EntitySet;
use super::{Entity, Scheduler, State};
use crate::board::Tsc;

/// The deadlines that one processor looks after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deadlines {
    whose: EntitySet,
    first: Option<(Tsc, Entity)>,
}

impl Deadlines {
    /// None.
    pub(super) const NONE: Self = Self { whose: EntitySet::EMPTY, first: None };
}

impl Scheduler {
    /// Wakes those asleep that `cpu` looks after and that are due; the processors to kick, `cpu` not among them.
    pub(super) fn wake_due(&mut self, cpu: CpuId, now: Tsc) -> CpuSet {
        let mut kick = CpuSet::EMPTY;
        while let Some((_, entity)) = self.first_asleep(cpu).filter(|(deadline, _)| *deadline <= now) {
            kick = self.wake(entity, now).map_or(kick, |other| kick.union(CpuSet::only(other)));
        }
        kick.difference(CpuSet::only(cpu))
    }

    /// The first deadline that `cpu` looks after.
    pub(super) fn first_deadline(&self, cpu: CpuId) -> Option<Tsc> {
        self.first_asleep(cpu).map(|(deadline, _)| deadline)
    }

    fn first_asleep(&self, cpu: CpuId) -> Option<(Tsc, Entity)> {
        self.deadlines.get(cpu.index())?.first
    }

    /// Notes that `entity` goes from one state to another.
    pub(super) fn keep_deadline(&mut self, entity: Entity, before: State, after: State) {
        if let State::Blocked { until: Some(_), keeper } = before {
            self.forget_deadline(entity, keeper);
        }
        if let State::Blocked { until: Some(until), keeper } = after
            && let Some(kept) = self.deadlines.get_mut(keeper.index())
        {
            kept.whose.set(entity, true);
            kept.first = [kept.first, Some((until, entity))].into_iter().flatten().min();
        }
    }

    /// Only whoever was first has to be replaced, by the next one.
    fn forget_deadline(&mut self, entity: Entity, keeper: CpuId) {
        let Some(kept) = self.deadlines.get_mut(keeper.index()) else { return };
        kept.whose.set(entity, false);
        if kept.first.is_some_and(|(_, first)| first == entity) {
            let whose = kept.whose;
            let next = whose.into_iter().filter_map(|other| Some((self.deadline_of(other)?, other))).min();
            if let Some(kept) = self.deadlines.get_mut(keeper.index()) {
                kept.first = next;
            }
        }
    }

    fn deadline_of(&self, entity: Entity) -> Option<Tsc> {
        match self.slot(entity)?.state {
            State::Blocked { until, .. } => until,
            State::Off | State::Ready { .. } | State::Running(_) => None,
        }
    }
}
