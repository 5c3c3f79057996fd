//! Address types, frame allocation and nested page tables, pure.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "tests may overflow loudly")
)]

mod address;
mod guest;

pub use address::{Gpa, Gva, Hfn, Hpa, PAGE_SIZE};
pub use guest::{GuestMemory, OutsideRam};
