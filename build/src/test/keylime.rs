//! Stock Keylime judges our quotes: its verifier from the Python registry, with our policy plug-in, on loopback.
//!
//! The evidence is that of `tests/vectors/evidence`. Keylime gets the quote with the extra data that the evidence's binding
//! leads to as its nonce, the registers' values, the log, and as policy the reference values.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Bench, Tally};
use crate::machine::child;
use crate::{place, process, ui, vectors};

/// The version that is tested.
const KEYLIME: &str = "keylime==7.14.3";
/// Debian's own interpreter, whose bindings for gpg Keylime wants.
const PYTHON: &str = "/usr/bin/python3";
/// Longest wait for the verifier to listen.
const START: Duration = Duration::from_secs(180);

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

/// Asks everything.
pub(super) fn run(bench: &Bench) -> Result<Tally> {
    let home = install()?;
    let work = place::output().join("keylime");
    let parts = Parts::of(bench, &work)?;
    let verifier = Verifier::start(&home, &work)?;
    let mut tally = Tally::default();
    for question in QUESTIONS.iter().filter(|question| bench.is_chosen(question.name)) {
        let outcome = verifier.ask(question, &parts);
        tally = tally.plus(Tally::one(outcome.is_ok()));
        match outcome {
            Ok(()) => ui::good(question.name),
            Err(error) => ui::bad(&format!("{}: {error:#}", question.name)),
        }
    }
    Ok(tally)
}

/// Installs Keylime beside the emulator, once.
fn install() -> Result<PathBuf> {
    let home = place::cache()?.join(KEYLIME.replace("==", "-"));
    let ready = home.join("ready");
    let wanted = place::read(&requirements())?;
    if std::fs::read(&ready).is_ok_and(|installed| installed == wanted) {
        return Ok(home);
    }
    if home.exists() {
        std::fs::remove_dir_all(&home).with_context(|| format!("cannot empty {}", home.display()))?;
    }
    place::make(&home)?;
    let environment = home.join("environment");
    let mut make = Command::new(PYTHON);
    process::run(
        "Making a Python environment",
        make.args(["-m", "venv", "--system-site-packages"]).arg(&environment),
    )?;
    let pip = |arguments: &[&str]| {
        let mut command = Command::new(environment.join("bin/pip"));
        command.arg("--quiet").args(arguments).current_dir(&home);
        command
    };
    process::run("Installing Keylime", pip(&["install", "--no-deps", "--requirement"]).arg(requirements()))?;
    // Templates of its configuration are in the source package alone.
    process::run(
        "Getting Keylime's templates",
        &mut pip(&["download", "--no-deps", "--no-binary", ":all:", KEYLIME]),
    )?;
    let source = format!("{}.tar.gz", KEYLIME.replace("==", "-"));
    process::output(Command::new("tar").args(["-xf", &source]).current_dir(&home))?;
    place::write(&ready, &wanted)?;
    Ok(home)
}

fn requirements() -> PathBuf {
    place::root().join("tests/keylime/requirements.txt")
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

/// A running verifier.
struct Verifier {
    child: Child,
    port: u16,
    python: PathBuf,
    work: PathBuf,
}

impl Drop for Verifier {
    fn drop(&mut self) {
        child::end(&mut self.child);
    }
}

impl Verifier {
    fn start(home: &Path, work: &Path) -> Result<Self> {
        let bin = home.join("environment/bin");
        let (configuration, state) = (work.join("configuration"), work.join("state"));
        for folder in [&configuration, &state] {
            if folder.exists() {
                std::fs::remove_dir_all(folder)
                    .with_context(|| format!("cannot empty {}", folder.display()))?;
            }
            place::make(folder)?;
        }
        std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o700))?;
        let templates = home.join(KEYLIME.replace("==", "-")).join("templates");
        let mut write = Command::new(bin.join("keylime_upgrade_config"));
        process::output(
            write.args(["--defaults", "--out"]).arg(&configuration).arg("--templates").arg(templates),
        )?;
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        configure(&configuration.join("verifier.conf"), port)?;
        let log = File::create(work.join("verifier.log")).context("no place for the verifier's log")?;
        let mut command = child::bound_to_us(bin.join("keylime_verifier"));
        command
            .env("KEYLIME_DIR", &state)
            .env("PYTHONPATH", place::root().join("guest-tools/keylime"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        for name in ["verifier", "registrar", "tenant", "ca", "logging"] {
            let variable = format!("KEYLIME_{}_CONFIG", name.to_uppercase());
            command.env(variable, configuration.join(format!("{name}.conf")));
        }
        let child = command.spawn().context("cannot start the Keylime verifier")?;
        let mut verifier = Self { child, port, python: bin.join("python"), work: work.to_owned() };
        verifier.wait()?;
        Ok(verifier)
    }

    fn wait(&mut self) -> Result<()> {
        let progress = ui::Progress::start("Starting the Keylime verifier");
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "the Keylime verifier ended with {status}: {}",
                    self.work.join("verifier.log").display()
                );
            }
            if start.elapsed() > START {
                bail!("the Keylime verifier does not listen: {}", self.work.join("verifier.log").display());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        progress.done();
        Ok(())
    }

    fn ask(&self, question: &Question, parts: &Parts) -> Result<()> {
        let mut request = parts.request.clone();
        (question.change)(&mut request, parts)?;
        let body = self.work.join("request.json");
        place::write(&body, json!({ "type": "tpm", "data": request }).to_string().as_bytes())?;
        let script = place::root().join("tests/keylime/ask.py");
        let answer =
            process::output(Command::new(&self.python).arg(script).arg(self.port.to_string()).arg(body))?;
        let answer: Value = serde_json::from_str(&answer).context("the verifier answers no JSON")?;
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
}

/// Sets port, policy and plug-in in the verifier's configuration.
fn configure(file: &Path, port: u16) -> Result<()> {
    let mut text = String::from_utf8(place::read(file)?)?;
    for (name, value) in [
        ("port", port.to_string()),
        ("measured_boot_policy_name", "dolmen".to_owned()),
        ("measured_boot_imports", "[\"dolmen_policy\"]".to_owned()),
        ("measured_boot_evaluate", "always".to_owned()),
    ] {
        let start = format!("\n{name} = ");
        let at = text.find(&start).with_context(|| format!("the configuration has no {name}"))?;
        let after = at.saturating_add(start.len());
        let length = text.get(after..).and_then(|rest| rest.find('\n')).context("a cut configuration")?;
        text.replace_range(after..after.saturating_add(length), &value);
    }
    place::write(file, text.as_bytes())
}
