//! What the servers answer. Their bytes are no better than anybody's: what is used of them is looked at first.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dolmen_abi::{HOST_PCRS, MAX_HOST_NONCE};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::failure::Failure;
use crate::request::Server;

/// What stands before a credential in a file of tpm2-tools, which is the registrar's form too: a magic and a version.
const CREDENTIAL_HEAD: [u8; 8] = [0xba, 0xdc, 0xc0, 0xde, 0, 0, 0, 1];
/// Longest piece of a server's own words that is passed on.
const MOST_WORDS: usize = 300;

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    /// HTTP's status.
    pub(crate) status: u16,
    /// Seconds after which the server wants to be asked again.
    pub(crate) retry_after: Option<u64>,
    /// Its body.
    pub(crate) body: Vec<u8>,
}

/// What the verifier wants to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// A quote over these registers of the SHA-256 bank.
    Quote {
        /// Bit n for PCR n.
        pcrs: u32,
        /// What the TPM shall sign along.
        challenge: Vec<u8>,
    },
    /// The launch's event log.
    Log,
}

impl Reply {
    /// Its body as JSON, if the server did what it was asked.
    pub(crate) fn accepted(&self, server: Server) -> Result<Value, Failure> {
        let who = match server {
            Server::Registrar => "registrar",
            Server::Verifier => "verifier",
        };
        let value = serde_json::from_slice(&self.body).ok();
        let said = value.as_ref().map(words).unwrap_or_default();
        let text = format!("the {who} answers {}{said}", self.status);
        match (self.status, server) {
            (200..300, _) => value.ok_or_else(|| {
                Failure::Fatal(format!("the {who} answers with something else than JSON: is it Keylime's?"))
            }),
            (403, Server::Registrar) => Err(Failure::Fatal(format!(
                "{text}. Hint: it knows this agent with other keys. The attestation key belongs to one measured \
                 hypervisor: after an upgrade that you know of, delete the agent (`keylime_tenant -c regdelete`) and \
                 add it anew; otherwise find out what was launched"
            ))),
            (401 | 403, Server::Verifier) => Err(Failure::Session(text)),
            (404, Server::Verifier) => Err(Failure::Later(
                format!("{text}. Hint: add the agent (`keylime_tenant -c add --push-model`)"),
                self.retry_after,
            )),
            (408 | 409 | 429 | 500..600, _) => Err(Failure::Later(text, self.retry_after)),
            _ => Err(Failure::Fatal(text)),
        }
    }
}

/// What a server says of an error: `errors` of JSON:API, or the registrar's `status`.
fn words(value: &Value) -> String {
    let listed = value.get("errors").and_then(Value::as_array).into_iter().flatten();
    let mut said: Vec<&str> = listed
        .filter_map(|error| error.get("detail").or_else(|| error.get("title")).and_then(Value::as_str))
        .collect();
    said.extend(value.get("status").and_then(Value::as_str));
    let said = said.join("; ");
    // It goes to a terminal.
    let plain: String = said.chars().filter(|c| !c.is_control()).take(MOST_WORDS).collect();
    if plain.is_empty() { plain } else { format!(": {plain}") }
}

/// The credential of the registrar: `TPM2B_ID_OBJECT` and `TPM2B_ENCRYPTED_SECRET`, both without their sizes.
pub(crate) fn credential(answer: &Value) -> Option<(Vec<u8>, Vec<u8>)> {
    let blob = bytes(answer.pointer("/results/blob")?)?;
    let (credential, rest) = sized(blob.strip_prefix(&CREDENTIAL_HEAD)?)?;
    let (secret, rest) = sized(rest)?;
    rest.is_empty().then(|| (credential.to_vec(), secret.to_vec()))
}

