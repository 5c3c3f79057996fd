//! Segment registers as a control block holds them (APM vol. 2, 15.5.1, appendix B).

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

bitflags! {
    /// Segment attributes, packed as AMD's control block has them: descriptor bits 55:52 over 47:40.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Attributes: u16 {
        /// Type bit 0: accessed.
        const ACCESSED = 1 << 0;
        /// Type bit 1: writable data, or readable code.
        const WRITABLE = 1 << 1;
        /// Type bit 3: code.
        const CODE = 1 << 3;
        /// Code or data, not system.
        const USER = 1 << 4;
        /// Privilege level, low bit.
        const DPL0 = 1 << 5;
        /// Privilege level, high bit.
        const DPL1 = 1 << 6;
        /// Present.
        const PRESENT = 1 << 7;
        /// 64-bit code.
        const LONG = 1 << 9;
        /// 32-bit default size.
        const DEFAULT = 1 << 10;
        /// Limit in pages.
        const GRANULAR = 1 << 11;
        const _ = !0;
    }
}

impl Attributes {
    /// Flat 32-bit code of ring 0.
    pub const CODE32: Self = Self::DATA32.union(Self::CODE);
    /// Flat 32-bit data of ring 0.
    pub const DATA32: Self = Self::ACCESSED
        .union(Self::WRITABLE)
        .union(Self::USER)
        .union(Self::PRESENT)
        .union(Self::DEFAULT)
        .union(Self::GRANULAR);
    /// 64-bit code of ring 0.
    pub const CODE64: Self = Self::ACCESSED
        .union(Self::WRITABLE)
        .union(Self::CODE)
        .union(Self::USER)
        .union(Self::PRESENT)
        .union(Self::LONG)
        .union(Self::GRANULAR);
    /// A busy 32- or 64-bit TSS: type 1011b.
    pub const TSS_BUSY: Self = Self::from_bits_retain(0xb).union(Self::PRESENT);
    /// A local descriptor table: type 0010b.
    pub const LDT: Self = Self::from_bits_retain(0x2).union(Self::PRESENT);

    /// The descriptor's privilege level.
    pub const fn dpl(self) -> u8 {
        match (self.contains(Self::DPL1), self.contains(Self::DPL0)) {
            (false, false) => 0,
            (false, true) => 1,
            (true, false) => 2,
            (true, true) => 3,
        }
    }
}

/// One segment register: what is visible, and what the processor remembers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// [`Attributes`], raw.
    pub attributes: u16,
    /// Limit in bytes, as expanded.
    pub limit: u32,
    /// Base.
    pub base: u64,
}

const _: () = assert!(size_of::<Segment>() == 16);

impl Segment {
    /// A segment over all of 4 GiB.
    pub const fn flat(selector: u16, attributes: Attributes) -> Self {
        Self { selector, attributes: attributes.bits(), limit: 0xffff_ffff, base: 0 }
    }

    /// A descriptor table or a system segment.
    pub const fn table(base: u64, limit: u32, attributes: Attributes) -> Self {
        Self { selector: 0, attributes: attributes.bits(), limit, base }
    }

    /// The attributes, typed.
    pub const fn attributes(self) -> Attributes {
        Attributes::from_bits_retain(self.attributes)
    }
}

/// A segment register by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentName {
    /// ES.
    Es,
    /// CS.
    Cs,
    /// SS.
    Ss,
    /// DS.
    Ds,
    /// FS.
    Fs,
    /// GS.
    Gs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packed_attributes_are_those_of_the_manual() {
        assert_eq!(Attributes::CODE32.bits(), 0xc9b);
        assert_eq!(Attributes::DATA32.bits(), 0xc93);
        assert_eq!(Attributes::CODE64.bits(), 0xa9b);
        assert_eq!(Attributes::TSS_BUSY.bits(), 0x08b);
        assert_eq!(Attributes::LDT.bits(), 0x082);
    }

    #[test]
    fn the_privilege_level_comes_from_two_bits() {
        for (raw, dpl) in [(0x093, 0), (0x0b3, 1), (0x0d3, 2), (0x0f3, 3)] {
            assert_eq!(Attributes::from_bits_retain(raw).dpl(), dpl);
        }
    }
}
