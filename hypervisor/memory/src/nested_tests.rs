use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Tables in a vector; frame `n` is the n-th table.
#[derive(Default)]
struct Tables {
    frames: Vec<[u64; 512]>,
    limit: usize,
}

impl Tables {
    fn new(limit: usize) -> Self {
        Self { frames: vec![[0; 512]], limit }
    }
}

fn number(frame: Hfn) -> usize {
    usize::try_from(frame.get()).unwrap()
}

impl TableMemory for Tables {
    fn read(&self, table: Hfn, index: u16) -> u64 {
        self.frames[number(table)][usize::from(index)]
    }
    fn write(&mut self, table: Hfn, index: u16, value: u64) {
        self.frames[number(table)][usize::from(index)] = value;
    }
    fn allocate(&mut self) -> Option<Hfn> {
        if self.frames.len() > self.limit {
            return None;
        }
        self.frames.push([0; 512]);
        Some(Hfn::containing(Hpa::new((self.frames.len() as u64 - 1) << 12)))
    }
}

const MIB2: u64 = 1 << 21;
const GIB: u64 = 1 << 30;

fn both<R: PartialEq + core::fmt::Debug>(npt: impl Fn() -> R, ept: impl Fn() -> R) -> R {
    let (npt, ept) = (npt(), ept());
    assert_eq!(npt, ept, "NPT and EPT agree");
    npt
}

fn leaves_after_mapping<F: EntryFormat>(gpa: u64, hpa: u64, bytes: u64, largest: PageSize) -> usize {
    let mut memory = Tables::new(100);
    let mut table = NestedTable::<F>::new(&mut memory).unwrap();
    table.map(&mut memory, (Gpa::new(gpa), Hpa::new(hpa), bytes), Rights::ALL, largest).unwrap();
    memory.frames.len()
}

#[test]
#[cfg_attr(miri, ignore = "takes too long in the interpreter")]
fn large_pages_are_used_where_both_sides_are_aligned_and_not_elsewhere() {
    for (gpa, hpa, bytes, largest, frames) in [
        (0, MIB2, 4 * MIB2, PageSize::Size2M, 4), // one directory
        (0, 4096, 4 * MIB2, PageSize::Size2M, 8), // host side unaligned: four tables of 4 KiB pages
        (0, GIB, GIB, PageSize::Size1G, 3),       // one 1 GiB page
        (0, GIB, GIB, PageSize::Size2M, 4),
        (4096, 4096, MIB2, PageSize::Size2M, 6), // straddles: two tables
        (0, 0, MIB2, PageSize::Size4K, 5),
    ] {
        let made = both(
            || leaves_after_mapping::<Npt>(gpa, hpa, bytes, largest),
            || leaves_after_mapping::<Ept>(gpa, hpa, bytes, largest),
        );
        assert_eq!(made, frames, "{gpa:#x} {hpa:#x} {bytes:#x} {largest:?}");
    }
}

#[test]
fn entries_have_the_bits_of_the_manuals() {
    let frame = Hfn::containing(Hpa::new(0x1234_5000));
    for (raw, want) in [
        (Npt::link(frame), 0x1234_5007),
        (Npt::leaf(frame, Rights::ALL, PageSize::Size4K), 0x1234_5007),
        (Npt::leaf(frame, Rights::READ, PageSize::Size4K), 0x8000_0000_1234_5005),
        (Npt::leaf(frame, Rights::ALL, PageSize::Size2M), 0x1234_5087),
        (Ept::link(frame), 0x1234_5007),
        (Ept::leaf(frame, Rights::ALL, PageSize::Size4K), 0x1234_5037),
        (Ept::leaf(frame, Rights::READ, PageSize::Size2M), 0x1234_50b1),
    ] {
        assert_eq!(raw, want, "{want:#x}");
    }
}

#[test]
fn a_large_page_is_never_misread_as_a_link() {
    let mut memory = Tables::new(100);
    let mut table = NestedTable::<Npt>::new(&mut memory).unwrap();
    table.map(&mut memory, (Gpa::new(0), Hpa::new(MIB2), MIB2), Rights::ALL, PageSize::Size2M).unwrap();
    let again =
        table.map(&mut memory, (Gpa::new(0x5000), Hpa::new(0x5000), 4096), Rights::ALL, PageSize::Size2M);
    assert_eq!(again, Err(MapError::Occupied(Gpa::new(0x5000))));
}

