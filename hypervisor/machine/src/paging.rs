//! The core's own address space.
//!
//! ```text
//! ffff_ffff_8000_0000  device pages, uncached, mapped one by one
//! ffff_ffff_8020_0000  copy windows: for each processor 4 MiB that show other RAM for the time of one copy, and
//!                      2 MiB, read-only, that go on showing what was last glanced at
//! ffff_ffff_9000_0000  stacks of the other processors, 2 MiB apart, unmapped pages below each
//! ffff_ffff_c000_0000  the region: core text (RX), constants (R), data (RW), guard pages (-), the rest (RW)
//! ```
//! Nothing is both writable and executable; nothing of a guest is mapped for good,
//! and what stays in sight of it cannot be written.
#![expect(unsafe_code, reason = "page tables decide what memory means")]
// UNSAFETY: tables are built completely before they are loaded; the window is this module's own.

use core::marker::PhantomData;

use dolmen_memory::{Hfn, Hpa, PAGE_SIZE};

use crate::cpu;
use crate::cpus::{self, CpuId};
use crate::region::{Region, to_usize};
use crate::segments::{FaultStacks, to_u64};

/// Where device pages are mapped.
const DEVICE_VA: u64 = 0xffff_ffff_8000_0000;
/// Where the copy windows are: the page directory's entries from 1 on, three for each processor.
const WINDOW_VA: u64 = 0xffff_ffff_8020_0000;
const WINDOW_BYTES: u64 = WINDOW_PAGES * LARGE_PAGE;
const WINDOW_PAGES: u64 = 3;
/// Which of them is for glances.
const GLANCE: u64 = 2;
/// Bytes of one large page.
pub const LARGE_PAGE: u64 = 0x20_0000;

/// Where the other processors' stacks are, and the page directory's entry of the first of them.
const STACK_VA: u64 = 0xffff_ffff_9000_0000;
const STACK_ENTRY: u16 = 128;
/// Pages of a processor's stacks: for work, fatal faults, non-maskable interrupts, #SX.
const STACK_PAGES: [u64; 4] = [32, 4, 2, 4];
/// Bytes of a processor's stacks.
pub const STACK_BYTES: u64 = 42 * PAGE_SIZE;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const WRITE_THROUGH: u64 = 1 << 3;
const CACHE_DISABLE: u64 = 1 << 4;
const ACCESSED_DIRTY: u64 = 0b11 << 5;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

const READ_ONLY: u64 = PRESENT | ACCESSED_DIRTY | NO_EXECUTE;
const READ_WRITE: u64 = READ_ONLY | WRITABLE;
const EXECUTABLE: u64 = PRESENT | ACCESSED_DIRTY;
const DEVICE: u64 = READ_WRITE | WRITE_THROUGH | CACHE_DISABLE;

const CR0_WRITE_PROTECT: u64 = 1 << 16;

unsafe extern "C" {
    static __core_start: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __image_end: u8;
    static __guard_pages_start: u8;
    static __guard_pages_end: u8;
}

/// Why the address space cannot be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PagingError {
    /// The region has no frame left.
    OutOfFrames,
    /// More device pages than one table holds.
    TooManyDevices,
}

/// The core's page tables.
#[derive(Debug)]
pub struct AddressSpace {
    region: Region,
    root: Hfn,
    /// Page directory of the device pages and the copy window.
    devices: Hfn,
    device_table: Hfn,
    devices_used: u16,
}

impl AddressSpace {
    /// Builds tables that map the region `[base, end)` and nothing else. Not yet in force: see
    /// [`Self::switch`].
    ///
    /// # Errors
    /// [`PagingError::OutOfFrames`].
    pub fn build(mut region: Region, base: Hpa, end: Hpa) -> Result<Self, PagingError> {
        let mut fresh = || region.allocate().ok_or(PagingError::OutOfFrames);
        let (root, top, core, devices, device_table) = (fresh()?, fresh()?, fresh()?, fresh()?, fresh()?);
        let mut space = Self { region, root, devices, device_table, devices_used: 0 };
        space.region.write(root, 511, link(top));
        space.region.write(top, 511, link(core));
        space.region.write(top, 510, link(devices));
        space.region.write(devices, 0, link(device_table));
        space.map_region(core, base, end)?;
        Ok(space)
    }

