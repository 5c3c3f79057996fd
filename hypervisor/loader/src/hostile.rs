//! Test builds only (feature `hostile`): a loader that lies. The product does not contain this module.
//!
//! The Multiboot program takes the word `attack=<name>` from its command line. What each does, and what the
//! launch must answer with, is the business of the attack tests; here stands only what is done.
//!
//! | name | lie |
//! |---|---|
//! | `magic`, `version`, `reserved` | that field of the hand-off is wrong |
//! | `count-huge`, `memory-count-huge` | component or range count is 0xffff_ffff |
//! | `core-at-mmio` | the core's file lies at the TPM's registers |
//! | `core-overlaps-slb` | the core's file begins inside the secure loader block |
//! | `core-wraps` | base + length of the core's file wraps |
//! | `core-empty` | the core's file has no bytes |
//! | `length-huge` | the core's file is 2⁶³ bytes long |
//! | `manifest-in-slb` | the manifest lies in the block's unmeasured tail |
//! | `manifest-in-region` | the manifest lies in the region |
//! | `region-is-apic` | the region lies over the local APIC |
//! | `region-unaligned` | the region begins one page late |
//! | `region-overlaps-core` | the region begins at the core's file (rounded down) |
//! | `region-overlaps-slb` | the region begins at the block (rounded down) |
//! | `region-high` | the region lies above 4 GiB |
//! | `region-small` | the region is one page long |
//! | `pool-overlaps-region` | the guest pool is the region |
//! | `pool-at-mmio` | the guest pool lies at 0xfe00_0000 |
//! | `pool-overlaps-core` | the guest pool is moved over the core's file |
//! | `component-at-tseg` | the first component lies at TSeg (as SMM_ADDR says, else at 0xa0000) |
//! | `component-at-iommu` | the first component lies at 0xfed8_0000 |
//! | `component-overlaps-region` | the first component lies in the region |
//! | `map-without-core` | the memory map has no RAM where the core's file lies |
//! | `map-all-ram` | the memory map says that the whole address space is RAM, and the region lies over the APIC |
//! | `map-empty` | the memory map has no ranges |
//! | `rsdp-wild` | the ACPI root pointer is 0xffff_ffff_ffff_fff0 |
//! | `cpus-huge` | the list of processors has 0xffff_ffff entries |
//! | `cpu-ghost` | the list of processors has an APIC ID more, 77, which no processor has |
//! | `cpu-twice` | the list of processors names its last one twice |
//! | `cpu-hidden` | the list of processors has the first one alone |
//! | `aps-not-parked` | the other processors run on |
//! | `skip-tpm-startup` | the TPM is not started |
//! | `locality-held` | locality 0 of the TPM stays active |
//! | `iommu-base-moved` | the IOMMU's base register points into the guest pool, enabled |
//! | `iommu-off` | the enable bit of the IOMMU's base register is cleared |
//! | `top-low` | TOP_MEM ends RAM below the region |
//! | `top-off` | SYSCFG does not enable TOP_MEM |
//! | `io-range-over-core` | an I/O range register sends the core's file elsewhere |
//! | `io-range-torn` | an I/O range register's mask has a hole |
//! | `tseg-over-region` | TSeg is moved over the region |
//! | `config-over-core` | configuration space is moved over the core's file |
//! | `apic-over-core` | the local APIC is moved over the core's file |
//! | `uncached-core` | a range register makes the core's file uncacheable |
//! | `low-routes-cut` | the fixed ranges send the first 640 KiB to no memory |
//! | `evil-launch` | the *last* module is launched in place of the launch image; everything else as always |
//! | `skinit-twice` | the *last* module is launched from a block of its own; `rsdp` of its hand-off is the base of the good block, filled as always, so that it can launch that one |
//!
//! `iommu-base-moved` and `iommu-off` are void where the base register is locked, as it is on machines whose
//! firmware enabled it: the line `loader: iommu registers=… enabled=…` after the attack shows what it did.
//! `skip-tpm-startup` needs firmware that does not start the TPM itself.
#![forbid(unsafe_code)]
#![expect(clippy::wildcard_enum_match_arm, reason = "each attack changes one thing and leaves the rest")]

use dolmen_drtm::handoff::{Extent, Handoff, MemoryRange, REGION_ALIGN};

