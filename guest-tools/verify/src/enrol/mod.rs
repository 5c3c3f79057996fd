//! Enrolment: proof that an attestation key lives in a TPM that a maker vouches for (`docs/enrolment.md`).
//!
//! The guest's [`Request`] names both keys. [`begin`] checks the endorsement key's certificate and the attestation
//! key's public part, and makes a credential that only that TPM opens, and only while it holds that key. The guest's
//! answer is evidence whose nonce is what was in the credential; [`finish`] judges it and writes a [`Record`].

mod certificate;
mod credential;

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dolmen_abi::AkId;
use dolmen_abi::evidence::Evidence;
use dolmen_abi::evidence::host::HostEvidence;
use dolmen_tpm::attest::QuoteAttest;
use dolmen_tpm::attestation::modulus;
use dolmen_tpm::codec::Reader;
use dolmen_tpm::crypto::Point;
use dolmen_tpm::policy::host_policy;
use dolmen_tpm::public::Template;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::check::{Expected, check};
use crate::host::check_host;
use crate::key::{AttestationKey, KeyProblem};
use crate::policy::{EnrolledKey, Policy};
use crate::report::{Report, Verdict};

pub use certificate::{Certificate, CertificateError, check_certificate};
pub use credential::{Credential, make_credential};

/// What a request is, and its version; likewise for the other files.
pub const REQUEST_FORMAT: &str = "dolmen-enrolment-request-1";
/// See [`REQUEST_FORMAT`].
pub const CHALLENGE_FORMAT: &str = "dolmen-enrolment-challenge-1";
/// See [`REQUEST_FORMAT`].
pub const STATE_FORMAT: &str = "dolmen-enrolment-state-1";
/// See [`REQUEST_FORMAT`].
pub const RECORD_FORMAT: &str = "dolmen-enrolment-1";

