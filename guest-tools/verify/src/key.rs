//! The attestation key's public part: is it one that only a TPM has and only its policy can use?
//!
//! Specification: TPM 2.0 library, part 2, TPM2B_PUBLIC, TPMA_OBJECT, TPMS_ECC_PARMS; part 1, "Names".

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dolmen_tpm::attest::{is_signed_by, parse_rsassa};
use dolmen_tpm::codec::{DecodeError, Reader};
use dolmen_tpm::constant::{alg, handle};
use dolmen_tpm::crypto::{Point, sha256};
use rsa::pkcs8::{EncodePublicKey, LineEnding};
use rsa::{BoxedUint, Pkcs1v15Sign};
use sha2::{Digest, Sha256};

/// TPM_ECC_NIST_P256.
const CURVE_P256: u16 = 3;
/// Bits of an RSA key, and its exponent, for which a TPM writes 0.
const RSA_BITS: u16 = 2048;
const RSA_EXPONENT: u32 = 65537;
/// SubjectPublicKeyInfo of a P-256 key, up to its point (RFC 5480).
const SPKI_P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// What a TPMA_OBJECT bit has to be, and why.
struct Rule {
    bit: u32,
    name: &'static str,
    is_set: bool,
    why: &'static str,
}

const RULES: [Rule; 8] = [
    Rule { bit: 1, name: "fixedTPM", is_set: true, why: "it could be copied to another TPM" },
    Rule { bit: 4, name: "fixedParent", is_set: true, why: "it could be moved below another key" },
    Rule {
        bit: 5,
        name: "sensitiveDataOrigin",
        is_set: true,
        why: "somebody outside of the TPM may know it",
    },
    Rule { bit: 6, name: "userWithAuth", is_set: false, why: "a password would be enough to use it" },
    Rule { bit: 7, name: "adminWithPolicy", is_set: false, why: "it differs from what Dolmen makes" },
    Rule { bit: 16, name: "restricted", is_set: true, why: "it would sign forged quotes" },
    Rule { bit: 17, name: "decrypt", is_set: false, why: "it is no signing key" },
    Rule { bit: 18, name: "sign", is_set: true, why: "it is no signing key" },
];

/// Why a public part is none of an attestation key of Dolmen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyProblem {
    /// The bytes are no TPM2B_PUBLIC.
    #[error("its public part cannot be read ({0:?})")]
    Unreadable(DecodeError),
    /// Neither ECC nor RSA, or another name algorithm than SHA-256.
    #[error("it is of type {kind:#x} with name algorithm {name_algorithm:#x}, not ECC or RSA with SHA-256")]
    Kind {
        /// TPM_ALG_ID of the key.
        kind: u16,
        /// TPM_ALG_ID of its Name.
        name_algorithm: u16,
    },
    /// Neither ECDSA P-256 nor RSASSA-2048 with SHA-256.
    #[error("it signs neither by ECDSA P-256 nor by RSASSA-2048 with SHA-256")]
    Scheme,
    /// An attribute is not what it must be.
    #[error("its attribute {name} is {}: {why}", if *.is_set { "set" } else { "clear" })]
    Attribute {
        /// Name of the attribute.
        name: &'static str,
        /// What it is.
        is_set: bool,
        /// What follows from that.
        why: &'static str,
    },
    /// Attributes that Dolmen's keys do not have.
    #[error("it has further attributes ({0:#010x}) that no key of Dolmen has")]
    Further(u32),
    /// Its point is not on the curve.
    #[error("its point is not on the curve")]
    Point,
    /// Its modulus is none of an RSA-2048 key.
    #[error("its modulus is none of an RSA-2048 key")]
    Modulus,
}

impl From<DecodeError> for KeyProblem {
    fn from(error: DecodeError) -> Self {
        Self::Unreadable(error)
    }
}

/// The half of a key that verifies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verifier {
    /// ECDSA P-256 with SHA-256.
    Ecdsa(Point),
    /// RSASSA-2048 with SHA-256.
    Rsassa(rsa::PublicKey),
}

impl Verifier {
    /// Whether `signature` (`TPMT_SIGNATURE`) is by the holder of the key over `message`.
    #[must_use]
    pub fn accepts(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Ecdsa(point) => is_signed_by(point, message, signature),
            Self::Rsassa(key) => parse_rsassa(signature).is_ok_and(|number| {
                key.verify(Pkcs1v15Sign::new::<Sha256>(), &Sha256::digest(message), number).is_ok()
            }),
        }
    }

    /// How it signs, in words.
    #[must_use]
    pub const fn algorithm(&self) -> &'static str {
        match self {
            Self::Ecdsa(_) => "ECDSA P-256, SHA-256",
            Self::Rsassa(_) => "RSASSA-2048, SHA-256",
        }
    }

    /// The key as PEM (RFC 7468).
    #[must_use]
    pub fn pem(&self) -> String {
        match self {
            Self::Ecdsa(point) => {
                let text = STANDARD.encode([&SPKI_P256[..], &point.to_sec1()].concat());
                let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
                format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))
            }
            // Encoding a key that was just read cannot fail.
            Self::Rsassa(key) => key.to_public_key_pem(LineEnding::LF).unwrap_or_default(),
        }
    }
}

