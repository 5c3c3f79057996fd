//! Addresses that cannot be mixed up: guest-virtual, guest-physical, host-physical.

use core::fmt;

/// Bytes of a page.
pub const PAGE_SIZE: u64 = 4096;

macro_rules! address {
    ($name:ident, $doc:literal) => {
        #[doc = $doc]
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a raw address.
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }
            /// The raw address.
            pub const fn get(self) -> u64 {
                self.0
            }
            /// The address `offset` bytes on, unless that wraps.
            pub const fn checked_add(self, offset: u64) -> Option<Self> {
                match self.0.checked_add(offset) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }
            /// Whether the address is a multiple of `align`, a power of two.
            pub const fn is_aligned(self, align: u64) -> bool {
                self.0 & align.wrapping_sub(1) == 0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address!(Gva, "A guest-virtual address.");
address!(Gpa, "A guest-physical address.");
address!(Hpa, "A host-physical address.");

/// A 4 KiB host frame, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hfn(u64);

impl Hfn {
    /// The frame that `address` lies in.
    pub const fn containing(address: Hpa) -> Self {
        Self(address.get() >> 12)
    }
    /// The first byte of the frame.
    pub const fn base(self) -> Hpa {
        Hpa::new(self.0 << 12)
    }
    /// The frame's number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// Nine bits of an address, from bit `shift`: an index into a table of 512 entries.
#[expect(clippy::as_conversions, reason = "nine bits fit")]
pub(crate) const fn table_index(address: u64, shift: u32) -> u16 {
    (address >> shift & 0x1ff) as u16
}
