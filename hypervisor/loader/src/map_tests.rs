//! Tests of the memory map: tables of cases, then a byte-wise model.

use super::*;
use proptest::prelude::*;
use std::vec::Vec;

const KINDS: [Kind; 4] = [Kind::Free, Kind::UntilLaunch, Kind::Held, Kind::Reserved];

fn run(base: u64, end: u64, kind: Kind) -> Run {
    Run { base, end, kind }
}

fn map_of(entries: &[(u64, u64, Kind)]) -> MemoryMap {
    let mut map = MemoryMap::new();
    for (base, length, kind) in entries {
        map.add(*base, *length, *kind).unwrap();
    }
    map
}

#[test]
fn neighbours_of_one_kind_become_one_run() {
    let map = map_of(&[(0x2000, 0x1000, Kind::Free), (0, 0x1000, Kind::Free), (0x1000, 0x1000, Kind::Free)]);
    assert_eq!(map.runs(), [run(0, 0x3000, Kind::Free)]);
}

#[test]
fn where_firmware_contradicts_itself_the_stricter_word_wins() {
    let map =
        map_of(&[(0, 0x4000, Kind::Free), (0x1000, 0x1000, Kind::Reserved), (0x1800, 0x1000, Kind::Free)]);
    assert_eq!(
        map.runs(),
        [run(0, 0x1000, Kind::Free), run(0x1000, 0x2000, Kind::Reserved), run(0x2000, 0x4000, Kind::Free)]
    );
}

#[test]
fn occupying_what_is_not_ram_does_not_make_it_ram() {
    let mut map = map_of(&[(0, 0x1000, Kind::Reserved), (0x1000, 0x1000, Kind::Free)]);
    map.occupy(Extent { base: 0, length: 0x10000 }, Kind::Held).unwrap();
    assert_eq!(map.runs(), [run(0, 0x1000, Kind::Reserved), run(0x1000, 0x2000, Kind::Held)]);
}

#[test]
fn a_range_that_wraps_ends_at_the_top() {
    let map = map_of(&[(u64::MAX - 0xfff, u64::MAX, Kind::Reserved)]);
    assert_eq!(map.runs(), [run(u64::MAX - 0xfff, u64::MAX, Kind::Reserved)]);
}

#[test]
fn too_many_runs_are_an_error_and_not_a_loss() {
    let mut map = MemoryMap::new();
    for n in 0..MAX_RUNS as u64 {
        map.add(n * 0x2000, 0x1000, Kind::Free).unwrap();
    }
    assert_eq!(map.add(0x1_0000_0000, 0x1000, Kind::Free), Err(MapError::TooManyRuns));
}

#[test]
fn the_smallest_ram_goes_first_and_kept_ram_stays() {
    let mut map = MemoryMap::new();
    for n in 0..100u64 {
        let kind = if n % 2 == 0 { Kind::Free } else { Kind::Reserved };
        map.add(n * 0x10_0000, if n == 10 { 0x1000 } else { 0x10_0000 - n * 0x1000 }, kind).unwrap();
    }
    let kept = Extent { base: 10 * 0x10_0000, length: 0x1000 };
    map.limit_ranges(&[kept]).unwrap();
    assert!(map.ranges().count() <= MAX_RANGES);
    assert!(map.ranges().any(|r| r.kind == MemoryRange::RAM && covers(&r, &kept)));
}

#[test]
fn ram_below_one_mib_is_given_up_last() {
    let mut map = map_of(&[(0x8000, 0x1000, Kind::Held)]);
    for n in 1..100 {
        let kind = if n % 2 == 0 { Kind::Free } else { Kind::Reserved };
        map.add(n * 0x10_0000, 0x10_0000, kind).unwrap();
    }
    map.limit_ranges(&[]).unwrap();
    let low = MemoryRange { base: 0x8000, length: 0x1000, kind: MemoryRange::RAM };
    assert!(map.ranges().count() <= MAX_RANGES && map.ranges().any(|range| range == low));
}

#[test]
fn a_boot_file_outside_ram_is_named() {
    let mut map = map_of(&[(0, 0x1000, Kind::Free)]);
    let outside = Extent { base: 0x800, length: 0x1000 };
    assert_eq!(map.limit_ranges(&[outside]), Err(MapError::NotRam(outside)));
}

#[test]
fn reserved_ranges_apart_are_told_as_one_when_nothing_lies_between() {
    let map = map_of(&[
        (0, 0x1000, Kind::Reserved),
        (0x5000, 0x1000, Kind::Reserved),
        (0x6000, 0x1000, Kind::Free),
    ]);
    let ranges: Vec<_> = map.ranges().collect();
    assert_eq!(
        ranges,
        [
            MemoryRange { base: 0, length: 0x6000, kind: MemoryRange::RESERVED },
            MemoryRange { base: 0x6000, length: 0x1000, kind: MemoryRange::RAM },
        ]
    );
}

fn entries() -> impl Strategy<Value = Vec<(u64, u64, Kind, bool)>> {
    let entry = (0..64u64, 0..24u64, 0..4usize, any::<bool>());
    proptest::collection::vec(entry.prop_map(|(b, l, k, o)| (b, l, KINDS[k], o)), 0..24)
}

/// The map as one kind per byte: what each operation means, without any of the bookkeeping.
fn model(entries: &[(u64, u64, Kind, bool)]) -> [Option<Kind>; 96] {
    let mut bytes: [Option<Kind>; 96] = [None; 96];
    for (base, length, kind, occupy) in entries {
        for byte in bytes.iter_mut().skip(*base as usize).take(*length as usize) {
            *byte = match (*byte, occupy) {
                (Some(old), true) if old.is_ram() => Some(old.max(*kind)),
                (old, true) => old,
                (Some(old), false) => Some(old.max(*kind)),
                (None, false) => Some(*kind),
            };
        }
    }
    bytes
}

proptest! {
    #[test]
    fn the_map_agrees_with_a_map_of_single_bytes(entries in entries()) {
        let mut map = MemoryMap::new();
        for (base, length, kind, occupy) in &entries {
            if *occupy {
                map.occupy(Extent { base: *base, length: *length }, *kind).unwrap();
            } else {
                map.add(*base, *length, *kind).unwrap();
            }
        }
        let mut bytes = [None; 96];
        let mut last = 0;
        for run in map.runs() {
            prop_assert!(run.base >= last && run.end > run.base, "{map:?}");
            last = run.end;
            for byte in &mut bytes[run.base as usize..run.end as usize] {
                *byte = Some(run.kind);
            }
        }
        prop_assert_eq!(bytes, model(&entries));
    }

    #[test]
    fn limiting_only_ever_takes_ram_away(
        cuts in proptest::collection::vec((1..40u64, 0..40u64, any::<bool>()), 0..300),
    ) {
        let mut map = MemoryMap::new();
        let mut at = 0;
        for (length, gap, ram) in cuts {
            map.add(at, length, if ram { Kind::Free } else { Kind::Reserved }).unwrap();
            at += length + gap;
        }
        let before: Vec<_> = map.stretches(Kind::is_ram).collect();
        map.limit_ranges(&[]).unwrap();
        prop_assert!(map.ranges().count() <= MAX_RANGES);
        for stretch in map.stretches(Kind::is_ram) {
            prop_assert!(before.contains(&stretch));
        }
    }
}
