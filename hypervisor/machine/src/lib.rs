//! The one crate with unsafe code: everything that touches the machine.
//!
//! What is decided elsewhere is done here. The launch image and the core take different parts of it, chosen
//! by the features `launch` and `core`: their entry points and assembly must not meet in one image.
#![no_std]

pub mod cpu;
pub mod mmio;
pub mod port;
pub mod serial;
pub mod tpm_mmio;

#[cfg(feature = "launch")]
mod entry_launch;
#[cfg(feature = "launch")]
pub mod iommu;
#[cfg(feature = "launch")]
pub mod launch;
#[cfg(any(feature = "launch", feature = "core"))]
pub mod msr;
#[cfg(feature = "launch")]
pub mod pci;

#[cfg(feature = "core")]
pub mod apic;
#[cfg(feature = "core")]
pub mod clock;
#[cfg(feature = "core")]
pub mod cpus;
#[cfg(feature = "core")]
pub mod entry_core;
#[cfg(feature = "core")]
mod extended;
#[cfg(feature = "core")]
pub mod extension;
#[cfg(feature = "core")]
pub mod heap;
#[cfg(feature = "core")]
pub mod interrupt;
#[cfg(feature = "core")]
pub mod own;
#[cfg(feature = "core")]
pub mod paging;
#[cfg(feature = "core")]
mod permission;
#[cfg(feature = "core")]
pub mod region;
#[cfg(feature = "core")]
mod register;
#[cfg(feature = "core")]
pub mod rtc;
#[cfg(feature = "core")]
pub mod scrub;
#[cfg(feature = "core")]
mod segments;
#[cfg(feature = "core")]
pub mod svm;
#[cfg(feature = "core")]
mod tables;
#[cfg(feature = "core")]
pub mod vmx;
