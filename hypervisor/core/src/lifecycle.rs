//! The lives of all guests: what `vm::lifecycle` decides is done here, a piece at a time.
//!
//! Pieces are done between two turns of guests by whichever processor has time, one processor at a time. Each is
//! short, and nothing is allocated. Order of locks: the bench, a guest's service, the TPM's desk, a guest's life,
//! the scheduler.

use alloc::vec::Vec;

use dolmen_abi::{GuestInfo, GuestState, NAME_BYTES, Status};
use dolmen_arch::CpuSet;
use dolmen_machine::clock::Clock;
use dolmen_machine::cpu;
use dolmen_machine::extension::Extension;
use dolmen_vm::backend::{Backend, Register, StartState};
use dolmen_vm::guest::ExitKind;
use dolmen_vm::lifecycle::{
    Checker, Component, Components, LastState, Lifecycle, Nanoseconds, Outcome, Request, Rules, Verdict, Work,
};
use dolmen_vm::policy::StopReason;
use dolmen_vm::service::GuestTable;
use dolmen_vm::vcpu::Vcpu;

use crate::fleet::{Fleet, Tenant};
use crate::load::{self, Loading};
use crate::lock::Mutex;
use crate::measure::MeasuredGuest;
use crate::stop::{self, Reason};

/// Bytes that are hashed or copied at a time.
pub(crate) const PIECE: usize = 0x4000;

/// The life of one guest, and what its next start is made of.
pub(crate) struct Life {
    state: Mutex<Lifecycle>,
    /// For whoever has a piece of its work, so never contended.
    start: Mutex<Start>,
}

/// A start that is being prepared.
#[derive(Default)]
struct Start {
    checker: Checker,
    loading: Option<Loading>,
    begins: Option<StartState>,
}

impl Life {
    /// A guest that is off, with clean memory.
    pub(crate) fn new(measured: &MeasuredGuest) -> Result<Self, Reason> {
        let mut digests = measured.digests.iter();
        let mut list = Vec::new();
        for (described, at) in measured.config.components().iter().zip(&measured.components) {
            let digest =
                described.is_measured().then(|| digests.next().map(|digest| digest.sha384)).flatten();
            list.push(Component { length: at.length, digest });
        }
        let components = Components::new(&list).ok_or(Reason::Components)?;
        let state = Lifecycle::new(Rules::of(&measured.config), components, measured.config.memory);
        Ok(Self { state: Mutex::new(state), start: Mutex::new(Start::default()) })
    }

    /// Takes note that it starts with what was loaded while the core booted.
    pub(crate) fn starts_at_boot(&self, clock: Clock) {
        self.state.lock().started_at_boot(now(clock));
    }
}

/// Nanoseconds of the host's clock.
pub(crate) fn now(clock: Clock) -> Nanoseconds {
    let ns = u128::from(cpu::read_tsc()).saturating_mul(1_000_000).checked_div(u128::from(clock.tsc_khz));
    ns.and_then(|ns| u64::try_from(ns).ok()).unwrap_or_default()
}

/// A processor of a guest says that the guest stops. Ends the machine's run if the manifest says so.
pub(crate) fn ended<E: Extension>(
    fleet: &Fleet<E>,
    tenant: &Tenant,
    vcpu: &Vcpu<E::Vcpu>,
    reason: StopReason,
) -> Result<CpuSet, Reason> {
    let backend = vcpu.backend();
    let last = LastState { rip: backend.read(Register::Rip), cr3: backend.read(Register::Cr3), detail: 0 };
    let mut life = tenant.life.state.lock();
    let was_running = life.is_running();
    let verdict = life.ended(reason, last, now(fleet.clock));
    let (cause, last, ran) = (life.cause(), life.last(), life.run_time(now(fleet.clock)));
    drop(life);
    if !was_running && verdict == Verdict::GoOn {
        return Ok(CpuSet::EMPTY);
    }
    let name = tenant.measured.config.name();
    log::info!(target: "serve", "guest stopped name={name} cause={cause} rip={:#x} cr3={:#x} detail={:#x} ran_ms={}",
        last.rip, last.cr3, last.detail, ran / 1_000_000);
    #[cfg(feature = "self-check")]
    crate::self_check::report(name)?;
    match verdict {
        Verdict::GoOn => Ok(fleet.halt(tenant)),
        Verdict::ResetMachine => stop::reset(),
        Verdict::HaltMachine => {
            if cause.is_crash() {
                crate::console::raw(|com1| backend.dump(com1));
            }
            Err(Reason::GuestEnded { name: tenant.measured.config.name, cause })
        }
    }
}

