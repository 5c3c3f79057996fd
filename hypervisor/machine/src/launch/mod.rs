//! The machine in the launch image's hands: the secure loader block, device registers, and the region.
//!
//! Each access needs the proof that it is one: [`Device`] and [`Firmware`] come from `drtm`'s check of the
//! processor's registers alone, `Claims` from its check of the loader's hand-off, and there is one [`Block`].
#![expect(unsafe_code, reason = "proofs become accesses here")]
// UNSAFETY: physical RAM is reached by the mapping at MEMORY_VA; no Rust object but the launch image's own lies in
// RAM, and those are in the block, which no proof covers (the block is RAM of the check, disjoint from the rest).

mod region;

use core::cell::UnsafeCell;
use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use core::sync::atomic::{AtomicBool, Ordering};

use dolmen_drtm::handoff::{Extent, HANDOFF_OFFSET, Handoff, LAUNCH_VA};
use dolmen_drtm::map::{Device, Firmware};
use dolmen_tpm::tis::TIS_BASE;

pub use crate::entry_launch::{on_first_stack, on_stack};
use crate::mmio::Mmio;
use crate::tpm_mmio::{TIS_BYTES, TisRegisters};
pub use region::{Region, Root, ShieldedRegion, Staged, claim, extent_of};

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

/// Where physical memory is mapped; `None` beyond what is.
fn memory(at: u64, length: u64) -> Option<usize> {
    let is_mapped = at.checked_add(length)? <= MEMORY_GIB << 30;
    is_mapped.then(|| to_usize(MEMORY_VA.wrapping_add(at)))
}

/// The block's own table of tables, physically: its entry for itself says so.
fn window() -> u64 {
    const ITSELF: u64 = 511;
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    let at = (&raw const __window).expose_provenance().wrapping_add(to_usize(ITSELF.wrapping_mul(8)));
    // SAFETY: a word of our own page tables.
    unsafe { with_exposed_provenance::<u64>(at).read_volatile() & ADDRESS }
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
