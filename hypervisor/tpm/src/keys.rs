//! The keys of one launch: session, random seed, attestation key, sealing root.
//!
//! Input: a TPM at locality 2, the PCR 17 that this launch must have, and the processor's randomness.
//! Promise: every key was made by the TPM to the exact template, under the policy that only this PCR 17 at
//! locality 2 meets; the session they were made through is salted to a key of this launch; the sealing
//! root crossed the bus encrypted only. Nothing is stored: the same launch gets the same keys again.
//! Failure: any deviation is an error, and nothing half made is handed out.
//! Specification: TPM 2.0 library, part 1, 17 to 21; the reasons are in docs/tpm.md.

use crate::attestation::{AkKind, AttestationKey};
use crate::codec::DecodeError;
use crate::command::{PcrIndex, get_random};
use crate::constant::{ResponseCode, alg, cc, handle};
use crate::crypto::{Point, SHA256_SIZE, session_salt, sha256};
use crate::drbg::Drbg;
use crate::error::{During, KeyError, KeyRole};
use crate::exchange::Exchange;
use crate::measure::read_banks;
use crate::permanent::Permanent;
use crate::policy::{SELECT_17, launch_policy};
use crate::primary::{
    Created, create_parameters, create_with_password, decode_created, decode_created_with_password,
    decode_hmac, decode_read_public, hmac_parameters, read_public,
};
use crate::public::{Name, PublicArea, Template};
use crate::response::{Response, TpmError, decode_random, read_random};
use crate::secret::Secret;
use crate::session::{
    Call, Entity, HmacSession, decode_start_session, policy_locality, policy_pcr, start_hmac_session,
    start_policy_session,
};
use crate::tis::Locality;
use crate::transport::Transport;

/// What the sealing root is the HMAC of.
pub const ROOT_LABEL: &[u8] = b"dolmen-sealing-root-1";
/// Bytes of the processor's randomness that make the session's salt safe on their own.
pub const CPU_ENTROPY: usize = 32;
/// Bytes asked of TPM2_GetRandom at once; every TPM gives that many.
pub(crate) const RANDOM: u16 = 32;
const RANDOM_PARAMETERS: [u8; 2] = RANDOM.to_be_bytes();

/// A persistent key that serves as sealing root where the owner hierarchy has an authorisation value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Provisioned {
    /// Its persistent handle.
    pub handle: u32,
    /// The Name that the manifest pins.
    pub name: Name,
}

/// What the keys of a launch are made from.
#[derive(Clone, Copy, Debug)]
pub struct Setup<'a> {
    /// The value that PCR 17 of the SHA-256 bank must have.
    pub pcr17: [u8; SHA256_SIZE],
    /// What RDRAND gave ([`CPU_ENTROPY`] bytes or more), or whatever timing noise there is on a processor without.
    pub cpu_entropy: &'a [u8],
    /// The sealing root to use instead of a primary key.
    pub provisioned: Option<Provisioned>,
}

/// What [`set_up`] made.
#[derive(Debug)]
pub struct Keys {
    /// The attestation key.
    pub ak: AttestationKey,
    /// The sealing root.
    pub root: Secret<[u8; SHA256_SIZE]>,
    /// The salted session, for later exchanges.
    pub session: HmacSession,
    /// The random generator, seeded.
    pub drbg: Drbg,
    /// Digest of the policy that the keys carry.
    pub policy: [u8; SHA256_SIZE],
    /// What the TPM tells of its authorisations. A lockout stops no launch, but the opening of credentials.
    pub permanent: Permanent,
}

/// Makes the keys of this launch. Blocks; takes some fifteen commands. Sessions and objects that others left
/// loaded are flushed first.
///
/// # Errors
/// [`KeyError`] names the cause and has the remedy.
pub fn set_up(tpm: &mut impl Transport, setup: &Setup<'_>) -> Result<Keys, KeyError> {
    crate::command::flush_leftovers(tpm).during(cc::FLUSH_CONTEXT)?;
    check_banks(tpm)?;
    let permanent = Permanent::read(tpm).during(cc::GET_CAPABILITY)?;
    check_values(permanent, setup.provisioned.is_some())?;
    let mut maker = Maker::new(tpm, setup)?;
    maker.seed()?;
    let policy = launch_policy(&setup.pcr17);
    let ak = maker.attestation_key()?;
    let root = maker.root(&policy, setup.provisioned.as_ref())?;
    Ok(Keys { ak, root, session: maker.session, drbg: maker.drbg, policy, permanent })
}

