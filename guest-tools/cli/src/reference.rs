//! PCR 17 of an image, from its reference values (`docs/verify.md`, "Reference values").

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::failure::Failure;

/// Longest file that is read.
pub(crate) const MAX_REFERENCE: usize = 1 << 20;
/// What the file is, and its version.
const FORMAT: &str = "dolmen-reference-values-1";
/// The bank that keys are bound to.
const BANK: &str = "sha256";
/// The register that says which code was launched.
const PCR_CODE: u64 = 17;
/// What its events are called: a launch has these, in this order.
const EVENTS: [&str; 2] = ["SKINIT", "core"];

/// Reads PCR 17 of the SHA-256 bank, which the file's events must replay to.
pub(crate) fn pcr17(bytes: &[u8]) -> Result<[u8; 32], Failure> {
    let unfit = |what: &str| Failure::plain(&format!("these are no reference values of an image: {what}"));
    let file: Value = serde_json::from_slice(bytes).map_err(|error| unfit(&error.to_string()))?;
    if file.get("format").and_then(Value::as_str) != Some(FORMAT) {
        return Err(unfit(&format!("`format` is not \"{FORMAT}\"")));
    }
    let list = |name: &str| {
        let list = file.get(name).and_then(Value::as_array);
        list.ok_or_else(|| unfit(&format!("there is no list `{name}`")))
    };
    let bank = list("banks")?.iter().find(|bank| bank.get("bank").and_then(Value::as_str) == Some(BANK));
    let value = bank.and_then(|bank| digest(bank.get("pcr17")));
    let value =
        value.ok_or_else(|| unfit("there is no `pcr17` of 32 bytes in hexadecimal for bank \"sha256\""))?;
    let is_code = |event: &&Value| event.get("pcr").and_then(Value::as_u64) == Some(PCR_CODE);
    let events: Vec<&Value> = list("events")?.iter().filter(is_code).collect();
    if !events.iter().map(|event| event.get("event").and_then(Value::as_str)).eq(EVENTS.map(Some)) {
        return Err(unfit("`events` are not \"SKINIT\" and \"core\" for PCR 17"));
    }
    let mut replayed = [0; 32];
    for event in events {
        let extended = event.get("digests").and_then(|digests| digest(digests.get(BANK)));
        let extended = extended.ok_or_else(|| unfit("an event has no digest of bank \"sha256\""))?;
        replayed = Sha256::digest([replayed, extended].concat()).into();
    }
    if replayed == value {
        Ok(value)
    } else {
        Err(unfit("`events` do not replay to `pcr17` of bank \"sha256\""))
    }
}

fn digest(text: Option<&Value>) -> Option<[u8; 32]> {
    hex::decode(text?.as_str()?).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Values whose register is what two events replay to.
    fn values() -> Value {
        let after = |before: [u8; 32], digest: [u8; 32]| -> [u8; 32] {
            Sha256::digest([before, digest].concat()).into()
        };
        let pcr17 = after(after([0; 32], [1; 32]), [2; 32]);
        let event = |pcr: u64, name: &str, digest: [u8; 32]| json!({ "pcr": pcr, "event": name, "digests": { "sha1": "00", "sha256": hex::encode(digest) } });
        json!({
            "format": FORMAT,
            "banks": [{ "bank": "sha1", "pcr17": "00" }, { "bank": "sha256", "pcr17": hex::encode(pcr17) }],
            "events": [event(17, "SKINIT", [1; 32]), event(17, "core", [2; 32]), event(18, "manifest", [3; 32])],
        })
    }

    #[test]
    fn the_register_is_what_the_events_replay_to() {
        let values = values();
        let want = hex::decode(values["banks"][1]["pcr17"].as_str().unwrap()).unwrap();
        assert_eq!(pcr17(values.to_string().as_bytes()).unwrap().as_slice(), want);
    }

    #[test]
    fn a_file_with_a_mistake_is_refused_with_what_it_is() {
        type Spoil = fn(&mut Value);
        let cases: &[(Spoil, &str)] = &[
            (|v| *v = json!([]), "`format` is not"),
            (|v| v["format"] = json!("dolmen-reference-values-2"), "`format` is not"),
            (|v| v["banks"] = json!(1), "no list `banks`"),
            (|v| v["events"] = json!(null), "no list `events`"),
            (|v| v["events"] = json!([]), "are not \"SKINIT\" and \"core\""),
            (|v| v["events"][0]["event"] = json!("core"), "are not \"SKINIT\" and \"core\""),
            (|v| v["banks"][1]["bank"] = json!("sha384"), "no `pcr17` of 32 bytes"),
            (|v| v["banks"][1]["pcr17"] = json!("00"), "no `pcr17` of 32 bytes"),
            (|v| v["banks"][1]["pcr17"] = json!("77".repeat(32)), "do not replay"),
            (|v| v["events"][1]["digests"]["sha256"] = json!("77".repeat(32)), "do not replay"),
            (|v| v["events"][1]["pcr"] = json!(18), "are not \"SKINIT\" and \"core\""),
            (|v| v["events"][0]["digests"] = json!({}), "an event has no digest"),
        ];
        for (spoil, want) in cases {
            let mut values = values();
            spoil(&mut values);
            let failure = pcr17(values.to_string().as_bytes()).unwrap_err().to_string();
            assert!(failure.contains(want), "want {want}\ngot  {failure}");
        }
        assert!(pcr17(b"[sealing_root]").is_err());
    }
}
