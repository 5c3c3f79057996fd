//! From exit codes to [`VmExit`]: the border that vendor words do not cross.

use dolmen_memory::Gpa;

use super::exit_code::ExitCode;
use super::vmcb::Vmcb;
use crate::bits::{edx_eax, low8, low16, low32};
use crate::event::{Event, Vector};
use crate::exit::{ControlRegister, Direction, FaultAccess, PortAccess, VmExit, Width};
use crate::gpr::Gprs;
use crate::instruction::InstructionLength;

/// Translates the exit that `vmcb` holds; `gprs` are the guest's registers, RAX included.
#[inline(always)]
pub fn decode(vmcb: &Vmcb, gprs: &Gprs) -> VmExit {
    let control = &vmcb.control;
    match control.exit_code() {
        ExitCode::INTR => VmExit::HostInterrupt,
        ExitCode::NMI => VmExit::HostNmi,
        ExitCode::SMI => VmExit::HostSmi,
        ExitCode::INIT => VmExit::HostInit,
        ExitCode::VINTR => VmExit::InterruptWindow,
        ExitCode::CPUID => VmExit::Cpuid { leaf: low32(gprs.rax), subleaf: low32(gprs.rcx) },
        ExitCode::MSR if control.exit_info1() & 1 == 0 => VmExit::ReadMsr { msr: low32(gprs.rcx) },
        ExitCode::MSR => VmExit::WriteMsr { msr: low32(gprs.rcx), value: edx_eax(gprs.rdx, gprs.rax) },
        ExitCode::IOIO => port(control.exit_info1()),
        ExitCode::HLT => VmExit::Halt,
        ExitCode::IRET => VmExit::NmiReturn,
        ExitCode::CR0_SELECTIVE_WRITE => VmExit::WriteControl(ControlRegister::Cr0),
        ExitCode::WRITE_CR4 => VmExit::WriteControl(ControlRegister::Cr4),
        ExitCode::WRITE_CR8 => VmExit::WriteControl(ControlRegister::Cr8),
        ExitCode::READ_CR8 => VmExit::ReadControl(ControlRegister::Cr8),
        ExitCode::XSETBV => VmExit::WriteXcr { index: low32(gprs.rcx), value: edx_eax(gprs.rdx, gprs.rax) },
        ExitCode::VMMCALL => VmExit::Hypercall,
        ExitCode::VMRUN
        | ExitCode::VMLOAD
        | ExitCode::VMSAVE
        | ExitCode::STGI
        | ExitCode::CLGI
        | ExitCode::SKINIT
        | ExitCode::INVLPGA
        | ExitCode::INVLPGB
        | ExitCode::INVLPGB_ILLEGAL
        | ExitCode::TLBSYNC => VmExit::Virtualisation,
        ExitCode::MONITOR
        | ExitCode::MWAIT
        | ExitCode::MWAIT_ARMED
        | ExitCode::RDPRU
        | ExitCode::RSM
        | ExitCode::MCOMMIT => VmExit::HiddenFeature,
        ExitCode::INVD | ExitCode::WBINVD => VmExit::CacheFlush,
        ExitCode::RDPMC => VmExit::ReadCounter,
        ExitCode::PAUSE => VmExit::Pause,
        ExitCode::NPF => nested_fault(control.exit_info1(), control.exit_info2()),
        ExitCode::SHUTDOWN => VmExit::Shutdown,
        ExitCode::INVALID => VmExit::InvalidState,
        ExitCode(code @ ExitCode::EXCEPTION_FIRST..=ExitCode::EXCEPTION_LAST) => VmExit::Exception {
            vector: Vector(low8(u64::from(code.wrapping_sub(ExitCode::EXCEPTION_FIRST)))),
            error_code: low32(control.exit_info1()),
            address: control.exit_info2(),
        },
        ExitCode(code) => VmExit::Unknown { code: u64::from(code) },
    }
}

/// The event whose delivery the exit cut short: it must be injected again unless the exit ends the guest.
pub fn pending_event(vmcb: &Vmcb) -> Option<Event> {
    vmcb.control.interrupted_event()
}

