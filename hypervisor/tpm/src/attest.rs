//! Attestations and their signatures: parsing and checking.
//!
//! Specification: TPM 2.0 library, part 2, TPMS_ATTEST, TPMS_QUOTE_INFO, TPMS_CERTIFY_INFO and TPMT_SIGNATURE.

use p256::ecdsa::signature::hazmat::PrehashVerifier;
use p256::ecdsa::{Signature, VerifyingKey};

use crate::codec::{DecodeError, Reader};
use crate::constant::{alg, tag};
use crate::crypto::{Point, SHA256_SIZE, left_padded, sha256};
use crate::public::RSA_BYTES;
use crate::response::{Banks, read_selection};

/// TPM_GENERATED_VALUE: the TPM itself made this.
const GENERATED: u32 = 0xff54_4347;
/// Bytes of TPMS_CLOCK_INFO and of the firmware's version.
const CLOCK_AND_VERSION: usize = 25;

/// TPMS_ATTEST of a quote.
#[derive(Clone, Copy, Debug)]
pub struct QuoteAttest<'a> {
    /// Qualified Name of the key that signed.
    pub qualified_signer: &'a [u8],
    /// What the caller wanted to be signed along.
    pub extra_data: &'a [u8],
    /// Milliseconds that the TPM has been powered for.
    pub clock: u64,
    /// Counts TPM resets.
    pub reset_count: u32,
    /// Counts TPM restarts and dynamic launches.
    pub restart_count: u32,
    /// Whether the clock never ran backwards.
    pub safe: bool,
    /// Version of the TPM's firmware, in its maker's own form.
    pub firmware_version: u64,
    /// Which PCRs.
    pub selection: Banks,
    /// Digest of their values.
    pub pcr_digest: &'a [u8],
}

impl<'a> QuoteAttest<'a> {
    /// Parses `bytes` as the attestation of a quote.
    ///
    /// # Errors
    /// [`DecodeError`] for what is wrong.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        begin(&mut r, tag::ATTEST_QUOTE)?;
        let attest = Self {
            qualified_signer: r.tpm2b()?,
            extra_data: r.tpm2b()?,
            clock: r.u64()?,
            reset_count: r.u32()?,
            restart_count: r.u32()?,
            safe: match r.u8()? {
                0 => false,
                1 => true,
                other => return Err(DecodeError::Value(u32::from(other))),
            },
            firmware_version: r.u64()?,
            selection: read_selection(&mut r)?,
            pcr_digest: r.tpm2b()?,
        };
        r.finish()?;
        Ok(attest)
    }
}

/// TPMS_ATTEST of TPM2_Certify: a key of the TPM's is what its Name says, and whoever signed could use it.
#[derive(Clone, Copy, Debug)]
pub struct CertifyAttest<'a> {
    /// Qualified Name of the key that signed.
    pub qualified_signer: &'a [u8],
    /// What the caller wanted to be signed along.
    pub extra_data: &'a [u8],
    /// Name of the key that it is about.
    pub name: &'a [u8],
    /// Its qualified Name.
    pub qualified_name: &'a [u8],
}

impl<'a> CertifyAttest<'a> {
    /// Parses `bytes` as the attestation of a key.
    ///
    /// # Errors
    /// [`DecodeError`] for what is wrong; a quote is refused by its type.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        begin(&mut r, tag::ATTEST_CERTIFY)?;
        let (qualified_signer, extra_data) = (r.tpm2b()?, r.tpm2b()?);
        r.take(CLOCK_AND_VERSION)?;
        let attest = Self { qualified_signer, extra_data, name: r.tpm2b()?, qualified_name: r.tpm2b()? };
        r.finish()?;
        Ok(attest)
    }
}

/// The start of every attestation: the TPM made it, and it is of this type.
fn begin(r: &mut Reader<'_>, kind: u16) -> Result<(), DecodeError> {
    match r.u32()? {
        GENERATED => {}
        other => return Err(DecodeError::Value(other)),
    }
    match r.u16()? {
        told if told == kind => Ok(()),
        other => Err(DecodeError::Tag(other)),
    }
}

/// TPMT_SIGNATURE by ECDSA P-256 with SHA-256: r and s.
///
/// # Errors
/// [`DecodeError`] for what is wrong, other algorithms included.
pub fn parse_ecdsa(bytes: &[u8]) -> Result<([u8; 32], [u8; 32]), DecodeError> {
    let mut reader = Reader::new(bytes);
    for want in [alg::ECDSA, alg::SHA256] {
        let told = reader.u16()?;
        if told != want {
            return Err(DecodeError::Value(u32::from(told)));
        }
    }
    let (r, s) = (reader.tpm2b()?, reader.tpm2b()?);
    reader.finish()?;
    let number = |bytes: &[u8]| left_padded(bytes).ok_or(DecodeError::Trailing);
    Ok((number(r)?, number(s)?))
}

/// TPMT_SIGNATURE by RSASSA with SHA-256: the number that PKCS #1 calls the signature.
///
/// # Errors
/// [`DecodeError`] for what is wrong, other algorithms included.
pub fn parse_rsassa(bytes: &[u8]) -> Result<&[u8], DecodeError> {
    let mut reader = Reader::new(bytes);
    for want in [alg::RSASSA, alg::SHA256] {
        let told = reader.u16()?;
        if told != want {
            return Err(DecodeError::Value(u32::from(told)));
        }
    }
    let number = reader.tpm2b()?;
    reader.finish()?;
    Ok(number)
}

