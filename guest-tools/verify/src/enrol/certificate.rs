//! Endorsement key certificates: is this one by a maker whom the relying party trusts, and for this key?
//!
//! Specification: TCG EK Credential Profile for TPM 2.0, 3.2; RFC 5280, 4.2 and 6.1, as far as chains of one maker need
//! it: no policies, no name constraints, no revocation. What is not understood and critical is refused.

use core::time::Duration;

use p256::ecdsa::signature::hazmat::PrehashVerifier;
use rsa::Pkcs1v15Sign;
use rsa::pkcs8::DecodePublicKey;
use rsa::traits::PublicKeyParts;
use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_cert::TbsCertificate;
use x509_cert::der::asn1::{AnyRef, UintRef};
use x509_cert::der::oid::{AssociatedOid, ObjectIdentifier};
use x509_cert::der::{self, Decode, Encode, Reader, SliceReader, pem};
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAltName};
use x509_cert::spki::SubjectPublicKeyInfoOwned;

use super::EkPublic;

/// tcg-kp-EKCertificate.
const EK_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.8.1");
const RSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
const RSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.12");
const RSA_SHA512: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.13");
const ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const ECDSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
const ECDSA_SHA512: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.4");
/// Curves of makers' keys (RFC 5480, 2.1.1.1).
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const P521: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.35");
/// Extensions that are understood, or that say nothing that matters here.
const UNDERSTOOD: [ObjectIdentifier; 4] = [
    BasicConstraints::OID,
    KeyUsage::OID,
    ExtendedKeyUsage::OID,
    // The EK profile makes it critical: it names the TPM, whose key counts here and not its name.
    SubjectAltName::OID,
];
/// Most certificates from the key to a root.
const MAX_DEPTH: usize = 5;
/// What stands around a certificate in PEM (RFC 7468, 5).
const PEM_BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const PEM_END: &str = "-----END CERTIFICATE-----";

/// Why a certificate proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not a certificate in DER.
    #[error("the endorsement key's certificate cannot be read: {0}")]
    Unreadable(String),
    /// It is for another key.
    #[error(
        "the certificate is for another key than the one that the TPM makes from the TCG's template; \
         its maker may have used a template of its own"
    )]
    OtherKey,
    /// Not for an endorsement key.
    #[error("the certificate is not for an endorsement key: its extended key usage lacks 2.23.133.8.1")]
    Usage,
    /// Nobody who is trusted signed it.
    #[error(
        "no chain leads from the certificate to a root: \"{0}\" is by no certificate that was given and may sign it"
    )]
    NoChain(String),
    /// Too many certificates.
    #[error("the chain of certificates is longer than 5")]
    TooLong,
    /// Outside of its time.
    #[error("the certificate of \"{0}\" is not valid at this time")]
    Time(String),
    /// A critical extension that is not understood.
    #[error(
        "the certificate of \"{subject}\" has the critical extension {extension}, which is not understood"
    )]
    Extension {
        /// Whose.
        subject: String,
        /// Its object identifier.
        extension: String,
    },
}

/// A certificate, and the bytes that its issuer signed as they came: written anew, odd ones would be others.
#[derive(Clone, Debug)]
pub struct Certificate {
    parsed: x509_cert::Certificate,
    signed: Vec<u8>,
}

impl Certificate {
    /// The certificate at the start of `bytes` (DER); makers leave something after it in the TPM's memory.
    ///
    /// # Errors
    /// [`der::Error`] if there is none.
    pub fn from_der(bytes: &[u8]) -> der::Result<Self> {
        Self::next(&mut SliceReader::new(bytes)?)
    }

    /// The certificates in a text (PEM), with anything between them.
    ///
    /// # Errors
    /// [`der::Error`] if one cannot be read.
    pub fn from_pem(text: &[u8]) -> der::Result<Vec<Self>> {
        let text = String::from_utf8_lossy(text);
        let one = |block: &str| {
            let (body, _) = block.split_once(PEM_END).ok_or(pem::Error::PostEncapsulationBoundary)?;
            let (_, bytes) = pem::decode_vec(format!("{PEM_BEGIN}{body}{PEM_END}").as_bytes())?;
            Self::from_der(&bytes)
        };
        text.split(PEM_BEGIN).skip(1).map(one).collect()
    }

    fn next(reader: &mut SliceReader<'_>) -> der::Result<Self> {
        let whole = reader.tlv_bytes()?;
        let parsed = x509_cert::Certificate::from_der(whole)?;
        let mut parts = SliceReader::new(AnyRef::from_der(whole)?.value())?;
        Ok(Self { parsed, signed: parts.tlv_bytes()?.to_vec() })
    }

