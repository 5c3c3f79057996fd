//! The TPM's key derivations and parameter encryption, made of library primitives.
//!
//! Specification: TPM 2.0 library, part 1, "Key derivation function" (11.4.10) and annex C.6.1.

use cfb_mode::cipher::KeyIvInit;
use hmac::{Hmac, KeyInit, Mac};
use p256::elliptic_curve::sec1::ToSec1Point;
use p256::{PublicKey, SecretKey};
use sha2::{Digest, Sha256};
use zeroize::Zeroize;

use crate::secret::Secret;

/// Bytes of SHA-256.
pub const SHA256_SIZE: usize = 32;
/// Block of SHA-256, which an HMAC key is padded to.
const BLOCK: usize = 64;
/// AES-128: key and initial vector.
const AES_SIZE: usize = 16;

/// SHA-256 of the parts, one after the other.
#[must_use]
pub fn sha256(parts: &[&[u8]]) -> [u8; SHA256_SIZE] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

/// HMAC-SHA256 over the parts. A key longer than a block is hashed first, as RFC 2104 says.
#[must_use]
pub fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; SHA256_SIZE] {
    let hashed = Secret::new(sha256(&[key]));
    let mut block = Secret::new([0; BLOCK]);
    let key = if key.len() > BLOCK { hashed.expose().as_slice() } else { key };
    for (to, from) in block.expose_mut().iter_mut().zip(key) {
        *to = *from;
    }
    let mut mac = Hmac::<Sha256>::new(block.expose().into());
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// KDFa: fills `out`. `label` is given without its final zero byte.
pub fn kdfa(key: &[u8], label: &[u8], context_u: &[u8], context_v: &[u8], out: &mut [u8]) {
    let bits = u32::try_from(out.len()).unwrap_or(u32::MAX).wrapping_mul(8).to_be_bytes();
    for (counter, chunk) in (1u32..).zip(out.chunks_mut(SHA256_SIZE)) {
        let counter = counter.to_be_bytes();
        let mut block = hmac_sha256(key, &[&counter, label, &[0], context_u, context_v, &bits]);
        for (to, from) in chunk.iter_mut().zip(block) {
            *to = from;
        }
        block.zeroize();
    }
}

/// KDFe for 256 bits: `z` is the shared secret's x coordinate, `party_u` and `party_v` the x coordinates of
/// the ephemeral and of the static key.
#[must_use]
pub fn kdfe(z: &[u8], label: &[u8], party_u: &[u8], party_v: &[u8]) -> Secret<[u8; SHA256_SIZE]> {
    Secret::new(sha256(&[&1u32.to_be_bytes(), z, label, &[0], party_u, party_v]))
}

/// Parameter encryption: which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Of a command.
    Encrypt,
    /// Of a response.
    Decrypt,
}

/// AES-128-CFB over `data` with the key and vector of this exchange's nonces (part 1, 21.3).
pub fn parameter_cipher(
    direction: Direction,
    session_key: &[u8],
    newer: &[u8],
    older: &[u8],
    data: &mut [u8],
) {
    let mut material = Secret::new([0; AES_SIZE + AES_SIZE]);
    kdfa(session_key, b"CFB", newer, older, material.expose_mut());
    let mut key = Secret::new([0; AES_SIZE]);
    let mut vector = [0; AES_SIZE];
    for (index, byte) in material.expose().iter().enumerate() {
        let target =
            if index < AES_SIZE { key.expose_mut().get_mut(index) } else { vector.get_mut(index ^ AES_SIZE) };
        if let Some(target) = target {
            *target = *byte;
        }
    }
    match direction {
        Direction::Encrypt => {
            cfb_mode::Encryptor::<aes::Aes128>::new(key.expose().into(), &vector.into()).encrypt(data);
        }
        Direction::Decrypt => {
            cfb_mode::Decryptor::<aes::Aes128>::new(key.expose().into(), &vector.into()).decrypt(data);
        }
    }
}

/// AES-128-CFB with a vector of zeroes: what encrypts the identity in a credential, under a key that is used once
/// (part 1, 24.4).
pub fn encrypt_identity(key: &[u8; AES_SIZE], data: &mut [u8]) {
    cfb_mode::Encryptor::<aes::Aes128>::new(key.into(), &[0; AES_SIZE].into()).encrypt(data);
}

/// A P-256 point as the TPM writes it: coordinates of 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// X coordinate.
    pub x: [u8; 32],
    /// Y coordinate.
    pub y: [u8; 32],
}

impl Point {
    /// Coordinates as received: a TPM may leave leading zeroes out.
    #[must_use]
    pub fn from_coordinates(x: &[u8], y: &[u8]) -> Option<Self> {
        Some(Self { x: left_padded(x)?, y: left_padded(y)? })
    }