fn sized(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (size, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(u16::from_be_bytes(*size).into())
}

/// The session's name and the challenge.
pub(crate) fn challenge(answer: &Value) -> Option<(String, Vec<u8>)> {
    let session = answer.pointer("/data/id")?.as_str()?;
    // It becomes part of an address.
    let is_plain = !session.is_empty() && session.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    let asked = answer.pointer("/data/attributes/authentication_requested/0")?;
    let is_known = asked.get("authentication_type")?.as_str()? == "tpm_pop";
    let challenge = nonce(asked.pointer("/chosen_parameters/challenge")?)?;
    (is_plain && is_known).then(|| (session.to_owned(), challenge))
}

/// The token, if the proof was good enough.
pub(crate) fn token(answer: &Value) -> Option<Zeroizing<String>> {
    let attributes = answer.pointer("/data/attributes")?;
    let is_pass = attributes.get("evaluation")?.as_str()? == "pass";
    let token = attributes.get("token")?.as_str()?;
    // It becomes part of a header.
    let is_plain = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    (is_pass && is_plain).then(|| Zeroizing::new(token.to_owned()))
}

/// The attestation's number and what it is to hold, in order.
pub(crate) fn wanted(answer: &Value) -> Option<(String, Vec<Wanted>)> {
    let list = answer.pointer("/data/attributes/evidence_requested")?.as_array()?;
    let items: Option<Vec<Wanted>> = list.iter().map(item).collect();
    let link = answer.pointer("/data/links/self").and_then(Value::as_str).unwrap_or_default();
    let number = link.rsplit('/').next().filter(|last| last.parse::<u64>().is_ok());
    Some((number.unwrap_or("latest").to_owned(), items?)).filter(|(_, items)| !items.is_empty())
}

fn item(value: &Value) -> Option<Wanted> {
    let text = |field: &str| value.pointer(field).and_then(Value::as_str);
    match text("/evidence_type")? {
        "tpm_quote" => {
            let is_ours = text("/chosen_parameters/signature_scheme")? == "rsassa"
                && text("/chosen_parameters/hash_algorithm")? == "sha256";
            let pcrs = value.pointer("/chosen_parameters/selected_subjects/sha256")?.as_array()?;
            let pcrs = pcrs.iter().try_fold(0_u32, |pcrs, pcr| {
                let pcr = u32::try_from(pcr.as_u64()?).ok()?;
                let is_register = usize::try_from(pcr).is_ok_and(|pcr| pcr < HOST_PCRS);
                is_register.then(|| pcrs | 1_u32.wrapping_shl(pcr))
            })?;
            let challenge = nonce(value.pointer("/chosen_parameters/challenge")?)?;
            (is_ours && pcrs != 0).then_some(Wanted::Quote { pcrs, challenge })
        }
        "uefi_log" => Some(Wanted::Log),
        _ => None,
    }
}

/// Seconds until the verifier takes the next attestation.
pub(crate) fn pause(answer: &Value) -> Option<u64> {
    answer.pointer("/meta/seconds_to_next_attestation")?.as_u64()
}

/// A challenge that fits a call.
fn nonce(value: &Value) -> Option<Vec<u8>> {
    bytes(value).filter(|nonce| (1..=MAX_HOST_NONCE).contains(&nonce.len()))
}

fn bytes(value: &Value) -> Option<Vec<u8>> {
    STANDARD.decode(value.as_str()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn reply(status: u16, body: &Value) -> Reply {
        Reply { status, retry_after: Some(7), body: body.to_string().into_bytes() }
    }

    #[test]
    fn each_status_says_what_becomes_of_it() {
        let body = json!({ "errors": [{ "detail": "why\u{1b}[31m not" }] });
        let failure = |status, server| reply(status, &body).accepted(server).unwrap_err();
        for status in [409, 429, 500, 503] {
            let Failure::Later(text, Some(7)) = failure(status, Server::Verifier) else { panic!("{status}") };
            assert!(text.contains("why[31m not"), "{text}");
        }
        assert!(
            matches!(failure(404, Server::Verifier), Failure::Later(text, _) if text.contains("--push-model"))
        );
        assert!(matches!(failure(401, Server::Verifier), Failure::Session(_)));
        assert!(
            matches!(failure(403, Server::Registrar), Failure::Fatal(text) if text.contains("regdelete"))
        );
        for status in [302, 400, 422] {
            assert!(matches!(failure(status, Server::Verifier), Failure::Fatal(_)), "{status}");
        }
    }

    #[test]
    fn an_answer_that_is_no_json_is_not_keylimes() {
        assert!(reply(202, &json!({})).accepted(Server::Verifier).is_ok());
        let page = Reply { status: 200, retry_after: None, body: b"<html>".to_vec() };
        assert!(
            matches!(page.accepted(Server::Registrar), Err(Failure::Fatal(text)) if text.contains("Keylime"))
        );
    }

    #[test]
    fn a_credential_has_head_two_parts_and_nothing_besides() {
        let blob = [&CREDENTIAL_HEAD[..], &[0, 2, 1, 2, 0, 1, 3]].concat();
        let answer = |blob: &[u8]| json!({ "results": { "blob": STANDARD.encode(blob) } });
        assert_eq!(credential(&answer(&blob)), Some((vec![1, 2], vec![3])));
        for length in 0..blob.len() {
            assert_eq!(credential(&answer(&blob[..length])), None, "{length}");
        }
        assert_eq!(credential(&answer(&[&blob[..], &[0]].concat())), None);
    }

    fn asked(session: &str, challenge: &[u8]) -> Value {
        json!({ "data": { "id": session, "attributes": { "authentication_requested": [{
            "authentication_type": "tpm_pop",
            "chosen_parameters": { "challenge": STANDARD.encode(challenge) },
        }] } } })
    }

    #[test]
    fn a_sessions_name_is_no_path_and_its_challenge_fits() {
        assert_eq!(challenge(&asked("ab-1", &[7; 16])), Some(("ab-1".to_owned(), vec![7; 16])));
        for (session, nonce) in [("", 16), ("../x", 16), ("a?b", 16), ("a", 0), ("a", 65)] {
            assert_eq!(challenge(&asked(session, &vec![7; nonce])), None, "{session} {nonce}");
        }
    }

    #[test]
    fn a_token_comes_with_a_pass_only() {
        let answer = |evaluation: &str, token: &str| json!({ "data": { "attributes": { "evaluation": evaluation, "token": token } } });
        assert_eq!(token(&answer("pass", "t.x")).unwrap().as_str(), "t.x");
        for (evaluation, text) in [("fail", "t.x"), ("pass", ""), ("pass", "a\r\nHost: b"), ("pass", "a b")] {
            assert!(token(&answer(evaluation, text)).is_none(), "{evaluation} {text}");
        }
    }

    fn quote(pcrs: &Value, scheme: &str) -> Value {
        json!({ "evidence_type": "tpm_quote", "chosen_parameters": {
            "signature_scheme": scheme, "hash_algorithm": "sha256", "challenge": STANDARD.encode([1; 16]),
            "selected_subjects": { "sha256": pcrs },
        } })
    }

    #[test]
    fn what_is_wanted_comes_in_order_or_not_at_all() {
        let answer = |items: &[Value]| {
            json!({ "data": { "attributes": { "evidence_requested": items },
                              "links": { "self": "/v3.0/agents/a/attestations/12" } } })
        };
        let log = json!({ "evidence_type": "uefi_log" });
        let good = quote(&json!([17, 18]), "rsassa");
        let (number, items) = wanted(&answer(&[good.clone(), log.clone()])).unwrap();
        assert_eq!(number, "12");
        assert_eq!(items, [Wanted::Quote { pcrs: 0x0006_0000, challenge: vec![1; 16] }, Wanted::Log]);
        for bad in [
            quote(&json!([24]), "rsassa"),
            quote(&json!([-1]), "rsassa"),
            quote(&json!([]), "rsassa"),
            quote(&Value::Null, "rsassa"),
            quote(&json!([17]), "ecdsa"),
            json!({ "evidence_type": "ima_log" }),
        ] {
            assert_eq!(wanted(&answer(&[log.clone(), bad.clone()])), None, "{bad}");
        }
        assert_eq!(wanted(&answer(&[])), None);
        let mut elsewhere = answer(&[good]);
        elsewhere["data"]["links"]["self"] = json!("/v3.0/agents/a/attestations/../../x");
        assert_eq!(wanted(&elsewhere).unwrap().0, "latest");
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_panic(status in 100..600_u16, body in prop::collection::vec(any::<u8>(), 0..200)) {
            for server in [Server::Registrar, Server::Verifier] {
                drop(Reply { status, retry_after: None, body: body.clone() }.accepted(server));
            }
            let blob = json!({ "results": { "blob": STANDARD.encode(&body) } });
            credential(&blob);
        }

        #[test]
        fn no_json_makes_a_panic(value in json_value()) {
            let wrapped = json!({ "data": { "id": value, "attributes": value }, "errors": value, "meta": value,
                                  "results": value });
            for answer in [&value, &wrapped] {
                words(answer);
                credential(answer);
                challenge(answer);
                token(answer);
                wanted(answer);
                pause(answer);
                item(answer);
            }
        }
    }

    /// Any JSON, with the names that are looked for.
    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,12}".prop_map(Value::from),
            Just(Value::from("tpm_quote")),
            Just(Value::from("rsassa")),
            Just(Value::from("sha256")),
        ];
        leaf.prop_recursive(5, 40, 5, |inner| {
            let name = prop_oneof![
                Just("data".to_owned()),
                Just("attributes".to_owned()),
                Just("evidence_requested".to_owned()),
                Just("evidence_type".to_owned()),
                Just("chosen_parameters".to_owned()),
                Just("selected_subjects".to_owned()),
                Just("sha256".to_owned()),
                Just("signature_scheme".to_owned()),
                Just("hash_algorithm".to_owned()),
                Just("challenge".to_owned()),
                Just("detail".to_owned()),
                "[a-z]{0,3}",
            ];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(name, inner, 0..5)
                    .prop_map(|map| map.into_iter().collect::<serde_json::Map<_, _>>().into()),
            ]
        })
    }
}
