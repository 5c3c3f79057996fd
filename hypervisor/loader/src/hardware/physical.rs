//! Physical memory, which both programs have mapped one to one.
#![expect(unsafe_code, reason = "physical memory is reached by address")]
// UNSAFETY: addresses come from the memory map or from the boot loader; reads of anything else give bytes
// without meaning, and writes go only to places that the planner took out of free RAM.

use crate::multiboot::Physical;
use core::ptr;
use dolmen_drtm::handoff::Extent;

/// Physical memory by address.
#[derive(Clone, Copy, Debug)]
pub struct Memory(());

impl Memory {
    /// Opens memory.
    ///
    /// # Safety
    /// Memory is mapped one to one as far as it is used, and nobody else writes to what is placed.
    #[must_use]
    pub const unsafe fn new() -> Self {
        Self(())
    }

    /// Copies the whole of `from` to `to`. They may overlap.
    pub fn copy(&mut self, from: Extent, to: u64) {
        let source = ptr::with_exposed_provenance::<u8>(index(from.base));
        let target = ptr::with_exposed_provenance_mut::<u8>(index(to));
        // SAFETY: by `new`'s contract both are mapped; the target is a place that the planner took.
        unsafe { ptr::copy(source, target, index(from.length)) };
    }

    /// Writes `bytes` at `to`.
    pub fn write(&mut self, to: u64, bytes: &[u8]) {
        let target = ptr::with_exposed_provenance_mut::<u8>(index(to));
        // SAFETY: as in `copy`; `bytes` is not inside a place that the planner took, as those are no
        // Rust objects.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) };
    }

    /// Fills `place` with zeroes.
    pub fn clear(&mut self, place: Extent) {
        let target = ptr::with_exposed_provenance_mut::<u8>(index(place.base));
        // SAFETY: as in `copy`.
        unsafe { ptr::write_bytes(target, 0, index(place.length)) };
    }
}

impl Physical for Memory {
    fn read(&self, address: u64, bytes: &mut [u8]) {
        for (byte, at) in bytes.iter_mut().zip(address..) {
            let source = ptr::with_exposed_provenance::<u8>(index(at));
            // SAFETY: by `new`'s contract the byte is mapped. Volatile: others than Rust wrote it, and
            // address 0 is a good address of physical memory.
            *byte = unsafe { source.read_volatile() };
        }
    }
}

#[expect(clippy::as_conversions, reason = "addresses are 64 bits wide on x86-64")]
const fn index(address: u64) -> usize {
    address as usize
}
