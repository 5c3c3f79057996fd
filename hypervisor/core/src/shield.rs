//! Stage 2: the core's own address space, and the IOMMUs that still refuse everything.

use alloc::vec;
use alloc::vec::Vec;

use dolmen_drtm::DigestSet;
use dolmen_drtm::handoff::IommuUnit;
use dolmen_machine::own::Machine;
use dolmen_memory::Hpa;
use dolmen_platform::amdvi::{DENY_ENTRY, DEVICE_TABLE_BYTES, Register, control};
use dolmen_tpm::tis::{Locality, Tis};

use crate::host::Host;
use crate::launch::{Launched, to_usize};
use crate::record::{Cap, Meter};
use crate::stop::{self, Reason};

/// Bytes of the heap, which is closed once the guests are built.
const HEAP_BYTES: u64 = 0x40_0000;

/// Bytes of a device table that are compared at a time.
const PIECE: usize = 0x1_0000;

/// The machine is the core's own, and no device writes it.
pub(crate) struct Shielded(pub(crate) Host);

/// Takes the machine over from the launch image and asks every IOMMU again.
pub(crate) fn take_over(launched: Launched) -> Result<Shielded, Reason> {
    let Launched { entered, banks } = launched;
    let (mut machine, own) = Machine::take_over(entered, HEAP_BYTES)?;
    stop::remember_memory(&machine, own);
    let clock = machine.start_clock()?;
    let mut tpm = Tis::new(machine.tpm(clock)?, Locality::Two);
    stop::remember_cap(Cap::new(machine.tpm(clock)?, banks));
    let units = machine.handoff().iommus;
    for unit in units.iter().take(to_usize(machine.handoff().iommu_count)) {
        check_refusing(&mut machine, unit)?;
    }
    tpm.claim()?;
    let (pcr17, pcr18) = (machine.handoff().pcr17, machine.handoff().pcr18);
    log::info!(target: "shield", "own tables, dma refused iommus={} tsc_khz={} apic_khz={}",
        machine.handoff().iommu_count, clock.tsc_khz, clock.apic_khz);
    let (pcr17, pcr18) = (DigestSet::from_values(&banks, pcr17), DigestSet::from_values(&banks, pcr18));
    Ok(Shielded(Host { machine, clock, meter: Meter { tpm, pcr17, pcr18 }, banks }))
}

/// Asks one IOMMU again: it translates by the launch image's table, and every entry still refuses.
fn check_refusing(machine: &mut Machine, unit: &IommuUnit) -> Result<(), Reason> {
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    let registers = machine.iommu(unit)?;
    if registers.read64(Register::Control.offset()) & control::ENABLE == 0 {
        return Err(Reason::Iommu("a unit is switched off"));
    }
    if registers.read64(Register::DeviceTable.offset()) & ADDRESS != unit.device_table {
        return Err(Reason::Iommu("a unit uses another device table"));
    }
    let mut piece = vec![0; PIECE];
    let want: Vec<u8> = DENY_ENTRY.iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut offset = 0u64;
    while offset < DEVICE_TABLE_BYTES {
        machine.read(Hpa::new(unit.device_table.wrapping_add(offset)), &mut piece)?;
        if piece.chunks_exact(want.len()).any(|entry| entry != want) {
            return Err(Reason::Iommu("an entry of a device table was changed"));
        }
        offset = offset.wrapping_add(u64::try_from(PIECE).unwrap_or(u64::MAX));
    }
    Ok(())
}
