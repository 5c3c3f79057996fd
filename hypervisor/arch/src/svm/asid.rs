//! Address-space identifiers: how one processor tells the translations of its guests apart.
//!
//! Identifiers are handed out once each; when all are used, a new generation begins with a flush of everything. The first
//! one begins so too: whoever had the processor before the launch may have run guests of its own.
//! So no translation that was cached under an identifier is ever met by whom it is given to next.

/// An identifier, valid in the generation it was handed out in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asid {
    number: u32,
    generation: u64,
}

impl Asid {
    /// The number for the control block.
    pub const fn number(self) -> u32 {
        self.number
    }
}

/// What one processor has handed out.
#[derive(Debug)]
pub struct Asids {
    generation: u64,
    /// The next to hand out; 0 is the host's.
    next: u32,
    /// Identifiers that the processor has, the host's included.
    count: u32,
}

impl Asids {
    /// Those of a processor with `count` identifiers, the host's included; `None` if that leaves none.
    pub const fn new(count: u32) -> Option<Self> {
        if count < 2 { None } else { Some(Self { generation: 0, next: count, count }) }
    }

    /// Whether what was cached under `asid` still belongs to whom it was given to.
    pub const fn is_valid(&self, asid: Asid) -> bool {
        asid.generation == self.generation
    }

    /// Hands out a fresh identifier, and whether everything must be flushed before its first use.
    #[must_use]
    pub const fn assign(&mut self) -> (Asid, bool) {
        let is_used_up = self.next >= self.count;
        if is_used_up {
            self.generation = self.generation.wrapping_add(1);
            self.next = 1;
        }
        let asid = Asid { number: self.next, generation: self.generation };
        self.next = self.next.saturating_add(1);
        (asid, is_used_up)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_processor_without_a_guests_identifier_is_refused() {
        assert!(Asids::new(0).is_none() && Asids::new(1).is_none());
    }

    #[test]
    fn the_hosts_identifier_is_never_handed_out() {
        let mut asids = Asids::new(3).unwrap();
        let numbers: Vec<u32> = (0..5).map(|_| asids.assign().0.number()).collect();
        assert_eq!(numbers, [1, 2, 1, 2, 1]);
    }

    #[test]
    fn a_new_generation_flushes_and_ends_the_old_one() {
        let mut asids = Asids::new(2).unwrap();
        let (first, flush) = asids.assign();
        assert!(flush && asids.is_valid(first), "the first generation as well");
        let (second, flush) = asids.assign();
        assert!(flush && asids.is_valid(second) && !asids.is_valid(first));
    }

    proptest! {
        /// A model of the processor's cache: who filled the translations under each number.
        #[test]
        fn nobody_meets_the_translations_of_another(
            count in 2u32..6,
            turns in prop::collection::vec(0usize..8, 1..200),
        ) {
            let mut asids = Asids::new(count).unwrap();
            let mut held: HashMap<usize, Asid> = HashMap::new();
            // Before the launch somebody else had them all.
            let mut cached: HashMap<u32, usize> = (1..count).map(|number| (number, usize::MAX)).collect();
            for who in turns {
                let asid = match held.get(&who) {
                    Some(asid) if asids.is_valid(*asid) => *asid,
                    _ => {
                        let (asid, flush) = asids.assign();
                        if flush {
                            cached.clear();
                        }
                        held.insert(who, asid);
                        asid
                    }
                };
                prop_assert!(asid.number() != 0 && asid.number() < count);
                prop_assert!(cached.get(&asid.number()).is_none_or(|owner| *owner == who));
                cached.insert(asid.number(), who);
            }
        }
    }
}
