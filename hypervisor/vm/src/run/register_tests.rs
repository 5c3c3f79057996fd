use dolmen_arch::Gpr;
use dolmen_arch::msr;
use dolmen_arch::register::{Cr0, Cr4, Efer};
use dolmen_arch::segment::{Attributes, Segment};

use super::fake::{Exit, Scene, identity_tables};
use crate::backend::{Backend, Register};
use crate::exit::{ControlRegister, Event, VmExit};
use crate::policy::StopReason;

const RDMSR: &[u8] = &[0x0f, 0x32];
const WRMSR: &[u8] = &[0x0f, 0x30];
const MOV_CR0_RAX: &[u8] = &[0x0f, 0x22, 0xc0];
const MOV_CR3_RAX: &[u8] = &[0x0f, 0x22, 0xd8];
const MOV_CR4_RAX: &[u8] = &[0x0f, 0x22, 0xe0];
const MOV_CR8_RAX: &[u8] = &[0x44, 0x0f, 0x22, 0xc0];
const MOV_RAX_CR8: &[u8] = &[0x44, 0x0f, 0x20, 0xc0];
const XSETBV: &[u8] = &[0x0f, 0x01, 0xd1];
const GP: Event = Event::GENERAL_PROTECTION;

#[test]
fn msrs_follow_their_rules() {
    for (index, want) in [
        (msr::EFER, Some(0x500)),
        (msr::PAT, Some(msr::PAT_RESET)),
        (msr::TSC_AUX, Some(0)),
        (msr::HWCR, Some(1 << 24)),
        (msr::PATCH_LEVEL, Some(0)),
        (msr::PERF_LEGACY_FIRST, Some(0)),
        (msr::MTRR_DEF_TYPE, Some(0x806)),
        (msr::MISC_ENABLE, Some(1)),
        (msr::TSC, Some(0)),
        (msr::VM_HSAVE_PA, None),
        (0x1234_5678, None),
        (0x8ff, None), // the board has no such register
    ] {
        let mut scene = Scene::new(RDMSR);
        (scene.vcpu.backend.gprs.rax, scene.vcpu.backend.gprs.rdx) = (u64::MAX, u64::MAX);
        scene.exits(&[VmExit::ReadMsr { msr: index }]);
        let got = scene.vcpu.backend.gprs;
        let value = (scene.vcpu.backend.skipped == [2]).then_some(got.rdx << 32 | got.rax);
        assert_eq!(value, want, "{index:#x}");
        assert_eq!(scene.vcpu.backend.delivered.as_slice(), if want.is_some() { &[][..] } else { &[GP] });
    }
}

/// Writes one MSR; whether it was taken, and the scene afterwards.
fn write_msr(scene: &mut Scene, index: u32, value: u64) -> bool {
    scene.exits(&[VmExit::WriteMsr { msr: index, value }]);
    let taken = scene.vcpu.backend.skipped == [2];
    assert_eq!(taken, scene.vcpu.backend.delivered != [GP], "{index:#x} {value:#x}");
    taken
}

#[test]
fn registers_without_effect_take_any_value() {
    for value in [0, 0x0053_0076, u64::MAX] {
        assert!(write_msr(&mut Scene::new(WRMSR), msr::PERF_LEGACY_LAST, value), "{value:#x}");
        assert!(write_msr(&mut Scene::new(WRMSR), msr::MTRR_DEF_TYPE, value), "{value:#x}");
        assert_eq!(write_msr(&mut Scene::new(WRMSR), msr::MTRR_CAP, value), value == 0, "{value:#x}");
    }
}

#[test]
fn efer_takes_what_the_guest_is_offered_and_keeps_lma() {
    let long = Efer::LME | Efer::LMA;
    for (value, paged, want) in [
        ((long | Efer::SCE | Efer::NXE).bits(), true, Some((long | Efer::SCE | Efer::NXE).bits())),
        (Efer::LME.bits(), true, Some(long.bits())),
        ((long | Efer::SVME).bits(), true, None),
        (Efer::SCE.bits(), true, None),
        (Efer::SCE.bits(), false, Some((Efer::SCE | Efer::LMA).bits())),
        (long.bits() | 1 << 60, true, None),
    ] {
        let mut scene = Scene::new(WRMSR);
        if paged {
            scene.vcpu.backend.registers[2] |= Cr0::PG.bits();
            identity_tables(&mut scene);
        }
        let taken = write_msr(&mut scene, msr::EFER, value);
        assert_eq!(taken, want.is_some(), "{value:#x}");
        assert_eq!(scene.vcpu.backend.read(Register::Efer), want.unwrap_or(long.bits()), "{value:#x}");
    }
}

