//! The machine in the core's hands.
//!
//! The launch image, which the processor measured, says in its hand-off which memory is what. That is believed
//! here and nowhere else: [`Entered`] is the proof that a hand-off came from it, and [`Machine`] gives access to
//! exactly the memory and registers that the hand-off names, each for what it is.
#![expect(unsafe_code, reason = "the hand-off's addresses become accesses here")]
// UNSAFETY: every address is checked against the hand-off, whose extents the launch image checked to be RAM
// or device registers and to be disjoint.

use dolmen_drtm::handoff::{CORE_VA, CoreHandoff, Extent, IommuUnit, MAX_COMPONENTS};
use dolmen_memory::{Gpa, GuestMemory, Hpa, OutsideRam, PAGE_SIZE, RamMap};
use dolmen_tpm::tis::TIS_BASE;

use crate::apic;
use crate::clock::Clock;
use crate::extension::{Extension, ExtensionError};
use crate::heap;
use crate::interrupt::Window;
use crate::mmio::Mmio;
use crate::paging::{AddressSpace, CopyWindow, LARGE_PAGE, PagingError, STACK_BYTES, Slot};
use crate::region::Region;
use crate::segments::{self, FaultStacks};
use crate::tpm_mmio::{TIS_BYTES, TisRegisters};

/// The launch image's hand-off, as it was when the core was entered. Made once, by the entry stub.
#[derive(Debug)]
pub struct Entered {
    pub(crate) handoff: CoreHandoff,
}

impl Entered {
    /// What the launch image says.
    #[must_use]
    pub const fn handoff(&self) -> &CoreHandoff {
        &self.handoff
    }
}

/// Why the machine cannot be taken over, or a part of it not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineError {
    /// The region is too small for tables and heap.
    OutOfFrames,
    /// More device pages than the core maps.
    TooManyDevices,
    /// The local APIC is disabled in IA32_APIC_BASE.
    NoApic,
    /// There is no 8254 timer to measure the clocks with.
    NoPit,
    /// An address that the hand-off does not name for this use.
    NotOurs(Hpa),
    /// The guest pool has no such piece left.
    PoolExhausted,
}

impl From<PagingError> for MachineError {
    fn from(error: PagingError) -> Self {
        match error {
            PagingError::OutOfFrames => Self::OutOfFrames,
            PagingError::TooManyDevices => Self::TooManyDevices,
        }
    }
}

/// Memory that only the core's own data lie in, but for its image: heap, and stacks of the other processors.
#[derive(Clone, Copy, Debug)]
pub struct Private {
    /// Virtual address of the first byte.
    pub start: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The core's address space, and the memory that the hand-off names.
#[derive(Debug)]
pub struct Machine {
    handoff: CoreHandoff,
    pub(crate) space: AddressSpace,
    pub(crate) window: CopyWindow,
    /// Where the stacks of the other processors lie.
    pub(crate) stacks: Hpa,
    /// Next byte of the guest pool that no guest has.
    pool_next: u64,
}

impl Machine {
    /// Leaves the launch image's tables and stack for the core's own, and opens a heap of `heap_bytes`.
    /// Answers what the way out has to wipe, too.
    ///
    /// # Errors
    /// [`MachineError::OutOfFrames`].
    pub fn take_over(entered: Entered, heap_bytes: u64) -> Result<(Self, Private), MachineError> {
        let handoff = entered.handoff;
        let end_of = |extent: Extent| Hpa::new(extent.base.wrapping_add(extent.length));
        let shift = CORE_VA.wrapping_sub(handoff.region.base);
        // SAFETY: the launch image maps the region at CORE_VA and gave its free part to nobody; our own
        // tables map it at the same place. `Entered` is made once, so this runs once.
        let region = unsafe { Region::new(Hpa::new(handoff.free.base), end_of(handoff.free), shift) };
        let mut space = AddressSpace::build(region, Hpa::new(handoff.region.base), end_of(handoff.region))?;
        // SAFETY: image, stack and the copy of the hand-off lie in the region; nothing else is used.
        unsafe { space.switch() };
        // SAFETY: once, on the only running processor.
        unsafe { segments::fill_handlers() };
        // SAFETY: once, with GIF and IF clear as the launch image left them; GS leads to the first block since the
        // entry; the stacks are the image's, which `build` maps.
        unsafe { segments::load(FaultStacks::boot()) };
        // One run, so that the way out wipes heap and stacks at once.
        let heap_bytes = heap_bytes & !PAGE_SIZE.wrapping_sub(1);
        let stack_bytes = u64::from(handoff.cpu_count).wrapping_mul(STACK_BYTES);
        let bytes = heap_bytes.checked_add(stack_bytes).ok_or(MachineError::OutOfFrames)?;
        let frame = space.region().allocate_run(bytes / PAGE_SIZE).ok_or(MachineError::OutOfFrames)?;
        let start = space.region().virtual_of(frame.base());
        // SAFETY: the run was taken from the region, this part of it for the heap alone; the region stays mapped; once.
        unsafe { heap::open(start, heap_bytes) };
        let window = space.window();
        let stacks = Hpa::new(frame.base().get().wrapping_add(heap_bytes));
        let machine = Self { pool_next: handoff.guest_pool.base, handoff, space, window, stacks };
        Ok((machine, Private { start, bytes }))
    }

