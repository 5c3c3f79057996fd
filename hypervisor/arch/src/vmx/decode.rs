//! From exit reasons to [`VmExit`]: the border that vendor words do not cross.

use dolmen_memory::Gpa;

use super::event::Injection;
use super::exit_reason::ExitReason;
use crate::bits::{edx_eax, low8, low16, low32};
use crate::event::{Event, Vector};
use crate::exit::{ControlRegister, Direction, FaultAccess, PortAccess, VmExit, Width};
use crate::gpr::Gprs;
use crate::instruction::InstructionLength;

/// What the processor says of an exit (SDM vol. 3C, 25.9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitInformation {
    /// Exit reason, raw.
    pub reason: u32,
    /// Exit qualification.
    pub qualification: u64,
    /// Guest-physical address, of an EPT violation.
    pub address: u64,
    /// The exception or NMI that exited, of reason 0.
    pub interruption: Injection,
    /// What was being delivered.
    pub vectoring: Injection,
    /// Length of the instruction that exited.
    pub length: u32,
}

impl ExitInformation {
    /// Bit 31 of the reason: the entry failed.
    const ENTRY_FAILED: u32 = 1 << 31;

    /// The basic reason.
    pub const fn basic(&self) -> ExitReason {
        ExitReason::from_raw(self.reason)
    }

    /// Whether the exit took the blocking of NMIs away that IRET had begun to end (27.2.3): it must be put back.
    pub const fn unblocked_nmi(&self) -> bool {
        const BY_IRET: u32 = 1 << 12;
        #[expect(clippy::as_conversions, reason = "u32 to u64 in a constant function")]
        const WIDE: u64 = BY_IRET as u64;
        let is_delivering = self.vectoring.information >> 31 != 0;
        match self.basic() {
            ExitReason::EPT_VIOLATION => !is_delivering && self.qualification & WIDE != 0,
            ExitReason::EXCEPTION_OR_NMI => {
                const DOUBLE_FAULT: u32 = 8;
                let is_double = self.interruption.information & 0xff == DOUBLE_FAULT;
                !is_delivering && !is_double && self.interruption.information & BY_IRET != 0
            }
            _ => false,
        }
    }
}

/// Translates an exit; `gprs` are the guest's registers, RAX included.
pub fn decode(exit: &ExitInformation, gprs: &Gprs) -> VmExit {
    if exit.reason & ExitInformation::ENTRY_FAILED != 0 {
        return VmExit::InvalidState;
    }
    match exit.basic() {
        ExitReason::EXCEPTION_OR_NMI => interruption(exit),
        // Whatever waits for the host is looked for then.
        ExitReason::EXTERNAL_INTERRUPT | ExitReason::PREEMPTION_TIMER => VmExit::HostInterrupt,
        ExitReason::IO_SMI | ExitReason::OTHER_SMI => VmExit::HostSmi,
        ExitReason::INIT => VmExit::HostInit,
        ExitReason::INTERRUPT_WINDOW => VmExit::InterruptWindow,
        ExitReason::NMI_WINDOW => VmExit::NmiReturn,
        ExitReason::CPUID => VmExit::Cpuid { leaf: low32(gprs.rax), subleaf: low32(gprs.rcx) },
        ExitReason::RDMSR => VmExit::ReadMsr { msr: low32(gprs.rcx) },
        ExitReason::WRMSR => VmExit::WriteMsr { msr: low32(gprs.rcx), value: edx_eax(gprs.rdx, gprs.rax) },
        ExitReason::IO => port(exit.qualification),
        ExitReason::HLT => VmExit::Halt,
        ExitReason::CONTROL_REGISTER => control_register(exit),
        ExitReason::XSETBV => VmExit::WriteXcr { index: low32(gprs.rcx), value: edx_eax(gprs.rdx, gprs.rax) },
        ExitReason::VMCALL => VmExit::Hypercall,
        ExitReason(reason) if (ExitReason::VMCLEAR.0..=ExitReason::VMXON.0).contains(&reason) => {
            VmExit::Virtualisation
        }
        ExitReason::GETSEC | ExitReason::INVEPT | ExitReason::INVVPID | ExitReason::VMFUNC => {
            VmExit::Virtualisation
        }
        ExitReason::MONITOR | ExitReason::MWAIT | ExitReason::RSM | ExitReason::ENCLS => {
            VmExit::HiddenFeature
        }
        ExitReason::INVD | ExitReason::WBINVD => VmExit::CacheFlush,
        ExitReason::RDPMC => VmExit::ReadCounter,
        ExitReason::PAUSE => VmExit::Pause,
        ExitReason::EPT_VIOLATION => nested_fault(exit.qualification, exit.address),
        ExitReason::TRIPLE_FAULT => VmExit::Shutdown,
        ExitReason::TASK_SWITCH => VmExit::TaskSwitch,
        ExitReason(reason) => VmExit::Unknown { code: reason.into() },
    }
}

