use super::*;

const VALID: u64 = 1 << 11;
const WIDTH: u8 = 40;

type Change = fn(&mut Map);

const fn extent(base: u64, length: u64) -> Extent {
    Extent { base, length }
}

/// A range register pair for `length` bytes, a power of two, at `base`.
fn pair(base: u64, length: u64, base_bits: u64, mask_bits: u64) -> BaseMask {
    BaseMask { base: base | base_bits, mask: (((1 << WIDTH) - 1) & !(length - 1)) | mask_bits }
}

/// 2 GiB of RAM below, 4 GiB above, a hole of MMIO, TSeg at the top of low RAM, as AMD firmware sets it up.
fn amd() -> Map {
    let mut map = Map {
        physical_bits: WIDTH,
        apic_base: 0xfee0_0000 | VALID,
        mtrr_default: VALID,
        mtrr_count: 8,
        dram: Some(DramRegisters {
            syscfg: SYSCFG_VAR_DRAM | SYSCFG_TOM2 | SYSCFG_TOM2_WRITE_BACK,
            top_mem: 0x8000_0000,
            top_mem2: 0x2_0000_0000,
            iorrs: [BaseMask::default(); 2],
        }),
        smm: pair(0x7f80_0000, 0x80_0000, 0, 3),
        config_space: 0xe000_0000 | 8 << 2 | 1,
        ..Map::default()
    };
    map.mtrrs[0] = pair(0, 0x8000_0000, 6, VALID);
    map
}

/// The same as an emulator without DRAM registers sets it up: write-back but for a hole.
fn emulated() -> Map {
    let mut map = Map { dram: None, mtrr_default: 6 | VALID, config_space: 0, ..amd() };
    map.smm = BaseMask::default();
    map.mtrrs[0] = pair(0x8000_0000, 0x8000_0000, 0, VALID);
    map
}

const RAM: Extent = extent(0x1000_0000, 0x200_0000);
const HIGH: Extent = extent(0x1_0000_0000, 0x1_0000_0000);

#[test]
fn plain_ram_is_ram_on_both_kinds_of_machine() {
    for map in [amd(), emulated()] {
        assert_eq!(map.ram(RAM).unwrap().extent(), RAM);
        assert_eq!(map.ram(HIGH).unwrap().extent(), HIGH);
        assert_eq!(map.firmware(extent(0xf_0000, 36)).unwrap().extent().base, 0xf_0000);
        assert_eq!(map.firmware(extent(0x9_fc00, 36)).unwrap().extent().base, 0x9_fc00);
        assert_eq!(map.firmware(extent(0xb_8000, 36)), Err(MapError::LowMemory));
    }
}

