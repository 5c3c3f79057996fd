//! Noise: a guest that misbehaves on purpose must go on, be faulted, or be stopped by name; the hypervisor
//! itself never stops for it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::guest::start;
use super::table::{DEADLY, LASTING};
use super::{Bench, Tally};
use crate::lab::LAUNCH;
use crate::machine::stream::Stream;
use crate::pool::Job;
use crate::ui;

/// Longest run of one kind of noise: a guest that nobody interrupts any more is a failure.
const LIMIT: Duration = Duration::from_secs(180);

/// What a stop of the hypervisor for its own sake says.
pub(crate) const OWN_FAULT: &str = "please report it";

/// What a guest says that has made all the noise that it was asked for.
const DONE: &str = "noise: done";

/// All kinds that last in one machine, then each kind that does not.
pub(super) fn jobs<'a>(bench: &'a Bench, folder: &Path, kernel: &'a Path) -> Vec<Job<'a>> {
    let kinds = std::iter::once(("all", 1)).chain(DEADLY.iter().copied());
    let chosen: Vec<(&str, u32)> =
        kinds.filter(|(name, _)| bench.is_chosen(&format!("noise_{name}"))).collect();
    // A kind that is part of `all` can be had alone by its whole name.
    let alone = bench.only.as_deref().and_then(|only| only.strip_prefix("noise_"));
    let alone = alone.filter(|_| chosen.is_empty()).map(|name| (name, 1));
    let chosen = chosen.into_iter().chain(alone);
    let jobs = chosen.map(|(name, seed)| {
        let folder = folder.join(format!("noise-{name}-{seed}"));
        Job::new(format!("noise: {name}, seed {seed}"), 1, move || {
            let outcome = one(bench, &folder, kernel, name, seed);
            match &outcome {
                Ok(end) => ui::good(&format!("noise ({name}, seed {seed}) disturbs nobody: {end}")),
                Err(error) => ui::bad(&format!("noise ({name}, seed {seed}): {error:#}")),
            }
            Tally::one(outcome.is_ok())
        })
    });
    jobs.collect()
}

/// Runs one kind; answers how it ended.
fn one(bench: &Bench, folder: &Path, kernel: &Path, name: &str, seed: u32) -> Result<String> {
    let mut machine = start(bench, folder, kernel, &format!("noise={name} seed={seed}"))?;
    machine.log.wait_for("serve: guest runs", LAUNCH)?;
    let console = machine.console.take().context("no console")?;
    let end = machine.log.wait_for("stop: ", LIMIT)?;
    machine.log.wait_for("memory wiped, PCR 17 and 18 capped", LIMIT)?;
    let last = last_words(&machine.log, &console)?;
    if name == "all" && (last != DONE || made(&console.lines()) != LASTING) {
        bail!("it ended at `{last}`: {end}");
    }
    Ok(format!("{last}; {end}"))
}

/// The kinds of noise that a guest says it has made: `noise NAME: N tries`.
fn made(said: &[String]) -> Vec<&str> {
    let pairs = said.iter().filter_map(|line| line.strip_prefix("noise ")?.split_once(": "));
    pairs.filter(|(_, tries)| tries.ends_with(" tries")).map(|(name, _)| name).collect()
}

/// What the guest said last before its end, of which nobody may complain: neither itself nor the hypervisor.
pub(super) fn last_words(log: &Stream, console: &Stream) -> Result<String> {
    let said = console.lines();
    if let Some(failure) = said.iter().find(|line| line.starts_with("FAIL")) {
        bail!("{failure}");
    }
    if let Some(fault) = log.lines().iter().find(|line| line.contains(OWN_FAULT)) {
        bail!("the hypervisor stopped for its own sake: {fault}");
    }
    Ok(said.iter().rev().find(|line| line.starts_with("noise")).cloned().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_that_was_made_is_told_from_what_was_begun() {
        let said = ["noise msr seed=1", "noise msr: 9 tries", "noise port seed=1", "noise: done"];
        assert_eq!(made(&said.map(str::to_owned)), ["msr"]);
    }
}
