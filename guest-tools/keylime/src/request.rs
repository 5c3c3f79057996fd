//! The requests: where they go and what they say.

use dolmen_abi::HOST_PCRS;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha384;
use zeroize::Zeroizing;

use crate::host::{Identity, Quote, Signed, encoded};
use crate::register::serialized;

/// Media type of JSON:API, which the verifier demands.
const JSON_API: &str = "application/vnd.api+json";
/// The registrar speaks plain JSON.
const JSON: &str = "application/json";

/// Whom a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    /// Keeps keys of agents.
    Registrar,
    /// Judges attestations.
    Verifier,
}

/// How it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// POST.
    Post,
    /// PUT.
    Put,
    /// PATCH.
    Patch,
}

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// For whom.
    pub(crate) server: Server,
    /// How.
    pub(crate) method: Method,
    /// Where.
    pub(crate) path: String,
    /// The token of the session, if there is one.
    pub(crate) token: Option<Zeroizing<String>>,
    /// What.
    pub(crate) body: Value,
}

impl Request {
    /// Media type of body and answer.
    pub(crate) const fn media_type(&self) -> &'static str {
        match self.server {
            Server::Registrar => JSON,
            Server::Verifier => JSON_API,
        }
    }
}

/// Registers the keys under this name. (Version 3 of this interface answers registrations with 500 in Keylime 7.14.3.)
pub(crate) fn register(agent: &str, identity: &Identity) -> Request {
    let mut body = json!({
        "ek_tpm": encoded(&identity.ek),
        "aik_tpm": encoded(&identity.ak),
    });
    if let (Some(certificate), Some(body)) = (&identity.certificate, body.as_object_mut()) {
        body.insert("ekcert".to_owned(), encoded(certificate).into());
    }
    let path = format!("/v2.1/agents/{agent}");
    Request { server: Server::Registrar, method: Method::Post, path, token: None, body }
}

/// Shows what was in the registrar's credential.
pub(crate) fn activate(agent: &str, content: &[u8]) -> Request {
    let path = format!("/v2.1/agents/{agent}/activate");
    let body = json!({ "auth_tag": tag(agent, content) });
    Request { server: Server::Registrar, method: Method::Put, path, token: None, body }
}

