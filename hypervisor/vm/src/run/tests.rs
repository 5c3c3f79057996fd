use dolmen_arch::Gpr;
use dolmen_arch::instruction;
use dolmen_arch::register::Efer;
use dolmen_arch::segment::{Attributes, Segment};
use dolmen_memory::Gpa;
use proptest::prelude::*;

use super::fake::{CODE, Exit, Scene, WAIT};
use crate::backend::{Backend, Readiness, Register};
use crate::bus::{Delivery, Destination, Message};
use crate::exit::{ControlRegister, Direction, Event, FaultAccess, PortAccess, Vector, VmExit, Width};
use crate::policy::StopReason;

const CPUID: &[u8] = &[0x0f, 0xa2];
const HLT: &[u8] = &[0xf4];
const VMMCALL: &[u8] = &[0x0f, 0x01, 0xd9];
const GP: Event = Event::GENERAL_PROTECTION;

#[test]
fn cpuid_is_answered_and_stepped_over() {
    let mut scene = Scene::new(CPUID);
    scene.vcpu.backend.gprs.rax = u64::MAX;
    let stop = scene.exits(&[VmExit::Cpuid { leaf: 0x4000_0000, subleaf: 0 }]);
    assert_eq!(stop, StopReason::TripleFault);
    assert_eq!(scene.vcpu.backend.skipped, [2]);
    assert_eq!(scene.vcpu.backend.gprs.rax, 0x4000_0001, "the upper half is cleared");
    assert_eq!(scene.vcpu.backend.gprs.rbx as u32, u32::from_le_bytes(*b"Dolm"));
}

#[test]
fn a_processor_that_tells_lengths_is_believed() {
    let mut scene = Scene::new(&[0x90]);
    scene.vcpu.backend.length = Some(7);
    scene.exits(&[VmExit::Cpuid { leaf: 0, subleaf: 0 }]);
    assert_eq!(scene.vcpu.backend.skipped, [7]);
}

#[test]
fn other_bytes_than_those_that_exited_are_run_again() {
    let mut scene = Scene::new(&[0x90, 0x90]);
    scene.vcpu.backend.gprs.rax = 77;
    scene.exits(&[VmExit::Cpuid { leaf: 0, subleaf: 0 }, VmExit::Hypercall, VmExit::Halt]);
    assert!(scene.vcpu.backend.skipped.is_empty());
    assert_eq!(scene.vcpu.backend.gprs.rax, 77);
    assert_eq!(scene.vcpu.backend.flushes, 3, "a stale translation is dropped");
    assert!(scene.world.calls.is_empty());
}

#[test]
fn a_halted_guest_wakes_with_its_timer() {
    let mut scene = Scene::new(HLT);
    scene.enable_apic();
    scene.write_register(0x832, 0x40); // one-shot, vector 40h
    scene.write_register(0x83e, 0b1011);
    scene.write_register(0x838, 3_000_000);
    scene.exits(&[VmExit::Halt]);
    assert_eq!(scene.vcpu.backend.skipped, [1]);
    assert!(scene.world.waits >= 1 && scene.world.now >= WAIT, "time passed");
    assert_eq!(scene.vcpu.backend.delivered, [Event::Interrupt(0x40)]);
    assert!(scene.world.deadlines.iter().any(Option::is_some), "the host knew when");
}

/// A guest that has the interval timer tick every 10 ms as interrupt 30h.
fn ticking() -> Scene {
    let mut scene = Scene::new(&[0xf4]);
    scene.enable_apic();
    scene.vcpu.backend.length = Some(1);
    for (register, value) in [(0x11, 0), (0x10, 0x30)] {
        let mut wires = scene.guest.bus().wires();
        for (offset, value) in [(0, register), (0x10, value)] {
            let at = Gpa::new(crate::layout::IO_APIC_BASE + offset);
            assert!(scene.guest.board().mmio_write(at, 4, value, &mut wires).is_some());
        }
    }
    for (port, byte) in [(0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e)] {
        scene.vcpu.backend.gprs.rax = byte;
        let access = PortAccess { port, width: Width::Byte, direction: Direction::Out, string: false };
        scene.exits(&[VmExit::Port(access)]);
    }
    scene
}

#[test]
fn the_interval_timer_wakes_the_processor_that_programmed_it() {
    let mut scene = ticking();
    scene.exits(&[VmExit::Halt, VmExit::Pause]);
    assert_eq!(scene.vcpu.backend.delivered, [Event::Interrupt(0x30)]);
    assert_eq!(scene.world.waits, 11, "10 ms and less than a millisecond more");
}

