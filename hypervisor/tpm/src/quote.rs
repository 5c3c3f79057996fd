//! A quote, or a key's attestation of itself, as a job that CPUs poll: no step waits for the TPM.
//!
//! Promise: what is handed out is an attestation by the attestation key that was named, over exactly our extra data and
//! exactly what was asked for ([`Subject`]), its signature checked
//! ([`AttestationKey::signs`]). Whatever happens, the policy session is flushed.
//! Steps: policy session → PolicyPCR → PolicyLocality → Quote or Certify; for a key that speaks of the host PolicyLocality comes
//! first, as its policy has it. A PCR that changes in between makes the TPM refuse the
//! session; the whole is then done once more.

use crate::attest::QuoteAttest;
use crate::attestation::AttestationKey;
use crate::certify;
use crate::codec::{DecodeError, EncodeError, Reader};
use crate::command::{begin_tagged, end, flush_context};
use crate::constant::{ResponseCode, alg, cc, tag};
use crate::crypto::{SHA256_SIZE, sha256};
use crate::exchange::Exchange;
use crate::policy::{QUOTED, SELECT_17, selection};
use crate::response::{Response, TpmError};
use crate::session::{
    NONCE, decode_start_session, policy_locality, policy_pcr, read_policy_entry, start_policy_session,
    write_policy_entry,
};
use crate::tis::Locality;
use crate::transport::PolledTransport;

/// Bytes of the longest attestation that is taken.
pub const MAX_ATTEST: usize = 256;
/// Bytes of the longest signature that is taken.
pub const MAX_SIGNATURE: usize = 264;
/// Bytes of the longest extra data: a TPM2B_DATA of SHA-512.
pub const MAX_EXTRA_DATA: usize = 64;
/// How often a quote is begun anew because a PCR changed.
const MAX_RESTARTS: u8 = 1;

/// A quote is under way already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// What an attestation is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Registers of the SHA-256 bank (bit n for PCR n): TPM2_Quote.
    Pcrs(u32),
    /// The key that signs: TPM2_Certify.
    Key,
}

impl Subject {
    /// TPM_CC of the command that attests it.
    const fn code(self) -> u32 {
        match self {
            Self::Pcrs(_) => cc::QUOTE,
            Self::Key => cc::CERTIFY,
        }
    }
}

/// A quote, or another attestation, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    attest: [u8; MAX_ATTEST],
    attest_len: usize,
    signature: [u8; MAX_SIGNATURE],
    signature_len: usize,
}

impl Quote {
    fn new(attest: &[u8], signature: &[u8]) -> Result<Self, DecodeError> {
        let mut quote = Self {
            attest: [0; MAX_ATTEST],
            attest_len: attest.len(),
            signature: [0; MAX_SIGNATURE],
            signature_len: signature.len(),
        };
        quote.attest.get_mut(..attest.len()).ok_or(DecodeError::Trailing)?.copy_from_slice(attest);
        quote.signature.get_mut(..signature.len()).ok_or(DecodeError::Trailing)?.copy_from_slice(signature);
        Ok(quote)
    }

    /// TPMS_ATTEST.
    #[must_use]
    pub fn attest(&self) -> &[u8] {
        self.attest.get(..self.attest_len).unwrap_or(&[])
    }

    /// TPMT_SIGNATURE.
    #[must_use]
    pub fn signature(&self) -> &[u8] {
        self.signature.get(..self.signature_len).unwrap_or(&[])
    }
}

/// Why there is no quote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuoteError {
    /// The command with this code (TPM_CC) failed.
    Command(u32, TpmError),
    /// PCR 17 is not the value of this launch, or changed again while the quote was begun anew.
    NotThisLaunch,
    /// The attestation is over something else than was asked for.
    OtherAttestation,
    /// The signature is not by the attestation key.
    BadSignature,
}

impl QuoteError {
    /// The TPM's own response code, if it refused; 0 otherwise.
    #[must_use]
    pub const fn response_code(&self) -> u32 {
        match self {
            Self::Command(_, TpmError::Refused(code)) => code.0,
            Self::Command(
                _,
                TpmError::Encode(_) | TpmError::Transport(_) | TpmError::Decode(_) | TpmError::Forged,
            )
            | Self::NotThisLaunch
            | Self::OtherAttestation
            | Self::BadSignature => 0,
        }
    }
}