/// Does one piece of work for one guest, if there is any. Answers whether there was, and processors to kick.
pub(crate) fn work<E: Extension>(fleet: &Fleet<E>) -> Result<(bool, CpuSet), Reason> {
    let Some(mut bench) = fleet.bench.try_lock() else { return Ok((false, CpuSet::EMPTY)) };
    let count = fleet.tenants.len();
    for step in 0..count {
        let index = bench.turn.saturating_add(step).checked_rem(count).unwrap_or_default();
        let Some(tenant) = fleet.tenants.get(index) else { continue };
        let taken = tenant.life.state.lock().take(now(fleet.clock));
        let Some(work) = taken else { continue };
        bench.turn = index.saturating_add(1);
        let (outcome, kick) = perform(fleet, tenant, &work, &mut bench.piece);
        let more = finish(fleet, tenant, &work, outcome)?;
        return Ok((true, kick.union(more)));
    }
    Ok((false, CpuSet::EMPTY))
}

fn perform<E: Extension>(
    fleet: &Fleet<E>,
    tenant: &Tenant,
    work: &Work,
    piece: &mut [u8],
) -> (Outcome, CpuSet) {
    let outcome = match *work {
        Work::Halt => {
            let kick = fleet.halt(tenant);
            let outcome = if fleet.is_off(tenant) { Outcome::Done } else { Outcome::Again };
            return (outcome, kick);
        }
        Work::Wipe { offset, bytes } => {
            if offset == 0 {
                forget(fleet, tenant);
            }
            tenant.ram.wipe_part(offset, bytes);
            Outcome::Done
        }
        Work::Check { component, offset, bytes } => check(fleet, tenant, (component, offset, bytes), piece),
        Work::Fill { begins } => fill(fleet, tenant, begins, piece),
        Work::Run => {
            forget(fleet, tenant);
            let begins = tenant.life.start.lock().begins.take();
            match (fleet.tasks_of(tenant).first(), begins) {
                (Some(first), Some(state)) => {
                    first.vcpu.lock().start(&state);
                    Outcome::Done
                }
                (_, None) | (None, _) => Outcome::NotLoadable,
            }
        }
    };
    (outcome, CpuSet::EMPTY)
}

/// Forgets everything of the guest's last run but its memory: processors, devices, registers, quotes, keys typed.
fn forget<E: Extension>(fleet: &Fleet<E>, tenant: &Tenant) {
    let config = {
        let board = tenant.guest.board();
        // Under the lock of their one reader: what it took before goes with the old board.
        for outlet in &tenant.outlets {
            outlet.forget();
        }
        *board.config()
    };
    tenant.guest.reset(config);
    for task in fleet.tasks_of(tenant) {
        task.vcpu.lock().reset(&config);
    }
    let mut service = tenant.service.lock();
    let mut desk = fleet.desk.lock();
    service.restart(&mut **desk);
}

fn check<E: Extension>(
    fleet: &Fleet<E>,
    tenant: &Tenant,
    (component, offset, bytes): (usize, u64, u64),
    piece: &mut [u8],
) -> Outcome {
    let mut start = tenant.life.start.lock();
    let part = usize::try_from(bytes).ok().and_then(|bytes| piece.get_mut(..bytes));
    let (Some(part), Some(file)) = (part, tenant.measured.components.get(component)) else {
        return Outcome::NotLoadable;
    };
    if load::read(&fleet.files, *file, offset, part).is_err() {
        return Outcome::NotLoadable;
    }
    start.checker.update(component, offset, part);
    let components = *tenant.life.state.lock().components();
    match start.checker.finish(&components) {
        Some(result) => Outcome::Compared(result),
        None => Outcome::Done,
    }
}

