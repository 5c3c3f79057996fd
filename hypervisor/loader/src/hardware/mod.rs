//! What touches the machine. Everything here runs before the launch, unprotected and unmeasured: it must
//! work, but nothing depends on it for security.

#[cfg(feature = "unmeasured")]
pub(crate) mod direct;
pub mod exception;
pub mod parking;
pub mod pci;
pub mod physical;
pub mod processor;
pub mod tpm;
