//! `dolmen-verify`: verdicts about evidence, on the command line.

mod enrolling;

use std::fs;
use std::hint::black_box;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Parser, Subcommand};
use dolmen_abi::evidence::Evidence;
use dolmen_abi::evidence::host::MAX_HOST_EVIDENCE;
use dolmen_tpm::attest::QuoteAttest;
use dolmen_verify::{
    Expected, MAX_POLICY, Policy, Report, Verdict, check, check_host, explain, export, extra_data,
    read_at_most,
};
use serde::Serialize;

/// Verifies evidence of guests of the Dolmen hypervisor.
///
/// Exit status: 0 if the evidence is accepted, 1 if it is refused, 2 if it could not be looked at.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Judge evidence by a policy.
    Check {
        #[command(flatten)]
        check: CheckArgs,
        /// Print the verdict as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Enrol a key by a credential: proof that it lives in a TPM that a maker vouches for (docs/enrolment.md).
    #[command(subcommand)]
    Enrol(enrolling::Enrol),
    /// Judge evidence about a host (`dolmen host-quote`) by a policy.
    CheckHost {
        /// File with the evidence.
        evidence: PathBuf,
        /// File with the policy (TOML).
        #[arg(long)]
        policy: PathBuf,
        /// Nonce that was given to the guest, in hex.
        #[arg(long)]
        nonce: String,
        /// Print the verdict as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the extra data that the quote must have, for `tpm2_checkquote -q`.
    Binding {
        /// File with the evidence.
        evidence: PathBuf,
    },
    /// Write the parts of the evidence as files for tpm2-tools.
    Export {
        /// File with the evidence.
        evidence: PathBuf,
        /// Folder for the files; made if it is not there.
        folder: PathBuf,
    },
    /// Count how often per second one processor checks this evidence, which must be accepted.
    Throughput {
        #[command(flatten)]
        check: CheckArgs,
        /// How long to count, in seconds.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=60))]
        seconds: u64,
        /// Print the figures as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Tell what the evidence claims, without judging it.
    Explain {
        /// File with the evidence.
        evidence: PathBuf,
    },
    /// Print a policy entry that trusts the key of this evidence on first use, if everything else in it holds.
    ///
    /// Nothing proves that a TPM holds the key: only `enrol`, by a credential for the TPM's endorsement key, does.
    Trust(CheckArgs),
}

#[derive(Args)]
struct CheckArgs {
    /// File with the evidence.
    evidence: PathBuf,
    /// File with the policy (TOML).
    #[arg(long)]
    policy: PathBuf,
    /// Nonce that was given to the guest, in hex: up to 64 bytes.
    #[arg(long, group = "bound")]
    nonce: Option<String>,
    /// All 64 bytes of report data, in hex.
    #[arg(long, group = "bound")]
    report_data: Option<String>,
    /// Demand no report data: the evidence may be old.
    #[arg(long, group = "bound")]
    any_report_data: bool,
}

impl CheckArgs {
    fn expected(&self) -> Result<Expected> {
        match (&self.nonce, &self.report_data) {
            (Some(nonce), _) => {
                let nonce = hex::decode(nonce).context("--nonce: expected hex digits")?;
                Expected::nonce(&nonce).context("--nonce: expected 1 to 64 bytes")
            }
            (None, Some(data)) => {
                let data = hex::decode(data).context("--report-data: expected hex digits")?;
                let data =
                    data.try_into().map_err(|_| anyhow!("--report-data: expected exactly 64 bytes"))?;
                Ok(Expected::ReportData(data))
            }
            (None, None) if self.any_report_data => Ok(Expected::Anything),
            (None, None) => {
                bail!("give --nonce or --report-data, or --any-report-data if the evidence may be old")
            }
        }
    }

    fn policy(&self) -> Result<Policy> {
        read_policy(&self.policy)
    }
}

fn read_policy(path: &Path) -> Result<Policy> {
    let text = String::from_utf8(read_up_to(path, MAX_POLICY)?)
        .with_context(|| format!("{} is no text", path.display()))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    Policy::parse_in(&text, folder).with_context(|| format!("{} is no policy", path.display()))
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("dolmen-verify: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> Result<bool> {
    match command {
        Command::Check { check, json } => run_check(&check, json),
        Command::CheckHost { evidence, policy, nonce, json } => {
            let nonce = hex::decode(&nonce).context("--nonce is not hexadecimal")?;
            let report = check_host(&read(&evidence)?, &read_policy(&policy)?, &nonce);
            print_report(&report, json)
        }
        Command::Enrol(step) => enrolling::run(&step),
        Command::Trust(args) => run_trust(&args),
        Command::Throughput { check, seconds, json } => {
            run_throughput(&check, Duration::from_secs(seconds), json)
        }
        Command::Binding { evidence } => {
            let bytes = read(&evidence)?;
            let decoded = decode(&bytes, &evidence)?;
            let root = extra_data(&decoded).context("the Merkle path does not fit its place")?;
            print(&format!("{}\n", hex::encode(root)))
        }
        Command::Explain { evidence } => {
            let text = explain(&read(&evidence)?)
                .with_context(|| format!("{} is no evidence", evidence.display()))?;
            print(&text)
        }
        Command::Export { evidence, folder } => run_export(&evidence, &folder),
    }
}

fn run_check(args: &CheckArgs, as_json: bool) -> Result<bool> {
    let report = check(&read(&args.evidence)?, &args.policy()?, &args.expected()?);
    print_report(&report, as_json)
}

fn print_report(report: &Report, as_json: bool) -> Result<bool> {
    let text = if as_json { serde_json::to_string_pretty(report)? } else { report.to_string() };
    print(&format!("{text}\n"))?;
    Ok(report.accepted)
}

fn run_trust(args: &CheckArgs) -> Result<bool> {
    let bytes = read(&args.evidence)?;
    let mut policy = args.policy()?;
    policy.keys.clear();
    let report = check(&bytes, &policy, &args.expected()?);
    if report.verdict == Verdict::Refused {
        eprintln!("{report}");
        return Ok(false);
    }
    let quote = QuoteAttest::parse(decode(&bytes, &args.evidence)?.attest);
    let quote = quote.map_err(|error| anyhow!("what was signed is no quote ({error:?})"))?;
    let name = report.key.unwrap_or_default();
    let (resets, restarts) = (quote.reset_count, quote.restart_count);
    eprintln!(
        "dolmen-verify: trusted on first use; only `dolmen-verify enrol` proves that a TPM holds this key"
    );
    print(&format!("[[keys]]\nname = \"{name}\"\nreset_count = {resets}\nrestart_count = {restarts}\n"))
}

/// How fast evidence is checked.
#[derive(Serialize)]
struct Throughput {
    checks: u64,
    seconds: f64,
    per_second: f64,
}

fn run_throughput(args: &CheckArgs, time: Duration, as_json: bool) -> Result<bool> {
    let (bytes, policy, expected) = (read(&args.evidence)?, args.policy()?, args.expected()?);
    let report = check(&bytes, &policy, &expected);
    if !report.accepted {
        eprintln!("{report}");
        return Ok(false);
    }
    let start = Instant::now();
    let mut checks: u32 = 0;
    while start.elapsed() < time {
        if !check(black_box(&bytes), &policy, &expected).accepted {
            bail!("the same evidence got another verdict");
        }
        checks = checks.saturating_add(1);
    }
    let seconds = start.elapsed().as_secs_f64();
    let per_second = f64::from(checks) / seconds;
    if as_json {
        let figures = Throughput { checks: checks.into(), seconds, per_second };
        return print(&format!("{}\n", serde_json::to_string_pretty(&figures)?));
    }
    print(&format!("{per_second:.0} checks per second ({checks} in {seconds:.2} s, on one processor)\n"))
}

fn run_export(evidence: &Path, folder: &Path) -> Result<bool> {
    let export = export::export(&read(evidence)?)?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (name, content) in &export.files {
        let path = folder.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    print(&format!(
        "tpm2_checkquote -u ak.pem -m quote.msg -s quote.sig -f pcrs -g sha256 -q {}\ntpm2_eventlog eventlog\n",
        export.extra_data
    ))
}

fn print(text: &str) -> Result<bool> {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write to standard output")?;
    Ok(true)
}

/// Reads evidence.
fn read(path: &Path) -> Result<Vec<u8>> {
    read_up_to(path, MAX_HOST_EVIDENCE)
}

fn read_up_to(path: &Path, most: usize) -> Result<Vec<u8>> {
    read_at_most(path, most).with_context(|| format!("cannot read {}", path.display()))
}

fn decode<'b>(bytes: &'b [u8], path: &Path) -> Result<Evidence<'b>> {
    Evidence::decode(bytes).with_context(|| format!("{} is no evidence", path.display()))
}
