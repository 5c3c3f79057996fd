//! What the machine must have, and what to say when it has not.
#![forbid(unsafe_code)]

use core::fmt;

/// What was found out about the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Vendor word of CPUID leaf 0.
    pub vendor: [u8; 12],
    /// CPUID 8000_0001h ECX bit 2.
    pub has_svm: bool,
    /// CPUID 8000_0001h ECX bit 12.
    pub has_skinit: bool,
    /// CPUID 8000_0001h EDX bit 26.
    pub has_gib_pages: bool,
    /// CPUID 8000_000Ah EDX bit 0; false where there is no SVM.
    pub has_nested_paging: bool,
    /// VM_CR.SVMDIS; false where there is no SVM.
    pub svm_disabled: bool,
    /// APIC_BASE.BSC: this processor was the first to start.
    pub is_boot_processor: bool,
    /// AMD-Vi units found in PCI configuration space.
    pub iommus: u32,
    /// Those of them whose registers firmware has not enabled.
    pub iommus_off: u32,
    /// What answers at the TPM's address.
    pub tpm: Tpm,
}

/// What answers at the TPM's fixed address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tpm {
    /// Nothing.
    Absent,
    /// A command response buffer.
    Crb,
    /// A FIFO of an older family.
    Family1,
    /// A TPM 2.0 FIFO, as the dynamic launch needs it.
    Fifo,
}

impl Tpm {
    /// TPM_STS of a TPM 2.0, as far as the family goes.
    pub const STATUS_FAMILY_2: u32 = 1 << 26;

    /// Tells the interface from its registers at locality 0: TPM_ACCESS, TPM_STS and TPM_INTERFACE_ID
    /// (TCG PC Client Platform TPM Profile, 6.4 and 6.5).
    #[must_use]
    pub const fn identify(access: u8, status: u32, interface_id: u32) -> Self {
        const ACCESS_VALID: u8 = 0x80;
        const INTERFACE_CRB: u32 = 1;
        let interface = interface_id & 0xf;
        if interface == INTERFACE_CRB && interface_id != u32::MAX {
            Self::Crb
        } else if access == u8::MAX || access & ACCESS_VALID == 0 {
            Self::Absent
        } else if status & 3 << 26 == Self::STATUS_FAMILY_2 {
            Self::Fifo
        } else {
            Self::Family1
        }
    }
}

/// Something that the machine lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Not a processor by AMD.
    Amd,
    /// No SVM.
    Svm,
    /// SVM is switched off.
    SvmDisabled,
    /// No `SKINIT`.
    Skinit,
    /// No nested paging.
    NestedPaging,
    /// No 1 GiB pages.
    GibPages,
    /// The loader runs on a processor that may not launch.
    BootProcessor,
    /// No IOMMU.
    Iommu,
    /// An IOMMU that firmware has not enabled.
    IommuOff,
    /// No TPM.
    Tpm,
    /// Only a TPM 1.2.
    Tpm2,
    /// A TPM without localities.
    Fifo,
}

impl Missing {
    /// The word for log lines.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Amd => "amd",
            Self::Svm => "svm",
            Self::SvmDisabled => "svm-enabled",
            Self::Skinit => "skinit",
            Self::NestedPaging => "nested-paging",
            Self::GibPages => "1gib-pages",
            Self::BootProcessor => "boot-processor",
            Self::Iommu => "iommu",
            Self::IommuOff => "iommu-enabled",
            Self::Tpm => "tpm",
            Self::Tpm2 => "tpm2",
            Self::Fifo => "tpm-fifo",
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Amd => "the processor is not by AMD; this version of Dolmen launches on AMD processors only",
            Self::Svm => {
                "the processor has no SVM (AMD-V); use one that has it, or enable \"SVM Mode\" in the firmware's \
                 set-up, under CPU or Advanced"
            }
            Self::SvmDisabled => {
                "SVM (AMD-V) is switched off (VM_CR.SVMDIS); enable \"SVM Mode\" in the firmware's set-up, under CPU \
                 or Advanced"
            }
            Self::Skinit => {
                "the processor has no SKINIT instruction, which the dynamic launch is made of; use an AMD processor \
                 that has it; some firmware hides it until \"DRTM support\" is enabled"
            }
            Self::NestedPaging => "the processor has no nested paging; use a newer AMD processor",
            Self::GibPages => "the processor has no 1 GiB pages; use a newer AMD processor",
            Self::BootProcessor => {
                "this is not the boot processor, and only that one can launch; start the loader from firmware or a \
                 boot loader on the boot processor"
            }
            Self::Iommu => {
                "there is no IOMMU (AMD-Vi), so devices could not be kept out of memory; enable \"IOMMU\" in the \
                 firmware's set-up, under Advanced, AMD CBS or North Bridge (not \"Auto\")"
            }
            Self::IommuOff => {
                "an IOMMU (AMD-Vi) is there, but switched off; enable \"IOMMU\" in the firmware's set-up, under \
                 Advanced, AMD CBS or North Bridge (not \"Auto\")"
            }
            Self::Tpm => {
                "there is no TPM; enable \"Security Device Support\", \"TPM\" or \"fTPM\" in the firmware's set-up, or \
                 fit a discrete TPM 2.0"
            }
            Self::Tpm2 => "the TPM is a TPM 1.2; update it to TPM 2.0, or fit a discrete TPM 2.0",
            Self::Fifo => {
                "the TPM speaks CRB, but only FIFO/TIS has the localities that this version of Dolmen needs; select \
                 the discrete TPM in the firmware's set-up (\"TPM Device Selection\"), or FIFO as its interface"
            }
        })
    }
}