    /// The point uncompressed, as SEC 1 writes it.
    #[must_use]
    pub fn to_sec1(&self) -> [u8; 65] {
        let mut bytes = [4; 65];
        for (to, from) in bytes.iter_mut().skip(1).zip(self.x.iter().chain(&self.y)) {
            *to = *from;
        }
        bytes
    }

    /// The public key, if the point is on the curve and not its identity.
    #[must_use]
    pub fn to_public_key(&self) -> Option<PublicKey> {
        PublicKey::from_sec1_bytes(&self.to_sec1()).ok()
    }
}

/// `bytes` as a 32-byte number; `None` if it is longer.
#[must_use]
pub fn left_padded(bytes: &[u8]) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    let start = out.len().checked_sub(bytes.len())?;
    out.get_mut(start..)?.copy_from_slice(bytes);
    Some(out)
}

/// A salt for a session with the holder of `key`, and the ephemeral point to send
/// (annex C.6.1: one-pass Diffie-Hellman, KDFe with "SECRET"). `scalar` is fresh randomness; `None` if it is not in
/// the group's range or `key` not on the curve.
#[must_use]
pub fn session_salt(key: &Point, scalar: &Secret<[u8; 32]>) -> Option<(Secret<[u8; SHA256_SIZE]>, Point)> {
    shared_seed(key, scalar, b"SECRET")
}

/// The same for another purpose, which `label` names: "IDENTITY" for credentials (annex C.6.4).
#[must_use]
pub fn shared_seed(
    key: &Point,
    scalar: &Secret<[u8; 32]>,
    label: &[u8],
) -> Option<(Secret<[u8; SHA256_SIZE]>, Point)> {
    let ephemeral = SecretKey::from_slice(scalar.expose()).ok()?;
    let shared = ephemeral.diffie_hellman(&key.to_public_key()?);
    let encoded = ephemeral.public_key().to_sec1_point(false);
    let (x, y) = encoded.as_bytes().get(1..)?.split_at_checked(32)?;
    let sent = Point::from_coordinates(x, y)?;
    Some((kdfe(shared.raw_secret_bytes(), label, &sent.x, &key.x), sent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hmac_gives_the_values_of_rfc_4231() {
        let short = hmac_sha256(&[0x0b; 20], &[b"Hi ", b"There"]);
        assert_eq!(short[..8], [0xb0, 0x34, 0x4c, 0x61, 0xd8, 0xdb, 0x38, 0x53]);
        let long_key =
            hmac_sha256(&[0xaa; 131], &[b"Test Using Larger Than Block-Size Key - Hash Key First"]);
        assert_eq!(long_key[..8], [0x60, 0xe4, 0x31, 0x59, 0x1e, 0xe0, 0xb6, 0x7f]);
    }

    #[test]
    fn kdfa_blocks_are_hmacs_with_a_counter_from_one() {
        let mut out = [0; 48];
        kdfa(b"key", b"ATH", b"u", b"v", &mut out);
        let bits = [0, 0, 1, 0x80];
        assert_eq!(out[..32], hmac_sha256(b"key", &[&[0, 0, 0, 1], b"ATH\0uv", &bits]));
        assert_eq!(out[32..], hmac_sha256(b"key", &[&[0, 0, 0, 2], b"ATH\0uv", &bits])[..16]);
    }

    #[test]
    fn decryption_undoes_encryption_and_nonces_matter() {
        let mut data = *b"seventeen bytes!!";
        parameter_cipher(Direction::Encrypt, &[1; 32], &[2; 32], &[3; 32], &mut data);
        let mut other = data;
        parameter_cipher(Direction::Decrypt, &[1; 32], &[3; 32], &[2; 32], &mut other);
        parameter_cipher(Direction::Decrypt, &[1; 32], &[2; 32], &[3; 32], &mut data);
        assert_eq!(&data, b"seventeen bytes!!");
        assert_ne!(&other, b"seventeen bytes!!");
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes too long in the interpreter")]
    fn both_ends_derive_one_salt() {
        let holder = SecretKey::from_slice(&[5; 32]).unwrap();
        let encoded = holder.public_key().to_sec1_point(false);
        let key = Point::from_coordinates(&encoded.as_bytes()[1..33], &encoded.as_bytes()[33..]).unwrap();
        let (salt, sent) = session_salt(&key, &Secret::new([9; 32])).unwrap();
        let shared = holder.diffie_hellman(&sent.to_public_key().unwrap());
        let theirs = kdfe(shared.raw_secret_bytes(), b"SECRET", &sent.x, &key.x);
        assert_eq!(salt.expose(), theirs.expose());
    }

    #[test]
    fn points_off_the_curve_and_scalars_out_of_range_are_refused() {
        let off = Point { x: [1; 32], y: [1; 32] };
        assert!(session_salt(&off, &Secret::new([9; 32])).is_none());
        assert!(session_salt(&off, &Secret::new([0; 32])).is_none());
        assert!(Point::from_coordinates(&[1; 33], &[1]).is_none());
        assert_eq!(left_padded(&[7]).unwrap()[31], 7);
    }
}