/// Checks that the key at a persistent handle may serve as sealing root: its public area is the template exactly
/// (above all, its secret is the TPM's own and not its maker's), and its Name is the pinned one.
///
/// The answer of TPM2_ReadPublic is not protected, but each later use authorises over the pinned Name.
///
/// # Errors
/// [`KeyError::NotTheTemplate`], [`KeyError::WrongName`], [`KeyError::NotProvisioned`].
pub fn check_persistent(
    tpm: &mut impl Transport,
    policy: &[u8; SHA256_SIZE],
    provisioned: &Provisioned,
) -> Result<(), KeyError> {
    let mut exchange = Exchange::new();
    let found = read_persistent(&mut exchange, tpm, provisioned.handle).during(cc::READ_PUBLIC)?;
    let found = found.ok_or(KeyError::NotProvisioned(provisioned.handle))?;
    let role = KeyRole::Provisioned;
    let template = Template::sealing_root(policy).during(cc::READ_PUBLIC)?;
    let public = template.check(found.public).map_err(|error| KeyError::NotTheTemplate(role, error))?;
    if public.name() == provisioned.name { Ok(()) } else { Err(KeyError::WrongName(role)) }
}

/// The key at a persistent handle, if there is one.
pub(crate) fn read_persistent<'e>(
    exchange: &'e mut Exchange,
    tpm: &mut impl Transport,
    handle: u32,
) -> Result<Option<Created<'e>>, TpmError> {
    match decode_read_public(exchange.run(tpm, |buf| read_public(buf, handle))?) {
        // "Handle is not there" and "no key there", by which of the two the TPM finds first.
        Err(TpmError::Refused(code)) if code.base() == ResponseCode::HANDLE => Ok(None),
        other => other.map(Some),
    }
}

/// The SHA-256 bank must hold PCR 17 and 18: without it a policy over them binds nothing.
fn check_banks(tpm: &mut impl Transport) -> Result<(), KeyError> {
    let banks = read_banks(tpm).during(cc::GET_CAPABILITY)?;
    let has = |pcr| banks.has(alg::SHA256, pcr);
    if has(PcrIndex::DRTM_CODE) && has(PcrIndex::DRTM_CONFIGURATION) {
        Ok(())
    } else {
        Err(KeyError::BankOff)
    }
}

/// Hierarchies with an authorisation value make no keys for us: known before anything is made.
const fn check_values(permanent: Permanent, is_provisioned: bool) -> Result<(), KeyError> {
    if permanent.has_endorsement_value() {
        return Err(KeyError::HierarchyHasAuth(KeyRole::Attestation));
    }
    if permanent.has_owner_value() && !is_provisioned {
        return Err(KeyError::HierarchyHasAuth(KeyRole::Root));
    }
    Ok(())
}

/// Makes keys through one session.
pub(crate) struct Maker<'t, T> {
    pub(crate) tpm: &'t mut T,
    pub(crate) session: HmacSession,
    pub(crate) drbg: Drbg,
    pcr17: [u8; SHA256_SIZE],
    pub(crate) exchange: Exchange,
}

impl<'t, T: Transport> Maker<'t, T> {
    /// Starts the session, salted to a key that is made now in the null hierarchy, and flushed again.
    pub(crate) fn new(tpm: &'t mut T, setup: &Setup<'_>) -> Result<Self, KeyError> {
        let mut exchange = Exchange::new();
        let heard = exchange.run(tpm, |buf| get_random(buf, RANDOM)).during(cc::GET_RANDOM)?;
        // Good enough for a salt: a listener on the bus hears the TPM's part but not the processor's.
        let mut drbg = Drbg::new(&[setup.cpu_entropy, decode_random(heard, RANDOM).during(cc::GET_RANDOM)?]);
        let (salt_key, point) = salt_key(tpm, &mut exchange, &drbg.draw()?)?;
        let session = start_session(tpm, &mut exchange, &mut drbg, salt_key, &point);
        let flushed = crate::command::flush(tpm, salt_key).during(cc::FLUSH_CONTEXT);
        let session = session?;
        flushed?;
        Ok(Self { tpm, session, drbg, pcr17: setup.pcr17, exchange })
    }

