//! The machine in the launch image's hands: the secure loader block, device registers, and the region.
//!
//! Each access needs the proof that it is one: [`Device`] and [`Firmware`] come from `drtm`'s check of the
//! processor's registers alone, [`Claims`] from its check of the loader's hand-off, and there is one [`Block`].
#![expect(unsafe_code, reason = "proofs become accesses here")]
// UNSAFETY: physical RAM is reached by the mapping at MEMORY_VA; no Rust object but the launch image's own lies in
// RAM, and those are in the block, which no proof covers (the block is RAM of the check, disjoint from the rest).

use core::cell::UnsafeCell;
use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use core::sync::atomic::{AtomicBool, Ordering};

use dolmen_drtm::check::Claims;
use dolmen_drtm::handoff::{CORE_VA, Extent, HANDOFF_OFFSET, Handoff, LAUNCH_VA};
use dolmen_drtm::map::{Device, Firmware};
use dolmen_tpm::tis::TIS_BASE;

use crate::entry_launch;
pub use crate::entry_launch::{on_first_stack, on_stack};
use crate::mmio::Mmio;
use crate::tpm_mmio::{TIS_BYTES, TisRegisters};

/// No processor's time-stamp counter is faster: waits counted with it are as long as asked for, or longer.
pub const MOST_TICKS_PER_MICROSECOND: u64 = 5_000;

const PAGE: u64 = 0x1000;
const LARGE_PAGE: u64 = 0x20_0000;
/// Entry of the block's first page in the page table, and the first that the block does not use: the TPM's pages
/// are there.
const FIRST_PAGE: u64 = (LAUNCH_VA >> 12) & 0x1ff;
const FIRST_FREE_PAGE: u64 = FIRST_PAGE + 16;
/// First entry after those that device registers may take, and of the mapping of physical memory.
pub(crate) const MEMORY_SLOT: u64 = 128;
/// GiB of physical memory that are mapped: up to the entries of the block's page-directory-pointer table.
pub(crate) const MEMORY_GIB: u64 = 380;
/// Where physical memory is mapped: by the table of tables as page-directory-pointer table.
const MEMORY_VA: u64 = 0xffff_ff80_0000_0000 + (MEMORY_SLOT << 30);
const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const UNCACHED: u64 = 1 << 4 | 1 << 3;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

/// Whether the TPM's registers are mapped: the way out may then use them again.
static HAS_TPM: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    static __window: u8;
    static __measured_end: u8;
}

/// The secure loader block that runs.
#[derive(Debug)]
pub struct Block {
    base: u64,
    next_page: u64,
}

impl Block {
    /// # Safety
    /// Once, in the block at `base`, mapped at `LAUNCH_VA`.
    pub(crate) const unsafe fn new(base: u64) -> Self {
        Self { base, next_page: FIRST_FREE_PAGE + TIS_BYTES / PAGE }
    }

    /// Its physical address.
    #[must_use]
    pub const fn base(&self) -> u64 {
        self.base
    }

    /// What the processor measured.
    #[must_use]
    pub fn measured(&self) -> &'static [u8] {
        let end = (&raw const __measured_end).addr();
        let start = with_exposed_provenance::<u8>(to_usize(LAUNCH_VA));
        // SAFETY: code and constants of this image, mapped read-only for good.
        unsafe { core::slice::from_raw_parts(start, end.wrapping_sub(start.addr())) }
    }

    /// Maps device registers, uncached; `None` when there is no room.
    pub fn map(&mut self, device: Device) -> Option<Mmio> {
        let first = self.next_page;
        let mapped = map_at(device.extent(), first)?;
        self.next_page = first.checked_add(device.extent().length / PAGE)?;
        Some(mapped)
    }

    /// Maps `count` pages of `device` in one run: at byte `first` of it, and every `stride` bytes on.
    pub fn map_strided(&mut self, device: &Device, first: u64, stride: u64, count: u64) -> Option<Mmio> {
        let start = self.next_page;
        for index in 0..count {
            let offset = first.checked_add(index.checked_mul(stride)?)?;
            self.map(device.part(offset, PAGE)?)?;
        }
        // SAFETY: just mapped uncached for good, page after page; `device` proves that no RAM is there.
        Some(unsafe { Mmio::new(page_va(start), count.checked_mul(PAGE)?) })
    }

    /// Maps the TPM's registers, if `device` is where they are.
    pub fn map_tpm(&mut self, device: &Device) -> Option<TisRegisters> {
        if device.extent() != (Extent { base: TIS_BASE, length: TIS_BYTES }) {
            return None;
        }
        let pages = map_at(device.extent(), FIRST_FREE_PAGE)?;
        HAS_TPM.store(true, Ordering::Release);
        Some(registers(pages))
    }

    /// Copies from firmware's memory; whether it is mapped.
    pub fn read_firmware(&self, from: Firmware, into: &mut [u8]) -> bool {
        let Extent { base, length } = from.extent();
        let count = into.len().min(to_usize(length));
        let Some(source) = memory(base, length) else { return false };
        let source = with_exposed_provenance::<u8>(source);
        // SAFETY: RAM or the BIOS area by proof, mapped; `into` lies in the block's stack, which the
        // proof's RAM may include only if firmware points there, and a copy may overlap.
        unsafe { core::ptr::copy(source, into.as_mut_ptr(), count) };
        true
    }
}

