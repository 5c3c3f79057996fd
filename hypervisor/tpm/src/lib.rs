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

pub use response::TpmError;
pub use transport::{MAX_MESSAGE, PolledTransport, Transport, TransportError};
