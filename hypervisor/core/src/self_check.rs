//! The self-check of test images: whatever guests do, what the hypervisor was built on still holds.
//!
//! Only with the feature `self-check`, which makes another image with another measurement; its log and its
//! launch facts (DEBUG) say so. A finding stops the machine. That no virtual processor is on two processors is
//! not looked for: whoever runs one holds its lock.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use dolmen_arch::CpuId;
use dolmen_machine::mmio::Mmio;
use dolmen_machine::own::Machine;
use dolmen_machine::region::Region;
use dolmen_memory::{EntryFormat, NestedTable, RamMap};
use dolmen_platform::amdvi::{Register, control};

use crate::launch::to_usize;
use crate::lock::Mutex;
use crate::stop::Reason;

/// Rounds of a processor between two looks at its own registers.
const ROUNDS: u64 = 16;
/// Looks at registers between two at everything.
const LOOKS: u64 = 16;

/// What must not change.
struct Ground {
    machine: Machine,
    tables: Vec<Tables>,
    /// Registers of each IOMMU, and the device table that it must use.
    iommus: Vec<(Mmio, u64)>,
}

static GROUND: Mutex<Option<Ground>> = Mutex::new(None);
/// Looks at everything so far.
static LOOKED: AtomicU64 = AtomicU64::new(0);
/// Nested tables of the guests that are being built.
static BUILT: Mutex<Vec<Tables>> = Mutex::new(Vec::new());

/// The nested tables of a guest, of whichever vendor's format, and the RAM that they must map.
type Tables = (Box<dyn Exact>, RamMap);

/// Tables that can be compared with what they must map.
trait Exact: Send {
    /// Whether they map `ram` and nothing else.
    fn is_exact(&self, region: &Region, ram: &RamMap) -> bool;
}

impl<F: EntryFormat + Send> Exact for NestedTable<F> {
    fn is_exact(&self, region: &Region, ram: &RamMap) -> bool {
        self.maps_exactly(region, ram)
    }
}

/// Remembers a guest's nested tables and the RAM that they must map.
pub(crate) fn remember<F: EntryFormat + Send + 'static>(tables: NestedTable<F>, ram: RamMap) {
    BUILT.lock().push((Box::new(tables), ram));
}

/// Takes the machine over, while there is still a heap.
pub(crate) fn prepare(mut machine: Machine) -> Result<(), Reason> {
    let units = machine.handoff().iommus;
    let count = to_usize(machine.handoff().iommu_count);
    let mut iommus = Vec::new();
    for unit in units.iter().take(count) {
        iommus.push((machine.iommu(unit)?, unit.device_table));
    }
    let tables = core::mem::take(&mut *BUILT.lock());
    log::warn!(target: "self-check", "DEBUG image: looks after {} guests and {} iommus", tables.len(), iommus.len());
    *GROUND.lock() = Some(Ground { machine, tables, iommus });
    Ok(())
}

/// One processor's part of the check.
pub(crate) struct Watch {
    cpu: CpuId,
    rounds: u64,
    registers: [u64; 3],
}

impl Watch {
    /// Remembers this processor's registers as they are.
    pub(crate) fn new(cpu: CpuId) -> Self {
        Self { cpu, rounds: 0, registers: registers() }
    }

    /// Counts a round, and looks if it is time to.
    pub(crate) fn round(&mut self) -> Result<(), Reason> {
        self.rounds = self.rounds.wrapping_add(1);
        if !self.rounds.is_multiple_of(ROUNDS) {
            return Ok(());
        }
        ensure(self.registers == registers(), "a control register of the host's has another value")?;
        if self.cpu == CpuId::FIRST && self.rounds.is_multiple_of(ROUNDS.wrapping_mul(LOOKS)) {
            look()?;
        }
        Ok(())
    }
}

/// CR0, CR4 and EFER.
fn registers() -> [u64; 3] {
    use dolmen_machine::cpu;
    [cpu::read_cr0(), cpu::read_cr4(), cpu::read_efer()]
}

/// Looks at everything, and says how often that was.
pub(crate) fn report(after: &str) -> Result<(), Reason> {
    look()?;
    let looks = LOOKED.load(Ordering::Relaxed);
    log::info!(target: "self-check", "all is well after={after} looks={looks}");
    Ok(())
}

fn look() -> Result<(), Reason> {
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    let mut ground = GROUND.lock();
    let Some(ground) = ground.as_mut() else { return Ok(()) };
    for (tables, ram) in &ground.tables {
        ensure(tables.is_exact(ground.machine.region(), ram), "nested tables map something else")?;
    }
    for (registers, device_table) in &ground.iommus {
        let is_on = registers.read64(Register::Control.offset()) & control::ENABLE != 0;
        let table = registers.read64(Register::DeviceTable.offset()) & ADDRESS;
        ensure(is_on && table == *device_table, "an IOMMU no longer refuses by our table")?;
    }
    ensure(Vec::<u8>::new().try_reserve_exact(1).is_err(), "the heap is open")?;
    LOOKED.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

fn ensure(holds: bool, what: &'static str) -> Result<(), Reason> {
    if holds { Ok(()) } else { Err(Reason::SelfCheck(what)) }
}
