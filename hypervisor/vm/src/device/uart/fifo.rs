//! The sixteen bytes of a 16550's receiver or transmitter.

/// Bytes that fit.
pub(super) const FIFO_BYTES: usize = 16;

/// A queue of bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fifo {
    bytes: [u8; FIFO_BYTES],
    first: usize,
    held: usize,
}

impl Fifo {
    /// With nothing in it.
    pub(super) const EMPTY: Self = Self { bytes: [0; FIFO_BYTES], first: 0, held: 0 };

    /// How many bytes are in it.
    pub(super) const fn held(&self) -> usize {
        self.held
    }

    /// Whether none is.
    pub(super) const fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Appends a byte, if no more than `capacity` are in it then.
    pub(super) fn put(&mut self, byte: u8, capacity: usize) -> bool {
        if self.held >= capacity.min(FIFO_BYTES) {
            return false;
        }
        let at = self.first.wrapping_add(self.held) & (FIFO_BYTES - 1);
        let Some(slot) = self.bytes.get_mut(at) else { return false };
        *slot = byte;
        self.held = self.held.saturating_add(1);
        true
    }

    /// The oldest byte.
    pub(super) fn first(&self) -> Option<u8> {
        self.bytes.get(self.first).copied().filter(|_| self.held > 0)
    }

    /// Takes the oldest byte out.
    pub(super) fn take(&mut self) -> Option<u8> {
        let byte = self.first()?;
        self.held = self.held.saturating_sub(1);
        self.first = self.first.wrapping_add(1) & (FIFO_BYTES - 1);
        Some(byte)
    }
}
