//! Whether nested tables still say what they were made to say: for the self-check of test images.

use crate::address::Hfn;
use crate::nested::{Entry, EntryFormat, NestedTable, PageSize, Rights, TableMemory};
use crate::ram::RamMap;

/// Tables of a walk, from the top: what leaves have in each, and how many bits of an address its entries cover.
const LEVELS: [(Option<PageSize>, u32); 4] =
    [(None, 39), (Some(PageSize::Size1G), 30), (Some(PageSize::Size2M), 21), (Some(PageSize::Size4K), 12)];

/// Entries of a table.
const ENTRIES: u16 = 512;

impl<F: EntryFormat> NestedTable<F> {
    /// Whether these tables map all of `ram` with all rights, and nothing else.
    pub fn maps_exactly(&self, memory: &impl TableMemory, ram: &RamMap) -> bool {
        let wanted = ram.extents().iter().fold(0u64, |sum, extent| sum.saturating_add(extent.bytes));
        mapped::<F>(memory, self.root(), 0, &LEVELS, ram) == Some(wanted)
    }
}

/// The bytes that a table maps from `start` on; `None` if any of them is not where `ram` says.
fn mapped<F: EntryFormat>(
    memory: &impl TableMemory,
    table: Hfn,
    start: u64,
    levels: &[(Option<PageSize>, u32)],
    ram: &RamMap,
) -> Option<u64> {
    let (&(size, shift), below) = levels.split_first()?;
    let mut sum = 0u64;
    for index in 0..ENTRIES {
        let gpa = start.checked_add(u64::from(index).checked_shl(shift)?)?;
        let bytes = match F::decode(memory.read(table, index), size) {
            Entry::Empty => 0,
            Entry::Link(next) => mapped::<F>(memory, next, gpa, below, ram)?,
            Entry::Leaf(frame, Rights::ALL) => {
                let bytes = size?.bytes();
                let is_there = ram.extents().iter().any(|extent| {
                    let offset = gpa.checked_sub(extent.gpa.get());
                    let end = offset.and_then(|offset| offset.checked_add(bytes));
                    end.is_some_and(|end| end <= extent.bytes)
                        && offset.and_then(|offset| extent.hpa.checked_add(offset)) == Some(frame.base())
                });
                if !is_there {
                    return None;
                }
                bytes
            }
            Entry::Leaf(..) => return None,
        };
        sum = sum.checked_add(bytes)?;
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{Gpa, Hpa};
    use crate::nested::Npt;
    use crate::ram::RamExtent;

    /// Tables in a vector; frame `n` is the n-th table.
    struct Tables(Vec<[u64; 512]>);

    impl TableMemory for Tables {
        fn read(&self, table: Hfn, index: u16) -> u64 {
            self.0[usize::try_from(table.get()).unwrap()][usize::from(index)]
        }
        fn write(&mut self, table: Hfn, index: u16, value: u64) {
            self.0[usize::try_from(table.get()).unwrap()][usize::from(index)] = value;
        }
        fn allocate(&mut self) -> Option<Hfn> {
            self.0.push([0; 512]);
            Some(Hfn::containing(Hpa::new((self.0.len() as u64 - 1) << 12)))
        }
    }

    const LARGE: u64 = 1 << 21;

    #[test]
    fn tables_that_map_the_ram_and_nothing_else_are_told_from_all_others() {
        let extent = RamExtent { gpa: Gpa::new(0), hpa: Hpa::new(8 * LARGE), bytes: 4 * LARGE };
        let ram = RamMap::new(&[extent]).unwrap();
        let mut memory = Tables(vec![[0; 512]]);
        let mut table = NestedTable::<Npt>::new(&mut memory).unwrap();
        let place = (extent.gpa, extent.hpa, extent.bytes);
        table.map(&mut memory, place, Rights::ALL, PageSize::Size2M).unwrap();
        assert!(table.maps_exactly(&memory, &ram));
        let directory = memory.0.len() - 1;
        let good = memory.0[directory];
        memory.0[directory][1] |= 1 << 5 | 1 << 6;
        assert!(table.maps_exactly(&memory, &ram), "accessed and dirty are the processor's");
        for (index, entry) in [
            (1, good[2]),              // another page of the guest's own
            (1, good[1] + 16 * LARGE), // somebody else's
            (1, 0),
            (1, good[1] & !2),
            (9, good[1]),
        ] {
            memory.0[directory] = good;
            memory.0[directory][index] = entry;
            assert!(!table.maps_exactly(&memory, &ram), "{index} {entry:#x}");
        }
        memory.0[directory] = good;
        memory.0[directory][4] = (directory as u64) << 12 | 7;
        assert!(!table.maps_exactly(&memory, &ram), "a table that leads to itself ends");
    }
}
