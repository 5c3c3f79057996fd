//! Device registers in memory.
#![expect(unsafe_code, reason = "device registers are read and written by address")]
// UNSAFETY: a window is made once, by somebody who promises that it shows device registers; every access is
// checked to lie inside it.

/// A mapped run of device registers.
#[derive(Debug)]
pub struct Mmio {
    base: u64,
    bytes: u64,
}

/// A register's width.
trait Word: Copy {
    const BYTES: u64;
}
impl Word for u8 {
    const BYTES: u64 = 1;
}
impl Word for u32 {
    const BYTES: u64 = 4;
}
impl Word for u64 {
    const BYTES: u64 = 8;
}

impl Mmio {
    /// The registers at virtual addresses `[base, base + bytes)`.
    ///
    /// # Safety
    /// The range is mapped uncached for good and shows device registers, never RAM that Rust uses.
    #[must_use]
    pub const unsafe fn new(base: u64, bytes: u64) -> Self {
        Self { base, bytes }
    }

    /// Reads 8 bits; ones outside the window, as an absent device reads.
    #[must_use]
    pub fn read8(&self, offset: u64) -> u8 {
        self.read(offset).unwrap_or(u8::MAX)
    }

    /// Reads 32 bits; ones outside the window.
    #[must_use]
    pub fn read32(&self, offset: u64) -> u32 {
        self.read(offset).unwrap_or(u32::MAX)
    }

    /// Reads 64 bits; ones outside the window.
    #[must_use]
    pub fn read64(&self, offset: u64) -> u64 {
        self.read(offset).unwrap_or(u64::MAX)
    }

    /// Writes 8 bits; nothing outside the window.
    pub fn write8(&mut self, offset: u64, value: u8) {
        self.write(offset, value);
    }

    /// Writes 32 bits; nothing outside the window.
    pub fn write32(&mut self, offset: u64, value: u32) {
        self.write(offset, value);
    }

    /// Writes 64 bits; nothing outside the window.
    pub fn write64(&mut self, offset: u64, value: u64) {
        self.write(offset, value);
    }

    fn read<W: Word>(&self, offset: u64) -> Option<W> {
        let at = core::ptr::with_exposed_provenance::<W>(self.address::<W>(offset)?);
        // SAFETY: `address` answers only for aligned words inside the window that `new`'s caller described.
        Some(unsafe { at.read_volatile() })
    }

    fn write<W: Word>(&mut self, offset: u64, value: W) {
        if let Some(address) = self.address::<W>(offset) {
            let at = core::ptr::with_exposed_provenance_mut::<W>(address);
            // SAFETY: as in `read`.
            unsafe { at.write_volatile(value) };
        }
    }

    fn address<W: Word>(&self, offset: u64) -> Option<usize> {
        let is_inside = offset.checked_add(W::BYTES)? <= self.bytes;
        let is_aligned = offset & W::BYTES.wrapping_sub(1) == 0;
        if !(is_inside && is_aligned) {
            return None;
        }
        usize::try_from(self.base.wrapping_add(offset)).ok()
    }
}
