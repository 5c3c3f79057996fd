//! Where RAM is, told by the processor's own registers.
//!
//! `SKINIT` keeps most model-specific registers, and on AMD nobody vets the memory map: software that ran
//! before may have moved the local APIC, SMRAM or an I/O range over what will be "measured". So an address
//! is RAM only if every register that routes it says so, and a device only if they say that it is not RAM.
//! [`Ram`], [`Device`] and [`Firmware`] are the proofs; only [`Map`] makes them.
//! Specification: APM vol. 2, 7.6 to 7.9 (memory types), 7.9.4 (top of memory), 10.2.5 (SMRAM), 16.3.1
//! (APIC base); PPR, MSR C001_0058 (configuration space).

use crate::handoff::Extent;

const MIB: u64 = 1 << 20;
const GIB_4: u64 = 1 << 32;
/// Most variable-range MTRRs that MTRRcap can claim and this reads.
pub const MAX_MTRRS: usize = 16;
/// Memory types (APM vol. 2, table 7-5).
const UNCACHEABLE: u8 = 0;
const WRITE_THROUGH: u8 = 4;
const WRITE_BACK: u8 = 6;

/// A pair of base and mask registers, as read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BaseMask {
    /// The base register.
    pub base: u64,
    /// The mask register.
    pub mask: u64,
}

/// The registers that route addresses between DRAM and I/O. Every AMD processor has them; some emulators
/// have none, and nothing is launched there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DramRegisters {
    /// SYSCFG.
    pub syscfg: u64,
    /// TOP_MEM.
    pub top_mem: u64,
    /// TOM2.
    pub top_mem2: u64,
    /// IORR 0 and 1.
    pub iorrs: [BaseMask; 2],
}

const SYSCFG_VAR_DRAM: u64 = 1 << 20;
const SYSCFG_TOM2: u64 = 1 << 21;
const SYSCFG_TOM2_WRITE_BACK: u64 = 1 << 22;

/// All registers that decide where an address goes, as read once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Map {
    /// Bits of a physical address (CPUID Fn8000_0008, EAX bits 7:0).
    pub physical_bits: u8,
    /// APIC_BASE.
    pub apic_base: u64,
    /// MTRRdefType.
    pub mtrr_default: u64,
    /// The variable-range MTRRs.
    pub mtrrs: [BaseMask; MAX_MTRRS],
    /// How many of them exist.
    pub mtrr_count: usize,
    /// SYSCFG and what it governs, where they exist.
    pub dram: Option<DramRegisters>,
    /// SMM_ADDR and SMM_MASK.
    pub smm: BaseMask,
    /// The MMIO configuration space register, C001_0058.
    pub config_space: u64,
}

/// Why an extent is not what it has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// It has no bytes.
    Empty,
    /// It wraps, or ends beyond the physical address width.
    BeyondWidth,
    /// It starts below 1 MiB, where fixed ranges and ROMs are.
    LowMemory,
    /// The local APIC's page is in it.
    Apic,
    /// It meets SMRAM.
    Smram,
    /// It meets memory-mapped configuration space.
    ConfigSpace,
    /// It meets an I/O range register's range that sends it elsewhere.
    IoRange,
    /// It is not below the top of memory: not DRAM.
    NotDram,
    /// It is, or may be, DRAM and not a device.
    NotDevice,
    /// Its memory type is this and not write-back.
    Type(u8),
    /// MTRRs give it types that must not be mixed.
    TypeConflict,
    /// MTRRs are switched off.
    MtrrsOff,
    /// TOP_MEM is switched off.
    TopOff,
    /// A mask register has a hole: its range cannot be told.
    Irregular,
    /// Configuration space has more than one segment.
    Segments,
}

/// Proof: RAM, below the top of memory, write-back, clear of APIC, SMRAM and I/O ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ram(Extent);

/// Proof: whole pages that are not RAM: registers of a device may be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device(Extent);

/// Proof: reading it has no side effect: RAM, or the BIOS area below 1 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Firmware(Extent);

impl Ram {
    /// The extent.
    #[must_use]
    pub const fn extent(&self) -> Extent {
        self.0
    }
}

impl Device {
    /// The extent.
    #[must_use]
    pub const fn extent(&self) -> Extent {
        self.0
    }

    /// Whole pages of it, by offset; `None` outside.
    #[must_use]
    pub fn part(&self, offset: u64, length: u64) -> Option<Self> {
        let is_inside = offset.checked_add(length).is_some_and(|end| end <= self.0.length);
        let is_paged = (offset | length) & 0xfff == 0 && length != 0;
        let base = self.0.base.checked_add(offset)?;
        (is_inside && is_paged).then_some(Self(Extent { base, length }))
    }
}

