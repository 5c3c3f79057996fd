//! Hypercall client for guests: what Dolmen offers, as safe functions.
//!
//! [`Client`] speaks through a [`Transport`]: straight from ring 0 (feature `vmmcall`), through Linux and
//! `/dev/dolmen` (feature `linux`), or to a fake in tests. It repeats a request that the hypervisor has not
//! finished, and takes nothing of a reply for granted.
//!
//! ```ignore
//! let mut client = Client::new(Device::open(Path::new("/dev/dolmen"))?);
//! let length = client.seal(SealPolicy::default(), b"disk key", &key, &mut blob)?;
//! ```
#![cfg_attr(not(feature = "std"), no_std)]
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "tests may overflow loudly")
)]

mod client;
mod error;

#[cfg(feature = "linux")]
pub mod linux;
#[cfg(feature = "loopback")]
pub mod loopback;
#[cfg(feature = "vmmcall")]
pub mod vmmcall;

pub use client::{Client, GuestList};
pub use dolmen_abi as abi;
pub use error::Error;

use dolmen_abi::Status;

/// Carries calls to the hypervisor.
pub trait Transport {
    /// What can go wrong on the way.
    type Error;

    /// Makes one call with the concatenation of `request`; its status, and the bytes of `reply` that were filled.
    ///
    /// # Errors
    /// If the hypervisor was not reached.
    fn call(
        &mut self,
        number: u32,
        request: &[&[u8]],
        reply: &mut [u8],
    ) -> Result<(Status, usize), Self::Error>;

    /// Waits before a request is repeated for the `attempt`-th time, counted from 1.
    ///
    /// # Errors
    /// To give up.
    fn wait(&mut self, status: Status, attempt: u32) -> Result<(), Self::Error>;
}

impl<T: Transport + ?Sized> Transport for &mut T {
    type Error = T::Error;

    fn call(
        &mut self,
        number: u32,
        request: &[&[u8]],
        reply: &mut [u8],
    ) -> Result<(Status, usize), Self::Error> {
        (**self).call(number, request, reply)
    }

    fn wait(&mut self, status: Status, attempt: u32) -> Result<(), Self::Error> {
        (**self).wait(status, attempt)
    }
}