#[test]
fn the_host_hears_of_the_interval_timer_before_the_next_entry() {
    let mut scene = ticking();
    let access = |port| {
        VmExit::Port(PortAccess { port, width: Width::Byte, direction: Direction::Out, string: false })
    };
    let before = scene.world.deadlines.len();
    // The same count anew, a while later, in one turn.
    scene.world.now += 1_000_000;
    scene.vcpu.backend.gprs.rax = 0x34;
    scene.exits(&[access(0x43), access(0x40), access(0x40), VmExit::Pause]);
    let due = scene.vcpu.devices.next_deadline();
    assert!(due.is_some() && scene.world.deadlines[before..].contains(&due), "the host was not told");
}

#[test]
fn the_interval_timer_ticks_a_running_guest_by_the_hosts_interrupt() {
    let mut scene = ticking();
    let due = scene.vcpu.devices.next_deadline().unwrap();
    scene.exits(&[VmExit::HostInterrupt, VmExit::Pause]);
    assert_eq!((scene.world.deadlines.last(), scene.vcpu.backend.delivered.len()), (Some(&Some(due)), 0));
    scene.world.now = due;
    scene.exits(&[VmExit::HostInterrupt, VmExit::Pause]);
    assert_eq!(scene.vcpu.backend.delivered, [Event::Interrupt(0x30)]);
    assert!(scene.vcpu.devices.next_deadline().unwrap() > due);
}

#[test]
fn a_guest_that_nothing_can_wake_stops() {
    let mut scene = Scene::new(HLT);
    scene.vcpu.backend.readiness = Readiness::Masked;
    assert_eq!(scene.exits(&[VmExit::Halt]), StopReason::HaltedForEver);
}

#[test]
fn console_input_wakes_a_halted_guest() {
    let mut scene = Scene::new(HLT);
    scene.enable_apic();
    // I/O APIC pin 4 to vector 34h; the UART's receive interrupt on.
    for (gpa, value) in [(0xfec0_0000u64, 0x18u64), (0xfec0_0010, 0x34)] {
        let effect = scene.guest.board().mmio_write(Gpa::new(gpa), 4, value, &mut scene.guest.bus().wires());
        assert_eq!(effect, Some(crate::board::Effect::None));
    }
    for (number, value) in [(0x3f9, 1), (0x3fc, 8)] {
        assert_eq!(
            scene.guest.board().port_write(number, 1, value, 0, &mut scene.guest.bus().wires()),
            crate::board::Effect::None
        );
    }
    scene.world.input.push_back(b'x');
    scene.exits(&[VmExit::Halt]);
    assert_eq!(scene.vcpu.backend.delivered, [Event::Interrupt(0x34)]);
}

#[test]
fn an_interrupt_is_offered_as_the_guest_can_take_it() {
    for (readiness, delivered, windows) in [
        (Readiness::Ready, &[Event::Interrupt(0x41)][..], 0),
        (Readiness::Masked, &[], 2),
        (Readiness::Shadowed, &[], 2),
    ] {
        let mut scene = Scene::new(&[]);
        scene.raise(0x41);
        scene.vcpu.backend.readiness = readiness;
        scene.exits(&[VmExit::Pause]);
        assert_eq!(scene.vcpu.backend.delivered, delivered, "{readiness:?}");
        assert_eq!(scene.vcpu.backend.windows, windows, "{readiness:?}");
    }
}

#[test]
fn an_interrupt_waits_behind_an_exception() {
    let mut scene = Scene::new(&[]);
    scene.vcpu.backend.script.push_back(VmExit::Virtualisation.into());
    scene.vcpu.backend.script.push_back(VmExit::InterruptWindow.into());
    scene.raise(0x41);
    scene.vcpu.backend.readiness = Readiness::Masked;
    scene.run();
    assert_eq!(scene.vcpu.backend.delivered, [Event::INVALID_OPCODE]);
    assert_eq!(scene.vcpu.backend.windows, 3);
}

#[test]
fn an_nmi_needs_no_if() {
    let mut scene = Scene::new(&[]);
    scene.enable_apic();
    let to_all =
        Message { delivery: Delivery::Nmi, vector: 0, level_triggered: false, destination: Destination::All };
    assert!(scene.guest.bus().send(to_all, Some(0)).is_empty());
    scene.vcpu.backend.readiness = Readiness::Masked;
    scene.exits(&[VmExit::Pause]);
    assert_eq!(scene.vcpu.backend.delivered, [Event::Nmi]);
}

#[test]
fn a_delivery_cut_short_is_repeated_unless_the_guest_repeats_it_itself() {
    let breakpoint = Event::Exception { vector: Vector::BP, error_code: 0 };
    for (event, repeated) in [
        (Event::Interrupt(0x50), true),
        (Event::Nmi, true),
        (GP, true),
        (Event::SoftwareInterrupt(0x80), false),
        (breakpoint, false),
    ] {
        let mut scene = Scene::new(&[]);
        let exit = Exit { exit: VmExit::HostInterrupt, interrupted: Some(event) };
        scene.vcpu.backend.script.push_back(exit);
        scene.run();
        assert_eq!(scene.vcpu.backend.delivered == [event], repeated, "{event:?}");
        assert_eq!(scene.world.interrupts, 1);
    }
}

