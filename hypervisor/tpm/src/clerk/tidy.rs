//! What the clerk does before an errand, if one before it failed: flushes what the TPM holds that nobody knows of, and
//! starts another salted session in place of one that is out of step.
//!
//! An answer that is lost or garbled on the bus may have been that of a command which made a key or a session: its handle is
//! never known, and a PC client TPM has three places of each. What the TPM tells of its handles is not protected;
//! a forger can have us flush what we do not use, or leave something, and no more.

use super::Clerk;
use super::order::{Errand, ErrandError};
use super::step::Step;
use crate::codec::{DecodeError, EncodeError};
use crate::command::{flush_context, get_capability, in_range};
use crate::constant::{alg, capability, cc, handle};
use crate::crypto::session_salt;
use crate::primary::{create_with_password, decode_created_with_password};
use crate::public::Template;
use crate::response::{Response, TpmError, decode_first_handle};
use crate::secret::Secret;
use crate::session::{HmacSession, decode_start_session, start_hmac_session};
use crate::transport::PolledTransport;

/// Handles that are looked at before one errand, at most: a TPM that names more is not to be believed.
const MAX_LOOKED_AT: u8 = 64;
/// The part of a handle that is its number.
const NUMBER: u32 = 0x00ff_ffff;

/// What is done before an errand: one command each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tidy {
    /// Which handle the TPM holds from this one on.
    Look(u32),
    /// One that nobody knows is flushed.
    Flush(u32),
    /// The key that another session is salted to.
    MakeSaltKey,
    /// The session, salted to the key at this handle.
    StartSession(u32),
}

impl Tidy {
    /// TPM_CC of its command.
    pub(super) const fn code(self) -> u32 {
        match self {
            Self::Look(_) => cc::GET_CAPABILITY,
            Self::Flush(_) => cc::FLUSH_CONTEXT,
            Self::MakeSaltKey => cc::CREATE_PRIMARY,
            Self::StartSession(_) => cc::START_AUTH_SESSION,
        }
    }
}

impl Clerk {
    /// What is to be done next before the errand, or how that itself begins.
    pub(super) fn begin(&self, errand: &Errand, salted: &HmacSession) -> Step {
        if self.is_untidy {
            Step::Tidy(Tidy::Look(handle::LOADED_SESSIONS))
        } else if errand.needs_session() && salted.is_lost() {
            Step::Tidy(Tidy::MakeSaltKey)
        } else {
            self.first(errand)
        }
    }

    /// One step of what is done before the errand: what comes next once its answer is there.
    pub(super) fn tidy(
        &mut self,
        what: Tidy,
        tpm: &mut impl PolledTransport,
        salted: &mut HmacSession,
    ) -> Result<Option<Step>, ErrandError> {
        let failed = |error: TpmError| ErrandError::Command(what.code(), error);
        if !self.prepared {
            self.prepare_to(what).map_err(|error| failed(error.into()))?;
            self.prepared = true;
        }
        if self.exchange.poll(tpm).map_err(|error| failed(error.into()))?.is_none() {
            return Ok(None);
        }
        match what {
            Tidy::Look(first) => {
                let found = decode_first_handle(self.exchange.received()).map_err(failed)?;
                Ok(Some(self.look(first, found, salted)))
            }
            Tidy::Flush(found) => match Response::plain(self.exchange.received()) {
                // It is gone, or cannot be flushed: whichever it is, there is no second try.
                Ok(_) | Err(TpmError::Refused(_)) => Ok(Some(self.look_after(found))),
                Err(other) => Err(failed(other)),
            },
            Tidy::MakeSaltKey => self.salt().map(Some),
            Tidy::StartSession(_) => {
                let (session, nonce) = decode_start_session(self.exchange.received()).map_err(failed)?;
                let (salt, _) = self.salt.take().ok_or(ErrandError::SessionLost)?;
                *salted = HmacSession::new(session, &salt, self.derived(SESSION), nonce);
                // The salt key, and the session that was lost.
                self.is_untidy = true;
                Ok(Some(Step::Begin))
            }
        }
    }

    fn prepare_to(&mut self, what: Tidy) -> Result<(), EncodeError> {
        match what {
            Tidy::Look(first) => {
                self.exchange.prepare(|buf| get_capability(buf, capability::HANDLES, first, 1))
            }
            Tidy::Flush(found) => self.exchange.prepare(|buf| flush_context(buf, found)),
            Tidy::MakeSaltKey => {
                let (template, unique) = (Template::session_salt()?, self.derived(b"salt key"));
                self.exchange.prepare(|buf| create_with_password(buf, handle::NULL, &template, &unique))
            }
            Tidy::StartSession(key) => {
                let nonce = self.derived(SESSION);
                let Some((_, sent)) = &self.salt else { return Err(EncodeError::Full) };
                self.exchange.prepare(|buf| start_hmac_session(buf, key, sent, &nonce))
            }
        }
    }

    /// How it goes on after the TPM has told which handle it holds from `first` on.
    fn look(&mut self, first: u32, found: Option<u32>, salted: &HmacSession) -> Step {
        let range = if first < handle::TRANSIENT { handle::LOADED_SESSIONS } else { handle::TRANSIENT };
        self.looked_at = self.looked_at.saturating_add(1);
        let is_next = |found: &u32| in_range(*found, range) && found & NUMBER >= first & NUMBER;
        match found.filter(|found| is_next(found) && self.looked_at < MAX_LOOKED_AT) {
            Some(found) if self.is_known(found, salted) => self.look_after(found),
            Some(found) => Step::Tidy(Tidy::Flush(found)),
            None if range == handle::LOADED_SESSIONS => Step::Tidy(Tidy::Look(handle::TRANSIENT)),
            None => {
                self.is_untidy = false;
                Step::Begin
            }
        }
    }

    /// Looks on behind a handle. Those of sessions of either kind are counted together, and asked for as HMAC sessions.
    fn look_after(&self, found: u32) -> Step {
        let next = if found < handle::TRANSIENT {
            handle::LOADED_SESSIONS | found.saturating_add(1) & NUMBER
        } else {
            found.saturating_add(1)
        };
        Step::Tidy(Tidy::Look(next))
    }

    /// Whether something at this handle is in use.
    fn is_known(&self, found: u32, salted: &HmacSession) -> bool {
        let is_key = found == self.ak.handle || self.other.as_ref().is_some_and(|key| key.handle == found);
        is_key || (found == salted.handle() && !salted.is_lost())
    }

    /// Takes the salt key that was made.
    fn salt(&mut self) -> Result<Step, ErrandError> {
        let failed = |error: TpmError| ErrandError::Command(cc::CREATE_PRIMARY, error);
        let (key, created) = decode_created_with_password(self.exchange.received()).map_err(failed)?;
        let template = Template::session_salt().map_err(|error| failed(error.into()))?;
        template.check(created.public).map_err(ErrandError::NotTheTemplate)?;
        let point = template.point(created.public).map_err(ErrandError::NotTheTemplate)?;
        let scalar = Secret::new(self.derived(b"salt"));
        let off_curve = ErrandError::NotTheTemplate(DecodeError::Value(u32::from(alg::ECC)));
        self.salt = Some(session_salt(&point, &scalar).ok_or(off_curve)?);
        Ok(Step::Tidy(Tidy::StartSession(key)))
    }
}

/// What our nonce of another session is derived for.
const SESSION: &[u8] = b"salted session";
