//! The keys of this launch, and the TPM behind the guests' hypercalls.

use alloc::vec::Vec;

use dolmen_abi::{AkId, EkId, LaunchFacts, MAX_WAITING};
use dolmen_drtm::{Algorithm, DigestSet};
use dolmen_machine::{cpu, cpus};
use dolmen_tpm::Secret;
use dolmen_tpm::attestation::{AkKind, AttestationKey};
use dolmen_tpm::clerk::{self, Answer, Clerk, ClerkPoll, EkKind, Parcel};
use dolmen_tpm::drbg::Drbg;
use dolmen_tpm::keys::{self, Provisioned, Setup};
use dolmen_tpm::policy::QUOTED;
use dolmen_tpm::reseed::{ReseedJob, ReseedPoll};
use dolmen_tpm::session::HmacSession;
use dolmen_vm::manifest::SealingRoot;
use dolmen_vm::service::{
    self, Errand, ErrandAnswer, ErrandDesk, GuestSlot, NoEntropy, QuoteDesk, QuotePoll, SignedQuote, TpmBusy,
    TpmService,
};

use crate::door::Published;
use crate::host::Host;
use crate::record::{Meter, Tpm};
use crate::stop::Reason;

/// 64-bit words of the processor's randomness in one seed.
const SEED_WORDS: usize = 8;

/// What the TPM gave to this launch.
pub(crate) struct Trust {
    ak: AttestationKey,
    /// TPM2B_PUBLIC of the attestation key.
    ak_public: Vec<u8>,
    session: HmacSession,
    drbg: Drbg,
    root: Option<service::Secret<[u8; 32]>>,
    /// PCR 18 of the SHA-256 bank, as it was measured and read back.
    manifest: [u8; 32],
}

impl Trust {
    /// What secrets are sealed to that any guest of this manifest may open.
    pub(crate) const fn manifest(&self) -> [u8; 32] {
        self.manifest
    }

    /// The sealing root, once.
    pub(crate) const fn take_root(&mut self) -> Option<service::Secret<[u8; 32]>> {
        self.root.take()
    }

    /// What the guests may read, once.
    pub(crate) fn publish(&mut self, event_log: Vec<u8>) -> Published {
        Published { ak_public: core::mem::take(&mut self.ak_public), event_log }
    }
}

/// Derives the keys that belong to the PCR 17 of this launch; the sealing root is the one that the manifest names, if it does.
pub(crate) fn derive(host: &mut Host, root: Option<SealingRoot>) -> Result<Trust, Reason> {
    let (pcr17, manifest) = (sha256(&host.meter.pcr17)?, sha256(&host.meter.pcr18)?);
    let entropy = processor_entropy();
    let provisioned = root.map(|root| Provisioned { handle: root.handle, name: root.name });
    let setup = Setup { pcr17, cpu_entropy: entropy.expose(), provisioned };
    let keys = keys::set_up(&mut host.meter.tpm, &setup)?;
    let public = keys.ak.public.bytes();
    let length = u16::try_from(public.len()).map_err(|_| Reason::OutOfMemory("the key's public part"))?;
    let mut ak_public = length.to_be_bytes().to_vec();
    ak_public.extend_from_slice(public);
    log::info!(target: "measure", "keys derived ak={}", crate::measure::Hex(&keys.ak.name));
    if keys.permanent.is_in_lockout() {
        let remedy = keys.permanent.lockout_remedy();
        log::warn!(target: "measure", "the TPM is in lockout, no key can be enrolled: {remedy}");
    }
    let root = service::Secret::new(*keys.root.expose());
    Ok(Trust { ak: keys.ak, ak_public, session: keys.session, drbg: keys.drbg, root: Some(root), manifest })
}

/// A register's value in the SHA-256 bank.
fn sha256(pcr: &DigestSet) -> Result<[u8; 32], Reason> {
    let value = pcr.get(Algorithm::Sha256).and_then(|value| value.try_into().ok());
    value.ok_or(Reason::Bank(Algorithm::Sha256.id()))
}

/// What the processor has of randomness: RDRAND where it is, and the jitter of the time-stamp counter between
/// reads in any case. The TPM's own randomness is mixed in by whoever uses it.
fn processor_entropy() -> Secret<[u8; SEED_WORDS * 8]> {
    let mut seed = Secret::new([0; SEED_WORDS * 8]);
    for word in seed.expose_mut().chunks_exact_mut(8) {
        let value = cpu::read_random().unwrap_or_default() ^ cpu::read_tsc().rotate_left(32);
        word.copy_from_slice(&value.to_le_bytes());
    }
    seed
}

