//! Permission maps in frames of the region: everything is denied but what is allowed bit by bit.

use dolmen_arch::bits::low16;
use dolmen_memory::{Hfn, Hpa, PAGE_SIZE};

use crate::region::{ENTRIES, Region};
use crate::segments::to_u64;

/// A map in which every bit is set; `None` when the region is used up.
pub(crate) fn denied(region: &mut Region, bytes: usize) -> Option<Hfn> {
    let pages = to_u64(bytes) / PAGE_SIZE;
    let first = region.allocate_run(pages)?;
    for page in 0..pages {
        let frame = page_of(first, page);
        for index in 0..ENTRIES {
            region.write(frame, index, u64::MAX);
        }
    }
    Some(first)
}

/// Clears the bits `mask` of one byte of a map, of which the region gives us 64-bit words.
pub(crate) fn allow(region: &mut Region, map: Hfn, byte: usize, mask: u8) {
    let offset = to_u64(byte);
    let frame = page_of(map, offset / PAGE_SIZE);
    let index = low16(offset % PAGE_SIZE / 8);
    let mut word = region.read(frame, index).to_le_bytes();
    for (place, byte) in (0u64..).zip(word.iter_mut()) {
        if place == offset % 8 {
            *byte &= !mask;
        }
    }
    region.write(frame, index, u64::from_le_bytes(word));
}

const fn page_of(first: Hfn, page: u64) -> Hfn {
    Hfn::containing(Hpa::new(first.base().get().wrapping_add(page.wrapping_mul(PAGE_SIZE))))
}