/// The length of the exiting instruction where the processor tells it: always for ports (APM vol. 2,
/// 15.10.2), for others with next-RIP save (15.7.1), which `has_next_rip` says.
pub fn instruction_length(vmcb: &Vmcb, has_next_rip: bool) -> Option<InstructionLength> {
    let next = if vmcb.control.exit_code() == ExitCode::IOIO {
        vmcb.control.exit_info2()
    } else if has_next_rip {
        vmcb.control.next_rip()
    } else {
        return None;
    };
    InstructionLength::new(next.wrapping_sub(vmcb.save().rip))
}

/// APM vol. 2, 15.10.2.
fn port(info: u64) -> VmExit {
    let width = match (info >> 4) & 7 {
        1 => Width::Byte,
        2 => Width::Word,
        4 => Width::Double,
        _ => return VmExit::Unknown { code: u64::from(ExitCode::IOIO.0) },
    };
    let direction = if info & 1 == 0 { Direction::Out } else { Direction::In };
    VmExit::Port(PortAccess { port: low16(info >> 16), width, direction, string: info & 4 != 0 })
}

/// APM vol. 2, 15.25.6: bit 1 write, bit 4 fetch, bit 33 walk of the guest's own tables.
fn nested_fault(info: u64, address: u64) -> VmExit {
    let access = if info >> 33 & 1 != 0 {
        FaultAccess::TableWalk
    } else if info & 0x10 != 0 {
        FaultAccess::Fetch
    } else if info & 2 != 0 {
        FaultAccess::Write
    } else {
        FaultAccess::Read
    };
    VmExit::NestedFault { gpa: Gpa::new(address), access }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::svm::{Clean, ControlArea};
    use zerocopy::FromZeros;

    fn exited(code: u64, info1: u64, info2: u64) -> Vmcb {
        let mut vmcb = Vmcb::new_zeroed();
        vmcb.control = ControlArea::exited(code, info1, info2);
        vmcb
    }

    const GPRS: Gprs = Gprs {
        rax: 0xffff_ffff_0000_0001,
        rcx: 0xffff_ffff_c000_0080,
        rdx: 0xffff_ffff_0000_0002,
        rbx: 0,
        rsp: 0,
        rbp: 0,
        rsi: 0,
        rdi: 0,
        r8: 0,
        r9: 0,
        r10: 0,
        r11: 0,
        r12: 0,
        r13: 0,
        r14: 0,
        r15: 0,
    };

    #[test]
    fn every_exit_code_we_ask_for_has_its_neutral_word() {
        let port =
            |port, width, direction, string| VmExit::Port(PortAccess { port, width, direction, string });
        let fault = |gpa, access| VmExit::NestedFault { gpa: Gpa::new(gpa), access };
        for (code, info1, info2, want) in [
            (0x60, 0, 0, VmExit::HostInterrupt),
            (0x61, 0, 0, VmExit::HostNmi),
            (0x62, 0, 0, VmExit::HostSmi),
            (0x63, 0, 0, VmExit::HostInit),
            (0x64, 0, 0, VmExit::InterruptWindow),
            (0x72, 0, 0, VmExit::Cpuid { leaf: 1, subleaf: 0xc000_0080 }),
            (0x7c, 0, 0, VmExit::ReadMsr { msr: 0xc000_0080 }),
            (0x7c, 1, 0, VmExit::WriteMsr { msr: 0xc000_0080, value: 0x2_0000_0001 }),
            (0x7b, 0x03f8_0010, 2, port(0x3f8, Width::Byte, Direction::Out, false)),
            (0x7b, 0x0cf8_0041, 2, port(0xcf8, Width::Double, Direction::In, false)),
            (0x7b, 0x01f0_002d, 2, port(0x1f0, Width::Word, Direction::In, true)),
            (0x78, 0, 0, VmExit::Halt),
            (0x74, 0, 0, VmExit::NmiReturn),
            (0x65, 0, 0, VmExit::WriteControl(ControlRegister::Cr0)),
            (0x14, 0, 0, VmExit::WriteControl(ControlRegister::Cr4)),
            (0x18, 0, 0, VmExit::WriteControl(ControlRegister::Cr8)),
            (0x08, 0, 0, VmExit::ReadControl(ControlRegister::Cr8)),
            (0x8d, 0, 0, VmExit::WriteXcr { index: 0xc000_0080, value: 0x2_0000_0001 }),
            (0x81, 0, 0, VmExit::Hypercall),
            (0x89, 0, 0, VmExit::CacheFlush),
            (0x76, 0, 0, VmExit::CacheFlush),
            (0x6f, 0, 0, VmExit::ReadCounter),
            (0x77, 0, 0, VmExit::Pause),
            (0x7f, 0, 0, VmExit::Shutdown),
            (0x400, 1 << 32 | 4, 0xfee0_0020, fault(0xfee0_0020, FaultAccess::Read)),
            (0x400, 1 << 32 | 6, 0xfee0_0020, fault(0xfee0_0020, FaultAccess::Write)),
            (0x400, 1 << 32 | 0x14, 0xfee0_0020, fault(0xfee0_0020, FaultAccess::Fetch)),
            (0x400, 1 << 33 | 6, 0xfed4_0000, fault(0xfed4_0000, FaultAccess::TableWalk)),
            (0x41, 0, 0, VmExit::Exception { vector: Vector::DB, error_code: 0, address: 0 }),
            (0x4e, 2, 0x1000, VmExit::Exception { vector: Vector::PF, error_code: 2, address: 0x1000 }),
            (0x999, 0, 0, VmExit::Unknown { code: 0x999 }),
        ] {
            assert_eq!(decode(&exited(code, info1, info2), &GPRS), want, "{code:#x}");
        }
    }

    #[test]
    fn all_instructions_of_the_extension_decode_alike() {
        for code in [0x80, 0x82, 0x83, 0x84, 0x85, 0x86, 0x7a, 0xa0, 0xa1, 0xa4] {
            assert_eq!(decode(&exited(code, 0, 0), &GPRS), VmExit::Virtualisation, "{code:#x}");
        }
        for code in [0x73, 0x8a, 0x8b, 0x8c, 0x8e, 0xa3] {
            assert_eq!(decode(&exited(code, 0, 0), &GPRS), VmExit::HiddenFeature, "{code:#x}");
        }
    }

    #[test]
    fn minus_one_is_invalid_state_in_32_bits_and_in_64() {
        for code in [0xffff_ffff, u64::MAX] {
            assert_eq!(decode(&exited(code, 0, 0), &GPRS), VmExit::InvalidState, "{code:#x}");
        }
    }

    #[test]
    fn a_port_width_that_does_not_exist_is_unknown_not_guessed() {
        assert_eq!(decode(&exited(0x7b, 0x03f8_0000, 2), &GPRS), VmExit::Unknown { code: 0x7b });
    }

    #[test]
    fn lengths_come_from_the_processor_only_where_it_gives_them() {
        let mut vmcb = exited(0x7b, 0x10, 0x1002);
        vmcb.save_mut(Clean::CRX).rip = 0x1000;
        assert_eq!(instruction_length(&vmcb, false), InstructionLength::new(2));
        vmcb.control = ControlArea::exited(0x72, 0, 0x1002).with(0, 0x1003);
        assert_eq!(instruction_length(&vmcb, false), None);
        assert_eq!(instruction_length(&vmcb, true), InstructionLength::new(3));
        vmcb.control = ControlArea::exited(0x72, 0, 0).with(0, 0);
        assert_eq!(instruction_length(&vmcb, true), None, "a stale field is not believed");
    }

    #[test]
    fn a_delivery_cut_short_is_told() {
        let mut vmcb = exited(0x400, 0, 0);
        assert_eq!(pending_event(&vmcb), None);
        vmcb.control = vmcb.control.with(0x8000_0041, 0);
        assert_eq!(pending_event(&vmcb), Some(Event::Interrupt(0x41)));
    }
}
