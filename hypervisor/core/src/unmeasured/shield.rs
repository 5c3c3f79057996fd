//! Stage 2 of the development image: the core's own address space. There is no IOMMU to ask, and DMA is open.

use dolmen_machine::own::Machine;

use crate::host::Host;
use crate::launch::Launched;
use crate::record::{Cap, Meter};
use crate::stop::{self, Reason};

/// Bytes of the heap, which is closed once the guests are built.
const HEAP_BYTES: u64 = 0x40_0000;

/// The machine is the core's own; devices may write it.
pub(crate) struct Shielded(pub(crate) Host);

/// Takes the machine over.
pub(crate) fn take_over(launched: Launched) -> Result<Shielded, Reason> {
    let Launched { entered, banks } = launched;
    let (mut machine, own) = Machine::take_over(entered, HEAP_BYTES)?;
    stop::remember_memory(&machine, own);
    stop::remember_cap(Cap);
    let clock = machine.start_clock()?;
    log::warn!(target: "shield", "UNMEASURED own tables, dma OPEN tsc_khz={} apic_khz={}",
        clock.tsc_khz, clock.apic_khz);
    Ok(Shielded(Host { machine, clock, meter: Meter, banks }))
}
