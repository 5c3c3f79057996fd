use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// The leaves of an AMD EPYC as the emulator shows them.
fn epyc() -> BTreeMap<(u32, u32), Leaf> {
    let leaf = |eax, ebx, ecx, edx| Leaf { eax, ebx, ecx, edx };
    BTreeMap::from([
        ((0, 0), leaf(0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65)),
        ((1, 0), leaf(0x80_0f12, 0x0000_0800, 0xfed8_320b, 0x178b_fbff)),
        ((5, 0), leaf(0, 0, 3, 0)),
        ((7, 0), leaf(0, 0x209c_01a9, 0, 0)),
        ((0xd, 0), leaf(7, 0x340, 0x340, 0)),
        ((0xd, 1), leaf(5, 0, 0, 0)),
        ((0xd, 2), leaf(0x100, 0x240, 0, 0)),
        ((0x8000_0000, 0), leaf(0x8000_001e, 0x6874_7541, 0x444d_4163, 0x6974_6e65)),
        ((0x8000_0001, 0), leaf(0x80_0f12, 0, 0x0040_11f7, 0x2fd3_fbff)),
        ((0x8000_0002, 0), leaf(0x2044_4d41, 0x4359_5045, 0x7250_2020, 0x7365_636f)),
        ((0x8000_0008, 0), leaf(0x3028, 0x0000_1000, 0x7003, 0)),
        ((0x8000_000a, 0), leaf(1, 16, 0, 1)),
        ((0x8000_001d, 0), leaf(0x0000_4121, 0x01c0_003f, 63, 0)),
        ((0x8000_001d, 1), leaf(0x0000_4122, 0x00c0_003f, 255, 0)),
        ((0x8000_001d, 2), leaf(0x0000_4143, 0x01c0_003f, 1023, 2)),
        ((0x8000_001d, 3), leaf(0x0001_c163, 0x03c0_003f, 8191, 6)),
        ((0x8000_001e, 0), leaf(1, 2, 3, 4)),
    ])
}

struct Host(BTreeMap<(u32, u32), Leaf>);
impl CpuidSource for Host {
    fn leaf(&self, leaf: u32, subleaf: u32) -> Leaf {
        self.0.get(&(leaf, subleaf)).copied().unwrap_or_default()
    }
}

/// A processor with every bit of every leaf set.
struct AllOnes;
impl CpuidSource for AllOnes {
    fn leaf(&self, _: u32, _: u32) -> Leaf {
        Leaf { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX }
    }
}

const CONFIG: CpuidConfig = CpuidConfig { vcpus: 1, apic_id: 0, call_groups: 0x55, launch_facts: 0x77 };
const STATE: CpuidState = CpuidState { cr4: CR4_OSXSAVE, xcr0: 7 };

fn ask(leaf: u32, subleaf: u32) -> Leaf {
    GuestCpuid::new(&Host(epyc()), CONFIG).answer(leaf, subleaf, STATE)
}

fn text(registers: [u32; 3]) -> Vec<u8> {
    registers.iter().flat_map(|register| register.to_le_bytes()).collect()
}

#[test]
fn the_guest_sees_no_svm_no_mwait_no_mtrrs_and_no_counters() {
    let guest = GuestCpuid::new(&AllOnes, CONFIG);
    let one = guest.answer(1, 0, STATE);
    for (name, bit) in [("MONITOR", 3), ("VMX", 5), ("SMX", 6), ("PDCM", 15)] {
        assert_eq!(one.ecx >> bit & 1, 0, "{name}");
    }
    for (name, bit) in [("MTRR", 12), ("DS", 21), ("ACPI", 22)] {
        assert_eq!(one.edx >> bit & 1, 0, "{name}");
    }
    let extended = guest.answer(0x8000_0001, 0, STATE);
    for (name, bit) in [("SVM", 2), ("IBS", 10), ("SKINIT", 12), ("counters", 23), ("MONITORX", 29)] {
        assert_eq!(extended.ecx >> bit & 1, 0, "{name}");
    }
    let seven = guest.answer(7, 0, STATE);
    for (name, bit) in [("TSC_ADJUST", 1), ("SGX", 2), ("RTM", 11), ("AVX512F", 16), ("PT", 25)] {
        assert_eq!(seven.ebx >> bit & 1, 0, "{name}");
    }
    for (name, bit) in [("PKU", 3), ("CET_SS", 7), ("LA57", 16)] {
        assert_eq!(seven.ecx >> bit & 1, 0, "{name}");
    }
    assert_eq!(seven.edx >> 26, 0, "speculation control");
    assert_eq!(guest.answer(0xa, 0, STATE), Leaf::default());
}

