//! The dynamic launch: hand-off formats, checks, event log, PCR arithmetic.
//!
//! The launch image writes what is here in front of every later stage; the core continues the event log; the
//! host's tools and the verifier predict and replay (feature `replay`) with the same code.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "tests may overflow loudly")
)]

pub mod bank;
pub mod check;
pub mod digest;
pub mod handoff;
pub mod log;
pub mod map;
pub mod pcr;
pub mod start_page;
pub mod stream;

#[cfg(feature = "replay")]
pub mod predict;
#[cfg(feature = "replay")]
pub mod replay;

pub use bank::{BankError, BankSet, DigestSet};
pub use digest::{Algorithm, Digest};
