//! Public areas of our keys: the templates, and the check that what the TPM made is what was asked for.
//!
//! Specification: TPM 2.0 library, part 2, TPMT_PUBLIC and TPMA_OBJECT; part 1, "Names".

use crate::codec::{DecodeError, EncodeError, Reader, Writer};
use crate::constant::alg;
use crate::crypto::{Point, SHA256_SIZE, sha256};
use crate::policy::endorsement_policy;

/// TPMA_OBJECT bits.
mod attribute {
    pub(super) const FIXED_TPM: u32 = 1 << 1;
    pub(super) const FIXED_PARENT: u32 = 1 << 4;
    pub(super) const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
    pub(super) const USER_WITH_AUTH: u32 = 1 << 6;
    pub(super) const ADMIN_WITH_POLICY: u32 = 1 << 7;
    pub(super) const NO_DA: u32 = 1 << 10;
    pub(super) const RESTRICTED: u32 = 1 << 16;
    pub(super) const DECRYPT: u32 = 1 << 17;
    pub(super) const SIGN: u32 = 1 << 18;
    /// The key is this TPM's own, made of its own randomness, and cannot leave it.
    pub(super) const RESIDENT: u32 = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN;
}

/// TPM_ECC_NIST_P256.
const CURVE_P256: u16 = 3;
/// Bytes of the longest public area of ours.
const MAX_PUBLIC: usize = 320;

/// Attributes of the attestation key: restricted signing, resident; userWithAuth and adminWithPolicy are clear,
/// so only its policy lets it sign.
pub const AK_ATTRIBUTES: u32 = attribute::RESIDENT | attribute::RESTRICTED | attribute::SIGN;
/// Attributes of the sealing root: signing (HMAC), resident; only its policy lets it be used.
pub const ROOT_ATTRIBUTES: u32 = attribute::RESIDENT | attribute::SIGN;
/// Attributes of the key that sessions are salted to.
pub const SALT_ATTRIBUTES: u32 = attribute::RESIDENT
    | attribute::USER_WITH_AUTH
    | attribute::NO_DA
    | attribute::RESTRICTED
    | attribute::DECRYPT;

/// Attributes of an endorsement key, as the TCG's templates have them: it decrypts credentials for keys of its own TPM
/// and nothing else, under the endorsement hierarchy's authorisation.
pub const EK_ATTRIBUTES: u32 =
    attribute::RESIDENT | attribute::ADMIN_WITH_POLICY | attribute::RESTRICTED | attribute::DECRYPT;

/// Bits and bytes of our RSA keys.
const RSA_BITS: u16 = 2048;
pub(crate) const RSA_BYTES: usize = 256;
/// An RSA key's exponent, where 0 stands for the usual one.
const RSA_EXPONENT: u32 = 0;

/// A marshalled TPMT_PUBLIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicArea {
    bytes: [u8; MAX_PUBLIC],
    len: usize,
}

/// The Name of a key: its algorithm and digest.
pub type Name = [u8; 2 + SHA256_SIZE];

impl PublicArea {
    /// The marshalled bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }

    /// A copy of `bytes`, if they can be a public area of ours.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut area = Self { bytes: [0; MAX_PUBLIC], len: bytes.len() };
        area.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(area)
    }

    /// Its Name under SHA-256, which each of our keys has as name algorithm.
    #[must_use]
    pub fn name(&self) -> Name {
        let mut name = [0; 2 + SHA256_SIZE];
        let digest = sha256(&[self.bytes()]);
        for (to, from) in name.iter_mut().zip(alg::SHA256.to_be_bytes().iter().chain(&digest)) {
            *to = *from;
        }
        name
    }
}

/// What a key is to be, all but the part that makes it unique.
#[derive(Clone, Copy, Debug)]
pub struct Template {
    head: [u8; MAX_PUBLIC],
    len: usize,
    kind: u16,
    /// Zeroes in each part of the unique field, where a template wants some.
    filler: usize,
}

impl Template {
    /// The attestation key: ECDSA P-256 with SHA-256.
    ///
    /// # Errors
    /// None: the buffer holds each template. The same holds for the others.
    pub fn attestation_key(policy: &[u8; SHA256_SIZE]) -> Result<Self, EncodeError> {
        Self::build(alg::ECC, AK_ATTRIBUTES, policy, |w| {
            w.u16(alg::NULL)?; // symmetric
            w.u16(alg::ECDSA)?;
            w.u16(alg::SHA256)?;
            w.u16(CURVE_P256)?;
            w.u16(alg::NULL) // key derivation
        })
    }

