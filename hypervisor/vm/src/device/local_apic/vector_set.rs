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
