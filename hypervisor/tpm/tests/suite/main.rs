//! The crate against a real software TPM, straight or through a model of the TIS registers.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::wildcard_enum_match_arm,
    reason = "a broken fixture ends the test"
)]

mod bus;
mod certifying;
mod clerking;
mod enrolling;
mod forging;
mod hostile;
mod keys;
mod measuring;
mod provisioning;
mod quoting;
mod recovering;
mod sharing;
mod swtpm;
mod tap;
mod tis_model;
