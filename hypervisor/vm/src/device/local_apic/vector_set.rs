//! Sets of the 256 interrupt vectors, as the local APIC's IRR, ISR and TMR hold them.

/// One bit for each vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VectorSet {
    words: [u32; 8],
    /// Bit n: word n is not zero. Most sets are empty, and asked before each entry to the guest.
    used: u32,
}

impl VectorSet {
    /// No vector.
    pub(crate) const EMPTY: Self = Self { words: [0; 8], used: 0 };

    /// Adds or takes out `vector`; whether that changed the set.
    pub(crate) fn set(&mut self, vector: u8, wanted: bool) -> bool {
        let index = vector >> 5;
        let was = self.word(index);
        let word = if wanted { was | Self::bit(vector) } else { was & !Self::bit(vector) };
        self.set_word(index, word);
        word != was
    }

    /// Whether `vector` is in.
    pub(crate) fn contains(&self, vector: u8) -> bool {
        self.word(vector >> 5) & Self::bit(vector) != 0
    }

    /// Whether no vector is in.
    #[inline]
    pub(crate) const fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// The highest vector, which is the most urgent.
    #[inline]
    pub(crate) fn highest(&self) -> Option<u8> {
        let index = u8::try_from(self.used.checked_ilog2()?).ok()?;
        let bit = u8::try_from(self.word(index).checked_ilog2()?).ok()?;
        Some((index << 5) | bit)
    }

    /// Word `index` (0 to 7) as the APIC's registers show it.
    pub(crate) fn word(&self, index: u8) -> u32 {
        self.words.get(usize::from(index)).copied().unwrap_or_default()
    }

    fn set_word(&mut self, index: u8, value: u32) {
        let Some(word) = self.words.get_mut(usize::from(index)) else { return };
        *word = value;
        let bit = 1 << (index & 7);
        self.used = if value == 0 { self.used & !bit } else { self.used | bit };
    }

    /// The 64 vectors from `64 * index` (0 to 3) on.
    pub(crate) fn quarter(&self, index: u8) -> u64 {
        let word = index << 1;
        u64::from(self.word(word)) | u64::from(self.word(word | 1)) << 32
    }

    /// Adds those of the 64 vectors from `64 * index` on whose bits are in `wanted`.
    pub(crate) fn add_quarter(&mut self, index: u8, wanted: u64) {
        self.write_quarter(index, self.quarter(index) | wanted);
    }

    /// Takes out those of the 64 vectors from `64 * index` on whose bits are in `unwanted`.
    pub(crate) fn remove_quarter(&mut self, index: u8, unwanted: u64) {
        self.write_quarter(index, self.quarter(index) & !unwanted);
    }

    fn write_quarter(&mut self, index: u8, value: u64) {
        let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
        let first = index << 1;
        self.set_word(first, u32::from_le_bytes([a, b, c, d]));
        self.set_word(first | 1, u32::from_le_bytes([e, f, g, h]));
    }

    const fn bit(vector: u8) -> u32 {
        1 << (vector & 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_behaves_like_a_set_of_vectors(steps in prop::collection::vec((any::<u8>(), any::<bool>()), 0..64)) {
            let (mut set, mut model) = (VectorSet::EMPTY, BTreeSet::new());
            for (vector, wanted) in steps {
                let changed = if wanted { model.insert(vector) } else { model.remove(&vector) };
                prop_assert_eq!(set.set(vector, wanted), changed);
                prop_assert_eq!(set.contains(vector), wanted);
                prop_assert_eq!(set.highest(), model.last().copied());
            }
        }
    }
}