impl Firmware {
    /// The extent.
    #[must_use]
    pub const fn extent(&self) -> Extent {
        self.0
    }
}

impl Map {
    /// Checks that every byte of `extent` is RAM.
    ///
    /// # Errors
    /// [`MapError`] for the first register that says otherwise.
    pub fn ram(&self, extent: Extent) -> Result<Ram, MapError> {
        let end = self.end_of(extent)?;
        if extent.base < MIB {
            return Err(MapError::LowMemory);
        }
        self.clear_of_windows(extent)?;
        self.clear_of_config_space(extent)?;
        self.is_dram(extent.base, end)?;
        self.clear_of_io_ranges(extent)?;
        self.every_type(extent.base, end, |kind| match kind {
            WRITE_BACK => Ok(()),
            other => Err(MapError::Type(other)),
        })?;
        Ok(Ram(extent))
    }

    /// Checks that no byte of `extent`, whole pages, is RAM.
    ///
    /// # Errors
    /// As [`Self::ram`].
    pub fn device(&self, extent: Extent) -> Result<Device, MapError> {
        self.clear_of_config_space(extent)?;
        self.not_ram(extent)
    }

    /// Memory-mapped configuration space as the processor's register places it; `None` where it is off.
    ///
    /// # Errors
    /// [`MapError::Segments`] if it has more than one segment, or why it cannot be a device.
    pub fn config_space(&self) -> Result<Option<Device>, MapError> {
        self.config_space_extent()?.map(|extent| self.not_ram(extent)).transpose()
    }

    /// A window that the host bridge's own base register claims: what lies there is decoded by the bridge,
    /// whatever type the range registers give it (emulated firmware leaves write-back there). The caller keeps
    /// all memory clear of it.
    ///
    /// # Errors
    /// [`MapError::NotDevice`] for parts of pages and below 1 MiB; the window of another device.
    pub fn bridge_window(&self, extent: Extent) -> Result<Device, MapError> {
        let end = self.end_of(extent)?;
        if (extent.base | end) & 0xfff != 0 || extent.base < MIB {
            return Err(MapError::NotDevice);
        }
        self.clear_of_windows(extent)?;
        Ok(Device(extent))
    }

    /// Checks that reading `extent` has no side effect: ACPI tables are in RAM or in the BIOS area.
    ///
    /// # Errors
    /// As [`Self::ram`].
    pub fn firmware(&self, extent: Extent) -> Result<Firmware, MapError> {
        const LOW_RAM_END: u64 = 0xa_0000;
        const BIOS: u64 = 0xc_0000;
        let end = self.end_of(extent)?;
        let is_low = end <= LOW_RAM_END || (extent.base >= BIOS && end <= MIB);
        if is_low {
            self.clear_of_windows(extent)?;
            return Ok(Firmware(extent));
        }
        self.ram(extent).map(|ram| Firmware(ram.extent()))
    }

    /// Checks that the page at `page`, below 640 KiB, is RAM for processors to start in. `fixed` are the fixed-range
    /// registers of the first 512 KiB and of the next 128 (APM vol. 2, 7.7.2 and 7.9.1), read so that they show routes.
    ///
    /// # Errors
    /// [`MapError`] for the first register that says otherwise.
    pub fn start_page(&self, page: u32, fixed: [u64; 2]) -> Result<(), MapError> {
        const FIXED_ENABLED: u64 = 1 << 10;
        const FIXED_ROUTES: u64 = 1 << 18;
        const TO_MEMORY: u8 = 1 << 4 | 1 << 3;
        let extent = Extent { base: page.into(), length: 0x1000 };
        let (end, base) = (self.end_of(extent)?, extent.base);
        let [first, second] = fixed.map(u64::to_le_bytes);
        let index =
            |shift: u32, bytes: [u8; 8]| bytes.get(usize::try_from(page >> shift & 7).unwrap_or(8)).copied();
        let own = if page < 0x8_0000 { index(16, first) } else { index(14, second) };
        let own =
            own.filter(|_| page != 0 && page & 0xfff == 0 && page < 0xa_0000).ok_or(MapError::LowMemory)?;
        self.clear_of_windows(extent)?;
        self.clear_of_config_space(extent)?;
        self.is_dram(base, end)?;
        self.clear_of_io_ranges(extent)?;
        let (ranged, _) = self.type_at(base)?;
        if self.mtrr_default & FIXED_ENABLED == 0 {
            return if ranged == WRITE_BACK { Ok(()) } else { Err(MapError::Type(ranged)) };
        }
        let is_routed = self
            .dram
            .as_ref()
            .is_none_or(|dram| dram.syscfg & FIXED_ROUTES != 0 && own & TO_MEMORY == TO_MEMORY);
        match own & 7 {
            WRITE_BACK if is_routed => Ok(()),
            WRITE_BACK => Err(MapError::NotDram),
            kind => Err(MapError::Type(kind)),
        }
    }

