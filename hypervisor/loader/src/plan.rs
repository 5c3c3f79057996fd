//! Where everything goes: secure loader block, region, guest pool.
//!
//! A place once given is marked as held in the map, so that two places can never overlap.
#![forbid(unsafe_code)]

use crate::map::{Kind, MapError, MemoryMap};
use crate::staged::Staged;
use core::fmt;
use dolmen_drtm::handoff::{Extent, REGION_ALIGN, SLB_SIZE};
use dolmen_memory::PAGE_SIZE;

/// First address above which neither the secure loader block nor the region may reach.
pub const LIMIT_4G: u64 = 1 << 32;
/// First address that the launch image cannot reach any more: it maps the low 512 GiB.
pub const LIMIT_MAPPED: u64 = 1 << 39;
/// The first MiB is left alone: firmware, option ROMs and processors' start-up code live there.
pub const LOW_MEMORY: u64 = 0x10_0000;
/// Size of the region when the configuration does not say.
pub const DEFAULT_REGION_MIB: u64 = 32;

/// Places for what the launch needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The secure loader block: [`SLB_SIZE`] bytes, aligned to that, below 4 GiB.
    pub slb: Extent,
    /// RAM for the core, aligned to [`REGION_ALIGN`], below 4 GiB.
    pub region: Extent,
    /// RAM for guests, aligned to [`REGION_ALIGN`]: the largest run that is left.
    pub guest_pool: Extent,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// No free run of RAM is big enough.
    NoRoom {
        /// What the room is for.
        what: &'static str,
        /// Bytes wanted.
        bytes: u64,
        /// Alignment wanted.
        align: u64,
        /// First address above which it may not reach.
        below: u64,
    },
    /// The memory map has no room to note the place.
    Map(MapError),
}

impl From<MapError> for PlanError {
    fn from(error: MapError) -> Self {
        Self::Map(error)
    }
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoom { what, bytes, align, below } => write!(
                f,
                "no free RAM for the {what}: {bytes} bytes in one piece, aligned to {align:#x}, below {below:#x}; \
                 add memory, or make region_mib or the boot files smaller"
            ),
            Self::Map(error) => error.fmt(f),
        }
    }
}

/// Makes `map` fit a hand-off around the files and chooses all places.
///
/// # Errors
/// A file is not in RAM, or the machine has too little free RAM.
pub fn lay_out(
    map: &mut MemoryMap,
    staged: &Staged,
    slb: Option<Extent>,
    region_bytes: u64,
) -> Result<Plan, PlanError> {
    for file in staged.files().iter().chain(&slb) {
        map.occupy(whole_pages(*file), Kind::Held)?;
    }
    map.limit_ranges(staged.files())?;
    plan(map, slb, region_bytes)
}

/// Chooses places for block, region and pool and marks them as held.
///
/// The block is filled before the launch, so it needs RAM that is free now, unless the caller has a place
/// for it already; region and pool are first used after it and may take what firmware or the loader still
/// occupies until then.
///
/// # Errors
/// The machine has too little free RAM.
pub fn plan(map: &mut MemoryMap, slb: Option<Extent>, region_bytes: u64) -> Result<Plan, PlanError> {
    let slb = match slb {
        Some(place) => place,
        None => place_slb(map)?,
    };
    let region = take(map, "region of the core", region_bytes, REGION_ALIGN, LIMIT_4G, is_free_at_launch)?;
    let guest_pool = largest(map, LIMIT_MAPPED).ok_or(PlanError::NoRoom {
        what: "guests",
        bytes: REGION_ALIGN,
        align: REGION_ALIGN,
        below: LIMIT_MAPPED,
    })?;
    map.occupy(guest_pool, Kind::Held)?;
    Ok(Plan { slb, region, guest_pool })
}

/// Chooses a place for a secure loader block and marks it as held.
///
/// # Errors
/// The machine has too little free RAM.
pub fn place_slb(map: &mut MemoryMap) -> Result<Extent, PlanError> {
    take(map, "secure loader block", SLB_SIZE, SLB_SIZE, LIMIT_4G, |kind| kind == Kind::Free)
}

/// Chooses a place for a copy of a boot file and marks it as held.
///
/// # Errors
/// The machine has too little free RAM.
pub fn place_file(map: &mut MemoryMap, bytes: u64, below: u64) -> Result<Extent, PlanError> {
    let place = take(map, "boot files", bytes, PAGE_SIZE, below, |kind| kind == Kind::Free)?;
    Ok(Extent { base: place.base, length: bytes })
}

