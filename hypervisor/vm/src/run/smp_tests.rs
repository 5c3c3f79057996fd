//! Several virtual processors of one guest, each in its turns.

use super::fake::{CODE, Exit, Processor, RAM, World, cpuid};
use crate::backend::{Backend, Readiness, Register};
use crate::board::BoardConfig;
use crate::exit::{Event, VmExit};
use crate::guest::{ExitKind, Guest};
use crate::policy::StopReason;
use crate::testing::Ram;
use crate::vcpu::{Activity, Turn, Vcpu};
use dolmen_arch::msr;
use dolmen_memory::{Gpa, GuestMemory};

const HLT: u8 = 0xf4;
const WRMSR: [u8; 2] = [0x0f, 0x30];
/// The interrupt command register of an x2APIC.
const COMMAND: u32 = 0x830;
const INIT: u64 = 5 << 8 | 1 << 14;
const START_UP: u64 = 6 << 8 | 1 << 14;
const NMI: u64 = 4 << 8 | 1 << 14;

const CONFIG: BoardConfig = BoardConfig {
    tsc_khz: 1_000_000,
    ram_bytes: RAM as u64,
    wall_clock_ns: 0,
    created_at: 0,
    second_uart: false,
};

/// A guest of several processors, of which the first runs.
struct Team {
    vcpus: Vec<Vcpu<Processor>>,
    worlds: Vec<World>,
    guest: Guest,
    ram: Ram,
}

impl Team {
    fn new(count: usize) -> Self {
        let vcpu = |index| Vcpu::new(index, Processor::default(), cpuid(), &CONFIG);
        let mut team = Self {
            vcpus: (0..count).map(vcpu).collect(),
            worlds: (0..count).map(|_| World::default()).collect(),
            guest: Guest::new(CONFIG, count as u32),
            ram: Ram::new(RAM),
        };
        team.vcpus[0].activity = Activity::Running;
        team
    }

    /// One turn of a processor that exits so, with `code` at RIP; the host then wants it back.
    fn turn(&mut self, index: usize, code: &[u8], exits: &[VmExit]) -> Turn {
        self.ram.write(Gpa::new(CODE), code).unwrap();
        let vcpu = &mut self.vcpus[index];
        vcpu.backend.write(Register::Rip, CODE);
        vcpu.backend.script.extend(exits.iter().map(|exit| Exit::from(*exit)));
        vcpu.backend.script.push_back(VmExit::HostInterrupt.into());
        self.worlds[index].wants_back = true;
        vcpu.run(&self.guest, &mut self.ram, &mut self.worlds[index])
    }

    /// Processor `from` sends what `low` says to `to`, in x2APIC mode.
    fn send(&mut self, from: usize, to: u64, low: u64) {
        let value = to << 32 | low;
        self.vcpus[from].backend.gprs().rax = value & 0xffff_ffff;
        self.vcpus[from].backend.gprs().rdx = value >> 32;
        let turn = self.turn(from, &WRMSR, &[VmExit::WriteMsr { msr: COMMAND, value }]);
        assert_eq!(turn, Turn::SliceOver);
    }

    fn enable_apic(&mut self, index: usize) {
        for (register, value) in [(msr::APIC_BASE, 0xfee0_0d00), (0x80f, 0x1ff)] {
            self.turn(index, &WRMSR, &[VmExit::WriteMsr { msr: register, value }]);
        }
        assert!(self.vcpus[index].backend.delivered.is_empty(), "nothing faulted");
    }

    fn started(count: usize) -> Self {
        let mut team = Self::new(count);
        team.enable_apic(0);
        for index in 1..count {
            team.send(0, index as u64, START_UP | CODE >> 12);
            team.enable_apic(index);
        }
        team
    }
}

#[test]
fn a_processor_waits_from_power_on_until_it_is_started() {
    let mut team = Team::new(2);
    assert_eq!(team.turn(1, &[], &[]), Turn::AwaitsStartUp);
    assert_eq!(team.vcpus[1].backend.entries, 0);
    team.enable_apic(0);
    team.send(0, 1, INIT);
    assert!(team.worlds[0].woken.contains(1), "the host is told");
    assert_eq!(team.turn(1, &[], &[]), Turn::AwaitsStartUp);
    team.send(0, 1, START_UP | 0x9a);
    let (guest, ram, world) = (&team.guest, &mut team.ram, &mut team.worlds[1]);
    assert_eq!(team.vcpus[1].run(guest, ram, world), Turn::SliceOver);
    assert_eq!(team.vcpus[1].backend.read(Register::Rip), 0x9_a000);
    assert_eq!(team.vcpus[1].backend.gprs().rdx, u64::from(u32::MAX), "the processor's model");
    assert!(team.vcpus[1].backend.entries > 0);
}