#[test]
fn unmapping_inside_a_large_page_splits_it_and_keeps_the_rest() {
    let mut memory = Tables::new(100);
    let mut table = NestedTable::<Npt>::new(&mut memory).unwrap();
    table.map(&mut memory, (Gpa::new(0), Hpa::new(GIB), GIB), Rights::READ, PageSize::Size1G).unwrap();
    let mut flushed = false;
    table.unmap(&mut memory, Gpa::new(MIB2 + 0x3000), 0x2000).unwrap().by(|| flushed = true);
    assert!(flushed);
    for (gpa, want) in [
        (MIB2 + 0x2fff, Some(GIB + MIB2 + 0x2fff)),
        (MIB2 + 0x3000, None),
        (MIB2 + 0x4fff, None),
        (MIB2 + 0x5000, Some(GIB + MIB2 + 0x5000)),
        (GIB - 1, Some(2 * GIB - 1)),
        (GIB, None),
    ] {
        let found = table.translate(&memory, Gpa::new(gpa));
        assert_eq!(found, want.map(|hpa| (Hpa::new(hpa), Rights::READ)), "{gpa:#x}");
    }
}

#[test]
fn a_range_that_was_unmapped_in_pieces_can_be_mapped_again() {
    let mut memory = Tables::new(100);
    let mut table = NestedTable::<Npt>::new(&mut memory).unwrap();
    let piece = (Gpa::new(0x5000), Hpa::new(0x5000), 0x3000);
    table.map(&mut memory, piece, Rights::ALL, PageSize::Size2M).unwrap();
    table.unmap(&mut memory, Gpa::new(0), MIB2).unwrap().by(|| ());
    table.map(&mut memory, (Gpa::new(0), Hpa::new(MIB2), MIB2), Rights::READ, PageSize::Size2M).unwrap();
    for at in [0, 0x5abc, MIB2 - 1] {
        assert_eq!(table.translate(&memory, Gpa::new(at)), Some((Hpa::new(MIB2 + at), Rights::READ)));
    }
}

#[test]
fn bad_ranges_are_refused() {
    let mut memory = Tables::new(100);
    let mut table = NestedTable::<Ept>::new(&mut memory).unwrap();
    for (gpa, hpa, bytes, want) in [
        (1, 0, 4096, MapError::Unaligned),
        (0, 1, 4096, MapError::Unaligned),
        (0, 0, 4097, MapError::Unaligned),
        (1 << 48, 0, 4096, MapError::OutsideAddressSpace),
        (0, !4095, 4096, MapError::OutsideAddressSpace),
    ] {
        let range = (Gpa::new(gpa), Hpa::new(hpa), bytes);
        assert_eq!(table.map(&mut memory, range, Rights::ALL, PageSize::Size4K), Err(want));
    }
    assert_eq!(table.translate(&memory, Gpa::new(1 << 48)), None);
}

#[test]
fn running_out_of_frames_is_an_error_not_a_panic() {
    let mut memory = Tables::new(2);
    let mut table = NestedTable::<Npt>::new(&mut memory).unwrap();
    let range = (Gpa::new(0), Hpa::new(0), 4096);
    assert_eq!(table.map(&mut memory, range, Rights::ALL, PageSize::Size4K), Err(MapError::OutOfFrames));
}

/// Pages of the model's address space: 3 × 2 MiB.
const PAGES: u64 = 3 * 512;