/// The event whose delivery the exit cut short: it must be injected again unless the exit ends the guest.
pub fn pending_event(exit: &ExitInformation) -> Option<Event> {
    exit.vectoring.decode()
}

/// The length of the exiting instruction. The processor tells it of every exit that an instruction is the cause of
/// (25.9.4), and of no other: a length that no instruction has is none.
pub fn instruction_length(exit: &ExitInformation) -> Option<InstructionLength> {
    InstructionLength::new(exit.length.into())
}

/// An exception, or an NMI of the host's (table 25-19).
fn interruption(exit: &ExitInformation) -> VmExit {
    match exit.interruption.decode() {
        Some(Event::Nmi) => VmExit::HostNmi,
        Some(Event::Exception { vector, error_code }) => {
            let address = if vector == Vector::PF { exit.qualification } else { 0 };
            VmExit::Exception { vector, error_code, address }
        }
        Some(Event::Interrupt(_) | Event::SoftwareInterrupt(_)) | None => {
            VmExit::Unknown { code: exit.basic().0.into() }
        }
    }
}

/// Table 28-3.
fn control_register(exit: &ExitInformation) -> VmExit {
    const READ: u64 = 1;
    let register = match exit.qualification & 0xf {
        0 => ControlRegister::Cr0,
        3 => ControlRegister::Cr3,
        4 => ControlRegister::Cr4,
        8 => ControlRegister::Cr8,
        _ => return VmExit::Unknown { code: exit.basic().0.into() },
    };
    // CLTS and LMSW write CR0, too.
    if exit.qualification >> 4 & 3 == READ {
        VmExit::ReadControl(register)
    } else {
        VmExit::WriteControl(register)
    }
}

/// Table 28-5.
fn port(qualification: u64) -> VmExit {
    let width = match qualification & 7 {
        0 => Width::Byte,
        1 => Width::Word,
        3 => Width::Double,
        _ => return VmExit::Unknown { code: ExitReason::IO.0.into() },
    };
    let direction = if qualification & 8 == 0 { Direction::Out } else { Direction::In };
    VmExit::Port(PortAccess {
        port: low16(qualification >> 16),
        width,
        direction,
        string: qualification & 0x10 != 0,
    })
}

/// Table 28-7: bit 0 read, bit 1 write, bit 2 fetch; bit 7 a linear address is behind it, and then bit 8 unless it was
/// the walk of the guest's own tables.
fn nested_fault(qualification: u64, address: u64) -> VmExit {
    const LINEAR: u64 = 1 << 7;
    const FINAL: u64 = 1 << 8;
    // Without a linear address the processor loaded the page-directory pointers of MOV CR3: a walk as well.
    let access = if qualification & (LINEAR | FINAL) != LINEAR | FINAL {
        FaultAccess::TableWalk
    } else if qualification & 4 != 0 {
        FaultAccess::Fetch
    } else if qualification & 2 != 0 {
        FaultAccess::Write
    } else {
        FaultAccess::Read
    };
    VmExit::NestedFault { gpa: Gpa::new(address), access }
}

