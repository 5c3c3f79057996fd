//! Stage 4: the guest's RAM, nested tables, processor and board.

use alloc::boxed::Box;

use dolmen_abi::LaunchFacts;
use dolmen_machine::own::{GuestRam, Machine};
use dolmen_machine::serial::Serial;
use dolmen_machine::svm::{Svm, ThisCpu};
use dolmen_machine::{cpu, heap, rtc};
use dolmen_memory::{Gpa, Hpa, NestedTable, Npt, PageSize, RamExtent, RamMap, Rights};
use dolmen_vm::board::BoardConfig;
use dolmen_vm::cpuid::{CpuidConfig, GuestCpuid};
use dolmen_vm::guest::Guest;
use dolmen_vm::layout::RamLayout;
use dolmen_vm::manifest::{Console, GuestConfig};
use dolmen_vm::service::{GuestSlot, Scratch, Service, ServiceConfig};
use dolmen_vm::vcpu::Vcpu;

use crate::cpus;
use crate::load;
use crate::measure::Measured;
use crate::serve::Surroundings;
use crate::stop::Reason;
use crate::trust::{self, TpmDesk};

const NS_PER_S: u64 = 1_000_000_000;

/// One guest, ready for its first instruction.
pub(crate) struct Virtualising {
    pub(crate) config: GuestConfig,
    pub(crate) vcpu: Vcpu<Svm>,
    pub(crate) ram: GuestRam,
    pub(crate) guest: Guest,
    pub(crate) surroundings: Surroundings,
}

/// Builds the measured guest.
pub(crate) fn build(measured: Measured) -> Result<Virtualising, Reason> {
    let Measured { mut host, guest: measured, event_log, trust } = measured;
    let config = measured.config;
    let facts = trust::facts(host.machine.handoff().facts);
    let (svm, mut cpu, window) = cpus::start(&mut host)?;
    let (mut ram, tables) = build_memory(&mut host.machine, &config)?;
    let processor = svm.vcpu(host.machine.region(), tables.root(), 0).map_err(Reason::Svm)?;
    let start = load::guest(&host.machine, &measured, &mut ram)?;
    let mut desk = Box::new(TpmDesk::new(host.tpm, host.clock, trust, event_log));
    let service = Service::new(
        ServiceConfig {
            slot: GuestSlot::new(0).ok_or(Reason::Unsupported("more guests than slots"))?,
            name: config.name,
            identity: measured.identity,
            groups: config.hypercalls(),
            facts,
            sealing_root: desk.take_root(),
        },
        Box::leak(Box::new(Scratch::new())),
    );
    let board = board_config(host.clock.tsc_khz, &config)?;
    let guest = Guest::new(board, config.vcpus);
    let cpuid = GuestCpuid::new(&ThisCpu, cpuid_config(&config, facts));
    let mut vcpu = Vcpu::new(0, processor, cpuid, &board);
    vcpu.start(&start);
    cpu.load(vcpu.backend_mut());
    let [first, second] = config.consoles();
    let consoles = [open_console(first)?, open_console(second)?];
    heap::close();
    log::info!(target: "virtualise", "guest built name={} ram_mib={} left_kib={}",
        config.name(), config.memory / 0x10_0000, host.machine.region().left() / 1024);
    let surroundings = Surroundings::new(window, host.clock, consoles, desk, service);
    Ok(Virtualising { config, vcpu, ram, guest, surroundings })
}

fn build_memory(machine: &mut Machine, config: &GuestConfig) -> Result<(GuestRam, NestedTable<Npt>), Reason> {
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
    let mut tables = NestedTable::<Npt>::new(machine.region()).map_err(no_frames)?;
    for extent in map.extents() {
        let place = (extent.gpa, extent.hpa, extent.bytes);
        tables.map(machine.region(), place, Rights::ALL, PageSize::Size2M).map_err(no_frames)?;
    }
    Ok((machine.guest_ram(map)?, tables))
}

fn board_config(tsc_khz: u64, config: &GuestConfig) -> Result<BoardConfig, Reason> {
    let tsc_khz = u32::try_from(tsc_khz).map_err(|_| Reason::Unsupported("a clock above 4 THz"))?;
    let wall_clock_ns = rtc::unix_seconds().unwrap_or_default().saturating_mul(NS_PER_S);
    let (ram_bytes, second_uart) = (config.memory, config.has_second_uart());
    Ok(BoardConfig { tsc_khz, ram_bytes, wall_clock_ns, created_at: cpu::read_tsc(), second_uart })
}

fn cpuid_config(config: &GuestConfig, facts: LaunchFacts) -> CpuidConfig {
    CpuidConfig {
        vcpus: config.vcpus,
        apic_id: 0,
        call_groups: config.hypercalls().bits(),
        launch_facts: facts.bits(),
    }
}

fn open_console(console: Console) -> Result<Option<Serial>, Reason> {
    let port = match console {
        Console::None => return Ok(None),
        Console::Com1 | Console::Multiplexed => Serial::COM1,
        Console::Com2 => Serial::COM2,
    };
    match Serial::open(port) {
        Some(serial) => Ok(Some(serial)),
        None => Err(Reason::Unsupported("a console on a serial port that this machine lacks")),
    }
}