proptest! {
    #[test]
    #[cfg_attr(miri, ignore = "takes too long in the interpreter")]
    fn any_sequence_of_maps_and_unmaps_agrees_with_a_map_of_pages(
        operations in prop::collection::vec((any::<bool>(), 0..PAGES, 1..700u64, 0..8u64), 1..12)
    ) {
        let mut memory = Tables::new(1000);
        let mut table = NestedTable::<Npt>::new(&mut memory).unwrap();
        let mut model = BTreeMap::<u64, u64>::new();
        for (is_map, first, count, shift) in operations {
            let count = count.min(PAGES - first);
            let gpa = Gpa::new(first << 12);
            let hpa = Hpa::new((first + (shift << 8)) << 12);
            if is_map {
                if model.range(first..first + count).next().is_some() {
                    continue;
                }
                table.map(&mut memory, (gpa, hpa, count << 12), Rights::ALL, PageSize::Size2M).unwrap();
                model.extend((0..count).map(|n| (first + n, first + (shift << 8) + n)));
            } else {
                prop_assert_eq!(table.unmap(&mut memory, gpa, count << 12), Ok(Flush(())));
                model.retain(|page, _| *page < first || *page >= first + count);
            }
            for page in 0..PAGES {
                let found = table.translate(&memory, Gpa::new(page << 12 | 0xabc)).map(|(hpa, _)| hpa.get());
                prop_assert_eq!(found, model.get(&page).map(|frame| frame << 12 | 0xabc));
            }
        }
    }
}

/// What is wrong with an entry at this level (1 has pages of 4 KiB) by Intel's rules of misconfiguration (SDM vol. 3C,
/// 29.3.3.1); the processor would leave the guest for it with nothing that anybody could answer.
fn misconfigured(raw: u64, level: u32) -> Option<&'static str> {
    const ADDRESS: u64 = (1 << 40) - 1;
    let (rights, memory_type) = (raw & 7, raw >> 3 & 7);
    let is_leaf = level == 1 || level < 4 && raw & LARGE != 0;
    let low = if is_leaf { (1u64 << (12 + 9 * (level - 1))) - (1 << 12) } else { 0 };
    match rights {
        0 => None,
        2 | 6 => Some("writable, but not readable"),
        4 => Some("executable alone, which not every processor has"),
        _ if raw & !ADDRESS != 0 => Some("beyond the processor's addresses"),
        _ if raw & low != 0 => Some("a large page that is not aligned"),
        _ if is_leaf && [2, 3, 7].contains(&memory_type) => Some("a memory type that does not exist"),
        _ if !is_leaf && raw & 0xf8 != 0 => Some("reserved bits of a link"),
        _ => None,
    }
}

/// The first misconfigured entry of a table and of those below.
fn fault_in(memory: &Tables, table: Hfn, level: u32) -> Option<&'static str> {
    memory.frames[number(table)].iter().find_map(|raw| {
        misconfigured(*raw, level).or_else(|| {
            let is_link = *raw & 7 != 0 && level > 1 && *raw & LARGE == 0;
            if is_link { fault_in(memory, frame_of(*raw), level - 1) } else { None }
        })
    })
}

#[test]
fn each_rule_of_misconfiguration_finds_its_entry() {
    for (raw, level) in [
        (0x1002, 1),
        (0x1006, 1),
        (0x1004, 1),
        (1 << 45 | 0x37, 1),
        (0x1000 | 0xb7, 2),
        (0x1017, 1),
        (0x103f, 1),
        (0x100f, 2),
        (0x1087, 4),
    ] {
        assert!(misconfigured(raw, level).is_some(), "{raw:#x}");
    }
}

proptest! {
    #[test]
    #[cfg_attr(miri, ignore = "takes too long in the interpreter")]
    fn no_sequence_of_maps_and_unmaps_misconfigures_an_entry(
        operations in prop::collection::vec((any::<bool>(), any::<bool>(), 0..PAGES, 1..700u64, 0..8u64), 1..12)
    ) {
        let mut memory = Tables::new(1000);
        let mut table = NestedTable::<Ept>::new(&mut memory).unwrap();
        for (is_map, is_writable, first, count, shift) in operations {
            let range = (Gpa::new(first << 12), Hpa::new((first + (shift << 8)) << 12), count << 12);
            let rights = if is_writable { Rights::ALL } else { Rights::READ };
            if is_map {
                // What is mapped already is refused on the way, and what came before stays.
                let mapped = table.map(&mut memory, range, rights, PageSize::Size2M);
                prop_assert!(matches!(mapped, Ok(()) | Err(MapError::Occupied(_))));
            } else {
                prop_assert_eq!(table.unmap(&mut memory, range.0, range.2), Ok(Flush(())));
            }
            prop_assert_eq!(fault_in(&memory, table.root(), 4), None);
        }
    }
}
