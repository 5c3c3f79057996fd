use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::map::{BaseMask, DramRegisters};

const VALID: u64 = 1 << 11;
const SLB: u64 = 0x100_0000;
const TPM: Extent = Extent { base: 0xfed4_0000, length: 0x5000 };

/// A change of the hand-off, and access to one of its extents.
type Change = fn(&mut Handoff);
type Place = fn(&mut Handoff) -> &mut Extent;

const fn extent(base: u64, length: u64) -> Extent {
    Extent { base, length }
}

/// 2 GiB of RAM, TSeg in its last 8 MiB, nothing above.
fn map() -> Map {
    let mut map = Map {
        physical_bits: 40,
        apic_base: 0xfee0_0000 | VALID,
        mtrr_default: VALID,
        mtrr_count: 1,
        dram: Some(DramRegisters { syscfg: 1 << 20, top_mem: 2 * GIB, ..DramRegisters::default() }),
        smm: BaseMask { base: 0x7f80_0000, mask: 0xff_ff80_0002 },
        ..Map::default()
    };
    map.mtrrs[0] = BaseMask { base: 6, mask: 0xff_8000_0000 | VALID };
    map
}

fn good() -> Handoff {
    let mut handoff = Handoff {
        magic: Handoff::MAGIC,
        version: Handoff::VERSION,
        component_count: 2,
        memory_count: 1,
        cpu_count: 3,
        cpus_left_out: 5,
        reserved: 0,
        core: extent(0x200_0000, 0x8_0000),
        manifest: extent(0x220_0000, 0x400),
        region: extent(0x400_0000, 0x200_0000),
        guest_pool: extent(0x1000_0000, 0x4000_0000),
        rsdp: 0xf_52a0,
        apic_ids: [0; MAX_CPUS],
        components: [Extent::default(); MAX_COMPONENTS],
        memory: [MemoryRange::default(); MAX_RANGES],
    };
    handoff.apic_ids[..3].copy_from_slice(&[0, 1, 300]);
    handoff.components[0] = extent(0x800_0000, 0xc0_1234);
    handoff.components[1] = extent(0xa00_0000, 0x10_0001);
    handoff
}

#[test]
fn an_honest_hand_off_is_taken_as_it_is() {
    let handoff = good();
    let checked = check(&handoff, &map(), SLB, &[TPM]).unwrap();
    assert_eq!(checked.slb(), extent(SLB, SLB_SIZE));
    assert_eq!(checked.components(), &good().components[..2]);
    assert_eq!(checked.memory().len(), 1);
    assert_eq!(checked.rsdp(), 0xf_52a0);
    assert_eq!((checked.apic_ids(), checked.cpus_left_out()), (&[0, 1, 300][..], 5));
    let (claims, passed) = checked.claim();
    assert_eq!(passed.memory().len(), 1);
    assert_eq!((claims.core(), claims.region()), (good().core, good().region));
}

#[test]
fn every_lie_about_one_part_is_named() {
    use CheckError as E;
    use MapError as M;
    let table: [(&str, Change, CheckError); 32] = [
        ("magic", |h| h.magic[7] = 0, E::Magic),
        ("version", |h| h.version = 1, E::Version(1)),
        ("reserved", |h| h.reserved = 1, E::Reserved(1)),
        ("97 components", |h| h.component_count = 97, E::Components(97)),
        ("33 processors", |h| h.cpu_count = 33, E::Cpus(33)),
        ("all components", |h| h.component_count = u32::MAX, E::Components(u32::MAX)),
        ("65 ranges", |h| h.memory_count = 65, E::Ranges(65)),
        ("no core", |h| h.core.length = 0, E::TooShort(Part::Core)),
        ("core shorter than its header", |h| h.core.length = 31, E::TooShort(Part::Core)),
        ("core too long", |h| h.core.length = MAX_CORE + 1, E::TooLong(Part::Core)),
        ("core wraps", |h| h.core.base = u64::MAX - 1, E::NotRam(Part::Core, M::BeyondWidth)),
        ("core at 0", |h| h.core.base = 0, E::NotRam(Part::Core, M::LowMemory)),
        ("core on MMIO", |h| h.core.base = 0xfeb0_0000, E::NotRam(Part::Core, M::NotDram)),
        ("core on the APIC page", |h| h.core.base = 0xfee0_0000, E::NotRam(Part::Core, M::Apic)),
        ("core in TSeg", |h| h.core.base = 0x7f90_0000, E::NotRam(Part::Core, M::Smram)),
        ("no manifest", |h| h.manifest.length = 0, E::TooShort(Part::Manifest)),
        ("manifest too long", |h| h.manifest.length = MAX_MANIFEST + 1, E::TooLong(Part::Manifest)),
        ("manifest on the TPM", |h| h.manifest.base = TPM.base, E::NotRam(Part::Manifest, M::NotDram)),
        ("region unaligned", |h| h.region.base += 0x1000, E::Unaligned(Part::Region)),
        ("region of odd length", |h| h.region.length -= 0x1000, E::Unaligned(Part::Region)),
        ("region too short", |h| h.region.length = 0x60_0000, E::TooShort(Part::Region)),
        ("region too long", |h| h.region.length = MAX_REGION + REGION_ALIGN, E::TooLong(Part::Region)),
        ("region above 4 GiB", |h| h.region.base = 4 * GIB, E::AboveFourGib(Part::Region)),
        ("region across 4 GiB", |h| h.region.base = 4 * GIB - REGION_ALIGN, E::AboveFourGib(Part::Region)),
        ("no pool", |h| h.guest_pool.length = 0, E::TooShort(Part::GuestPool)),
        ("pool unaligned", |h| h.guest_pool.base += 1, E::Unaligned(Part::GuestPool)),
        (
            "pool without end",
            |h| h.guest_pool.length = !(REGION_ALIGN - 1),
            E::NotRam(Part::GuestPool, M::BeyondWidth),
        ),
        ("pool into TSeg", |h| h.guest_pool.length = 0x7000_0000, E::NotRam(Part::GuestPool, M::Smram)),
        ("component of no length", |h| h.components[1].length = 0, E::TooShort(Part::Component(1))),
        ("component unaligned", |h| h.components[1].base += 16, E::Unaligned(Part::Component(1))),
        (
            "component too long",
            |h| h.components[0].length = MAX_COMPONENT + 1,
            E::TooLong(Part::Component(0)),
        ),
        ("component counted but not given", |h| h.component_count = 3, E::TooShort(Part::Component(2))),
    ];
    for (name, lie, want) in table {
        let mut handoff = good();
        lie(&mut handoff);
        assert_eq!(check(&handoff, &map(), SLB, &[TPM]).err(), Some(want), "{name}");
    }
}

