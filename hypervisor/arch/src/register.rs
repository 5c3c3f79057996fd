//! Control registers, EFER and RFLAGS. Bits that are not named here are legal, and kept.

use bitflags::bitflags;

bitflags! {
    /// CR0 (APM vol. 2, 3.1.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Cr0: u64 {
        /// Protection enable.
        const PE = 1 << 0;
        /// Monitor coprocessor.
        const MP = 1 << 1;
        /// Emulate coprocessor.
        const EM = 1 << 2;
        /// Task switched.
        const TS = 1 << 3;
        /// Extension type; always 1.
        const ET = 1 << 4;
        /// Numeric error.
        const NE = 1 << 5;
        /// Write protect.
        const WP = 1 << 16;
        /// Alignment mask.
        const AM = 1 << 18;
        /// Not write-through.
        const NW = 1 << 29;
        /// Cache disable.
        const CD = 1 << 30;
        /// Paging.
        const PG = 1 << 31;
        const _ = !0;
    }

    /// CR4 (APM vol. 2, 3.1.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Cr4: u64 {
        /// Virtual-8086 extensions.
        const VME = 1 << 0;
        /// Protected-mode virtual interrupts.
        const PVI = 1 << 1;
        /// Time-stamp disable.
        const TSD = 1 << 2;
        /// Debugging extensions.
        const DE = 1 << 3;
        /// Page-size extensions.
        const PSE = 1 << 4;
        /// Physical-address extension.
        const PAE = 1 << 5;
        /// Machine check.
        const MCE = 1 << 6;
        /// Global pages.
        const PGE = 1 << 7;
        /// RDPMC for everybody.
        const PCE = 1 << 8;
        /// FXSAVE and SSE.
        const OSFXSR = 1 << 9;
        /// SSE exceptions.
        const OSXMMEXCPT = 1 << 10;
        /// User-mode instruction prevention.
        const UMIP = 1 << 11;
        /// Five-level paging.
        const LA57 = 1 << 12;
        /// FSGSBASE instructions.
        const FSGSBASE = 1 << 16;
        /// Process-context identifiers.
        const PCIDE = 1 << 17;
        /// XSAVE.
        const OSXSAVE = 1 << 18;
        /// Supervisor-mode execution prevention.
        const SMEP = 1 << 20;
        /// Supervisor-mode access prevention.
        const SMAP = 1 << 21;
        /// Protection keys.
        const PKE = 1 << 22;
        const _ = !0;
    }

    /// EFER (APM vol. 2, 3.1.7).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Efer: u64 {
        /// SYSCALL.
        const SCE = 1 << 0;
        /// Long mode enable.
        const LME = 1 << 8;
        /// Long mode active; the processor's to change.
        const LMA = 1 << 10;
        /// No-execute.
        const NXE = 1 << 11;
        /// SVM; ours while virtualising, never the guest's.
        const SVME = 1 << 12;
        /// Fast FXSAVE.
        const FFXSR = 1 << 14;
        const _ = !0;
    }

    /// RFLAGS (APM vol. 2, 3.1.6).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Rflags: u64 {
        /// Always 1.
        const FIXED = 1 << 1;
        /// Trap flag.
        const TF = 1 << 8;
        /// Interrupts enabled.
        const IF = 1 << 9;
        /// Direction of string instructions: down.
        const DF = 1 << 10;
        /// Resume.
        const RF = 1 << 16;
        /// Virtual-8086 mode.
        const VM = 1 << 17;
        const _ = !0;
    }
}

impl Cr0 {
    /// CR0 of a processor after reset (APM vol. 2, table 14-1).
    pub const RESET: Self = Self::ET.union(Self::NW).union(Self::CD);

    /// Whether a processor accepts this value in itself (APM vol. 2, 3.1.1; 15.5.1).
    pub const fn is_valid(self) -> bool {
        self.bits() >> 32 == 0
            && (!self.contains(Self::PG) || self.contains(Self::PE))
            && (!self.contains(Self::NW) || self.contains(Self::CD))
    }
}

/// DR6 after reset, its fixed bits.
pub const DR6_RESET: u64 = 0xffff_0ff0;
/// DR6.BS: the #DB came from single-stepping (APM vol. 2, 13.1.1.3).
pub const DR6_SINGLE_STEP: u64 = 1 << 14;
/// DR7 after reset, its fixed bit.
pub const DR7_RESET: u64 = 0x400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_newer_processors_survive_a_round_trip() {
        let raw = 0xdead_beef_0bad_f00d;
        assert_eq!(Cr0::from_bits_retain(raw).bits(), raw);
        assert_eq!(Cr4::from_bits_retain(raw).difference(Cr4::PAE).union(Cr4::PAE).bits(), raw | 1 << 5);
        assert_eq!(Efer::from_bits_retain(raw).bits(), raw);
        assert_eq!(Rflags::from_bits_retain(raw).bits(), raw);
    }

    #[test]
    fn cr0_values_that_a_processor_refuses_are_told() {
        let protected = Cr0::PE | Cr0::ET;
        for (value, valid) in [
            (protected, true),
            (protected | Cr0::PG, true),
            (Cr0::RESET, true),
            (Cr0::PG, false),
            (protected | Cr0::NW, false),
            (Cr0::from_bits_retain(1 << 32), false),
        ] {
            assert_eq!(value.is_valid(), valid, "{value:?}");
        }
    }
}