const APIC: u64 = 0xfee0_0000;
const TPM: u64 = 0xfed4_0000;
const IOMMU: u64 = 0xfed8_0000;
const MMIO: u64 = 0xfe00_0000;
/// An APIC ID that no processor of a test machine has.
const GHOST: u32 = 77;
const ABOVE_4G: u64 = 1 << 32;
const LEGACY_SMRAM: u64 = 0xa_0000;
/// Offset of a place in the block's tail, behind any measured part.
const TAIL: u64 = 0xe000;

macro_rules! attacks {
    ($($variant:ident = $word:literal, $doc:literal;)*) => {
        /// A way to lie.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Attack { $(#[doc = $doc] $variant,)* }

        impl Attack {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Its name on the command line.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }
    };
}

attacks! {
    Magic = "magic", "Wrong magic.";
    Version = "version", "Wrong version.";
    Reserved = "reserved", "A reserved field is set.";
    CountHuge = "count-huge", "Far too many components.";
    MemoryCountHuge = "memory-count-huge", "Far too many ranges.";
    CoreAtMmio = "core-at-mmio", "The core is not in RAM.";
    CoreOverlapsSlb = "core-overlaps-slb", "The core overlaps the block.";
    CoreWraps = "core-wraps", "The core wraps.";
    CoreEmpty = "core-empty", "The core has no bytes.";
    LengthHuge = "length-huge", "The core is far too long.";
    ManifestInSlb = "manifest-in-slb", "The manifest overlaps the block.";
    ManifestInRegion = "manifest-in-region", "The manifest overlaps the region.";
    RegionIsApic = "region-is-apic", "The region is not RAM.";
    RegionUnaligned = "region-unaligned", "The region is not aligned.";
    RegionOverlapsCore = "region-overlaps-core", "The region overlaps the core's file.";
    RegionOverlapsSlb = "region-overlaps-slb", "The region overlaps the block.";
    RegionHigh = "region-high", "The region is above 4 GiB.";
    RegionSmall = "region-small", "The region is too small.";
    PoolOverlapsRegion = "pool-overlaps-region", "The pool is the region.";
    PoolAtMmio = "pool-at-mmio", "The pool is not RAM.";
    PoolOverlapsCore = "pool-overlaps-core", "The pool overlaps the core's file.";
    ComponentAtTseg = "component-at-tseg", "A component in TSeg.";
    ComponentAtIommu = "component-at-iommu", "A component in IOMMU registers.";
    ComponentOverlapsRegion = "component-overlaps-region", "A component in the region.";
    MapWithoutCore = "map-without-core", "The core is in RAM that the map does not have.";
    MapAllRam = "map-all-ram", "The map has RAM everywhere.";
    MapEmpty = "map-empty", "The map is empty.";
    RsdpWild = "rsdp-wild", "The ACPI root pointer leads nowhere.";
    CpusHuge = "cpus-huge", "Far too many processors.";
    CpuGhost = "cpu-ghost", "A processor that does not exist.";
    CpuTwice = "cpu-twice", "A processor twice.";
    CpuHidden = "cpu-hidden", "Processors left out.";
    ApsNotParked = "aps-not-parked", "Other processors run on.";
    SkipTpmStartup = "skip-tpm-startup", "The TPM is not started.";
    LocalityHeld = "locality-held", "Locality 0 stays active.";
    IommuBaseMoved = "iommu-base-moved", "The IOMMU's base points into RAM.";
    IommuOff = "iommu-off", "The IOMMU's base is not enabled.";
    TopLow = "top-low", "TOP_MEM is below the region.";
    TopOff = "top-off", "TOP_MEM is off.";
    IoRangeOverCore = "io-range-over-core", "An I/O range over the core.";
    IoRangeTorn = "io-range-torn", "An I/O range with a hole in its mask.";
    TsegOverRegion = "tseg-over-region", "TSeg over the region.";
    ConfigOverCore = "config-over-core", "Configuration space over the core.";
    ApicOverCore = "apic-over-core", "The local APIC over the core.";
    UncachedCore = "uncached-core", "The core is uncacheable.";
    LowRoutesCut = "low-routes-cut", "The first 640 KiB are no memory.";
    EvilLaunch = "evil-launch", "Another image is launched.";
    SkinitTwice = "skinit-twice", "Another image is launched, which may launch the good one.";
}

/// Addresses that lies refer to.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings {
    /// The secure loader block.
    pub slb: Extent,
    /// Base of TSeg, or 0.
    pub tseg: u64,
}