    /// Seeds the generator with what crosses the bus encrypted.
    fn seed(&mut self) -> Result<(), KeyError> {
        let nonce = self.drbg.draw()?;
        let call = random_call();
        let opened =
            self.exchange.run_sealed(self.tpm, &mut self.session, &call, nonce).during(cc::GET_RANDOM)?;
        let random = read_random(opened.parameters, RANDOM).during(cc::GET_RANDOM)?;
        self.drbg.reseed(&[random]);
        Ok(())
    }

    fn attestation_key(&mut self) -> Result<AttestationKey, KeyError> {
        let (kind, role) = (AkKind::GuestEcdsa, KeyRole::Attestation);
        let template = kind.template(&self.pcr17).during(cc::CREATE_PRIMARY)?;
        let (handle, public, _) = self.primary(handle::ENDORSEMENT, &template, role)?;
        let key = AttestationKey::check(kind, handle, public.bytes(), self.pcr17);
        key.map_err(|error| KeyError::NotTheTemplate(role, error))
    }

    /// A primary key, checked against its template. The session authorises it, so its answer is the TPM's.
    pub(crate) fn primary(
        &mut self,
        hierarchy: u32,
        template: &Template,
        role: KeyRole,
    ) -> Result<(u32, PublicArea, Name), KeyError> {
        let mut parameters = [0; 256];
        let call = Call {
            code: cc::CREATE_PRIMARY,
            entities: &[Entity::Hierarchy(hierarchy)],
            has_password: false,
            policy: None,
            parameters: create_parameters(&mut parameters, template, &[]).during(cc::CREATE_PRIMARY)?,
            encrypts_command: true,
            encrypts_response: false,
            returns_handle: true,
        };
        let nonce = self.drbg.draw()?;
        let opened = match self.exchange.run_sealed(self.tpm, &mut self.session, &call, nonce) {
            Err(TpmError::Refused(code)) if is_auth_failure(code) => {
                return Err(KeyError::HierarchyHasAuth(role));
            }
            other => other.during(cc::CREATE_PRIMARY)?,
        };
        let key = opened.handle.ok_or(DecodeError::Truncated).during(cc::CREATE_PRIMARY)?;
        let created = decode_created(opened.parameters).during(cc::CREATE_PRIMARY)?;
        let public = template.check(created.public).map_err(|error| KeyError::NotTheTemplate(role, error))?;
        let name = public.name();
        if created.name == name { Ok((key, public, name)) } else { Err(KeyError::WrongName(role)) }
    }

    fn root(
        &mut self,
        policy: &[u8; SHA256_SIZE],
        provisioned: Option<&Provisioned>,
    ) -> Result<Secret<[u8; SHA256_SIZE]>, KeyError> {
        if let Some(provisioned) = provisioned {
            check_persistent(self.tpm, policy, provisioned)?;
            return self.root_secret(provisioned.handle, provisioned.name);
        }
        let template = Template::sealing_root(policy).during(cc::CREATE_PRIMARY)?;
        let (key, _, name) = self.primary(handle::OWNER, &template, KeyRole::Root)?;
        let root = self.root_secret(key, name);
        let flushed = crate::command::flush(self.tpm, key).during(cc::FLUSH_CONTEXT);
        let root = root?;
        flushed?;
        Ok(root)
    }

    /// HMAC(key, label) under the key's policy, both ways encrypted.
    fn root_secret(&mut self, key: u32, name: Name) -> Result<Secret<[u8; SHA256_SIZE]>, KeyError> {
        let policy = self.policy_session()?;
        let root = self.hmac(key, name, policy);
        if root.is_err() {
            // Used up by success only. The first error counts; this may fail with it.
            crate::command::flush(self.tpm, policy).unwrap_or(());
        }
        root
    }

