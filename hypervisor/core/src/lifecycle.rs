//! The lives of all guests, as calls of the `manage` group see them.

use dolmen_abi::{GuestInfo, NAME_BYTES, Status};
use dolmen_machine::clock::Clock;
use dolmen_machine::cpu;
use dolmen_vm::lifecycle::Request;
use dolmen_vm::service::GuestTable;

/// All guests.
pub(crate) struct Lives {
    pub(crate) clock: Clock,
}

impl GuestTable for Lives {
    fn uptime_ns(&self) -> u64 {
        cpu::read_tsc().checked_div(self.clock.tsc_khz).unwrap_or_default().saturating_mul(1_000_000)
    }

    fn describe(&self, _: usize) -> Option<GuestInfo> {
        None
    }

    fn request(&mut self, _: &[u8; NAME_BYTES], _: Request) -> Result<(), Status> {
        Err(Status::BUSY)
    }
}