/// The TPM as the hypercall service sees it.
pub(crate) struct TpmDesk {
    tpm: Tpm,
    trust: Trust,
    clerk: Clerk,
    reseed: ReseedJob,
    /// The guests' generators, in manifest order.
    generators: Vec<Drbg>,
    desk: QuoteDesk,
    errands: ErrandDesk,
    /// The clerk's errand is ours: another session.
    is_renewing: bool,
    form: Form,
}

/// What becomes of the answer to the clerk's errand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// A quote with values, or bytes as they are.
    Plain,
    /// Bytes with their size before them.
    Sized,
    /// A key's attestation of itself.
    Certified,
}

impl Form {
    const fn of(errand: &Errand) -> Self {
        match errand {
            Errand::KeyPublic(_) | Errand::EndorsementKey(_) => Self::Sized,
            Errand::Certify { .. } => Self::Certified,
            Errand::HostQuote { .. }
            | Errand::Certificate(_)
            | Errand::Chain(_)
            | Errand::Activate { .. } => Self::Plain,
        }
    }
}

impl TpmDesk {
    /// Puts the TPM behind the service.
    pub(crate) fn new(meter: Meter, mut trust: Trust) -> Self {
        Self {
            tpm: meter.tpm,
            clerk: Clerk::new(trust.ak),
            generators: (0..MAX_WAITING).map(|_| trust.drbg.child()).collect(),
            trust,
            reseed: ReseedJob::new(),
            desk: QuoteDesk::new(),
            errands: ErrandDesk::new(),
            is_renewing: false,
            form: Form::Plain,
        }
    }

    /// Moves on what is under way at the TPM: a reseed that is due, and the quotes of guests that may be busy or
    /// asleep meanwhile. Called on the way round the exit loop.
    pub(crate) fn work(&mut self) {
        let entropy = if self.trust.drbg.wants_reseed() { Some(processor_entropy()) } else { None };
        let entropy: &[u8] = entropy.as_ref().map_or(&[], |seed| seed.expose());
        match self.reseed.poll(&mut self.tpm, &mut self.trust.session, &mut self.trust.drbg, entropy) {
            ReseedPoll::Idle | ReseedPoll::Pending | ReseedPoll::Done => {}
            ReseedPoll::Failed(error) => {
                log::warn!(target: "serve", "no fresh seed from the TPM: {error:?}");
            }
        }
        self.renew();
        if self.desk.is_busy() || self.errands.is_busy() {
            service::serve_waiting(self);
        }
    }

    /// Has the clerk start another session if a reseed waits for one that is in step with the TPM. Guests wait meanwhile
    /// as they do for one another.
    fn renew(&mut self) {
        if self.is_renewing {
            match self.clerk.poll(&mut self.tpm, &mut self.trust.session) {
                ClerkPoll::Pending => return,
                ClerkPoll::Idle | ClerkPoll::Done(_) => {}
                ClerkPoll::Failed(error) => {
                    log::warn!(target: "serve", "no new session with the TPM: {error:?}");
                    self.trust.drbg.postpone_reseed();
                }
            }
            self.is_renewing = false;
        } else if self.trust.session.is_lost() && self.trust.drbg.wants_reseed() && !self.clerk.is_busy() {
            let seed = self.trust.drbg.renewal();
            self.is_renewing = self.clerk.start(clerk::Errand::Renew, seed).is_ok();
        }
    }

    fn send(&mut self, errand: clerk::Errand) -> Result<(), TpmBusy> {
        if self.clerk.is_busy() {
            return Err(TpmBusy);
        }
        let seed = Secret::new(self.trust.drbg.draw().map_err(|_| TpmBusy)?);
        self.clerk.start(errand, seed).map_err(|_| TpmBusy)
    }
}

impl TpmService for TpmDesk {
    fn random(&mut self, guest: GuestSlot, out: &mut [u8]) -> Result<(), NoEntropy> {
        let own = self.generators.get_mut(guest.index()).ok_or(NoEntropy)?;
        self.trust.drbg.fill_from(own, out).map_err(|_| NoEntropy)
    }

    fn start_quote(&mut self, key: AkId, extra_data: [u8; 32]) -> Result<(), TpmBusy> {
        let key = attestation_key(key).ok_or(TpmBusy)?;
        let data = Parcel::new(&extra_data).ok_or(TpmBusy)?;
        self.send(clerk::Errand::Quote { key, pcrs: QUOTED, data, with_values: false })
    }