    fn tbs(&self) -> &TbsCertificate {
        self.parsed.tbs_certificate()
    }
}

/// Checks that `der` is a certificate for the endorsement key `ek`, and that a chain leads from it through
/// `intermediates` to one of `roots`, all of them valid at `now` (since 1970).
///
/// # Errors
/// [`CertificateError`].
pub fn check_certificate(
    der: &[u8],
    ek: &EkPublic<'_>,
    intermediates: &[Certificate],
    roots: &[Certificate],
    now: Duration,
) -> Result<(), CertificateError> {
    let unreadable = |error: der::Error| CertificateError::Unreadable(error.to_string());
    let leaf = Certificate::from_der(der).map_err(unreadable)?;
    if !is_for(&leaf, ek) {
        return Err(CertificateError::OtherKey);
    }
    check_one(&leaf, now)?;
    let usage = leaf.tbs().get_extension::<ExtendedKeyUsage>().map_err(unreadable)?;
    if !usage.is_some_and(|(_, usage)| usage.0.contains(&EK_USAGE)) {
        return Err(CertificateError::Usage);
    }
    find_root(&leaf, intermediates, roots, now)
}

/// Searches upwards from `leaf`, level by level, for a root. Makers issue certificates anew with the same name and key, so
/// each that signed something below is tried. None is looked at twice: where it is nearest to `leaf`, least is below it.
fn find_root(
    leaf: &Certificate,
    intermediates: &[Certificate],
    roots: &[Certificate],
    now: Duration,
) -> Result<(), CertificateError> {
    let mut level = vec![leaf];
    let mut left: Vec<&Certificate> = intermediates.iter().collect();
    for below in 0..MAX_DEPTH {
        let mut unusable = None;
        let mut leads_on = |issuer: &Certificate, may_sign: bool| {
            may_sign
                && level.iter().any(|one| is_by(one, issuer))
                && check_one(issuer, now).map_err(|error| unusable.get_or_insert(error).clone()).is_ok()
        };
        if roots.iter().any(|root| leads_on(root, !has_constraints(root) || is_authority(root, below))) {
            return Ok(());
        }
        let (above, others): (Vec<_>, Vec<_>) =
            left.into_iter().partition(|issuer| leads_on(issuer, is_authority(issuer, below)));
        if above.is_empty() {
            let end = level.first().map(|one| subject(one)).unwrap_or_default();
            return Err(unusable.unwrap_or(CertificateError::NoChain(end)));
        }
        (level, left) = (above, others);
    }
    Err(CertificateError::TooLong)
}

/// The certificates in `der`, one after the other, as far as they can be read and a chain can need them. They are hints:
/// whatever is missing or wrong, no chain leads through it.
pub(super) fn chain(der: &[u8]) -> Vec<Certificate> {
    let Ok(mut reader) = SliceReader::new(der) else { return Vec::new() };
    core::iter::from_fn(|| Certificate::next(&mut reader).ok()).take(MAX_DEPTH).collect()
}

/// The certificate without what makers leave after it in the TPM's memory.
pub(super) fn exact(der: &[u8]) -> Option<&[u8]> {
    SliceReader::new(der).ok()?.tlv_bytes().ok()
}

fn subject(certificate: &Certificate) -> String {
    certificate.tbs().subject().to_string()
}

/// What each certificate of a chain must fulfil.
fn check_one(certificate: &Certificate, now: Duration) -> Result<(), CertificateError> {
    let tbs = certificate.tbs();
    let validity = tbs.validity();
    if now < validity.not_before.to_unix_duration() || now > validity.not_after.to_unix_duration() {
        return Err(CertificateError::Time(subject(certificate)));
    }
    let strange = tbs.extensions().into_iter().flatten();
    match strange.filter(|one| one.critical).find(|one| !UNDERSTOOD.contains(&one.extn_id)) {
        Some(extension) => Err(CertificateError::Extension {
            subject: subject(certificate),
            extension: extension.extn_id.to_string(),
        }),
        None => Ok(()),
    }
}

/// Whether it may sign certificates with `below` authorities between itself and the key's (RFC 5280, 4.2.1.9).
fn is_authority(certificate: &Certificate, below: usize) -> bool {
    let tbs = certificate.tbs();
    let (Ok(constraints), Ok(usage)) =
        (tbs.get_extension::<BasicConstraints>(), tbs.get_extension::<KeyUsage>())
    else {
        return false;
    };
    let reaches = |limit: Option<u8>| limit.is_none_or(|limit| below <= usize::from(limit));
    constraints.is_some_and(|(_, constraints)| constraints.ca && reaches(constraints.path_len_constraint))
        && usage.is_none_or(|(_, usage)| usage.key_cert_sign())
}

