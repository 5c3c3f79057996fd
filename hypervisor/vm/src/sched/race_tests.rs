//! Every order of the steps of two processors, of senders and of somebody who stops: nothing posted is left
//! lying, nothing runs twice, what was stopped is off.

use std::collections::HashSet;

use Other::{Posts, Stops, Wakes};

use super::*;

/// A step of a processor, between which the others may do theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cpu {
    Picks,
    Idles,
    /// Takes what was posted to the entity.
    Collects(Entity),
    /// Has found nothing more, and blocks the entity.
    Blocks(Entity),
}

/// A step of somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Other {
    Posts(usize),
    Wakes(usize),
    Stops(usize),
}

#[derive(Clone, Debug)]
struct World {
    scheduler: Scheduler,
    cpus: [(Cpu, bool); 2],
    posted: [u32; 2],
    others: Vec<Vec<Other>>,
    stopped: Option<usize>,
}

impl World {
    /// Two entities that may run anywhere, asleep; both processors idle or still to come.
    fn new(others: &[&[Other]], cpus: [Cpu; 2]) -> Self {
        let mut scheduler = Scheduler::new(CpuSet::first(2), 1000);
        for guest in 0..2 {
            let weight = NonZeroU16::MIN;
            let entity = scheduler.add(EntityConfig { guest, weight, affinity: CpuSet::ALL }).unwrap();
            assert_eq!(scheduler.start(entity, 0), None);
        }
        for _ in 0..2 {
            assert!(scheduler.pick(CpuId::FIRST, 0).run.is_some());
            scheduler.give_back(CpuId::FIRST, 0, GiveBack::Blocked { until: None });
        }
        for (cpu, state) in CpuSet::first(2).into_iter().zip(cpus) {
            if state == Cpu::Idles {
                assert_eq!(scheduler.pick(cpu, 0).run, None);
            }
        }
        Self {
            scheduler,
            cpus: cpus.map(|cpu| (cpu, false)),
            posted: [0; 2],
            others: others.iter().map(|steps| steps.to_vec()).collect(),
            stopped: None,
        }
    }

    fn kick(&mut self, cpus: impl IntoIterator<Item = CpuId>) {
        for cpu in cpus {
            self.cpus[cpu.index()].1 = true;
        }
    }

    /// Every world that one step can lead to.
    fn next(&self) -> Vec<Self> {
        let mut worlds = Vec::new();
        for cpu in CpuSet::first(2) {
            let (state, kicked) = self.cpus[cpu.index()];
            let mut step = |change: &dyn Fn(&mut Self)| {
                let mut world = self.clone();
                change(&mut world);
                worlds.push(world);
            };
            match state {
                Cpu::Picks => step(&|world| world.pick(cpu)),
                Cpu::Idles if kicked => step(&|world| world.cpus[cpu.index()] = (Cpu::Picks, false)),
                Cpu::Idles => {}
                Cpu::Collects(entity) => step(&|world| {
                    world.posted[entity.index()] = 0;
                    world.cpus[cpu.index()].0 = Cpu::Blocks(entity);
                }),
                Cpu::Blocks(entity) => {
                    step(&|world| {
                        world.scheduler.give_back(cpu, 0, GiveBack::Blocked { until: None });
                        world.cpus[cpu.index()].0 = Cpu::Picks;
                    });
                    if kicked {
                        step(&|world| world.attend(cpu, entity));
                    }
                }
            }
        }
        for index in 0..self.others.len() {
            let mut world = self.clone();
            if world.other(index) {
                worlds.push(world);
            }
        }
        worlds
    }

    fn pick(&mut self, cpu: CpuId) {
        let pick = self.scheduler.pick(cpu, 0);
        self.kick(pick.kick);
        self.cpus[cpu.index()].0 = pick.run.map_or(Cpu::Idles, Cpu::Collects);
        let runs = |at: usize| match self.cpus[at].0 {
            Cpu::Collects(entity) | Cpu::Blocks(entity) => Some(entity),
            Cpu::Picks | Cpu::Idles => None,
        };
        assert!(runs(0).is_none() || runs(0) != runs(1), "one entity on two processors");
    }

    fn attend(&mut self, cpu: CpuId, entity: Entity) {
        let Attention { until, kick } = self.scheduler.attend(cpu, 0);
        self.kick(kick);
        let next = if until == 0 {
            self.scheduler.give_back(cpu, 0, GiveBack::Preempted);
            Cpu::Picks
        } else {
            Cpu::Collects(entity)
        };
        self.cpus[cpu.index()] = (next, false);
    }

    fn other(&mut self, index: usize) -> bool {
        if self.others[index].is_empty() {
            return false;
        }
        let entity = |number: usize| Entity(u8::try_from(number).unwrap());
        match self.others[index].remove(0) {
            Posts(to) => self.posted[to] += 1,
            Wakes(to) => {
                let to = entity(to);
                let kick = self.scheduler.wake(to, 0);
                self.kick(kick);
            }
            Stops(which) => {
                let kick = self.scheduler.stop(entity(which));
                self.kick(kick);
                self.stopped = Some(which);
            }
        }
        true
    }

    /// Nothing more can happen.
    fn check_end(&self) {
        self.scheduler.check_lists();
        for (index, slot) in (0..).zip(self.scheduler.slots.iter().flatten()) {
            let entity = Entity(index);
            if self.stopped == Some(entity.index()) {
                assert_eq!(slot.state, State::Off, "{self:?}");
            } else {
                assert_eq!(self.posted[entity.index()], 0, "a wake was lost: {self:?}");
                assert!(matches!(slot.state, State::Blocked { .. }), "{self:?}");
            }
        }
        assert!(self.scheduler.active.iter().all(|active| *active == 0), "{self:?}");
    }
}

/// Goes through every order; how many states there are.
fn explore(start: World) -> usize {
    let mut seen = HashSet::new();
    let mut open = vec![start];
    while let Some(world) = open.pop() {
        if !seen.insert(format!("{world:?}")) {
            continue;
        }
        let next = world.next();
        if next.is_empty() {
            world.check_end();
        }
        open.extend(next);
    }
    seen.len()
}

#[test]
fn no_order_of_wakes_and_blocks_loses_what_was_posted() {
    let senders: [&[Other]; 2] = [&[Posts(0), Wakes(0), Posts(1), Wakes(1)], &[Posts(0), Wakes(0)]];
    for cpus in [[Cpu::Idles, Cpu::Idles], [Cpu::Idles, Cpu::Picks], [Cpu::Picks, Cpu::Picks]] {
        assert!(explore(World::new(&senders, cpus)) > 200);
    }
}

#[test]
fn no_order_of_wakes_and_stops_leaves_a_stopped_entity_running() {
    let others: [&[Other]; 2] = [&[Posts(0), Wakes(0), Posts(1), Wakes(1), Posts(0), Wakes(0)], &[Stops(0)]];
    for cpus in [[Cpu::Idles, Cpu::Idles], [Cpu::Idles, Cpu::Picks], [Cpu::Picks, Cpu::Picks]] {
        assert!(explore(World::new(&others, cpus)) > 200);
    }
}
