//! The region and what is staged: the RAM that the hand-off gives away, before and after DMA is closed.
#![expect(unsafe_code, reason = "RAM is read and written by address")]
// UNSAFETY: every address is checked to lie in an extent of `Claims`, which proves that it is RAM, disjoint from
// all others and from the block, where all objects of the launch image lie until pieces of the region are taken.

use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};

use dolmen_drtm::check::Claims;
use dolmen_drtm::handoff::{CORE_VA, Extent, LAUNCH_VA};

use super::{
    LARGE, LARGE_PAGE, MEMORY_VA, NO_EXECUTE, PAGE, PRESENT, WRITABLE, memory, to_u64, to_usize, window,
};
use crate::entry_launch;

/// Takes the RAM that the hand-off gives away.
#[must_use]
pub const fn claim(claims: Claims) -> (Staged, Region) {
    let region = Region { extent: claims.region() };
    (Staged { claims }, region)
}

/// What the loader staged, to be copied from.
#[derive(Debug)]
pub struct Staged {
    claims: Claims,
}

impl Staged {
    /// Bytes of the core's file.
    #[must_use]
    pub const fn core_bytes(&self) -> u64 {
        self.claims.core().length
    }

    /// Bytes of the manifest.
    #[must_use]
    pub const fn manifest_bytes(&self) -> u64 {
        self.claims.manifest().length
    }

    /// Copies the core; whether it is mapped.
    pub fn copy_core(&self, into: &mut [u8]) -> bool {
        copy(self.claims.core(), into)
    }

    /// Copies the manifest; whether it is mapped.
    pub fn copy_manifest(&self, into: &mut [u8]) -> bool {
        copy(self.claims.manifest(), into)
    }
}

fn copy(from: Extent, into: &mut [u8]) -> bool {
    let Some(source) = memory(from.base, from.length) else { return false };
    let count = into.len().min(to_usize(from.length));
    // SAFETY: RAM by the check of the hand-off, and disjoint from the region by it; `into` is at least as long.
    unsafe { into.as_mut_ptr().copy_from_nonoverlapping(with_exposed_provenance(source), count) };
    true
}

/// The region while devices may write it: words only, each read as it is at that moment.
#[derive(Debug)]
pub struct Region {
    extent: Extent,
}

impl Region {
    /// Where it is.
    #[must_use]
    pub const fn extent(&self) -> Extent {
        self.extent
    }

    /// Reads 64 bits by physical address; `None` outside.
    #[must_use]
    pub fn load(&self, at: u64) -> Option<u64> {
        let word = word_in(self.extent, at)?;
        // SAFETY: RAM of the region, by the check of the hand-off; no object lies in it.
        Some(unsafe { with_exposed_provenance::<u64>(word).read_volatile() })
    }

    /// Writes 64 bits by physical address; whether it is inside.
    pub fn store(&mut self, at: u64, value: u64) -> bool {
        let Some(word) = word_in(self.extent, at) else { return false };
        // SAFETY: as in `load`.
        unsafe { with_exposed_provenance_mut::<u64>(word).write_volatile(value) };
        true
    }

    /// What lies below physical address `end`, now that no device can write it. Only the shield stage calls this,
    /// when it has seen every IOMMU refuse everything.
    #[must_use]
    pub const fn shielded(self, end: u64) -> ShieldedRegion {
        ShieldedRegion { extent: self.extent, next: self.extent.base, end }
    }
}

fn word_in(extent: Extent, at: u64) -> Option<usize> {
    let offset = at.checked_sub(extent.base)?;
    let is_inside = offset.is_multiple_of(8) && offset < extent.length;
    if is_inside { memory(at, 8) } else { None }
}

/// The region when nobody but us writes it: given away piece by piece, from its start.
#[derive(Debug)]
pub struct ShieldedRegion {
    extent: Extent,
    next: u64,
    end: u64,
}

impl ShieldedRegion {
    /// Where it is.
    #[must_use]
    pub const fn extent(&self) -> Extent {
        self.extent
    }

    /// What nobody has yet.
    #[must_use]
    pub const fn free(&self) -> Extent {
        Extent { base: self.next, length: self.end.saturating_sub(self.next) }
    }

    /// The next `length` bytes; `None` when there are not as many. Pieces of whole pages are page-aligned when
    /// all before them were.
    #[inline(never)]
    pub fn take(&mut self, length: u64) -> Option<&'static mut [u8]> {
        let start = self.next;
        let end = start.checked_add(length).filter(|end| *end <= self.end)?;
        let at = memory(start, length)?;
        self.next = end;
        // SAFETY: RAM of the region, which devices cannot write any more; each byte is given away once.
        Some(unsafe { core::slice::from_raw_parts_mut(with_exposed_provenance_mut(at), to_usize(length)) })
    }

    /// The last `length` bytes, of whole pages; `None` when there are not as many.
    pub fn take_last(&mut self, length: u64) -> Option<&'static mut [u8]> {
        let start = self.end.checked_sub(length).filter(|start| *start >= self.next)?;
        let at = memory(start, length)?;
        self.end = start;
        // SAFETY: as in `take`.
        Some(unsafe { core::slice::from_raw_parts_mut(with_exposed_provenance_mut(at), to_usize(length)) })
    }

    /// Makes page tables at the end of the region, which map the first 512 GiB one to one, the block as it is mapped
    /// now, and the region at `CORE_VA`.
    ///
    /// `None` when there is no room.
    pub fn map_for_core(&mut self) -> Option<Root> {
        let tables = self.take_last(4 * PAGE)?;
        let root = extent_of(tables).base;
        tables.fill(0);
        let (entries, _) = tables.as_chunks_mut::<8>();
        let mut set = |table: u64, slot: u64, value: u64| {
            if let Some(entry) = entries.get_mut(to_usize(table.wrapping_mul(512).wrapping_add(slot))) {
                *entry = (value | WRITABLE | PRESENT).to_le_bytes();
            }
        };
        let page = |table: u64| root.wrapping_add(table.wrapping_mul(PAGE));
        for slot in 0..512 {
            set(1, slot, slot << 30 | LARGE | NO_EXECUTE);
            let offset = slot.wrapping_mul(LARGE_PAGE);
            if offset < self.extent.length {
                set(3, slot, self.extent.base.wrapping_add(offset) | LARGE);
            }
        }
        set(0, 0, page(1));
        set(0, 511, page(2));
        set(2, (LAUNCH_VA >> 30) & 0x1ff, window());
        set(2, (CORE_VA >> 30) & 0x1ff, page(3));
        Some(Root(root))
    }

    /// Jumps to byte `entry` of the region with the physical address of `handoff`, which lies in it.
    pub fn enter_core<H>(self, root: Root, entry: u32, handoff: &'static H) -> ! {
        let handoff = to_u64(core::ptr::from_ref(handoff).addr()).wrapping_sub(MEMORY_VA);
        // SAFETY: `root` maps the region at CORE_VA and the rest as promised; the last stage alone gets here, with the
        // measured core's entry.
        unsafe { entry_launch::jump(root.0, CORE_VA.wrapping_add(u64::from(entry)), handoff) }
    }
}

/// Page tables for the core.
#[derive(Debug)]
pub struct Root(u64);

/// Where bytes of the region are physically.
#[must_use]
pub fn extent_of(bytes: &[u8]) -> Extent {
    Extent { base: to_u64(bytes.as_ptr().addr()).wrapping_sub(MEMORY_VA), length: to_u64(bytes.len()) }
}
