//! Where an entity that became ready runs, and who wakes those asleep.

use dolmen_arch::{CpuId, CpuSet};

use super::{Entity, Scheduler, Seat, State, Turn};
use crate::board::Tsc;

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
        self.cut_short(entity, now)
    }

    /// After a processor took something: calls idle ones for what still waits, and has not been promised one.
    pub(super) fn call_idle(&mut self, cpu: CpuId) -> CpuSet {
        let mut kick = CpuSet::EMPTY;
        for index in 0..self.slots.len() {
            let Ok(index) = u8::try_from(index) else { break };
            let entity = Entity(index);
            let Some(slot) = self.slot(entity) else { break };
            let State::Ready { called } = slot.state else { continue };
            if called.is_some_and(|called| called != cpu) {
                continue;
            }
            let idle = self.idle_in(slot.config.affinity, slot.last);
            match idle {
                Some(idle) => {
                    self.call(idle, entity);
                    kick.insert(idle);
                }
                None => self.set_state(entity, State::Ready { called: None }),
            }
        }
        kick
    }

    fn idle_in(&self, affinity: CpuSet, last: Option<CpuId>) -> Option<CpuId> {
        let is_idle = |cpu: &CpuId| affinity.contains(*cpu) && self.seat(*cpu) == Some(Seat::Idle);
        last.filter(is_idle).or_else(|| affinity.into_iter().find(is_idle))
    }

    fn call(&mut self, cpu: CpuId, entity: Entity) {
        self.set_seat(cpu, Seat::Called);
        self.set_state(entity, State::Ready { called: Some(cpu) });
    }

    /// Ends the turn that may end soonest in favour of `entity`, if that is before its time.
    fn cut_short(&mut self, entity: Entity, now: Tsc) -> Option<CpuId> {
        let slot = self.slot(entity)?;
        let (start, last) = (slot.start, slot.last);
        let turn_on = |cpu: CpuId| match self.seat(cpu)? {
            Seat::Running(turn) => {
                Some((self.overtaken_at(turn, start)?.max(now), last != Some(cpu), cpu, turn))
            }
            Seat::Away | Seat::Choosing | Seat::Idle | Seat::Called => None,
        };
        let soonest = slot.config.affinity.into_iter().filter_map(turn_on);
        let (end, _, cpu, turn) = soonest.min_by_key(|(end, elsewhere, ..)| (*end, *elsewhere))?;
        if end >= turn.end {
            return None;
        }
        self.set_seat(cpu, Seat::Running(Turn { end, ..turn }));
        Some(cpu)
    }

    /// Wakes those asleep that `cpu` looks after and that are due; the processors to kick, `cpu` not among them.
    pub(super) fn wake_due(&mut self, cpu: CpuId, now: Tsc) -> CpuSet {
        let mut kick = CpuSet::EMPTY;
        while self.first_deadline(cpu).is_some_and(|deadline| deadline <= now) {
            let Some(entity) = self.first_asleep(cpu) else { break };
            kick = self.wake(entity, now).map_or(kick, |other| kick.union(CpuSet::only(other)));
        }
        kick.difference(CpuSet::only(cpu))
    }

    /// The first deadline that `cpu` looks after.
    pub(super) fn first_deadline(&self, cpu: CpuId) -> Option<Tsc> {
        self.asleep(cpu).map(|(deadline, _)| deadline).min()
    }

    fn first_asleep(&self, cpu: CpuId) -> Option<Entity> {
        self.asleep(cpu).min().map(|(_, entity)| entity)
    }

    /// Deadlines that `cpu` looks after, and whose they are.
    fn asleep(&self, cpu: CpuId) -> impl Iterator<Item = (Tsc, Entity)> {
        self.entities().filter_map(move |(entity, slot)| match slot.state {
            State::Blocked { until, keeper } if keeper == cpu => Some((until?, entity)),
            State::Blocked { .. } | State::Off | State::Ready { .. } | State::Running(_) => None,
        })
    }
}
