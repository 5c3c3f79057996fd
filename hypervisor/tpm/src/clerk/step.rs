//! The clerk's steps: one command each, and what follows from its answer.

use super::order::{EkKind, Errand, ErrandError};
use super::tidy::Tidy;
use super::{Clerk, MAX_ANSWER};
use crate::attestation::{AkKind, AttestationKey};
use crate::codec::{DecodeError, EncodeError};
use crate::command::{flush_context, get_capability};
use crate::constant::{capability, cc, handle, property};
use crate::credential::{
    activate_parameters, activation, decode_nv_read, decode_nv_read_public, decode_pcr_read_many,
    decode_policy_secret, nv_read, nv_read_public, pcr_read_many, policy_secret, read_activated,
};
use crate::permanent::Permanent;
use crate::primary::{create_with_password, decode_created_with_password};
use crate::public::{PublicArea, Template};
use crate::response::{Response, TpmError, decode_property};
use crate::session::{Entity, HmacSession, MAX_PARAMETERS, decode_start_session, start_policy_session};
use crate::transport::PolledTransport;

/// Bytes of NV memory that every PC client TPM reads at once.
const NV_CHUNK: u32 = 512;

/// What is done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Looks for what must be done before the errand itself: no command.
    Begin,
    /// Does it.
    Tidy(Tidy),
    /// The attestation key that nobody needs now is flushed.
    Evict,
    MakeAk(AkKind),
    MakeEk(EkKind),
    /// A quote, which is a job of its own.
    Quote,
    ReadPcrs,
    /// Whether there is something at this NV index, and how much.
    FindCertificate(u32),
    ReadCertificate(u32),
    /// Whether anything of the TPM's own state forbids an activation.
    LookForLockout,
    StartPolicy,
    PolicySecret,
    Activate,
    FlushSession,
    FlushEk,
    /// The key's public part is the answer: no command.
    Tell,
    Done,
}

impl Step {
    /// TPM_CC of its command.
    const fn code(self) -> u32 {
        match self {
            Self::Tidy(what) => what.code(),
            Self::Begin | Self::Evict | Self::FlushSession | Self::FlushEk | Self::Tell | Self::Done => {
                cc::FLUSH_CONTEXT
            }
            Self::MakeAk(_) | Self::MakeEk(_) => cc::CREATE_PRIMARY,
            Self::Quote => cc::QUOTE,
            Self::ReadPcrs => cc::PCR_READ,
            Self::FindCertificate(_) => cc::NV_READ_PUBLIC,
            Self::ReadCertificate(_) => cc::NV_READ,
            Self::LookForLockout => cc::GET_CAPABILITY,
            Self::StartPolicy => cc::START_AUTH_SESSION,
            Self::PolicySecret => cc::POLICY_SECRET,
            Self::Activate => cc::ACTIVATE_CREDENTIAL,
        }
    }
}

impl EkKind {
    fn template(self) -> Result<Template, EncodeError> {
        match self {
            Self::Rsa => Template::rsa_endorsement_key(),
            Self::Ecc => Template::ecc_endorsement_key(),
        }
    }
}

impl Clerk {
    /// One step: what comes next once its answer is there.
    pub(super) fn advance(
        &mut self,
        tpm: &mut impl PolledTransport,
        errand: &Errand,
        salted: &mut HmacSession,
    ) -> Result<Option<Step>, ErrandError> {
        let step = self.step;
        if step == Step::Tell {
            return self.tell(errand).map(Some);
        }
        let failed = |error: TpmError| ErrandError::Command(step.code(), error);
        if !self.prepared {
            self.prepare(errand, salted).map_err(|error| failed(error.into()))?;
            self.prepared = true;
        }
        let Some(bytes) = self.exchange.poll(tpm).map_err(|error| failed(error.into()))? else {
            return Ok(None);
        };
        let next = match step {
            Step::Evict => {
                self.other = None;
                // One that the TPM says it does not have is gone, too.
                errand.key().map_or(Step::Done, Step::MakeAk)
            }
            Step::MakeAk(kind) => {
                let (key, created) = decode_created_with_password(bytes).map_err(failed)?;
                self.stray = Some(key);
                let checked = AttestationKey::check(kind, key, created.public, self.ak.pcr17);
                self.other = Some(checked.map_err(ErrandError::NotTheTemplate)?);
                self.stray = None;
                Self::main(errand)
            }
            Step::MakeEk(kind) => {
                let (key, created) = decode_created_with_password(bytes).map_err(failed)?;
                self.stray = Some(key);
                let template = kind.template().map_err(|error| failed(error.into()))?;
                let public = template.check(created.public).map_err(ErrandError::NotTheTemplate)?;
                self.stray_name = public.name();
                self.out_len = put(&mut self.out, &public).ok_or(ErrandError::NoKey)?;
                if errand.is_activation() { Step::StartPolicy } else { Step::FlushEk }
            }
            Step::LookForLockout => {
                let told = decode_property(bytes, property::PERMANENT).map_err(failed)?;
                may_activate(told, errand)?
            }
            Step::StartPolicy | Step::PolicySecret | Step::Activate => {
                return self.activate(step, salted).map(Some);
            }
            Step::ReadPcrs | Step::FindCertificate(_) | Step::ReadCertificate(_) => {
                return self.read(step, errand).map(Some);
            }
            Step::FlushSession | Step::FlushEk => {
                Response::plain(bytes).and_then(|r| Ok(r.finish()?)).map_err(failed)?;
                self.flushed(step);
                self.cleaning()
            }
            Step::Begin | Step::Tidy(_) | Step::Quote | Step::Tell | Step::Done => Step::Done,
        };
        Ok(Some(next))
    }