#[test]
fn values_that_a_processor_refuses_are_refused() {
    for (index, value, taken) in [
        (msr::PAT, 0x0606_0606_0606_0606, true),
        (msr::PAT, 2, false),
        (msr::TSC_AUX, 0xffff_ffff, true),
        (msr::TSC_AUX, 1 << 32, false),
        (msr::HWCR, 1 << 24, true),
        (msr::HWCR, 0, false),
        (msr::APIC_BASE, 0xfee0_0d00, true),
        (msr::VM_CR, 0, false),
        (0x4b56_4dff, 0, false),
    ] {
        assert_eq!(write_msr(&mut Scene::new(WRMSR), index, value), taken, "{index:#x} {value:#x}");
    }
}

/// Writes RAX to a control register by `code`; whether that was taken.
fn write_control(scene: &mut Scene, register: ControlRegister, value: u64) -> bool {
    scene.vcpu.backend.gprs.rax = value;
    scene.exits(&[VmExit::WriteControl(register)]);
    assert_eq!(scene.vcpu.backend.skipped.is_empty(), scene.vcpu.backend.delivered == [GP], "{value:#x}");
    !scene.vcpu.backend.skipped.is_empty()
}

#[test]
fn cr4_takes_what_cpuid_shows_and_nothing_impossible() {
    let pae = Cr4::PAE.bits();
    for (value, taken) in [
        (pae | (Cr4::PGE | Cr4::OSFXSR | Cr4::SMEP | Cr4::SMAP | Cr4::FSGSBASE).bits(), true),
        (pae | Cr4::PCIDE.bits(), true),
        (0, false),
        (pae | 1 << 13, false), // VMXE
        (pae | Cr4::LA57.bits(), false),
        (pae | Cr4::MCE.bits(), true),
        (pae | Cr4::PKE.bits(), false),
        (pae | 1 << 40, false),
    ] {
        let mut scene = Scene::new(MOV_CR4_RAX);
        assert_eq!(write_control(&mut scene, ControlRegister::Cr4, value), taken, "{value:#x}");
        assert_eq!(scene.vcpu.backend.read(Register::Cr4), if taken { value } else { pae });
    }
    let mut scene = Scene::new(MOV_CR4_RAX);
    assert!(write_control(&mut scene, ControlRegister::Cr4, pae | Cr4::PGE.bits()));
    assert_eq!(scene.vcpu.backend.flushes, 1, "translations follow");
    let mut scene = Scene::new(MOV_CR4_RAX);
    scene.vcpu.backend.write(Register::Cr3, 0x8001);
    assert!(!write_control(&mut scene, ControlRegister::Cr4, pae | Cr4::PCIDE.bits()));
}

#[test]
fn cr0_switches_long_mode_as_the_manual_says() {
    let base = Cr0::PE | Cr0::ET;
    for (efer, code, from, to, want) in [
        (Efer::LME, Attributes::CODE32, base, base | Cr0::PG, Some(Efer::LME | Efer::LMA)),
        (Efer::empty(), Attributes::CODE32, base, base | Cr0::PG, Some(Efer::empty())),
        (Efer::LME, Attributes::CODE64, base, base | Cr0::PG, None), // CS.L before long mode
        (Efer::LME | Efer::LMA, Attributes::CODE32, base | Cr0::PG, base, Some(Efer::LME)),
        (Efer::LME | Efer::LMA, Attributes::CODE64, base | Cr0::PG, base, None),
        (Efer::LME | Efer::LMA, Attributes::CODE64, base | Cr0::PG, base | Cr0::PG | Cr0::NW, None),
        (
            Efer::LME | Efer::LMA,
            Attributes::CODE64,
            base | Cr0::PG,
            base | Cr0::PG | Cr0::WP,
            Some(Efer::LME | Efer::LMA),
        ),
    ] {
        let mut scene = Scene::new(MOV_CR0_RAX);
        identity_tables(&mut scene);
        scene.vcpu.backend.write(Register::Cr0, from.bits());
        scene.vcpu.backend.write(Register::Efer, efer.bits());
        scene.vcpu.backend.segments[1] = Segment::flat(8, code);
        let taken = write_control(&mut scene, ControlRegister::Cr0, to.bits());
        assert_eq!(taken, want.is_some(), "{efer:?} {code:?} {to:?}");
        assert_eq!(scene.vcpu.backend.read(Register::Cr0), if taken { to } else { from }.bits());
        assert_eq!(scene.vcpu.backend.read(Register::Efer), want.unwrap_or(efer).bits());
    }
}