#[test]
fn leaves_that_are_not_listed_read_zero() {
    let guest = GuestCpuid::new(&AllOnes, CONFIG);
    for leaf in [2, 3, 5, 8, 9, 0xa, 0xc, 0xe, 0x14, 0x1f, 0x4000_0002, 0x4000_00ff, 0x4000_0102] {
        assert_eq!(guest.answer(leaf, 0, STATE), Leaf::default(), "{leaf:#x}");
    }
    for leaf in [0x8000_0009, 0x8000_000a, 0x8000_001c, 0x8000_001f, 0x8000_0026, 0xc000_0001, u32::MAX] {
        assert_eq!(guest.answer(leaf, 0, STATE), Leaf::default(), "{leaf:#x}");
    }
    assert_eq!(guest.answer(7, 1, STATE), Leaf::default());
    assert_eq!((guest.answer(0, 0, STATE).eax, guest.answer(0x8000_0000, 0, STATE).eax), (0xd, 0x8000_001e));
}

#[test]
fn what_the_board_has_is_shown_whatever_the_host_has() {
    let one = ask(1, 0);
    assert_eq!(one.ecx & (1 << 21 | 1 << 24 | 1 << 31), 1 << 21 | 1 << 24 | 1 << 31);
    assert_eq!(ask(6, 0), Leaf { eax: 4, ..Leaf::default() });
}

#[test]
fn osxsave_follows_cr4() {
    let guest = GuestCpuid::new(&Host(epyc()), CONFIG);
    for (cr4, shown) in [(0, 0), (CR4_OSXSAVE, 1)] {
        assert_eq!(guest.answer(1, 0, CpuidState { cr4, xcr0: 7 }).ecx >> 27 & 1, shown, "{cr4:#x}");
    }
}

#[test]
fn both_signatures_are_found_where_linux_looks() {
    let own = ask(0x4000_0000, 0);
    assert_eq!(text([own.ebx, own.ecx, own.edx]), b"DolmenDolmen");
    assert_eq!(ask(own.eax, 0), Leaf { eax: dolmen_abi::ABI_VERSION, ebx: 0x55, ecx: 0x77, edx: 0 });
    let kvm = ask(0x4000_0100, 0);
    assert_eq!(text([kvm.ebx, kvm.ecx, kvm.edx]), b"KVMKVMKVM\0\0\0");
    assert_eq!(ask(kvm.eax, 0), Leaf { eax: 1 << 3 | 1 << 24, ..Leaf::default() });
}

#[test]
fn the_xsave_area_follows_xcr0() {
    let guest = GuestCpuid::new(&Host(epyc()), CONFIG);
    assert_eq!(guest.xcr0_mask(), 7);
    for (xcr0, bytes) in [(1, 0x240), (3, 0x240), (7, 0x340), (u64::MAX, 0x340)] {
        let leaf = guest.answer(0xd, 0, CpuidState { cr4: 0, xcr0 });
        assert_eq!((leaf.eax, leaf.ebx, leaf.ecx, leaf.edx), (7, bytes, 0x340, 0), "{xcr0:#x}");
    }
    assert_eq!(guest.answer(0xd, 1, STATE), Leaf { eax: 5, ebx: 0x340, ecx: 0, edx: 0 });
    assert_eq!(guest.answer(0xd, 2, STATE), Leaf { eax: 0x100, ebx: 0x240, ecx: 0, edx: 0 });
    assert_eq!(guest.answer(0xd, 3, STATE), Leaf::default());
}

#[test]
fn without_xsave_on_the_host_the_guest_has_none() {
    let mut leaves = epyc();
    leaves.get_mut(&(1, 0)).unwrap().ecx &= !(1 << 26);
    let guest = GuestCpuid::new(&Host(leaves), CONFIG);
    assert_eq!(guest.xcr0_mask(), 0);
    for subleaf in 0..3 {
        assert_eq!(guest.answer(0xd, subleaf, STATE), Leaf::default());
    }
    assert_eq!(guest.answer(1, 0, STATE).ecx >> 26 & 3, 0);
}

#[test]
fn the_topology_counts_cores_of_one_package() {
    for (vcpus, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (8, 3)] {
        let config = CpuidConfig { vcpus, apic_id: vcpus - 1, ..CONFIG };
        let guest = GuestCpuid::new(&Host(epyc()), config);
        let (thread, core) = (guest.answer(0xb, 0, STATE), guest.answer(0xb, 1, STATE));
        assert_eq!(thread, Leaf { eax: 0, ebx: 1, ecx: 0x100, edx: vcpus - 1 });
        assert_eq!(core, Leaf { eax: bits, ebx: vcpus, ecx: 0x201, edx: vcpus - 1 });
        assert_eq!(guest.answer(0xb, 2, STATE), Leaf { eax: 0, ebx: 0, ecx: 2, edx: vcpus - 1 });
        assert_eq!(guest.answer(0x8000_0008, 0, STATE).ecx, bits << 12 | (vcpus - 1));
        assert_eq!(guest.answer(1, 0, STATE).ebx >> 16, (vcpus - 1) << 8 | vcpus);
        assert_eq!(guest.answer(1, 0, STATE).edx >> 28 & 1, u32::from(vcpus > 1));
    }
}

