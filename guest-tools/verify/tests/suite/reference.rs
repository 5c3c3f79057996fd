//! Reference values in a file: what is taken, and what is refused.

use dolmen_verify::{Expected, Policy, REFERENCE_FORMAT, Release, Verdict, check};
use serde_json::{Value, json};

use crate::forge::{Forge, NONCE};

/// The values of what `forge` launches.
pub(crate) fn values(forge: &Forge) -> Value {
    let mut everything = forge.clone();
    everything.algorithms = dolmen_drtm::Algorithm::ALL.to_vec();
    let log = everything.event_log();
    let log = dolmen_drtm::replay::EventLog::parse(&log).unwrap();
    let digest = |event: &dolmen_drtm::replay::Event<'_>| {
        let banks = dolmen_verify::BANKS.map(|(name, algorithm)| {
            (name.to_owned(), Value::from(hex::encode(event.digest(algorithm).unwrap())))
        });
        Value::Object(banks.into_iter().collect())
    };
    let events: Vec<Value> = log
        .events()
        .map(|event| json!({"pcr": event.pcr, "event": String::from_utf8_lossy(event.data), "digests": digest(&event)}))
        .collect();
    let banks = dolmen_verify::BANKS.map(|(bank, algorithm)| {
        let value = |pcr| hex::encode(log.replay(algorithm, pcr).unwrap().bytes());
        json!({"bank": bank, "pcr17": value(17), "pcr18": value(18)})
    });
    let g0 = hex::encode(forge.binding.registers[0]);
    json!({
        "format": REFERENCE_FORMAT,
        "launch_bytes": 12,
        "banks": banks,
        "events": events,
        "guests": [{"name": "demo", "g0": g0}],
    })
}

/// The policy that accepts `forge` by a file with reference values.
pub(crate) fn policy(forge: &Forge, more: &str) -> Policy {
    let text = forge.policy_text();
    let (_, keys) = text.split_once("[[keys]]").unwrap();
    let values = values(forge).to_string();
    Policy::parse_with(&format!("releases = \"values.json\"\n{more}\n[[keys]]{keys}"), &|_| {
        Ok(values.clone().into())
    })
    .unwrap_or_else(|error| panic!("{error}"))
}

fn refused(values: &Value) -> String {
    Release::parse(values.to_string().as_bytes(), "values.json").unwrap_err().to_string()
}

#[test]
fn evidence_of_a_released_build_is_trusted() {
    let honest = Forge::honest();
    let report = check(&honest.bytes(), &policy(&honest, ""), &Expected::nonce(NONCE).unwrap());
    assert_eq!(report.verdict, Verdict::Trusted, "{report}");
    assert!(report.find("log").unwrap().text.ends_with("word for word that of a release"), "{report}");
}

#[test]
fn values_that_contradict_each_other_are_refused() {
    let honest = values(&Forge::honest());
    assert!(Release::parse(honest.to_string().as_bytes(), "values.json").is_ok());
    for (pointer, value, want) in [
        ("/format", json!("dolmen-reference-values-2"), "`format` is \"dolmen-reference-values-2\""),
        ("/banks/1/pcr17", json!("00".repeat(32)), "do not replay to PCR 17 of bank sha256"),
        ("/banks/0/pcr18", json!("00".repeat(20)), "do not replay to PCR 18 of bank sha1"),
        ("/banks/1/pcr18", json!("00".repeat(31)), "banks, sha256, pcr18: expected 32 bytes in hex"),
        ("/banks/1/bank", json!("sm3"), "banks: there is no bank \"sm3\""),
        ("/events/1/digests/sha384", json!("zz"), "events, \"core\", sha384: expected 48 bytes in hex"),
        ("/events/1/event", json!("kernel"), "`events` are not"),
        ("/events/2/event", json!("guest/demo/kernel"), "`events` are not"),
        ("/events/2/pcr", json!(16), "`events` are not"),
        ("/guests/0/g0", json!("00"), "guests, \"demo\", g0: expected 48 bytes in hex"),
        ("/guests/0/name", json!(3), "invalid type"),
    ] {
        let mut altered = honest.clone();
        *altered.pointer_mut(pointer).unwrap() = value;
        let text = refused(&altered);
        assert!(text.contains(want), "{pointer}: {text}");
    }
    let mut without = honest.clone();
    without["banks"].as_array_mut().unwrap().remove(1);
    assert_eq!(refused(&without), "there is no bank \"sha256\"");
    without["surplus"] = json!(1);
    assert!(refused(&without).contains("unknown field"));
}

