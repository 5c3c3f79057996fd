//! Who owns each frame of a stretch of RAM: exactly one owner at any time.
//!
//! Ownership is kept as sorted runs, so that the ledger's size follows the number of owners and not of
//! frames. Runs cover the whole stretch without gap or overlap; neighbours of one owner are one run.

use crate::address::{Hfn, Hpa};

/// Who a frame belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nobody.
    Free,
    /// The hypervisor itself.
    Core,
    /// RAM of the guest with this number.
    Guest(u8),
    /// Tables that the processor walks for the guest with this number.
    NestedTable(u8),
    /// Not RAM, or not ours to give.
    Reserved,
}

/// Why the ledger refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LedgerError {
    /// The frames are not all in the ledger's stretch.
    OutsideLedger,
    /// Some frame does not belong to the owner it should come from.
    WrongOwner,
    /// No run of free frames is long enough.
    OutOfFrames,
    /// More changes of owner than the ledger has room for.
    LedgerFull,
    /// An alignment that is not a power of two.
    BadAlignment,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: u64,
    owner: Owner,
}

/// A ledger with room for `N` runs.
#[derive(Clone, Debug)]
pub struct Ledger<const N: usize> {
    runs: [Run; N],
    used: usize,
    end: u64,
}

impl<const N: usize> Ledger<N> {
    /// A ledger of `count` frames from `first`, all free.
    ///
    /// # Errors
    /// [`LedgerError::OutsideLedger`] if the frame numbers overflow, [`LedgerError::LedgerFull`] for `N` = 0.
    pub fn new(first: Hfn, count: u64) -> Result<Self, LedgerError> {
        let start = Run { first: first.get(), owner: Owner::Free };
        let end = first.get().checked_add(count).ok_or(LedgerError::OutsideLedger)?;
        if N == 0 {
            return Err(LedgerError::LedgerFull);
        }
        Ok(Self { runs: [start; N], used: 1, end })
    }

    /// The owner of `frame`; `None` outside the ledger.
    pub fn owner(&self, frame: Hfn) -> Option<Owner> {
        if frame.get() >= self.end {
            return None;
        }
        self.run_of(frame.get()).and_then(|index| self.runs.get(index)).map(|run| run.owner)
    }

    /// Takes `count` neighbouring free frames, the first a multiple of `align` frames, for `owner`.
    ///
    /// # Errors
    /// [`LedgerError::OutOfFrames`] when no free run fits; [`LedgerError::LedgerFull`];
    /// [`LedgerError::BadAlignment`].
    pub fn allocate(&mut self, count: u64, align: u64, owner: Owner) -> Result<Hfn, LedgerError> {
        if !align.is_power_of_two() {
            return Err(LedgerError::BadAlignment);
        }
        let fit = (0..self.used).find_map(|index| {
            let run = self.runs.get(index)?;
            let first = run.first.checked_next_multiple_of(align)?;
            let end = first.checked_add(count)?;
            (run.owner == Owner::Free && count > 0 && end <= self.end_of(index)).then_some(first)
        });
        let first = frame(fit.ok_or(LedgerError::OutOfFrames)?)?;
        self.transfer(first, count, Owner::Free, owner)?;
        Ok(first)
    }

    /// Moves `count` frames from one owner to another; all of them must belong to `from`.
    ///
    /// # Errors
    /// [`LedgerError`]; nothing has then changed.
    pub fn transfer(&mut self, first: Hfn, count: u64, from: Owner, to: Owner) -> Result<(), LedgerError> {
        let start = first.get();
        let end = start.checked_add(count).ok_or(LedgerError::OutsideLedger)?;
        let index = self.run_of(start).ok_or(LedgerError::OutsideLedger)?;
        if end > self.end {
            return Err(LedgerError::OutsideLedger);
        }
        let run = *self.runs.get(index).ok_or(LedgerError::OutsideLedger)?;
        // Equal neighbours are merged, so one owner's frames in a row are one run.
        if run.owner != from || end > self.end_of(index) {
            return Err(LedgerError::WrongOwner);
        }
        if count == 0 || from == to {
            return Ok(());
        }
        let before = run.first < start;
        let after = end < self.end_of(index);
        let needed = usize::from(before).saturating_add(usize::from(after));
        if self.used.saturating_add(needed) > N {
            return Err(LedgerError::LedgerFull);
        }
        if after {
            self.insert(index.saturating_add(1), Run { first: end, owner: from });
        }
        let changed = Run { first: start, owner: to };
        if before {
            self.insert(index.saturating_add(1), changed);
        } else if let Some(slot) = self.runs.get_mut(index) {
            *slot = changed;
        }
        self.merge();
        Ok(())
    }

    /// The runs, in order: first frame, number of frames, owner.
    pub fn runs(&self) -> impl Iterator<Item = (Hfn, u64, Owner)> + '_ {
        self.runs.iter().take(self.used).enumerate().map(|(index, run)| {
            (
                Hfn::containing(Hpa::new(run.first << 12)),
                self.end_of(index).saturating_sub(run.first),
                run.owner,
            )
        })
    }

    fn run_of(&self, number: u64) -> Option<usize> {
        self.runs.iter().take(self.used).rposition(|run| run.first <= number)
    }

    fn end_of(&self, index: usize) -> u64 {
        let next = index.saturating_add(1);
        if next < self.used { self.runs.get(next).map_or(self.end, |run| run.first) } else { self.end }
    }

    fn insert(&mut self, at: usize, run: Run) {
        let mut carried = run;
        for slot in self.runs.iter_mut().take(self.used.saturating_add(1)).skip(at) {
            core::mem::swap(slot, &mut carried);
        }
        self.used = self.used.saturating_add(1);
    }

    fn merge(&mut self) {
        let mut kept = 0usize;
        let mut last: Option<Owner> = None;
        for index in 0..self.used {
            let Some(run) = self.runs.get(index).copied() else { break };
            if last == Some(run.owner) {
                continue;
            }
            last = Some(run.owner);
            if let Some(slot) = self.runs.get_mut(kept) {
                *slot = run;
            }
            kept = kept.saturating_add(1);
        }
        self.used = kept;
    }
}

