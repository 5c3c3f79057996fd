//! The development image records nothing: no PCR is behind it, and a log without PCRs would only mislead.

use alloc::vec::Vec;

use dolmen_drtm::DigestSet;
use dolmen_vm::manifest::EventName;

use crate::console::print;
use crate::host::Host;
use crate::stop::Reason;

/// In place of the TPM.
pub(crate) struct Meter;

/// In place of the event log.
pub(crate) struct EventLog;

impl EventLog {
    /// Nothing was recorded before.
    pub(crate) const fn begin(_: &mut Host) -> Result<Self, Reason> {
        Ok(Self)
    }

    /// Nothing is recorded.
    pub(crate) const fn record(
        &mut self,
        _: &mut Host,
        _: &DigestSet,
        _: EventName<'_>,
    ) -> Result<(), Reason> {
        Ok(())
    }

    /// An empty log.
    pub(crate) const fn finish(self, _: &mut Host) -> Result<Vec<u8>, Reason> {
        Ok(Vec::new())
    }
}

/// In place of what the PCRs are capped with.
pub(crate) struct Cap;

impl Cap {
    /// Says that there was nothing to cap.
    pub(crate) fn put_on(&mut self) {
        print(format_args!("stop: memory wiped; UNMEASURED, so there was no PCR to cap\n"));
    }
}
