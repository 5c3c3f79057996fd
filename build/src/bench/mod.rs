//! `cargo xtask bench`: sizes, lines, and counts of executed instructions, beside those of KVM and Xen.
//!
//! Counts come from the emulator's deterministic mode: one processor, one tick of the time-stamp counter for each
//! executed instruction. The peers were measured the same way, on the same processor model.

mod boot;
mod company;
mod growth;
mod operation;
mod size;
mod stage;
mod tpm;
mod vendor;
mod verify;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::artifact::{self, MICRO_GUEST};
use crate::lab::{LAUNCH, Lab, Release};
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
    /// Only these figures; all without it.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Subject>,
}

/// What is measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Subject {
    /// Bytes and lines.
    Sizes,
    /// The launch, exits, hypercalls and a quote, by one guest alone.
    Exits,
    /// The same exits as guests grow from 1 to 32.
    Growth,
    /// Processors of one guest among themselves, and the life of a guest.
    Company,
    /// The same exits under Intel's extension, in another emulator.
    Vendors,
    /// Boot of a kernel inside of Dolmen and without it.
    Boot,
    /// Evidence verified per second, beside `tpm2_checkquote`.
    Verify,
}

impl Options {
    /// `measure()`, if the user wants it.
    fn chosen<T>(&self, subject: Subject, measure: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
        let wanted = self.only.is_empty() || self.only.contains(&subject);
        wanted.then(measure).transpose()
    }
}

/// All figures that the user wants.
#[derive(Clone, Debug, Serialize)]
struct Report {
    sizes: Option<size::Sizes>,
    exits: Option<Exits>,
    growth: Option<Vec<growth::Crowd>>,
    company: Option<Vec<company::Figure>>,
    vendors: Option<Vec<vendor::Pair>>,
    boot: Option<boot::Boots>,
    verify: Option<Vec<verify::Throughput>>,
}

/// What one guest alone measures, and what it took to get there.
#[derive(Clone, Debug, Serialize)]
struct Exits {
    launch: Vec<stage::Stage>,
    operations: Vec<operation::Operation>,
    quote: tpm::Quote,
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
    artifact::compile(&MICRO_GUEST, &place::root(), &place::target(), &artifacts.folder)?;
    let bench = Bench { tools, artifacts, all: false, only: None, must_have_keylime: false };
    let report = measure(&bench, options)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        show(&report);
    }
    Ok(())
}

fn measure(bench: &Bench, options: &Options) -> Result<Report> {
    Ok(Report {
        sizes: options.chosen(Subject::Sizes, || size::measure(&bench.artifacts))?,
        exits: options.chosen(Subject::Exits, || exits(bench))?,
        growth: options.chosen(Subject::Growth, || growth::measure(bench))?,
        company: options.chosen(Subject::Company, || company::measure(bench))?,
        vendors: options.chosen(Subject::Vendors, || vendor::measure(bench))?,
        boot: options.chosen(Subject::Boot, || boot::measure(bench))?,
        verify: options.chosen(Subject::Verify, || verify::measure(&bench.artifacts))?,
    })
}

fn exits(bench: &Bench) -> Result<Exits> {
    let folder = place::output().join("bench");
    let mut machine = start(bench, &folder)?;
    let run = costs(&mut machine)?;
    let launch = stage::read(&machine.log.lines())?;
    drop(machine);
    let record = place::read(&folder.join("machine/bench-tpm.log"))?;
    Ok(Exits {
        launch,
        operations: operation::compare(&run.costs)?,
        quote: tpm::quote(&run, &String::from_utf8_lossy(&record))?,
    })
}

fn start(bench: &Bench, folder: &std::path::Path) -> Result<Machine> {
    let kernel = bench.artifacts.file(MICRO_GUEST.output);
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

/// Boots the guests of a manifest, in the deterministic mode, the one on the second port measuring; its figures, and the
/// hypervisor's log.
fn figures(bench: &Bench, name: &str, manifest: &str) -> Result<(Vec<Cost>, Vec<String>)> {
    let folder = place::output().join("bench").join(name);
    let release = Release::of(&bench.artifacts, &folder, manifest)?;
    let lab = Lab::new(&bench.tools, &bench.artifacts, "bios", &folder.join("machine"), "sha256")?;
    let mut machine = lab.boot_with(name, &release.parts, None, &COUNTING.map(str::to_owned))?;
    machine.log.wait_for("serve: guest runs", LAUNCH)?;
    let mut console = machine.console.take().context("no console")?;
    let mut costs = Vec::new();
    let failure = console.find("the micro-guest's figures", LIMIT, |line| {
        costs.extend(cost(line));
        (line == "cost done" || line.starts_with("FAIL ")).then(|| line.to_owned())
    })?;
    if failure.starts_with("FAIL ") {
        bail!("the micro-guest says `{failure}`");
    }
    Ok((costs, machine.log.lines()))
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
    if let Some(sizes) = &report.sizes {
        sizes.show();
    }
    if let Some(Exits { launch, operations, quote }) = &report.exits {
        stage::show(launch);
        operation::show(operations);
        quote.show();
    }
    if let Some(crowds) = &report.growth {
        growth::show(crowds);
    }
    if let Some(figures) = &report.company {
        company::show(figures);
    }
    if let Some(pairs) = &report.vendors {
        vendor::show(pairs);
    }
    if let Some(boots) = &report.boot {
        boots.show();
    }
    if let Some(figures) = &report.verify {
        verify::show(figures);
    }
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
