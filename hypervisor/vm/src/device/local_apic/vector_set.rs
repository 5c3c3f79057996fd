//! Sets of the 256 interrupt vectors, as the local APIC's IRR, ISR and TMR hold them.

/// One bit for each vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VectorSet([u32; 8]);

impl VectorSet {
    /// No vector.
    pub(crate) const EMPTY: Self = Self([0; 8]);

    /// Adds or takes out `vector`; whether that changed the set.
    pub(crate) fn set(&mut self, vector: u8, wanted: bool) -> bool {
        let Some(word) = self.0.get_mut(usize::from(vector >> 5)) else { return false };
        let was = *word;
        if wanted {
            *word |= Self::bit(vector);
        } else {
            *word &= !Self::bit(vector);
        }
        *word != was
    }

    /// Whether `vector` is in.
    pub(crate) fn contains(&self, vector: u8) -> bool {
        self.word(vector >> 5) & Self::bit(vector) != 0
    }

    /// The highest vector, which is the most urgent.
    pub(crate) fn highest(&self) -> Option<u8> {
        let index = self.0.iter().rposition(|word| *word != 0)?;
        let word = u8::try_from(index).ok()?;
        let bit = u8::try_from(self.word(word).checked_ilog2()?).ok()?;
        Some((word << 5) | bit)
    }

    /// Word `index` (0 to 7) as the APIC's registers show it.
    pub(crate) fn word(&self, index: u8) -> u32 {
        self.0.get(usize::from(index)).copied().unwrap_or_default()
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
        let halves = [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])];
        for (word, half) in self.0.iter_mut().skip(usize::from(index) << 1).zip(halves) {
            *word = half;
        }
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
