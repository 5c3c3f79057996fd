//! Stage 4: RAM, nested tables, processors and boards of all guests.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::num::NonZeroU16;
use core::sync::atomic::AtomicUsize;

use dolmen_abi::LaunchFacts;
use dolmen_arch::CpuSet;
use dolmen_machine::cpu::ThisCpu;
use dolmen_machine::interrupt::Window;
use dolmen_machine::own::{GuestRam, Machine, StagedFiles};
use dolmen_machine::serial::Serial;
use dolmen_machine::{cpu, heap, rtc};
use dolmen_memory::{EntryFormat, Gpa, Hpa, NestedTable, PageSize, RamExtent, RamMap, Rights};
use dolmen_vm::board::BoardConfig;
use dolmen_vm::console::Line;
use dolmen_vm::cpuid::{CpuidConfig, GuestCpuid};
use dolmen_vm::guest::Guest;
use dolmen_vm::layout::RamLayout;
use dolmen_vm::manifest::{Console, GuestConfig};
use dolmen_vm::sched::{EntityConfig, Scheduler};
use dolmen_vm::service::{GuestSlot, Scratch, Secret, Service, ServiceConfig};
use dolmen_vm::vcpu::Vcpu;

use crate::console::{self, Outlet, Wire};
use crate::cpus;
use crate::fleet::{Fleet, Task, Tenant};
use crate::lifecycle::PIECE;
use crate::load;
use crate::lock::Mutex;
use crate::measure::{Measured, MeasuredGuest};
use crate::stop::Reason;
use crate::trust::{self, TpmDesk};
use crate::vendor::Home;

const NS_PER_S: u64 = 1_000_000_000;

/// All guests, ready for their first instructions.
pub(crate) struct Virtualising<E: Home> {
    pub(crate) fleet: &'static Fleet<E>,
    pub(crate) cpu: E::Cpu,
    pub(crate) window: Window,
}

/// Builds the measured guests.
pub(crate) fn build<E: Home>(measured: Measured) -> Result<Virtualising<E>, Reason> {
    let Measured { mut host, guests, event_log, mut trust } = measured;
    let (extension, this_cpu, window) = cpus::start::<E>(&mut host)?;
    let scheduler = Scheduler::new(dolmen_machine::cpus::all(), host.clock.tsc_khz);
    let lines = console_lines(&guests);
    let mut builder = Builder {
        facts: trust::facts(host.machine.handoff().facts),
        manifest: trust.manifest(),
        root: trust.take_root(),
        wall_clock_ns: rtc::unix_seconds().unwrap_or_default().saturating_mul(NS_PER_S),
        tsc_khz: u32::try_from(host.clock.tsc_khz).map_err(|_| Reason::Unsupported("a clock above 4 THz"))?,
        extension,
        scheduler,
        tenants: Vec::new(),
        tasks: Vec::new(),
        files: host.machine.staged_files(),
        piece: vec![0; PIECE],
        lines,
    };
    for guest in guests {
        let config = guest.config;
        check_affinity(&config)
            .and_then(|()| builder.build(&mut host.machine, guest))
            .inspect_err(|_| log::error!(target: "virtualise", "no guest name={}", config.name()))?;
    }
    let Builder { scheduler, tenants, tasks, files, .. } = builder;
    let published = trust.publish(event_log);
    let desk = Box::new(TpmDesk::new(host.meter, trust));
    let fleet: &'static Fleet<E> =
        Box::leak(Box::new(Fleet::new(host.clock, tenants, tasks, scheduler, (desk, published), files)));
    console::share(lines);
    let left = host.machine.region().left();
    #[cfg(feature = "self-check")]
    crate::self_check::prepare(host.machine)?;
    heap::close();
    log::info!(target: "virtualise", "guests built count={} vcpus={} left_kib={}",
        fleet.tenants.len(), fleet.tasks.len(), left / 1024);
    Ok(Virtualising { fleet, cpu: this_cpu, window })
}

/// An affinity that names a processor which the machine lacks is a mistake, or another machine than was meant.
fn check_affinity(config: &GuestConfig) -> Result<(), Reason> {
    let named = if config.affinity == 0 { CpuSet::EMPTY } else { config.affinity() };
    if named.intersection(dolmen_machine::cpus::all()) == named {
        Ok(())
    } else {
        Err(Reason::Unsupported("a processor that this machine lacks"))
    }
}

/// What the guests are built from and into.
struct Builder<E: Home> {
    facts: LaunchFacts,
    manifest: [u8; 32],
    root: Option<Secret<[u8; 32]>>,
    wall_clock_ns: u64,
    tsc_khz: u32,
    extension: &'static E,
    scheduler: Scheduler,
    tenants: Vec<Tenant>,
    tasks: Vec<Task<E>>,
    files: StagedFiles,
    piece: Vec<u8>,
    lines: &'static [Line],
}

