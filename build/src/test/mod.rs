//! `cargo xtask test`: every level of tests, one line each, one line at the end.

mod bochs;
mod cargo;
mod fuzz;
mod guest;
mod keylime;
pub(crate) mod noise;
mod package;
mod smp;
pub(crate) mod table;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::artifact::{self, Artifacts};
use crate::setup::{self, Tools};
use crate::{e2e, lint, reproduce, ui};

/// What the user chose; nothing chosen means everything.
#[derive(Clone, Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub(crate) struct Options {
    /// Formatting, lints, ledger of unsafe code.
    #[arg(long)]
    lint: bool,
    /// Unit and property tests.
    #[arg(long)]
    unit: bool,
    /// Pure crates under Miri.
    #[arg(long)]
    miri: bool,
    /// Fuzz targets, 20 seconds each.
    #[arg(long)]
    fuzz: bool,
    /// Two builds in two folders give the same bytes.
    #[arg(long)]
    reproduce: bool,
    /// The emulator's SKINIT does what the manual says.
    #[arg(long)]
    conformance: bool,
    /// Small guests, one for each kind of exit.
    #[arg(long)]
    guest: bool,
    /// Debian packages of the guest tools, and the driver for every kernel.
    #[arg(long)]
    packages: bool,
    /// Guests on an Intel processor, by the development image.
    #[arg(long)]
    bochs: bool,
    /// The whole story, and attacks on it.
    #[arg(long)]
    e2e: bool,
    /// Stock Keylime, from the Python registry, judges our quotes. Without this or --all it is left out where that
    /// cannot be reached.
    #[arg(long)]
    keylime: bool,
    /// Long tests at their full length.
    #[arg(long)]
    all: bool,
    /// Of the tests on the emulated machine, only those whose name contains this.
    #[arg(long)]
    only: Option<String>,
}

impl Options {
    /// What a change must pass before it is pushed.
    pub(crate) const fn before_push() -> Self {
        Self {
            lint: true,
            unit: true,
            miri: true,
            fuzz: false,
            reproduce: true,
            conformance: false,
            guest: false,
            packages: false,
            bochs: false,
            e2e: false,
            keylime: false,
            all: false,
            only: None,
        }
    }
}

/// How many tests of a level passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Passed.
    pub(crate) passed: usize,
    /// Failed.
    pub(crate) failed: usize,
    /// Levels that could not be tested here, and were not demanded.
    pub(crate) left_out: usize,
}

impl Tally {
    /// One test.
    pub(crate) const fn one(passed: bool) -> Self {
        if passed { Self::of(1, 0) } else { Self::of(0, 1) }
    }

    /// So many tests.
    pub(crate) const fn of(passed: usize, failed: usize) -> Self {
        Self { passed, failed, left_out: 0 }
    }

    /// A level that could not be tested.
    const fn left_out() -> Self {
        Self { passed: 0, failed: 0, left_out: 1 }
    }

    /// Both together.
    pub(crate) const fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed.saturating_add(other.passed),
            failed: self.failed.saturating_add(other.failed),
            left_out: self.left_out.saturating_add(other.left_out),
        }
    }
}

/// What levels need.
#[derive(Debug)]
pub(crate) struct Bench {
    /// Emulator and kernel.
    pub(crate) tools: Tools,
    /// Everything built.
    pub(crate) artifacts: Artifacts,
    /// Long tests run at their full length.
    pub(crate) all: bool,
    /// Choice among the tests on the emulated machine.
    pub(crate) only: Option<String>,
    /// The level with Keylime is demanded: it fails where it cannot be tested.
    pub(crate) must_have_keylime: bool,
}

impl Bench {
    fn prepare(options: &Options) -> Result<Self> {
        let tools = setup::ensure()?;
        let artifacts = artifact::build(&tools)?;
        let must_have_keylime = options.keylime || options.all;
        Ok(Self { tools, artifacts, all: options.all, only: options.only.clone(), must_have_keylime })
    }

    /// Whether the user wants the test of this name.
    pub(crate) fn is_chosen(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    }
}

/// One level of tests.
struct Level {
    name: &'static str,
    chosen: bool,
    run: Run,
}

