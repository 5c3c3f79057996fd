//! What a guest sees: exit policy, virtual devices, image loaders, hypercall service.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "tests may overflow loudly")
)]

pub mod acpi;
pub mod backend;
pub mod board;
pub mod bus;
pub mod console;
pub mod cpuid;
pub mod decode;
pub mod device;
pub mod exit;
pub mod guest;
pub mod image;
pub mod layout;
pub mod lifecycle;
pub mod local;
pub mod manifest;
pub mod policy;
pub mod pvclock;
pub mod run;
pub mod sched;
pub mod service;
pub mod vcpu;

#[cfg(test)]
mod testing;