/// The general-purpose register of a CR access (table 28-3, bits 11:8).
pub fn moved_register(qualification: u64) -> crate::gpr::Gpr {
    crate::gpr::Gpr::from_encoding(low8(qualification >> 8))
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn exited(reason: u32, qualification: u64, address: u64) -> ExitInformation {
        ExitInformation { reason, qualification, address, ..ExitInformation::default() }
    }

    #[test]
    fn every_exit_reason_we_ask_for_has_its_neutral_word() {
        let port =
            |port, width, direction, string| VmExit::Port(PortAccess { port, width, direction, string });
        let fault = |gpa, access| VmExit::NestedFault { gpa: Gpa::new(gpa), access };
        for (reason, qualification, address, want) in [
            (1, 0, 0, VmExit::HostInterrupt),
            (52, 0, 0, VmExit::HostInterrupt),
            (3, 0, 0, VmExit::HostInit),
            (6, 0, 0, VmExit::HostSmi),
            (7, 0, 0, VmExit::InterruptWindow),
            (8, 0, 0, VmExit::NmiReturn),
            (10, 0, 0, VmExit::Cpuid { leaf: 1, subleaf: 0xc000_0080 }),
            (31, 0, 0, VmExit::ReadMsr { msr: 0xc000_0080 }),
            (32, 0, 0, VmExit::WriteMsr { msr: 0xc000_0080, value: 0x2_0000_0001 }),
            (30, 0x03f8_0000, 0, port(0x3f8, Width::Byte, Direction::Out, false)),
            (30, 0x0cf8_000b, 0, port(0xcf8, Width::Double, Direction::In, false)),
            (30, 0x01f0_0019, 0, port(0x1f0, Width::Word, Direction::In, true)),
            (12, 0, 0, VmExit::Halt),
            (28, 0x000, 0, VmExit::WriteControl(ControlRegister::Cr0)),
            (28, 0x104, 0, VmExit::WriteControl(ControlRegister::Cr4)),
            (28, 0x008, 0, VmExit::WriteControl(ControlRegister::Cr8)),
            (28, 0x018, 0, VmExit::ReadControl(ControlRegister::Cr8)),
            (28, 0x030, 0, VmExit::WriteControl(ControlRegister::Cr0)),
            (55, 0, 0, VmExit::WriteXcr { index: 0xc000_0080, value: 0x2_0000_0001 }),
            (18, 0, 0, VmExit::Hypercall),
            (54, 0, 0, VmExit::CacheFlush),
            (13, 0, 0, VmExit::CacheFlush),
            (15, 0, 0, VmExit::ReadCounter),
            (40, 0, 0, VmExit::Pause),
            (2, 0, 0, VmExit::Shutdown),
            (48, 0x181, 0xfee0_0020, fault(0xfee0_0020, FaultAccess::Read)),
            (48, 0x182, 0xfee0_0020, fault(0xfee0_0020, FaultAccess::Write)),
            (48, 0x183, 0xfee0_0020, fault(0xfee0_0020, FaultAccess::Write)),
            (48, 0x184, 0xfee0_0020, fault(0xfee0_0020, FaultAccess::Fetch)),
            (48, 0x083, 0xfed4_0000, fault(0xfed4_0000, FaultAccess::TableWalk)),
            (48, 0x001, 0xfed4_0000, fault(0xfed4_0000, FaultAccess::TableWalk)),
            (49, 0, 0, VmExit::Unknown { code: 49 }),
            (9, 0, 0, VmExit::TaskSwitch),
        ] {
            assert_eq!(decode(&exited(reason, qualification, address), &GPRS), want, "{reason}");
        }
    }

    #[test]
    fn all_instructions_of_the_extension_decode_alike() {
        for reason in (19..=27).chain([11, 50, 53, 59]) {
            assert_eq!(decode(&exited(reason, 0, 0), &GPRS), VmExit::Virtualisation, "{reason}");
        }
        for reason in [36, 39, 17, 60] {
            assert_eq!(decode(&exited(reason, 0, 0), &GPRS), VmExit::HiddenFeature, "{reason}");
        }
    }

    #[test]
    fn exceptions_and_the_hosts_nmi_are_told_apart() {
        let with = |information, error_code, qualification| ExitInformation {
            qualification,
            interruption: Injection { information, error_code, length: 0 },
            ..ExitInformation::default()
        };
        let exception = |vector, error_code, address| VmExit::Exception { vector, error_code, address };
        for (exit, want) in [
            (with(0x8000_0202, 0, 0), VmExit::HostNmi),
            (with(0x8000_0301, 0, 0x4000), exception(Vector::DB, 0, 0)),
            (with(0x8000_0b0e, 2, 0x1000), exception(Vector::PF, 2, 0x1000)),
            (with(0x8000_0312, 0, 0), exception(Vector::MC, 0, 0)),
            (with(0, 0, 0), VmExit::Unknown { code: 0 }),
        ] {
            assert_eq!(decode(&exit, &GPRS), want, "{exit:?}");
        }
    }

    #[test]
    fn an_entry_that_failed_is_invalid_state_whatever_the_reason() {
        for reason in [33, 34, 41] {
            assert_eq!(decode(&exited(1 << 31 | reason, 0, 0), &GPRS), VmExit::InvalidState, "{reason}");
        }
    }

    #[test]
    fn a_port_width_that_does_not_exist_is_unknown_not_guessed() {
        assert_eq!(decode(&exited(30, 0x03f8_0002, 0), &GPRS), VmExit::Unknown { code: 30 });
    }

    #[test]
    fn lengths_are_taken_where_they_can_be_an_instructions() {
        let with = |length| ExitInformation { reason: 10, length, ..ExitInformation::default() };
        assert_eq!(instruction_length(&with(2)), InstructionLength::new(2));
        assert_eq!(instruction_length(&with(0)), None);
        assert_eq!(instruction_length(&with(16)), None);
    }

    #[test]
    fn a_delivery_cut_short_is_told() {
        let mut exit = exited(48, 0, 0);
        assert_eq!(pending_event(&exit), None);
        exit.vectoring.information = 0x8000_0041;
        assert_eq!(pending_event(&exit), Some(Event::Interrupt(0x41)));
    }

    #[test]
    fn nmis_stay_blocked_when_iret_itself_exits() {
        let mut exit = exited(48, 1 << 12 | 0x181, 0);
        assert!(exit.unblocked_nmi());
        exit.vectoring.information = 0x8000_0041;
        assert!(!exit.unblocked_nmi(), "the bit means nothing then");
        assert!(!exited(10, 1 << 12, 0).unblocked_nmi());
    }

    #[test]
    fn the_register_of_a_control_move_is_told() {
        assert_eq!(moved_register(0x0f00), crate::gpr::Gpr::R15);
        assert_eq!(moved_register(0x0300), crate::gpr::Gpr::Rbx);
    }
}
