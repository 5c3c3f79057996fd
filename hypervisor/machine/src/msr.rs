//! Model-specific registers that say where RAM is, each known to exist where it is read.
#![expect(unsafe_code, reason = "RDMSR and WRMSR have no safe form")]
// UNSAFETY: only registers that every processor with SKINIT has are touched after AMD's vendor string and MTRRs were
// seen in CPUID (emulators read the ones they lack as zero), and those of MTRRs and the APIC after Intel's.

use core::arch::asm;
use core::arch::x86_64::__cpuid;

use dolmen_arch::cpuid::Vendor;
use dolmen_drtm::map::{BaseMask, DramRegisters, MAX_MTRRS, Map};

use crate::cpu::ThisCpu;

const APIC_BASE: u32 = 0x1b;
const MTRR_CAP: u32 = 0xfe;
const MTRR_FIRST: u32 = 0x200;
const MTRR_DEFAULT: u32 = 0x2ff;
const SYSCFG: u32 = 0xc001_0010;
const IORR_FIRST: u32 = 0xc001_0016;
const TOP_MEM: u32 = 0xc001_001a;
const TOP_MEM2: u32 = 0xc001_001d;
const CONFIG_SPACE: u32 = 0xc001_0058;
const SMM_ADDR: u32 = 0xc001_0112;
const SMM_MASK: u32 = 0xc001_0113;

/// SYSCFG.MtrrVarDramEn: TOP_MEM and the I/O range registers are in force.
const SYSCFG_VAR_DRAM: u64 = 1 << 20;

/// Reads the registers that say where RAM is; false on a processor that is not AMD's or has no MTRRs.
///
/// SYSCFG.MtrrVarDramEn is set if it is clear, as no firmware leaves it: a processor on which it does not stick
/// has no such registers, which is so in emulators alone. What runs after a measured launch must not be content with that.
#[must_use]
pub fn read_map(map: &mut Map) -> bool {
    const EDX_MTRR: u32 = 1 << 12;
    let vendor = __cpuid(0);
    let is_amd = [vendor.ebx, vendor.edx, vendor.ecx] == [0x6874_7541, 0x6974_6e65, 0x444d_4163];
    let is_hygon = [vendor.ebx, vendor.edx, vendor.ecx] == [0x6f67_7948, 0x6e65_476e, 0x656e_6975];
    if !(is_amd || is_hygon) || __cpuid(1).edx & EDX_MTRR == 0 {
        return false;
    }
    *map = Map {
        dram: read_dram(),
        smm: BaseMask { base: read(SMM_ADDR), mask: read(SMM_MASK) },
        config_space: read(CONFIG_SPACE),
        ..read_types(__cpuid(0x8000_0008).eax)
    };
    read_ranges(map)
}

/// Reads the registers that say where RAM is on a processor by Intel: memory types alone, since which addresses reach
/// DRAM is the chipset's matter there. False on a processor that is not Intel's or has no MTRRs. What runs after a
/// measured launch must not be content with this.
#[must_use]
pub fn read_intel_map(map: &mut Map) -> bool {
    const EDX_MTRR: u32 = 1 << 12;
    const EXTENDED_SIZES: u32 = 0x8000_0008;
    let is_intel = Vendor::detect(&ThisCpu) == Some(Vendor::Intel);
    if !is_intel || __cpuid(1).edx & EDX_MTRR == 0 || __cpuid(0x8000_0000).eax < EXTENDED_SIZES {
        return false;
    }
    *map = read_types(__cpuid(EXTENDED_SIZES).eax);
    read_ranges(map)
}

/// What every processor with MTRRs has.
fn read_types(sizes: u32) -> Map {
    let [physical_bits, ..] = sizes.to_le_bytes();
    let [count, ..] = read(MTRR_CAP).to_le_bytes();
    Map {
        physical_bits,
        apic_base: read(APIC_BASE),
        mtrr_default: read(MTRR_DEFAULT),
        mtrr_count: usize::from(count),
        ..Map::default()
    }
}

/// The variable ranges; false if there are more than can be kept.
fn read_ranges(map: &mut Map) -> bool {
    if map.mtrr_count > MAX_MTRRS {
        return false;
    }
    for (pair, register) in map.mtrrs.iter_mut().take(map.mtrr_count).zip((MTRR_FIRST..).step_by(2)) {
        *pair = read_pair(register);
    }
    true
}

fn read_dram() -> Option<DramRegisters> {
    let syscfg = read(SYSCFG);
    if syscfg & SYSCFG_VAR_DRAM == 0 {
        write(SYSCFG, syscfg | SYSCFG_VAR_DRAM);
    }
    let syscfg = read(SYSCFG);
    (syscfg & SYSCFG_VAR_DRAM != 0).then(|| DramRegisters {
        syscfg,
        top_mem: read(TOP_MEM),
        top_mem2: read(TOP_MEM2),
        iorrs: [read_pair(IORR_FIRST), read_pair(IORR_FIRST + 2)],
    })
}

fn read_pair(first: u32) -> BaseMask {
    BaseMask { base: read(first), mask: read(first.wrapping_add(1)) }
}

pub(crate) fn read(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: see the module's argument; RDMSR of these has no side effect.
    unsafe {
        asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high,
             options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

pub(crate) fn write(register: u32, value: u64) {
    let [l0, l1, l2, l3, h0, h1, h2, h3] = value.to_le_bytes();
    let (low, high) = (u32::from_le_bytes([l0, l1, l2, l3]), u32::from_le_bytes([h0, h1, h2, h3]));
    // SAFETY: SYSCFG is written to enable what firmware enables: addresses keep going where TOP_MEM, which is
    // checked afterwards, sends them. On the processors that are started, memory types get the values that the boot
    // processor's have.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") low, in("edx") high, options(nostack, preserves_flags));
    }
}