/// What a poll found.
#[expect(clippy::large_enum_variant, reason = "there is no heap on this path, and one job at a time")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotePoll {
    /// No quote was asked for.
    Idle,
    /// Not yet.
    Pending,
    /// Here it is; the job is idle again.
    Done(Quote),
    /// There is none; the job is idle again.
    Failed(QuoteError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Idle,
    StartSession,
    PolicyPcr,
    PolicyLocality,
    Attest,
    /// Frees the session, then reports or begins anew.
    Flush(After),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Report(QuoteError),
    Restart,
}

/// One quote at a time.
#[derive(Debug)]
pub struct QuoteJob {
    step: Step,
    exchange: Exchange,
    prepared: bool,
    session: u32,
    extra_data: [u8; MAX_EXTRA_DATA],
    extra_length: usize,
    subject: Subject,
    nonce: [u8; NONCE],
    restarts: u8,
}

impl QuoteJob {
    /// An idle job.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            step: Step::Idle,
            exchange: Exchange::new(),
            prepared: false,
            session: 0,
            extra_data: [0; MAX_EXTRA_DATA],
            extra_length: 0,
            subject: Subject::Pcrs(0),
            nonce: [0; NONCE],
            restarts: 0,
        }
    }

    /// Whether a quote is under way.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.step != Step::Idle
    }

    /// Asks for a quote over PCR 17 and 18 with `extra_data`. `nonce` is fresh randomness; it need not be secret.
    ///
    /// # Errors
    /// [`Busy`] while one is under way.
    pub fn start(&mut self, extra_data: [u8; SHA256_SIZE], nonce: [u8; NONCE]) -> Result<(), Busy> {
        self.start_over(Subject::Pcrs(QUOTED), &extra_data, nonce)
    }

    /// Asks for an attestation of `subject` with up to [`MAX_EXTRA_DATA`] bytes of extra data.
    ///
    /// # Errors
    /// [`Busy`] while one is under way, or if there is more extra data than a TPM takes.
    pub fn start_over(
        &mut self,
        subject: Subject,
        extra_data: &[u8],
        nonce: [u8; NONCE],
    ) -> Result<(), Busy> {
        if self.is_busy() {
            return Err(Busy);
        }
        self.extra_data.get_mut(..extra_data.len()).ok_or(Busy)?.copy_from_slice(extra_data);
        (self.extra_length, self.subject) = (extra_data.len(), subject);
        self.nonce = nonce;
        self.restarts = 0;
        self.enter(Step::StartSession);
        Ok(())
    }

    /// Gives up, at once: on the way to a stop.
    pub fn abort(&mut self, tpm: &mut impl PolledTransport) {
        self.exchange.abort(tpm);
        self.enter(Step::Idle);
    }

    /// One step. Another job's command that is in flight on the same transport is waited for.
    pub fn poll(&mut self, tpm: &mut impl PolledTransport, ak: &AttestationKey) -> QuotePoll {
        if self.step == Step::Idle {
            return QuotePoll::Idle;
        }
        match self.advance(tpm, ak) {
            Ok(None) => QuotePoll::Pending,
            Ok(Some(quote)) => {
                self.enter(Step::Idle);
                QuotePoll::Done(quote)
            }
            Err(error) => self.fail(error),
        }
    }

    /// What comes after a part of the policy: a key that speaks of the host has them in the other order.
    const fn after(step: Step, ak: &AttestationKey) -> Step {
        match (step, ak.kind.is_host()) {
            (Step::StartSession, false) | (Step::PolicyLocality, true) => Step::PolicyPcr,
            (Step::StartSession, true) | (Step::PolicyPcr, false) => Step::PolicyLocality,
            (Step::PolicyPcr, true) | (Step::PolicyLocality, false) => Step::Attest,
            (other, _) => other,
        }
    }

    fn enter(&mut self, step: Step) {
        self.step = step;
        self.prepared = false;
    }

    /// Frees the session if there is one, and says how it goes on after that.
    fn fail(&mut self, error: QuoteError) -> QuotePoll {
        let changed = matches!(error, QuoteError::Command(_, TpmError::Refused(ResponseCode::PCR_CHANGED)));
        let after = if changed && self.restarts < MAX_RESTARTS {
            self.restarts = self.restarts.saturating_add(1);
            After::Restart
        } else {
            After::Report(if changed { QuoteError::NotThisLaunch } else { error })
        };
        match self.step {
            Step::Idle | Step::StartSession => self.finish(after),
            // The flush itself failed: nothing more can be done for the session.
            Step::Flush(after) => self.finish(after),
            Step::PolicyPcr | Step::PolicyLocality | Step::Attest => {
                self.enter(Step::Flush(after));
                QuotePoll::Pending
            }
        }
    }

    fn finish(&mut self, after: After) -> QuotePoll {
        match after {
            After::Restart => {
                self.enter(Step::StartSession);
                QuotePoll::Pending
            }
            After::Report(error) => {
                self.enter(Step::Idle);
                QuotePoll::Failed(error)
            }
        }
    }

    fn advance(
        &mut self,
        tpm: &mut impl PolledTransport,
        ak: &AttestationKey,
    ) -> Result<Option<Quote>, QuoteError> {
        let code = self.code();
        let failed = |error: TpmError| QuoteError::Command(code, error);
        if !self.prepared {
            self.prepare(ak).map_err(|error| failed(error.into()))?;
            self.prepared = true;
        }
        let Some(bytes) = self.exchange.poll(tpm).map_err(|error| failed(error.into()))? else {
            return Ok(None);
        };
        match self.step {
            Step::Idle => {}
            Step::StartSession => {
                self.session = decode_start_session(bytes).map_err(failed)?.0;
                self.enter(Self::after(self.step, ak));
            }
            Step::PolicyPcr => {
                let done = Response::plain(bytes).and_then(|r| Ok(r.finish()?));
                done.map_err(|error| wrong_pcr(error).unwrap_or(failed(error)))?;
                self.enter(Self::after(self.step, ak));
            }
            Step::PolicyLocality => {
                Response::plain(bytes).and_then(|r| Ok(r.finish()?)).map_err(failed)?;
                self.enter(Self::after(self.step, ak));
            }
            Step::Attest => {
                let extra_data = self.extra_data.get(..self.extra_length).unwrap_or(&[]);
                let (attest, signature) = match self.subject {
                    Subject::Pcrs(pcrs) => {
                        let (attest, signature) = decode_quote(bytes).map_err(failed)?;
                        check(attest, signature, extra_data, pcrs, ak)?;
                        (attest, signature)
                    }
                    Subject::Key => {
                        let (attest, signature) = certify::decode_certify(bytes).map_err(failed)?;
                        certify::check(attest, signature, extra_data, ak)?;
                        (attest, signature)
                    }
                };
                return Quote::new(attest, signature).map(Some).map_err(|error| failed(error.into()));
            }
            // Whether it worked or not, nothing more can be done for the session.
            Step::Flush(after) => return self.flushed(after),
        }
        Ok(None)
    }

    fn flushed(&mut self, after: After) -> Result<Option<Quote>, QuoteError> {
        match after {
            After::Restart => {
                self.enter(Step::StartSession);
                Ok(None)
            }
            After::Report(error) => Err(error),
        }
    }

    const fn code(&self) -> u32 {
        match self.step {
            Step::Idle | Step::StartSession => cc::START_AUTH_SESSION,
            Step::PolicyPcr => cc::POLICY_PCR,
            Step::PolicyLocality => cc::POLICY_LOCALITY,
            Step::Attest => self.subject.code(),
            Step::Flush(_) => cc::FLUSH_CONTEXT,
        }
    }

    fn prepare(&mut self, ak: &AttestationKey) -> Result<(), EncodeError> {
        let (session, nonce) = (self.session, self.nonce);
        let data = self.extra_data;
        let extra_data = data.get(..self.extra_length).unwrap_or(&[]);
        match self.step {
            Step::Idle => Ok(()),
            Step::StartSession => self.exchange.prepare(|buf| start_policy_session(buf, &nonce)),
            Step::PolicyPcr => {
                let digest = sha256(&[&ak.pcr17]);
                self.exchange.prepare(|buf| policy_pcr(buf, session, &SELECT_17, &digest))
            }
            Step::PolicyLocality => {
                self.exchange.prepare(|buf| policy_locality(buf, session, Locality::Two.attribute()))
            }
            Step::Attest => match self.subject {
                Subject::Pcrs(pcrs) => {
                    self.exchange.prepare(|buf| quote(buf, ak.handle, session, &nonce, pcrs, extra_data))
                }
                Subject::Key => {
                    self.exchange.prepare(|buf| certify::certify(buf, ak.handle, session, &nonce, extra_data))
                }
            },
            Step::Flush(_) => self.exchange.prepare(|buf| flush_context(buf, session)),
        }
    }
}