/// The parts of [`good`] that can be moved, with a way to do it.
fn movable() -> Vec<(Part, Place)> {
    vec![
        (Part::Core, |h| &mut h.core),
        (Part::Manifest, |h| &mut h.manifest),
        (Part::Region, |h| &mut h.region),
        (Part::GuestPool, |h| &mut h.guest_pool),
        (Part::Component(0), |h| &mut h.components[0]),
        (Part::Component(1), |h| &mut h.components[1]),
    ]
}

#[test]
fn any_two_parts_that_meet_are_refused_whichever_moved() {
    for (part, place) in movable() {
        for (other, other_place) in movable().into_iter().filter(|entry| entry.0 != part) {
            let mut handoff = good();
            let onto = *other_place(&mut handoff);
            place(&mut handoff).base = onto.base;
            let error = check(&handoff, &map(), SLB, &[TPM]).err();
            let is_named = matches!(error, Some(CheckError::Overlap(a, b)) if a == part || b == part);
            assert!(is_named, "{part:?} on {other:?}: {error:?}");
        }
    }
}

#[test]
fn parts_that_share_one_byte_with_the_block_are_refused_and_neighbours_are_not() {
    for (base, want) in [
        (SLB - 0x1000, Some(CheckError::Overlap(Part::Slb, Part::Component(0)))),
        (SLB + SLB_SIZE - 0x1000, Some(CheckError::Overlap(Part::Slb, Part::Component(0)))),
        (SLB - 0x2000, None),
        (SLB + SLB_SIZE, None),
    ] {
        let mut handoff = good();
        handoff.components[0] = extent(base, 0x1001);
        assert_eq!(check(&handoff, &map(), SLB, &[TPM]).err(), want, "{base:#x}");
    }
}

#[test]
fn the_block_itself_is_checked() {
    let mut moved = map();
    moved.apic_base = SLB | 0x3000 | VALID;
    let error = check(&good(), &moved, SLB, &[]).err();
    assert_eq!(error, Some(CheckError::NotRam(Part::Slb, MapError::Apic)));
    let error = check(&good(), &map(), 0x7f80_0000, &[]).err();
    assert_eq!(error, Some(CheckError::NotRam(Part::Slb, MapError::Smram)));
}

#[test]
fn registers_of_a_device_in_ram_that_is_handed_over_are_refused() {
    let iommu = extent(0x1200_0000, 0x4000);
    let error = check(&good(), &map(), SLB, &[TPM, iommu]).err();
    assert_eq!(error, Some(CheckError::Overlap(Part::GuestPool, Part::Device(1))));
}

proptest! {
    #[test]
    #[cfg_attr(miri, ignore = "takes too long in the interpreter")]
    fn whatever_the_loader_writes_the_checked_parts_are_disjoint_ram(
        writes in prop::collection::vec((0usize..0x180, any::<u8>()), 0..12),
        noise in prop::collection::vec(any::<u8>(), size_of::<Handoff>()),
        is_noise in prop::bool::weighted(0.1),
    ) {
        let mut bytes = good().as_bytes().to_vec();
        for (at, value) in writes {
            bytes[at] = value;
        }
        let bytes = if is_noise { noise } else { bytes };
        let handoff = Handoff::read_from_bytes(&bytes).unwrap();
        if let Ok(checked) = check(&handoff, &map(), SLB, &[TPM]) {
            let mut all = vec![checked.slb(), handoff.core, handoff.manifest, handoff.region];
            all.push(checked.guest_pool());
            all.extend(checked.components());
            for (index, one) in all.iter().enumerate() {
                prop_assert!(one.base >= MIB && one.base + one.length <= 0x7f80_0000);
                for other in &all[index + 1..] {
                    prop_assert!(one.base + one.length <= other.base || other.base + other.length <= one.base);
                }
            }
        }
    }
}
