//! The clerk: what the TPM is asked for while guests run, one thing at a time, as a job that CPUs poll.
//!
//! A TPM has three places for objects. The ECDSA key that binds guests keeps the first; the second holds whichever other
//! attestation key was asked for last, made when it is first needed and flushed when another is; the third an
//! endorsement key, for one errand. Keys are made from their templates, so nothing is stored and the same launch gets
//! the same ones.
//!
//! Promise: whatever happens, session and endorsement key of an errand are flushed before its answer is told, as far as the
//! TPM told their handles and took the command. What is left for want of either is flushed before the next errand
//! (`tidy`). Keys are checked against their templates; who relies on them checks the rest (docs/tpm.md, "Two kinds of
//! key").

mod order;
mod step;
mod tidy;

pub use order::{Answer, EkKind, Errand, ErrandError, MAX_ANSWER, MAX_CREDENTIAL, MAX_SECRET, Parcel};

use crate::attestation::{AkKind, AttestationKey};
use crate::crypto::{Point, SHA256_SIZE, hmac_sha256};
use crate::exchange::Exchange;
use crate::public::Name;
use crate::quote::{Busy, QuoteJob, QuotePoll, Subject};
use crate::secret::Secret;
use crate::session::{HmacSession, NONCE};
use crate::transport::PolledTransport;
use step::Step;

/// What a poll found.
#[expect(clippy::large_enum_variant, reason = "there is no heap on this path, and one errand at a time")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClerkPoll {
    /// Nothing was asked for.
    Idle,
    /// Not yet.
    Pending,
    /// Done; longer answers are in [`Clerk::answer`] until the next errand. The clerk is idle again.
    Done(Answer),
    /// It failed; the clerk is idle again.
    Failed(ErrandError),
}

/// One errand at a time.
pub struct Clerk {
    ak: AttestationKey,
    other: Option<AttestationKey>,
    errand: Option<Errand>,
    step: Step,
    prepared: bool,
    exchange: Exchange,
    quoting: QuoteJob,
    /// What nonces, and the salt of another session, are made from.
    seed: Secret<[u8; NONCE]>,
    /// An errand failed, so that the TPM may hold what nobody knows of.
    is_untidy: bool,
    /// Handles that were looked at meanwhile.
    looked_at: u8,
    /// The salt of a session that is being started, and what the TPM is sent for it.
    salt: Option<(Secret<[u8; SHA256_SIZE]>, Point)>,
    /// A key of this errand alone, to be flushed with it.
    stray: Option<u32>,
    /// The Name of an endorsement key in that place.
    stray_name: Name,
    session: Option<u32>,
    quoted: Answer,
    failure: Option<ErrandError>,
    out: [u8; MAX_ANSWER],
    out_len: usize,
    /// Bytes of a certificate that are still to be read, or registers.
    wanted: u32,
}

impl core::fmt::Debug for Clerk {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Clerk").field("step", &self.step).finish_non_exhaustive()
    }
}

impl Clerk {
    /// A clerk with the key that is always loaded.
    #[must_use]
    pub const fn new(ak: AttestationKey) -> Self {
        Self {
            ak,
            other: None,
            errand: None,
            step: Step::Done,
            prepared: false,
            exchange: Exchange::new(),
            quoting: QuoteJob::new(),
            seed: Secret::new([0; NONCE]),
            is_untidy: false,
            looked_at: 0,
            salt: None,
            stray: None,
            stray_name: [0; size_of::<Name>()],
            session: None,
            quoted: Answer::Bytes,
            failure: None,
            out: [0; MAX_ANSWER],
            out_len: 0,
            wanted: 0,
        }
    }

    /// Whether an errand is under way.
    #[must_use]
    pub const fn is_busy(&self) -> bool {
        self.errand.is_some()
    }

    /// Sends the clerk for something. `seed` is fresh and secret.
    ///
    /// # Errors
    /// [`Busy`] while an errand is under way.
    pub fn start(&mut self, errand: Errand, seed: Secret<[u8; NONCE]>) -> Result<(), Busy> {
        if self.is_busy() {
            return Err(Busy);
        }
        (self.errand, self.seed, self.looked_at) = (Some(errand), seed, 0);
        (self.stray, self.session, self.failure, self.salt) = (None, None, None, None);
        self.out.fill(0);
        (self.out_len, self.wanted, self.quoted) = (0, 0, Answer::Bytes);
        self.enter(Step::Begin);
        Ok(())
    }

    /// What the errand brought, where that is bytes.
    #[must_use]
    pub fn answer(&self) -> &[u8] {
        self.out.get(..self.out_len).unwrap_or(&[])
    }

    /// Gives up, at once: on the way to a stop.
    pub fn abort(&mut self, tpm: &mut impl PolledTransport) {
        self.quoting.abort(tpm);
        self.exchange.abort(tpm);
        self.errand = None;
    }