fn is_free_at_launch(kind: Kind) -> bool {
    matches!(kind, Kind::Free | Kind::UntilLaunch)
}

/// The highest place in the smallest stretch that has one, so that the big stretches stay whole.
fn take(
    map: &mut MemoryMap,
    what: &'static str,
    bytes: u64,
    align: u64,
    below: u64,
    accept: impl Fn(Kind) -> bool,
) -> Result<Extent, PlanError> {
    let size = bytes.max(1).checked_next_multiple_of(PAGE_SIZE);
    let base = map
        .stretches(accept)
        .filter_map(|(base, end)| {
            let (low, high) = (base.max(LOW_MEMORY), end.min(below));
            let place = align_down(high.checked_sub(size?)?, align);
            (place >= low).then_some((end.saturating_sub(base), place))
        })
        .min()
        .map(|(_, place)| place)
        .ok_or(PlanError::NoRoom { what, bytes, align, below })?;
    let extent = Extent { base, length: bytes };
    map.occupy(Extent { base, length: size.unwrap_or(bytes) }, Kind::Held)?;
    Ok(extent)
}

/// The largest aligned run that is free at the launch.
fn largest(map: &MemoryMap, below: u64) -> Option<Extent> {
    map.stretches(is_free_at_launch)
        .filter_map(|(base, end)| {
            let low = base.max(LOW_MEMORY).checked_next_multiple_of(REGION_ALIGN)?;
            let length = align_down(end.min(below), REGION_ALIGN).checked_sub(low)?;
            (length > 0).then_some(Extent { base: low, length })
        })
        .max_by_key(|extent| extent.length)
}

/// The pages that `extent` touches.
fn whole_pages(extent: Extent) -> Extent {
    let base = align_down(extent.base, PAGE_SIZE);
    let end = extent.base.saturating_add(extent.length);
    let end = end.checked_next_multiple_of(PAGE_SIZE).unwrap_or(end);
    Extent { base, length: end.saturating_sub(base) }
}

