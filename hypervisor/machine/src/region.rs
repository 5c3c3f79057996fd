//! The region: the RAM that belongs to the core alone, always mapped at `CORE_VA`.
//!
//! Page tables of every kind live in frames of it. A frame is handed out once, zeroed, and read and written
//! by index only, so that no reference to it is ever made.
#![expect(unsafe_code, reason = "frames are read and written by address")]
// UNSAFETY: every access is checked to lie in the part of the region that no Rust object occupies.

use dolmen_memory::{Hfn, Hpa, PAGE_SIZE};

use crate::segments::to_u64;

/// The part of the region that frames are taken from.
#[derive(Debug)]
pub struct Region {
    /// Virtual minus physical address of the region, wrapping.
    shift: u64,
    start: u64,
    next: u64,
    end: u64,
}

/// Entries of a page table.
pub const ENTRIES: u16 = 512;

impl Region {
    /// The frames of `[free, end)`, which are mapped `shift` bytes on.
    ///
    /// # Safety
    /// That range is RAM that nothing else uses, mapped readable and writable at `shift` more for good.
    #[must_use]
    pub const unsafe fn new(free: Hpa, end: Hpa, shift: u64) -> Self {
        Self { shift, start: free.get(), next: free.get(), end: end.get() }
    }

    /// A fresh frame of zeroes, or `None` when the region is used up.
    pub fn allocate(&mut self) -> Option<Hfn> {
        self.allocate_run(1)
    }

    /// `count` neighbouring fresh frames of zeroes; the first is returned.
    pub fn allocate_run(&mut self, count: u64) -> Option<Hfn> {
        let bytes = count.checked_mul(PAGE_SIZE)?;
        let end = self.next.checked_add(bytes)?;
        if end > self.end {
            return None;
        }
        let first = Hfn::containing(Hpa::new(self.next));
        self.next = end;
        let at = core::ptr::with_exposed_provenance_mut::<u8>(to_usize(self.virtual_of(first.base())));
        // SAFETY: the range lies in `[free, end)`, which `new`'s caller gave to us alone, mapped writable.
        unsafe { at.write_bytes(0, to_usize(bytes)) };
        Some(first)
    }

    /// Bytes not yet handed out.
    #[must_use]
    pub const fn left(&self) -> u64 {
        self.end.wrapping_sub(self.next)
    }

    /// Entry `index` of the table in `frame`; 0 for a frame that was never handed out.
    #[must_use]
    pub fn read(&self, frame: Hfn, index: u16) -> u64 {
        let Some(at) = self.entry(frame, index) else { return 0 };
        // SAFETY: `entry` answers only for aligned words of frames that were handed out.
        unsafe { core::ptr::with_exposed_provenance::<u64>(to_usize(at)).read_volatile() }
    }

    /// Writes entry `index` of the table in `frame`.
    ///
    /// # Panics
    /// When the frame was never handed out: a defect of ours, since frames come from [`Self::allocate`].
    pub fn write(&mut self, frame: Hfn, index: u16, value: u64) {
        let entry = self.entry(frame, index);
        assert!(entry.is_some(), "page tables are frames of the region");
        if let Some(at) = entry {
            // SAFETY: as in `read`; the frame holds a table, never a Rust object.
            unsafe { core::ptr::with_exposed_provenance_mut::<u64>(to_usize(at)).write_volatile(value) };
        }
    }

    /// The virtual address of a byte of the region.
    #[must_use]
    pub const fn virtual_of(&self, at: Hpa) -> u64 {
        at.get().wrapping_add(self.shift)
    }

    fn entry(&self, frame: Hfn, index: u16) -> Option<u64> {
        let base = frame.base().get();
        let is_ours = base >= self.start && base < self.next && index < ENTRIES;
        is_ours.then(|| self.virtual_of(frame.base()).wrapping_add(u64::from(index).wrapping_mul(8)))
    }
}

/// Addresses are 64 bits wide on every machine Dolmen runs on.
#[expect(clippy::as_conversions, reason = "u64 to usize keeps every bit on x86-64")]
pub(crate) const fn to_usize(value: u64) -> usize {
    const _: () = assert!(size_of::<usize>() == size_of::<u64>());
    value as usize
}

const _: () = assert!(to_u64(usize::MAX) == u64::MAX);
