//! Address types, maps of RAM, nested page tables and walks of a guest's own, pure.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "tests may overflow loudly")
)]

mod address;
mod exact;
mod guest;
mod nested;
mod ram;
mod walk;

pub use address::{Gpa, Gva, Hfn, Hpa, PAGE_SIZE};
pub use guest::{GuestMemory, OutsideRam};
pub use nested::{Entry, EntryFormat, Ept, Flush, MapError, NestedTable, Npt, PageSize, Rights, TableMemory};
pub use ram::{MAX_EXTENTS, RamExtent, RamMap, RamMapError};
pub use walk::{Access, AccessError, PageFault, Paging, Walk, read_virtual, translate, walk, write_virtual};