    fn poll_quote(&mut self, into: &mut SignedQuote) -> QuotePoll {
        match self.clerk.poll(&mut self.tpm, &mut self.trust.session) {
            ClerkPoll::Pending => QuotePoll::Pending,
            ClerkPoll::Done(Answer::Quote(quote)) if into.set(quote.attest(), quote.signature()) => {
                QuotePoll::Done
            }
            ClerkPoll::Idle | ClerkPoll::Done(_) => QuotePoll::Failed(0),
            ClerkPoll::Failed(error) => {
                log::warn!(target: "serve", "the TPM gave no quote: {error:?}");
                QuotePoll::Failed(error.response_code())
            }
        }
    }

    fn start_errand(&mut self, errand: &Errand) -> Result<(), TpmBusy> {
        self.send(order(errand).ok_or(TpmBusy)?)?;
        self.form = Form::of(errand);
        Ok(())
    }

    fn poll_errand(&mut self, into: &mut ErrandAnswer) -> QuotePoll {
        let is_set = match self.clerk.poll(&mut self.tpm, &mut self.trust.session) {
            ClerkPoll::Pending => return QuotePoll::Pending,
            ClerkPoll::Done(Answer::Quote(quote)) if self.form == Form::Certified => {
                into.set_certified(quote.attest(), quote.signature())
            }
            ClerkPoll::Done(Answer::Quote(quote)) => {
                into.set_host_quote(quote.attest(), quote.signature(), self.clerk.answer())
            }
            ClerkPoll::Done(Answer::Bytes) => {
                let bytes = self.clerk.answer();
                let size = u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes();
                into.set(&[if self.form == Form::Sized { &size } else { &[] }, bytes])
            }
            ClerkPoll::Idle => false,
            ClerkPoll::Failed(error) => {
                log::warn!(target: "serve", "the TPM did no errand: {error:?}");
                return QuotePoll::Failed(error.response_code());
            }
        };
        if is_set { QuotePoll::Done } else { QuotePoll::Failed(0) }
    }

    fn errands(&mut self) -> &mut ErrandDesk {
        &mut self.errands
    }

    fn desk(&mut self) -> &mut QuoteDesk {
        &mut self.desk
    }
}

/// What the guests' evidence says of this launch.
pub(crate) fn facts(said: u32) -> LaunchFacts {
    let mut facts = LaunchFacts::from_bits_retain(said) | LaunchFacts::SMM_NOT_ISOLATED;
    facts.set(LaunchFacts::PROCESSORS_PARKED, cpus::count() == 1);
    facts.set(LaunchFacts::DEBUG, cfg!(debug_assertions) || cfg!(feature = "self-check"));
    facts.set(LaunchFacts::NO_PROCESSOR_RANDOM, !cpu::has_random());
    facts
}

const fn attestation_key(key: AkId) -> Option<AkKind> {
    match key {
        AkId::GUEST_ECDSA => Some(AkKind::GuestEcdsa),
        AkId::GUEST_RSA => Some(AkKind::GuestRsa),
        AkId::HOST_ECDSA => Some(AkKind::HostEcdsa),
        AkId::HOST_RSA => Some(AkKind::HostRsa),
        _ => None,
    }
}

const fn endorsement_key(key: EkId) -> Option<EkKind> {
    match key {
        EkId::RSA => Some(EkKind::Rsa),
        EkId::ECC => Some(EkKind::Ecc),
        _ => None,
    }
}

/// A guest's errand in the clerk's words. Only a key that speaks of the host signs what somebody chose.
fn order(errand: &Errand) -> Option<clerk::Errand> {
    Some(match errand {
        Errand::HostQuote { key, pcrs, nonce } => clerk::Errand::Quote {
            key: attestation_key(*key).filter(|key| key.is_host())?,
            pcrs: *pcrs,
            data: Parcel::new(nonce.get())?,
            with_values: true,
        },
        Errand::Certify { key, nonce } => clerk::Errand::Certify {
            key: attestation_key(*key).filter(|key| key.is_host())?,
            data: Parcel::new(nonce.get())?,
        },
        Errand::KeyPublic(key) => clerk::Errand::Public(attestation_key(*key)?),
        Errand::EndorsementKey(key) => clerk::Errand::EndorsementKey(endorsement_key(*key)?),
        Errand::Certificate(key) => clerk::Errand::Certificate(endorsement_key(*key)?),
        Errand::Chain(part) => clerk::Errand::Chain(*part),
        Errand::Activate { key, ek, credential, secret } => clerk::Errand::Activate {
            key: attestation_key(*key)?,
            ek: endorsement_key(*ek)?,
            credential: Parcel::new(credential.get())?,
            secret: Parcel::new(secret.get())?,
        },
    })
}
