//! What a guest gets beside another that never gives a processor away.
//!
//! Told by the hypervisor's own counters, by what each guest gets done, and by the timer interrupts that one of them
//! takes; all as ratios within one run, so that a slow computer changes nothing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Case, Scene};
use crate::lab::{self, LAUNCH, Release};
use crate::machine::stream::Stream;
use crate::ui;

/// How long it is measured, by the hypervisor's clock.
const WINDOW_S: f64 = 30.0;
/// A computer that stands still for a moment takes a guest's ticks too: so many windows may be tried.
const WINDOWS: usize = 3;
/// Longest wait for the next report.
const REPORT: Duration = Duration::from_secs(30);
/// Reports that come first, while guests start.
const EARLY: usize = 3;
/// How far a share may be from what is fair.
const TOLERANCE: f64 = 0.10;
/// The same for work done: what it costs to change guests is not shared evenly.
const WORK_TOLERANCE: f64 = 0.20;
/// How many of the timer interrupts that a guest asks for must come.
const TICKS_TAKEN: f64 = 0.9;

/// The tests of this file.
pub(super) const CASES: &[Case] = &[
    Case { name: "a_guest_keeps_share_and_ticks_beside_a_spinner_on_one_processor", run: on_one },
    Case { name: "a_guest_keeps_share_and_ticks_beside_a_spinner_on_two_processors", run: on_two },
    Case { name: "a_guest_of_three_times_the_weight_has_three_times_the_share", run: weighted },
];

fn on_one(scene: &Scene<'_>) -> Result<()> {
    Contest { cpus: 1, vcpus: 1, weight: 100, fair: 0.5 }.hold(scene)
}

fn on_two(scene: &Scene<'_>) -> Result<()> {
    Contest { cpus: 2, vcpus: 2, weight: 100, fair: 0.5 }.hold(scene)
}

fn weighted(scene: &Scene<'_>) -> Result<()> {
    Contest { cpus: 2, vcpus: 2, weight: 300, fair: 0.75 }.hold(scene)
}

/// A guest that is measured, beside one of weight 100 that spins on four processors.
struct Contest {
    cpus: u32,
    vcpus: u32,
    weight: u32,
    /// The fair part of all processors.
    fair: f64,
}

