//! Fuzz targets: every parser of foreign bytes, for a bounded time.
//!
//! The targets in `tests/fuzz` are libFuzzer programs and also work with `cargo fuzz`; here they are built
//! with the pinned stable compiler, which has the instrumentation that libFuzzer needs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::Tally;
use crate::{place, process, ui};

/// Time for each target.
const SECONDS: u32 = 20;
/// Targets that run at the same time.
const PARALLEL: usize = 2;
/// Longest any target may take, start and end included.
const LIMIT: Duration = Duration::from_secs(180);
/// Coverage counters and comparisons for libFuzzer; overflows and failed assertions are findings.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                     -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions=yes -Coverflow-checks=yes";
/// Target of the host: named, so that build scripts are not instrumented.
const HOST: &str = "x86_64-unknown-linux-gnu";

/// Builds all targets and runs each for [`SECONDS`].
pub(super) fn run() -> Result<Tally> {
    let folder = place::root().join("tests/fuzz");
    let built = place::target().join("fuzz");
    process::run(
        "Building the fuzz targets",
        Command::new("cargo")
            .args(["build", "--quiet", "--release", "--locked", "--target", HOST])
            .current_dir(&folder)
            .env("CARGO_TARGET_DIR", &built)
            .env("RUSTFLAGS", FLAGS)
            .env_remove("CARGO_ENCODED_RUSTFLAGS"),
    )?;
    let targets = targets(&folder)?;
    let programs = built.join(HOST).join("release");
    let mut tally = Tally::default();
    for batch in targets.chunks(PARALLEL) {
        let running: Vec<_> = batch
            .iter()
            .map(|name| {
                let (name, program, folder) = (name.clone(), programs.join(name), folder.clone());
                std::thread::spawn(move || fuzz(&name, &program, &folder))
            })
            .collect();
        for thread in running {
            let passed = thread.join().map_err(|_| anyhow!("a fuzz run broke off"))??;
            tally = tally.plus(Tally::one(passed));
        }
    }
    Ok(tally)
}

/// Names of the targets: one file each.
fn targets(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in folder.join("fuzz_targets").read_dir().context("no fuzz targets")? {
        let path = entry?.path();
        names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

fn fuzz(name: &str, program: &Path, folder: &Path) -> Result<bool> {
    let corpus = place::target().join("fuzz/corpus").join(name);
    let findings = place::target().join("fuzz/findings").join(name);
    place::make(&corpus)?;
    place::make(&findings)?;
    let mut command = Command::new(program);
    command
        .arg(&corpus)
        .args([
            format!("-max_total_time={SECONDS}"),
            "-timeout=5".to_owned(),
            "-rss_limit_mb=2048".to_owned(),
        ])
        .arg(format!("-artifact_prefix={}/", findings.display()))
        .arg("-print_final_stats=1");
    let seeds: PathBuf = folder.join("seeds").join(name);
    if seeds.is_dir() {
        command.arg(seeds);
    }
    let mut runs = String::new();
    let outcome = process::supervise(&mut command, LIMIT, |line| {
        if let Some(count) = line.strip_prefix("stat::number_of_executed_units:") {
            runs = count.trim().to_owned();
        }
    })?;
    if outcome.success() {
        ui::good(&format!("{name}: {runs} inputs"));
    } else {
        for line in &outcome.tail {
            eprintln!("    {line}");
        }
        ui::bad(&format!("{name}: see {}", findings.display()));
    }
    Ok(outcome.success())
}