impl Attack {
    /// The attack of that name.
    #[must_use]
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|attack| attack.word() == word)
    }

    /// Whether the last module is a second launch image and no component.
    #[must_use]
    pub const fn takes_last_module(self) -> bool {
        matches!(self, Self::EvilLaunch | Self::SkinitTwice)
    }

    /// Makes the hand-off lie.
    pub fn corrupt(self, handoff: &mut Handoff, around: Surroundings) {
        self.corrupt_head(handoff);
        self.corrupt_cpus(handoff);
        self.corrupt_core(handoff, around);
        self.corrupt_region(handoff, around);
        self.corrupt_rest(handoff, around);
        if self.takes_last_module() {
            let last = handoff.component_count.saturating_sub(1);
            handoff.component_count = last;
            let index = usize::try_from(last).unwrap_or(usize::MAX);
            handoff.components.iter_mut().skip(index).for_each(|c| *c = Extent::default());
        }
    }

    /// Model-specific registers to write just before the launch, in order (APM vol. 2, 7.7 to 7.9, 10.2.5, 16.3.1; PPR,
    /// MSR C001_0058).
    #[must_use]
    pub fn registers(self, handoff: &Handoff) -> [Option<(u32, u64)>; 4] {
        const APIC_BASE: u32 = 0x1b;
        const MTRR_LAST: u32 = 0x20e;
        const MTRR_FIX_64K: u32 = 0x250;
        const MTRR_FIX_16K: u32 = 0x258;
        const SYSCFG: u32 = 0xc001_0010;
        const IORR_BASE: u32 = 0xc001_0016;
        const IORR_MASK: u32 = 0xc001_0017;
        const TOP_MEM: u32 = 0xc001_001a;
        const CONFIG_SPACE: u32 = 0xc001_0058;
        const SMM_ADDR: u32 = 0xc001_0112;
        const SMM_MASK: u32 = 0xc001_0113;
        /// MtrrFixDramEn, and MtrrVarDramEn beside it.
        const FIRMWARES: u64 = 1 << 18 | 1 << 20;
        const SHOW_ROUTES: u64 = 1 << 19;
        const VALID: u64 = 1 << 11;
        let one = |first| [Some(first), None, None, None];
        let two = |first, second| [Some(first), Some(second), None, None];
        let (core, region) = (handoff.core.base, handoff.region.base);
        match self {
            Self::TopLow => one((TOP_MEM, 0x100_0000)),
            Self::TopOff => one((SYSCFG, 1 << 18)),
            Self::IoRangeOverCore => two((IORR_BASE, core & !0xfff), (IORR_MASK, 0xff_ffff_f000 | VALID)),
            Self::IoRangeTorn => two((IORR_BASE, 0), (IORR_MASK, 0x0f_00ff_f000 | VALID)),
            Self::TsegOverRegion => two((SMM_ADDR, region & !0x1_ffff), (SMM_MASK, 0xff_fffe_0000 | 1 << 1)),
            Self::ConfigOverCore => one((CONFIG_SPACE, core & !0xf_ffff | 1)),
            Self::ApicOverCore => one((APIC_BASE, core & !0xfff | 1 << 11 | 1 << 8)),
            Self::UncachedCore => {
                two((MTRR_LAST, core & !0xfff), (MTRR_LAST.saturating_add(1), 0xff_ffff_f000 | VALID))
            }
            Self::LowRoutesCut => [
                Some((SYSCFG, FIRMWARES | SHOW_ROUTES)),
                Some((MTRR_FIX_64K, 0x0606_0606_0606_0606)),
                Some((MTRR_FIX_16K, 0x0606_0606_0606_0606)),
                Some((SYSCFG, FIRMWARES)),
            ],
            _ => [None; 4],
        }
    }

    fn corrupt_head(self, handoff: &mut Handoff) {
        match self {
            Self::Magic => handoff.magic = *b"DOLMENHX",
            Self::Version => handoff.version = Handoff::VERSION.wrapping_add(1),
            Self::Reserved => handoff.reserved = 1,
            Self::CountHuge => handoff.component_count = u32::MAX,
            Self::MemoryCountHuge => handoff.memory_count = u32::MAX,
            Self::MapEmpty => handoff.memory_count = 0,
            Self::RsdpWild => handoff.rsdp = !0xf,
            _ => {}
        }
    }

    fn corrupt_cpus(self, handoff: &mut Handoff) {
        let listed = usize::try_from(handoff.cpu_count).unwrap_or(0);
        let last = handoff.apic_ids.get(listed.saturating_sub(1)).copied().unwrap_or(0);
        let more = match self {
            Self::CpusHuge => return handoff.cpu_count = u32::MAX,
            Self::CpuHidden => return handoff.cpu_count = handoff.cpu_count.min(1),
            Self::CpuGhost => GHOST,
            Self::CpuTwice => last,
            _ => return,
        };
        if let Some(place) = handoff.apic_ids.get_mut(listed) {
            *place = more;
            handoff.cpu_count = handoff.cpu_count.saturating_add(1);
        }
    }

    fn corrupt_core(self, handoff: &mut Handoff, around: Surroundings) {
        match self {
            Self::CoreAtMmio => handoff.core.base = TPM,
            Self::CoreOverlapsSlb => handoff.core.base = around.slb.base.saturating_add(TAIL),
            Self::CoreWraps => handoff.core = Extent { base: !0xfff, length: 0x2000 },
            Self::CoreEmpty => handoff.core.length = 0,
            Self::LengthHuge => handoff.core.length = 1 << 63,
            Self::ManifestInSlb => handoff.manifest.base = around.slb.base.saturating_add(TAIL),
            Self::ManifestInRegion => handoff.manifest.base = handoff.region.base,
            Self::MapWithoutCore => {
                for range in &mut handoff.memory {
                    if handoff.core.base.wrapping_sub(range.base) < range.length {
                        range.kind = MemoryRange::RESERVED;
                    }
                }
            }
            _ => {}
        }
    }

    fn corrupt_region(self, handoff: &mut Handoff, around: Surroundings) {
        let aligned = |base: u64| base & !REGION_ALIGN.wrapping_sub(1);
        match self {
            Self::RegionIsApic => handoff.region.base = APIC,
            Self::RegionUnaligned => handoff.region.base = handoff.region.base.saturating_add(0x1000),
            Self::RegionOverlapsCore => handoff.region.base = aligned(handoff.core.base),
            Self::RegionOverlapsSlb => handoff.region.base = aligned(around.slb.base),
            Self::RegionHigh => handoff.region.base = ABOVE_4G,
            Self::RegionSmall => handoff.region.length = 0x1000,
            Self::PoolOverlapsRegion => handoff.guest_pool = handoff.region,
            Self::PoolAtMmio => handoff.guest_pool = Extent { base: MMIO, length: REGION_ALIGN },
            Self::PoolOverlapsCore => handoff.guest_pool.base = aligned(handoff.core.base),
            Self::MapAllRam => {
                handoff.memory_count = 1;
                if let Some(first) = handoff.memory.first_mut() {
                    *first = MemoryRange { base: 0, length: u64::MAX, kind: MemoryRange::RAM };
                }
                handoff.region.base = APIC;
            }
            _ => {}
        }
    }

    fn corrupt_rest(self, handoff: &mut Handoff, around: Surroundings) {
        let Some(first) = handoff.components.first_mut() else { return };
        match self {
            Self::ComponentAtTseg => first.base = if around.tseg == 0 { LEGACY_SMRAM } else { around.tseg },
            Self::ComponentAtIommu => first.base = IOMMU,
            Self::ComponentOverlapsRegion => first.base = handoff.region.base,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn each_attack_is_found_by_its_name_and_stands_in_the_table() {
        let source = include_str!("hostile.rs");
        for attack in Attack::ALL {
            assert_eq!(Attack::named(attack.word()), Some(*attack));
            assert!(source.contains(&std::format!("`{}`", attack.word())), "{}", attack.word());
        }
        assert_eq!(Attack::named("nothing"), None);
    }

    #[test]
    fn each_attack_on_the_hand_off_changes_it() {
        use Attack::*;
        let mut good = Handoff::new_zeroed();
        good.magic = Handoff::MAGIC;
        (good.memory_count, good.component_count, good.cpu_count) = (1, 2, 2);
        good.memory[0] = MemoryRange { base: 0, length: 1 << 31, kind: MemoryRange::RAM };
        good.core = Extent { base: 0x123_0000, length: 0x1000 };
        good.region = Extent { base: 0x4000_0000, length: 0x20_0000 };
        good.components[..2].fill(Extent { base: 0x200_0000, length: 9 });
        let around = Surroundings { slb: Extent { base: 0x7000_0000, length: 0x1_0000 }, tseg: 0 };
        let elsewhere = [ApsNotParked, SkipTpmStartup, LocalityHeld, IommuBaseMoved, IommuOff];
        let is_elsewhere =
            |attack: Attack| elsewhere.contains(&attack) || attack.registers(&good) != [None; 4];
        for attack in Attack::ALL {
            let mut lie = good;
            attack.corrupt(&mut lie, around);
            assert_eq!(lie == good, is_elsewhere(*attack), "{}", attack.word());
        }
    }
}