/// HMAC-SHA-384 of the agent's name; the key is the credential's content, in base64 as text.
fn tag(agent: &str, content: &[u8]) -> String {
    let key = Zeroizing::new(encoded(content));
    // HMAC takes keys of any length.
    let Ok(mut mac) = Hmac::<Sha384>::new_from_slice(key.as_bytes()) else { return String::new() };
    mac.update(agent.as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

/// Asks the verifier for a challenge.
pub(crate) fn session(agent: &str) -> Request {
    let attributes = json!({
        "agent_id": agent,
        "authentication_supported": [{ "authentication_class": "pop", "authentication_type": "tpm_pop" }],
    });
    let body = json!({ "data": { "type": "session", "attributes": attributes } });
    let path = "/v3.0/sessions".to_owned();
    Request { server: Server::Verifier, method: Method::Post, path, token: None, body }
}

/// Answers that challenge.
pub(crate) fn proof(agent: &str, session: &str, proof: &Signed) -> Request {
    let attributes = json!({
        "agent_id": agent,
        "authentication_provided": [{
            "authentication_class": "pop",
            "authentication_type": "tpm_pop",
            "data": { "message": encoded(&proof.message), "signature": encoded(&proof.signature) },
        }],
    });
    let body = json!({ "data": { "type": "session", "id": session, "attributes": attributes } });
    let path = format!("/v3.0/sessions/{session}");
    Request { server: Server::Verifier, method: Method::Patch, path, token: None, body }
}

/// Tells what this host can attest: the registers of the SHA-256 bank by its RSA key, and the launch's log.
pub(crate) fn capabilities(agent: &str, token: &str, ak: &[u8], boot_time: u64) -> Request {
    let pcrs: Vec<usize> = (0..HOST_PCRS).collect();
    let evidence = json!([
        {
            "evidence_class": "certification",
            "evidence_type": "tpm_quote",
            "capabilities": {
                "component_version": "2.0",
                "hash_algorithms": ["sha256"],
                "signature_schemes": ["rsassa"],
                "available_subjects": { "sha256": pcrs },
                "certification_keys": [{
                    "key_class": "asymmetric",
                    "key_algorithm": "rsa",
                    "key_size": 2048,
                    "server_identifier": "ak",
                    "public": encoded(ak),
                }],
            },
        },
        {
            "evidence_class": "log",
            "evidence_type": "uefi_log",
            "capabilities": {
                "formats": ["application/octet-stream"],
                "supports_partial_access": false,
                "appendable": false,
            },
        },
    ]);
    let attributes =
        json!({ "evidence_supported": evidence, "system_info": { "boot_time": boot_time.to_string() } });
    attestation(Method::Post, format!("/v3.0/agents/{agent}/attestations"), token, &attributes)
}

/// One piece of evidence.
#[derive(Clone, Debug)]
pub(crate) enum Evidence {
    /// A quote over these registers.
    Quote(u32, Box<Quote>),
    /// The launch's log.
    Log(Vec<u8>),
}

/// Sends what the verifier chose, in its order.
pub(crate) fn evidence(agent: &str, token: &str, index: &str, collected: &[Evidence]) -> Request {
    let collected: Vec<Value> = collected
        .iter()
        .map(|piece| match piece {
            Evidence::Quote(pcrs, quote) => json!({
                "evidence_class": "certification",
                "evidence_type": "tpm_quote",
                "data": {
                    "subject_data": encoded(&serialized(*pcrs, &quote.values)),
                    "message": encoded(&quote.signed.message),
                    "signature": encoded(&quote.signed.signature),
                },
            }),
            Evidence::Log(log) => json!({
                "evidence_class": "log",
                "evidence_type": "uefi_log",
                "data": { "entries": encoded(log) },
            }),
        })
        .collect();
    let attributes = json!({ "evidence_collected": collected });
    attestation(Method::Patch, format!("/v3.0/agents/{agent}/attestations/{index}"), token, &attributes)
}

/// A request about an attestation, within a session.
fn attestation(method: Method, path: String, token: &str, attributes: &Value) -> Request {
    let body = json!({ "data": { "type": "attestation", "attributes": attributes } });
    Request { server: Server::Verifier, method, path, token: Some(Zeroizing::new(token.to_owned())), body }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_is_that_of_the_registrar() {
        // Python: hmac.new(base64.b64encode(b"0123456789abcdef"), b"agent", "sha384").hexdigest()
        let want = "d8b2a31a1227cddeb172139788b1414e07ceb32426dde000\
             0d281e85aeae302e21a2b67338e01dad29561a371a5be8f6";
        assert_eq!(tag("agent", b"0123456789abcdef"), want);
        assert_ne!(tag("other", b"0123456789abcdef"), want);
    }

    #[test]
    fn a_certificate_that_is_not_there_is_not_told() {
        let mut identity = Identity { ak: vec![1], ek: vec![2], certificate: None };
        assert!(register("a", &identity).body.get("ekcert").is_none());
        identity.certificate = Some(vec![0x30, 0]);
        assert_eq!(register("a", &identity).body["ekcert"], "MAA=");
    }

    #[test]
    fn the_token_goes_with_attestations_and_with_nothing_else() {
        let signed = Signed { message: vec![1], signature: vec![2] };
        for request in [session("a"), proof("a", "s", &signed), activate("a", b"x")] {
            assert!(request.token.is_none(), "{}", request.path);
        }
        assert_eq!(capabilities("a", "t", &[1], 7).token.unwrap().as_str(), "t");
        assert_eq!(evidence("a", "t", "0", &[]).token.unwrap().as_str(), "t");
    }
}