#[test]
fn what_is_not_ram_is_refused_for_the_register_that_says_so() {
    let table: [(&str, Extent, Change, MapError); 22] = [
        ("no bytes", extent(0x1000_0000, 0), |_| {}, MapError::Empty),
        ("wraps", extent(u64::MAX - 0xfff, 0x2000), |_| {}, MapError::BeyondWidth),
        ("beyond the address width", extent(1 << WIDTH, 0x1000), |_| {}, MapError::BeyondWidth),
        ("below 1 MiB", extent(0xf_f000, 0x1000), |_| {}, MapError::LowMemory),
        ("MMIO hole", extent(0xfeb0_0000, 0x1000), |_| {}, MapError::NotDram),
        ("reaches into the hole", extent(0x7f00_0000, 0x200_0000), |m| m.smm.mask = 0, MapError::NotDram),
        ("spans the hole", extent(0x7000_0000, 0x1_0000_0000), |m| m.smm.mask = 0, MapError::Apic),
        ("beyond TOM2", extent(0x1_ffff_f000, 0x2000), |_| {}, MapError::NotDram),
        ("TOM2 off", HIGH, |m| m.dram.as_mut().unwrap().syscfg &= !SYSCFG_TOM2, MapError::NotDram),
        ("TOP_MEM off", RAM, |m| m.dram.as_mut().unwrap().syscfg &= !SYSCFG_VAR_DRAM, MapError::TopOff),
        ("TOP_MEM lowered", RAM, |m| m.dram.as_mut().unwrap().top_mem = 0x1080_0000, MapError::NotDram),
        ("in TSeg", extent(0x7f80_0000, 0x1000), |_| {}, MapError::Smram),
        ("reaches into TSeg", extent(0x7f7f_f000, 0x2000), |_| {}, MapError::Smram),
        ("around TSeg", extent(0x7f00_0000, 0x100_0000), |_| {}, MapError::Smram),
        ("TSeg moved over it", RAM, |m| m.smm = pair(0x1000_0000, 0x2_0000, 0, 2), MapError::Smram),
        ("TSeg with a hole in its mask", RAM, |m| m.smm.mask &= !(1 << 30), MapError::Irregular),
        ("APIC moved into it", RAM, |m| m.apic_base = 0x1100_0000 | VALID, MapError::Apic),
        ("configuration space moved over it", RAM, |m| m.config_space = 0x1000_0001, MapError::ConfigSpace),
        ("many segments", RAM, |m| m.config_space |= 9 << 2, MapError::Segments),
        ("MTRRs off", RAM, |m| m.mtrr_default = 6, MapError::MtrrsOff),
        ("no MTRR, default UC", RAM, |m| m.mtrrs[0] = BaseMask::default(), MapError::Type(0)),
        (
            "I/O range register",
            RAM,
            |m| m.dram.as_mut().unwrap().iorrs[1] = pair(0x1100_0000, 0x1000, 0, VALID),
            MapError::IoRange,
        ),
    ];
    for (name, range, change, want) in table {
        let mut map = amd();
        change(&mut map);
        assert_eq!(map.ram(range), Err(want), "{name}");
    }
}

#[test]
fn an_io_range_that_sends_ram_to_ram_changes_nothing() {
    let mut map = amd();
    map.dram.as_mut().unwrap().iorrs[0] = pair(0x1100_0000, 0x1000, 0x18, VALID);
    assert!(map.ram(RAM).is_ok());
    map.dram.as_mut().unwrap().iorrs[0] = pair(0xfed4_0000, 0x1000, 0x18, VALID);
    assert_eq!(map.device(extent(0xfed4_0000, 0x5000)), Err(MapError::IoRange));
}

#[test]
fn overlapping_memory_types_combine_as_the_manual_says() {
    let table: [(u64, Result<(), MapError>); 5] = [
        (6, Ok(())),
        (0, Err(MapError::Type(0))),
        (4, Err(MapError::Type(4))),
        (1, Err(MapError::TypeConflict)),
        (5, Err(MapError::TypeConflict)),
    ];
    for (kind, want) in table {
        let mut map = amd();
        map.mtrrs[5] = pair(0x1180_0000, 0x1000, kind, VALID);
        assert_eq!(map.ram(RAM).map(|_| ()), want, "type {kind}");
    }
}

#[test]
fn one_uncached_page_in_the_middle_is_found_wherever_it_is() {
    for page in [0x1000_0000, 0x1080_0000, 0x11ff_f000] {
        let mut map = emulated();
        map.mtrrs[7] = pair(page, 0x1000, 0, VALID);
        assert_eq!(map.ram(RAM), Err(MapError::Type(0)), "{page:#x}");
    }
    let mut map = emulated();
    map.mtrrs[7] = pair(0x1200_0000, 0x1000, 0, VALID);
    assert!(map.ram(RAM).is_ok(), "just behind the end");
}

#[test]
fn forced_write_back_above_4_gib_ends_at_tom2() {
    let mut map = amd();
    assert!(map.ram(HIGH).is_ok());
    map.dram.as_mut().unwrap().syscfg &= !SYSCFG_TOM2_WRITE_BACK;
    assert_eq!(map.ram(HIGH), Err(MapError::Type(0)));
}

