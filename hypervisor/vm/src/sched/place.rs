//! Where an entity that became ready runs.

use core::cmp::Reverse;

use dolmen_arch::{CpuId, CpuSet};

use super::{Entity, Scheduler, Seat, Slot, State, Turn};
use crate::board::Tsc;

/// Another processor for one that is ready, in the order of how little it needs this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Alternative {
    /// There is none.
    None,
    /// One is idle.
    Idle,
    /// One has been called.
    OnItsWay,
}

impl Scheduler {
    /// Finds a processor for an entity that is ready; the one to kick.
    ///
    /// One that is about to pick finds it by itself. Else an idle one, rather the last; else the one whose turn
    /// it may cut short soonest; else it waits for the end of somebody's turn.
    pub(super) fn dispatch(&mut self, entity: Entity, now: Tsc) -> Option<CpuId> {
        let slot = self.slot(entity)?;
        let (affinity, last) = (slot.config.affinity, slot.last);
        if affinity.into_iter().any(|cpu| self.seat(cpu) == Some(Seat::Choosing)) {
            return None;
        }
        if let Some(cpu) = self.idle_in(affinity, last) {
            self.call(cpu, entity);
            return Some(cpu);
        }
        self.make_room(entity, now).or_else(|| self.cut_short(entity, now))
    }

    /// After `cpu` chose: finds processors for those that still wait and have not been promised another one, as
    /// long as any are idle.
    pub(super) fn call_idle(&mut self, cpu: CpuId, now: Tsc) -> CpuSet {
        let mut kick = CpuSet::EMPTY;
        for entity in self.ready {
            let Some(slot) = self.slot(entity) else { break };
            let State::Ready { called } = slot.state else { continue };
            let elsewhere = called.filter(|called| *called != cpu).and_then(|called| self.seat(called));
            let idle = self.idle_in(slot.config.affinity, slot.last);
            // One that was promised the end of somebody's turn is better off with a processor that is idle.
            if elsewhere.is_some_and(|seat| seat == Seat::Called || idle.is_none()) {
                continue;
            }
            self.set_state(entity, State::Ready { called: None });
            if let Some(idle) = idle {
                self.call(idle, entity);
            }
            if let Some(cpu) = idle.or_else(|| self.make_room(entity, now)) {
                kick.insert(cpu);
            }
        }
        kick
    }

    /// Ends the turn of one that runs where `entity` could, and that could itself run on an idle processor.
    fn make_room(&mut self, entity: Entity, now: Tsc) -> Option<CpuId> {
        let affinity = self.slot(entity)?.config.affinity;
        let (cpu, turn) = affinity.into_iter().find_map(|cpu| match self.seat(cpu)? {
            Seat::Running(turn) => {
                let runs = self.slot(turn.entity)?;
                self.idle_in(runs.config.affinity, None).map(|_| (cpu, turn))
            }
            Seat::Away | Seat::Choosing | Seat::Idle | Seat::Called => None,
        })?;
        self.set_seat(cpu, Seat::Running(Turn { end: now, ..turn }));
        Some(cpu)
    }

    /// Where `chosen` is to run on `cpu` although somebody is far more behind who may not run there: looks for a
    /// third that runs where that one may, and could run on `cpu` itself. Its turn ends, it is promised `cpu`, and
    /// the turn of `chosen` is to be short. The processor to kick.
    pub(super) fn trade(&mut self, cpu: CpuId, chosen: Entity, now: Tsc) -> Option<CpuId> {
        let start = self.slot(chosen)?.start;
        let behind = |slot: &&Slot| {
            !slot.config.affinity.contains(cpu)
                && slot.start.saturating_add(self.span(slot, self.slice)) < start
        };
        let third = |turn: Turn| {
            let slot = self.slot(turn.entity).filter(|slot| slot.start < start)?;
            slot.config.affinity.contains(cpu).then_some(turn)
        };
        let runs_on = |other: CpuId| match self.seat(other)? {
            Seat::Running(turn) => Some((other, third(turn)?)),
            Seat::Away | Seat::Choosing | Seat::Idle | Seat::Called => None,
        };
        // Not the first alone: he may have nobody to trade with, and gain when another one does.
        let all_behind = self.those(self.ready).map(|(_, slot)| slot).filter(behind);
        let (other, turn) = all_behind.flat_map(|slot| slot.config.affinity).find_map(runs_on)?;
        self.set_seat(other, Seat::Running(Turn { end: now, promised: Some(cpu), ..turn }));
        Some(other)
    }

    /// Where else than on `cpu` one that is ready could run at once.
    pub(super) fn alternative(&self, slot: &Slot, cpu: CpuId) -> Alternative {
        if matches!(slot.state, State::Ready { called: Some(called) } if called != cpu) {
            Alternative::OnItsWay
        } else if self.idle_in(slot.config.affinity, None).is_some() {
            Alternative::Idle
        } else {
            Alternative::None
        }
    }

    fn idle_in(&self, affinity: CpuSet, last: Option<CpuId>) -> Option<CpuId> {
        let is_idle = |cpu: &CpuId| affinity.contains(*cpu) && self.seat(*cpu) == Some(Seat::Idle);
        last.filter(is_idle).or_else(|| affinity.into_iter().find(is_idle))
    }

    fn call(&mut self, cpu: CpuId, entity: Entity) {
        self.set_seat(cpu, Seat::Called);
        self.set_state(entity, State::Ready { called: Some(cpu) });
    }

    /// Ends the turn that may end soonest in favour of `entity`, if that is before its time; among several, the
    /// turn of the one that is furthest ahead.
    fn cut_short(&mut self, entity: Entity, now: Tsc) -> Option<CpuId> {
        let slot = self.slot(entity)?;
        let (start, last) = (slot.start, slot.last);
        let turn_on = |cpu: CpuId| match self.seat(cpu)? {
            Seat::Running(turn) => {
                let end = self.overtaken_at(turn, start)?.max(now);
                Some((end, Reverse(self.lead(turn, now, last == Some(cpu))), cpu, turn))
            }
            Seat::Away | Seat::Choosing | Seat::Idle | Seat::Called => None,
        };
        let soonest = slot.config.affinity.into_iter().filter_map(turn_on);
        let (end, _, cpu, turn) = soonest.min_by_key(|(end, lead, ..)| (*end, *lead))?;
        if end >= turn.end {
            return None;
        }
        self.set_seat(cpu, Seat::Running(Turn { end, ..turn }));
        Some(cpu)
    }
}