    /// One step. Another job's command that is in flight on the same transport is waited for, and so is one that is out
    /// through the salted session.
    pub fn poll(&mut self, tpm: &mut impl PolledTransport, salted: &mut HmacSession) -> ClerkPoll {
        let Some(errand) = self.errand else { return ClerkPoll::Idle };
        let wants_session = self.step == Step::Activate && !self.prepared;
        if wants_session && salted.is_out() {
            return ClerkPoll::Pending;
        }
        let outcome = if self.step == Step::Begin {
            Ok(Some(self.begin(&errand, salted)))
        } else if let Step::Tidy(what) = self.step {
            self.tidy(what, tpm, salted)
        } else if self.step == Step::Quote {
            self.poll_quote(tpm, &errand)
        } else if wants_session && salted.is_lost() {
            Err(ErrandError::SessionLost)
        } else {
            self.advance(tpm, &errand, salted)
        };
        match outcome {
            Ok(None) => return ClerkPoll::Pending,
            Ok(Some(next)) => self.enter(next),
            Err(error) => {
                if self.step == Step::Activate && self.prepared {
                    salted.give_up();
                }
                self.failure.get_or_insert(error);
                self.is_untidy = true;
                self.flushed(self.step);
                self.enter(self.cleaning());
            }
        }
        if self.step != Step::Done {
            return ClerkPoll::Pending;
        }
        self.errand = None;
        match self.failure {
            Some(error) => ClerkPoll::Failed(error),
            None => ClerkPoll::Done(self.quoted),
        }
    }

    fn enter(&mut self, step: Step) {
        (self.step, self.prepared) = (step, false);
    }

    /// The loaded key of this kind.
    fn loaded(&self, kind: AkKind) -> Option<&AttestationKey> {
        if kind == self.ak.kind { Some(&self.ak) } else { self.other.as_ref().filter(|key| key.kind == kind) }
    }

    /// 32 bytes of this errand for one purpose.
    fn derived(&self, purpose: &[u8]) -> [u8; NONCE] {
        hmac_sha256(self.seed.expose(), &[purpose])
    }

    /// How the errand begins once the TPM is tidy.
    fn first(&self, errand: &Errand) -> Step {
        match errand.key() {
            Some(kind) if self.loaded(kind).is_none() && self.other.is_some() => Step::Evict,
            Some(kind) if self.loaded(kind).is_none() => Step::MakeAk(kind),
            Some(_) | None => Self::main(errand),
        }
    }

    /// How it goes on once its attestation key is loaded.
    fn main(errand: &Errand) -> Step {
        match errand {
            Errand::Quote { .. } | Errand::Certify { .. } => Step::Quote,
            Errand::Public(_) => Step::Tell,
            Errand::EndorsementKey(kind) => Step::MakeEk(*kind),
            Errand::Activate { .. } => Step::LookForLockout,
            Errand::Certificate(kind) => Step::FindCertificate(kind.certificate()),
            Errand::Renew => Step::Done,
            Errand::Chain(part) => Step::FindCertificate(order::CHAIN.saturating_add(u32::from(*part))),
        }
    }

    /// What is left to be flushed.
    const fn cleaning(&self) -> Step {
        if self.session.is_some() {
            Step::FlushSession
        } else if self.stray.is_some() {
            Step::FlushEk
        } else {
            Step::Done
        }
    }

    fn poll_quote(
        &mut self,
        tpm: &mut impl PolledTransport,
        errand: &Errand,
    ) -> Result<Option<Step>, ErrandError> {
        let (key, subject, data, with_values) = match errand {
            Errand::Quote { key, pcrs, data, with_values } => (key, Subject::Pcrs(*pcrs), data, *with_values),
            Errand::Certify { key, data } => (key, Subject::Key, data, false),
            Errand::Public(_)
            | Errand::EndorsementKey(_)
            | Errand::Certificate(_)
            | Errand::Chain(_)
            | Errand::Activate { .. }
            | Errand::Renew => return Ok(Some(Step::Done)),
        };
        let Some(key) = self.loaded(*key).copied() else { return Err(ErrandError::NoKey) };
        if !self.prepared {
            let nonce = self.derived(b"quote");
            self.quoting.start_over(subject, data.bytes(), nonce).map_err(|_| ErrandError::NoKey)?;
            self.prepared = true;
        }
        match self.quoting.poll(tpm, &key) {
            QuotePoll::Pending => Ok(None),
            QuotePoll::Idle => Err(ErrandError::NoKey),
            QuotePoll::Failed(error) => Err(ErrandError::Quote(error)),
            QuotePoll::Done(quote) => {
                self.quoted = Answer::Quote(quote);
                if let (Subject::Pcrs(pcrs), true) = (subject, with_values) {
                    self.wanted = pcrs;
                    return Ok(Some(Step::ReadPcrs));
                }
                Ok(Some(Step::Done))
            }
        }
    }

    /// Whether the values that were read are those that were quoted.
    fn values_fit(&self, pcrs: u32) -> bool {
        let Answer::Quote(quote) = &self.quoted else { return false };
        let Ok(attest) = crate::attest::QuoteAttest::parse(quote.attest()) else { return false };
        let (values, _) = self.out.as_chunks::<SHA256_SIZE>();
        let mut parts: [&[u8]; 24] = [&[]; 24];
        for ((index, value), part) in (0u32..).zip(values).zip(parts.iter_mut()) {
            if pcrs.wrapping_shr(index) & 1 != 0 {
                *part = value;
            }
        }
        attest.pcr_digest == crate::crypto::sha256(&parts)
    }
}
