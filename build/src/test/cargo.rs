//! Levels that cargo runs: format, lints, unit tests, Miri.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Tally;
use crate::pool::{self, Job};
use crate::{place, process, ui};

/// Longest run of one cargo command.
const LIMIT: Duration = Duration::from_secs(30 * 60);
/// The nightly toolchain of Miri and of the fuzzers: pinned, so that the tests of today pass tomorrow.
pub(crate) const NIGHTLY: &str = "nightly-2026-10-15";
/// Crates whose tests run under Miri, those that interpret foreign bytes or lay out memory: in parts of like length, each
/// on a processor of its own, since Miri runs one test at a time.
const MIRI: [Part; 4] = [
    Part { packages: &["dolmen-vm"], chosen: &["--skip", SERVICE] },
    Part { packages: &["dolmen-vm"], chosen: &[SERVICE] },
    Part { packages: &["dolmen-platform", "dolmen-drtm"], chosen: &[] },
    Part { packages: &["dolmen-memory", "dolmen-abi", "dolmen-tpm"], chosen: &[] },
];
/// Half of the work of `dolmen-vm`.
const SERVICE: &str = "service::";
/// Tests that only repeat at length what shorter ones show, and simulations in safe code.
const PASSED_OVER: [&str; 7] =
    ["random", "property", "exhaustive", "sched::", "console::", "lifecycle::", "bus::tests::the_bus"];
/// Programs that only exist on their own target.
const BARE: [(&str, &str, &str); 9] = [
    ("dolmen-launch", "x86_64-unknown-none", ""),
    ("dolmen-unmeasured", "x86_64-unknown-none", ""),
    ("dolmen-core", "x86_64-unknown-none", ""),
    ("dolmen-core", "x86_64-unknown-none", "unmeasured"),
    ("dolmen-micro-guest", "x86_64-unknown-none", ""),
    ("dolmen-loader", "x86_64-unknown-none", ""),
    ("dolmen-loader", "x86_64-unknown-none", "unmeasured"),
    ("dolmen-loader", "x86_64-unknown-uefi", ""),
    ("dolmen-cli", "x86_64-unknown-linux-musl", ""),
];

/// Tests that run under Miri one after the other.
struct Part {
    packages: &'static [&'static str],
    /// Words for the test harness.
    chosen: &'static [&'static str],
}

impl Part {
    fn name(&self) -> String {
        let words = self.packages.iter().chain(self.chosen);
        format!("under Miri: {}", words.copied().collect::<Vec<_>>().join(" "))
    }
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(arguments).current_dir(place::root()).env("CARGO_TERM_COLOR", "never");
    command
}

/// Runs a command; a failure shows its output and counts as one failed test.
pub(super) fn succeeds(what: &str, mut command: Command) -> Result<Tally> {
    let progress = ui::Progress::start(what);
    let outcome = process::supervise(&mut command, LIMIT, |line| progress.detail(line))?;
    if outcome.success() {
        progress.done();
        return Ok(Tally::one(true));
    }
    drop(progress);
    for line in &outcome.tail {
        eprintln!("    {line}");
    }
    ui::bad(what);
    Ok(Tally::one(false))
}

/// Formatting.
pub(super) fn format() -> Result<Tally> {
    succeeds("cargo fmt --check", cargo(&["fmt", "--all", "--check"]))
}

/// Clippy on the host and on each bare target; a warning is a failure.
pub(super) fn lints() -> Result<Tally> {
    let deny = ["--", "-D", "warnings"];
    let mut host = cargo(&["clippy", "--locked", "--quiet", "--all-targets"]);
    host.args(deny);
    let mut tally = succeeds("clippy for the host", host)?;
    for (package, target, features) in BARE {
        let mut bare =
            cargo(&["clippy", "--locked", "--quiet", "--release", "--package", package, "--target", target]);
        bare.args(["--features", features]).args(deny);
        let with = if features.is_empty() { String::new() } else { format!(" with {features}") };
        tally = tally.plus(succeeds(&format!("clippy for {package} on {target}{with}"), bare)?);
    }
    let mut docs = cargo(&["doc", "--locked", "--quiet", "--no-deps"]);
    docs.env("RUSTDOCFLAGS", "-D warnings");
    Ok(tally.plus(succeeds("rustdoc without warnings", docs)?))
}

