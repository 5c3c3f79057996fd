//! x86 registers, exits and control-block layouts, pure.
//!
//! What is neutral between vendors ([`VmExit`], [`Event`], [`Gprs`], [`instruction`]) stands at the root;
//! vendor words stay inside [`svm`] and [`vmx`]. Nothing here touches hardware.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "tests may overflow loudly")
)]

pub mod bits;
mod cpu_set;
pub mod cpuid;
mod event;
mod exit;
mod gpr;
pub mod instruction;
pub mod msr;
pub mod register;
pub mod segment;
pub mod svm;
pub mod vmx;

pub use cpu_set::{CpuId, CpuSet, MAX_CPUS, Members};
pub use event::{Event, Vector};
pub use exit::{ControlRegister, Direction, FaultAccess, PortAccess, VmExit, Width};
pub use gpr::{Gpr, Gprs};
