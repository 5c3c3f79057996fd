//! What every processor must have as the boot processor has it: how addresses are routed, and with which memory type.
//!
//! The launch image has checked the boot processor's registers; those of the others may hold what hostile software
//! left there. Memory types are taken over, as every operating system does; what firmware alone may set must be
//! alike, or the launch stops.
#![expect(unsafe_code, reason = "paging is told to forget")]
// UNSAFETY: caches are off and empty while memory types change, as the manual demands.

use dolmen_drtm::map::Map;

use crate::{cpu, msr};

const PAT: u32 = 0x277;
const MTRR_FIRST: u32 = 0x200;
const MTRR_DEFAULT: u32 = 0x2ff;
const MTRRS_ENABLED: u64 = 1 << 11;
/// The fixed ranges: 0–512 KiB, 512–640 KiB, and the rest of the first MiB.
const MTRR_FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
const SYSCFG: u32 = 0xc001_0010;
/// SYSCFG: the fixed ranges show where reads and writes go.
const SHOW_FIXED_ROUTES: u64 = 1 << 19;
const CACHE_DISABLE: u64 = 1 << 30;
const NOT_WRITE_THROUGH: u64 = 1 << 29;
/// APIC_BASE tells the boot processor from the others.
const BOOT_PROCESSOR: u64 = 1 << 8;

/// The registers of one processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Likeness {
    pub(super) map: Map,
    pub(super) fixed: [u64; 11],
    pat: u64,
}

impl Likeness {
    /// Those of this processor; `None` where it has none.
    pub(super) fn read() -> Option<Self> {
        let mut map = Map::default();
        // The core gets to run by a launch that wants AMD's registers, or UNMEASURED.
        if !msr::read_map(&mut map) && !msr::read_intel_map(&mut map) {
            return None;
        }
        map.apic_base &= !BOOT_PROCESSOR;
        let mut fixed = [0; 11];
        show_routes(&map, || {
            for (value, register) in fixed.iter_mut().zip(MTRR_FIXED) {
                *value = msr::read(register);
            }
        });
        Some(Self { map, fixed, pat: msr::read(PAT) })
    }

    /// Gives this processor the memory types; false if other registers differ. After the APIC was set up alike.
    pub(super) fn adopt(&self) -> bool {
        let Some(own) = Self::read() else { return false };
        if own == *self {
            return true;
        }
        // APM vol. 2, 7.7.6: caches off and empty, translations dropped, ranges off while they change.
        let cr0 = cpu::read_cr0();
        // SAFETY: paging and protection stay as they are.
        unsafe { cpu::write_cr0(cr0 & !NOT_WRITE_THROUGH | CACHE_DISABLE) };
        cpu::write_back_caches();
        // SAFETY: the tables in force stay in force.
        unsafe { cpu::write_cr3(cpu::read_cr3()) };
        msr::write(MTRR_DEFAULT, self.map.mtrr_default & !MTRRS_ENABLED);
        show_routes(&own.map, || {
            for (value, register) in self.fixed.iter().zip(MTRR_FIXED) {
                msr::write(register, *value);
            }
        });
        let ranges = self.map.mtrrs.iter().take(self.map.mtrr_count.min(own.map.mtrr_count));
        for (pair, register) in ranges.zip((MTRR_FIRST..).step_by(2)) {
            msr::write(register, pair.base);
            msr::write(register.wrapping_add(1), pair.mask);
        }
        msr::write(PAT, self.pat);
        cpu::write_back_caches();
        // SAFETY: as above.
        unsafe { cpu::write_cr3(cpu::read_cr3()) };
        msr::write(MTRR_DEFAULT, self.map.mtrr_default);
        // SAFETY: as it was.
        unsafe { cpu::write_cr0(cr0) };
        Self::read() == Some(*self)
    }
}

/// Runs `access` while the fixed ranges show their routes, where the processor has that.
fn show_routes(map: &Map, access: impl FnOnce()) {
    let Some(dram) = &map.dram else { return access() };
    msr::write(SYSCFG, dram.syscfg | SHOW_FIXED_ROUTES);
    access();
    msr::write(SYSCFG, dram.syscfg);
}
