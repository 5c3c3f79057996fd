//! The attestation key's public part: is it one that only a TPM has and only its policy can use?
//!
//! Specification: TPM 2.0 library, part 2, TPM2B_PUBLIC, TPMA_OBJECT, TPMS_ECC_PARMS; part 1, "Names".

use dolmen_tpm::codec::{DecodeError, Reader};
use dolmen_tpm::constant::{alg, handle};
use dolmen_tpm::crypto::{Point, sha256};

/// TPM_ECC_NIST_P256.
const CURVE_P256: u16 = 3;

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
    /// Neither ECC nor SHA-256 as name algorithm.
    #[error("it is of type {kind:#x} with name algorithm {name_algorithm:#x}, not ECC with SHA-256")]
    Kind {
        /// TPM_ALG_ID of the key.
        kind: u16,
        /// TPM_ALG_ID of its Name.
        name_algorithm: u16,
    },
    /// Not ECDSA P-256 with SHA-256.
    #[error("it does not sign by ECDSA P-256 with SHA-256")]
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
}

impl From<DecodeError> for KeyProblem {
    fn from(error: DecodeError) -> Self {
        Self::Unreadable(error)
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
    /// Its point.
    pub point: Point,
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
        if (kind, name_algorithm) != (alg::ECC, alg::SHA256) {
            return Err(KeyProblem::Kind { kind, name_algorithm });
        }
        let wanted = [alg::NULL, alg::ECDSA, alg::SHA256, CURVE_P256, alg::NULL];
        for want in wanted {
            if r.u16()? != want {
                return Err(KeyProblem::Scheme);
            }
        }
        let (x, y) = (r.tpm2b()?, r.tpm2b()?);
        r.finish()?;
        let point = Point::from_coordinates(x, y).filter(|point| point.to_public_key().is_some());
        Ok(Self { area, attributes, policy, point: point.ok_or(KeyProblem::Point)? })
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
        AttestationKey { area: &[], attributes, policy: &[], point: Point { x: [0; 32], y: [0; 32] } }
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