#[test]
fn init_stops_a_processor_in_the_middle_and_start_up_starts_it_anew() {
    let mut team = Team::started(2);
    team.send(0, 1, START_UP | 0x20);
    assert_eq!(team.turn(1, &[], &[]), Turn::SliceOver, "a start-up means nothing to one that runs");
    let inits = team.vcpus[1].backend.inits;
    team.send(0, 1, INIT);
    assert_eq!(team.turn(1, &[], &[]), Turn::AwaitsStartUp);
    assert_eq!(team.vcpus[1].backend.inits, inits + 1);
    team.send(0, 1, START_UP | 0x21);
    let (guest, ram, world) = (&team.guest, &mut team.ram, &mut team.worlds[1]);
    assert_eq!(team.vcpus[1].run(guest, ram, world), Turn::SliceOver);
    assert_eq!(team.vcpus[1].backend.read(Register::Rip), 0x2_1000);
}

#[test]
fn init_to_the_first_processor_resets_the_guest() {
    let mut team = Team::started(2);
    team.send(1, 0, INIT);
    assert_eq!(team.turn(0, &[], &[]), Turn::Stopped(StopReason::Reset));
}

#[test]
fn an_interrupt_from_another_processor_wakes_one_that_halts() {
    let mut team = Team::started(2);
    assert_eq!(team.turn(1, &[HLT], &[VmExit::Halt]), Turn::Halted { until: None });
    team.send(0, 1, 0x61);
    assert!(team.worlds[0].woken.contains(1));
    assert_eq!(team.turn(1, &[], &[]), Turn::SliceOver);
    assert_eq!(team.vcpus[1].backend.delivered, [Event::Interrupt(0x61)]);
}

#[test]
fn an_nmi_wakes_one_that_halts_with_interrupts_off() {
    let mut team = Team::started(2);
    team.vcpus[1].backend.readiness = Readiness::Masked;
    assert_eq!(team.turn(1, &[HLT], &[VmExit::Halt]), Turn::Halted { until: None });
    team.send(0, 1, 0x61);
    assert_eq!(team.turn(1, &[], &[]), Turn::Halted { until: None }, "an interrupt does not");
    team.send(0, 1, NMI);
    assert_eq!(team.turn(1, &[], &[]), Turn::SliceOver);
    assert_eq!(team.vcpus[1].backend.delivered, [Event::Nmi]);
}

#[test]
fn a_guest_has_halted_for_ever_when_nobody_is_left_to_wake_it() {
    let mut team = Team::started(3);
    team.vcpus.iter_mut().for_each(|vcpu| vcpu.backend.readiness = Readiness::Masked);
    assert_eq!(team.turn(2, &[HLT], &[VmExit::Halt]), Turn::Halted { until: None });
    assert_eq!(team.turn(0, &[HLT], &[VmExit::Halt]), Turn::Halted { until: None });
    let forever = Turn::Stopped(StopReason::HaltedForEver);
    assert_eq!(team.turn(1, &[HLT], &[VmExit::Halt]), forever);
}

#[test]
fn mail_on_its_way_keeps_the_guest_from_having_halted_for_ever() {
    let mut team = Team::started(2);
    team.vcpus.iter_mut().for_each(|vcpu| vcpu.backend.readiness = Readiness::Masked);
    assert_eq!(team.turn(1, &[HLT], &[VmExit::Halt]), Turn::Halted { until: None });
    team.send(0, 1, NMI);
    assert_eq!(team.turn(0, &[HLT], &[VmExit::Halt]), Turn::Halted { until: None });
    assert_eq!(team.turn(1, &[], &[]), Turn::SliceOver);
}

#[test]
fn a_turn_ends_when_the_host_wants_its_processor_and_goes_on_later() {
    let mut team = Team::new(1);
    assert_eq!(team.turn(0, &[], &[VmExit::Pause]), Turn::SliceOver);
    let (guest, ram, world) = (&team.guest, &mut team.ram, &mut team.worlds[0]);
    world.wants_back = false;
    team.vcpus[0].backend.script.push_back(VmExit::HostInterrupt.into());
    assert_eq!(team.vcpus[0].run(guest, ram, world), Turn::Stopped(StopReason::TripleFault));
    let counters = team.guest.counters(0).unwrap();
    assert_eq!((counters.get(ExitKind::Host), counters.get(ExitKind::Other)), (2, 2));
}

#[test]
fn a_guest_that_starts_anew_has_no_mail_no_sleepers_and_no_processor_under_way() {
    let mut team = Team::started(2);
    assert_eq!(team.turn(1, &[HLT], &[VmExit::Halt]), Turn::Halted { until: None });
    team.send(0, 1, 0x61);
    team.guest.reset(CONFIG);
    team.vcpus.iter_mut().for_each(|vcpu| vcpu.reset(&CONFIG));
    assert_eq!(team.turn(1, &[], &[]), Turn::AwaitsStartUp);
    assert!(team.vcpus[1].backend.delivered.is_empty());
}
