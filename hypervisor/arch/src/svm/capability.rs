//! What SVM this processor has, by CPUID (APM vol. 3, appendix E).

use bitflags::bitflags;

use crate::cpuid::CpuidSource;

bitflags! {
    /// CPUID 8000_000Ah EDX (APM vol. 3, appendix E).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SvmFeatures: u32 {
        /// Nested paging.
        const NESTED_PAGING = 1 << 0;
        /// The next RIP is saved on exits.
        const NRIP_SAVE = 1 << 3;
        /// Clean bits.
        const CLEAN_BITS = 1 << 5;
        /// One guest's translations can be flushed.
        const FLUSH_BY_ASID = 1 << 6;
        /// Instruction bytes and operands on exits.
        const DECODE_ASSISTS = 1 << 7;
        const _ = !0;
    }
}

/// Leaf with the extended feature bits: EDX bit 20 is no-execute, ECX bit 2 SVM, bit 12 SKINIT.
const EXTENDED_FEATURES: u32 = 0x8000_0001;
const SVM_LEAF: u32 = 0x8000_000a;
const EXTENDED_MAXIMUM: u32 = 0x8000_0000;
const ECX_SVM: u32 = 1 << 2;

/// What SVM this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SvmCapabilities {
    /// Optional parts.
    pub features: SvmFeatures,
    /// Address-space identifiers, the host's 0 included.
    pub asids: u32,
}

impl SvmCapabilities {
    /// Reads them, or `None` without SVM.
    pub fn detect(cpu: &impl CpuidSource) -> Option<Self> {
        if cpu.leaf(EXTENDED_MAXIMUM, 0).eax < SVM_LEAF || cpu.leaf(EXTENDED_FEATURES, 0).ecx & ECX_SVM == 0 {
            return None;
        }
        let leaf = cpu.leaf(SVM_LEAF, 0);
        Some(Self { features: SvmFeatures::from_bits_retain(leaf.edx), asids: leaf.ebx })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpuid::Leaf;

    struct Table(&'static [(u32, Leaf)]);
    impl CpuidSource for Table {
        fn leaf(&self, leaf: u32, _: u32) -> Leaf {
            self.0.iter().find(|(number, _)| *number == leaf).map(|(_, answer)| *answer).unwrap_or_default()
        }
    }

    const MAXIMUM: Leaf = Leaf { eax: 0x8000_001e, ebx: 0, ecx: 0, edx: 0 };

    #[test]
    fn svm_is_found_with_its_features_and_asids() {
        let cpu = Table(&[
            (0x8000_0000, MAXIMUM),
            (0x8000_0001, Leaf { eax: 0, ebx: 0, ecx: 4, edx: 0 }),
            (0x8000_000a, Leaf { eax: 1, ebx: 16, ecx: 0, edx: 1 << 30 | 1 }),
        ]);
        let found = SvmCapabilities::detect(&cpu).unwrap();
        assert_eq!(found.asids, 16);
        assert!(found.features.contains(SvmFeatures::NESTED_PAGING));
        assert_eq!(found.features.bits(), 1 << 30 | 1, "unknown features are kept");
    }

    #[test]
    fn without_the_bit_or_the_leaf_there_is_no_svm() {
        assert_eq!(SvmCapabilities::detect(&Table(&[(0x8000_0000, MAXIMUM)])), None);
        let old = Table(&[
            (0x8000_0000, Leaf { eax: 0x8000_0008, ebx: 0, ecx: 0, edx: 0 }),
            (0x8000_0001, Leaf { eax: 0, ebx: 0, ecx: 4, edx: 0 }),
        ]);
        assert_eq!(SvmCapabilities::detect(&old), None);
    }
}