fn fill<E: Extension>(fleet: &Fleet<E>, tenant: &Tenant, begins: bool, piece: &mut [u8]) -> Outcome {
    let mut start = tenant.life.start.lock();
    if begins {
        // A start that was cancelled may have left its own; what that put into memory is gone.
        (start.loading, start.begins) = (None, None);
    }
    let result = match &mut start.loading {
        None => Loading::begin(&fleet.files, &tenant.measured, &tenant.ram).map(|loading| {
            start.loading = Some(loading);
            None
        }),
        Some(loading) => loading.go_on(&fleet.files, &tenant.measured, &tenant.ram, piece),
    };
    match result {
        Ok(None) => Outcome::Again,
        Ok(begins) => {
            (start.begins, start.loading) = (begins, None);
            Outcome::Done
        }
        Err(reason) => {
            log::warn!(target: "serve", "guest not loaded name={}: {reason}", tenant.measured.config.name());
            start.loading = None;
            Outcome::NotLoadable
        }
    }
}

/// Says how a piece went, lets the guest run if it was the last, and ends the machine's run if nobody is left.
fn finish<E: Extension>(
    fleet: &Fleet<E>,
    tenant: &Tenant,
    work: &Work,
    outcome: Outcome,
) -> Result<CpuSet, Reason> {
    let name = tenant.measured.config.name();
    let mut life = tenant.life.state.lock();
    let before = life.state();
    life.done(outcome, now(fleet.clock));
    let mut kick = CpuSet::EMPTY;
    if *work == Work::Run && life.is_running() {
        // Still locked: a stop that came in between would find no processor to stop.
        kick = fleet.start(tenant);
        log::info!(target: "serve", "guest runs name={name} starts={}", life.starts().0);
    }
    let (state, cause, is_at_rest) = (life.state(), life.cause(), life.is_at_rest());
    drop(life);
    if state == before || !is_at_rest {
        return Ok(kick);
    }
    if state == GuestState::REFUSED {
        log::warn!(target: "serve", "guest refused name={name}: a file is no longer what was measured");
    } else {
        log::info!(target: "serve", "guest at rest, memory wiped name={name} cause={cause}");
    }
    let is_over = fleet.tenants.iter().all(|tenant| tenant.life.state.lock().is_at_rest());
    if is_over { Err(Reason::GuestEnded { name: tenant.measured.config.name, cause }) } else { Ok(kick) }
}

/// All guests, for those that manage others.
pub(crate) struct Lives<E: Extension>(pub(crate) &'static Fleet<E>);

impl<E: Extension> GuestTable for Lives<E> {
    fn uptime_ns(&self) -> u64 {
        now(self.0.clock)
    }

    fn describe(&self, index: usize) -> Option<GuestInfo> {
        let fleet = self.0;
        let tenant = fleet.tenants.get(index)?;
        let config = &tenant.measured.config;
        let ticks = u128::from(fleet.used(tenant)).saturating_mul(1_000_000);
        let cpu_ns = ticks.checked_div(u128::from(fleet.clock.tsc_khz)).and_then(|ns| u64::try_from(ns).ok());
        let mut info = GuestInfo {
            name: config.name,
            vcpus: config.vcpus,
            memory: config.memory,
            cpu_ns: cpu_ns.unwrap_or_default(),
            identity: tenant.measured.identity,
            ..GuestInfo::default()
        };
        for (slot, kind) in info.exits.iter_mut().zip(ExitKind::ALL) {
            let counters = (0..fleet.tasks_of(tenant).len()).filter_map(|index| tenant.guest.counters(index));
            *slot = counters.fold(0, |sum, counters| sum.wrapping_add(counters.get(kind)));
        }
        tenant.life.state.lock().describe(&mut info, self.uptime_ns());
        Some(info)
    }

    fn request(&mut self, name: &[u8; NAME_BYTES], request: Request) -> Result<(), Status> {
        let tenant = self.0.tenants.iter().find(|tenant| tenant.measured.config.name == *name);
        let tenant = tenant.ok_or(Status::NO_SUCH_GUEST)?;
        tenant.life.state.lock().request(request, self.uptime_ns())?;
        log::info!(target: "serve", "guest asked for name={} request={request:?}", tenant.measured.config.name());
        Ok(())
    }
}