/// `value` rounded down to a multiple of `align`, a power of two.
const fn align_down(value: u64, align: u64) -> u64 {
    value & !align.wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn map_of(entries: &[(u64, u64, Kind)]) -> MemoryMap {
        let mut map = MemoryMap::new();
        for (base, length, kind) in entries {
            map.add(*base, *length, *kind).unwrap();
        }
        map
    }

    #[test]
    fn a_machine_with_one_run_of_ram_gets_block_and_region_at_its_top() {
        let mut map = map_of(&[(0, 2048 * MIB, Kind::Free)]);
        let plan = plan(&mut map, None, 32 * MIB).unwrap();
        assert_eq!(plan.slb, Extent { base: 2048 * MIB - SLB_SIZE, length: SLB_SIZE });
        assert_eq!(plan.region, Extent { base: 2014 * MIB, length: 32 * MIB });
        assert_eq!(plan.guest_pool, Extent { base: 2 * MIB, length: 2012 * MIB });
    }

    #[test]
    fn small_runs_are_used_first_so_that_the_pool_stays_large() {
        let mut map = map_of(&[(16 * MIB, 40 * MIB, Kind::Free), (1024 * MIB, 512 * MIB, Kind::Free)]);
        let plan = plan(&mut map, None, 32 * MIB).unwrap();
        assert!(plan.slb.base < 56 * MIB && plan.region.base < 56 * MIB, "{plan:?}");
        assert_eq!(plan.guest_pool, Extent { base: 1024 * MIB, length: 512 * MIB });
    }

    #[test]
    fn the_pool_may_lie_above_four_gigabytes_but_block_and_region_may_not() {
        let mut map = map_of(&[(16 * MIB, 64 * MIB, Kind::Free), (4096 * MIB, 8192 * MIB, Kind::Free)]);
        let plan = plan(&mut map, None, 32 * MIB).unwrap();
        assert!(plan.region.base + plan.region.length <= LIMIT_4G);
        assert_eq!(plan.guest_pool, Extent { base: 4096 * MIB, length: 8192 * MIB });
    }

    #[test]
    fn nothing_is_placed_beyond_what_the_launch_image_maps() {
        let mut map =
            map_of(&[(16 * MIB, 64 * MIB, Kind::Free), (LIMIT_MAPPED - 8 * MIB, 1 << 40, Kind::Free)]);
        let plan = plan(&mut map, None, 32 * MIB).unwrap();
        assert_eq!(plan.guest_pool, Extent { base: 16 * MIB, length: 30 * MIB });
    }

    #[test]
    fn memory_in_use_until_the_launch_serves_the_region_but_not_the_block() {
        let mut map = map_of(&[(16 * MIB, 64 * MIB, Kind::UntilLaunch), (80 * MIB, 2 * MIB, Kind::Free)]);
        let plan = plan(&mut map, None, 32 * MIB).unwrap();
        assert!(plan.slb.base >= 80 * MIB, "{plan:?}");
        let mut busy = map_of(&[(16 * MIB, 64 * MIB, Kind::UntilLaunch)]);
        let error = super::plan(&mut busy, None, 32 * MIB).unwrap_err();
        assert!(error.to_string().contains("secure loader block"), "{error}");
    }

    #[test]
    fn what_holds_a_file_is_not_given_away_and_stays_ram() {
        let mut map = map_of(&[(2 * MIB, 100 * MIB, Kind::Free)]);
        let mut staged = Staged::default();
        assert!(staged.push(Extent { base: 50 * MIB, length: 5 * MIB + 1 }));
        let slb = Extent { base: 4 * MIB, length: SLB_SIZE };
        let plan = lay_out(&mut map, &staged, Some(slb), 32 * MIB).unwrap();
        assert_eq!(plan.slb, slb);
        assert_eq!(plan.region, Extent { base: 18 * MIB, length: 32 * MIB });
        assert_eq!(plan.guest_pool, Extent { base: 56 * MIB, length: 46 * MIB });
        assert_eq!(map.ranges().count(), 1);
    }

    #[test]
    fn too_little_memory_is_said_with_numbers_and_a_remedy() {
        let mut map = map_of(&[(0, 16 * MIB, Kind::Free)]);
        let text = plan(&mut map, None, 32 * MIB).unwrap_err().to_string();
        assert!(text.contains("33554432 bytes") && text.contains("add memory"), "{text}");
    }

    proptest! {
        #[test]
        fn places_are_aligned_in_free_ram_and_apart(
            entries in proptest::collection::vec((0..4200u64, 1..600u64, 0..4usize), 1..16),
            region in 1..64u64,
            files in proptest::collection::vec(1..3_000_000u64, 0..6),
        ) {
            let kinds = [Kind::Free, Kind::UntilLaunch, Kind::Held, Kind::Reserved];
            let mut map = MemoryMap::new();
            for (base, length, kind) in entries {
                map.add(base * MIB + 0x3000, length * 0x7_3000, kinds[kind]).unwrap();
            }
            let before = map.clone();
            let mut taken = Vec::new();
            for bytes in files {
                if let Ok(place) = place_file(&mut map, bytes, LIMIT_4G) {
                    prop_assert_eq!((place.base % 4096, place.length), (0, bytes));
                    taken.push((place, false, LIMIT_4G));
                }
            }
            if let Ok(plan) = plan(&mut map, None, region * 2 * MIB) {
                prop_assert_eq!(plan.slb.base % SLB_SIZE, 0);
                prop_assert_eq!(plan.region.base % REGION_ALIGN, 0);
                prop_assert_eq!(plan.guest_pool.base % REGION_ALIGN, 0);
                prop_assert_eq!(plan.guest_pool.length % REGION_ALIGN, 0);
                taken.push((plan.slb, false, LIMIT_4G));
                taken.push((plan.region, true, LIMIT_4G));
                taken.push((plan.guest_pool, true, LIMIT_MAPPED));
            }
            for (n, (place, at_launch, below)) in taken.iter().enumerate() {
                let (base, end) = (place.base, place.base + place.length);
                prop_assert!(base >= LOW_MEMORY && end <= *below);
                let free = |k: Kind| k == Kind::Free || (*at_launch && k == Kind::UntilLaunch);
                prop_assert!(before.stretches(free).any(|(b, e)| b <= base && end <= e), "{place:?} in {before:?}");
                for (other, ..) in taken.iter().skip(n + 1) {
                    prop_assert!(end <= other.base || other.base + other.length <= base);
                }
            }
        }
    }
}