    /// What the launch image says.
    #[must_use]
    pub const fn handoff(&self) -> &CoreHandoff {
        &self.handoff
    }

    /// Frames for tables.
    pub const fn region(&mut self) -> &mut Region {
        self.space.region()
    }

    /// Takes over the local APIC and measures the clocks with it.
    ///
    /// # Errors
    /// [`MachineError::NoApic`], [`MachineError::NoPit`], or no room for the page.
    pub fn start_clock(&mut self) -> Result<Clock, MachineError> {
        let mapped = match apic::page().map_err(|_| MachineError::NoApic)? {
            Some(page) => Some(self.space.map_device(Hpa::new(page), 1)?),
            None => None,
        };
        // SAFETY: the page that IA32_APIC_BASE names was just mapped uncached for good; or x2APIC is on.
        unsafe { apic::enable(mapped) };
        Clock::measure().map_err(|_| MachineError::NoPit)
    }

    /// Enables `E` on the boot processor; from here on interrupts may be let in. After [`Self::start_clock`].
    ///
    /// # Errors
    /// [`ExtensionError`] for what the processor lacks.
    pub fn enable<E: Extension>(&mut self) -> Result<(E, E::Cpu, Window), ExtensionError> {
        let extension = E::new(self.space.region())?;
        let frames = extension.frames(self.space.region())?;
        // SAFETY: the machine exists once; its segments are loaded and final; interrupts are off.
        let cpu = unsafe { extension.enable(frames) }?;
        // SAFETY: segments are loaded since `take_over`, and the extension was just enabled.
        let window = unsafe { Window::new(E::GATE) };
        Ok((extension, cpu, window))
    }

    /// The TPM's FIFO registers.
    ///
    /// # Errors
    /// No room for the pages.
    pub fn tpm(&mut self, clock: Clock) -> Result<TisRegisters, MachineError> {
        let pages = self.registers(Extent { base: TIS_BASE, length: TIS_BYTES })?;
        Ok(TisRegisters::new(pages, clock.tsc_khz))
    }

    /// The registers of an IOMMU of the hand-off.
    ///
    /// # Errors
    /// [`MachineError::NotOurs`] for a unit that the hand-off does not name; no room for the pages.
    pub fn iommu(&mut self, unit: &IommuUnit) -> Result<Mmio, MachineError> {
        if !self.handoff.iommus.contains(unit) {
            return Err(MachineError::NotOurs(Hpa::new(unit.registers)));
        }
        self.registers(Extent { base: unit.registers, length: unit.register_bytes })
    }

    fn registers(&mut self, at: Extent) -> Result<Mmio, MachineError> {
        let pages = u16::try_from(at.length.div_ceil(PAGE_SIZE)).map_err(|_| MachineError::TooManyDevices)?;
        let base = self.space.map_device(Hpa::new(at.base), pages)?;
        // SAFETY: just mapped uncached for good; the callers pass the TPM's range, fixed by the PC client
        // profile, and register ranges of the hand-off.
        Ok(unsafe { Mmio::new(base, at.length) })
    }

