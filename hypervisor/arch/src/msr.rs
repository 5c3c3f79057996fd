//! Model-specific registers by name (APM vol. 2, appendix A).
#![expect(missing_docs, reason = "the manual's names say it")]

pub const TSC: u32 = 0x10;
pub const APIC_BASE: u32 = 0x1b;
pub const FEATURE_CONTROL: u32 = 0x3a;
pub const TSC_ADJUST: u32 = 0x3b;
pub const SPEC_CTRL: u32 = 0x48;
pub const PRED_CMD: u32 = 0x49;
pub const PATCH_LEVEL: u32 = 0x8b;
pub const MTRR_CAP: u32 = 0xfe;
pub const SYSENTER_CS: u32 = 0x174;
pub const SYSENTER_ESP: u32 = 0x175;
pub const SYSENTER_EIP: u32 = 0x176;
pub const MCG_CAP: u32 = 0x179;
pub const MCG_STATUS: u32 = 0x17a;
pub const MCG_CTL: u32 = 0x17b;
pub const MISC_ENABLE: u32 = 0x1a0;
pub const DEBUG_CTL: u32 = 0x1d9;
pub const PAT: u32 = 0x277;
pub const MTRR_DEF_TYPE: u32 = 0x2ff;
/// Intel PT's control register, IA32_RTIT_CTL.
pub const TRACE_CONTROL: u32 = 0x570;
pub const TSC_DEADLINE: u32 = 0x6e0;
pub const X2APIC_FIRST: u32 = 0x800;
pub const X2APIC_LAST: u32 = 0x8ff;
pub const XSS: u32 = 0xda0;
/// KVM's first clock registers, before it had a range of its own.
pub const KVM_WALL_CLOCK_OLD: u32 = 0x11;
pub const KVM_SYSTEM_TIME_OLD: u32 = 0x12;
pub const EFER: u32 = 0xc000_0080;
pub const STAR: u32 = 0xc000_0081;
pub const LSTAR: u32 = 0xc000_0082;
pub const CSTAR: u32 = 0xc000_0083;
pub const SFMASK: u32 = 0xc000_0084;
pub const FS_BASE: u32 = 0xc000_0100;
pub const GS_BASE: u32 = 0xc000_0101;
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
pub const TSC_AUX: u32 = 0xc000_0103;
/// First of four that select events and four that count them, on every processor of this vendor (APM vol. 2, 13.2.1).
pub const PERF_LEGACY_FIRST: u32 = 0xc001_0000;
pub const PERF_LEGACY_LAST: u32 = 0xc001_0007;
pub const SYSCFG: u32 = 0xc001_0010;
pub const HWCR: u32 = 0xc001_0015;
pub const NB_CFG: u32 = 0xc001_001f;
pub const VM_CR: u32 = 0xc001_0114;
pub const IGNNE: u32 = 0xc001_0115;
pub const SMM_CTL: u32 = 0xc001_0116;
pub const VM_HSAVE_PA: u32 = 0xc001_0117;
pub const DE_CFG: u32 = 0xc001_1029;

/// The reset value of the page attribute table (APM vol. 2, 7.8.2).
pub const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// Whether all eight entries of a page attribute table name a memory type that exists.
pub fn is_valid_pat(value: u64) -> bool {
    value.to_le_bytes().iter().all(|entry| matches!(entry, 0 | 1 | 4 | 5 | 6 | 7))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pat_with_a_reserved_type_or_a_reserved_bit_is_refused() {
        assert!(is_valid_pat(PAT_RESET));
        for bad in [2, 3, 8, 0x10, 0xff] {
            assert!(!is_valid_pat((PAT_RESET & !0xff) | bad), "{bad:#x}");
            assert!(!is_valid_pat((PAT_RESET >> 8) | (bad << 56)), "{bad:#x}");
        }
    }
}
