//! Verifies what a guest of Dolmen hands out as evidence.
//!
//! Input: evidence (hostile, `docs/evidence.md`), a [`Policy`] of the relying party (trusted: reference values,
//! enrolled keys), and what must be bound, such as the nonce that the relying party chose. Output: a
//! [`Report`] of checks, each a sentence.
//!
//! Promise: the verdict is [`Verdict::Trusted`] only if a restricted key of an enrolled TPM, which only the
//! reference hypervisor can use and only at its locality, signed the quoted registers and the binding. Nothing
//! that the evidence says of itself is believed: the key's policy is recomputed from the reference PCR 17, the
//! quoted digest from reference PCR 17 and 18, the extra data from the binding.
//! Parsers take any bytes, in bounded work, without a panic.
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "tests may overflow loudly")
)]

mod binding;
mod check;
pub mod enrol;
pub mod export;
mod file;
mod host;
mod key;
mod log;
mod policy;
mod record;
mod reference;
mod registers;
mod report;
mod same;
mod sketch;
mod tpm;

pub use binding::{extra_data, leaf};
pub use check::{Expected, check};
pub use file::read_at_most;
pub use host::check_host;
pub use key::{AttestationKey, KeyProblem, Verifier};
pub use log::{LogProblem, check_events};
pub use policy::{
    AcceptedCode, AcceptedGuest, Components, Configuration, EnrolledKey, FIELDS, FactRules, MAX_POLICY,
    Policy, PolicyError, TpmRules,
};
pub use reference::{BANKS, REFERENCE_FORMAT, ReferenceError, Release};
pub use report::{CHECKS, Check, Outcome, Report, Subject, VERDICT_FORMAT, Verdict};
pub use sketch::explain;

/// The examples of the documentation compile.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/verify.md")]
struct Documentation;
