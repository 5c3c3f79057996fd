//! Virtual time: what an entity has had, divided by its weight. The least goes first.

use core::num::NonZeroU64;

use dolmen_arch::CpuId;

use super::{Entity, MAX_ENTITIES, Scheduler, Slot, State, Turn};
use crate::board::Tsc;

/// Ticks times [`UNIT`] over weight.
pub(super) type VirtualTime = u128;

/// Where entities begin: far from zero, so that those who slept can stand behind everybody else.
pub(super) const ORIGIN: VirtualTime = 1 << 100;

/// Virtual time of a tick at weight 1: keeps weights apart without a loss that would show.
const UNIT: u64 = 1 << 32;
/// Turns that neighbours in the queue may stand apart.
const APART: u64 = 16;

impl Scheduler {
    /// Virtual time of a tick of `slot`, if its guest's weight is shared by `sharers`.
    fn rate(slot: &Slot, sharers: u32) -> u64 {
        (UNIT / NonZeroU64::from(slot.config.weight)).saturating_mul(u64::from(sharers))
    }

    /// Entities that share the weight of `entity`'s guest.
    pub(super) fn sharers(&self, entity: Entity) -> u32 {
        self.slot(entity).map_or(1, |slot| self.sharers_of(slot))
    }

    fn sharers_of(&self, slot: &Slot) -> u32 {
        self.active.get(slot.config.guest).copied().unwrap_or_default().max(1)
    }

    /// Virtual time of `ticks` of `slot`.
    pub(super) fn span(&self, slot: &Slot, ticks: u64) -> VirtualTime {
        u128::from(Self::rate(slot, self.sharers_of(slot))).saturating_mul(u128::from(ticks))
    }

    /// Charges a turn that ends: by the greater number of sharers at its two ends, so that a guest gains nothing
    /// from sending its other processors to sleep just before.
    pub(super) fn charge(&mut self, turn: Turn, now: Tsc) {
        let ticks = now.saturating_sub(turn.since);
        let sharers = self.sharers(turn.entity).max(turn.sharers);
        let Some(slot) = self.slot_mut(turn.entity) else { return };
        let span = u128::from(Self::rate(slot, sharers)).saturating_mul(u128::from(ticks));
        slot.start = slot.start.saturating_add(span);
        slot.used = slot.used.saturating_add(ticks);
    }

    /// Puts an entity that sleeps or is off into the queue: where it left, but at most `credit` of its own ticks
    /// before those it competes with.
    pub(super) fn make_ready(&mut self, entity: Entity, credit: u64) {
        self.set_state(entity, State::Ready { called: None });
        if let Some(slot) = self.slot_mut(entity) {
            slot.fresh = true;
        }
        let Some(slot) = self.slot(entity) else { return };
        let rivals = self.those(self.runnable()).filter(|(other, rival)| {
            *other != entity && !rival.config.affinity.intersection(slot.config.affinity).is_empty()
        });
        let Some(floor) = rivals.map(|(_, rival)| rival.start).min() else { return };
        let floor = floor.saturating_sub(self.span(slot, credit));
        if let Some(slot) = self.slot_mut(entity) {
            slot.start = slot.start.max(floor);
        }
    }

    /// The ready entity that should run on `cpu`: the one that is furthest behind. One that waits since the end
    /// of a turn yields to another that ran on `cpu` last, if that is no more than half a turn ahead. Those that
    /// have another processor to go to come after those that have none; those for whom another one is on its way,
    /// after all others.
    pub(super) fn best_for(&self, cpu: CpuId) -> Option<Entity> {
        let all = || self.those(self.ready).filter(|(_, slot)| slot.config.affinity.contains(cpu));
        let alternative = |slot: &Slot| self.alternative(slot, cpu);
        let fewest = all().map(|(_, slot)| alternative(slot)).min()?;
        let ready = || all().filter(|(_, slot)| alternative(slot) == fewest);
        let (first, leader) = ready().min_by_key(|(_, slot)| slot.start)?;
        if leader.fresh || leader.last == Some(cpu) {
            return Some(first);
        }
        let half = self.turn_length(cpu) / 2;
        let at_home = ready().filter(|(_, slot)| slot.last == Some(cpu));
        let near =
            at_home.filter(|(_, slot)| slot.start <= leader.start.saturating_add(self.span(slot, half)));
        Some(near.min_by_key(|(_, slot)| slot.start).map_or(first, |(entity, _)| entity))
    }

    /// When `turn` will have had so much that `waiting` should run instead.
    pub(super) fn overtaken_at(&self, turn: Turn, waiting: VirtualTime) -> Option<Tsc> {
        let slot = self.slot(turn.entity)?;
        let ahead = waiting.saturating_sub(slot.start);
        let rate = u128::from(Self::rate(slot, turn.sharers).max(1));
        let ticks = u64::try_from(ahead.checked_div(rate)?).unwrap_or(u64::MAX);
        Some(turn.since.saturating_add(ticks.max(self.shortest)))
    }

    /// How far in virtual time the entity of `turn` is, half a turn further where a preference is to count.
    pub(super) fn lead(&self, turn: Turn, now: Tsc, preferred: bool) -> VirtualTime {
        let Some(slot) = self.slot(turn.entity) else { return 0 };
        let preference = if preferred { self.slice / 2 } else { 0 };
        let ticks = now.saturating_sub(turn.since).saturating_add(preference);
        slot.start.saturating_add(self.span(slot, ticks))
    }

    /// Moves those in the queue who stand far behind everybody else closer.
    ///
    /// An entity that has its processors to itself, or a weight that one processor cannot satisfy, gets less than
    /// its weight says for as long as that lasts. It must not be able to claim the difference later. Whole groups
    /// move, so neither order nor distances within a group change.
    pub(super) fn level(&mut self, now: Tsc) {
        if now.saturating_sub(self.levelled_at) < self.slice {
            return;
        }
        self.levelled_at = now;
        let mut order = [(VirtualTime::MAX, Entity(0)); MAX_ENTITIES];
        let runnable = self.runnable();
        for (place, (entity, slot)) in order.iter_mut().zip(self.those(runnable)) {
            *place = (slot.start, entity);
        }
        order.sort_unstable();
        let turn = self.slice.saturating_mul(APART);
        let apart = self.those(runnable).map(|(_, slot)| self.span(slot, turn)).max().unwrap_or_default();
        let mut moved: VirtualTime = 0;
        let mut above: Option<VirtualTime> = None;
        for (start, entity) in order.into_iter().rev().filter(|(start, _)| *start != VirtualTime::MAX) {
            let gap = above.map_or(0, |above| above.saturating_sub(start));
            moved = moved.saturating_add(gap.saturating_sub(apart));
            above = Some(start);
            if let Some(slot) = self.slot_mut(entity) {
                slot.start = start.saturating_add(moved);
            }
        }
    }
}