#[test]
fn lmsw_cannot_clear_pe() {
    let mut scene = Scene::new(&[0x0f, 0x01, 0xf0]);
    scene.vcpu.backend.gprs.rax = 0xffff_ffff_ffff_0008;
    scene.exits(&[VmExit::WriteControl(ControlRegister::Cr0)]);
    assert_eq!(scene.vcpu.backend.read(Register::Cr0), (Cr0::PE | Cr0::ET | Cr0::TS).bits());
}

#[test]
fn forms_of_control_writes_that_are_not_emulated_are_no_instruction() {
    let mut scene = Scene::new(&[0x0f, 0x06]); // CLTS does not exit here
    scene.exits(&[VmExit::WriteControl(ControlRegister::Cr0)]);
    assert_eq!(scene.vcpu.backend.delivered, [Event::INVALID_OPCODE]);
}

#[test]
fn cr8_is_the_boards_task_priority() {
    let mut scene = Scene::new(MOV_CR8_RAX);
    assert!(write_control(&mut scene, ControlRegister::Cr8, 5));
    assert_eq!(scene.vcpu.devices.cr8(), 5);
    let mut scene = Scene::new(MOV_CR8_RAX);
    assert!(!write_control(&mut scene, ControlRegister::Cr8, 16));
    let mut scene = Scene::new(MOV_RAX_CR8);
    scene.vcpu.devices.set_cr8(7);
    scene.vcpu.backend.gprs.rax = u64::MAX;
    scene.exits(&[VmExit::ReadControl(ControlRegister::Cr8)]);
    assert_eq!((scene.vcpu.backend.gprs.read(Gpr::Rax), &scene.vcpu.backend.skipped[..]), (7, &[4][..]));
}

#[test]
fn xcr0_takes_what_cpuid_shows() {
    for (cpl, index, value, taken) in [
        (0, 0, 1, true),
        (0, 0, 3, true),
        (0, 0, 7, true),
        (0, 0, 0, false),
        (0, 0, 5, false),
        (0, 0, 0x201, false),
        (0, 1, 1, false),
        (3, 0, 1, false),
    ] {
        let mut scene = Scene::new(XSETBV);
        scene.vcpu.backend.cpl = cpl;
        scene.exits(&[VmExit::WriteXcr { index, value }]);
        assert_eq!(scene.vcpu.backend.skipped == [3], taken, "{index} {value:#x}");
        assert_eq!(scene.vcpu.backend.read(Register::Xcr0), if taken { value } else { 1 });
    }
}

#[test]
fn a_reserved_bit_that_ends_the_guests_turn_is_a_fault_and_not_its_end() {
    for (code, want) in [
        (MOV_CR3_RAX, StopReason::TripleFault),
        (MOV_CR4_RAX, StopReason::TripleFault),
        (&[0x90][..], StopReason::InvalidState),
    ] {
        let mut scene = Scene::new(code);
        assert_eq!(scene.exits(&[VmExit::InvalidState]), want);
        assert_eq!(scene.vcpu.backend.delivered == [GP], want == StopReason::TripleFault);
    }
}

#[test]
fn a_state_that_stays_invalid_stops_the_guest_whatever_its_next_instruction_is() {
    let mut scene = Scene::new(MOV_CR3_RAX);
    let refused = Exit { exit: VmExit::InvalidState, interrupted: Some(GP) };
    scene.vcpu.backend.script.extend([VmExit::InvalidState.into(), refused, refused, refused]);
    assert_eq!(scene.run(), StopReason::InvalidState);
    assert_eq!(scene.vcpu.backend.entries, 2, "it is not tried again and again");
}
