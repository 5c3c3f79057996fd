//! Verdicts about evidence: honest, altered and hostile, and what stock tools say to the same bytes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    reason = "tests may fail loudly"
)]

mod attack;
mod chain;
mod command;
mod corpus;
mod documentation;
mod enrolling;
mod forge;
mod host;
mod hostile;
mod parts;
mod reference;
mod stock;