/// What a level works on.
#[derive(Clone, Copy)]
enum Run {
    /// The source tree.
    Tree(fn() -> Result<Tally>),
    /// The emulated machine, with everything built.
    Machine(fn(&Bench) -> Result<Tally>),
}

/// Runs the chosen levels.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let start = Instant::now();
    setup::host()?;
    let levels = levels(options);
    let all = !levels.iter().any(|level| level.chosen);
    let mut total = Tally::default();
    let mut bench = None;
    for level in levels.iter().filter(|level| all || level.chosen) {
        let tally = match level.run {
            Run::Tree(run) => perform(level.name, run),
            Run::Machine(run) => perform(level.name, || run(prepared(&mut bench, options)?)),
        };
        total = total.plus(tally);
    }
    println!("took {} s", start.elapsed().as_secs());
    let left_out = if total.left_out == 0 { String::new() } else { format!(", {} left out", total.left_out) };
    println!("{} passed, {} failed{left_out}", total.passed, total.failed);
    Ok(if total.failed == 0 && total.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Emulator and programs, made when the first level wants them.
fn prepared<'a>(bench: &'a mut Option<Bench>, options: &Options) -> Result<&'a Bench> {
    if bench.is_none() {
        *bench = Some(Bench::prepare(options)?);
    }
    bench.as_ref().context("nothing was prepared")
}

fn levels(options: &Options) -> Vec<Level> {
    let tree = |name, chosen, run| Level { name, chosen, run: Run::Tree(run) };
    let machine = |name, chosen, run| Level { name, chosen, run: Run::Machine(run) };
    vec![
        tree("format", options.lint, cargo::format),
        tree("rules of the tree", options.lint, ledger),
        tree("lints", options.lint, cargo::lints),
        tree("unit and property tests", options.unit, cargo::unit),
        tree("Miri", options.miri, cargo::miri),
        tree("fuzzing", options.fuzz, fuzz::run),
        tree("reproducible build", options.reproduce, reproducible),
        machine("packages of the guest tools", options.packages, package::run),
        machine("micro-guests", options.guest, guest::run),
        machine("SKINIT conformance", options.conformance, conformance),
        machine("guests on Intel (Bochs)", options.bochs, bochs::run),
        machine("end to end", options.e2e, e2e::run),
        machine("Keylime", options.keylime, keylime::run),
    ]
}

/// The emulator does what the manual says.
fn conformance(bench: &Bench) -> Result<Tally> {
    crate::conformance::run(&bench.tools.qemu, bench.only.as_deref())
}

/// Runs one level and prints its line.
fn perform(name: &str, run: impl FnOnce() -> Result<Tally>) -> Tally {
    let start = Instant::now();
    ui::heading(name);
    let outcome = run();
    let seconds = start.elapsed().as_secs();
    let tally = match outcome {
        Ok(tally) => tally,
        Err(error) => {
            eprintln!("{error:#}");
            Tally::one(false)
        }
    };
    // A level without tests proves nothing.
    let is_empty = tally == Tally::default();
    if is_empty {
        ui::bad("nothing was tested: has --only a word that no test of this level is named by?");
    }
    let tally = if is_empty { Tally::one(false) } else { tally };
    let line = format!("{name}: {} passed, {} failed ({seconds} s)", tally.passed, tally.failed);
    if tally.left_out > 0 {
        ui::note(&format!("{name}: left out"));
    } else if tally.failed == 0 {
        ui::good(&line);
    } else {
        ui::bad(&line);
    }
    tally
}

fn ledger() -> Result<Tally> {
    lint::verify()?;
    Ok(Tally::one(true))
}

fn reproducible() -> Result<Tally> {
    reproduce::run()?;
    Ok(Tally::one(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_tested_nothing_fails_unless_it_says_that_it_is_left_out() {
        assert_eq!(perform("nothing", || Ok(Tally::default())), Tally::one(false));
        assert_eq!(perform("an error", || anyhow::bail!("no disk")), Tally::one(false));
        assert_eq!(perform("left out", || Ok(Tally::left_out())), Tally::left_out());
    }
}