    /// Copies what the loader staged or the launch image left: components, manifest, event log, IOMMU tables.
    ///
    /// # Errors
    /// [`MachineError::NotOurs`] if the range lies in none of them.
    pub fn read(&self, from: Hpa, into: &mut [u8]) -> Result<(), MachineError> {
        let length = u64::try_from(into.len()).map_err(|_| MachineError::NotOurs(from))?;
        let wanted = Extent { base: from.get(), length };
        if !self.is_readable(wanted) {
            return Err(MachineError::NotOurs(from));
        }
        // SAFETY: RAM by the launch image's check, and disjoint from the core's image and the free part,
        // where all objects of the core lie.
        unsafe { self.window.read(from, into) };
        Ok(())
    }

    fn is_readable(&self, wanted: Extent) -> bool {
        /// Bytes of an IOMMU's device table: 65,536 entries of 32 bytes.
        const DEVICE_TABLE: u64 = 0x20_0000;
        let handoff = &self.handoff;
        let tables =
            handoff.iommus.iter().map(|unit| Extent { base: unit.device_table, length: DEVICE_TABLE });
        handoff
            .components
            .iter()
            .copied()
            .chain([handoff.manifest, handoff.event_log])
            .chain(tables)
            .any(|part| holds(part, wanted))
    }

    /// Takes `bytes` (a multiple of 2 MiB) from the guest pool, zeroed, for one guest.
    ///
    /// # Errors
    /// [`MachineError::PoolExhausted`].
    pub fn take_guest_ram(&mut self, bytes: u64) -> Result<Extent, MachineError> {
        let pool = self.handoff.guest_pool;
        let piece = Extent { base: self.pool_next, length: bytes };
        if !bytes.is_multiple_of(LARGE_PAGE) || !holds(pool, piece) {
            return Err(MachineError::PoolExhausted);
        }
        self.pool_next = piece.base.wrapping_add(bytes);
        // SAFETY: a piece of the guest pool that nobody has yet: RAM without objects.
        unsafe { self.window.wipe(Hpa::new(piece.base), piece.length) };
        Ok(piece)
    }

    /// Access to the RAM of one guest, whose extents came from [`Self::take_guest_ram`].
    ///
    /// # Errors
    /// [`MachineError::NotOurs`] if an extent lies outside what was taken.
    pub fn guest_ram(&self, map: RamMap) -> Result<GuestRam, MachineError> {
        let pool = self.handoff.guest_pool;
        let taken = Extent { base: pool.base, length: self.pool_next.wrapping_sub(pool.base) };
        for extent in map.extents() {
            if !holds(taken, Extent { base: extent.hpa.get(), length: extent.bytes }) {
                return Err(MachineError::NotOurs(extent.hpa));
            }
        }
        Ok(GuestRam { map, window: self.space.window() })
    }

    /// Access to the files that the loader staged, for guests that start again.
    #[must_use]
    pub const fn staged_files(&self) -> StagedFiles {
        StagedFiles { files: self.handoff.components, window: self.space.window() }
    }

    /// A wiper of all that guests were given, for the way out.
    #[must_use]
    pub fn guest_wiper(&self) -> GuestWiper {
        GuestWiper { pool: self.handoff.guest_pool, window: self.space.window() }
    }
}

/// Whether `inner` lies in `outer`; an empty range lies nowhere.
fn holds(outer: Extent, inner: Extent) -> bool {
    let end = |extent: Extent| extent.base.checked_add(extent.length);
    inner.length > 0
        && inner.base >= outer.base
        && matches!((end(inner), end(outer)), (Some(inner), Some(outer)) if inner <= outer)
}

/// The RAM of one guest.
#[derive(Debug)]
pub struct GuestRam {
    map: RamMap,
    window: CopyWindow,
}

impl GuestRam {
    /// Where it lies.
    #[must_use]
    pub const fn map(&self) -> &RamMap {
        &self.map
    }

