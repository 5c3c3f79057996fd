//! All guests, as every processor of the host sees them: made while the core boots, shared ever after.
//!
//! Locks, in this order: a guest's service or board, then the scheduler; a virtual processor belongs to the
//! processor that picked it, which holds its lock for the whole turn and takes no other one of that kind.
//! Nobody holds a lock but that while a guest runs. The TPM's desk is a leaf.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use dolmen_arch::{CpuId, CpuSet};
use dolmen_machine::clock::Clock;
use dolmen_machine::cpu;
use dolmen_machine::own::GuestRam;
use dolmen_machine::serial::Serial;
use dolmen_machine::svm::Svm;
use dolmen_vm::bus::VcpuSet;
use dolmen_vm::guest::Guest;
use dolmen_vm::policy::StopReason;
use dolmen_vm::sched::{Entity, Scheduler};
use dolmen_vm::service::Service;
use dolmen_vm::vcpu::Vcpu;

use crate::lock::Mutex;
use crate::measure::MeasuredGuest;
use crate::trust::TpmDesk;

/// One guest.
pub(crate) struct Tenant {
    pub(crate) measured: MeasuredGuest,
    pub(crate) guest: Guest,
    pub(crate) ram: GuestRam,
    pub(crate) service: Mutex<Service<'static>>,
    pub(crate) consoles: [Option<Serial>; 2],
    /// Its virtual processors are these tasks.
    pub(crate) first_task: usize,
    pub(crate) tasks: usize,
    /// One of its processors has said that it ends, and why is being dealt with.
    is_ending: AtomicBool,
}

/// One virtual processor. Task n is the scheduler's entity n.
pub(crate) struct Task {
    pub(crate) tenant: usize,
    pub(crate) entity: Entity,
    pub(crate) vcpu: Mutex<Vcpu<Svm>>,
}

/// All of them.
pub(crate) struct Fleet {
    pub(crate) clock: Clock,
    pub(crate) tenants: Vec<Tenant>,
    pub(crate) tasks: Vec<Task>,
    pub(crate) scheduler: Mutex<Scheduler>,
    pub(crate) desk: Mutex<Box<TpmDesk>>,
    /// Guests that have not ended.
    alive: AtomicUsize,
}

impl Tenant {
    /// A guest whose processors are `tasks` tasks from `first_task` on.
    pub(crate) const fn new(
        measured: MeasuredGuest,
        guest: Guest,
        ram: GuestRam,
        service: Service<'static>,
        consoles: [Option<Serial>; 2],
        (first_task, tasks): (usize, usize),
    ) -> Self {
        Self {
            measured,
            guest,
            ram,
            service: Mutex::new(service),
            consoles,
            first_task,
            tasks,
            is_ending: AtomicBool::new(false),
        }
    }
}

impl Fleet {
    /// All guests, none of which runs yet.
    pub(crate) fn new(
        clock: Clock,
        tenants: Vec<Tenant>,
        tasks: Vec<Task>,
        scheduler: Scheduler,
        desk: Box<TpmDesk>,
    ) -> Self {
        let alive = AtomicUsize::new(tenants.len());
        let (scheduler, desk) = (Mutex::new(scheduler), Mutex::new(desk));
        Self { clock, tenants, tasks, scheduler, desk, alive }
    }

    /// The virtual processor that the scheduler means.
    pub(crate) fn task(&self, entity: Entity) -> Option<&Task> {
        self.tasks.get(entity.index())
    }

    /// The tasks of a guest, its first processor's first.
    pub(crate) fn tasks_of(&self, tenant: &Tenant) -> &[Task] {
        let end = tenant.first_task.saturating_add(tenant.tasks);
        self.tasks.get(tenant.first_task..end).unwrap_or_default()
    }

    /// Lets all processors of a guest run; the host's processors to kick.
    pub(crate) fn start(&self, tenant: &Tenant) -> CpuSet {
        let mut scheduler = self.scheduler.lock();
        let now = cpu::read_tsc();
        kicked(self.tasks_of(tenant).iter().map(|task| scheduler.start(task.entity, now)))
    }

    /// Stops all processors of a guest, at once or when they come back; the host's processors to kick.
    pub(crate) fn halt(&self, tenant: &Tenant) -> CpuSet {
        let mut scheduler = self.scheduler.lock();
        kicked(self.tasks_of(tenant).iter().map(|task| scheduler.stop(task.entity)))
    }

    /// There is mail for some of a guest's processors; the host's processors to kick.
    pub(crate) fn wake(&self, tenant: &Tenant, whom: VcpuSet) -> CpuSet {
        if whom.is_empty() {
            return CpuSet::EMPTY;
        }
        let tasks = self.tasks_of(tenant);
        let mut scheduler = self.scheduler.lock();
        let now = cpu::read_tsc();
        kicked(whom.iter().filter_map(|index| tasks.get(index)).map(|task| scheduler.wake(task.entity, now)))
    }

    /// A guest ends. Whether this is the first to say so, and whether any other guest is left.
    pub(crate) fn end(&self, tenant: &Tenant, why: StopReason) -> Option<Left> {
        if tenant.is_ending.swap(true, Ordering::AcqRel) {
            return None;
        }
        tenant.service.lock().scrub();
        log::info!(target: "serve", "guest stopped name={} reason={why:?}", tenant.measured.config.name());
        let before = self.alive.fetch_sub(1, Ordering::AcqRel);
        Some(if before > 1 { Left::Others } else { Left::Nobody })
    }
}

/// Who is left when a guest has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// Other guests run.
    Others,
    /// None.
    Nobody,
}

fn kicked(cpus: impl Iterator<Item = Option<CpuId>>) -> CpuSet {
    cpus.flatten().collect()
}
