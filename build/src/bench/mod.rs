//! `cargo xtask bench`: sizes, lines, and counts of executed instructions, beside those of KVM and Xen.
//!
//! Counts come from the emulator's deterministic mode: one processor, one tick of the time-stamp counter for each
//! executed instruction. The peers were measured the same way, on the same processor model.

mod boot;
mod growth;
mod operation;
mod size;
mod stage;
mod tpm;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::artifact::{self, MICRO_GUEST};
use crate::lab::{LAUNCH, Lab};
use crate::machine::Machine;
use crate::test::Bench;
use crate::{e2e, place, setup, ui};

/// Longest measurement: the emulator is slow in this mode.
const LIMIT: Duration = Duration::from_secs(300);
/// Options of the deterministic mode.
const COUNTING: [&str; 6] =
    ["-icount", "shift=0,sleep=off", "-rtc", "base=2024-01-01,clock=vm", "-seed", "1"];

/// What the user chose.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// All figures.
#[derive(Clone, Debug, Serialize)]
struct Report {
    sizes: size::Sizes,
    launch: Vec<stage::Stage>,
    operations: Vec<operation::Operation>,
    quote: tpm::Quote,
    growth: Vec<growth::Crowd>,
    boot: boot::Boots,
}

/// What the micro-guest measured of one operation.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
struct Cost {
    name: String,
    least: u64,
    median: u64,
}

/// What came out of one run of the micro-guest.
#[derive(Debug)]
struct Run {
    costs: Vec<Cost>,
    /// Time that the quote took on the host's clock.
    quote: Duration,
}

/// Measures and prints.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.json {
        ui::data_only();
    }
    let tools = setup::ensure()?;
    let artifacts = artifact::build(&tools)?;
    let bench = Bench { tools, artifacts, only: None };
    let report = measure(&bench)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        show(&report);
    }
    Ok(())
}

fn measure(bench: &Bench) -> Result<Report> {
    let folder = place::output().join("bench");
    let mut machine = start(bench, &folder)?;
    let run = costs(&mut machine)?;
    let launch = stage::read(&machine.log.lines())?;
    drop(machine);
    let record = place::read(&folder.join("machine/bench-tpm.log"))?;
    Ok(Report {
        sizes: size::measure(&bench.artifacts)?,
        launch,
        operations: operation::compare(&run.costs)?,
        quote: tpm::quote(&run, &String::from_utf8_lossy(&record))?,
        growth: growth::measure(bench)?,
        boot: boot::measure(bench)?,
    })
}

fn start(bench: &Bench, folder: &std::path::Path) -> Result<Machine> {
    let kernel = artifact::compile(&MICRO_GUEST, &place::root(), &place::target(), &bench.artifacts.folder)?;
    let release = e2e::small_guest(bench, &folder.join("guest"), &kernel, "bench")?;
    let lab =
        Lab::new(&bench.tools, &bench.artifacts, "bios", &folder.join("machine"), "sha256")?.recording();
    lab.boot_with("bench", &release.parts, None, &COUNTING.map(str::to_owned))
}

/// Takes the guest's figures from its console.
fn costs(machine: &mut Machine) -> Result<Run> {
    let progress = ui::Progress::start("Counting instructions (deterministic emulation, SHA-256 bank alone)");
    machine.log.wait_for("serve: guest runs", LAUNCH)?;
    let mut console = machine.console.take().context("no console")?;
    let mut costs = Vec::new();
    let (mut begun, mut quote) = (None, Duration::ZERO);
    let failure = console.find("the micro-guest's figures", LIMIT, |line| {
        if line.starts_with("FAIL ") {
            return Some(Some(line.to_owned()));
        }
        if line == "quote begins" {
            begun = Some(Instant::now());
        } else if line == "quote ends" {
            quote = begun.take().map_or(Duration::ZERO, |begun| begun.elapsed());
        }
        costs.extend(cost(line));
        (line == "cost done").then_some(None)
    })?;
    if let Some(failure) = failure {
        bail!("the micro-guest says `{failure}`");
    }
    progress.done();
    Ok(Run { costs, quote })
}

/// The cost in a line like `cost cpuid min=1246 median=1250`.
fn cost(line: &str) -> Option<Cost> {
    let figure = line.strip_prefix("cost ")?;
    let value = |key: &str| figure.split(' ').find_map(|word| word.strip_prefix(key)?.parse().ok());
    Some(Cost {
        name: figure.split(' ').next()?.to_owned(),
        least: value("min=")?,
        median: value("median=")?,
    })
}

fn show(report: &Report) {
    report.sizes.show();
    stage::show(&report.launch);
    operation::show(&report.operations);
    report.quote.show();
    growth::show(&report.growth);
    report.boot.show();
}

/// A number with its digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && digits.len().saturating_sub(index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_micro_guests_line_is_understood() {
        let want = Cost { name: "cpuid".to_owned(), least: 1246, median: 1250 };
        assert_eq!(cost("cost cpuid min=1246 median=1250"), Some(want));
        assert_eq!(cost("cost done"), None);
        assert_eq!(cost("ok cpuid"), None);
    }

    #[test]
    fn digits_are_grouped_from_the_right() {
        assert_eq!([7, 999, 1000, 1_234_567].map(grouped), ["7", "999", "1,000", "1,234,567"]);
    }
}
