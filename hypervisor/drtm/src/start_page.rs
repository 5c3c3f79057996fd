//! A page of the first MiB for processors to start in.

use crate::handoff::{Extent, MemoryRange};

const PAGE: u32 = 0x1000;
/// End of what can be RAM: the video memory begins here.
const END: u32 = 0xa_0000;

/// The highest page below 640 KiB that lies in a range of RAM, in no other range, and that `is_ram` accepts: `memory`
/// is the firmware's map, which is not believed alone. Never page 0.
pub fn find(memory: &[MemoryRange], is_ram: impl Fn(u32) -> bool) -> Option<u32> {
    (1..END / PAGE).rev().map(|index| index.wrapping_mul(PAGE)).find(|page| {
        let extent = Extent { base: u64::from(*page), length: u64::from(PAGE) };
        let (mut is_inside, mut is_clear) = (false, true);
        for range in memory {
            let told = Extent { base: range.base, length: range.length };
            if range.kind == MemoryRange::RAM {
                let end = range.base.saturating_add(range.length);
                is_inside |= range.base <= extent.base && extent.base.saturating_add(extent.length) <= end;
            } else {
                is_clear &= !told.meets(extent);
            }
        }
        is_inside && is_clear && is_ram(*page)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn range(base: u64, end: u64, kind: u64) -> MemoryRange {
        MemoryRange { base, length: end - base, kind }
    }

    #[test]
    fn the_highest_page_of_low_ram_that_nothing_forbids_is_taken() {
        let ram = range(0, 0x9_fc00, MemoryRange::RAM);
        let firmware = range(0x9_0000, 0x9_a001, MemoryRange::RESERVED);
        assert_eq!(find(&[ram], |_| true), Some(0x9_e000));
        assert_eq!(find(&[ram, firmware], |_| true), Some(0x9_e000));
        assert_eq!(find(&[ram, range(0x9_b000, 0xa_0000, 7)], |_| true), Some(0x9_a000));
        assert_eq!(find(&[ram, firmware, range(0x9_b000, 0xa_0000, 7)], |_| true), Some(0x8_f000));
        assert_eq!(find(&[ram], |page| page < 0x8000), Some(0x7000));
    }

    #[test]
    fn without_ram_or_with_page_zero_alone_there_is_none() {
        assert_eq!(find(&[], |_| true), None);
        assert_eq!(find(&[range(0, 0x1000, MemoryRange::RAM)], |_| true), None);
        assert_eq!(find(&[range(0, u64::MAX, MemoryRange::RAM)], |_| false), None);
        assert_eq!(find(&[range(0x10_0000, 1 << 32, MemoryRange::RAM)], |_| true), None);
    }
}
