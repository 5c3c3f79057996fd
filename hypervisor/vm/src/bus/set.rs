//! Sets of a guest's vCPUs.

use super::MAX_VCPUS;

/// Some of the vCPUs of one guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuSet(u8);

const _: () = assert!(MAX_VCPUS == 8, "a set has one bit for each");

impl VcpuSet {
    /// No vCPU.
    pub const EMPTY: Self = Self(0);

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether vCPU `index` is in.
    pub fn contains(self, index: usize) -> bool {
        self.0 & Self::bit(index) != 0
    }

    /// This set and vCPU `index`.
    pub fn with(self, index: usize) -> Self {
        Self(self.0 | Self::bit(index))
    }

    /// This set without vCPU `index`.
    pub fn without(self, index: usize) -> Self {
        Self(self.0 & !Self::bit(index))
    }

    /// Those that are in either.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Indices, in order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..MAX_VCPUS).filter(move |index| self.contains(*index))
    }

    fn bit(index: usize) -> u8 {
        u32::try_from(index).ok().and_then(|index| 1u8.checked_shl(index)).unwrap_or(0)
    }
}