    /// Fills all of it with zeroes: before a guest is built anew.
    pub fn wipe(&self) {
        for extent in self.map.extents() {
            // SAFETY: the extents were checked to be pieces of the guest pool.
            unsafe { self.window.wipe(extent.hpa, extent.bytes) };
        }
    }

    /// Fills the `bytes` bytes from `offset` with zeroes, counted from the start of its RAM as if that had no hole.
    pub fn wipe_part(&self, offset: u64, bytes: u64) {
        let (mut skip, mut left) = (offset, bytes);
        for extent in self.map.extents() {
            let here = extent.bytes.saturating_sub(skip).min(left);
            if here > 0 {
                let start = Hpa::new(extent.hpa.get().wrapping_add(skip));
                // SAFETY: a part of an extent, which was checked to be a piece of the guest pool.
                unsafe { self.window.wipe(start, here) };
            }
            skip = skip.saturating_sub(extent.bytes);
            left = left.wrapping_sub(here);
        }
    }

    /// Its RAM as the processor that asks reaches it.
    #[must_use]
    pub fn in_sight(&self) -> RamInSight<'_> {
        RamInSight { ram: self, slot: self.window.slot() }
    }

    fn locate(&self, at: Gpa, bytes: usize) -> Result<Hpa, OutsideRam> {
        self.map.locate(at, u64::try_from(bytes).map_err(|_| OutsideRam)?)
    }
}

/// The RAM of one guest in sight of one processor: a handle for the time that it works for that guest. Copies of
/// several processors to the same bytes mix, as with any memory.
#[derive(Debug)]
pub struct RamInSight<'a> {
    ram: &'a GuestRam,
    slot: Slot,
}

impl GuestMemory for RamInSight<'_> {
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), OutsideRam> {
        let from = self.ram.locate(at, into.len())?;
        // SAFETY: a piece of the guest pool: RAM without objects.
        unsafe { self.ram.window.read(from, into) };
        Ok(())
    }

    fn write(&mut self, at: Gpa, from: &[u8]) -> Result<(), OutsideRam> {
        let to = self.ram.locate(at, from.len())?;
        // SAFETY: a piece of the guest pool: RAM without objects; the guest owns it.
        unsafe { self.ram.window.write(to, from) };
        Ok(())
    }

    #[inline(always)]
    fn word(&self, at: Gpa) -> Result<u64, OutsideRam> {
        let from = self.ram.map.locate(at, 8)?;
        // SAFETY: a piece of the guest pool: RAM without objects.
        if let Some(word) = unsafe { self.slot.glance(from) } {
            return Ok(word);
        }
        let mut bytes = [0; 8];
        self.read(at, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// The files that the loader staged: read only.
#[derive(Debug)]
pub struct StagedFiles {
    files: [Extent; MAX_COMPONENTS],
    window: CopyWindow,
}

impl StagedFiles {
    /// Copies a part of one of them.
    ///
    /// # Errors
    /// [`MachineError::NotOurs`] if the range lies in none of them.
    pub fn read(&self, from: Hpa, into: &mut [u8]) -> Result<(), MachineError> {
        let length = u64::try_from(into.len()).map_err(|_| MachineError::NotOurs(from))?;
        let wanted = Extent { base: from.get(), length };
        if !self.files.iter().any(|file| holds(*file, wanted)) {
            return Err(MachineError::NotOurs(from));
        }
        // SAFETY: RAM by the launch image's check, and disjoint from all objects of the core.
        unsafe { self.window.read(from, into) };
        Ok(())
    }
}

/// Wipes the guest pool on the way out.
#[derive(Debug)]
pub struct GuestWiper {
    pool: Extent,
    window: CopyWindow,
}

impl GuestWiper {
    /// Fills the whole pool with zeroes.
    pub fn wipe(&self) {
        // SAFETY: the pool is RAM that only guests use, and no guest runs on the way out.
        unsafe { self.window.wipe(Hpa::new(self.pool.base), self.pool.length) };
    }
}
