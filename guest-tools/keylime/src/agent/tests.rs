use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dolmen_abi::{CallGroup, EkId};
use dolmen_guest::Client;
use dolmen_guest::loopback::Loopback;
use dolmen_vm::service::GuestSlot;
use dolmen_vm::service::fake::launched_config;
use serde_json::{Value, json};

use super::*;
use crate::answer::Reply;
use crate::request::{Method, Server};

/// Answers of servers that are not there, in order; what was sent and how long was waited.
#[derive(Debug, Default)]
struct Script {
    answers: Vec<(u16, Value)>,
    sent: Vec<Request>,
    pauses: Vec<u64>,
}

impl Web for Script {
    fn ask(&mut self, request: &Request) -> Result<Reply, Failure> {
        self.sent.push(request.clone());
        assert!(!self.answers.is_empty(), "nobody expects {request:?}");
        let (status, body) = self.answers.remove(0);
        if status == 0 {
            return Err(Failure::Later("no way there".to_owned(), None));
        }
        Ok(Reply { status, retry_after: None, body: body.to_string().into_bytes() })
    }

    fn pause(&mut self, seconds: u64) {
        self.pauses.push(seconds);
    }
}

fn agent(answers: Vec<(u16, Value)>) -> Agent<Loopback, Script> {
    let host = Host::new(Client::new(Loopback::launched().unwrap()), EkId::RSA);
    Agent::new(host, Script { answers, ..Script::default() }, "agent".to_owned())
}

/// The fake TPM gives back what is in the first part of a credential.
fn credential() -> (u16, Value) {
    let blob = [&[0xba, 0xdc, 0xc0, 0xde, 0, 0, 0, 1][..], &[0, 4], b"open", &[0, 1, 9]].concat();
    (200, json!({ "results": { "blob": STANDARD.encode(blob) } }))
}

fn activated() -> (u16, Value) {
    (200, json!({ "code": 200, "status": "Success", "results": {} }))
}

fn challenge() -> (u16, Value) {
    let asked = json!([{ "authentication_type": "tpm_pop",
                         "chosen_parameters": { "challenge": STANDARD.encode(b"a challenge") } }]);
    (200, json!({ "data": { "id": "session-1", "attributes": { "authentication_requested": asked } } }))
}

fn token(evaluation: &str) -> (u16, Value) {
    (200, json!({ "data": { "attributes": { "evaluation": evaluation, "token": "the.token" } } }))
}

fn wanted() -> (u16, Value) {
    let items = json!([
        { "evidence_type": "tpm_quote", "chosen_parameters": {
            "signature_scheme": "rsassa", "hash_algorithm": "sha256",
            "challenge": STANDARD.encode(b"a nonce"), "selected_subjects": { "sha256": [17, 18] } } },
        { "evidence_type": "uefi_log" },
    ]);
    (
        201,
        json!({ "data": { "attributes": { "evidence_requested": items },
                            "links": { "self": "/v3.0/agents/agent/attestations/4" } } }),
    )
}

fn taken(next: u64) -> (u16, Value) {
    (202, json!({ "meta": { "seconds_to_next_attestation": next } }))
}

fn refused(status: u16) -> (u16, Value) {
    (status, json!({ "errors": [{ "detail": "no" }] }))
}

/// A voice that nobody hears any more.
fn quiet() -> Voice<impl Write> {
    let (_, out) = std::io::pipe().unwrap();
    Voice { json: true, out }
}

fn run(agent: &mut Agent<Loopback, Script>, count: u64) -> Result<(), Failure> {
    let outcome = agent.run(Some(count), 3, &mut quiet());
    assert!(outcome.is_err() || agent.web.answers.is_empty(), "not all was asked for");
    outcome
}

fn paths(agent: &Agent<Loopback, Script>) -> Vec<&str> {
    agent.web.sent.iter().map(|request| request.path.as_str()).collect()
}

#[test]
fn a_host_registers_opens_a_session_and_attests_until_it_is_enough() {
    let all =
        vec![credential(), activated(), challenge(), token("pass"), wanted(), taken(7), wanted(), taken(0)];
    let mut agent = agent(all);
    run(&mut agent, 2).unwrap();
    let attestation = ["/v3.0/agents/agent/attestations", "/v3.0/agents/agent/attestations/4"];
    let begin =
        ["/v2.1/agents/agent", "/v2.1/agents/agent/activate", "/v3.0/sessions", "/v3.0/sessions/session-1"];
    assert_eq!(paths(&agent), [&begin[..], &attestation, &attestation].concat());
    assert_eq!(agent.web.pauses, [7], "the verifier's pause is longer than ours");
    let sent = &agent.web.sent;
    assert!(sent[..4].iter().all(|request| request.token.is_none()));
    assert!(sent[4..].iter().all(|request| request.token.as_ref().unwrap().as_str() == "the.token"));
    assert_eq!(sent[0].body["aik_tpm"], STANDARD.encode(b"k\x03"), "the key that speaks of the host, by RSA");
    // The challenge is in what the TPM attests, the nonce in what it quotes.
    let message = |value: &Value| STANDARD.decode(value.as_str().unwrap()).unwrap();
    let proof = &sent[3].body["data"]["attributes"]["authentication_provided"][0]["data"];
    assert_eq!(message(&proof["message"]), b"a challenge");
    assert_eq!((message(&proof["signature"]).len(), sent[3].method), (72, Method::Patch));
    let evidence = &sent[5].body["data"]["attributes"]["evidence_collected"];
    assert_eq!(message(&evidence[0]["data"]["message"]), b"a nonce");
    assert_eq!(message(&evidence[0]["data"]["subject_data"]).len(), 668);
    assert_eq!(message(&evidence[1]["data"]["entries"]), agent.host.log().unwrap());
    let servers: Vec<Server> = sent[..3].iter().map(|request| request.server).collect();
    assert_eq!(servers, [Server::Registrar, Server::Registrar, Server::Verifier]);
}

