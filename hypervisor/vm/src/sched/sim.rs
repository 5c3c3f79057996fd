//! A discrete-event simulation of processors that obey the scheduler, and the invariants it must keep.

use core::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use dolmen_arch::{CpuId, CpuSet};

use super::*;

/// Ticks in a millisecond.
pub(super) const MS: u64 = 1_000;
/// How long a kick takes to arrive.
const KICK: u64 = 2;

/// How an entity behaves.
#[derive(Clone, Copy, Debug)]
pub(super) enum Habit {
    /// Always has something to do.
    Spins,
    /// Runs, then sleeps until a time it names itself.
    Naps { work: u64, sleep: u64 },
    /// Runs, then sleeps until somebody from outside wakes it, at every multiple of `every`.
    Serves { work: u64, every: u64 },
}

/// A member of the simulation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub(super) guest: usize,
    pub(super) weight: u16,
    pub(super) affinity: u32,
    pub(super) habit: Habit,
}

pub(super) const fn spinner(guest: usize, weight: u16, affinity: u32) -> Member {
    Member { guest, weight, affinity, habit: Habit::Spins }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    /// A processor's timer, or a kick to it.
    Interrupt(CpuId),
    /// What runs there has done its work.
    Done(CpuId, Entity),
    /// News from outside.
    News(Entity),
}

#[derive(Clone, Copy, Debug)]
struct Actor {
    member: Member,
    /// Left of its work until it sleeps.
    left: u64,
    /// News that it has not taken yet.
    news: u64,
    /// Since when it could run but does not.
    waiting_since: Option<u64>,
    worst_wait: u64,
    /// When it wanted to wake, while it sleeps by itself.
    wakes_at: Option<u64>,
    used: u64,
    turns: u64,
    moves: u64,
    last: Option<CpuId>,
}

impl Scheduler {
    /// What is kept besides the states is what the states say.
    pub(super) fn check_lists(&self) {
        let (mut ready, mut running) = (EntitySet::EMPTY, EntitySet::EMPTY);
        let mut first = [None; MAX_CPUS];
        for (index, slot) in (0..).zip(self.slots.iter().flatten()) {
            match slot.state {
                State::Off | State::Blocked { until: None, .. } => {}
                State::Ready { .. } => ready.set(Entity(index), true),
                State::Running(_) => running.set(Entity(index), true),
                State::Blocked { until: Some(until), keeper } => {
                    let place: &mut Option<Tsc> = &mut first[keeper.index()];
                    *place = Some(place.map_or(until, |other| other.min(until)));
                }
            }
        }
        assert_eq!((self.ready, self.running), (ready, running));
        for (index, first) in first.into_iter().enumerate() {
            assert_eq!(self.first_deadline(CpuId::new(index).unwrap()), first, "processor {index}");
        }
    }
}

pub(super) struct World {
    pub(super) scheduler: Scheduler,
    actors: Vec<Actor>,
    entities: Vec<Entity>,
    on: BTreeMap<CpuId, (Entity, u64)>,
    events: BinaryHeap<Reverse<(u64, u64, What)>>,
    serial: u64,
    cpus: CpuSet,
    pub(super) now: u64,
    pub(super) idle_while_ready: u64,
    pub(super) late_deadline: u64,
}

impl World {
    pub(super) fn new(cpus: usize, members: &[Member]) -> Self {
        let cpus = CpuSet::first(cpus);
        let mut world = Self {
            scheduler: Scheduler::new(cpus, MS),
            actors: Vec::new(),
            entities: Vec::new(),
            on: BTreeMap::new(),
            events: BinaryHeap::new(),
            serial: 0,
            cpus,
            now: 0,
            idle_while_ready: 0,
            late_deadline: 0,
        };
        for member in members {
            let config = EntityConfig {
                guest: member.guest,
                weight: NonZeroU16::new(member.weight).unwrap(),
                affinity: CpuSet::from_bits(member.affinity),
            };
            let entity = world.scheduler.add(config).unwrap();
            let left = match member.habit {
                Habit::Spins => u64::MAX,
                Habit::Naps { work, .. } | Habit::Serves { work, .. } => work,
            };
            world.entities.push(entity);
            world.actors.push(Actor {
                member: *member,
                left,
                news: 0,
                waiting_since: Some(0),
                worst_wait: 0,
                wakes_at: None,
                used: 0,
                turns: 0,
                moves: 0,
                last: None,
            });
            assert_eq!(world.scheduler.start(entity, 0), None, "nobody is idle yet");
            if let Habit::Serves { every, .. } = member.habit {
                world.at(every, What::News(entity));
            }
        }
        for cpu in cpus {
            world.at(0, What::Interrupt(cpu));
        }
        world
    }

    pub(super) fn run(&mut self, until: u64) {
        while let Some(Reverse((at, _, what))) = self.events.pop() {
            if at > until {
                self.events.push(Reverse((at, 0, what)));
                break;
            }
            self.count_idle(at);
            self.scheduler.check_lists();
            self.now = at;
            match what {
                What::Interrupt(cpu) => self.interrupt(cpu),
                What::Done(cpu, entity) => self.done(cpu, entity),
                What::News(entity) => self.news(entity),
            }
        }
        self.now = until;
    }

    /// Starts counting anew.
    pub(super) fn reset_counts(&mut self) {
        for cpu in self.cpus {
            if let Some((entity, since)) = self.on.get_mut(&cpu) {
                let actor = &mut self.actors[entity.index()];
                if actor.left != u64::MAX {
                    actor.left -= self.now - *since;
                }
                *since = self.now;
            }
        }
        for actor in &mut self.actors {
            actor.used = 0;
            actor.worst_wait = 0;
            actor.turns = 0;
            actor.moves = 0;
        }
        self.late_deadline = 0;
    }

