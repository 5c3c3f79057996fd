//! The machine and the TPM as every stage after the shield works with them.

use alloc::vec::Vec;

use dolmen_drtm::BankSet;
use dolmen_drtm::handoff::Extent;
use dolmen_machine::clock::Clock;
use dolmen_machine::own::Machine;
use dolmen_memory::Hpa;

use crate::launch::to_usize;
use crate::record::Meter;
use crate::stop::Reason;

/// What every stage after the shield works with.
pub(crate) struct Host {
    pub(crate) machine: Machine,
    pub(crate) clock: Clock,
    pub(crate) meter: Meter,
    pub(crate) banks: BankSet,
}

impl Host {
    /// The components that the loader staged, in manifest order.
    pub(crate) fn components(&self) -> &[Extent] {
        let handoff = self.machine.handoff();
        handoff.components.get(..to_usize(handoff.component_count)).unwrap_or(&[])
    }

    /// A copy of memory that the hand-off names.
    pub(crate) fn copy(&mut self, from: Extent) -> Result<Vec<u8>, Reason> {
        let length = usize::try_from(from.length).map_err(|_| Reason::Handoff("an absurd length"))?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length).map_err(|_| Reason::OutOfMemory("a copy of hand-off data"))?;
        bytes.resize(length, 0);
        self.machine.read(Hpa::new(from.base), &mut bytes)?;
        Ok(bytes)
    }
}
