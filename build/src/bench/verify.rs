//! How fast evidence is verified, beside `tpm2_checkquote` on the same quotes.
//!
//! The quotes are those of `tests/vectors/evidence`, which a software TPM signed in whole machines. What is compared:
//! the library with its policy read once, as a service has it; the command, started once for each piece of evidence;
//! and `tpm2_checkquote`, which is a command too. The peer checks the signature, the extra data, the registers and the
//! log's replay; `dolmen-verify` all of its list.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::grouped;
use crate::artifact::Artifacts;
use crate::{place, process, ui, vectors};

/// How long each is counted.
const TIME: Duration = Duration::from_secs(2);

/// Checks per second of one processor, for one piece of evidence.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Throughput {
    evidence: String,
    library: f64,
    command: f64,
    tpm2_checkquote: f64,
}

/// What `dolmen-verify throughput --json` prints, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Counted {
    per_second: f64,
}

/// Measures every vector.
pub(super) fn measure(artifacts: &Artifacts) -> Result<Vec<Throughput>> {
    let progress = ui::Progress::start("Counting verified evidence");
    let folder = vectors::folder();
    let mut names: Vec<String> = folder
        .read_dir()
        .with_context(|| format!("no evidence in {}", folder.display()))?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".cbor").map(str::to_owned))
        .collect();
    names.sort();
    let figures =
        names.iter().map(|name| throughput(artifacts, &folder, name)).collect::<Result<Vec<_>>>()?;
    if figures.is_empty() {
        bail!("no evidence in {}", folder.display());
    }
    progress.done();
    Ok(figures)
}

fn throughput(artifacts: &Artifacts, folder: &Path, name: &str) -> Result<Throughput> {
    let evidence = folder.join(format!("{name}.cbor"));
    let nonce = String::from_utf8(place::read(&folder.join(format!("{name}.nonce")))?)?;
    let arguments = |task: &str| {
        let mut command = Command::new(artifacts.verifier());
        command.arg(task).arg(&evidence).arg("--policy").arg(folder.join("policy.toml"));
        command.args(["--json", "--nonce", nonce.trim()]);
        command
    };
    let counted = process::output(arguments("throughput").args(["--seconds", &TIME.as_secs().to_string()]))?;
    let parts = place::output().join("bench/verify").join(name);
    process::output(Command::new(artifacts.verifier()).arg("export").arg(&evidence).arg(&parts))?;
    Ok(Throughput {
        evidence: name.to_owned(),
        library: serde_json::from_str::<Counted>(&counted)?.per_second,
        command: per_second(|| arguments("check"))?,
        tpm2_checkquote: per_second(|| checkquote(&parts))?,
    })
}

/// The peer on the same quote: signature, extra data, registers, log.
fn checkquote(parts: &PathBuf) -> Command {
    let extra_data = std::fs::read_to_string(parts.join("extra-data")).unwrap_or_default();
    let mut command = Command::new("tpm2_checkquote");
    command
        .current_dir(parts)
        .args("-u ak.pem -m quote.msg -s quote.sig -f pcrs -g sha256 -e eventlog".split(' '));
    command.args(["-q", extra_data.trim()]);
    command
}

/// How often per second a command ends well, one after the other.
fn per_second(mut command: impl FnMut() -> Command) -> Result<f64> {
    let start = Instant::now();
    let mut count: u32 = 0;
    while start.elapsed() < TIME {
        process::output(&mut command())?;
        count = count.saturating_add(1);
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}

fn whole(number: f64) -> String {
    format!("{number:.0}").parse().map_or_else(|_| format!("{number:.0}"), grouped)
}

/// Prints the table.
pub(super) fn show(figures: &[Throughput]) {
    ui::heading("Verified evidence per second, one processor");
    ui::note(&format!(
        "{:<16} {:>10} {:>18} {:>18} {:>10}",
        "evidence", "library", "dolmen-verify", "tpm2_checkquote", "library ×"
    ));
    for Throughput { evidence, library, command, tpm2_checkquote } in figures {
        ui::note(&format!(
            "{evidence:<16} {:>10} {:>18} {:>18} {:>10.1}",
            whole(*library),
            whole(*command),
            whole(*tpm2_checkquote),
            library / tpm2_checkquote
        ));
    }
    ui::note("The library has read its policy once; both commands are started for each piece of evidence.");
}
