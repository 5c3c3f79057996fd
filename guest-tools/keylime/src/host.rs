//! What the hypervisor is asked for.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dolmen_abi::{AkId, EkId, HOST_PCRS, MAX_ACTIVATED, MAX_AK_PUBLIC, MAX_CERTIFICATE, Status};
use dolmen_guest::{Client, Error, Transport};
use zeroize::Zeroizing;

use crate::failure::{Failure, Hindrance};

/// The key that signs: Keylime 7.14 takes no key of another kind in push mode (ADR 0019).
const KEY: AkId = AkId::HOST_RSA;
/// Longest event log that is read.
const MAX_LOG: usize = 1 << 16;

/// The hypervisor under this guest.
#[derive(Debug)]
pub(crate) struct Host<T> {
    client: Client<T>,
    ek: EkId,
}

/// The keys, as TPM2B_PUBLIC, and the endorsement key's certificate, if the TPM has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The attestation key.
    pub(crate) ak: Vec<u8>,
    /// The endorsement key.
    pub(crate) ek: Vec<u8>,
    /// Its certificate in DER.
    pub(crate) certificate: Option<Vec<u8>>,
}

/// A structure that the TPM made, and its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Signed {
    /// TPMS_ATTEST.
    pub(crate) message: Vec<u8>,
    /// TPMT_SIGNATURE.
    pub(crate) signature: Vec<u8>,
}

/// A quote with the values of its registers.
#[derive(Clone, Debug)]
pub(crate) struct Quote {
    /// The quote.
    pub(crate) signed: Signed,
    /// All registers; zeroes in place of those that were not quoted.
    pub(crate) values: [[u8; 32]; HOST_PCRS],
}

impl<T: Transport<Error: Hindrance>> Host<T> {
    /// The hypervisor behind `client`.
    pub(crate) const fn new(client: Client<T>, ek: EkId) -> Self {
        Self { client, ek }
    }

    /// The way to the hypervisor, to be bent.
    #[cfg(test)]
    pub(crate) const fn client(&mut self) -> &mut Client<T> {
        &mut self.client
    }

    /// The keys.
    pub(crate) fn identity(&mut self) -> Result<Identity, Failure> {
        let mut ek = vec![0; MAX_AK_PUBLIC];
        let length = self.client.endorsement_key(self.ek, &mut ek)?;
        ek.truncate(length);
        let mut certificate = vec![0; MAX_CERTIFICATE];
        let certificate = match self.client.ek_certificate(self.ek, &mut certificate) {
            Ok(length) => {
                certificate.truncate(length);
                Some(der(&certificate).to_vec())
            }
            // The tenant decides whether it wants one.
            Err(Error::Refused(Status::NO_CERTIFICATE)) => None,
            Err(error) => return Err(error.into()),
        };
        let mut ak = vec![0; MAX_AK_PUBLIC];
        let length = self.client.key_public(KEY, &mut ak)?;
        ak.truncate(length);
        Ok(Identity { ak, ek, certificate })
    }

    /// What is in a credential for the attestation key.
    pub(crate) fn activate(
        &mut self,
        credential: &[u8],
        secret: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let mut content = Zeroizing::new([0; MAX_ACTIVATED]);
        let length = self.client.activate_credential((KEY, self.ek), credential, secret, &mut content)?;
        Ok(Zeroizing::new(content.get(..length).unwrap_or_default().to_vec()))
    }

    /// The attestation key's attestation of itself.
    pub(crate) fn certify(&mut self, challenge: &[u8]) -> Result<Signed, Failure> {
        let reply = self.client.certify(KEY, challenge)?;
        signed(&reply.attest, reply.attest_length, &reply.signature, reply.signature_length)
    }

    /// A quote over these registers of the SHA-256 bank.
    pub(crate) fn quote(&mut self, pcrs: u32, challenge: &[u8]) -> Result<Quote, Failure> {
        let reply = self.client.host_quote(KEY, pcrs, challenge)?;
        let signed = signed(&reply.attest, reply.attest_length, &reply.signature, reply.signature_length)?;
        Ok(Quote { signed, values: reply.values })
    }

    /// The launch's event log.
    pub(crate) fn log(&mut self) -> Result<Vec<u8>, Failure> {
        let mut log = vec![0; MAX_LOG];
        let length = self.client.event_log(&mut log)?;
        log.truncate(length);
        Ok(log)
    }
}

fn signed(
    attest: &[u8],
    attest_length: u32,
    signature: &[u8],
    signature_length: u32,
) -> Result<Signed, Failure> {
    let part = |bytes: &[u8], length: u32| -> Option<Vec<u8>> {
        Some(bytes.get(..usize::try_from(length).ok()?)?.to_vec())
    };
    let parts = part(attest, attest_length).zip(part(signature, signature_length));
    let (message, signature) =
        parts.ok_or_else(|| Failure::Fatal("the hypervisor's reply is malformed".to_owned()))?;
    Ok(Signed { message, signature })
}

/// The certificate in what the TPM's maker stored, without what fills the place behind it: makers define places that are
/// larger. What is no structure of DER stays as it is.
fn der(stored: &[u8]) -> &[u8] {
    let length = match stored {
        [0x30, 0x82, high, low, ..] => usize::from(u16::from_be_bytes([*high, *low])).saturating_add(4),
        [0x30, 0x81, length, ..] => usize::from(*length).saturating_add(3),
        [0x30, length @ 0..=0x7f, ..] => usize::from(*length).saturating_add(2),
        _ => stored.len(),
    };
    stored.get(..length).unwrap_or(stored)
}

/// Bytes for JSON.
pub(crate) fn encoded(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_certificate_ends_where_it_says() {
        assert_eq!(der(&[0x30, 2, 1, 2, 0xff, 0xff]), [0x30, 2, 1, 2]);
        assert_eq!(der(&[&[0x30, 0x81, 1, 9][..], &[0; 9]].concat()), [0x30, 0x81, 1, 9]);
        let long = [&[0x30, 0x82, 1, 0][..], &[7; 256]].concat();
        assert_eq!(der(&[&long[..], &[0xff; 40]].concat()), long);
        for whole in [&[0x30, 0x82, 1, 0, 7][..], &[0x31, 0, 0], &[], &[0x30]] {
            assert_eq!(der(whole), whole, "what is cut short is the registrar's to refuse");
        }
    }

    proptest! {
        #[test]
        fn any_stored_bytes_give_a_beginning_of_them(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(bytes.starts_with(der(&bytes)));
        }
    }
}