impl<E: Home> Builder<E> {
    fn build(&mut self, machine: &mut Machine, measured: MeasuredGuest) -> Result<(), Reason> {
        let config = &measured.config;
        let board = BoardConfig {
            tsc_khz: self.tsc_khz,
            ram_bytes: config.memory,
            wall_clock_ns: self.wall_clock_ns,
            created_at: cpu::read_tsc(),
            second_uart: config.has_second_uart(),
        };
        let (ram, tables) = build_memory::<E::Tables>(machine, config)?;
        let start = match config.starts_on_demand() {
            true => None,
            false => Some(load::guest(&self.files, &measured, &ram, &mut self.piece)?),
        };
        let first_task = self.tasks.len();
        for index in 0..config.vcpus {
            let backend =
                self.extension.vcpu(machine.region(), tables.root(), 0).map_err(Reason::Extension)?;
            let cpuid = GuestCpuid::new(&ThisCpu, cpuid_config(config, index, self.facts));
            let number = self.tasks.len().saturating_sub(first_task);
            let mut vcpu = Vcpu::new(number, backend, cpuid, &board);
            if let (0, Some(start)) = (index, &start) {
                vcpu.start(start);
            }
            self.add_task(config, vcpu)?;
        }
        let slot = GuestSlot::new(self.tenants.len()).ok_or(Reason::Unsupported("more guests than slots"))?;
        let service = Service::new(
            ServiceConfig {
                slot,
                name: config.name,
                identity: measured.identity,
                manifest: self.manifest,
                groups: config.hypercalls(),
                facts: self.facts,
                sealing_root: self.root.as_ref().map(|root| Secret::new(*root.expose())),
            },
            Box::leak(Box::new(Scratch::new())),
        );
        #[cfg(feature = "self-check")]
        crate::self_check::remember(tables, *ram.map());
        let guest = Guest::new(board, config.vcpus);
        let [first, second] = config.consoles();
        let line = self.lines.get(self.tenants.len());
        let outlets = [open_console(first, line)?, open_console(second, line)?];
        let tasks = (first_task, self.tasks.len().saturating_sub(first_task));
        log::info!(target: "virtualise", "guest built name={} ram_mib={} vcpus={}",
            config.name(), config.memory / 0x10_0000, config.vcpus);
        self.tenants.push(Tenant::new(measured, guest, ram, service, outlets, tasks)?);
        Ok(())
    }

    fn add_task(&mut self, config: &GuestConfig, vcpu: Vcpu<E::Vcpu>) -> Result<(), Reason> {
        let tenant = self.tenants.len();
        let weight = u16::try_from(config.weight).ok().and_then(NonZeroU16::new).unwrap_or(NonZeroU16::MIN);
        let affinity: CpuSet = config.affinity();
        let entity = self
            .scheduler
            .add(EntityConfig { guest: tenant, weight, affinity })
            .ok_or(Reason::Unsupported("more processors than there may be, or on none that there is"))?;
        self.tasks.push(Task { tenant, entity, vcpu: Mutex::new(vcpu) });
        Ok(())
    }
}

fn build_memory<F: EntryFormat>(
    machine: &mut Machine,
    config: &GuestConfig,
) -> Result<(GuestRam, NestedTable<F>), Reason> {
    let layout = RamLayout::new(config.memory);
    let taken = machine.take_guest_ram(config.memory)?;
    let low_bytes = layout.low().end;
    let high_base = taken.base.wrapping_add(low_bytes);
    let extents = [
        RamExtent { gpa: Gpa::new(0), hpa: Hpa::new(taken.base), bytes: low_bytes },
        RamExtent {
            gpa: Gpa::new(layout.high().start),
            hpa: Hpa::new(high_base),
            bytes: layout.high().end.wrapping_sub(layout.high().start),
        },
    ];
    let map = RamMap::new(&extents).map_err(|_| Reason::Unsupported("an impossible amount of memory"))?;
    let no_frames = |_| Reason::OutOfMemory("nested page tables");
    let mut tables = NestedTable::<F>::new(machine.region()).map_err(no_frames)?;
    for extent in map.extents() {
        let place = (extent.gpa, extent.hpa, extent.bytes);
        tables.map(machine.region(), place, Rights::ALL, PageSize::Size2M).map_err(no_frames)?;
    }
    Ok((machine.guest_ram(map)?, tables))
}

fn cpuid_config(config: &GuestConfig, apic_id: u32, facts: LaunchFacts) -> CpuidConfig {
    CpuidConfig {
        vcpus: config.vcpus,
        apic_id,
        call_groups: config.hypercalls().bits(),
        launch_facts: facts.bits(),
    }
}

/// A line for each guest; those whose guest says so are on the shared port.
fn console_lines(guests: &[MeasuredGuest]) -> &'static [Line] {
    let is_shared = |console: Console| matches!(console, Console::Com1 | Console::Multiplexed);
    let line = |guest: &MeasuredGuest| {
        Line::new(guest.config.name, guest.config.consoles().into_iter().any(is_shared))
    };
    Vec::leak(guests.iter().map(line).collect())
}

fn open_console(console: Console, line: Option<&'static Line>) -> Result<Outlet, Reason> {
    let lacking = Reason::Unsupported("a console on a serial port that this machine lacks");
    let wire = match (console, line) {
        (Console::None, _) | (Console::Com1 | Console::Multiplexed, None) => Wire::None,
        (Console::Com1 | Console::Multiplexed, Some(line)) => {
            Serial::open(Serial::COM1).ok_or(lacking)?;
            Wire::Shared(line)
        }
        (Console::Com2, _) => {
            Wire::Own { port: Serial::open(Serial::COM2).ok_or(lacking)?, room: AtomicUsize::new(0) }
        }
    };
    Ok(Outlet::new(wire))
}
