//! CPUID, and whose processor it is.

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