impl Machine {
    /// All that the machine lacks, the first cause first. What follows from another lack is not repeated.
    pub fn missing(&self) -> impl Iterator<Item = Missing> {
        let amd = matches!(&self.vendor, b"AuthenticAMD" | b"HygonGenuine");
        let svm = amd && self.has_svm;
        [
            (!amd, Missing::Amd),
            (amd && !self.has_svm, Missing::Svm),
            (svm && self.svm_disabled, Missing::SvmDisabled),
            (svm && !self.has_skinit, Missing::Skinit),
            (svm && !self.has_nested_paging, Missing::NestedPaging),
            (amd && !self.has_gib_pages, Missing::GibPages),
            (!self.is_boot_processor, Missing::BootProcessor),
            (self.iommus == 0, Missing::Iommu),
            (self.iommus_off > 0, Missing::IommuOff),
            (self.tpm == Tpm::Absent, Missing::Tpm),
            (self.tpm == Tpm::Family1, Missing::Tpm2),
            (self.tpm == Tpm::Crb, Missing::Fifo),
        ]
        .into_iter()
        .filter_map(|(is_missing, what)| is_missing.then_some(what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const GOOD: Machine = Machine {
        vendor: *b"AuthenticAMD",
        has_svm: true,
        has_skinit: true,
        has_gib_pages: true,
        has_nested_paging: true,
        svm_disabled: false,
        is_boot_processor: true,
        iommus: 1,
        iommus_off: 0,
        tpm: Tpm::Fifo,
    };

    #[test]
    fn a_whole_machine_lacks_nothing() {
        assert_eq!(GOOD.missing().count(), 0);
    }

    #[test]
    fn each_lack_is_named_alone() {
        for (machine, want) in [
            (Machine { vendor: *b"GenuineIntel", ..GOOD }, Missing::Amd),
            (Machine { has_svm: false, has_nested_paging: false, has_skinit: false, ..GOOD }, Missing::Svm),
            (Machine { svm_disabled: true, ..GOOD }, Missing::SvmDisabled),
            (Machine { has_skinit: false, ..GOOD }, Missing::Skinit),
            (Machine { has_nested_paging: false, ..GOOD }, Missing::NestedPaging),
            (Machine { has_gib_pages: false, ..GOOD }, Missing::GibPages),
            (Machine { is_boot_processor: false, ..GOOD }, Missing::BootProcessor),
            (Machine { iommus: 0, ..GOOD }, Missing::Iommu),
            (Machine { iommus: 2, iommus_off: 1, ..GOOD }, Missing::IommuOff),
            (Machine { tpm: Tpm::Absent, ..GOOD }, Missing::Tpm),
            (Machine { tpm: Tpm::Family1, ..GOOD }, Missing::Tpm2),
            (Machine { tpm: Tpm::Crb, ..GOOD }, Missing::Fifo),
        ] {
            assert_eq!(machine.missing().collect::<Vec<_>>(), [want], "{machine:?}");
        }
    }

    #[test]
    fn several_lacks_are_all_named() {
        let bare = Machine { has_svm: false, iommus: 0, tpm: Tpm::Absent, ..GOOD };
        assert_eq!(bare.missing().collect::<Vec<_>>(), [Missing::Svm, Missing::Iommu, Missing::Tpm]);
    }

    #[test]
    fn the_tpm_is_told_by_its_registers() {
        for (access, status, id, want) in [
            (0xff, u32::MAX, u32::MAX, Tpm::Absent),
            (0x00, 0, 0, Tpm::Absent),
            (0x81, 0x0400_0000, 0x0000_0fff, Tpm::Fifo),
            (0xa1, 0x0400_0000, 0x0000_0000, Tpm::Fifo),
            (0x81, 0x0000_0000, 0x0000_000f, Tpm::Family1),
            (0x01, 0x0000_0000, 0x0000_4011, Tpm::Crb),
            (0x81, 0x0000_0000, 0x0000_4011, Tpm::Crb),
        ] {
            assert_eq!(Tpm::identify(access, status, id), want, "{access:#x} {status:#x} {id:#x}");
        }
    }
}