/// Takes the RAM that the hand-off gives away.
#[must_use]
pub const fn claim(claims: Claims) -> (Staged, Region) {
    let region = Region { extent: claims.region() };
    (Staged { claims }, region)
}

/// The last page of the block, as the loader left it: nobody can write it any more, and we never do.
#[derive(Debug)]
pub struct LoaderPage(());

impl LoaderPage {
    /// # Safety
    /// In the block, mapped at `LAUNCH_VA`.
    pub(crate) const unsafe fn new() -> Self {
        Self(())
    }

    /// The loader's hand-off: hostile.
    #[must_use]
    pub fn handoff(&self) -> &'static Handoff {
        let page = with_exposed_provenance::<Handoff>(to_usize(LAUNCH_VA.wrapping_add(HANDOFF_OFFSET)));
        // SAFETY: mapped, page-aligned, any bytes are a `Handoff`; SL_DEV and then the IOMMUs keep devices from
        // it, other processors are parked, and no code of ours writes there.
        unsafe { &*page }
    }
}

/// Room for one IOMMU command in the block.
#[repr(C, align(16))]
struct Command(UnsafeCell<[u64; 2]>);
// SAFETY: one processor runs, and only the one `Probe` touches it.
unsafe impl Sync for Command {}

static COMMAND: Command = Command(UnsafeCell::new([0; 2]));

/// The one access to that room.
#[derive(Debug)]
pub struct Probe {
    physical: u64,
}

impl Probe {
    /// # Safety
    /// Once, in the block at `base`, mapped at `LAUNCH_VA`.
    pub(crate) unsafe fn new(base: u64) -> Self {
        let offset = COMMAND.0.get().addr().wrapping_sub(to_usize(LAUNCH_VA));
        Self { physical: base.wrapping_add(u64::try_from(offset).unwrap_or(0)) }
    }

    /// Its physical address.
    #[must_use]
    pub const fn physical(&self) -> u64 {
        self.physical
    }

    /// Writes 64 bits by physical address; nothing outside.
    pub fn store(&mut self, at: u64, value: u64) {
        let first = COMMAND.0.get().cast::<u64>();
        let word = match at.wrapping_sub(self.physical) {
            0 => first,
            8 => first.wrapping_add(1),
            _ => return,
        };
        // SAFETY: one of the two words, which `&mut self` makes ours alone.
        unsafe { word.write_volatile(value) };
    }
}

/// The TPM's registers for the way out, if they were mapped.
#[must_use]
pub fn tpm_again() -> Option<TisRegisters> {
    if !HAS_TPM.load(Ordering::Acquire) {
        return None;
    }
    // SAFETY: mapped uncached for good by `map_tpm`.
    Some(registers(unsafe { Mmio::new(page_va(FIRST_FREE_PAGE), TIS_BYTES) }))
}

fn registers(pages: Mmio) -> TisRegisters {
    TisRegisters::new(pages, MOST_TICKS_PER_MICROSECOND.wrapping_mul(1000))
}

const fn page_va(index: u64) -> u64 {
    LAUNCH_VA.wrapping_add(index.wrapping_sub(FIRST_PAGE).wrapping_mul(PAGE))
}

