//! All guests, as every processor of the host sees them: made while the core boots, shared ever after.
//!
//! Locks, in this order: a guest's service or board, then the scheduler; a virtual processor belongs to the
//! processor that picked it, which holds its lock for the whole turn and takes no other one of that kind.
//! Nobody holds a lock but that while a guest runs. The TPM's desk is a leaf.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use dolmen_arch::{CpuId, CpuSet};
use dolmen_machine::clock::Clock;
use dolmen_machine::cpu;
use dolmen_machine::extension::Extension;
use dolmen_machine::own::{GuestRam, StagedFiles};
use dolmen_vm::bus::VcpuSet;
use dolmen_vm::guest::Guest;
use dolmen_vm::sched::{Entity, Scheduler};
use dolmen_vm::service::Service;
use dolmen_vm::vcpu::Vcpu;

use crate::console::Outlet;
use crate::door::Published;
use crate::lifecycle::{Life, PIECE};
use crate::lock::Mutex;
use crate::measure::MeasuredGuest;
use crate::stop::Reason;
use crate::trust::TpmDesk;

/// One guest.
pub(crate) struct Tenant {
    pub(crate) measured: MeasuredGuest,
    pub(crate) guest: Guest,
    pub(crate) ram: GuestRam,
    pub(crate) service: Mutex<Service<'static>>,
    pub(crate) life: Life,
    /// Where its serial ports lead.
    pub(crate) outlets: [Outlet; 2],
    /// Its virtual processors are these tasks.
    pub(crate) first_task: usize,
    pub(crate) tasks: usize,
}

/// One virtual processor. Task n is the scheduler's entity n.
pub(crate) struct Task<E: Extension> {
    pub(crate) tenant: usize,
    pub(crate) entity: Entity,
    pub(crate) vcpu: Mutex<Vcpu<E::Vcpu>>,
}

/// All of them.
pub(crate) struct Fleet<E: Extension> {
    pub(crate) clock: Clock,
    pub(crate) tenants: Vec<Tenant>,
    pub(crate) tasks: Vec<Task<E>>,
    pub(crate) scheduler: Mutex<Scheduler>,
    pub(crate) desk: Mutex<Box<TpmDesk>>,
    pub(crate) published: Published,
    /// What the loader staged, for guests that start later.
    pub(crate) files: StagedFiles,
    /// Whoever holds it does the work of guests that start or stop.
    pub(crate) bench: Mutex<Bench>,
}

/// Where that work is done.
pub(crate) struct Bench {
    /// What is hashed or copied passes through here.
    pub(crate) piece: Box<[u8]>,
    /// Whose turn it is.
    pub(crate) turn: usize,
}

impl Tenant {
    /// A guest whose processors are `tasks` tasks from `first_task` on.
    pub(crate) fn new(
        measured: MeasuredGuest,
        guest: Guest,
        ram: GuestRam,
        service: Service<'static>,
        outlets: [Outlet; 2],
        (first_task, tasks): (usize, usize),
    ) -> Result<Self, Reason> {
        let life = Life::new(&measured)?;
        let service = Mutex::new(service);
        Ok(Self { measured, guest, ram, service, life, outlets, first_task, tasks })
    }
}

impl<E: Extension> Fleet<E> {
    /// All guests, none of which runs yet.
    pub(crate) fn new(
        clock: Clock,
        tenants: Vec<Tenant>,
        tasks: Vec<Task<E>>,
        scheduler: Scheduler,
        (desk, published): (Box<TpmDesk>, Published),
        files: StagedFiles,
    ) -> Self {
        let (scheduler, desk) = (Mutex::new(scheduler), Mutex::new(desk));
        let bench = Mutex::new(Bench { piece: vec![0; PIECE].into_boxed_slice(), turn: 0 });
        Self { clock, tenants, tasks, scheduler, desk, published, files, bench }
    }

    /// The virtual processor that the scheduler means.
    pub(crate) fn task(&self, entity: Entity) -> Option<&Task<E>> {
        self.tasks.get(entity.index())
    }

    /// The tasks of a guest, its first processor's first.
    pub(crate) fn tasks_of(&self, tenant: &Tenant) -> &[Task<E>] {
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

    /// Whether no processor of a guest runs, or will before the guest is started again.
    pub(crate) fn is_off(&self, tenant: &Tenant) -> bool {
        let scheduler = self.scheduler.lock();
        self.tasks_of(tenant).iter().all(|task| scheduler.is_off(task.entity))
    }

    /// Time-stamp ticks that the processors of a guest have had.
    pub(crate) fn used(&self, tenant: &Tenant) -> u64 {
        let scheduler = self.scheduler.lock();
        self.tasks_of(tenant).iter().fold(0, |sum, task| sum.saturating_add(scheduler.used(task.entity)))
    }
}

fn kicked(cpus: impl Iterator<Item = Option<CpuId>>) -> CpuSet {
    cpus.flatten().collect()
}