    /// Takes what the commands of an activation brought.
    fn activate(&mut self, step: Step, salted: &mut HmacSession) -> Result<Step, ErrandError> {
        let failed = |error: TpmError| ErrandError::Command(step.code(), error);
        let bytes = self.exchange.received();
        if step == Step::StartPolicy {
            self.session = Some(decode_start_session(bytes).map_err(failed)?.0);
            return Ok(Step::PolicySecret);
        }
        if step == Step::PolicySecret {
            decode_policy_secret(bytes).map_err(failed)?;
            return Ok(Step::Activate);
        }
        let call = activation(&[], self.session.unwrap_or_default(), &[]);
        let opened = salted.open(self.exchange.received_mut(), &call).map_err(failed)?;
        let content = read_activated(opened.parameters).map_err(failed)?;
        self.session = None; // it ended with the command
        self.out.fill(0);
        self.out.get_mut(..content.len()).ok_or(ErrandError::NoKey)?.copy_from_slice(content);
        self.out_len = content.len();
        Ok(Step::FlushEk)
    }

    /// Takes what was read of registers and NV memory.
    fn read(&mut self, step: Step, errand: &Errand) -> Result<Step, ErrandError> {
        let failed = |error: TpmError| ErrandError::Command(step.code(), error);
        let bytes = self.exchange.received();
        match step {
            Step::ReadPcrs => {
                let out = &mut self.out;
                let read = decode_pcr_read_many(bytes, self.wanted, |pcr, value| {
                    let (slots, _) = out.as_chunks_mut::<32>();
                    let slot = usize::try_from(pcr).ok().and_then(|pcr| slots.get_mut(pcr));
                    slot.into_iter().for_each(|slot| *slot = *value);
                });
                self.wanted &= !read.map_err(failed)?;
                self.out_len = VALUES;
                let Errand::Quote { pcrs, .. } = errand else { return Err(ErrandError::NoKey) };
                match self.wanted {
                    0 if self.values_fit(*pcrs) => Ok(Step::Done),
                    0 => Err(ErrandError::Changed),
                    _ => Ok(Step::ReadPcrs),
                }
            }
            Step::FindCertificate(index) => {
                let size = decode_nv_read_public(bytes, index).map_err(failed)?;
                self.wanted = size.map_or(0, u32::from);
                if usize::from(size.unwrap_or(0)) > MAX_ANSWER {
                    return Err(failed(DecodeError::Length(self.wanted).into()));
                }
                Ok(if self.wanted == 0 { Step::Done } else { Step::ReadCertificate(index) })
            }
            Step::ReadCertificate(index) => {
                let data = decode_nv_read(bytes, chunk(self.wanted)).map_err(failed)?;
                let end = self.out_len.saturating_add(data.len());
                self.out.get_mut(self.out_len..end).ok_or(ErrandError::NoKey)?.copy_from_slice(data);
                self.out_len = end;
                self.wanted = self.wanted.saturating_sub(u32::from(chunk(self.wanted)));
                Ok(if self.wanted == 0 { Step::Done } else { Step::ReadCertificate(index) })
            }
            Step::Begin
            | Step::Tidy(_)
            | Step::Evict
            | Step::MakeAk(_)
            | Step::MakeEk(_)
            | Step::Quote
            | Step::LookForLockout
            | Step::StartPolicy
            | Step::PolicySecret
            | Step::Activate
            | Step::FlushSession
            | Step::FlushEk
            | Step::Tell
            | Step::Done => Ok(Step::Done),
        }
    }

