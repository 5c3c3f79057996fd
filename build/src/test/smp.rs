//! Micro-guests with several processors, and two on one processor.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::guest::{LIMIT, sum};
use super::table::{NEIGHBOURS, PROCESSORS};
use super::{Bench, Tally};
use crate::e2e::{self, ALL_BANKS};
use crate::lab::{LAUNCH, Lab, STANDS_STILL};
use crate::machine::stream::Stream;
use crate::pool::Job;
use crate::ui;

/// One guest: processors, command line, console.
pub(super) type Guest = (u32, &'static str, &'static str);

/// The tests of the guest with this command line.
fn tests_of(command_line: &str) -> &'static [&'static str] {
    if command_line == "smp" { PROCESSORS } else { NEIGHBOURS }
}

/// What is run: name, sentence, machine, guests.
type Case = (&'static str, &'static str, &'static str, &'static [Guest]);

const CASES: &[Case] = &[
    ("smp_on_one", "four processors of a guest take turns on one", "bios", &[(4, "smp", "com2")]),
    ("smp_on_four", "four processors of a guest run on four", "smp", &[(4, "smp", "com2")]),
    (
        "neighbours",
        "two guests on one processor keep every register apart",
        "bios",
        &[(1, "keep=1", "com2"), (1, "keep=2", "com1")],
    ),
];

/// One job for each case.
pub(super) fn jobs<'a>(bench: &'a Bench, folder: &Path, kernel: &'a Path) -> Vec<Job<'a>> {
    let chosen = CASES.iter().filter(|(name, ..)| bench.is_chosen(name));
    let job = |(name, sentence, machine, guests): &'static Case| {
        let folder = folder.join(name);
        Job::new(*sentence, 1, move || {
            let outcome = run(bench, &folder, kernel, machine, guests);
            match &outcome {
                Ok(tally) => ui::good(&format!("{sentence} ({} tests)", tally.passed)),
                Err(error) => ui::bad(&format!("{sentence}: {error:#}")),
            }
            outcome.unwrap_or_else(|_| Tally::one(false))
        })
    };
    chosen.map(job).collect()
}

fn run(bench: &Bench, folder: &Path, kernel: &Path, machine: &str, guests: &[Guest]) -> Result<Tally> {
    let lab = Lab::new(&bench.tools, &bench.artifacts, machine, folder, ALL_BANKS)?;
    let release = e2e::release(bench, folder, &manifest(kernel, guests)?)?;
    let mut machine = lab.boot_with("run", &release.parts, None, &STANDS_STILL.map(str::to_owned))?;
    machine.log.wait_for("serve: guest runs", LAUNCH)?;
    let mut console = machine.console.take().context("no console")?;
    hear(&mut machine.log, &mut console, guests, LIMIT)
}

/// Hears what the guests say of their tests; one of them has the second port to itself.
pub(super) fn hear(
    log: &mut Stream,
    console: &mut Stream,
    guests: &[Guest],
    limit: Duration,
) -> Result<Tally> {
    let first = guests.first().map_or("", |(_, command_line, _)| command_line);
    let mut tally = sum(console, limit, tests_of(first))?;
    if guests.iter().any(|(.., console)| *console == "com1") {
        // The hypervisor's log shares that line, shows whose words they are, and may break them where it speaks.
        let line = log.find("the second guest's verdict", limit, |line| {
            (line.contains("[micro2] ok ") || line.contains("FAIL ")).then(|| line.to_owned())
        })?;
        if line.contains("FAIL ") {
            bail!("the second guest: {line}");
        }
        tally = tally.plus(Tally::one(true));
    }
    if tally.passed == 0 || tally.failed > 0 {
        bail!("{tally:?}");
    }
    Ok(tally)
}

/// The manifest of these guests.
pub(super) fn manifest(kernel: &Path, guests: &[Guest]) -> Result<String> {
    let mut text = String::new();
    for (number, (vcpus, command_line, console)) in (1..).zip(guests) {
        write!(
            text,
            "[[guest]]\nname = \"micro{number}\"\nmemory_mib = 64\nvcpus = {vcpus}\nformat = \"pvh\"\n\
             consoles = [\"{console}\"]\nhypercalls = []\non_reboot = \"stop\"\non_crash = \"halt-machine\"\n\
             on_power_off = \"stop\"\nkernel = \"{}\"\ncmdline = \"{command_line}\"\n",
            kernel.display()
        )?;
    }
    Ok(text)
}
