//! TPM 2.0 from registers to quotes, pure: the TIS driver, the command codec, and (feature `keys`) sessions,
//! keys, random numbers and quotes.
//!
//! Everything that comes back from a TPM is read as if an attacker had written it: the bus is shared. What
//! crosses it in an HMAC session is checked; what does not is believed only where nothing secret depends on it.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "tests may overflow loudly")
)]

pub mod codec;
pub mod command;
pub mod constant;
pub mod measure;
pub mod response;
pub mod tis;
mod transport;

#[cfg(feature = "keys")]
pub mod attest;
#[cfg(feature = "keys")]
pub mod attestation;
#[cfg(feature = "keys")]
pub mod certify;
#[cfg(feature = "keys")]
pub mod clerk;
#[cfg(feature = "keys")]
pub mod credential;
#[cfg(feature = "keys")]
pub mod crypto;
#[cfg(feature = "keys")]
pub mod drbg;
#[cfg(feature = "keys")]
mod error;
#[cfg(feature = "keys")]
mod exchange;
#[cfg(feature = "keys")]
pub mod keys;
#[cfg(feature = "keys")]
pub mod permanent;
#[cfg(feature = "keys")]
pub mod policy;
#[cfg(feature = "keys")]
pub mod primary;
#[cfg(feature = "provision")]
pub mod provision;
#[cfg(feature = "keys")]
pub mod public;
#[cfg(feature = "keys")]
pub mod quote;
#[cfg(feature = "keys")]
pub mod reseed;
#[cfg(feature = "keys")]
mod secret;
#[cfg(feature = "keys")]
pub mod session;

#[cfg(feature = "keys")]
pub use error::{KeyError, KeyRole};
#[cfg(feature = "keys")]
pub use exchange::Exchange;
pub use response::TpmError;
#[cfg(feature = "keys")]
pub use secret::Secret;
pub use transport::{MAX_MESSAGE, PolledTransport, Transport, TransportError};
