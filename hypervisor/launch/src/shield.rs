//! Stage 2: closes DMA. See `platform::amdvi`'s shield sequence for the order and its reasons.

use dolmen_drtm::check::Passed;
use dolmen_drtm::handoff::{Extent, IommuUnit, MAX_IOMMUS};
use dolmen_machine::cpu;
use dolmen_machine::iommu::UnitAccess;
use dolmen_machine::launch::{Probe, Region, ShieldedRegion, Staged, claim};
use dolmen_machine::tpm_mmio::TisRegisters;
use dolmen_platform::amdvi::{
    self, DEVICE_TABLE_BYTES, RING_BYTES, Register, Tables, UnitIo, WINDOW_BYTES, feature,
};
use dolmen_platform::sldev;

use crate::console::Line;
use crate::launch::{Devices, Launched, UnitRegisters};
use crate::reason::{Reason, Stopped};

/// Bytes of the register window of a unit with performance counters.
const COUNTER_WINDOW_BYTES: u64 = 0x8_0000;

/// No device can write memory, and none could since before the tables in use were built.
pub(crate) struct Shielded {
    pub(crate) staged: Staged,
    pub(crate) passed: Passed<'static>,
    pub(crate) region: ShieldedRegion,
    pub(crate) measured: &'static [u8],
    pub(crate) iommus: Iommus,
    pub(crate) tpm: TisRegisters,
    /// Time-stamp counter when the image began, and when DMA was closed.
    pub(crate) tsc: [u64; 2],
}

/// The units as they were left.
pub(crate) struct Iommus {
    pub(crate) list: [IommuUnit; MAX_IOMMUS],
    pub(crate) count: u32,
    /// Whether a unit can fetch from the block.
    pub(crate) has_race: bool,
}

/// Makes every IOMMU refuse everything, then releases the processor's protection of the block.
#[inline(never)]
pub(crate) fn close_dma(launched: Launched) -> Result<Shielded, Stopped> {
    let Launched { claims, passed, mut probe, measured, devices, began } = launched;
    let Devices { mut units, mut nodes, tpm } = devices;
    let (staged, mut region) = claim(claims);
    let places = Places::new(region.extent(), passed.slb().base, probe.physical())?;
    let iommus = refuse_all(&mut units, &places, &mut region, &mut probe)?;
    let node_count = sldev::release(&mut nodes, core::arch::x86_64::__cpuid(1).eax)?;
    Line::new("shield: dma closed iommus=")
        .number(iommus.count.into())
        .text(" nodes=")
        .number(node_count.into())
        .end();
    let (region, tsc) = (region.shielded(places.rings), [began, cpu::read_tsc()]);
    Ok(Shielded { staged, passed, region, measured, iommus, tpm, tsc })
}

/// Arms every unit, builds the table that they share, and switches each of them to it.
#[inline(never)]
fn refuse_all(
    units: &mut [Option<UnitRegisters>; MAX_IOMMUS],
    places: &Places,
    region: &mut Region,
    probe: &mut Probe,
) -> Result<Iommus, Stopped> {
    let mut done = Iommus { list: [IommuUnit::default(); MAX_IOMMUS], count: 0, has_race: false };
    for is_armed in [false, true] {
        for ((unit, slot), index) in units.iter_mut().flatten().zip(&mut done.list).zip(0u32..) {
            let tables = places.of(index);
            let mut io = UnitAccess::new(&mut unit.registers, region, probe);
            if index == 0 {
                amdvi::build_deny_table(&mut io, tables.devices, DEVICE_TABLE_BYTES);
            }
            if is_armed {
                amdvi::enforce(&mut io, &unit.unit, &tables)?;
                *slot = describe(&mut io, &unit.unit, &tables);
                done.count = done.count.saturating_add(1);
            } else {
                let is_denied = amdvi::arm(&mut io, &unit.unit, &tables)?;
                done.has_race |= !is_denied;
                Line::new("shield: armed iommu=")
                    .hex(unit.unit.registers)
                    .text(if is_denied { " fetch=denied" } else { " fetch=possible" })
                    .end();
            }
        }
    }
    Ok(done)
}

/// What the core is told of a unit.
fn describe(io: &mut UnitAccess<'_>, unit: &amdvi::Unit, tables: &Tables) -> IommuUnit {
    let features = if unit.has_features() { io.read(Register::Features) } else { 0 };
    let is_large = features & feature::COUNTERS != 0;
    IommuUnit {
        registers: unit.registers,
        register_bytes: if is_large { COUNTER_WINDOW_BYTES } else { WINDOW_BYTES },
        device_table: tables.devices,
        command_buffer: tables.commands,
        event_log: tables.events,
        completion: tables.completion,
    }
}

/// Where the tables are: the shared device table at the end of the region, the rings of each unit below it.
struct Places {
    block: u64,
    probe: u64,
    devices: u64,
    rings: u64,
}

impl Places {
    /// Command buffer, event log, completion store.
    const UNIT_BYTES: u64 = 3 * RING_BYTES;

    fn new(region: Extent, block: u64, probe: u64) -> Result<Self, Stopped> {
        const RINGS: u64 = Places::UNIT_BYTES * 8;
        const _: () = assert!(MAX_IOMMUS == 8);
        let end = region.base.saturating_add(region.length);
        let devices = end.checked_sub(DEVICE_TABLE_BYTES).ok_or(Reason::Region)?;
        let rings = devices.checked_sub(RINGS).ok_or(Reason::Region)?;
        Ok(Self { block, probe, devices, rings })
    }

    fn of(&self, unit: u32) -> Tables {
        let commands = self.rings.saturating_add(u64::from(unit).saturating_mul(Self::UNIT_BYTES));
        Tables {
            block: self.block,
            probe: self.probe,
            devices: self.devices,
            commands,
            events: commands.saturating_add(RING_BYTES),
            completion: commands.saturating_add(2 * RING_BYTES),
        }
    }
}
