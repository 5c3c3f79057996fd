//! The fields of a VMCS by their encodings (SDM vol. 3D, appendix B), typed by width and access.

use core::marker::PhantomData;

use crate::bits::{low16, low32};

/// How wide a field is (SDM vol. 3C, table 25-21, bits 14:13).
pub trait Width {
    /// What the field holds.
    type Value: Copy;
    /// The two bits of the encoding.
    const CODE: u32;
    /// The value in what VMREAD gives.
    fn narrow(raw: u64) -> Self::Value;
    /// The value for VMWRITE.
    fn widen(value: Self::Value) -> u64;
}

/// A field of 16 bits.
#[derive(Clone, Copy, Debug)]
pub enum Bits16 {}
/// A field of 32 bits.
#[derive(Clone, Copy, Debug)]
pub enum Bits32 {}
/// A field of 64 bits.
#[derive(Clone, Copy, Debug)]
pub enum Bits64 {}
/// A field as wide as the processor's registers: 64 bits here.
#[derive(Clone, Copy, Debug)]
pub enum Natural {}

impl Width for Bits16 {
    type Value = u16;
    const CODE: u32 = 0;
    fn narrow(raw: u64) -> u16 {
        low16(raw)
    }
    fn widen(value: u16) -> u64 {
        value.into()
    }
}

impl Width for Bits32 {
    type Value = u32;
    const CODE: u32 = 2;
    fn narrow(raw: u64) -> u32 {
        low32(raw)
    }
    fn widen(value: u32) -> u64 {
        value.into()
    }
}

impl Width for Bits64 {
    type Value = u64;
    const CODE: u32 = 1;
    fn narrow(raw: u64) -> u64 {
        raw
    }
    fn widen(value: u64) -> u64 {
        value
    }
}

impl Width for Natural {
    type Value = u64;
    const CODE: u32 = 3;
    fn narrow(raw: u64) -> u64 {
        raw
    }
    fn widen(value: u64) -> u64 {
        value
    }
}

/// Whether software may write a field.
pub trait Access {
    /// Only the processor writes it.
    const IS_READ_ONLY: bool;
}

/// Software writes it.
#[derive(Clone, Copy, Debug)]
pub enum ReadWrite {}
/// The processor writes it, at an exit.
#[derive(Clone, Copy, Debug)]
pub enum ReadOnly {}

impl Access for ReadWrite {
    const IS_READ_ONLY: bool = false;
}

impl Access for ReadOnly {
    const IS_READ_ONLY: bool = true;
}

/// A field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<W, A = ReadWrite> {
    encoding: u32,
    kind: PhantomData<fn() -> (W, A)>,
}

impl<W: Width, A: Access> Field<W, A> {
    /// The field of this encoding, whose width and type must be those of the parameters: checked at build time, as
    /// all fields are constants.
    const fn new(encoding: u32) -> Self {
        const EXIT_INFORMATION: u32 = 1;
        assert!(encoding >> 13 & 3 == W::CODE, "another width");
        assert!((encoding >> 10 & 3 == EXIT_INFORMATION) == A::IS_READ_ONLY, "another access");
        Self { encoding, kind: PhantomData }
    }

    /// What VMREAD and VMWRITE take.
    pub const fn encoding(self) -> u32 {
        self.encoding
    }
}