/// Maps whole pages of device registers at entry `first` of the page table.
fn map_at(device: Extent, first: u64) -> Option<Mmio> {
    let count = device.length / PAGE;
    if first < FIRST_FREE_PAGE || first.checked_add(count)? > MEMORY_SLOT {
        return None;
    }
    let table = (&raw const __window).expose_provenance();
    for index in 0..count {
        let entry = table.wrapping_add(to_usize(first.wrapping_add(index).wrapping_mul(8)));
        let physical = device.base.wrapping_add(index.wrapping_mul(PAGE));
        let value = physical | NO_EXECUTE | UNCACHED | WRITABLE | PRESENT;
        // SAFETY: an entry of our own page table, beyond those of the block; not present so far, or the same.
        unsafe { with_exposed_provenance_mut::<u64>(entry).write_volatile(value) };
    }
    // SAFETY: just mapped uncached for good; `device` proves that no RAM is there.
    Some(unsafe { Mmio::new(page_va(first), device.length) })
}

/// What the loader staged, to be copied from.
#[derive(Debug)]
pub struct Staged {
    claims: Claims,
}

impl Staged {
    /// Bytes of the core's file.
    #[must_use]
    pub const fn core_bytes(&self) -> u64 {
        self.claims.core().length
    }

    /// Bytes of the manifest.
    #[must_use]
    pub const fn manifest_bytes(&self) -> u64 {
        self.claims.manifest().length
    }

    /// Copies the core; whether it is mapped.
    pub fn copy_core(&self, into: &mut [u8]) -> bool {
        copy(self.claims.core(), into)
    }

    /// Copies the manifest; whether it is mapped.
    pub fn copy_manifest(&self, into: &mut [u8]) -> bool {
        copy(self.claims.manifest(), into)
    }
}

fn copy(from: Extent, into: &mut [u8]) -> bool {
    let Some(source) = memory(from.base, from.length) else { return false };
    let count = into.len().min(to_usize(from.length));
    // SAFETY: RAM by the check of the hand-off, and disjoint from the region by it; `into` is at least as long.
    unsafe { into.as_mut_ptr().copy_from_nonoverlapping(with_exposed_provenance(source), count) };
    true
}

/// Where physical memory is mapped; `None` beyond what is.
fn memory(at: u64, length: u64) -> Option<usize> {
    let is_mapped = at.checked_add(length)? <= MEMORY_GIB << 30;
    is_mapped.then(|| to_usize(MEMORY_VA.wrapping_add(at)))
}

/// The region while devices may write it: words only, each read as it is at that moment.
#[derive(Debug)]
pub struct Region {
    extent: Extent,
}

impl Region {
    /// Where it is.
    #[must_use]
    pub const fn extent(&self) -> Extent {
        self.extent
    }

    /// Reads 64 bits by physical address; `None` outside.
    #[must_use]
    pub fn load(&self, at: u64) -> Option<u64> {
        let word = word_in(self.extent, at)?;
        // SAFETY: RAM of the region, by the check of the hand-off; no object lies in it.
        Some(unsafe { with_exposed_provenance::<u64>(word).read_volatile() })
    }

    /// Writes 64 bits by physical address; whether it is inside.
    pub fn store(&mut self, at: u64, value: u64) -> bool {
        let Some(word) = word_in(self.extent, at) else { return false };
        // SAFETY: as in `load`.
        unsafe { with_exposed_provenance_mut::<u64>(word).write_volatile(value) };
        true
    }

    /// What lies below physical address `end`, now that no device can write it. Only the shield stage calls this,
    /// when it has seen every IOMMU refuse everything.
    #[must_use]
    pub const fn shielded(self, end: u64) -> ShieldedRegion {
        ShieldedRegion { extent: self.extent, next: self.extent.base, end }
    }
}

fn word_in(extent: Extent, at: u64) -> Option<usize> {
    let offset = at.checked_sub(extent.base)?;
    let is_inside = offset.is_multiple_of(8) && offset < extent.length;
    if is_inside { memory(at, 8) } else { None }
}

/// The region when nobody but us writes it: given away piece by piece, from its start.
#[derive(Debug)]
pub struct ShieldedRegion {
    extent: Extent,
    next: u64,
    end: u64,
}

impl ShieldedRegion {
    /// Where it is.
    #[must_use]
    pub const fn extent(&self) -> Extent {
        self.extent
    }

    /// What nobody has yet.
    #[must_use]
    pub const fn free(&self) -> Extent {
        Extent { base: self.next, length: self.end.saturating_sub(self.next) }
    }

