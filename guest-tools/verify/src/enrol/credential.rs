//! TPM2_MakeCredential without a TPM.
//!
//! Specification: TPM 2.0 library, part 1, 24 ("Credential protection") and annexes B.10.3 and C.6.1.

use dolmen_tpm::Secret;
use dolmen_tpm::codec::{EncodeError, Writer};
use dolmen_tpm::crypto::{Point, encrypt_identity, hmac_sha256, kdfa, shared_seed};
use getrandom::SysRng;
use rsa::Oaep;
use sha2::Sha256;

use super::{EkPublic, EnrolError};
use crate::key::rsa_key;

/// What goes to the TPM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// TPM2B_ID_OBJECT without its size.
    pub id_object: Vec<u8>,
    /// TPM2B_ENCRYPTED_SECRET without its size.
    pub encrypted_seed: Vec<u8>,
}

/// A credential with `content` that only the TPM with this endorsement key opens, and only while it holds the key of
/// this Name.
///
/// # Errors
/// [`EnrolError::EndorsementKey`] if there is no such key, [`EnrolError::Random`].
pub fn make_credential(
    ek: &EkPublic<'_>,
    name: &[u8; 34],
    content: &[u8; 32],
) -> Result<Credential, EnrolError> {
    let (seed, encrypted_seed) = seed_for(ek)?;
    let mut key = Secret::new([0; 16]);
    kdfa(seed.expose(), b"STORAGE", name, &[], key.expose_mut());
    let mut identity = [&32u16.to_be_bytes()[..], content].concat();
    encrypt_identity(key.expose(), &mut identity);
    let mut integrity = Secret::new([0; 32]);
    kdfa(seed.expose(), b"INTEGRITY", &[], &[], integrity.expose_mut());
    let hmac = hmac_sha256(integrity.expose(), &[&identity, name]);
    let id_object = [&32u16.to_be_bytes()[..], &hmac, &identity].concat();
    Ok(Credential { id_object, encrypted_seed })
}

/// A seed, and what the TPM recovers it from.
fn seed_for(ek: &EkPublic<'_>) -> Result<(Secret<[u8; 32]>, Vec<u8>), EnrolError> {
    let mut random = Secret::new([0; 32]);
    getrandom::fill(random.expose_mut())?;
    match ek {
        EkPublic::Rsa(modulus) => {
            let padding = Oaep::<Sha256>::new_with_label(*b"IDENTITY\0");
            let key = rsa_key(modulus).map_err(|_| EnrolError::EndorsementKey)?;
            let encrypted = key.encrypt(&mut SysRng, padding, random.expose());
            Ok((random, encrypted.map_err(|_| EnrolError::EndorsementKey)?))
        }
        EkPublic::Ecc(point) => {
            let (seed, sent) = shared_seed(point, &random, b"IDENTITY").ok_or(EnrolError::EndorsementKey)?;
            Ok((seed, coordinates(&sent).map_err(|_| EnrolError::EndorsementKey)?))
        }
    }
}

/// TPMS_ECC_POINT.
fn coordinates(point: &Point) -> Result<Vec<u8>, EncodeError> {
    let mut bytes = [0; 68];
    let mut w = Writer::new(&mut bytes);
    w.tpm2b(&point.x)?;
    w.tpm2b(&point.y)?;
    Ok(w.finish()?.to_vec())
}