    /// The same for RSA-2048: RSASSA (PKCS #1 version 1.5) with SHA-256.
    ///
    /// # Errors
    /// As [`Template::attestation_key`].
    pub fn rsa_attestation_key(policy: &[u8; SHA256_SIZE]) -> Result<Self, EncodeError> {
        Self::build(alg::RSA, AK_ATTRIBUTES, policy, |w| {
            w.u16(alg::NULL)?; // symmetric
            w.u16(alg::RSASSA)?;
            w.u16(alg::SHA256)?;
            w.u16(RSA_BITS)?;
            w.u32(RSA_EXPONENT)
        })
    }

    /// The RSA-2048 endorsement key (TCG EK Credential Profile, template L-1).
    ///
    /// # Errors
    /// As [`Template::attestation_key`].
    pub fn rsa_endorsement_key() -> Result<Self, EncodeError> {
        let template = Self::build(alg::RSA, EK_ATTRIBUTES, &endorsement_policy(), |w| {
            write_storage_parameters(w)?;
            w.u16(RSA_BITS)?;
            w.u32(RSA_EXPONENT)
        })?;
        Ok(Self { filler: RSA_BYTES, ..template })
    }

    /// The ECC P-256 endorsement key (TCG EK Credential Profile, template L-2).
    ///
    /// # Errors
    /// As [`Template::attestation_key`].
    pub fn ecc_endorsement_key() -> Result<Self, EncodeError> {
        let template = Self::build(alg::ECC, EK_ATTRIBUTES, &endorsement_policy(), |w| {
            write_storage_parameters(w)?;
            w.u16(CURVE_P256)?;
            w.u16(alg::NULL) // key derivation
        })?;
        Ok(Self { filler: SHA256_SIZE, ..template })
    }

    /// The sealing root: HMAC with SHA-256.
    ///
    /// # Errors
    /// As [`Template::attestation_key`].
    pub fn sealing_root(policy: &[u8; SHA256_SIZE]) -> Result<Self, EncodeError> {
        Self::build(alg::KEYEDHASH, ROOT_ATTRIBUTES, policy, |w| {
            w.u16(alg::HMAC)?;
            w.u16(alg::SHA256)
        })
    }

    /// The key that sessions are salted to: a restricted ECC P-256 decryption key.
    ///
    /// # Errors
    /// As [`Template::attestation_key`].
    pub fn session_salt() -> Result<Self, EncodeError> {
        Self::build(alg::ECC, SALT_ATTRIBUTES, &[], |w| {
            write_storage_parameters(w)?;
            w.u16(CURVE_P256)?;
            w.u16(alg::NULL) // key derivation
        })
    }