    fn map_region(&mut self, directory: Hfn, base: Hpa, end: Hpa) -> Result<(), PagingError> {
        let image_end = address_of(&raw const __image_end);
        let mut va = address_of(&raw const __core_start);
        let mut pa = base.get();
        let mut index = 0;
        while pa < end.get() {
            if va < image_end {
                let table = self.region.allocate().ok_or(PagingError::OutOfFrames)?;
                for page in 0..512u16 {
                    let offset = u64::from(page).wrapping_mul(PAGE_SIZE);
                    let rights = image_rights(va.wrapping_add(offset));
                    if rights != 0 {
                        self.region.write(table, page, pa.wrapping_add(offset) | rights);
                    }
                }
                self.region.write(directory, index, link(table));
            } else {
                self.region.write(directory, index, pa | READ_WRITE | LARGE);
            }
            va = va.wrapping_add(LARGE_PAGE);
            pa = pa.wrapping_add(LARGE_PAGE);
            index = index.wrapping_add(1);
        }
        Ok(())
    }

    /// Puts the tables in force, with write protection for the hypervisor itself.
    ///
    /// # Safety
    /// The region that was passed to [`Self::build`] is the one the core runs in, and nothing outside it
    /// (stack, tables, arguments) is used any more. Runs once.
    pub unsafe fn switch(&self) {
        // SAFETY: the caller promises that the region holds all that runs; `map_region` maps all of it.
        unsafe { cpu::write_cr3(self.root.base().get()) };
        // SAFETY: WP only takes write access away from pages that are never written.
        unsafe { cpu::write_cr0(cpu::read_cr0() | CR0_WRITE_PROTECT) };
    }

    /// Maps `pages` uncached device pages from `at` for good; answers their virtual address.
    ///
    /// # Errors
    /// [`PagingError::TooManyDevices`].
    pub fn map_device(&mut self, at: Hpa, pages: u16) -> Result<u64, PagingError> {
        let first = self.devices_used;
        let end = first.checked_add(pages).filter(|n| *n <= 512).ok_or(PagingError::TooManyDevices)?;
        let base = at.get() & !(PAGE_SIZE.wrapping_sub(1));
        for (n, index) in (0u64..).zip(first..end) {
            let page = base.wrapping_add(n.wrapping_mul(PAGE_SIZE));
            self.region.write(self.device_table, index, page | DEVICE);
        }
        self.devices_used = end;
        let offset = at.get().wrapping_sub(base);
        Ok(DEVICE_VA.wrapping_add(u64::from(first).wrapping_mul(PAGE_SIZE)).wrapping_add(offset))
    }

    /// Maps the stacks of `cpu`, which lie at `first`, each above a page that is never mapped.
    ///
    /// # Errors
    /// [`PagingError::OutOfFrames`].
    pub(crate) fn map_stacks(&mut self, cpu: CpuId, first: Hpa) -> Result<CpuStacks, PagingError> {
        let table = self.region.allocate().ok_or(PagingError::OutOfFrames)?;
        let base = STACK_VA.wrapping_add(to_u64(cpu.index()).wrapping_mul(LARGE_PAGE));
        let (mut page, mut frame) = (0u16, first.get());
        let [main, fatal, nmi, security] = STACK_PAGES.map(|pages| {
            // The guard.
            page = page.wrapping_add(1);
            for _ in 0..pages {
                self.region.write(table, page, frame | READ_WRITE);
                page = page.wrapping_add(1);
                frame = frame.wrapping_add(PAGE_SIZE);
            }
            base.wrapping_add(u64::from(page).wrapping_mul(PAGE_SIZE))
        });
        let index = u16::try_from(cpu.index()).unwrap_or(0).wrapping_add(STACK_ENTRY);
        self.region.write(self.devices, index, link(table));
        Ok(CpuStacks { main, faults: FaultStacks { fatal, nmi, security } })
    }

