//! AMD's IOMMU: where it is, its registers and formats, and how it is closed.
//!
//! Specification: AMD I/O Virtualization Technology (IOMMU) Specification, order 48882, 3.08; the section
//! stands at each item.

mod find;
mod format;
mod shield;

pub use find::{FindError, Units, find_units};
pub use format::{
    COMMAND_BYTES, Command, DENY_ENTRY, DEVICE_TABLE_BYTES, EVENT_BYTES, EventCode, RING_BYTES, Register,
    WINDOW_BYTES, control, feature, status,
};
pub use shield::{ShieldError, Step, Tables, UnitIo, arm, build_deny_table, enforce, verify_deny_table};

#[cfg(test)]
mod fake;

use crate::pci::Bdf;

/// A unit as its PCI capability tells it (3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    /// Its function.
    pub function: Option<Bdf>,
    /// Base of its registers.
    pub registers: u64,
    /// The capability's first 32 bits: which optional parts it has.
    pub header: u32,
}

impl Unit {
    const HT_TUNNEL: u32 = 1 << 25;
    const FEATURE_REGISTER: u32 = 1 << 27;

    /// Whether a HyperTransport tunnel's traffic is translated only on request.
    #[must_use]
    pub const fn has_tunnel(&self) -> bool {
        self.header & Self::HT_TUNNEL != 0
    }

    /// Whether [`Register::Features`] exists.
    #[must_use]
    pub const fn has_features(&self) -> bool {
        self.header & Self::FEATURE_REGISTER != 0
    }
}
