//! The loader's hand-off: what passes the check is RAM, below the limits, and disjoint.
#![no_main]

use dolmen_drtm::check;
use dolmen_drtm::handoff::{Extent, Handoff};
use dolmen_drtm::map::{BaseMask, DramRegisters, Map};
use zerocopy::IntoBytes;

/// Where the secure loader block lies.
const SLB: u64 = 0x20_0000;

/// A computer with 2 GiB of RAM.
fn computer() -> Map {
    let mut map = Map {
        physical_bits: 40,
        apic_base: 0xfee0_0900,
        mtrr_default: 0xc06,
        mtrr_count: 8,
        dram: Some(DramRegisters { syscfg: 1 << 20, top_mem: 0x8000_0000, ..DramRegisters::default() }),
        ..Map::default()
    };
    map.mtrrs[0] = BaseMask { base: 0x8000_0000, mask: 0xff_8000_0800 };
    map
}

fn overlap(a: Extent, b: Extent) -> bool {
    a.length > 0 && b.length > 0 && a.base < b.base + b.length && b.base < a.base + a.length
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // Start from a sound hand-off, so that the fuzzer gets past its head: input is laid over it.
    let mut handoff = zerocopy::FromZeros::new_zeroed();
    let page: &mut Handoff = &mut handoff;
    page.magic = Handoff::MAGIC;
    page.version = Handoff::VERSION;
    page.core = Extent { base: 0x100_0000, length: 0x10_0000 };
    page.manifest = Extent { base: 0x120_0000, length: 0x1000 };
    page.region = Extent { base: 0x200_0000, length: 0x200_0000 };
    page.guest_pool = Extent { base: 0x800_0000, length: 0x2000_0000 };
    for change in bytes.chunks_exact(10) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) & !7;
        if let Some(slot) = page.as_mut_bytes().get_mut(at..at + 8) {
            slot.copy_from_slice(&change[2..]);
        }
    }
    let Ok(checked) = check::check(page, &computer(), SLB, &[]) else { return };
    let mut parts = vec![
        checked.slb(),
        checked.core(),
        checked.manifest(),
        checked.region(),
        checked.guest_pool(),
    ];
    parts.extend_from_slice(checked.components());
    for (index, part) in parts.iter().enumerate() {
        assert!(part.base + part.length <= 0x8000_0000, "{part:?} is not RAM");
        for other in &parts[..index] {
            assert!(!overlap(*part, *other), "{part:?} and {other:?}");
        }
    }
});