/// Unit and property tests of everything that runs on the host.
pub(super) fn unit() -> Result<Tally> {
    count("unit and property tests", cargo(&["test", "--locked", "--no-fail-fast"]))
}

/// The pure crates' tests under Miri. One that takes more than some ten seconds there is marked to be left out:
/// Miri adds to the search for undefined behaviour, not to that for wrong answers.
pub(super) fn miri() -> Result<Tally> {
    nightly(&["miri", "rust-src"])?;
    let mut build = interpreted(MIRI.iter().flat_map(|part| part.packages));
    build.arg("--no-run");
    let built = succeeds("pure crates built for Miri", build)?;
    if built.failed > 0 {
        return Ok(built);
    }
    let job = |part: Part| {
        let name = part.name();
        Job::new(name.clone(), 1, move || {
            let mut command = interpreted(part.packages.iter());
            command.arg("--").args(part.chosen).args(PASSED_OVER.iter().flat_map(|word| ["--skip", word]));
            count(&name, command).unwrap_or_else(|error| {
                ui::bad(&format!("{name}: {error:#}"));
                Tally::one(false)
            })
        })
    };
    Ok(pool::run("pure crates under Miri", MIRI.into_iter().map(job).collect()))
}

/// Tests of the libraries of `packages` under Miri.
fn interpreted<'a>(packages: impl Iterator<Item = &'a &'a str>) -> Command {
    let mut command = Command::new("rustup");
    command
        .args(["run", NIGHTLY, "cargo", "miri", "test", "--locked", "--lib"])
        .args(packages.flat_map(|package| ["--package", package]))
        .current_dir(place::root())
        .env_remove("RUSTUP_TOOLCHAIN")
        .env("CARGO_TARGET_DIR", scratch("miri"))
        .env("PROPTEST_CASES", "2")
        .env("MIRIFLAGS", "-Zmiri-disable-isolation");
    command
}

/// Folder for builds with another toolchain.
pub(super) fn scratch(name: &str) -> PathBuf {
    place::target().join("nightly").join(name)
}

/// Installs the pinned nightly toolchain with the given components.
pub(super) fn nightly(components: &[&str]) -> Result<()> {
    let mut command = Command::new("rustup");
    command.args(["toolchain", "install", NIGHTLY, "--profile", "minimal", "--no-self-update"]);
    for component in components {
        command.args(["--component", component]);
    }
    process::output(&mut command).map(drop).with_context(|| format!("installing {NIGHTLY}"))
}

/// Runs tests and adds up what their harnesses report.
fn count(what: &str, mut command: Command) -> Result<Tally> {
    let progress = ui::Progress::start(what);
    let mut tally = Tally::default();
    let mut failures = Vec::new();
    let outcome = process::supervise(&mut command, LIMIT, |line| {
        progress.detail(line);
        if let Some(result) = reported(line) {
            tally = tally.plus(result);
        }
        if line.starts_with("test ") && line.ends_with("FAILED") {
            failures.push(line.to_owned());
        }
    })?;
    drop(progress);
    for line in &failures {
        ui::bad(line);
    }
    if !outcome.success() {
        for line in &outcome.tail {
            eprintln!("    {line}");
        }
        // A crash or a failed build must not pass for want of a report.
        tally.failed = tally.failed.max(1);
    }
    Ok(tally)
}

/// The tally in a line like `test result: ok. 12 passed; 0 failed; …`.
fn reported(line: &str) -> Option<Tally> {
    let rest = line.strip_prefix("test result: ")?;
    let number = |word: &str| {
        let before = rest.split_once(word)?.0.trim_end();
        before.rsplit(' ').next()?.parse().ok()
    };
    Some(Tally::of(number("passed")?, number("failed")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_harness_report_is_understood() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(reported(line), Some(Tally::of(12, 3)));
        assert_eq!(reported("running 3 tests"), None);
    }
}