/// Why a key is not enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// Not JSON, or not with these fields.
    #[error("the file cannot be read: {0}")]
    Syntax(#[from] serde_json::Error),
    /// Another kind of file, or another version.
    #[error("the file is \"{found}\" where \"{expected}\" is needed")]
    Format {
        /// What it says of itself.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A field is not what it should be.
    #[error("`{0}` is not what it should be")]
    Field(&'static str),
    /// The endorsement key is not made from the TCG's template.
    #[error("the endorsement key is not made from the TCG's template")]
    EndorsementKey,
    /// Its certificate proves nothing.
    #[error("{0}")]
    Certificate(#[from] CertificateError),
    /// This system gives no random numbers.
    #[error("this system gives no random numbers: {0}")]
    Random(#[from] getrandom::Error),
    /// The attestation key is none of Dolmen.
    #[error("the attestation key is none of Dolmen: {0}")]
    Key(#[from] KeyProblem),
    /// No accepted hypervisor can use the attestation key.
    #[error("the attestation key's policy is that of no accepted PCR 17")]
    KeyPolicy,
    /// The answer is by another key than the one that was challenged.
    #[error("the answer is by another key than the one that was challenged")]
    OtherKey,
    /// The answer does not hold.
    #[error("the answer is refused:\n{0}")]
    Refused(Box<Report>),
}

/// An endorsement key's public part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EkPublic<'a> {
    /// RSA-2048: its modulus.
    Rsa(&'a [u8]),
    /// ECC P-256: its point.
    Ecc(Point),
}

impl<'a> EkPublic<'a> {
    /// Reads a TPM2B_PUBLIC, which must be one of the TCG's templates filled in.
    ///
    /// # Errors
    /// [`EnrolError::EndorsementKey`].
    pub fn parse(public: &'a [u8]) -> Result<Self, EnrolError> {
        let mut outer = Reader::new(public);
        let area = outer.tpm2b().map_err(|_| EnrolError::EndorsementKey)?;
        outer.finish().map_err(|_| EnrolError::EndorsementKey)?;
        let is = |template: Result<Template, _>| template.ok().filter(|one| one.check(area).is_ok());
        if is(Template::rsa_endorsement_key()).is_some() {
            return modulus(area).map(Self::Rsa).ok_or(EnrolError::EndorsementKey);
        }
        let template = is(Template::ecc_endorsement_key()).ok_or(EnrolError::EndorsementKey)?;
        let point = template.point(area).map_err(|_| EnrolError::EndorsementKey)?;
        point.to_public_key().ok_or(EnrolError::EndorsementKey)?;
        Ok(Self::Ecc(point))
    }
}

/// What `dolmen enrol` writes in the guest. Bytes are base64.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`REQUEST_FORMAT`].
    pub format: String,
    /// The attestation key's word.
    pub key: String,
    /// Its TPM2B_PUBLIC.
    pub ak_public: String,
    /// The endorsement key's word.
    pub ek: String,
    /// Its TPM2B_PUBLIC.
    pub ek_public: String,
    /// Its certificate, in DER.
    pub ek_certificate: String,
    /// Certificates that its TPM has behind that one, in DER, one after the other; empty if none.
    #[serde(default)]
    pub ek_chain: String,
}

/// What goes back to the guest. Bytes are base64.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Challenge {
    /// [`CHALLENGE_FORMAT`].
    pub format: String,
    /// The attestation key's word.
    pub key: String,
    /// The endorsement key's word.
    pub ek: String,
    /// TPM2B_ID_OBJECT without its size.
    pub credential: String,
    /// TPM2B_ENCRYPTED_SECRET without its size.
    pub secret: String,
}

/// What the relying party keeps, secretly, until the answer comes.
#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// [`STATE_FORMAT`].
    pub format: String,
    /// The content of the credential, in hex: the nonce of the answer.
    pub nonce: String,
    /// What was asked for.
    pub request: Request,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("request", &self.request).finish_non_exhaustive()
    }
}

/// An enrolled key: what policies name.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Record {
    /// [`RECORD_FORMAT`].
    pub format: String,
    /// The attestation key's Name, in hex.
    pub ak_name: String,
    /// The TPM's reset count at enrolment.
    pub reset_count: u32,
    /// Its restart count at enrolment.
    pub restart_count: u32,
    /// The attestation key's word.
    pub key: String,
    /// Its TPM2B_PUBLIC, in base64.
    pub ak_public: String,
    /// The endorsement key's word.
    pub ek: String,
    /// Its TPM2B_PUBLIC, in base64.
    pub ek_public: String,
    /// SHA-256 of its certificate, in hex.
    pub ek_certificate_sha256: String,
    /// Version of the TPM's firmware, in its maker's own form.
    pub tpm_firmware: u64,
    /// The PCR 17 that the key's policy names, in hex.
    pub pcr17: String,
}

fn expect(found: &str, expected: &'static str) -> Result<(), EnrolError> {
    if found == expected { Ok(()) } else { Err(EnrolError::Format { found: found.to_owned(), expected }) }
}

fn bytes(field: &'static str, text: &str) -> Result<Vec<u8>, EnrolError> {
    STANDARD.decode(text).map_err(|_| EnrolError::Field(field))
}

/// The accepted PCR 17 whose hypervisor alone can use the key, as one that speaks of what its word says.
fn pcr17_of(key: &AttestationKey<'_>, word: AkId, policy: &Policy) -> Option<[u8; 32]> {
    let is_of = |pcr17: &[u8; 32], guest: &[u8; 32]| {
        if word.is_host() { key.policy == host_policy(pcr17) } else { key.policy == guest }
    };
    policy.code.iter().find(|code| is_of(code.pcr17(), code.key_policy())).map(|code| *code.pcr17())
}