macro_rules! fields {
    ($( $(#[doc = $doc:literal])* $name:ident : $width:ident $(, $access:ident)? = $encoding:literal; )*) => {
        $( $(#[doc = $doc])* pub const $name: Field<$width $(, $access)?> = Field::new($encoding); )*
    };
}

/// What the processor says at an exit (SDM vol. 3C, 25.9).
pub mod exit {
    #![expect(missing_docs, reason = "the manual's names say it")]
    use super::{Bits32, Bits64, Field, Natural, ReadOnly};

    fields! {
        GUEST_PHYSICAL_ADDRESS: Bits64, ReadOnly = 0x2400;
        INSTRUCTION_ERROR: Bits32, ReadOnly = 0x4400;
        REASON: Bits32, ReadOnly = 0x4402;
        INTERRUPTION_INFORMATION: Bits32, ReadOnly = 0x4404;
        INTERRUPTION_ERROR_CODE: Bits32, ReadOnly = 0x4406;
        VECTORING_INFORMATION: Bits32, ReadOnly = 0x4408;
        VECTORING_ERROR_CODE: Bits32, ReadOnly = 0x440a;
        INSTRUCTION_LENGTH: Bits32, ReadOnly = 0x440c;
        QUALIFICATION: Natural, ReadOnly = 0x6400;
    }
}

/// The host's state, loaded at each exit (SDM vol. 3C, 25.5).
pub mod host {
    #![expect(missing_docs, reason = "the manual's names say it")]
    use super::{Bits16, Bits32, Bits64, Field, Natural};

    fields! {
        ES_SELECTOR: Bits16 = 0x0c00;
        CS_SELECTOR: Bits16 = 0x0c02;
        SS_SELECTOR: Bits16 = 0x0c04;
        DS_SELECTOR: Bits16 = 0x0c06;
        FS_SELECTOR: Bits16 = 0x0c08;
        GS_SELECTOR: Bits16 = 0x0c0a;
        TR_SELECTOR: Bits16 = 0x0c0c;
        PAT: Bits64 = 0x2c00;
        EFER: Bits64 = 0x2c02;
        SYSENTER_CS: Bits32 = 0x4c00;
        CR0: Natural = 0x6c00;
        CR3: Natural = 0x6c02;
        CR4: Natural = 0x6c04;
        FS_BASE: Natural = 0x6c06;
        GS_BASE: Natural = 0x6c08;
        TR_BASE: Natural = 0x6c0a;
        GDTR_BASE: Natural = 0x6c0c;
        IDTR_BASE: Natural = 0x6c0e;
        SYSENTER_ESP: Natural = 0x6c10;
        SYSENTER_EIP: Natural = 0x6c12;
        RSP: Natural = 0x6c14;
        RIP: Natural = 0x6c16;
    }
}

/// What is loaded at each entry where the processor has it (SDM vol. 3C, 25.4.2).
pub mod timer {
    use super::{Bits32, Field};

    fields! {
        /// After how long in the guest the preemption timer exits.
        VALUE: Bits32 = 0x482e;
    }
}

/// What processors have that have enclaves (SDM vol. 3C, 25.6.16).
pub mod enclave {
    use super::{Bits64, Field};

    fields! {
        /// Which leaves of ENCLS exit; the last bit stands for all further ones.
        ENCLS_EXITS: Bits64 = 0x202e;
    }
}

macro_rules! kept_fields {
    ($( $name:ident : $width:ident = $encoding:literal; )*) => {
        fields! { $( $name: $width = $encoding; )* }

        /// The encodings of all of them.
        pub const KEPT: &[u32] = &[ $( $encoding, )* ];
    };
}

/// What a virtual processor is: its state (SDM vol. 3C, 25.4) and its controls (25.6 to 25.8).
pub mod guest {
    #![expect(missing_docs, reason = "the manual's names say it")]
    use super::{Bits16, Bits32, Bits64, Field, Natural};

    kept_fields! {
        VPID: Bits16 = 0x0000;
        ES_SELECTOR: Bits16 = 0x0800;
        CS_SELECTOR: Bits16 = 0x0802;
        SS_SELECTOR: Bits16 = 0x0804;
        DS_SELECTOR: Bits16 = 0x0806;
        FS_SELECTOR: Bits16 = 0x0808;
        GS_SELECTOR: Bits16 = 0x080a;
        LDTR_SELECTOR: Bits16 = 0x080c;
        TR_SELECTOR: Bits16 = 0x080e;
        MSR_BITMAPS: Bits64 = 0x2004;
        TSC_OFFSET: Bits64 = 0x2010;
        EPT_POINTER: Bits64 = 0x201a;
        LINK_POINTER: Bits64 = 0x2800;
        DEBUG_CONTROL: Bits64 = 0x2802;
        PAT: Bits64 = 0x2804;
        EFER: Bits64 = 0x2806;
        PDPTE0: Bits64 = 0x280a;
        PDPTE1: Bits64 = 0x280c;
        PDPTE2: Bits64 = 0x280e;
        PDPTE3: Bits64 = 0x2810;
        PIN_CONTROLS: Bits32 = 0x4000;
        PRIMARY_CONTROLS: Bits32 = 0x4002;
        EXCEPTIONS: Bits32 = 0x4004;
        PAGE_FAULT_MASK: Bits32 = 0x4006;
        PAGE_FAULT_MATCH: Bits32 = 0x4008;
        CR3_TARGETS: Bits32 = 0x400a;
        EXIT_CONTROLS: Bits32 = 0x400c;
        EXIT_MSR_STORES: Bits32 = 0x400e;
        EXIT_MSR_LOADS: Bits32 = 0x4010;
        ENTRY_CONTROLS: Bits32 = 0x4012;
        ENTRY_MSR_LOADS: Bits32 = 0x4014;
        ENTRY_INTERRUPTION: Bits32 = 0x4016;
        ENTRY_ERROR_CODE: Bits32 = 0x4018;
        ENTRY_INSTRUCTION_LENGTH: Bits32 = 0x401a;
        SECONDARY_CONTROLS: Bits32 = 0x401e;
        ES_LIMIT: Bits32 = 0x4800;
        CS_LIMIT: Bits32 = 0x4802;
        SS_LIMIT: Bits32 = 0x4804;
        DS_LIMIT: Bits32 = 0x4806;
        FS_LIMIT: Bits32 = 0x4808;
        GS_LIMIT: Bits32 = 0x480a;
        LDTR_LIMIT: Bits32 = 0x480c;
        TR_LIMIT: Bits32 = 0x480e;
        GDTR_LIMIT: Bits32 = 0x4810;
        IDTR_LIMIT: Bits32 = 0x4812;
        ES_RIGHTS: Bits32 = 0x4814;
        CS_RIGHTS: Bits32 = 0x4816;
        SS_RIGHTS: Bits32 = 0x4818;
        DS_RIGHTS: Bits32 = 0x481a;
        FS_RIGHTS: Bits32 = 0x481c;
        GS_RIGHTS: Bits32 = 0x481e;
        LDTR_RIGHTS: Bits32 = 0x4820;
        TR_RIGHTS: Bits32 = 0x4822;
        INTERRUPTIBILITY: Bits32 = 0x4824;
        ACTIVITY: Bits32 = 0x4826;
        SYSENTER_CS: Bits32 = 0x482a;
        CR0_MASK: Natural = 0x6000;
        CR4_MASK: Natural = 0x6002;
        CR0_SHADOW: Natural = 0x6004;
        CR4_SHADOW: Natural = 0x6006;
        CR0: Natural = 0x6800;
        CR3: Natural = 0x6802;
        CR4: Natural = 0x6804;
        ES_BASE: Natural = 0x6806;
        CS_BASE: Natural = 0x6808;
        SS_BASE: Natural = 0x680a;
        DS_BASE: Natural = 0x680c;
        FS_BASE: Natural = 0x680e;
        GS_BASE: Natural = 0x6810;
        LDTR_BASE: Natural = 0x6812;
        TR_BASE: Natural = 0x6814;
        GDTR_BASE: Natural = 0x6816;
        IDTR_BASE: Natural = 0x6818;
        DR7: Natural = 0x681a;
        RSP: Natural = 0x681c;
        RIP: Natural = 0x681e;
        RFLAGS: Natural = 0x6820;
        PENDING_DEBUG: Natural = 0x6822;
        SYSENTER_ESP: Natural = 0x6824;
        SYSENTER_EIP: Natural = 0x6826;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_field_is_kept_twice() {
        let mut sorted = guest::KEPT.to_vec();
        sorted.dedup();
        assert!(sorted.is_sorted());
        assert_eq!(sorted.len(), guest::KEPT.len());
    }

    #[test]
    fn values_are_cut_to_their_fields_width() {
        let raw = 0x1122_3344_5566_7788;
        assert_eq!(Bits16::widen(Bits16::narrow(raw)), 0x7788);
        assert_eq!(Bits32::widen(Bits32::narrow(raw)), 0x5566_7788);
        assert_eq!(Bits64::narrow(raw), raw);
        assert_eq!(Natural::narrow(raw), raw);
    }
}
