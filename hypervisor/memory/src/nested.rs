//! Second-level page tables: one walk, generic over the vendor's entry format.

use core::marker::PhantomData;

use crate::address::{Gpa, Hfn, Hpa};

/// The memory that tables lie in.
pub trait TableMemory {
    /// Entry `index` (0 to 511) of the table in frame `table`.
    fn read(&self, table: Hfn, index: u16) -> u64;
    /// Sets an entry.
    fn write(&mut self, table: Hfn, index: u16, value: u64);
    /// A fresh frame of zeroes.
    fn allocate(&mut self) -> Option<Hfn>;
}

/// What a guest may do with a page; reading is always allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Writing.
    pub write: bool,
    /// Executing.
    pub execute: bool,
}

impl Rights {
    /// RAM of a guest.
    pub const ALL: Self = Self { write: true, execute: true };
    /// Data that the guest only reads.
    pub const READ: Self = Self { write: false, execute: false };
}

/// Size of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PageSize {
    /// 4 KiB.
    Size4K,
    /// 2 MiB.
    Size2M,
    /// 1 GiB; not every processor has it.
    Size1G,
}

impl PageSize {
    /// Bytes of a page.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Size4K => 1 << 12,
            Self::Size2M => 1 << 21,
            Self::Size1G => 1 << 30,
        }
    }

    const fn smaller(self) -> Option<Self> {
        match self {
            Self::Size4K => None,
            Self::Size2M => Some(Self::Size4K),
            Self::Size1G => Some(Self::Size2M),
        }
    }

    /// Where `gpa` is found in the table whose leaves have this size.
    const fn index(self, gpa: u64) -> u16 {
        let shift = match self {
            Self::Size4K => 12,
            Self::Size2M => 21,
            Self::Size1G => 30,
        };
        crate::address::table_index(gpa, shift)
    }
}

/// One decoded entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing there.
    Empty,
    /// The next table.
    Link(Hfn),
    /// A page.
    Leaf(Hfn, Rights),
}

/// A vendor's encoding of entries.
pub trait EntryFormat {
    /// An entry that leads to another table.
    fn link(table: Hfn) -> u64;
    /// An entry that maps a page.
    fn leaf(frame: Hfn, rights: Rights, size: PageSize) -> u64;
    /// What `raw` says in a table whose leaves have `size`; `None` stands for the top table, which has none.
    fn decode(raw: u64, size: Option<PageSize>) -> Entry;
}

const FRAME_BITS: u64 = 0x000f_ffff_ffff_f000;
const LARGE: u64 = 1 << 7;

const fn frame_of(raw: u64) -> Hfn {
    Hfn::containing(Hpa::new(raw & FRAME_BITS))
}

/// AMD's nested page tables (APM vol. 2, 15.25): ordinary long-mode entries, every access a user access.
#[derive(Clone, Copy, Debug)]
pub enum Npt {}

impl Npt {
    const PRESENT: u64 = 1 << 0;
    const WRITE: u64 = 1 << 1;
    const USER: u64 = 1 << 2;
    const NO_EXECUTE: u64 = 1 << 63;
}

impl EntryFormat for Npt {
    fn link(table: Hfn) -> u64 {
        table.base().get() | Self::PRESENT | Self::WRITE | Self::USER
    }

    fn leaf(frame: Hfn, rights: Rights, size: PageSize) -> u64 {
        let write = if rights.write { Self::WRITE } else { 0 };
        let execute = if rights.execute { 0 } else { Self::NO_EXECUTE };
        let large = if size == PageSize::Size4K { 0 } else { LARGE };
        frame.base().get() | Self::PRESENT | Self::USER | write | execute | large
    }

    fn decode(raw: u64, size: Option<PageSize>) -> Entry {
        if raw & Self::PRESENT == 0 {
            return Entry::Empty;
        }
        let is_leaf = size == Some(PageSize::Size4K) || size.is_some() && raw & LARGE != 0;
        if !is_leaf {
            return Entry::Link(frame_of(raw));
        }
        let rights = Rights { write: raw & Self::WRITE != 0, execute: raw & Self::NO_EXECUTE == 0 };
        Entry::Leaf(frame_of(raw), rights)
    }
}

/// Intel's extended page tables (SDM vol. 3C, 29.3.2).
#[derive(Clone, Copy, Debug)]
pub enum Ept {}

impl Ept {
    const READ: u64 = 1 << 0;
    const WRITE: u64 = 1 << 1;
    const EXECUTE: u64 = 1 << 2;
    const WRITE_BACK: u64 = 6 << 3;
}

impl EntryFormat for Ept {
    fn link(table: Hfn) -> u64 {
        table.base().get() | Self::READ | Self::WRITE | Self::EXECUTE
    }

