//! Intel's virtualisation extension on this processor.
//!
//! How to call: as [`crate::svm`], since both are an [`Extension`](crate::extension::Extension).
//!
//! The hypervisor runs in VMX root operation with IF = 0 all the time; physical interrupts and NMIs end the guest's
//! stretch by themselves. An interrupt stays pending, and the exit loop lets it in through `interrupt::Window`; an NMI
//! is taken by the exit, and handed to the host's handler at once. INIT is held off in root operation.
//!
//! A control structure belongs to the processor whose guest runs from it. [`HostCpu::save`] takes all that it holds into
//! memory and clears it, so that it may be loaded anywhere; a state that is made meanwhile is made in memory.
//!
//! [`HostCpu::save`]: crate::extension::HostCpu::save

mod backend;
mod enable;
mod frame;
mod processor;
mod resident;
mod switch;
mod vcpu;

pub use enable::{CpuFrames, VmxError, VmxHost};
pub use processor::VmxCpu;
pub use vcpu::Vmx;
