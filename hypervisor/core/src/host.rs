//! The machine and the TPM as every stage after the shield works with them.

use alloc::vec::Vec;

use dolmen_drtm::handoff::Extent;
use dolmen_drtm::{BankSet, DigestSet};
use dolmen_machine::clock::Clock;
use dolmen_machine::own::Machine;
use dolmen_machine::tpm_mmio::TisRegisters;
use dolmen_memory::Hpa;
use dolmen_tpm::tis::Tis;

use crate::launch::to_usize;
use crate::stop::Reason;

/// The TPM at locality 2.
pub(crate) type Tpm = Tis<TisRegisters>;

/// What every stage after the shield works with.
pub(crate) struct Host {
    pub(crate) machine: Machine,
    pub(crate) clock: Clock,
    pub(crate) tpm: Tpm,
    pub(crate) banks: BankSet,
    /// What PCR 17 holds.
    pub(crate) pcr17: DigestSet,
    /// What PCR 18 holds.
    pub(crate) pcr18: DigestSet,
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