/// Checks a request, and makes a challenge for it and what must be kept to judge the answer.
///
/// # Errors
/// [`EnrolError`] names the first thing that is wrong.
pub fn begin(
    request: &[u8],
    policy: &Policy,
    intermediates: &[Certificate],
    roots: &[Certificate],
    now: Duration,
) -> Result<(Challenge, State), EnrolError> {
    let request: Request = serde_json::from_slice(request)?;
    expect(&request.format, REQUEST_FORMAT)?;
    let word = AkId::from_word(&request.key).ok_or(EnrolError::Field("key"))?;
    let ek_public = bytes("ek_public", &request.ek_public)?;
    let ek = EkPublic::parse(&ek_public)?;
    let certificate = bytes("ek_certificate", &request.ek_certificate)?;
    // What the TPM says of its makers is believed no more than any intermediate: it must lead to a root.
    let mut between = certificate::chain(&bytes("ek_chain", &request.ek_chain)?);
    between.extend_from_slice(intermediates);
    check_certificate(&certificate, &ek, &between, roots, now)?;
    let ak_public = bytes("ak_public", &request.ak_public)?;
    let key = AttestationKey::parse(&ak_public)?;
    key.check_attributes()?;
    pcr17_of(&key, word, policy).ok_or(EnrolError::KeyPolicy)?;
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce)?;
    let made = make_credential(&ek, &key.name(), &nonce)?;
    let challenge = Challenge {
        format: CHALLENGE_FORMAT.to_owned(),
        key: request.key.clone(),
        ek: request.ek.clone(),
        credential: STANDARD.encode(made.id_object),
        secret: STANDARD.encode(made.encrypted_seed),
    };
    Ok((challenge, State { format: STATE_FORMAT.to_owned(), nonce: hex::encode(nonce), request }))
}

/// Judges the answer, which is evidence over what was in the credential, and makes the record.
///
/// # Errors
/// [`EnrolError`] names the first thing that is wrong.
pub fn finish(answer: &[u8], state: &State, policy: &Policy) -> Result<Record, EnrolError> {
    expect(&state.format, STATE_FORMAT)?;
    let request = &state.request;
    let word = AkId::from_word(&request.key).ok_or(EnrolError::Field("key"))?;
    let ak_public = bytes("ak_public", &request.ak_public)?;
    let key = AttestationKey::parse(&ak_public)?;
    let pcr17 = pcr17_of(&key, word, policy).ok_or(EnrolError::KeyPolicy)?;
    let nonce = hex::decode(&state.nonce).map_err(|_| EnrolError::Field("nonce"))?;
    let mut policy = policy.clone();
    policy.keys = vec![EnrolledKey { name: key.name(), reset_count: 0, restart_count: 0, record: None }];
    let (report, attest) = if word.is_host() {
        (check_host(answer, &policy, &nonce), HostEvidence::decode(answer).ok().map(|one| one.attest))
    } else {
        let expected = Expected::nonce(&nonce).ok_or(EnrolError::Field("nonce"))?;
        (check(answer, &policy, &expected), Evidence::decode(answer).ok().map(|one| one.attest))
    };
    if report.key.as_deref().is_some_and(|name| name != hex::encode(key.name())) {
        return Err(EnrolError::OtherKey);
    }
    let quote = attest.and_then(|attest| QuoteAttest::parse(attest).ok());
    let Some(quote) = quote.filter(|_| report.verdict == Verdict::Trusted) else {
        return Err(EnrolError::Refused(Box::new(report)));
    };
    let certificate = bytes("ek_certificate", &request.ek_certificate)?;
    let certificate = certificate::exact(&certificate).ok_or(EnrolError::Field("ek_certificate"))?;
    Ok(Record {
        format: RECORD_FORMAT.to_owned(),
        ak_name: hex::encode(key.name()),
        reset_count: quote.reset_count,
        restart_count: quote.restart_count,
        key: request.key.clone(),
        ak_public: request.ak_public.clone(),
        ek: request.ek.clone(),
        ek_public: request.ek_public.clone(),
        ek_certificate_sha256: hex::encode(Sha256::digest(certificate)),
        tpm_firmware: quote.firmware_version,
        pcr17: hex::encode(pcr17),
    })
}
