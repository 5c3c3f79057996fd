//! Stage 1: what the loader says, checked against the processor's own registers and PCI configuration space.

use dolmen_drtm::check::{self, Claims, Passed};
use dolmen_drtm::handoff::{Extent, MAX_IOMMUS};
use dolmen_drtm::map::Map;
use dolmen_machine::cpu;
use dolmen_machine::launch::{Block, LoaderPage, Probe};
use dolmen_machine::mmio::Mmio;
use dolmen_machine::msr;
use dolmen_machine::pci::{Nodes, Ports};
use dolmen_machine::tpm_mmio::{TIS_BYTES, TisRegisters};
use dolmen_platform::acpi::{FirmwareMemory, Unreadable};
use dolmen_platform::amdvi::{self, Unit, Units, WINDOW_BYTES};
use dolmen_platform::ivrs;
use dolmen_tpm::tis::TIS_BASE;

use crate::console::Line;
use crate::reason::{Reason, Stopped};
use crate::stop::stop;

/// Where the TPM's registers are on every machine (PC Client Platform TPM Profile 1.05, 6.2).
const TPM: Extent = Extent { base: TIS_BASE, length: TIS_BYTES };

/// Device windows that extents are kept clear of: the TPM's, configuration space, and one for each IOMMU.
const MAX_DEVICES: usize = MAX_IOMMUS + 2;

/// The hand-off holds, and every device that the next stages drive is where it must be.
pub(crate) struct Launched {
    pub(crate) claims: Claims,
    pub(crate) passed: Passed<'static>,
    pub(crate) probe: Probe,
    pub(crate) measured: &'static [u8],
    pub(crate) devices: Devices,
    /// Time-stamp counter when the image began.
    pub(crate) began: u64,
}

/// What the next stages drive.
pub(crate) struct Devices {
    pub(crate) units: [Option<UnitRegisters>; MAX_IOMMUS],
    pub(crate) nodes: Nodes,
    pub(crate) tpm: TisRegisters,
}

/// An IOMMU and its registers.
pub(crate) struct UnitRegisters {
    pub(crate) unit: Unit,
    pub(crate) registers: Mmio,
}

/// Checks everything that the later stages build on.
#[inline(never)]
pub(crate) fn verify(mut block: Block, page: &LoaderPage, probe: Probe) -> Result<Launched, Stopped> {
    let began = cpu::read_tsc();
    let measured = block.measured();
    Line::new("launch: block=").hex(block.base()).text(" measured=").number(length(measured)).end();
    let mut map = Map::default();
    if !msr::read_map(&mut map) {
        stop(&Reason::Processor);
    }
    // Without these, memory types alone would say what RAM is.
    if map.dram.is_none() {
        stop(&Reason::NoTopOfMemory);
    }
    let handoff = page.handoff();
    let mut windows = [Extent::default(); MAX_DEVICES];
    let devices = find_devices(&mut block, &map, &mut windows, handoff.rsdp)?;
    let (claims, passed) = check::check(handoff, &map, block.base(), &windows)?.claim();
    Line::new("launch: hand-off checked region=")
        .hex(claims.region().base)
        .text(" pool=")
        .hex(passed.guest_pool().base)
        .text(" pool_bytes=")
        .hex(passed.guest_pool().length)
        .end();
    Ok(Launched { claims, passed, probe, measured, devices, began })
}

/// Finds and maps the TPM, every IOMMU, and the nodes; `windows` gets what extents must keep clear of.
#[inline(never)]
fn find_devices(
    block: &mut Block,
    map: &Map,
    windows: &mut [Extent; MAX_DEVICES],
    rsdp: u64,
) -> Result<Devices, Stopped> {
    let [tpm_window, config_window, windows @ ..] = windows;
    *tpm_window = TPM;
    // The TPM first: from here on the way out can cap the PCRs.
    let tpm = map.device(TPM).map_err(Reason::TpmPlace)?;
    let tpm = block.map_tpm(&tpm).ok_or(Reason::Defect)?;
    let found = amdvi::find_units::<MAX_IOMMUS>(&mut Ports)?;
    let mut units = [const { None }; MAX_IOMMUS];
    for ((unit, window), slot) in found.list().iter().zip(windows).zip(&mut units) {
        *window = Extent { base: unit.registers, length: WINDOW_BYTES };
        let device = map.device(*window).map_err(|error| Reason::IommuPlace(unit.registers, error))?;
        let registers = block.map(device).ok_or(Reason::Windows)?;
        *slot = Some(UnitRegisters { unit: *unit, registers });
    }
    check_ivrs(block, map, rsdp, &found)?;
    let (nodes, space) = Nodes::open(block, map)?;
    *config_window = space;
    Ok(Devices { units, nodes, tpm })
}

/// What firmware says of IOMMUs may only add reasons to refuse: each one it names must have been found.
fn check_ivrs<const N: usize>(block: &Block, map: &Map, rsdp: u64, found: &Units<N>) -> Result<(), Stopped> {
    if rsdp == 0 {
        return Ok(());
    }
    ivrs::for_each_unit(&mut Memory { block, map }, rsdp, |named| {
        let is_found = found.list().iter().any(|unit| unit.registers == named.registers);
        if is_found && named.segment == 0 { Ok(()) } else { stop(&Reason::IommuHidden(named.registers)) }
    })
}

/// Firmware's memory, where reading it has no effect.
struct Memory<'a> {
    block: &'a Block,
    map: &'a Map,
}

impl FirmwareMemory for Memory<'_> {
    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        let extent = Extent { base: at, length: length(into) };
        let proof = self.map.firmware(extent).map_err(|_| Unreadable)?;
        if self.block.read_firmware(proof, into) { Ok(()) } else { Err(Unreadable) }
    }
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
