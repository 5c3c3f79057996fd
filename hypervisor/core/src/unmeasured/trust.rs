//! The development image has no keys: there is no launch to bind them to. Calls that would need them answer
//! `NOT_LAUNCHED`, since the launch facts say UNMEASURED; random numbers are the processor's own, where it has some.

use alloc::vec::Vec;

use dolmen_abi::{AkId, LaunchFacts};
use dolmen_machine::{cpu, cpus};
use dolmen_vm::manifest::SealingRoot;
use dolmen_vm::service::{
    self, Errand, ErrandAnswer, ErrandDesk, GuestSlot, NoEntropy, QuoteDesk, QuotePoll, SignedQuote, TpmBusy,
    TpmService,
};

use crate::door::Published;
use crate::host::Host;
use crate::record::Meter;
use crate::stop::Reason;

/// In place of the keys.
pub(crate) struct Trust;

impl Trust {
    /// Nothing is sealed, to whatever it may be.
    pub(crate) const fn manifest(&self) -> [u8; 32] {
        [0; 32]
    }

    /// There is no sealing root.
    pub(crate) const fn take_root(&mut self) -> Option<service::Secret<[u8; 32]>> {
        None
    }

    /// There is nothing to read.
    pub(crate) const fn publish(&mut self, event_log: Vec<u8>) -> Published {
        Published { ak_public: Vec::new(), event_log }
    }
}

/// Derives nothing.
pub(crate) fn derive(_: &mut Host, _: Option<SealingRoot>) -> Result<Trust, Reason> {
    log::warn!(target: "measure", "UNMEASURED no keys derived");
    Ok(Trust)
}

/// In place of the TPM, as the hypercall service sees it.
pub(crate) struct TpmDesk {
    desk: QuoteDesk,
    errands: ErrandDesk,
}

impl TpmDesk {
    /// A desk where nobody sits.
    pub(crate) const fn new(_: Meter, _: Trust) -> Self {
        Self { desk: QuoteDesk::new(), errands: ErrandDesk::new() }
    }

    /// There is nothing to do.
    pub(crate) const fn work(&mut self) {}
}

impl TpmService for TpmDesk {
    fn random(&mut self, _: GuestSlot, out: &mut [u8]) -> Result<(), NoEntropy> {
        for part in out.chunks_mut(8) {
            let word = cpu::read_random().ok_or(NoEntropy)?;
            for (byte, value) in part.iter_mut().zip(word.to_le_bytes()) {
                *byte = value;
            }
        }
        Ok(())
    }

    fn start_quote(&mut self, _: AkId, _: [u8; 32]) -> Result<(), TpmBusy> {
        Err(TpmBusy)
    }

    fn poll_quote(&mut self, _: &mut SignedQuote) -> QuotePoll {
        QuotePoll::Failed(0)
    }

    fn start_errand(&mut self, _: &Errand) -> Result<(), TpmBusy> {
        Err(TpmBusy)
    }

    fn poll_errand(&mut self, _: &mut ErrandAnswer) -> QuotePoll {
        QuotePoll::Failed(0)
    }

    fn errands(&mut self) -> &mut ErrandDesk {
        &mut self.errands
    }

    fn desk(&mut self) -> &mut QuoteDesk {
        &mut self.desk
    }
}

/// What guests are told of this start.
pub(crate) fn facts(said: u32) -> LaunchFacts {
    let mut facts =
        LaunchFacts::from_bits_retain(said) | LaunchFacts::UNMEASURED | LaunchFacts::SMM_NOT_ISOLATED;
    facts.set(LaunchFacts::PROCESSORS_PARKED, cpus::count() == 1);
    facts.set(LaunchFacts::DEBUG, cfg!(debug_assertions) || cfg!(feature = "self-check"));
    facts.set(LaunchFacts::NO_PROCESSOR_RANDOM, !cpu::has_random());
    facts
}
