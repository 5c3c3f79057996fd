//! The dynamic launch: hand-off formats, checks, event log, PCR arithmetic.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "tests may overflow loudly")
)]

pub mod handoff;
