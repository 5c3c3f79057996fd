//! Micro-guests: one bare program as a guest of the whole hypervisor; it looks around, or it ends badly.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::table::{ENDINGS, Ending, LOOKS_AROUND};
use super::{Bench, Tally, noise, smp};
use crate::artifact::{self, MICRO_GUEST};
use crate::e2e::{self, ALL_BANKS};
use crate::lab::{LAUNCH, Lab, STANDS_STILL};
use crate::machine::Machine;
use crate::machine::stream::Stream;
use crate::pool::{self, Job};
use crate::{place, ui};

/// Longest run of the guest's tests, and longest wait for an ending's verdict.
pub(super) const LIMIT: Duration = Duration::from_secs(90);

/// Runs the guest's own tests, each ending, and noise.
pub(super) fn run(bench: &Bench) -> Result<Tally> {
    let folder = place::output().join("micro");
    let kernel = artifact::compile(&MICRO_GUEST, &place::root(), &place::target(), &bench.artifacts.folder)?;
    let mut jobs = Vec::new();
    if bench.is_chosen("own_tests") {
        jobs.push(Job::new("a guest that looks around", 1, || {
            own_tests(bench, &folder.join("tests"), &kernel).unwrap_or_else(|error| {
                ui::bad(&format!("the guest's own tests: {error:#}"));
                Tally::one(false)
            })
        }));
    }
    for Ending { name, said } in ENDINGS {
        if !bench.is_chosen(&format!("ends_{name}")) {
            continue;
        }
        let (folder, kernel) = (folder.join(name), &kernel);
        let shown = format!("a guest that ends by {name} is named, and nothing else happens");
        jobs.push(Job::new(shown.clone(), 1, move || {
            let outcome = ending(bench, &folder, kernel, name, said);
            match &outcome {
                Ok(line) => ui::good(&format!("{shown}: {line}")),
                Err(error) => ui::bad(&format!("{shown}: {error:#}")),
            }
            Tally::one(outcome.is_ok())
        }));
    }
    jobs.extend(noise::jobs(bench, &folder, &kernel));
    jobs.extend(smp::jobs(bench, &folder, &kernel));
    Ok(pool::run("Small machines, one for each guest", jobs))
}

/// Starts the hypervisor with the micro-guest and this command line.
pub(super) fn start(bench: &Bench, folder: &Path, kernel: &Path, command_line: &str) -> Result<Machine> {
    let lab = Lab::new(&bench.tools, &bench.artifacts, "bios", folder, ALL_BANKS)?;
    let release = e2e::small_guest(bench, folder, kernel, command_line)?;
    lab.boot_with("run", &release.parts, None, &STANDS_STILL.map(str::to_owned))
}

/// The guest prints a line for each test and a sum at the end.
fn own_tests(bench: &Bench, folder: &Path, kernel: &Path) -> Result<Tally> {
    let mut machine = start(bench, folder, kernel, "")?;
    machine.log.wait_for("serve: guest runs", LAUNCH)?;
    let mut console = machine.console.take().context("no console")?;
    let tally = sum(&mut console, LIMIT, LOOKS_AROUND)?;
    machine.wait_off_or(LIMIT, "stop: the guest switched its machine off")?;
    Ok(tally)
}

/// Hears what a micro-guest says of its tests, up to the sum: they must be those of the table, whatever became of them.
pub(super) fn sum(console: &mut Stream, limit: Duration, tests: &[&str]) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut heard = Vec::new();
    let sum = console.find("the micro-guest's sum", limit, |line| {
        if let Some(failure) = line.strip_prefix("FAIL ") {
            ui::bad(failure);
            tally.failed = tally.failed.saturating_add(1);
            heard.extend(failure.split(' ').next().map(str::to_owned));
        } else if let Some(name) = line.strip_prefix("ok ") {
            tally.passed = tally.passed.saturating_add(1);
            heard.push(name.to_owned());
        }
        line.starts_with("micro: ").then(|| line.to_owned())
    })?;
    if sum != format!("micro: {} passed, {} failed", tally.passed, tally.failed) {
        bail!("the guest says `{sum}`, but {tally:?} were heard");
    }
    if heard != tests {
        bail!("the guest's tests are not those of the table: {heard:?}");
    }
    Ok(tally)
}

fn ending(bench: &Bench, folder: &Path, kernel: &Path, name: &str, said: &str) -> Result<String> {
    let mut machine = start(bench, folder, kernel, &format!("ends={name}"))?;
    machine.log.wait_for("serve: guest runs", LAUNCH)?;
    let console = machine.console.take().context("no console")?;
    let line = machine.log.wait_for(said, LIMIT)?;
    if console.lines().iter().any(|line| line.starts_with("FAIL")) {
        bail!("the guest went on");
    }
    // Nothing of the guest's may be left: the way out says what it did.
    machine.log.wait_for("memory wiped, PCR 17 and 18 capped", LIMIT)?;
    Ok(line)
}
