//! Fresh seed for the random generator while guests run, as a job that CPUs poll.

use crate::constant::cc;
use crate::drbg::Drbg;
use crate::error::{During, KeyError};
use crate::exchange::Exchange;
use crate::keys::{RANDOM, random_call};
use crate::response::read_random;
use crate::session::HmacSession;
use crate::transport::PolledTransport;

/// What a poll found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReseedPoll {
    /// Nothing to do.
    Idle,
    /// Not yet.
    Pending,
    /// The generator has a fresh seed.
    Done,
    /// It has not; it goes on with the old one until that is exhausted.
    Failed(KeyError),
}

/// One reseed at a time.
#[derive(Debug, Default)]
pub struct ReseedJob {
    exchange: Exchange,
    active: bool,
}

impl ReseedJob {
    /// An idle job.
    #[must_use]
    pub const fn new() -> Self {
        Self { exchange: Exchange::new(), active: false }
    }

    /// One step: begins when the generator asks for it, the session is in step with the TPM, and no other job's command is
    /// out through it.
    pub fn poll(
        &mut self,
        tpm: &mut impl PolledTransport,
        session: &mut HmacSession,
        drbg: &mut Drbg,
        cpu_entropy: &[u8],
    ) -> ReseedPoll {
        if !self.active && !drbg.wants_reseed() {
            return ReseedPoll::Idle;
        }
        match self.advance(tpm, session, drbg, cpu_entropy) {
            Ok(false) => ReseedPoll::Pending,
            Ok(true) => {
                self.active = false;
                ReseedPoll::Done
            }
            Err(error) => {
                if self.active {
                    session.give_up();
                }
                self.active = false;
                drbg.postpone_reseed();
                ReseedPoll::Failed(error)
            }
        }
    }

    fn advance(
        &mut self,
        tpm: &mut impl PolledTransport,
        session: &mut HmacSession,
        drbg: &mut Drbg,
        cpu_entropy: &[u8],
    ) -> Result<bool, KeyError> {
        let call = random_call();
        if !self.active {
            if session.is_out() || session.is_lost() {
                return Ok(false);
            }
            let nonce = drbg.nonce();
            self.exchange.prepare(|buf| session.seal(buf, &call, nonce)).during(cc::GET_RANDOM)?;
            self.active = true;
        }
        let Some(bytes) = self.exchange.poll(tpm).during(cc::GET_RANDOM)? else { return Ok(false) };
        let opened = session.open(bytes, &call).during(cc::GET_RANDOM)?;
        drbg.reseed(&[read_random(opened.parameters, RANDOM).during(cc::GET_RANDOM)?, cpu_entropy]);
        Ok(true)
    }

    /// Gives up, at once: on the way to a stop.
    pub fn abort(&mut self, tpm: &mut impl PolledTransport) {
        self.exchange.abort(tpm);
        self.active = false;
    }
}
