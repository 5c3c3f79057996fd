//! AMD's control block: layout, intercepts, exit codes, and their translation into neutral words.
//!
//! Specification: APM vol. 2, chapter 15 and appendix B. Vendor words stop at [`decode`].

mod asid;
mod capability;
mod control;
mod decode;
mod event;
mod exit_code;
pub mod intercept;
pub mod permission;
mod save;
mod vmcb;

pub use asid::{Asid, Asids};
pub use capability::{SvmCapabilities, SvmFeatures};
pub use control::{Clean, ControlArea, TlbControl};
pub use decode::{decode, instruction_length, pending_event};
pub use exit_code::ExitCode;
pub use save::SaveArea;
pub use vmcb::Vmcb;
