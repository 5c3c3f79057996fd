//! A hypercall's way to what all guests share.

use alloc::vec::Vec;

use dolmen_machine::cpu;
use dolmen_machine::extension::Extension;
use dolmen_vm::service::{GuestTable, Platform};

use crate::fleet::Fleet;
use crate::lifecycle::Lives;
use crate::trust::TpmDesk;

/// What guests read of this launch; complete before the first of them runs.
pub(crate) struct Published {
    /// TPM2B_PUBLIC of the attestation key.
    pub(crate) ak_public: Vec<u8>,
    pub(crate) event_log: Vec<u8>,
}

/// One call's way to what all guests share: the desk's lock is held for each step at it, and not for the call.
pub(crate) struct Door<E: Extension> {
    fleet: &'static Fleet<E>,
    guests: Lives<E>,
}

impl<E: Extension> Door<E> {
    pub(crate) const fn new(fleet: &'static Fleet<E>) -> Self {
        Self { fleet, guests: Lives(fleet) }
    }
}

impl<E: Extension> Platform for Door<E> {
    type Tpm = TpmDesk;

    fn with_tpm<R>(&mut self, work: impl FnOnce(&mut TpmDesk) -> R) -> R {
        work(&mut self.fleet.desk.lock())
    }

    fn ak_public(&self) -> &[u8] {
        &self.fleet.published.ak_public
    }

    fn event_log(&self) -> &[u8] {
        &self.fleet.published.event_log
    }

    fn uptime_ms(&self) -> u64 {
        cpu::read_tsc().checked_div(self.fleet.clock.tsc_khz).unwrap_or_default()
    }

    fn guests(&mut self) -> &mut impl GuestTable {
        &mut self.guests
    }
}