    /// The next `length` bytes; `None` when there are not as many. Pieces of whole pages are page-aligned when
    /// all before them were.
    #[inline(never)]
    pub fn take(&mut self, length: u64) -> Option<&'static mut [u8]> {
        let start = self.next;
        let end = start.checked_add(length).filter(|end| *end <= self.end)?;
        let at = memory(start, length)?;
        self.next = end;
        // SAFETY: RAM of the region, which devices cannot write any more; each byte is given away once.
        Some(unsafe { core::slice::from_raw_parts_mut(with_exposed_provenance_mut(at), to_usize(length)) })
    }

    /// The last `length` bytes, of whole pages; `None` when there are not as many.
    pub fn take_last(&mut self, length: u64) -> Option<&'static mut [u8]> {
        let start = self.end.checked_sub(length).filter(|start| *start >= self.next)?;
        let at = memory(start, length)?;
        self.end = start;
        // SAFETY: as in `take`.
        Some(unsafe { core::slice::from_raw_parts_mut(with_exposed_provenance_mut(at), to_usize(length)) })
    }

    /// Makes page tables at the end of the region, which map the first 512 GiB one to one, the block as it is mapped
    /// now, and the region at `CORE_VA`.
    ///
    /// `None` when there is no room.
    pub fn map_for_core(&mut self) -> Option<Root> {
        let tables = self.take_last(4 * PAGE)?;
        let root = extent_of(tables).base;
        tables.fill(0);
        let (entries, _) = tables.as_chunks_mut::<8>();
        let mut set = |table: u64, slot: u64, value: u64| {
            if let Some(entry) = entries.get_mut(to_usize(table.wrapping_mul(512).wrapping_add(slot))) {
                *entry = (value | WRITABLE | PRESENT).to_le_bytes();
            }
        };
        let page = |table: u64| root.wrapping_add(table.wrapping_mul(PAGE));
        for slot in 0..512 {
            set(1, slot, slot << 30 | LARGE | NO_EXECUTE);
            let offset = slot.wrapping_mul(LARGE_PAGE);
            if offset < self.extent.length {
                set(3, slot, self.extent.base.wrapping_add(offset) | LARGE);
            }
        }
        set(0, 0, page(1));
        set(0, 511, page(2));
        set(2, (LAUNCH_VA >> 30) & 0x1ff, window());
        set(2, (CORE_VA >> 30) & 0x1ff, page(3));
        Some(Root(root))
    }

    /// Jumps to byte `entry` of the region with the physical address of `handoff`, which lies in it.
    pub fn enter_core<H>(self, root: Root, entry: u32, handoff: &'static H) -> ! {
        let handoff = to_u64(core::ptr::from_ref(handoff).addr()).wrapping_sub(MEMORY_VA);
        // SAFETY: `root` maps the region at CORE_VA and the rest as promised; the last stage alone gets here, with the
        // measured core's entry.
        unsafe { entry_launch::jump(root.0, CORE_VA.wrapping_add(u64::from(entry)), handoff) }
    }
}

/// Page tables for the core.
#[derive(Debug)]
pub struct Root(u64);

/// The block's own table of tables, physically: its entry for itself says so.
fn window() -> u64 {
    const ITSELF: u64 = 511;
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    let at = (&raw const __window).expose_provenance().wrapping_add(to_usize(ITSELF.wrapping_mul(8)));
    // SAFETY: a word of our own page tables.
    unsafe { with_exposed_provenance::<u64>(at).read_volatile() & ADDRESS }
}

/// Where bytes of the region are physically.
#[must_use]
pub fn extent_of(bytes: &[u8]) -> Extent {
    Extent { base: to_u64(bytes.as_ptr().addr()).wrapping_sub(MEMORY_VA), length: to_u64(bytes.len()) }
}

/// Addresses are 64 bits wide on every machine Dolmen runs on.
#[expect(clippy::as_conversions, reason = "u64 to usize keeps every bit on x86-64")]
pub(crate) const fn to_usize(value: u64) -> usize {
    const _: () = assert!(size_of::<usize>() == size_of::<u64>());
    value as usize
}

/// As [`to_usize`].
#[expect(clippy::as_conversions, reason = "usize to u64 keeps every bit on x86-64")]
const fn to_u64(value: usize) -> u64 {
    value as u64
}
