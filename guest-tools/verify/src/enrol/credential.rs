//! TPM2_MakeCredential without a TPM.
//!
//! Specification: TPM 2.0 library, part 1, 24 ("Credential protection") and annexes B.10.3 and C.6.1.

use dolmen_tpm::Secret;
use dolmen_tpm::codec::Writer;
use dolmen_tpm::crypto::{encrypt_identity, hmac_sha256, kdfa, shared_seed};
use rsa::Oaep;
use rsa::rand_core::{OsRng, RngCore};
use rsa::sha2::Sha256;

use super::EkPublic;
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
/// this Name. `None` if the endorsement key is none.
#[must_use]
pub fn make_credential(ek: &EkPublic<'_>, name: &[u8; 34], content: &[u8; 32]) -> Option<Credential> {
    let (seed, encrypted_seed) = seed_for(ek)?;
    let mut key = Secret::new([0; 16]);
    kdfa(seed.expose(), b"STORAGE", name, &[], key.expose_mut());
    let mut identity = [&32u16.to_be_bytes()[..], content].concat();
    encrypt_identity(key.expose(), &mut identity);
    let mut integrity = Secret::new([0; 32]);
    kdfa(seed.expose(), b"INTEGRITY", &[], &[], integrity.expose_mut());
    let hmac = hmac_sha256(integrity.expose(), &[&identity, name]);
    let id_object = [&32u16.to_be_bytes()[..], &hmac, &identity].concat();
    Some(Credential { id_object, encrypted_seed })
}

/// A seed, and what the TPM recovers it from.
fn seed_for(ek: &EkPublic<'_>) -> Option<(Secret<[u8; 32]>, Vec<u8>)> {
    let mut random = Secret::new([0; 32]);
    OsRng.fill_bytes(random.expose_mut());
    match ek {
        EkPublic::Rsa(modulus) => {
            let padding = Oaep::new_with_label::<Sha256, _>("IDENTITY\0");
            let encrypted = rsa_key(modulus).ok()?.encrypt(&mut OsRng, padding, random.expose()).ok()?;
            Some((random, encrypted))
        }
        EkPublic::Ecc(point) => {
            let (seed, sent) = shared_seed(point, &random, b"IDENTITY")?;
            let mut bytes = [0; 68];
            let mut w = Writer::new(&mut bytes);
            w.tpm2b(&sent.x).ok()?;
            w.tpm2b(&sent.y).ok()?;
            Some((seed, w.finish().ok()?.to_vec()))
        }
    }
}