    fn leaf(frame: Hfn, rights: Rights, size: PageSize) -> u64 {
        let write = if rights.write { Self::WRITE } else { 0 };
        let execute = if rights.execute { Self::EXECUTE } else { 0 };
        let large = if size == PageSize::Size4K { 0 } else { LARGE };
        frame.base().get() | Self::READ | Self::WRITE_BACK | write | execute | large
    }

    fn decode(raw: u64, size: Option<PageSize>) -> Entry {
        if raw & (Self::READ | Self::WRITE | Self::EXECUTE) == 0 {
            return Entry::Empty;
        }
        let is_leaf = size == Some(PageSize::Size4K) || size.is_some() && raw & LARGE != 0;
        if !is_leaf {
            return Entry::Link(frame_of(raw));
        }
        let rights = Rights { write: raw & Self::WRITE != 0, execute: raw & Self::EXECUTE != 0 };
        Entry::Leaf(frame_of(raw), rights)
    }
}

/// Why a range cannot be mapped or unmapped. Part of it may have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// An address or the length is not a multiple of 4 KiB.
    Unaligned,
    /// The range leaves the guest's or the host's address space.
    OutsideAddressSpace,
    /// Something is mapped there already.
    Occupied(Gpa),
    /// No frame is left for a table.
    OutOfFrames,
}

/// Translations may be cached that no longer hold: flush before the guest runs again.
#[must_use = "the guest may still use a translation that was taken away"]
#[derive(Debug, PartialEq, Eq)]
pub struct Flush(());

impl Flush {
    /// Drops the translations, by what the guest's back end offers for it.
    pub fn by(self, flush: impl FnOnce()) {
        flush();
    }
}

/// The tables of one guest.
#[derive(Debug)]
pub struct NestedTable<F> {
    root: Hfn,
    format: PhantomData<F>,
}

/// End of what four levels can address.
const ADDRESS_END: u64 = 1 << 48;

impl<F: EntryFormat> NestedTable<F> {
    /// Tables that map nothing.
    ///
    /// # Errors
    /// [`MapError::OutOfFrames`].
    pub fn new(memory: &mut impl TableMemory) -> Result<Self, MapError> {
        let root = memory.allocate().ok_or(MapError::OutOfFrames)?;
        Ok(Self { root, format: PhantomData })
    }

    /// The top table.
    pub const fn root(&self) -> Hfn {
        self.root
    }

    /// Maps `bytes` of guest-physical address space at `gpa` to RAM at `hpa`, with the largest pages that
    /// both alignments and `largest` allow. Nothing may be mapped there yet.
    ///
    /// # Errors
    /// [`MapError`]; the part below the place of the error stays mapped.
    pub fn map(
        &mut self,
        memory: &mut impl TableMemory,
        (gpa, hpa, bytes): (Gpa, Hpa, u64),
        rights: Rights,
        largest: PageSize,
    ) -> Result<(), MapError> {
        check(gpa.get(), bytes)?;
        check(hpa.get(), bytes)?;
        let mut done = 0u64;
        while done < bytes {
            let at = gpa.get().wrapping_add(done);
            let frame = hpa.get().wrapping_add(done);
            let size = fitting(at | frame, bytes.wrapping_sub(done), largest);
            let mapped = self.map_page(memory, at, Hfn::containing(Hpa::new(frame)), rights, size)?;
            done = done.wrapping_add(mapped.bytes());
        }
        Ok(())
    }

    /// Unmaps `bytes` at `gpa`, splitting pages that reach beyond; holes are no error.
    ///
    /// # Errors
    /// [`MapError::OutOfFrames`] when a split needs a table and there is no frame; the caller must then
    /// take everything from `gpa` on for unmapped and flush too.
    pub fn unmap(&mut self, memory: &mut impl TableMemory, gpa: Gpa, bytes: u64) -> Result<Flush, MapError> {
        check(gpa.get(), bytes)?;
        let end = gpa.get().wrapping_add(bytes);
        let mut at = gpa.get();
        while at < end {
            at = self.unmap_step(memory, at, end)?;
        }
        Ok(Flush(()))
    }

    /// Where `gpa` leads, and with which rights.
    pub fn translate(&self, memory: &impl TableMemory, gpa: Gpa) -> Option<(Hpa, Rights)> {
        let at = gpa.get();
        if at >= ADDRESS_END {
            return None;
        }
        let mut table = self.root;
        let mut size = None;
        loop {
            let (entry, level) = entry_at::<F>(memory, table, size, at);
            match (entry, size) {
                (Entry::Link(next), _) => {
                    table = next;
                    size = level;
                }
                (Entry::Leaf(frame, rights), Some(size)) => {
                    let offset = at & size.bytes().wrapping_sub(1);
                    return frame.base().checked_add(offset).map(|hpa| (hpa, rights));
                }
                (Entry::Leaf(..), None) | (Entry::Empty, _) => return None,
            }
        }
    }