impl Default for QuoteJob {
    fn default() -> Self {
        Self::new()
    }
}

/// TPM2_PolicyPCR refuses a digest that is not the PCRs' with TPM_RC_VALUE.
fn wrong_pcr(error: TpmError) -> Option<QuoteError> {
    match error {
        TpmError::Refused(code) if code.base() == ResponseCode::VALUE => Some(QuoteError::NotThisLaunch),
        TpmError::Refused(_)
        | TpmError::Encode(_)
        | TpmError::Transport(_)
        | TpmError::Decode(_)
        | TpmError::Forged => None,
    }
}

/// TPM2_Quote (part 3, 18.4) with the key's own scheme, authorised by `policy`, which ends with it.
///
/// # Errors
/// [`EncodeError`] if `buf` is too short.
pub fn quote<'b>(
    buf: &'b mut [u8],
    key: u32,
    policy: u32,
    nonce: &[u8; NONCE],
    pcrs: u32,
    extra_data: &[u8],
) -> Result<&'b [u8], EncodeError> {
    let mut w = begin_tagged(buf, tag::SESSIONS, cc::QUOTE)?;
    w.u32(key)?;
    let area = w.len();
    w.u32(0)?;
    write_policy_entry(&mut w, policy, nonce)?;
    w.close_u32(area)?;
    w.tpm2b(extra_data)?;
    w.u16(alg::NULL)?;
    w.bytes(&selection(pcrs))?;
    end(w)
}