#[test]
fn a_token_that_is_no_longer_taken_leads_to_another_session_without_registering_again() {
    let begin = vec![credential(), activated(), challenge(), token("pass")];
    let again = vec![refused(401), challenge(), token("pass"), wanted(), taken(1)];
    let mut agent = agent([begin, again].concat());
    run(&mut agent, 1).unwrap();
    assert_eq!(paths(&agent).iter().filter(|path| **path == "/v2.1/agents/agent").count(), 1);
    assert_eq!(agent.web.pauses, [1]);
}

#[test]
fn a_proof_that_is_not_taken_is_tried_again_and_after_five_times_with_a_new_registration() {
    let refusals = |count: usize| {
        (0..count).flat_map(|n| [challenge(), if n % 2 == 0 { token("fail") } else { refused(401) }])
    };
    let mut answers = vec![credential(), activated()];
    answers.extend(refusals(5));
    answers.extend([credential(), activated()]);
    answers.extend(refusals(4));
    answers.extend([challenge(), token("pass"), wanted(), taken(1), refused(422)]);
    let mut agent = agent(answers);
    // What is no question of time is the end.
    assert!(matches!(agent.run(None, 3, &mut quiet()), Err(Failure::Fatal(_))));
    assert_eq!(agent.web.pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60, 3]);
    assert_eq!(paths(&agent).iter().filter(|path| **path == "/v2.1/agents/agent").count(), 2);
}

#[test]
fn pauses_grow_to_a_minute_and_start_over_after_a_success() {
    assert_eq!((1..9).map(back_off).collect::<Vec<_>>(), [1, 2, 4, 8, 16, 32, 60, 60]);
    assert_eq!((back_off(0), back_off(u32::MAX)), (1, 60));
    let none = || (0, Value::Null);
    let begin = vec![none(), none(), credential(), activated(), challenge(), token("pass")];
    let rest = vec![wanted(), taken(1), refused(503), wanted(), taken(1)];
    let mut agent = agent([begin, rest].concat());
    run(&mut agent, 2).unwrap();
    assert_eq!(agent.web.pauses, [1, 2, 3, 1]);
}

#[test]
fn whoever_wants_one_attestation_does_not_wait_for_ever() {
    let mut agent = agent((0..5).map(|_| refused(500)).collect());
    let Err(Failure::Fatal(why)) = run(&mut agent, 1) else { panic!("no end") };
    assert!(why.contains("the registrar answers 500: no"), "{why}");
    assert_eq!(agent.web.pauses, [1, 2, 4, 8]);
}

#[test]
fn another_key_under_the_same_name_is_told_and_not_tried_again() {
    let mut agent = agent(vec![(403, json!({ "code": 403, "status": "forbidden" }))]);
    let Err(Failure::Fatal(why)) = agent.run(None, 1, &mut quiet()) else { panic!("no end") };
    assert!(why.contains("regdelete") && why.contains("forbidden"), "{why}");
}

#[test]
fn a_guest_that_may_not_speak_of_the_host_is_told_what_it_lacks() {
    for lacking in [CallGroup::ENROL, CallGroup::HOST_QUOTE | CallGroup::QUOTE] {
        let mut granted = launched_config(GuestSlot::new(0).unwrap());
        granted.groups = CallGroup::all() - lacking;
        let host = Host::new(Client::new(Loopback::with(granted)), EkId::RSA);
        let script = Script { answers: vec![credential(), activated(), challenge()], ..Script::default() };
        let mut agent = Agent::new(host, script, "agent".to_owned());
        let Err(Failure::Fatal(why)) = agent.run(None, 1, &mut quiet()) else {
            panic!("{lacking:?}: no end")
        };
        assert!(why.contains("`host-quote`, `enrol` and `log`"), "{why}");
    }
}

#[test]
fn the_tpms_refusal_is_tried_again() {
    let mut agent = agent(vec![credential(), activated(), challenge(), token("pass"), wanted(), taken(1)]);
    agent.host.client().transport().tpm.failure = 0x921;
    let Err(Failure::Later(why, None)) = agent.step(1) else { panic!("no failure") };
    assert!(why.contains("0x921"), "{why}");
    agent.host.client().transport().tpm.failure = 0;
    run(&mut agent, 1).unwrap();
}

#[test]
fn the_time_of_the_start_is_found_in_the_kernels_statistics() {
    assert_eq!(started("cpu 1 2\nbtime 1795000000\nprocesses 7\n"), Some(1_795_000_000));
    for none in ["", "btime", "btime x", "xbtime 5"] {
        assert_eq!(started(none), None, "{none}");
    }
    assert!(boot_time().unwrap() > 1_500_000_000);
}