    /// Maps a page of the first MiB where it lies, executable and never writable: a processor that starts there
    /// switches these tables on.
    ///
    /// # Errors
    /// [`PagingError::OutOfFrames`].
    pub(crate) fn map_start_page(&mut self, page: Hpa) -> Result<(), PagingError> {
        let mut fresh = || self.region.allocate().ok_or(PagingError::OutOfFrames);
        let (top, directory, table) = (fresh()?, fresh()?, fresh()?);
        let index = u16::try_from(page.get() / PAGE_SIZE).unwrap_or(0) & 0xff;
        self.region.write(table, index, page.get() | EXECUTABLE);
        self.region.write(directory, 0, link(table));
        self.region.write(top, 0, link(directory));
        self.region.write(self.root, 0, link(top));
        Ok(())
    }

    /// Takes it away again; every processor has to drop its translations then.
    pub(crate) fn unmap_start_page(&mut self) {
        self.region.write(self.root, 0, 0);
    }

    /// The frames that are left.
    pub const fn region(&mut self) -> &mut Region {
        &mut self.region
    }

    /// The copy windows of this address space.
    #[must_use]
    pub const fn window(&self) -> CopyWindow {
        CopyWindow { first_entry: self.region.virtual_of(self.devices.base()).wrapping_add(8) }
    }
}

/// Tops of a processor's stacks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CpuStacks {
    /// For work.
    pub(crate) main: u64,
    /// Those that it takes by itself.
    pub(crate) faults: FaultStacks,
}

/// Rights of a page of the core's image, 0 for a guard page.
fn image_rights(va: u64) -> u64 {
    let is_guard = va >= address_of(&raw const __guard_pages_start)
        && va < address_of(&raw const __guard_pages_end)
        && crate::entry_core::is_guard_page(va);
    if is_guard {
        0
    } else if va < address_of(&raw const __text_end) {
        EXECUTABLE
    } else if va < address_of(&raw const __rodata_end) {
        READ_ONLY
    } else {
        READ_WRITE
    }
}

fn address_of(symbol: *const u8) -> u64 {
    to_u64(symbol.addr())
}

const fn link(table: Hfn) -> u64 {
    table.base().get() | PRESENT | WRITABLE | ACCESSED_DIRTY & (1 << 5)
}

/// Two neighbouring large pages that show any RAM for the time of one copy. Each processor has its own: a copy
/// goes through the window of the processor that makes it, and no handler that returns makes any.
#[derive(Clone, Copy, Debug)]
pub struct CopyWindow {
    /// Virtual address of the first page-directory entry of the first processor's window.
    first_entry: u64,
}

impl CopyWindow {
    /// Most bytes of one copy: what the second large page leaves for any start in the first.
    pub const MAX: u64 = LARGE_PAGE;

    /// Copies RAM at `from` into `into`, piece by piece.
    ///
    /// # Safety
    /// `[from, from + into.len())` is RAM, and no Rust object lies in it.
    pub unsafe fn read(&self, from: Hpa, into: &mut [u8]) {
        let slot = self.slot();
        let mut at = from.get();
        for piece in into.chunks_mut(to_usize(Self::MAX)) {
            let source = core::ptr::with_exposed_provenance::<u8>(slot.show(at, piece.len()));
            // SAFETY: the window shows RAM for at least `MAX` bytes from `at`, by the caller's promise, and
            // cannot overlap a slice, since no Rust object lies there.
            unsafe { source.copy_to_nonoverlapping(piece.as_mut_ptr(), piece.len()) };
            at = at.wrapping_add(to_u64(piece.len()));
        }
        slot.hide();
    }

    /// Copies `bytes` to RAM at `to`, piece by piece.
    ///
    /// # Safety
    /// As [`Self::read`]; whoever owns that RAM expects it to change.
    pub unsafe fn write(&self, to: Hpa, bytes: &[u8]) {
        let slot = self.slot();
        let mut at = to.get();
        for piece in bytes.chunks(to_usize(Self::MAX)) {
            let target = core::ptr::with_exposed_provenance_mut::<u8>(slot.show(at, piece.len()));
            // SAFETY: as in `read`.
            unsafe { target.copy_from_nonoverlapping(piece.as_ptr(), piece.len()) };
            at = at.wrapping_add(to_u64(piece.len()));
        }
        slot.hide();
    }