impl Contest {
    fn hold(&self, scene: &Scene<'_>) -> Result<()> {
        let release = self.release(scene)?;
        let lab = scene.lab("bios")?.with_cpus(self.cpus);
        let mut machine = lab.boot("share", &release.parts)?;
        lab::measured(&mut machine)?;
        let mut worker = machine.console.take().context("no console")?;
        let (mut spinner, mut napper) = (machine.log.guest("spinner")?, machine.log.guest("napper")?);
        for guest in [&mut worker, &mut spinner, &mut napper] {
            guest.wait_for("share: here", LAUNCH)?;
            (0..EARLY).try_for_each(|_| Work::hear(guest).map(drop))?;
        }
        let mut outcome = Ok(());
        for _ in 0..WINDOWS {
            outcome = self.measure(&mut worker, &mut spinner, &mut napper);
            let lines = [machine.log.lines(), worker.lines()].concat();
            ensure!(!lines.iter().any(|line| line.contains("FAIL")), "a guest has found something wrong");
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    /// One window.
    fn measure(&self, worker: &mut Stream, spinner: &mut Stream, napper: &mut Stream) -> Result<()> {
        let first = Report::hear(worker)?;
        let (spun, slept) = (Work::latest(spinner)?, Work::latest(napper)?);
        let last = loop {
            let now = Report::hear(worker)?;
            if now.seconds - first.seconds >= WINDOW_S {
                break now;
            }
        };
        let (spun, slept) = (Work::latest(spinner)?.since(&spun), Work::latest(napper)?.since(&slept));
        ui::fact(&format!("a guest that sleeps took {:.1} % of its ticks", slept.ticks * 100.0));
        self.judge(&first, &last, spun)?;
        ensure!(slept.are_ticks_taken(), "one that sleeps took {:.3} of its ticks", slept.ticks);
        Ok(())
    }

    fn judge(&self, first: &Report, last: &Report, spun: Pace) -> Result<()> {
        let seconds = last.seconds - first.seconds;
        let (had, other) = (last.had - first.had, last.other_had - first.other_had);
        let share = had / (had + other);
        let own = last.work.since(&first.work);
        let work = own.work / (own.work + spun.work);
        let all = f64::from(self.cpus) * seconds;
        ui::fact(&format!(
            "in {seconds:.1} s: {:.1} % of the processors' time, {:.1} % of what both had, {:.1} % of the work, \
             {:.1} % of its ticks",
            had / all * 100.0,
            share * 100.0,
            work * 100.0,
            own.ticks * 100.0
        ));
        let is_near = |value: f64, tolerance: f64| (value - self.fair).abs() <= self.fair * tolerance;
        ensure!(is_near(share, TOLERANCE), "it had {share:.3} of the time, fair is {}", self.fair);
        ensure!(is_near(had / all, TOLERANCE), "it had {:.3} of the processors", had / all);
        ensure!(is_near(work, WORK_TOLERANCE), "it did {work:.3} of the work, fair is {}", self.fair);
        ensure!(own.are_ticks_taken(), "it took {:.3} of the timer interrupts asked for", own.ticks);
        Ok(())
    }

    fn release(&self, scene: &Scene<'_>) -> Result<Release> {
        let kernel = scene.micro.parts.components.first().context("no micro-guest")?.display().to_string();
        let guest = |name: &str, role: &str, more: &str| {
            format!(
                "[[guest]]\nname = \"{name}\"\nmemory_mib = 64\nformat = \"pvh\"\nkernel = \"{kernel}\"\n\
                 cmdline = \"{role}\"\n{more}\n"
            )
        };
        let (vcpus, weight) = (self.vcpus, self.weight);
        let worker =
            format!("vcpus = {vcpus}\nweight = {weight}\nconsoles = [\"com2\"]\nhypercalls = [\"manage\"]");
        let text = [
            guest("worker", "share", &worker),
            guest("spinner", "share", "vcpus = 4\nweight = 100"),
            guest("napper", "nap", ""),
        ];
        super::release(scene.bench, &scene.folder, &text.concat())
    }
}

/// What the guest that is measured tells now and then.
#[derive(Clone, Copy, Debug)]
struct Report {
    /// The hypervisor's clock.
    seconds: f64,
    /// Seconds that it and the other have had on processors.
    had: f64,
    other_had: f64,
    work: Work,
}

impl Report {
    fn hear(console: &mut Stream) -> Result<Self> {
        let head = console.wait_for("share: uptime=", REPORT)?;
        let own = console.wait_for("share: worker had=", REPORT)?;
        let other = console.wait_for("share: spinner had=", REPORT)?;
        Ok(Self {
            seconds: number(&head, "uptime")? / 1e9,
            had: number(&own, "had")? / 1e9,
            other_had: number(&other, "had")? / 1e9,
            work: Work::hear(console)?,
        })
    }
}

/// What a guest had done, and how often its timer had come, by a moment of its time-stamp counter.
#[derive(Clone, Copy, Debug)]
struct Work {
    tsc: f64,
    ticks: f64,
    period: f64,
    done: f64,
}

/// Work for each tick of the time-stamp counter, and the part of the timer's interrupts that came.
#[derive(Clone, Copy, Debug)]
struct Pace {
    work: f64,
    ticks: f64,
}

impl Work {
    fn hear(console: &mut Stream) -> Result<Self> {
        Self::of(&console.wait_for("share: tsc=", REPORT)?)
    }

    /// The last of a guest's reports so far that is surely whole.
    fn latest(console: &Stream) -> Result<Self> {
        let lines = console.lines();
        let mut reports = lines.iter().rev().filter(|line| line.contains("share: tsc="));
        Self::of(reports.nth(1).context("no report")?)
    }

    fn of(line: &str) -> Result<Self> {
        let number = |name| number(line, name);
        Ok(Self {
            tsc: number("tsc")?,
            ticks: number("ticks")?,
            period: number("period")?,
            done: number("work")?,
        })
    }

    fn since(&self, before: &Self) -> Pace {
        let passed = self.tsc - before.tsc;
        let asked = passed / self.period;
        Pace { work: (self.done - before.done) / passed, ticks: (self.ticks - before.ticks) / asked }
    }
}

impl Pace {
    fn are_ticks_taken(&self) -> bool {
        // One more than asked for may fall into the window.
        (TICKS_TAKEN..=1.02).contains(&self.ticks)
    }
}

/// The number after `name=`.
fn number(line: &str, name: &str) -> Result<f64> {
    let text = line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    text.with_context(|| format!("no {name} in {line:?}"))?
        .parse()
        .with_context(|| format!("no number in {line:?}"))
}
