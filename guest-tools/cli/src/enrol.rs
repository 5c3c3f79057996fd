//! The guest's side of an enrolment (`docs/enrolment.md`).

use core::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dolmen_abi::{AkId, EkId, MAX_ACTIVATED, MAX_AK_PUBLIC, MAX_CERTIFICATE};
use dolmen_guest::{Client, Transport};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::failure::Failure;
use crate::output::Product;

/// Longest challenge that is read.
pub(crate) const MAX_CHALLENGE: usize = 4096;
/// What the files are, and their version.
const REQUEST_FORMAT: &str = "dolmen-enrolment-request-1";
const CHALLENGE_FORMAT: &str = "dolmen-enrolment-challenge-1";
/// Bytes in a credential of an enrolment.
const NONCE: usize = 32;
/// Longest chain of certificates that is sent along.
const MAX_CHAIN: usize = 32 * 1024;
/// Registers that an answer about the host is over: PCR 17 and 18.
const QUOTED: u32 = 0x0006_0000;

/// Both keys and the certificate, for the relying party.
pub(crate) fn request<T>(client: &mut Client<T>, key: AkId, ek: EkId) -> Result<Product, Failure>
where
    T: Transport<Error: fmt::Display>,
{
    let mut certificate = vec![0; MAX_CERTIFICATE];
    let length = client.ek_certificate(ek, &mut certificate)?;
    certificate.truncate(length);
    let chain = chain(client)?;
    let mut ek_public = vec![0; MAX_AK_PUBLIC];
    let length = client.endorsement_key(ek, &mut ek_public)?;
    ek_public.truncate(length);
    let mut ak_public = vec![0; MAX_AK_PUBLIC];
    let length = client.key_public(key, &mut ak_public)?;
    ak_public.truncate(length);
    let request = json!({
        "format": REQUEST_FORMAT,
        "key": key.word(),
        "ak_public": STANDARD.encode(ak_public),
        "ek": ek.word(),
        "ek_public": STANDARD.encode(ek_public),
        "ek_certificate": STANDARD.encode(certificate),
        "ek_chain": STANDARD.encode(chain),
    });
    Ok(Product::report("enrolment-request", format!("{request:#}\n"), request))
}

/// All parts of the chain of certificates, one after the other; empty if the TPM has none.
fn chain<T>(client: &mut Client<T>) -> Result<Vec<u8>, Failure>
where
    T: Transport<Error: fmt::Display>,
{
    let (mut chain, mut part) = (Vec::new(), vec![0; MAX_CERTIFICATE]);
    for number in 0..=u8::MAX {
        let Some(length) = client.ek_chain(number, &mut part)? else { break };
        chain.extend_from_slice(part.get(..length).unwrap_or_default());
        if chain.len() > MAX_CHAIN {
            return Err(Failure::plain(&"the TPM's chain of certificates is longer than any can be"));
        }
    }
    Ok(chain)
}

/// Opens the credential in the challenge, and brings evidence over what was in it.
pub(crate) fn answer<T>(client: &mut Client<T>, challenge: &[u8]) -> Result<Product, Failure>
where
    T: Transport<Error: fmt::Display>,
{
    let unfit = || Failure::plain(&"this is no challenge of `dolmen-verify enrol begin`");
    let challenge: Value = serde_json::from_slice(challenge).map_err(|_| unfit())?;
    let text = |field: &str| challenge.get(field).and_then(Value::as_str).ok_or_else(unfit);
    if text("format")? != CHALLENGE_FORMAT {
        return Err(unfit());
    }
    let key = AkId::from_word(text("key")?).ok_or_else(unfit)?;
    let ek = EkId::from_word(text("ek")?).ok_or_else(unfit)?;
    let bytes = |field: &str| STANDARD.decode(text(field)?).map_err(|_| unfit());
    let (credential, secret) = (bytes("credential")?, bytes("secret")?);
    let mut content = Zeroizing::new([0; MAX_ACTIVATED]);
    let length = client.activate_credential((key, ek), &credential, &secret, &mut content)?;
    let nonce = content.get(..length).filter(|nonce| nonce.len() == NONCE).ok_or_else(unfit)?;
    let evidence = if key.is_host() {
        client.host_evidence(key, QUOTED, nonce)?
    } else {
        let mut report_data = [0; dolmen_abi::REPORT_DATA_BYTES];
        report_data.iter_mut().zip(nonce).for_each(|(to, from)| *to = *from);
        client.evidence_by(key, &report_data)?
    };
    Ok(Product::bytes("evidence", Zeroizing::new(evidence)))
}
