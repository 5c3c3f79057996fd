//! Exit reasons (SDM vol. 3D, appendix C): an open enumeration, so that a newer processor's reason survives.

use crate::bits::low16;

/// One basic exit reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitReason(pub u16);

#[expect(missing_docs, reason = "the manual's names say it")]
impl ExitReason {
    pub const EXCEPTION_OR_NMI: Self = Self(0);
    pub const EXTERNAL_INTERRUPT: Self = Self(1);
    pub const TRIPLE_FAULT: Self = Self(2);
    pub const INIT: Self = Self(3);
    pub const IO_SMI: Self = Self(5);
    pub const OTHER_SMI: Self = Self(6);
    pub const INTERRUPT_WINDOW: Self = Self(7);
    pub const NMI_WINDOW: Self = Self(8);
    pub const TASK_SWITCH: Self = Self(9);
    pub const CPUID: Self = Self(10);
    pub const GETSEC: Self = Self(11);
    pub const HLT: Self = Self(12);
    pub const INVD: Self = Self(13);
    pub const RDPMC: Self = Self(15);
    pub const RSM: Self = Self(17);
    pub const VMCALL: Self = Self(18);
    pub const VMCLEAR: Self = Self(19);
    pub const VMXON: Self = Self(27);
    pub const CONTROL_REGISTER: Self = Self(28);
    pub const IO: Self = Self(30);
    pub const RDMSR: Self = Self(31);
    pub const WRMSR: Self = Self(32);
    pub const INVALID_GUEST_STATE: Self = Self(33);
    pub const MSR_LOADING: Self = Self(34);
    pub const MWAIT: Self = Self(36);
    pub const MONITOR: Self = Self(39);
    pub const PAUSE: Self = Self(40);
    pub const MACHINE_CHECK_AT_ENTRY: Self = Self(41);
    pub const EPT_VIOLATION: Self = Self(48);
    pub const INVEPT: Self = Self(50);
    pub const PREEMPTION_TIMER: Self = Self(52);
    pub const INVVPID: Self = Self(53);
    pub const WBINVD: Self = Self(54);
    pub const XSETBV: Self = Self(55);
    pub const VMFUNC: Self = Self(59);
    pub const ENCLS: Self = Self(60);
}

impl ExitReason {
    /// The basic reason in a raw field.
    pub const fn from_raw(raw: u32) -> Self {
        #[expect(clippy::as_conversions, reason = "u32 to u64 in a constant function")]
        let wide = raw as u64;
        Self(low16(wide))
    }
}