    /// The TPM was told to flush it: whatever it answered, there is no second try.
    pub(super) const fn flushed(&mut self, step: Step) {
        if matches!(step, Step::FlushSession) {
            self.session = None;
        }
        if matches!(step, Step::FlushEk) {
            self.stray = None;
        }
    }

    /// The answer is the key's public part.
    fn tell(&mut self, errand: &Errand) -> Result<Step, ErrandError> {
        let key = errand.key().and_then(|kind| self.loaded(kind)).ok_or(ErrandError::NoKey)?;
        let public = key.public;
        self.out_len = put(&mut self.out, &public).ok_or(ErrandError::NoKey)?;
        Ok(Step::Done)
    }

    fn prepare(&mut self, errand: &Errand, salted: &mut HmacSession) -> Result<(), EncodeError> {
        let (wanted, stray) = (self.wanted, self.stray.unwrap_or_default());
        let session = self.session.unwrap_or_default();
        let endorsement = handle::ENDORSEMENT;
        match self.step {
            Step::Evict => {
                let other = self.other.map_or(0, |key| key.handle);
                self.exchange.prepare(|buf| flush_context(buf, other))
            }
            Step::MakeAk(kind) => {
                let template = kind.template(&self.ak.pcr17)?;
                self.exchange.prepare(|buf| create_with_password(buf, endorsement, &template, &[]))
            }
            Step::MakeEk(kind) => {
                let template = kind.template()?;
                self.exchange.prepare(|buf| create_with_password(buf, endorsement, &template, &[]))
            }
            Step::ReadPcrs => self.exchange.prepare(|buf| pcr_read_many(buf, wanted)),
            Step::FindCertificate(index) => self.exchange.prepare(|buf| nv_read_public(buf, index)),
            Step::ReadCertificate(index) => {
                let offset = u16::try_from(self.out_len).map_err(|_| EncodeError::TooLong)?;
                self.exchange.prepare(|buf| nv_read(buf, index, offset, chunk(wanted)))
            }
            Step::LookForLockout => self
                .exchange
                .prepare(|buf| get_capability(buf, capability::PROPERTIES, property::PERMANENT, 1)),
            Step::StartPolicy => {
                let nonce = self.derived(b"policy session");
                self.exchange.prepare(|buf| start_policy_session(buf, &nonce))
            }
            Step::PolicySecret => self.exchange.prepare(|buf| policy_secret(buf, session)),
            Step::Activate => {
                let Errand::Activate { key, credential, secret, .. } = errand else { return Ok(()) };
                let Some(key) = self.loaded(*key) else { return Ok(()) };
                let entities = [Entity::Key(key.handle, key.name), Entity::Key(stray, self.stray_name)];
                let mut buf = [0; MAX_PARAMETERS];
                let parameters = activate_parameters(&mut buf, credential.bytes(), secret.bytes())?;
                let call = activation(&entities, session, parameters);
                let nonce = self.derived(b"activation");
                self.exchange.prepare(|buf| salted.seal(buf, &call, nonce))
            }
            Step::FlushSession => self.exchange.prepare(|buf| flush_context(buf, session)),
            Step::FlushEk => self.exchange.prepare(|buf| flush_context(buf, stray)),
            Step::Begin | Step::Tidy(_) | Step::Quote | Step::Tell | Step::Done => Ok(()),
        }
    }
}

/// How an activation goes on, or why not, by what the TPM tells (TPMA_PERMANENT). A TPM that does not tell is asked to
/// do it.
fn may_activate(told: Option<u32>, errand: &Errand) -> Result<Step, ErrandError> {
    let Errand::Activate { ek, .. } = errand else { return Err(ErrandError::NoKey) };
    match Permanent(told.unwrap_or_default()) {
        permanent if permanent.is_in_lockout() => Err(ErrandError::InLockout),
        permanent if permanent.has_endorsement_value() => Err(ErrandError::EndorsementValue),
        _ => Ok(Step::MakeEk(*ek)),
    }
}

/// Bytes of all 24 registers' values.
const VALUES: usize = 24 * 32;

/// Bytes that are read at once of so many that are left.
fn chunk(left: u32) -> u16 {
    u16::try_from(left.min(NV_CHUNK)).unwrap_or(u16::MAX)
}

/// Makes a public area the answer.
fn put(out: &mut [u8], public: &PublicArea) -> Option<usize> {
    let bytes = public.bytes();
    out.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(bytes.len())
}
