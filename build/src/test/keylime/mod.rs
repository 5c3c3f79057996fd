//! Stock Keylime judges our quotes: its verifier and registrar from the Python registry, with our policy plug-in, on
//! loopback.
//!
//! One question at a time, the evidence is that of `tests/vectors/evidence`. Keylime gets the quote with the extra data that the evidence's binding
//! leads to as its nonce, the registers' values, the log, and as policy the reference values.

mod push;
mod site;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Bench, Tally};
use crate::{place, process, ui, vectors};
use site::Site;

/// One question: what is changed in an honest request, and the failure that must come back; none for trust.
struct Question {
    name: &'static str,
    change: fn(&mut Value, &Parts) -> Result<()>,
    fails: Option<&'static str>,
}

const QUESTIONS: &[Question] = &[
    Question { name: "Keylime accepts the quote with its log", change: |_, _| Ok(()), fails: None },
    Question {
        name: "Keylime refuses another pin of PCR 17",
        change: |request, _| replace(request, "tpm_policy", pins(&"00".repeat(32), None)),
        fails: Some("pcr_validation.invalid_pcr_17"),
    },
    Question {
        name: "Keylime refuses another pin of PCR 18",
        change: |request, parts| replace(request, "tpm_policy", pins(&parts.pcr17, Some(&"00".repeat(32)))),
        fails: Some("pcr_validation.invalid_pcr_18"),
    },
    Question {
        name: "Keylime refuses another nonce",
        change: |request, _| replace(request, "nonce", STANDARD.encode([7; 32])),
        fails: Some("quote_validation"),
    },
    Question {
        name: "Keylime refuses a log with another digest of the core",
        change: |request, parts| replace(request, "mb_log", STANDARD.encode(parts.altered_log("sha256")?)),
        fails: Some("measured_boot.policy_dolmen"),
    },
    Question {
        name: "Keylime refuses a log with another SHA-1 digest of the core",
        change: |request, parts| replace(request, "mb_log", STANDARD.encode(parts.altered_log("sha1")?)),
        fails: Some("measured_boot.policy_dolmen"),
    },
];

/// Asks everything, then lets a guest keep its host attested.
pub(super) fn run(bench: &Bench) -> Result<Tally> {
    let work = place::output().join("keylime");
    let home = match site::install() {
        Err(error) if !bench.must_have_keylime => {
            ui::note(&format!("Keylime cannot be had here; `cargo xtask test --keylime` insists. {error:#}"));
            return Ok(Tally::left_out());
        }
        outcome => outcome?,
    };
    let site = Site::open(&home, &work)?;
    let parts = Parts::of(bench, &work)?;
    let mut tally = Tally::default();
    for question in QUESTIONS.iter().filter(|question| bench.is_chosen(question.name)) {
        tally = tally.plus(judge(question.name, || ask(&site, question, &parts)));
    }
    if bench.is_chosen(push::NAME) {
        tally = tally.plus(judge(push::NAME, || push::story(bench, &site, &work)));
    }
    Ok(tally)
}

fn judge(name: &str, test: impl FnOnce() -> Result<()>) -> Tally {
    let outcome = test();
    match &outcome {
        Ok(()) => ui::good(name),
        Err(error) => ui::bad(&format!("{name}: {error:#}")),
    }
    Tally::one(outcome.is_ok())
}

fn ask(site: &Site, question: &Question, parts: &Parts) -> Result<()> {
    let mut request = parts.request.clone();
    (question.change)(&mut request, parts)?;
    let answer = site.judge(&json!({ "type": "tpm", "data": request }))?;
    let is_valid = answer.pointer("/results/valid").and_then(Value::as_bool).context("no verdict")?;
    let failures = answer.pointer("/results/failures").and_then(Value::as_array);
    let kinds: Vec<&str> =
        failures.into_iter().flatten().filter_map(|failure| failure.get("type")?.as_str()).collect();
    match question.fails {
        None if is_valid && kinds.is_empty() => Ok(()),
        Some(kind) if !is_valid && kinds.iter().any(|told| told.contains(kind)) => Ok(()),
        _ => bail!("valid: {is_valid}, failures: {kinds:?}"),
    }
}

/// What a request is made of.
struct Parts {
    request: Value,
    log: Vec<u8>,
    reference: Reference,
    pcr17: String,
}

#[derive(Deserialize)]
struct Reference {
    banks: Vec<Registers>,
    events: Vec<Event>,
}

#[derive(Deserialize)]
struct Registers {
    bank: String,
    pcr17: String,
    pcr18: String,
}

#[derive(Deserialize)]
struct Event {
    event: String,
    digests: std::collections::BTreeMap<String, String>,
}

impl Parts {
    fn of(bench: &Bench, work: &Path) -> Result<Self> {
        let (folder, parts) = (vectors::folder(), work.join("parts"));
        let mut export = Command::new(bench.artifacts.verifier());
        process::output(export.arg("export").arg(folder.join("alone.cbor")).arg(&parts))?;
        let part = |name: &str| place::read(&parts.join(name));
        let text = String::from_utf8(place::read(&folder.join("release.json"))?)?;
        let reference: Reference = serde_json::from_str(&text)?;
        let bank = reference.banks.iter().find(|bank| bank.bank == "sha256").context("no SHA-256 bank")?;
        let nonce = hex::decode(String::from_utf8(part("extra-data")?)?.trim())?;
        let key = STANDARD.encode(part("ak.pub")?);
        let [message, signature, registers] = ["quote.msg", "quote.sig", "pcrs"].map(&part);
        let request = json!({
            "quote": format!(
                "r{}:{}:{}",
                STANDARD.encode(message?),
                STANDARD.encode(signature?),
                STANDARD.encode(registers?)
            ),
            "nonce": STANDARD.encode(nonce),
            "hash_alg": "sha256",
            // Who the key belongs to is settled by enrolment; this request only wants something there.
            "tpm_ek": key,
            "tpm_ak": key,
            "tpm_policy": pins(&bank.pcr17, Some(&bank.pcr18)),
            "mb_log": STANDARD.encode(part("eventlog")?),
            "mb_policy": text,
        });
        let pcr17 = bank.pcr17.clone();
        Ok(Self { request, log: part("eventlog")?, reference, pcr17 })
    }

    /// The log with one bit of the core's digest in one bank changed.
    fn altered_log(&self, bank: &str) -> Result<Vec<u8>> {
        let core = self.reference.events.iter().find(|event| event.event == "core").context("no core")?;
        let digest = hex::decode(core.digests.get(bank).context("no digest of the core")?)?;
        let at = self.log.windows(digest.len()).position(|window| window == digest);
        let mut log = self.log.clone();
        *at.and_then(|at| log.get_mut(at)).context("the log has no such digest")? ^= 1;
        Ok(log)
    }
}

/// Pinned registers as Keylime takes them: JSON within a text.
fn pins(pcr17: &str, pcr18: Option<&str>) -> String {
    let mut pins = json!({ "17": [pcr17] });
    if let (Some(pcr18), Some(pins)) = (pcr18, pins.as_object_mut()) {
        pins.insert("18".to_owned(), json!([pcr18]));
    }
    pins.to_string()
}

fn replace(request: &mut Value, field: &str, value: String) -> Result<()> {
    *request.get_mut(field).context("no such field")? = value.into();
    Ok(())
}
