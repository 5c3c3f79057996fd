//! Nested tables lie in frames of the region.

use dolmen_memory::{Hfn, TableMemory};

use crate::region::Region;

impl TableMemory for Region {
    fn read(&self, table: Hfn, index: u16) -> u64 {
        self.read(table, index)
    }

    fn write(&mut self, table: Hfn, index: u16, value: u64) {
        self.write(table, index, value);
    }

    fn allocate(&mut self) -> Option<Hfn> {
        self.allocate()
    }
}
