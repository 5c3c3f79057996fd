//! One guest's end of a serial port: a ring for each way.

use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use dolmen_abi::NAME_BYTES;

/// Bytes of a guest that wait for the port.
pub const OUTPUT_BYTES: usize = 2048;
/// Keys that wait for the guest.
pub const INPUT_BYTES: usize = 512;

/// A ring of `N` bytes, a power of two, for one writer and one reader at a time. A second writer or reader at the
/// same time would lose bytes, and nothing else.
#[derive(Debug)]
pub struct Ring<const N: usize> {
    bytes: [AtomicU8; N],
    /// Bytes ever written and ever read, wrapping.
    written: AtomicUsize,
    read: AtomicUsize,
}

impl<const N: usize> Default for Ring<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Ring<N> {
    /// An empty ring.
    pub const fn new() -> Self {
        assert!(N.is_power_of_two(), "places are found by masking");
        Self {
            bytes: [const { AtomicU8::new(0) }; N],
            written: AtomicUsize::new(0),
            read: AtomicUsize::new(0),
        }
    }

    /// Bytes that are in it.
    pub fn held(&self) -> usize {
        self.written.load(Ordering::Acquire).wrapping_sub(self.read.load(Ordering::Acquire)).min(N)
    }

    /// Bytes that fit.
    pub fn room(&self) -> usize {
        N.saturating_sub(self.held())
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.held() == 0
    }

    /// Puts a byte in; false, and no change, if there is no room.
    #[must_use]
    pub fn push(&self, byte: u8) -> bool {
        if self.room() == 0 {
            return false;
        }
        let at = self.written.load(Ordering::Relaxed);
        if let Some(slot) = self.bytes.get(at & N.wrapping_sub(1)) {
            slot.store(byte, Ordering::Relaxed);
        }
        self.written.store(at.wrapping_add(1), Ordering::Release);
        true
    }

    /// Takes the oldest byte out.
    pub fn pop(&self) -> Option<u8> {
        if self.is_empty() {
            return None;
        }
        let at = self.read.load(Ordering::Relaxed);
        let byte = self.bytes.get(at & N.wrapping_sub(1))?.load(Ordering::Relaxed);
        self.read.store(at.wrapping_add(1), Ordering::Release);
        Some(byte)
    }

    /// Whether `wanted` is in it.
    pub fn contains(&self, wanted: u8) -> bool {
        let first = self.read.load(Ordering::Acquire);
        (0..self.held()).any(|offset| {
            let slot = self.bytes.get(first.wrapping_add(offset) & N.wrapping_sub(1));
            slot.is_some_and(|slot| slot.load(Ordering::Relaxed) == wanted)
        })
    }

    /// Empties it, and forgets what was in it. For its reader.
    pub fn wipe(&self) {
        self.read.store(self.written.load(Ordering::Acquire), Ordering::Release);
        self.bytes.iter().for_each(|slot| slot.store(0, Ordering::Relaxed));
    }
}

/// One guest's end of a port.
#[derive(Debug)]
pub struct Line {
    name: [u8; NAME_BYTES],
    is_shared: bool,
    /// From the guest.
    pub output: Ring<OUTPUT_BYTES>,
    /// To the guest.
    pub input: Ring<INPUT_BYTES>,
}

impl Line {
    /// The line of a guest, by its padded name; `is_shared`: it speaks through the multiplexer.
    pub const fn new(name: [u8; NAME_BYTES], is_shared: bool) -> Self {
        Self { name, is_shared, output: Ring::new(), input: Ring::new() }
    }

    /// The guest's name.
    pub fn name(&self) -> &str {
        core::str::from_utf8(&self.name).unwrap_or_default().trim_end_matches('\0')
    }

    /// Whether it speaks through the multiplexer.
    pub const fn is_shared(&self) -> bool {
        self.is_shared
    }
}