    /// Ticks a member has had, the present turn included.
    pub(super) fn used(&self, index: usize) -> u64 {
        let running = self.on.values().find(|(entity, _)| entity.index() == index);
        self.actors[index].used + running.map_or(0, |(_, since)| self.now - since)
    }

    pub(super) fn worst_wait(&self, index: usize) -> u64 {
        let actor = &self.actors[index];
        actor.worst_wait.max(actor.waiting_since.map_or(0, |since| self.now - since))
    }

    pub(super) fn turns(&self, index: usize) -> u64 {
        self.actors[index].turns
    }

    pub(super) fn moves(&self, index: usize) -> u64 {
        self.actors[index].moves
    }

    fn at(&mut self, at: u64, what: What) {
        self.serial += 1;
        self.events.push(Reverse((at, self.serial, what)));
    }

    fn kick(&mut self, cpus: CpuSet) {
        for cpu in cpus {
            self.at(self.now + KICK, What::Interrupt(cpu));
        }
    }

    /// Time during which a processor idles although something waits that could run there, kicks on their way apart.
    fn count_idle(&mut self, until: u64) {
        let idle = |cpu: CpuId| !self.on.contains_key(&cpu);
        let wasted = self.actors.iter().any(|actor| {
            actor.waiting_since.is_some_and(|since| since + KICK < self.now.max(1))
                && CpuSet::from_bits(actor.member.affinity).intersection(self.cpus).into_iter().any(idle)
        });
        if wasted {
            self.idle_while_ready += until - self.now;
        }
    }

    fn interrupt(&mut self, cpu: CpuId) {
        if self.on.contains_key(&cpu) {
            let Attention { until, kick } = self.scheduler.attend(cpu, self.now);
            self.kick(kick);
            self.note_woken();
            if until > self.now {
                self.at(until, What::Interrupt(cpu));
                return;
            }
            self.leave(cpu, GiveBack::Preempted);
        }
        self.pick(cpu);
    }

    fn done(&mut self, cpu: CpuId, entity: Entity) {
        let Some(&(running, since)) = self.on.get(&cpu) else { return };
        let actor = &mut self.actors[entity.index()];
        if running != entity || actor.left != self.now - since {
            return;
        }
        let how = match actor.member.habit {
            Habit::Spins => return,
            Habit::Naps { sleep, .. } => GiveBack::Blocked { until: Some(self.now + sleep) },
            Habit::Serves { .. } if actor.news > 1 => GiveBack::Preempted,
            Habit::Serves { .. } => GiveBack::Blocked { until: None },
        };
        self.leave(cpu, how);
        self.pick(cpu);
    }

    fn leave(&mut self, cpu: CpuId, how: GiveBack) {
        let (entity, since) = self.on.remove(&cpu).expect("runs something");
        let actor = &mut self.actors[entity.index()];
        actor.used += self.now - since;
        if actor.left != u64::MAX {
            actor.left -= self.now - since;
        }
        if actor.left == 0 {
            actor.left = match actor.member.habit {
                Habit::Spins => u64::MAX,
                Habit::Naps { work, .. } | Habit::Serves { work, .. } => work,
            };
            actor.news = actor.news.saturating_sub(1);
        }
        match how {
            GiveBack::Preempted => actor.waiting_since = Some(self.now),
            GiveBack::Blocked { until } => actor.wakes_at = until,
            GiveBack::Stopped => {}
        }
        self.scheduler.give_back(cpu, self.now, how);
    }

    fn pick(&mut self, cpu: CpuId) {
        let Pick { run, until, kick } = self.scheduler.pick(cpu, self.now);
        self.kick(kick);
        self.note_woken();
        if let Some(until) = until {
            assert!(until > self.now, "a turn or a rest takes time");
            self.at(until, What::Interrupt(cpu));
        }
        let Some(entity) = run else { return };
        assert!(self.on.values().all(|(running, _)| *running != entity), "runs twice");
        let actor = &mut self.actors[entity.index()];
        assert!(CpuSet::from_bits(actor.member.affinity).contains(cpu), "runs where it may not");
        let waiting_since = actor.waiting_since.take().expect("was ready");
        actor.worst_wait = actor.worst_wait.max(self.now - waiting_since);
        actor.turns += 1;
        actor.moves += u64::from(actor.last.is_some_and(|last| last != cpu));
        actor.last = Some(cpu);
        let left = actor.left;
        self.on.insert(cpu, (entity, self.now));
        if left != u64::MAX {
            self.at(self.now + left, What::Done(cpu, entity));
        }
    }

    fn news(&mut self, entity: Entity) {
        let actor = &mut self.actors[entity.index()];
        let Habit::Serves { every, .. } = actor.member.habit else { return };
        actor.news += 1;
        self.at(self.now + every, What::News(entity));
        let kick = self.scheduler.wake(entity, self.now);
        self.kick(kick.map_or(CpuSet::EMPTY, CpuSet::only));
        self.note_woken();
    }

    /// Whoever the scheduler holds for runnable now, and was not before, waits from now on.
    fn note_woken(&mut self) {
        for (actor, entity) in self.actors.iter_mut().zip(&self.entities) {
            let slot = self.scheduler.slot(*entity).unwrap();
            let waits = matches!(slot.state, State::Ready { .. });
            if waits && actor.waiting_since.is_none() {
                actor.waiting_since = Some(self.now);
            }
            if !matches!(slot.state, State::Blocked { .. })
                && let Some(at) = actor.wakes_at.take()
            {
                self.late_deadline = self.late_deadline.max(self.now.saturating_sub(at));
            } else if let Some(at) = actor.wakes_at {
                self.late_deadline = self.late_deadline.max(self.now.saturating_sub(at));
            }
        }
    }
}
