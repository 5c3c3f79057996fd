//! Exit codes (APM vol. 2, appendix C): an open enumeration, so that a newer processor's code survives.

use crate::bits::low32;

/// One exit code. Codes are compared as 32 bits: some processors give −1 as `0x0000_0000_ffff_ffff`,
/// others sign-extended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitCode(pub u32);

#[expect(missing_docs, reason = "the manual's names say it")]
impl ExitCode {
    pub const READ_CR8: Self = Self(0x08);
    pub const WRITE_CR4: Self = Self(0x14);
    pub const WRITE_CR8: Self = Self(0x18);
    pub const EXCEPTION_FIRST: u32 = 0x40;
    pub const EXCEPTION_LAST: u32 = 0x5f;
    pub const INTR: Self = Self(0x60);
    pub const NMI: Self = Self(0x61);
    pub const SMI: Self = Self(0x62);
    pub const INIT: Self = Self(0x63);
    pub const VINTR: Self = Self(0x64);
    pub const CR0_SELECTIVE_WRITE: Self = Self(0x65);
    pub const RDPMC: Self = Self(0x6f);
    pub const CPUID: Self = Self(0x72);
    pub const RSM: Self = Self(0x73);
    pub const IRET: Self = Self(0x74);
    pub const INVD: Self = Self(0x76);
    pub const PAUSE: Self = Self(0x77);
    pub const HLT: Self = Self(0x78);
    pub const INVLPGA: Self = Self(0x7a);
    pub const IOIO: Self = Self(0x7b);
    pub const MSR: Self = Self(0x7c);
    pub const FERR_FREEZE: Self = Self(0x7e);
    pub const SHUTDOWN: Self = Self(0x7f);
    pub const VMRUN: Self = Self(0x80);
    pub const VMMCALL: Self = Self(0x81);
    pub const VMLOAD: Self = Self(0x82);
    pub const VMSAVE: Self = Self(0x83);
    pub const STGI: Self = Self(0x84);
    pub const CLGI: Self = Self(0x85);
    pub const SKINIT: Self = Self(0x86);
    pub const WBINVD: Self = Self(0x89);
    pub const MONITOR: Self = Self(0x8a);
    pub const MWAIT: Self = Self(0x8b);
    pub const MWAIT_ARMED: Self = Self(0x8c);
    pub const XSETBV: Self = Self(0x8d);
    pub const RDPRU: Self = Self(0x8e);
    pub const INVLPGB: Self = Self(0xa0);
    pub const INVLPGB_ILLEGAL: Self = Self(0xa1);
    pub const MCOMMIT: Self = Self(0xa3);
    pub const TLBSYNC: Self = Self(0xa4);
    pub const NPF: Self = Self(0x400);
    pub const INVALID: Self = Self(0xffff_ffff);
}

impl ExitCode {
    /// The code in a raw field.
    pub const fn from_raw(raw: u64) -> Self {
        Self(low32(raw))
    }
}