    fn hmac(&mut self, key: u32, name: Name, policy: u32) -> Result<Secret<[u8; SHA256_SIZE]>, KeyError> {
        let digest = sha256(&[&self.pcr17]);
        let bytes = self.exchange.run(self.tpm, |buf| policy_pcr(buf, policy, &SELECT_17, &digest));
        match bytes.and_then(done) {
            Err(TpmError::Refused(code)) if code.base() == ResponseCode::VALUE => {
                return Err(KeyError::NotThisLaunch);
            }
            other => other.during(cc::POLICY_PCR)?,
        }
        let locality = Locality::Two.attribute();
        let bytes = self.exchange.run(self.tpm, |buf| policy_locality(buf, policy, locality));
        bytes.and_then(done).during(cc::POLICY_LOCALITY)?;
        let mut parameters = [0; 64];
        let call = Call {
            code: cc::HMAC,
            entities: &[Entity::Key(key, name)],
            has_password: false,
            policy: Some(policy),
            parameters: hmac_parameters(&mut parameters, ROOT_LABEL).during(cc::HMAC)?,
            encrypts_command: true,
            encrypts_response: true,
            returns_handle: false,
        };
        let nonce = self.drbg.draw()?;
        let opened = match self.exchange.run_sealed(self.tpm, &mut self.session, &call, nonce) {
            Err(TpmError::Refused(ResponseCode::LOCALITY)) => return Err(KeyError::WrongLocality),
            Err(TpmError::Refused(ResponseCode::PCR_CHANGED)) => return Err(KeyError::NotThisLaunch),
            other => other.during(cc::HMAC)?,
        };
        Ok(Secret::new(decode_hmac(opened.parameters).during(cc::HMAC)?))
    }

    fn policy_session(&mut self) -> Result<u32, KeyError> {
        let nonce = self.drbg.draw()?;
        let bytes = self
            .exchange
            .run(self.tpm, |buf| start_policy_session(buf, &nonce))
            .during(cc::START_AUTH_SESSION)?;
        Ok(decode_start_session(bytes).during(cc::START_AUTH_SESSION)?.0)
    }
}

/// TPM2_GetRandom in the session.
pub(crate) const fn random_call() -> Call<'static> {
    Call {
        code: cc::GET_RANDOM,
        entities: &[],
        has_password: false,
        policy: None,
        parameters: &RANDOM_PARAMETERS,
        encrypts_command: false,
        encrypts_response: true,
        returns_handle: false,
    }
}

fn is_auth_failure(code: ResponseCode) -> bool {
    matches!(code.base(), ResponseCode::BAD_AUTH | ResponseCode::AUTH_FAIL)
}

/// A response without parameters.
fn done(bytes: &mut [u8]) -> Result<(), TpmError> {
    Ok(Response::plain(bytes)?.finish()?)
}

fn salt_key(
    tpm: &mut impl Transport,
    exchange: &mut Exchange,
    unique: &[u8; SHA256_SIZE],
) -> Result<(u32, Point), KeyError> {
    let template = Template::session_salt().during(cc::CREATE_PRIMARY)?;
    let bytes = exchange
        .run(tpm, |buf| create_with_password(buf, handle::NULL, &template, unique))
        .during(cc::CREATE_PRIMARY)?;
    let (key, created) = decode_created_with_password(bytes).during(cc::CREATE_PRIMARY)?;
    let bad = |error| KeyError::NotTheTemplate(KeyRole::Salt, error);
    template.check(created.public).map_err(bad)?;
    Ok((key, template.point(created.public).map_err(bad)?))
}

fn start_session(
    tpm: &mut impl Transport,
    exchange: &mut Exchange,
    drbg: &mut Drbg,
    salt_key: u32,
    point: &Point,
) -> Result<HmacSession, KeyError> {
    let off_curve = KeyError::NotTheTemplate(KeyRole::Salt, DecodeError::Value(u32::from(alg::ECC)));
    let scalar = Secret::new(drbg.draw()?);
    let (salt, sent) = session_salt(point, &scalar).ok_or(off_curve)?;
    let nonce = drbg.draw()?;
    let bytes = exchange
        .run(tpm, |buf| start_hmac_session(buf, salt_key, &sent, &nonce))
        .during(cc::START_AUTH_SESSION)?;
    let (session, nonce_tpm) = decode_start_session(bytes).during(cc::START_AUTH_SESSION)?;
    Ok(HmacSession::new(session, &salt, nonce, nonce_tpm))
}
