//! Firmware tables, PCI configuration space and AMD's IOMMU: formats, and the sequences that drive them, over
//! traits that `machine` implements and tests fake.
//!
//! Everything that is read here was written by firmware, by devices or by software that ran before: it is
//! hostile input. Every walk is bounded, every wait has a deadline.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "tests may overflow loudly")
)]

pub mod acpi;
pub mod amdvi;
pub mod ivrs;
pub mod madt;
pub mod pci;
pub mod rtc;
pub mod sldev;