/// The frame of a number; numbers past the physical address space do not exist.
fn frame(number: u64) -> Result<Hfn, LedgerError> {
    let base = number.checked_mul(crate::PAGE_SIZE).ok_or(LedgerError::OutsideLedger)?;
    Ok(Hfn::containing(Hpa::new(base)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hfn(number: u64) -> Hfn {
        Hfn::containing(Hpa::new(number * 4096))
    }

    const FIRST: u64 = 100;
    const COUNT: u64 = 64;

    fn owner() -> impl Strategy<Value = Owner> {
        prop_oneof![
            Just(Owner::Free),
            Just(Owner::Core),
            Just(Owner::Guest(1)),
            Just(Owner::Guest(2)),
            Just(Owner::NestedTable(1)),
        ]
    }

    #[derive(Clone, Debug)]
    enum Operation {
        Allocate(u64, u32, Owner),
        Transfer(u64, u64, Owner, Owner),
    }

    fn operation() -> impl Strategy<Value = Operation> {
        prop_oneof![
            (0..20u64, 0..4u32, owner()).prop_map(|(count, align, to)| Operation::Allocate(count, align, to)),
            (FIRST - 2..FIRST + COUNT + 2, 0..20u64, owner(), owner())
                .prop_map(|(first, count, from, to)| Operation::Transfer(first, count, from, to)),
        ]
    }

    /// The naive model: one owner per frame.
    fn model_transfer(model: &mut [Owner], first: u64, count: u64, from: Owner, to: Owner) -> bool {
        if first < FIRST || first + count > FIRST + COUNT {
            return false;
        }
        let range = (first - FIRST) as usize..(first - FIRST + count) as usize;
        if model[range.clone()].iter().any(|owner| *owner != from) {
            return false;
        }
        if count > 0 {
            model[range].fill(to);
        }
        true
    }

    proptest! {
        #[test]
        #[cfg_attr(miri, ignore = "takes too long in the interpreter")]
        fn the_ledger_agrees_with_one_owner_per_frame(operations in prop::collection::vec(operation(), 0..60)) {
            let mut ledger = Ledger::<80>::new(hfn(FIRST), COUNT).unwrap();
            let mut model = vec![Owner::Free; COUNT as usize];
            for operation in operations {
                match operation {
                    Operation::Allocate(count, align, to) => {
                        if let Ok(first) = ledger.allocate(count, 1 << align, to) {
                            prop_assert_eq!(first.get() % (1 << align), 0);
                            prop_assert!(model_transfer(&mut model, first.get(), count, Owner::Free, to));
                        }
                    }
                    Operation::Transfer(first, count, from, to) if count > 0 => {
                        let done = ledger.transfer(hfn(first), count, from, to).is_ok();
                        prop_assert_eq!(done, model_transfer(&mut model, first, count, from, to));
                    }
                    Operation::Transfer(..) => {}
                }
                let seen: Vec<_> = (0..COUNT).map(|n| ledger.owner(hfn(FIRST + n)).unwrap()).collect();
                prop_assert_eq!(&seen, &model);
                let covered: u64 = ledger.runs().map(|(_, count, _)| count).sum();
                prop_assert_eq!(covered, COUNT);
            }
        }
    }

    #[test]
    fn frames_outside_have_no_owner() {
        let ledger = Ledger::<4>::new(hfn(FIRST), COUNT).unwrap();
        assert_eq!(ledger.owner(hfn(FIRST - 1)), None);
        assert_eq!(ledger.owner(hfn(FIRST + COUNT)), None);
    }

    #[test]
    fn a_frame_of_one_guest_cannot_be_given_to_another_behind_its_back() {
        let mut ledger = Ledger::<8>::new(hfn(FIRST), COUNT).unwrap();
        let first = ledger.allocate(4, 1, Owner::Guest(1)).unwrap();
        assert_eq!(ledger.transfer(first, 4, Owner::Free, Owner::Guest(2)), Err(LedgerError::WrongOwner));
        assert_eq!(ledger.transfer(first, 5, Owner::Guest(1), Owner::Free), Err(LedgerError::WrongOwner));
        assert_eq!(ledger.owner(first), Some(Owner::Guest(1)));
    }

    #[test]
    fn a_full_ledger_refuses_and_stays_as_it_was() {
        let mut ledger = Ledger::<2>::new(hfn(FIRST), COUNT).unwrap();
        let middle = hfn(FIRST + 8);
        assert_eq!(ledger.transfer(middle, 1, Owner::Free, Owner::Core), Err(LedgerError::LedgerFull));
        assert_eq!(ledger.owner(middle), Some(Owner::Free));
        assert_eq!(ledger.transfer(hfn(FIRST), 1, Owner::Free, Owner::Core), Ok(()));
    }

    #[test]
    fn alignment_is_obeyed_or_refused() {
        let mut ledger = Ledger::<8>::new(hfn(FIRST), COUNT).unwrap();
        assert_eq!(ledger.allocate(1, 32, Owner::Core).unwrap().get(), 128);
        assert_eq!(ledger.allocate(1, 3, Owner::Core), Err(LedgerError::BadAlignment));
        assert_eq!(ledger.allocate(COUNT + 1, 1, Owner::Core), Err(LedgerError::OutOfFrames));
    }
}