/// The same values without manifest and guests.
fn code_alone(forge: &Forge) -> Value {
    let mut values = values(forge);
    values["events"].as_array_mut().unwrap().truncate(2);
    values["guests"] = json!([]);
    for bank in values["banks"].as_array_mut().unwrap() {
        bank.as_object_mut().unwrap().remove("pcr18");
    }
    values
}

#[test]
fn a_release_of_the_code_alone_leaves_the_configuration_to_the_policy() {
    let honest = Forge::honest();
    let (text, expected) = (honest.policy_text(), Expected::nonce(NONCE).unwrap());
    let (_, rest) = text.split_once('\n').unwrap();
    let values = code_alone(&honest).to_string();
    let read = |text: &str| Policy::parse_with(text, &|_| Ok(values.clone().into()));
    let policy = read(&format!("releases = \"values.json\"\n{rest}")).unwrap();
    assert_eq!(check(&honest.bytes(), &policy, &expected).verdict, Verdict::Trusted);
    let mut forge = Forge::honest();
    forge.events[3].2 = b"another kernel";
    assert!(check(&forge.bytes(), &policy, &expected).has_failed("pcrs"));
    let (_, without) = rest.split_once('\n').unwrap();
    assert_eq!(read(&format!("releases = \"values.json\"\n{without}")).unwrap_err().field(), "pcr18");
}

#[test]
fn a_release_of_the_code_alone_tells_nothing_of_guests() {
    let honest = code_alone(&Forge::honest());
    assert!(Release::parse(honest.to_string().as_bytes(), "values.json").is_ok());
    for (pointer, value) in [
        ("/guests", json!([{"name": "demo", "g0": "00".repeat(48)}])),
        (
            "/banks/1",
            json!({"bank": "sha256", "pcr17": honest["banks"][1]["pcr17"], "pcr18": "00".repeat(32)}),
        ),
    ] {
        let mut altered = honest.clone();
        *altered.pointer_mut(pointer).unwrap() = value;
        assert!(refused(&altered).starts_with("`events`"), "{pointer}");
    }
    let mut whole = values(&Forge::honest());
    whole["banks"][1].as_object_mut().unwrap().remove("pcr18");
    assert_eq!(refused(&whole), "banks, sha256, pcr18: expected 32 bytes in hex");
}

#[test]
fn a_policy_may_take_some_guests_of_a_release_and_no_others() {
    let honest = Forge::honest();
    let expected = Expected::nonce(NONCE).unwrap();
    let named = policy(&honest, "[guests.demo]");
    assert_eq!(check(&honest.bytes(), &named, &expected).verdict, Verdict::Trusted);
    let g0 = "00".repeat(48);
    let other = policy(&honest, &format!("[guests.another]\ng0 = \"{g0}\""));
    assert!(check(&honest.bytes(), &other, &expected).has_failed("guest"));
}

#[test]
fn what_differs_from_a_release_is_named() {
    let policy = policy(&Forge::honest(), "");
    for (index, want) in
        [(0, "the launch image (sha256 "), (1, "the core (sha256 "), (2, "the manifest (sha256 ")]
    {
        let mut forge = Forge::honest();
        forge.events[index].2 = b"something else";
        let report = check(&forge.bytes(), &policy, &Expected::nonce(NONCE).unwrap());
        assert!(report.find("pcrs").unwrap().text.contains(want), "{report}");
    }
}