#[test]
fn delivery_through_device_memory_stops_the_guest() {
    let mut scene = Scene::new(&[]);
    let gpa = Gpa::new(0xfee0_0000);
    let exit = VmExit::NestedFault { gpa, access: FaultAccess::Write };
    scene.vcpu.backend.script.push_back(Exit { exit, interrupted: Some(Event::Interrupt(0x50)) });
    assert_eq!(scene.run(), StopReason::TablesOutsideRam(gpa));
}

#[test]
fn exceptions_that_exit_reach_the_guest() {
    let mut scene = Scene::new(&[]);
    scene.exits(&[
        VmExit::Exception { vector: Vector::PF, error_code: 2, address: 0x1234 },
        VmExit::Exception { vector: Vector::DB, error_code: 0, address: 0x99 },
    ]);
    assert_eq!(
        scene.vcpu.backend.delivered,
        [
            Event::Exception { vector: Vector::PF, error_code: 2 },
            Event::Exception { vector: Vector::DB, error_code: 0 }
        ]
    );
    assert_eq!(scene.vcpu.backend.read(Register::Cr2), 0x1234);
}

#[test]
fn hypercalls_tell_who_asks() {
    for (cpl, attributes, privileged) in
        [(0, Attributes::CODE64, true), (3, Attributes::CODE64, false), (0, Attributes::CODE32, false)]
    {
        let mut scene = Scene::new(VMMCALL);
        scene.vcpu.backend.cpl = cpl;
        scene.vcpu.backend.segments[1] = Segment::flat(8, attributes);
        scene.vcpu.backend.gprs.rax = 0xffff_ffff_444c_0007;
        scene.vcpu.backend.gprs.rdi = 1;
        scene.exits(&[VmExit::Hypercall]);
        let (number, args, asked) = scene.world.calls[0];
        assert_eq!((number, args.rdi, asked), (0x444c_0007, 1, privileged));
        assert_eq!((scene.vcpu.backend.gprs.rax, scene.vcpu.backend.gprs.rdx), (0x1234, 0x5678));
        assert_eq!(scene.vcpu.backend.skipped, [3]);
    }
}

#[test]
fn numbers_of_other_hypervisors_are_answered_without_the_service() {
    for number in [0u64, 1, 0xffff_ffff_0000_0007, 0x444b_ffff, 0x444d_0000] {
        let mut scene = Scene::new(VMMCALL);
        (scene.vcpu.backend.gprs.rax, scene.vcpu.backend.gprs.rdx) = (number, 0x99);
        scene.exits(&[VmExit::Hypercall]);
        assert!(scene.world.calls.is_empty(), "{number:#x}");
        let gprs = &scene.vcpu.backend.gprs;
        assert_eq!((gprs.rax.cast_signed(), gprs.rdx), (-1000, 0x99), "{number:#x}");
        assert_eq!(scene.vcpu.backend.skipped, [3]);
    }
}

#[test]
fn caches_are_no_business_of_the_guests() {
    for code in [&[0x0f, 0x09][..], &[0x0f, 0x08]] {
        let mut scene = Scene::new(code);
        scene.exits(&[VmExit::CacheFlush]);
        assert_eq!(scene.vcpu.backend.skipped, [2]);
    }
}

#[test]
fn a_device_is_read_by_the_instruction_at_rip() {
    let gpa = Gpa::new(0xfee0_0030);
    let mut scene = Scene::new(&[0x8b, 0x07]); // mov eax, [rdi]
    scene.vcpu.backend.gprs.rax = u64::MAX;
    scene.exits(&[VmExit::NestedFault { gpa, access: FaultAccess::Read }]);
    assert_eq!(scene.vcpu.backend.skipped, [2]);
    assert_ne!(scene.vcpu.backend.gprs.rax, u64::MAX, "the APIC's version");
    let mut scene = Scene::new(&[0x8b, 0x07]);
    let nobody = Gpa::new(0xfed4_0000);
    scene.exits(&[VmExit::NestedFault { gpa: nobody, access: FaultAccess::Read }]);
    assert_eq!(scene.vcpu.backend.gprs.rax, 0xffff_ffff, "the TPM's page is nobody's");
}

#[test]
fn an_instruction_that_is_not_emulated_is_named() {
    let gpa = Gpa::new(0xfee0_0030);
    let mut scene = Scene::new(&[0x0f, 0x0b, 0xaa]);
    let stop = scene.exits(&[VmExit::NestedFault { gpa, access: FaultAccess::Write }]);
    let mut bytes = [0; instruction::MAX_LENGTH];
    bytes[..3].copy_from_slice(&[0x0f, 0x0b, 0xaa]);
    assert_eq!(stop, StopReason::UnknownInstruction { gpa, bytes });
}