    fn build(
        kind: u16,
        attributes: u32,
        policy: &[u8],
        parameters: impl FnOnce(&mut Writer<'_>) -> Result<(), EncodeError>,
    ) -> Result<Self, EncodeError> {
        let mut head = [0; MAX_PUBLIC];
        let mut w = Writer::new(&mut head);
        w.u16(kind)?;
        w.u16(alg::SHA256)?; // name algorithm
        w.u32(attributes)?;
        w.tpm2b(policy)?;
        parameters(&mut w)?;
        let len = w.len();
        Ok(Self { head, len, kind, filler: 0 })
    }

    fn head(&self) -> &[u8] {
        self.head.get(..self.len).unwrap_or(&[])
    }

    /// Writes it as the TPM2B_PUBLIC of TPM2_CreatePrimary. `unique` makes one key differ from another of the
    /// same template; empty for keys that must come out the same each time, whose field is what the template says.
    ///
    /// # Errors
    /// [`EncodeError`] if `w` is full.
    pub fn write(&self, w: &mut Writer<'_>, unique: &[u8]) -> Result<(), EncodeError> {
        let at = w.len();
        w.u16(0)?;
        w.bytes(self.head())?;
        let zeroes = [0; RSA_BYTES];
        let filler = zeroes.get(..self.filler).unwrap_or(&[]);
        w.tpm2b(if unique.is_empty() { filler } else { unique })?;
        if self.kind == alg::ECC {
            w.tpm2b(filler)?;
        }
        w.close_u16(at)
    }

    /// Checks that `area` is this template and nothing else, with its unique part filled in.
    ///
    /// # Errors
    /// [`DecodeError::Value`] with the offset of the first byte that differs; [`DecodeError`] for a bad unique part.
    pub fn check(&self, area: &[u8]) -> Result<PublicArea, DecodeError> {
        self.unique(area)?;
        PublicArea::from_bytes(area).ok_or(DecodeError::Trailing)
    }

    /// The point of an ECC key, after [`Template::check`].
    ///
    /// # Errors
    /// As [`Template::check`]; [`DecodeError::Value`] if the coordinates are too long.
    pub fn point(&self, area: &[u8]) -> Result<Point, DecodeError> {
        let (x, y) = self.unique(area)?;
        Point::from_coordinates(x, y).ok_or(DecodeError::Value(u32::from(self.kind)))
    }

    fn unique<'a>(&self, area: &'a [u8]) -> Result<(&'a [u8], &'a [u8]), DecodeError> {
        let head = self.head();
        if let Some(rest) = area.strip_prefix(head) {
            let mut r = Reader::new(rest);
            let first = r.tpm2b()?;
            let second = if self.kind == alg::ECC { r.tpm2b()? } else { &[] };
            r.finish()?;
            let most = if self.kind == alg::RSA { RSA_BYTES } else { SHA256_SIZE };
            let plausible = |part: &[u8]| !part.is_empty() && part.len() <= most;
            let is_whole = self.kind != alg::RSA || first.len() == RSA_BYTES;
            if plausible(first) && is_whole && (self.kind != alg::ECC || plausible(second)) {
                return Ok((first, second));
            }
            return Err(DecodeError::Length(u32::try_from(first.len()).unwrap_or(u32::MAX)));
        }
        let differs = head.iter().zip(area).position(|(a, b)| a != b).unwrap_or(area.len());
        Err(DecodeError::Value(u32::try_from(differs).unwrap_or(u32::MAX)))
    }
}

/// Storage keys protect with AES-128 in CFB mode and have no scheme of their own.
fn write_storage_parameters(w: &mut Writer<'_>) -> Result<(), EncodeError> {
    w.u16(alg::AES)?;
    w.u16(128)?;
    w.u16(alg::CFB)?;
    w.u16(alg::NULL) // scheme
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(template: &Template, unique: &[&[u8]]) -> Vec<u8> {
        let mut bytes = template.head().to_vec();
        for part in unique {
            bytes.extend(u16::try_from(part.len()).unwrap().to_be_bytes());
            bytes.extend(*part);
        }
        bytes
    }

    #[test]
    fn attributes_are_the_ones_the_design_demands() {
        assert_eq!(AK_ATTRIBUTES, 0x0005_0032);
        assert_eq!(ROOT_ATTRIBUTES, 0x0004_0032);
        assert_eq!(SALT_ATTRIBUTES, 0x0003_0472);
        assert_eq!(EK_ATTRIBUTES, 0x0003_00b2);
    }

    #[test]
    fn any_byte_that_differs_from_the_template_is_found() {
        let template = Template::attestation_key(&[7; 32]).unwrap();
        let good = area(&template, &[&[1; 32], &[2; 32]]);
        assert_eq!(template.check(&good).unwrap().bytes(), good);
        for index in 0..template.head().len() {
            let mut bad = good.clone();
            bad[index] ^= 1;
            assert_eq!(template.check(&bad), Err(DecodeError::Value(u32::try_from(index).unwrap())));
        }
    }

    #[test]
    fn the_unique_part_must_be_there_and_nothing_after_it() {
        let rsa = Template::rsa_attestation_key(&[7; 32]).unwrap();
        assert!(rsa.check(&area(&rsa, &[&[1; 256]])).is_ok());
        assert_eq!(rsa.check(&area(&rsa, &[&[1; 255]])), Err(DecodeError::Length(255)));
        let template = Template::sealing_root(&[7; 32]).unwrap();
        assert!(template.check(&area(&template, &[&[1; 32]])).is_ok());
        assert_eq!(template.check(&area(&template, &[&[]])), Err(DecodeError::Length(0)));
        assert_eq!(template.check(&area(&template, &[&[1; 33]])), Err(DecodeError::Length(33)));
        assert_eq!(template.check(&area(&template, &[&[1; 32], &[]])), Err(DecodeError::Trailing));
        assert_eq!(template.check(template.head()), Err(DecodeError::Truncated));
        assert_eq!(template.check(&[]), Err(DecodeError::Value(0)));
    }
}