/// An attestation key's public part, read and well-formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttestationKey<'a> {
    /// TPMT_PUBLIC, without the size in front.
    pub area: &'a [u8],
    /// TPMA_OBJECT.
    pub attributes: u32,
    /// Its authorisation policy.
    pub policy: &'a [u8],
    /// What verifies its signatures.
    pub verifier: Verifier,
}

impl<'a> AttestationKey<'a> {
    /// Reads a TPM2B_PUBLIC.
    ///
    /// # Errors
    /// [`KeyProblem`], but not yet for attributes: see [`Self::check_attributes`].
    pub fn parse(public: &'a [u8]) -> Result<Self, KeyProblem> {
        let mut outer = Reader::new(public);
        let area = outer.tpm2b()?;
        outer.finish()?;
        let mut r = Reader::new(area);
        let (kind, name_algorithm, attributes, policy) = (r.u16()?, r.u16()?, r.u32()?, r.tpm2b()?);
        let verifier = match (kind, name_algorithm) {
            (alg::ECC, alg::SHA256) => read_ecdsa(&mut r)?,
            (alg::RSA, alg::SHA256) => read_rsassa(&mut r)?,
            _ => return Err(KeyProblem::Kind { kind, name_algorithm }),
        };
        r.finish()?;
        Ok(Self { area, attributes, policy, verifier })
    }

    /// Checks every attribute that makes the key one that only its policy can use, inside one TPM.
    ///
    /// # Errors
    /// The first attribute that is wrong.
    pub fn check_attributes(&self) -> Result<(), KeyProblem> {
        let mut known = 0;
        for rule in RULES {
            let mask = 1u32 << rule.bit;
            known |= mask;
            let is_set = self.attributes & mask != 0;
            if is_set != rule.is_set {
                return Err(KeyProblem::Attribute { name: rule.name, is_set, why: rule.why });
            }
        }
        match self.attributes & !known {
            0 => Ok(()),
            further => Err(KeyProblem::Further(further)),
        }
    }

    /// Its Name: what enrolment proves and policies list.
    #[must_use]
    pub fn name(&self) -> [u8; 34] {
        named(&[self.area])
    }

    /// Its Qualified Name if it is a primary of the endorsement hierarchy: what a quote by it names as signer.
    #[must_use]
    pub fn qualified_name(&self) -> [u8; 34] {
        named(&[&handle::ENDORSEMENT.to_be_bytes(), &self.name()])
    }
}

fn demand(r: &mut Reader<'_>, wanted: &[u16]) -> Result<(), KeyProblem> {
    for want in wanted {
        if r.u16()? != *want {
            return Err(KeyProblem::Scheme);
        }
    }
    Ok(())
}

fn read_ecdsa(r: &mut Reader<'_>) -> Result<Verifier, KeyProblem> {
    demand(r, &[alg::NULL, alg::ECDSA, alg::SHA256, CURVE_P256, alg::NULL])?;
    let (x, y) = (r.tpm2b()?, r.tpm2b()?);
    let point = Point::from_coordinates(x, y).filter(|point| point.to_public_key().is_some());
    Ok(Verifier::Ecdsa(point.ok_or(KeyProblem::Point)?))
}

fn read_rsassa(r: &mut Reader<'_>) -> Result<Verifier, KeyProblem> {
    demand(r, &[alg::NULL, alg::RSASSA, alg::SHA256, RSA_BITS])?;
    if !matches!(r.u32()?, 0 | RSA_EXPONENT) {
        return Err(KeyProblem::Scheme);
    }
    rsa_key(r.tpm2b()?).map(Verifier::Rsassa)
}

/// The RSA-2048 key of this modulus with the usual exponent.
pub(crate) fn rsa_key(modulus: &[u8]) -> Result<rsa::PublicKey, KeyProblem> {
    let is_whole =
        modulus.len() == usize::from(RSA_BITS / 8) && modulus.first().is_some_and(|byte| *byte >= 0x80);
    let number = BoxedUint::from_be_slice_vartime(if is_whole { modulus } else { &[] });
    rsa::PublicKey::new(number, BoxedUint::from(RSA_EXPONENT)).map_err(|_| KeyProblem::Modulus)
}

fn named(parts: &[&[u8]]) -> [u8; 34] {
    let mut name = [0; 34];
    let digest = sha256(parts);
    for (to, from) in name.iter_mut().zip(alg::SHA256.to_be_bytes().iter().chain(&digest)) {
        *to = *from;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use dolmen_tpm::public::AK_ATTRIBUTES;

    fn key(attributes: u32) -> AttestationKey<'static> {
        let verifier = Verifier::Ecdsa(Point { x: [0; 32], y: [0; 32] });
        AttestationKey { area: &[], attributes, policy: &[], verifier }
    }

    #[test]
    fn the_attributes_of_our_own_keys_pass() {
        assert_eq!(key(AK_ATTRIBUTES).check_attributes(), Ok(()));
    }

    #[test]
    fn each_attribute_that_differs_is_refused() {
        for bit in 0..32 {
            assert!(key(AK_ATTRIBUTES ^ 1 << bit).check_attributes().is_err(), "{bit}");
        }
    }

    #[test]
    fn a_refused_attribute_is_named_with_its_consequence() {
        let text = key(AK_ATTRIBUTES | 1 << 6).check_attributes().unwrap_err().to_string();
        assert_eq!(text, "its attribute userWithAuth is set: a password would be enough to use it");
    }
}
