//! A TPM as slow as real parts: who waits for it does not hold up others, and needs not ask again and again.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{ALL_BANKS, Case, Scene};
use crate::artifact::{self, MICRO_GUEST};
use crate::lab::{LAUNCH, Lab};
use crate::machine::Machine;
use crate::machine::bus::LONGEST;
use crate::machine::stream::Stream;
use crate::{place, ui};

/// Longest wait for an answer of a guest's.
const LIMIT: Duration = Duration::from_secs(60);
/// Commands of one quote: a session, two policies, the quote itself.
const COMMANDS: u64 = 4;
/// The timer's period in the guests, at most: it is ten million ticks of a counter that has 1 GHz or more.
const TICK: Duration = Duration::from_millis(10);
/// How long the meter runs while nobody asks; about as long as a question takes.
const QUIET: Duration = Duration::from_secs(4);

/// The tests of this file.
pub(super) const CASES: &[Case] = &[Case { name: "a_slow_tpm_holds_up_nobody_but_who_asked", run: slow_tpm }];

/// Two guests ask for quotes and sleep; a third one measures how it is served. All on one processor.
fn slow_tpm(scene: &Scene<'_>) -> Result<()> {
    let artifacts = &scene.bench.artifacts;
    let kernel = artifact::compile(&MICRO_GUEST, &place::root(), &place::target(), &artifacts.folder)?;
    let release = super::release(scene.bench, &scene.folder, &manifest(&kernel)?)?;
    let folder = scene.folder.join("machine");
    let lab =
        Lab::new(&scene.bench.tools, artifacts, "bios", &folder, ALL_BANKS)?.with_cpus(1).with_tpm_bus(&[]);
    let mut machine = lab.boot("run", &release.parts)?;
    machine.log.wait_for("serve: guest runs", LAUNCH)?;
    let mut meter = machine.console.take().context("no console")?;
    let mut alpha = machine.log.guest("alpha")?;
    let mut beta = machine.log.guest("beta")?;
    for stream in [&mut meter, &mut alpha, &mut beta] {
        stream.wait_for("here", LAUNCH)?;
    }
    measure(&mut meter, b'0')?;
    std::thread::sleep(QUIET);
    let quiet = measure(&mut meter, b'1')?;
    machine.tpm_bus()?.set_slow(true);
    for round in [b'a', b'b'] {
        let busy = round_of_quotes(&machine, [&mut alpha, &mut beta], &mut meter, round)?;
        judge(&quiet, &busy)?;
    }
    Ok(())
}

/// Both ask at once; each finds its quote when it wakes up. Answers what the meter saw meanwhile.
fn round_of_quotes(
    machine: &Machine,
    askers: [&mut Stream; 2],
    meter: &mut Stream,
    round: u8,
) -> Result<Reading> {
    let before = machine.tpm_bus()?.slowed();
    measure(meter, round)?;
    let [alpha, beta] = askers;
    alpha.send(&[round])?;
    beta.send(&[round])?;
    for stream in [alpha, beta] {
        stream.wait_for(&format!("asked {round}: AGAIN, then OK"), LIMIT)?;
    }
    let slowed = machine.tpm_bus()?.slowed().saturating_sub(before);
    ensure!(slowed >= COMMANDS, "the TPM was slow for {slowed} commands only");
    measure(meter, round.to_ascii_uppercase())
}

/// What the measuring guest saw.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    calls: f64,
    ticks: f64,
    longest: f64,
    tsc: f64,
}

/// Asks the meter what it saw since it was last asked; `mark` tells the answers apart.
pub(super) fn measure(meter: &mut Stream, mark: u8) -> Result<Reading> {
    meter.send(&[mark])?;
    let line = meter.wait_for(&format!("meter {mark}: "), LIMIT)?;
    let value = |name: &str| -> Result<f64> {
        let word = line.split(' ').find_map(|word| word.strip_prefix(name)).context("a value is missing")?;
        word.trim().parse().with_context(|| format!("not a number in {line}"))
    };
    Ok(Reading {
        calls: value("calls=")?,
        ticks: value("ticks=")?,
        longest: value("longest=")?,
        tsc: value("tsc=")?,
    })
}

/// How calls and ticks were served, by their rate while nobody asked: as before, or nearly so.
pub(super) fn judge_rates(quiet: &Reading, busy: &Reading) -> Result<(f64, f64)> {
    let rate = |what: fn(&Reading) -> f64| (what(busy) / busy.tsc) / (what(quiet) / quiet.tsc);
    let (calls, ticks) = (rate(|reading| reading.calls), rate(|reading| reading.ticks));
    ensure!(ticks > 0.8, "the timer came at {ticks:.2} of its rate: {quiet:?}, {busy:?}");
    ensure!(calls > 0.5, "calls were served at {calls:.2} of their rate: {quiet:?}, {busy:?}");
    Ok((calls, ticks))
}

/// Timer and calls went on as before, and no call took as long as one command of the TPM's.
fn judge(quiet: &Reading, busy: &Reading) -> Result<()> {
    let (calls, ticks) = judge_rates(quiet, busy)?;
    let longest = busy.longest / busy.tsc * busy.ticks * TICK.as_secs_f64();
    ui::fact(&format!(
        "beside a slow TPM: {:.0} % of the calls, {:.0} % of the ticks, the slowest call took {:.0} ms",
        calls * 100.0,
        ticks * 100.0,
        longest * 1000.0
    ));
    ensure!(longest < LONGEST.as_secs_f64() * 0.8, "a call took {longest:.3} s: {quiet:?}, {busy:?}");
    Ok(())
}

fn manifest(kernel: &Path) -> Result<String> {
    let mut text = String::new();
    for (name, role, console) in
        [("meter", "meter", "com2"), ("alpha", "ask", "multiplexed"), ("beta", "ask", "multiplexed")]
    {
        write!(
            text,
            "[[guest]]\nname = \"{name}\"\nmemory_mib = 64\nformat = \"pvh\"\nconsoles = [\"{console}\"]\n\
             hypercalls = [\"quote\"]\non_reboot = \"stop\"\non_power_off = \"stop\"\n\
             kernel = \"{}\"\ncmdline = \"{role}\"\n",
            kernel.display()
        )?;
    }
    Ok(text)
}