/// Whether `signature` (TPMT_SIGNATURE) is one by an RSA-2048 key with RSASSA and SHA-256, by its form.
#[must_use]
pub fn has_rsassa_form(signature: &[u8]) -> bool {
    parse_rsassa(signature).is_ok_and(|number| number.len() == RSA_BYTES)
}

/// Whether `signature` (TPMT_SIGNATURE) is by the holder of `key` over `attest`.
#[must_use]
pub fn is_signed_by(key: &Point, attest: &[u8], signature: &[u8]) -> bool {
    verify(key, &sha256(&[attest]), signature).is_some()
}

fn verify(key: &Point, digest: &[u8; SHA256_SIZE], signature: &[u8]) -> Option<()> {
    let (r, s) = parse_ecdsa(signature).ok()?;
    let signature = Signature::from_scalars(r, s).ok()?;
    VerifyingKey::from_sec1_bytes(&key.to_sec1()).ok()?.verify_prehash(digest, &signature).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use p256::ecdsa::SigningKey;
    use p256::ecdsa::signature::hazmat::PrehashSigner;

    fn attest() -> Vec<u8> {
        let mut bytes = vec![0xff, 0x54, 0x43, 0x47, 0x80, 0x18, 0, 2, 9, 9, 0, 1, 7];
        bytes.extend([0; 7]);
        bytes.push(5); // clock
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, 1]);
        bytes.extend([0; 8]);
        bytes.extend(crate::policy::SELECT_17_18);
        bytes.extend([0, 1, 3]);
        bytes
    }

    #[test]
    fn a_quote_parses_into_its_fields() {
        let bytes = attest();
        let quote = QuoteAttest::parse(&bytes).unwrap();
        assert_eq!((quote.extra_data, quote.pcr_digest), (&[7u8][..], &[3u8][..]));
        assert_eq!((quote.clock, quote.reset_count, quote.restart_count, quote.safe), (5, 1, 2, true));
    }

    #[test]
    fn every_cut_every_extra_byte_and_a_wrong_magic_is_refused() {
        let bytes = attest();
        for length in 0..bytes.len() {
            assert!(QuoteAttest::parse(&bytes[..length]).is_err(), "{length}");
        }
        assert_eq!(QuoteAttest::parse(&[&bytes[..], &[0]].concat()).unwrap_err(), DecodeError::Trailing);
        let mut wrong = bytes.clone();
        wrong[3] ^= 1;
        assert!(QuoteAttest::parse(&wrong).is_err());
        wrong = bytes;
        wrong[5] = 0x14; // TPM_ST_ATTEST_CERTIFY + 3
        assert_eq!(QuoteAttest::parse(&wrong).unwrap_err(), DecodeError::Tag(0x8014));
    }

    fn certified() -> Vec<u8> {
        let mut bytes = vec![0xff, 0x54, 0x43, 0x47, 0x80, 0x17, 0, 2, 9, 9, 0, 1, 7];
        bytes.extend([0; CLOCK_AND_VERSION]);
        bytes.extend([0, 3, 1, 2, 3, 0, 2, 4, 5]);
        bytes
    }

    #[test]
    fn the_attestation_of_a_key_parses_whole_or_not_at_all() {
        let bytes = certified();
        let attest = CertifyAttest::parse(&bytes).unwrap();
        assert_eq!((attest.qualified_signer, attest.extra_data), (&[9u8, 9][..], &[7u8][..]));
        assert_eq!((attest.name, attest.qualified_name), (&[1u8, 2, 3][..], &[4u8, 5][..]));
        for length in 0..bytes.len() {
            assert!(CertifyAttest::parse(&bytes[..length]).is_err(), "{length}");
        }
        assert_eq!(CertifyAttest::parse(&[&bytes[..], &[0]].concat()).unwrap_err(), DecodeError::Trailing);
    }

    #[test]
    fn a_quote_and_the_attestation_of_a_key_are_never_taken_for_each_other() {
        assert_eq!(QuoteAttest::parse(&certified()).unwrap_err(), DecodeError::Tag(tag::ATTEST_CERTIFY));
        assert_eq!(CertifyAttest::parse(&attest()).unwrap_err(), DecodeError::Tag(tag::ATTEST_QUOTE));
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes too long in the interpreter")]
    fn a_signature_holds_for_its_key_and_message_only() {
        let signer = SigningKey::from_slice(&[3; 32]).unwrap();
        let encoded = signer.verifying_key().to_sec1_point(false);
        let key = Point::from_coordinates(&encoded.as_bytes()[1..33], &encoded.as_bytes()[33..]).unwrap();
        let made: Signature = signer.sign_prehash(&sha256(&[b"message"])).unwrap();
        let (r, s) = made.split_bytes();
        let wire = [&[0, 0x18, 0, 0x0b, 0, 32][..], &r, &[0, 32], &s].concat();
        assert!(is_signed_by(&key, b"message", &wire));
        assert!(!is_signed_by(&key, b"massage", &wire));
        let mut forged = wire.clone();
        forged[10] ^= 1;
        assert!(!is_signed_by(&key, b"message", &forged));
        assert!(!is_signed_by(&Point { x: [1; 32], y: [1; 32] }, b"message", &wire));
        assert!(!is_signed_by(&key, b"message", &wire[..70]));
    }
}