/// Whether it says how far it may sign. Old roots, of version 1 of X.509, cannot: they are trusted as they are given.
fn has_constraints(certificate: &Certificate) -> bool {
    let mut extensions = certificate.tbs().extensions().into_iter().flatten();
    extensions.any(|one| one.extn_id == BasicConstraints::OID)
}

/// Whether `issuer` signed `certificate`.
fn is_by(certificate: &Certificate, issuer: &Certificate) -> bool {
    let tbs = certificate.tbs();
    tbs.issuer() == issuer.tbs().subject()
        && tbs.signature() == certificate.parsed.signature_algorithm()
        && verify(certificate, issuer).is_some()
}

fn verify(certificate: &Certificate, issuer: &Certificate) -> Option<()> {
    let signed = &certificate.signed;
    let signature = certificate.parsed.signature().as_bytes()?;
    let spki = issuer.tbs().subject_public_key_info();
    let rsa = |scheme: Pkcs1v15Sign, digest: &[u8]| {
        let key = rsa::PublicKey::from_public_key_der(&spki.to_der().ok()?).ok()?;
        key.verify(scheme, digest, signature).ok()
    };
    match certificate.parsed.signature_algorithm().oid {
        RSA_SHA256 => rsa(Pkcs1v15Sign::new::<Sha256>(), &Sha256::digest(signed)),
        RSA_SHA384 => rsa(Pkcs1v15Sign::new::<Sha384>(), &Sha384::digest(signed)),
        RSA_SHA512 => rsa(Pkcs1v15Sign::new::<Sha512>(), &Sha512::digest(signed)),
        ECDSA_SHA256 => ecdsa(spki, &Sha256::digest(signed), signature),
        ECDSA_SHA384 => ecdsa(spki, &Sha384::digest(signed), signature),
        ECDSA_SHA512 => ecdsa(spki, &Sha512::digest(signed), signature),
        _ => None,
    }
}

/// Whether the elliptic key signed what has this digest.
fn ecdsa(issuer: &SubjectPublicKeyInfoOwned, digest: &[u8], signature: &[u8]) -> Option<()> {
    let point = issuer.subject_public_key.raw_bytes();
    let curve: ObjectIdentifier = issuer.algorithm.parameters.as_ref()?.decode_as().ok()?;
    match curve {
        P256 => {
            let (r, s) = ecdsa_numbers::<32>(signature)?;
            let signature = p256::ecdsa::Signature::from_scalars(r, s).ok()?;
            let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(point).ok()?;
            key.verify_prehash(digest, &signature).ok()
        }
        P384 => {
            let (r, s) = ecdsa_numbers::<48>(signature)?;
            let signature = p384::ecdsa::Signature::from_scalars(r, s).ok()?;
            let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(point).ok()?;
            key.verify_prehash(digest, &signature).ok()
        }
        P521 => {
            let (r, s) = ecdsa_numbers::<66>(signature)?;
            let signature = p521::ecdsa::Signature::from_scalars(r, s).ok()?;
            let key = p521::ecdsa::VerifyingKey::from_sec1_bytes(point).ok()?;
            key.verify_prehash(digest, &signature).ok()
        }
        _ => None,
    }
}

/// The numbers of an Ecdsa-Sig-Value (RFC 3279, 2.2.3), as many bytes as the curve's order has.
fn ecdsa_numbers<const N: usize>(bytes: &[u8]) -> Option<([u8; N], [u8; N])> {
    let mut reader = SliceReader::new(bytes).ok()?;
    let numbers = reader.sequence(|inner| {
        let (r, s) = (UintRef::decode(inner)?, UintRef::decode(inner)?);
        Ok::<_, der::Error>((padded(r.as_bytes()), padded(s.as_bytes())))
    });
    let (r, s) = numbers.ok()?;
    reader.finish().ok()?;
    Some((r?, s?))
}

fn padded<const N: usize>(number: &[u8]) -> Option<[u8; N]> {
    let mut out = [0; N];
    let start = N.checked_sub(number.len())?;
    out.get_mut(start..)?.copy_from_slice(number);
    Some(out)
}

/// Whether the certificate is for this key.
fn is_for(certificate: &Certificate, ek: &EkPublic<'_>) -> bool {
    let spki = certificate.tbs().subject_public_key_info();
    match ek {
        EkPublic::Rsa(modulus) => spki
            .to_der()
            .ok()
            .and_then(|der| rsa::PublicKey::from_public_key_der(&der).ok())
            .is_some_and(|key| key.n_bytes().as_ref() == *modulus),
        EkPublic::Ecc(point) => spki.subject_public_key.raw_bytes() == point.to_sec1(),
    }
}
