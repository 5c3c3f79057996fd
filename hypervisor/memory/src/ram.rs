//! Where a guest's RAM lies in the host: a short list of extents.

use crate::address::{Gpa, Hpa};
use crate::guest::OutsideRam;

/// Most extents of one guest.
pub const MAX_EXTENTS: usize = 4;

/// Guest-physical RAM that is contiguous in the host too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamExtent {
    /// First guest-physical byte.
    pub gpa: Gpa,
    /// First host-physical byte.
    pub hpa: Hpa,
    /// Length in bytes.
    pub bytes: u64,
}

/// Why a guest's RAM cannot be described.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RamMapError {
    /// More than [`MAX_EXTENTS`].
    TooMany,
    /// An extent wraps, or overlaps or precedes the one before it.
    Disordered,
}

/// All RAM of one guest, in the order of guest-physical addresses.
#[derive(Clone, Copy, Debug)]
pub struct RamMap {
    extents: [RamExtent; MAX_EXTENTS],
    used: usize,
}

const NOTHING: RamExtent = RamExtent { gpa: Gpa::new(0), hpa: Hpa::new(0), bytes: 0 };

impl RamMap {
    /// Describes a guest's RAM; empty extents are left out.
    ///
    /// # Errors
    /// [`RamMapError`].
    pub fn new(extents: &[RamExtent]) -> Result<Self, RamMapError> {
        let mut map = Self { extents: [NOTHING; MAX_EXTENTS], used: 0 };
        let mut end = 0;
        for extent in extents.iter().filter(|extent| extent.bytes > 0) {
            if extent.gpa.get() < end || extent.hpa.checked_add(extent.bytes).is_none() {
                return Err(RamMapError::Disordered);
            }
            end = extent.gpa.checked_add(extent.bytes).ok_or(RamMapError::Disordered)?.get();
            *map.extents.get_mut(map.used).ok_or(RamMapError::TooMany)? = *extent;
            map.used = map.used.saturating_add(1);
        }
        Ok(map)
    }

    /// The extents in order.
    pub fn extents(&self) -> &[RamExtent] {
        self.extents.get(..self.used).unwrap_or_default()
    }

    /// Where the `bytes` bytes at `at` lie in the host. RAM that is contiguous for the guest but not for the
    /// host is no range: extents follow holes of the guest's address space, never RAM directly.
    ///
    /// # Errors
    /// [`OutsideRam`] unless one extent holds all of them.
    #[inline(always)]
    pub fn locate(&self, at: Gpa, bytes: u64) -> Result<Hpa, OutsideRam> {
        // Unused extents are empty, so nothing lies in them; `new` saw to it that no sum wraps.
        for extent in &self.extents {
            let offset = at.get().wrapping_sub(extent.gpa.get());
            if offset < extent.bytes && bytes <= extent.bytes.wrapping_sub(offset) {
                return Ok(Hpa::new(extent.hpa.get().wrapping_add(offset)));
            }
        }
        Err(OutsideRam)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(gpa: u64, hpa: u64, bytes: u64) -> RamExtent {
        RamExtent { gpa: Gpa::new(gpa), hpa: Hpa::new(hpa), bytes }
    }

    #[test]
    fn ranges_are_found_up_to_the_last_byte_and_not_beyond() {
        let map =
            RamMap::new(&[extent(0, 0x20_0000, 0x4000), extent(0x1_0000_0000, 0x60_0000, 0x1000)]).unwrap();
        for (at, bytes, want) in [
            (0, 1, Some(0x20_0000)),
            (0x3fff, 1, Some(0x20_3fff)),
            (0x3fff, 2, None),
            (0x4000, 1, None),
            (0, 0x4000, Some(0x20_0000)),
            (0, 0x4001, None),
            (0xffff_ffff, 1, None),
            (0xffff_ffff, 2, None),
            (0x1_0000_0fff, 1, Some(0x60_0fff)),
            (u64::MAX, 2, None),
        ] {
            assert_eq!(map.locate(Gpa::new(at), bytes).ok().map(Hpa::get), want, "{at:#x} {bytes}");
        }
    }

    #[test]
    fn overlapping_wrapping_or_too_many_extents_are_refused() {
        let error = |extents: &[RamExtent]| RamMap::new(extents).unwrap_err();
        assert_eq!(error(&[extent(0, 0, 0x2000), extent(0x1000, 0x8000, 0x1000)]), RamMapError::Disordered);
        assert_eq!(error(&[extent(u64::MAX - 1, 0, 0x1000)]), RamMapError::Disordered);
        assert_eq!(error(&[extent(0, u64::MAX - 1, 0x1000)]), RamMapError::Disordered);
        let five: Vec<_> = (0..5).map(|n| extent(n * 0x2000, n * 0x2000, 0x1000)).collect();
        assert_eq!(error(&five), RamMapError::TooMany);
    }
}