    /// Maps one page of at most `size`; answers the size it has. Where a table of smaller pages was left behind by
    /// what was unmapped, the page is one of that table.
    fn map_page(
        &self,
        memory: &mut impl TableMemory,
        at: u64,
        frame: Hfn,
        rights: Rights,
        size: PageSize,
    ) -> Result<PageSize, MapError> {
        let mut table = self.root;
        let mut level = None;
        loop {
            let (entry, below) = entry_at::<F>(memory, table, level, at);
            table = match (entry, level) {
                (Entry::Link(next), _) => next,
                (Entry::Leaf(..), _) => return Err(MapError::Occupied(Gpa::new(at))),
                (Entry::Empty, Some(reached)) if reached <= size => {
                    memory.write(table, reached.index(at), F::leaf(frame, rights, reached));
                    return Ok(reached);
                }
                (Entry::Empty, _) => {
                    let next = memory.allocate().ok_or(MapError::OutOfFrames)?;
                    memory.write(table, index_at(level, at), F::link(next));
                    next
                }
            };
            level = below;
        }
    }

    /// Unmaps the page at `at` if it ends by `end`, else splits it; answers where to go on.
    fn unmap_step(&self, memory: &mut impl TableMemory, at: u64, end: u64) -> Result<u64, MapError> {
        let mut table = self.root;
        let mut level = None;
        loop {
            let (entry, below) = entry_at::<F>(memory, table, level, at);
            let span = level.map_or(1u64 << 39, PageSize::bytes);
            let start = at & !span.wrapping_sub(1);
            let next = start.wrapping_add(span);
            match (entry, level) {
                (Entry::Link(deeper), _) => {
                    table = deeper;
                    level = below;
                }
                (Entry::Leaf(frame, rights), Some(size)) if start < at || next > end => {
                    split::<F>(memory, (table, size.index(at)), (frame, rights), size)?;
                    return Ok(at);
                }
                (Entry::Leaf(..), _) => {
                    memory.write(table, index_at(level, at), 0);
                    return Ok(next);
                }
                (Entry::Empty, _) => return Ok(next),
            }
        }
    }
}

/// Replaces the page in `slot` by a table of the next smaller pages.
fn split<F: EntryFormat>(
    memory: &mut impl TableMemory,
    (table, index): (Hfn, u16),
    (frame, rights): (Hfn, Rights),
    size: PageSize,
) -> Result<(), MapError> {
    let smaller = size.smaller().ok_or(MapError::Unaligned)?;
    let next = memory.allocate().ok_or(MapError::OutOfFrames)?;
    for piece in 0..512u16 {
        let offset = u64::from(piece).wrapping_mul(smaller.bytes());
        let base = frame.base().checked_add(offset).ok_or(MapError::OutsideAddressSpace)?;
        memory.write(next, piece, F::leaf(Hfn::containing(base), rights, smaller));
    }
    memory.write(table, index, F::link(next));
    Ok(())
}

/// The entry for `at` in a table of `level` (`None`: the top), and the level below.
fn entry_at<F: EntryFormat>(
    memory: &impl TableMemory,
    table: Hfn,
    level: Option<PageSize>,
    at: u64,
) -> (Entry, Option<PageSize>) {
    let entry = F::decode(memory.read(table, index_at(level, at)), level);
    (entry, level.map_or(Some(PageSize::Size1G), PageSize::smaller))
}

const fn index_at(level: Option<PageSize>, at: u64) -> u16 {
    match level {
        None => crate::address::table_index(at, 39),
        Some(size) => size.index(at),
    }
}

fn check(base: u64, bytes: u64) -> Result<(), MapError> {
    if (base | bytes) & PageSize::Size4K.bytes().wrapping_sub(1) != 0 {
        return Err(MapError::Unaligned);
    }
    let end = base.checked_add(bytes).ok_or(MapError::OutsideAddressSpace)?;
    if end > ADDRESS_END { Err(MapError::OutsideAddressSpace) } else { Ok(()) }
}

fn fitting(alignment: u64, left: u64, largest: PageSize) -> PageSize {
    [PageSize::Size1G, PageSize::Size2M]
        .into_iter()
        .find(|size| {
            *size <= largest && alignment & size.bytes().wrapping_sub(1) == 0 && left >= size.bytes()
        })
        .unwrap_or(PageSize::Size4K)
}

#[cfg(test)]
#[path = "nested_tests.rs"]
mod tests;