/// The answer to [`quote`]: TPMS_ATTEST and TPMT_SIGNATURE.
///
/// # Errors
/// As [`Response::plain`].
pub fn decode_quote(bytes: &[u8]) -> Result<(&[u8], &[u8]), TpmError> {
    decode_attested(bytes, 1)
}

/// TPMS_ATTEST and TPMT_SIGNATURE of an answer under so many authorisations; a password's entry has a session's shape.
pub(crate) fn decode_attested(bytes: &[u8], authorisations: usize) -> Result<(&[u8], &[u8]), TpmError> {
    let mut r = Response::with_sessions(bytes)?;
    let size = usize::try_from(r.u32()?).map_err(|_| DecodeError::Truncated)?;
    let mut parameters = Reader::new(r.take(size)?);
    for _ in 0..authorisations {
        read_policy_entry(&mut r)?;
    }
    r.finish()?;
    let attest = parameters.tpm2b()?;
    Ok((attest, parameters.rest()))
}

/// Checks that the attestation is what was asked for, by the key that was asked.
fn check(
    attest: &[u8],
    signature: &[u8],
    extra_data: &[u8],
    pcrs: u32,
    ak: &AttestationKey,
) -> Result<(), QuoteError> {
    let parsed = QuoteAttest::parse(attest).map_err(|error| QuoteError::Command(cc::QUOTE, error.into()))?;
    let asked = parsed.extra_data == extra_data
        && parsed.qualified_signer == ak.qualified_name()
        && parsed.selection.marshals_to(&selection(pcrs))
        && parsed.pcr_digest.len() == SHA256_SIZE;
    if !asked {
        return Err(QuoteError::OtherAttestation);
    }
    if ak.signs(attest, signature) { Ok(()) } else { Err(QuoteError::BadSignature) }
}
