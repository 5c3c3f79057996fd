//! Intel's control structure: fields, controls, exit reasons, and their translation into neutral words.
//!
//! Specification: SDM vol. 3C, chapters 25 to 29, and vol. 3D, appendices A to C. Vendor words stop at [`decode`].
//! What the processor keeps of a guest is reached through [`Fields`]: the structure that it works on, or an
//! [`Image`] of it in memory.

mod capability;
mod check;
mod decode;
mod event;
mod exit_reason;
pub mod field;
pub mod intercept;
pub mod permission;
mod state;

pub use capability::{Allowed, Capabilities, Lack, MsrSource, feature_control, has_trace};
pub use check::{Refusal, explain};
pub use decode::{ExitInformation, decode, instruction_length, moved_register, pending_event};
pub use event::Injection;
pub use exit_reason::ExitReason;
pub use intercept::Controls;
pub use state::{
    Fields, Image, privilege, read_cr0, read_cr4, reset_processor, segment, set_segment, skip, write_cr0,
    write_cr4, write_efer,
};