#[test]
fn what_cannot_go_on_stops_with_its_reason() {
    let gpa = Gpa::new(0xd000_0000);
    for (exit, want) in [
        (VmExit::Shutdown, StopReason::TripleFault),
        (VmExit::Unknown { code: 0x999 }, StopReason::UnexpectedExit(0x999)),
        (VmExit::NestedFault { gpa, access: FaultAccess::TableWalk }, StopReason::TablesOutsideRam(gpa)),
        (VmExit::Exception { vector: Vector::MC, error_code: 0, address: 0 }, StopReason::MachineCheck),
    ] {
        assert_eq!(Scene::new(&[]).exits(&[exit]), want);
    }
}

#[test]
fn the_host_is_asked_once_for_each_deadline() {
    let mut scene = Scene::new(&[]);
    scene.enable_apic();
    scene.write_register(0x832, 0x40);
    scene.write_register(0x838, 1_000_000);
    scene.exits(&[VmExit::Pause, VmExit::Pause, VmExit::Pause]);
    assert_eq!(scene.world.deadlines.len(), 1);
}

fn any_exit() -> impl Strategy<Value = VmExit> {
    let width = prop_oneof![Just(Width::Byte), Just(Width::Word), Just(Width::Double)];
    let direction = prop_oneof![Just(Direction::In), Just(Direction::Out)];
    let control = prop_oneof![
        Just(ControlRegister::Cr0),
        Just(ControlRegister::Cr3),
        Just(ControlRegister::Cr4),
        Just(ControlRegister::Cr8)
    ];
    let access = prop_oneof![
        Just(FaultAccess::Read),
        Just(FaultAccess::Write),
        Just(FaultAccess::Fetch),
        Just(FaultAccess::TableWalk)
    ];
    prop_oneof![
        (any::<u32>(), any::<u32>()).prop_map(|(leaf, subleaf)| VmExit::Cpuid { leaf, subleaf }),
        any::<u32>().prop_map(|msr| VmExit::ReadMsr { msr }),
        (prop_oneof![any::<u32>(), 0x800..0x840u32], any::<u64>())
            .prop_map(|(msr, value)| VmExit::WriteMsr { msr, value }),
        (any::<u16>(), width, direction, any::<bool>()).prop_map(|(port, width, direction, string)| {
            VmExit::Port(PortAccess { port, width, direction, string })
        }),
        control.clone().prop_map(VmExit::WriteControl),
        control.prop_map(VmExit::ReadControl),
        (any::<u64>(), access).prop_map(|(gpa, access)| VmExit::NestedFault { gpa: Gpa::new(gpa), access }),
        (0..2u32, any::<u64>()).prop_map(|(index, value)| VmExit::WriteXcr { index, value }),
        Just(VmExit::Hypercall),
        Just(VmExit::HostInterrupt),
        Just(VmExit::Virtualisation),
        Just(VmExit::InvalidState),
        Just(VmExit::CacheFlush),
    ]
}

proptest! {
    #[test]
    #[cfg_attr(miri, ignore = "takes too long in the interpreter")]
    fn no_guest_makes_the_loop_panic_or_run_for_ever(
        exits in prop::collection::vec(any_exit(), 1..40),
        code in prop::collection::vec(any::<u8>(), 0..64),
        gprs in any::<[u64; 16]>(),
        registers in any::<[u64; 4]>(),
        (attributes, cpl, length) in (any::<u16>(), 0..4u8, prop::option::of(0..20u64)),
    ) {
        let mut scene = Scene::new(&code);
        for (number, value) in (0..16).zip(gprs) {
            scene.vcpu.backend.gprs.write(Gpr::from_encoding(number), value);
        }
        let [rip, cr0, cr3, efer] = registers;
        scene.vcpu.backend.write(Register::Rip, CODE + rip % 80);
        scene.vcpu.backend.write(Register::Cr0, cr0);
        scene.vcpu.backend.write(Register::Cr3, cr3 & 0xf_ffff);
        scene.vcpu.backend.write(Register::Efer, efer);
        scene.vcpu.backend.segments[1].attributes = attributes;
        scene.vcpu.backend.cpl = cpl;
        scene.vcpu.backend.length = length;
        let most = exits.len() + 1;
        scene.exits(&exits);
        prop_assert!(scene.vcpu.backend.entries <= most);
        let kept = scene.vcpu.backend.read(Register::Efer) ^ efer;
        prop_assert_eq!(kept & Efer::SVME.bits(), 0, "no exit gives the guest SVM");
    }
}