    fn not_ram(&self, extent: Extent) -> Result<Device, MapError> {
        let end = self.whole_pages(extent)?;
        self.clear_of_windows(extent)?;
        match &self.dram {
            Some(dram) => {
                let is_above = if extent.base < GIB_4 {
                    extent.base >= top(dram.top_mem) && end <= GIB_4
                } else {
                    dram.syscfg & SYSCFG_TOM2 == 0 || extent.base >= top(dram.top_mem2)
                };
                if dram.syscfg & SYSCFG_VAR_DRAM == 0 || !is_above {
                    return Err(MapError::NotDevice);
                }
                self.clear_of_io_ranges(extent)?;
            }
            None => self.every_type(extent.base, end, |kind| match kind {
                WRITE_BACK => Err(MapError::NotDevice),
                _ => Ok(()),
            })?,
        }
        Ok(Device(extent))
    }

    /// The end of an extent that is whole pages above 1 MiB.
    fn whole_pages(&self, extent: Extent) -> Result<u64, MapError> {
        let end = self.end_of(extent)?;
        let is_whole = (extent.base | end) & 0xfff == 0 && extent.base >= MIB;
        if is_whole { Ok(end) } else { Err(MapError::NotDevice) }
    }

    fn end_of(&self, extent: Extent) -> Result<u64, MapError> {
        if extent.length == 0 {
            return Err(MapError::Empty);
        }
        let end = extent.base.checked_add(extent.length).ok_or(MapError::BeyondWidth)?;
        let limit = 1u64.checked_shl(u32::from(self.physical_bits)).unwrap_or(0);
        if end <= limit { Ok(end) } else { Err(MapError::BeyondWidth) }
    }

    /// The local APIC's page and SMRAM are elsewhere.
    fn clear_of_windows(&self, extent: Extent) -> Result<(), MapError> {
        const ENABLED: u64 = 1 << 11;
        const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
        let apic = Extent { base: self.apic_base & ADDRESS, length: 0x1000 };
        if self.apic_base & ENABLED != 0 && extent.meets(apic) {
            return Err(MapError::Apic);
        }
        const A_VALID: u64 = 1 << 0;
        const T_VALID: u64 = 1 << 1;
        let a_segment = Extent { base: 0xa_0000, length: 0x2_0000 };
        if self.smm.mask & A_VALID != 0 && extent.meets(a_segment) {
            return Err(MapError::Smram);
        }
        if self.smm.mask & T_VALID != 0 && extent.meets(self.range(self.smm, 17)?) {
            return Err(MapError::Smram);
        }
        Ok(())
    }

    fn clear_of_config_space(&self, extent: Extent) -> Result<(), MapError> {
        match self.config_space_extent()? {
            Some(window) if extent.meets(window) => Err(MapError::ConfigSpace),
            _ => Ok(()),
        }
    }

    fn config_space_extent(&self) -> Result<Option<Extent>, MapError> {
        const ENABLE: u64 = 1;
        const BUSES_256: u64 = 8;
        if self.config_space & ENABLE == 0 {
            return Ok(None);
        }
        let log2_buses = (self.config_space >> 2) & 0xf;
        if log2_buses > BUSES_256 {
            return Err(MapError::Segments);
        }
        let base = self.config_space & 0x000f_ffff_fff0_0000;
        Ok(Some(Extent { base, length: MIB.wrapping_shl(u32::try_from(log2_buses).unwrap_or(0)) }))
    }

    fn clear_of_io_ranges(&self, extent: Extent) -> Result<(), MapError> {
        const VALID: u64 = 1 << 11;
        const TO_MEMORY: u64 = 1 << 4 | 1 << 3;
        let Some(dram) = &self.dram else { return Ok(()) };
        for iorr in dram.iorrs.iter().filter(|iorr| iorr.mask & VALID != 0) {
            let is_plain = iorr.base & TO_MEMORY == TO_MEMORY && self.is_below_top(dram, extent);
            if !is_plain && extent.meets(self.range(*iorr, 12)?) {
                return Err(MapError::IoRange);
            }
        }
        Ok(())
    }