    /// Fills RAM with zeroes.
    ///
    /// # Safety
    /// As [`Self::write`].
    pub unsafe fn wipe(&self, from: Hpa, length: u64) {
        let slot = self.slot();
        let mut at = from.get();
        let mut left = length;
        while left > 0 {
            let piece = left.min(Self::MAX);
            let target = core::ptr::with_exposed_provenance_mut::<u8>(slot.show(at, to_usize(piece)));
            // SAFETY: as in `write`.
            unsafe { target.write_bytes(0, to_usize(piece)) };
            at = at.wrapping_add(piece);
            left = left.wrapping_sub(piece);
        }
        slot.hide();
    }

    /// The window of the processor that this runs on.
    pub(crate) fn slot(self) -> Slot {
        let cpu = to_u64(cpus::this().index());
        Slot {
            first_entry: self.first_entry.wrapping_add(cpu.wrapping_mul(8 * WINDOW_PAGES)),
            address: WINDOW_VA.wrapping_add(cpu.wrapping_mul(WINDOW_BYTES)),
            own: PhantomData,
        }
    }
}

/// One processor's window, which stays on that processor.
#[derive(Debug)]
pub(crate) struct Slot {
    first_entry: u64,
    address: u64,
    /// Not `Send`.
    own: PhantomData<*const ()>,
}

impl Slot {
    /// The eight bytes at `from`, lowest first. Their large page stays in sight of this processor, read-only, until
    /// a glance at another: guest tables and code are read at most exits. `None` if they lie in two large pages.
    ///
    /// # Safety
    /// As [`CopyWindow::read`].
    #[inline(always)]
    pub(crate) unsafe fn glance(&self, from: Hpa) -> Option<u64> {
        let offset = from.get() & LARGE_PAGE.wrapping_sub(1);
        if offset > LARGE_PAGE.wrapping_sub(8) {
            return None;
        }
        self.keep(from.get().wrapping_sub(offset));
        let at = self.address.wrapping_add(GLANCE.wrapping_mul(LARGE_PAGE)).wrapping_add(offset);
        // SAFETY: the window shows that large page, which is RAM by the caller's promise, and all eight bytes
        // lie in it.
        Some(unsafe { core::ptr::with_exposed_provenance::<u64>(to_usize(at)).read_unaligned() })
    }

    /// Shows the large page of `at`, and the next if `length` bytes reach into it; answers the virtual address of
    /// `at`.
    fn show(&self, at: u64, length: usize) -> usize {
        let offset = at & LARGE_PAGE.wrapping_sub(1);
        let page = at.wrapping_sub(offset);
        self.set(0, page | READ_WRITE | LARGE);
        if offset.wrapping_add(to_u64(length)) > LARGE_PAGE {
            self.set(1, page.wrapping_add(LARGE_PAGE) | READ_WRITE | LARGE);
        }
        to_usize(self.address.wrapping_add(offset))
    }

    fn hide(&self) {
        self.set(0, 0);
        if self.entry(1) != 0 {
            self.set(1, 0);
        }
    }

    /// Shows `page` in the place for glances, unless it is there.
    #[inline(always)]
    fn keep(&self, page: u64) {
        let entry = page | READ_ONLY | LARGE;
        if self.entry(GLANCE) != entry {
            self.set(GLANCE, entry);
        }
    }

    fn entry(&self, page: u64) -> u64 {
        let at = self.first_entry.wrapping_add(page.wrapping_mul(8));
        // SAFETY: as in `set`. The processor sets no bit of it: accessed and dirty are set from the start.
        unsafe { core::ptr::with_exposed_provenance::<u64>(to_usize(at)).read_volatile() }
    }

    fn set(&self, page: u64, entry: u64) {
        let at = self.first_entry.wrapping_add(page.wrapping_mul(8));
        // SAFETY: the entry belongs to the page directory that `build` allocated, mapped with the region
        // for good; only the window's own processor writes it.
        unsafe { core::ptr::with_exposed_provenance_mut::<u64>(to_usize(at)).write_volatile(entry) };
        cpu::invalidate_page(self.address.wrapping_add(page.wrapping_mul(LARGE_PAGE)));
    }
}
