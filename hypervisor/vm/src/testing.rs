//! What tests share: guest RAM, and every order in which processors may take their steps.

use dolmen_memory::{Gpa, GuestMemory, OutsideRam};

/// RAM from address 0.
pub(crate) struct Ram(Vec<u8>);

impl Ram {
    pub(crate) fn new(bytes: usize) -> Self {
        Self(vec![0; bytes])
    }

    pub(crate) fn bytes(&self, at: usize, length: usize) -> &[u8] {
        &self.0[at..at + length]
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at, 4).try_into().unwrap())
    }

    pub(crate) fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at, 8).try_into().unwrap())
    }

    fn range(&self, at: Gpa, length: usize) -> Result<core::ops::Range<usize>, OutsideRam> {
        let start = usize::try_from(at.get()).map_err(|_| OutsideRam)?;
        let end = start.checked_add(length).filter(|end| *end <= self.0.len()).ok_or(OutsideRam)?;
        Ok(start..end)
    }
}

impl GuestMemory for Ram {
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), OutsideRam> {
        into.copy_from_slice(&self.0[self.range(at, into.len())?]);
        Ok(())
    }

    fn write(&mut self, at: Gpa, from: &[u8]) -> Result<(), OutsideRam> {
        let range = self.range(at, from.len())?;
        self.0[range].copy_from_slice(from);
        Ok(())
    }
}

/// All merges of these sequences that keep the order within each.
pub(crate) fn merges<S: Copy>(sequences: &[&[S]]) -> Vec<Vec<S>> {
    if sequences.iter().all(|sequence| sequence.is_empty()) {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for (index, sequence) in sequences.iter().enumerate() {
        let [first, rest @ ..] = sequence else { continue };
        let mut others = sequences.to_vec();
        others[index] = rest;
        all.extend(merges(&others).into_iter().map(|mut order| {
            order.insert(0, *first);
            order
        }));
    }
    all
}