#[test]
fn registers_of_devices_must_not_be_ram() {
    const TPM: Extent = extent(0xfed4_0000, 0x5000);
    assert_eq!(amd().device(TPM).unwrap().extent(), TPM);
    assert_eq!(emulated().device(TPM).unwrap().extent(), TPM);
    assert_eq!(amd().config_space().unwrap().unwrap().extent(), extent(0xe000_0000, 0x1000_0000));
    assert_eq!(emulated().config_space(), Ok(None));
    let table: [(&str, Extent, Change, MapError); 8] = [
        ("RAM", RAM, |_| {}, MapError::NotDevice),
        ("not whole pages", extent(0xfed4_0000, 0x5001), |_| {}, MapError::NotDevice),
        ("below 1 MiB", extent(0xb_8000, 0x1000), |_| {}, MapError::NotDevice),
        (
            "TOP_MEM raised over it",
            TPM,
            |m| m.dram.as_mut().unwrap().top_mem = 0xff00_0000,
            MapError::NotDevice,
        ),
        ("TOP_MEM off", TPM, |m| m.dram.as_mut().unwrap().syscfg = 0, MapError::NotDevice),
        ("below TOM2", HIGH, |_| {}, MapError::NotDevice),
        ("APIC moved over it", TPM, |m| m.apic_base = 0xfed4_2000 | VALID, MapError::Apic),
        ("in configuration space", extent(0xe010_0000, 0x1000), |_| {}, MapError::ConfigSpace),
    ];
    for (name, range, change, want) in table {
        let mut map = amd();
        change(&mut map);
        assert_eq!(map.device(range), Err(want), "{name}");
    }
    let mut map = emulated();
    map.mtrrs[0] = BaseMask::default();
    assert_eq!(map.device(TPM), Err(MapError::NotDevice), "write-back without DRAM registers");
}

/// Write-back RAM, reads and writes routed to it, in every byte of a fixed-range register.
const ROUTED: u64 = 0x1e1e_1e1e_1e1e_1e1e;
const PLAIN: u64 = 0x0606_0606_0606_0606;
const FIXED: u64 = 1 << 10;
const ROUTES: u64 = 1 << 18;

#[test]
fn a_page_to_start_in_is_ram_by_the_fixed_ranges_and_where_they_route() {
    let mut map = amd();
    map.mtrr_default |= FIXED;
    assert_eq!(map.start_page(0x8_f000, [ROUTED; 2]), Err(MapError::NotDram));
    map.dram.as_mut().unwrap().syscfg |= ROUTES;
    assert_eq!(map.start_page(0x8_f000, [0, ROUTED]), Ok(()));
    assert_eq!(map.start_page(0x7_f000, [ROUTED, 0]), Ok(()));
    assert_eq!(map.start_page(0x7_f000, [ROUTED & !(0x10 << 56), 0]), Err(MapError::NotDram));
    assert_eq!(map.start_page(0x1000, [PLAIN, PLAIN]), Err(MapError::NotDram));
    assert_eq!(map.start_page(0x8_c000, [0, ROUTED & !(0x1f << 24)]), Err(MapError::Type(0)));
    for page in [0, 0x1800, 0xa_0000, 0x10_0000] {
        assert_eq!(map.start_page(page, [ROUTED; 2]), Err(MapError::LowMemory), "{page:#x}");
    }
    map.smm = pair(0, 0x80_0000, 0, 3);
    assert_eq!(map.start_page(0x1000, [ROUTED; 2]), Err(MapError::Smram));
}

#[test]
fn without_fixed_ranges_or_routes_the_type_alone_says_what_a_page_to_start_in_is() {
    let mut map = emulated();
    assert_eq!(map.start_page(0x9_e000, [0; 2]), Ok(()));
    map.mtrr_default |= FIXED;
    assert_eq!(map.start_page(0x9_e000, [0, PLAIN]), Ok(()));
    assert_eq!(map.start_page(0x9_e000, [PLAIN, 0]), Err(MapError::Type(0)));
    map.mtrr_default = 0;
    assert_eq!(map.start_page(0x9_e000, [PLAIN; 2]), Err(MapError::MtrrsOff));
}
