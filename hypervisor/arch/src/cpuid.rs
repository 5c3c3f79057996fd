//! CPUID leaves that decide how the hypervisor runs.

use bitflags::bitflags;

/// The four registers that one CPUID leaf answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// Whoever can answer CPUID: the processor, or a test's table.
pub trait CpuidSource {
    /// Answers one leaf.
    fn leaf(&self, leaf: u32, subleaf: u32) -> Leaf;
}

bitflags! {
    /// CPUID 8000_000Ah EDX (APM vol. 3, appendix E).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SvmFeatures: u32 {
        /// Nested paging.
        const NESTED_PAGING = 1 << 0;
        /// The next RIP is saved on exits.
        const NRIP_SAVE = 1 << 3;
        /// Clean bits.
        const VMCB_CLEAN = 1 << 5;
        /// One guest's translations can be flushed.
        const FLUSH_BY_ASID = 1 << 6;
        /// Instruction bytes and operands on exits.
        const DECODE_ASSISTS = 1 << 7;
        const _ = !0;
    }
}

/// Whose virtualisation extension a processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// AMD, or Hygon: SVM.
    Amd,
    /// Intel: VMX.
    Intel,
}

impl Vendor {
    /// Who made this processor; `None` for makers whose processors Dolmen does not know.
    pub fn detect(cpu: &impl CpuidSource) -> Option<Self> {
        let Leaf { ebx, ecx, edx, .. } = cpu.leaf(0, 0);
        let mut name = [0; 12];
        for (place, part) in name.chunks_exact_mut(4).zip([ebx, edx, ecx]) {
            place.copy_from_slice(&part.to_le_bytes());
        }
        match &name {
            b"AuthenticAMD" | b"HygonGenuine" => Some(Self::Amd),
            b"GenuineIntel" => Some(Self::Intel),
            _ => None,
        }
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
    fn the_vendor_is_told_by_its_name() {
        let leaf = |ebx, edx, ecx| Leaf { eax: 0, ebx, ecx, edx };
        for (answer, want) in [
            (leaf(0x6874_7541, 0x6974_6e65, 0x444d_4163), Some(Vendor::Amd)),
            (leaf(0x6f67_7948, 0x6e65_476e, 0x656e_6975), Some(Vendor::Amd)),
            (leaf(0x756e_6547, 0x4965_6e69, 0x6c65_746e), Some(Vendor::Intel)),
            (leaf(0x746e_6543, 0x736c_7561, 0x4872_7561), None),
        ] {
            struct One(Leaf);
            impl CpuidSource for One {
                fn leaf(&self, _: u32, _: u32) -> Leaf {
                    self.0
                }
            }
            assert_eq!(Vendor::detect(&One(answer)), want);
        }
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