#[test]
fn each_processor_is_a_core_of_its_own_and_all_share_the_last_cache() {
    let guest = GuestCpuid::new(&Host(epyc()), CpuidConfig { vcpus: 4, apic_id: 3, ..CONFIG });
    assert_eq!(guest.answer(0x8000_001e, 0, STATE), Leaf { eax: 3, ebx: 3, ecx: 0, edx: 0 });
    for (subleaf, eax) in [(0, 0x121), (1, 0x122), (2, 0x143), (3, 0xc163), (4, 0), (u32::MAX, 0)] {
        assert_eq!(guest.answer(0x8000_001d, subleaf, STATE).eax, eax, "{subleaf}");
    }
    assert_eq!(guest.answer(0x8000_001d, 3, STATE).ecx, 8191, "the size is the host's");
    assert_eq!(guest.answer(4, 0, STATE), Leaf::default(), "the other vendor's leaf");
}

#[test]
fn caches_of_the_other_vendor_are_shared_alike() {
    let mut leaves = epyc();
    leaves.get_mut(&(0x8000_0001, 0)).unwrap().ecx &= !ECX81_TOPOLOGY;
    leaves.insert((4, 0), Leaf { eax: 0x1c00_4121, ebx: 0x01c0_003f, ecx: 63, edx: 0 });
    leaves.insert((4, 1), Leaf { eax: 0x1c03_c163, ebx: 0x03c0_003f, ecx: 8191, edx: 6 });
    let guest = GuestCpuid::new(&Host(leaves), CpuidConfig { vcpus: 3, apic_id: 1, ..CONFIG });
    assert_eq!((guest.answer(4, 0, STATE).eax, guest.answer(4, 1, STATE).eax), (0x0c00_0121, 0x0c00_c163));
    for leaf in [0x8000_001d, 0x8000_001e] {
        assert_eq!(guest.answer(leaf, 0, STATE), Leaf::default(), "{leaf:#x}");
    }
    assert_eq!(guest.answer(0x8000_0000, 0, STATE).eax, 0x8000_0008);
    assert_eq!(guest.answer(0x8000_0001, 0, STATE).ecx >> 22 & 1, 0);
}

#[test]
fn a_host_with_few_leaves_gives_the_guest_its_topology_all_the_same() {
    let mut leaves = epyc();
    leaves.get_mut(&(0, 0)).unwrap().eax = 1;
    let guest = GuestCpuid::new(&Host(leaves), CONFIG);
    assert_eq!(guest.answer(0, 0, STATE).eax, 0xb);
    assert_eq!(guest.answer(0xb, 0, STATE).ebx, 1);
    assert_eq!((guest.answer(6, 0, STATE).eax, guest.answer(7, 0, STATE)), (4, Leaf::default()));
}

proptest! {
    /// The masks hold for any host: what is not allowed never appears, whatever it answers.
    #[test]
    fn no_bit_outside_of_the_masks_comes_through(seed in any::<u32>(), leaf in any::<u32>(), subleaf in 0u32..4) {
        struct Noise(u32);
        impl CpuidSource for Noise {
            fn leaf(&self, leaf: u32, subleaf: u32) -> Leaf {
                let word = |n: u32| (self.0 ^ leaf.rotate_left(7) ^ subleaf ^ n).wrapping_mul(0x9e37_79b9);
                Leaf { eax: word(1), ebx: word(2), ecx: word(3), edx: word(4) }
            }
        }
        let guest = GuestCpuid::new(&Noise(seed), CONFIG);
        let all = GuestCpuid::new(&AllOnes, CONFIG);
        for leaf in [leaf, leaf & 0xf, 0x8000_0000 | leaf & 0x1f] {
            let (some, most) = (guest.answer(leaf, subleaf, STATE), all.answer(leaf, subleaf, STATE));
            if !matches!(leaf, 0 | 4 | 0xb | 0xd | 0x8000_0000) {
                prop_assert_eq!(some.eax & !most.eax, 0);
                prop_assert_eq!(some.ebx & !most.ebx, 0);
                prop_assert_eq!(some.ecx & !most.ecx, 0);
                prop_assert_eq!(some.edx & !most.edx, 0);
            }
        }
        prop_assert_eq!(u64::from(guest.answer(0xd, 0, STATE).eax) & !GUEST_XCR0, 0);
    }
}