    fn is_below_top(&self, dram: &DramRegisters, extent: Extent) -> bool {
        let limit = if extent.base < GIB_4 { dram.top_mem } else { dram.top_mem2 };
        extent.base < top(limit)
    }

    fn is_dram(&self, base: u64, end: u64) -> Result<(), MapError> {
        let Some(dram) = &self.dram else { return Ok(()) };
        if dram.syscfg & SYSCFG_VAR_DRAM == 0 {
            return Err(MapError::TopOff);
        }
        let is_dram = if base < GIB_4 {
            end <= top(dram.top_mem).min(GIB_4)
        } else {
            dram.syscfg & SYSCFG_TOM2 != 0 && end <= top(dram.top_mem2)
        };
        if is_dram { Ok(()) } else { Err(MapError::NotDram) }
    }

    /// Gives `accept` the memory type of each piece of `[base, end)` that has one.
    fn every_type(
        &self,
        base: u64,
        end: u64,
        accept: impl Fn(u8) -> Result<(), MapError>,
    ) -> Result<(), MapError> {
        let mut at = base;
        // Each turn passes an edge of a range, of which there are at most two for each MTRR, and three more.
        while at < end {
            let (kind, next) = self.type_at(at)?;
            accept(kind)?;
            at = next;
        }
        Ok(())
    }

    /// The memory type at `at`, and where it may change next.
    fn type_at(&self, at: u64) -> Result<(u8, u64), MapError> {
        const ENABLED: u64 = 1 << 11;
        const VALID: u64 = 1 << 11;
        if self.mtrr_default & ENABLED == 0 {
            return Err(MapError::MtrrsOff);
        }
        let mut found = None;
        let (mut kind, mut next) = self.default_type_at(at);
        for mtrr in self.mtrrs.iter().take(self.mtrr_count).filter(|mtrr| mtrr.mask & VALID != 0) {
            let range = self.range(*mtrr, 12)?;
            let range_end = range.base.wrapping_add(range.length);
            let edge = if at < range.base { range.base } else { range_end };
            if edge > at {
                next = next.min(edge);
            }
            if at >= range.base && at < range_end {
                let [own, ..] = mtrr.base.to_le_bytes();
                kind = combine(found, own)?;
                found = Some(kind);
            }
        }
        Ok((kind, next))
    }

    fn default_type_at(&self, at: u64) -> (u8, u64) {
        let [default, ..] = self.mtrr_default.to_le_bytes();
        let forced = self.dram.as_ref().filter(|dram| {
            let both = SYSCFG_TOM2 | SYSCFG_TOM2_WRITE_BACK;
            dram.syscfg & both == both
        });
        match forced.map(|dram| top(dram.top_mem2)) {
            Some(_) if at < GIB_4 => (default, GIB_4),
            Some(end) if at < end => (WRITE_BACK, end),
            _ => (default, u64::MAX),
        }
    }

    /// The range of a pair of registers whose address fields begin at bit `low`.
    fn range(&self, pair: BaseMask, low: u32) -> Result<Extent, MapError> {
        let width = 1u64.checked_shl(u32::from(self.physical_bits)).unwrap_or(0).wrapping_sub(1);
        let field = width & u64::MAX.checked_shl(low).unwrap_or(0);
        let mask = pair.mask & field;
        let length = 1u64.checked_shl(mask.trailing_zeros()).ok_or(MapError::Irregular)?;
        if mask != width & length.wrapping_neg() {
            return Err(MapError::Irregular);
        }
        Ok(Extent { base: pair.base & mask, length })
    }
}

/// The address field of TOP_MEM and TOM2.
const fn top(register: u64) -> u64 {
    register & 0x000f_ffff_ff80_0000
}

/// The type of an address in two ranges (APM vol. 2, 7.7.5).
fn combine(found: Option<u8>, own: u8) -> Result<u8, MapError> {
    match (found, own) {
        (None, own) => Ok(own),
        (Some(UNCACHEABLE), _) | (_, UNCACHEABLE) => Ok(UNCACHEABLE),
        (Some(one), other) if one == other => Ok(one),
        (Some(WRITE_THROUGH | WRITE_BACK), WRITE_THROUGH | WRITE_BACK) => Ok(WRITE_THROUGH),
        _ => Err(MapError::TypeConflict),
    }
}

#[cfg(test)]
#[path = "map_tests.rs"]
mod tests;
