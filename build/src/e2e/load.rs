//! Work for every processor of two unmodified kernels, side by side on one machine: a minute, or five.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::linux::{self, VCPUS};
use super::{Case, Scene};
use crate::kernel;
use crate::lab::{self, Release};
use crate::machine::Machine;
use crate::machine::shell::Shell;
use crate::ui;

/// The load, which runs in the guest.
const SCRIPT: &[u8] = include_bytes!("load.sh");
/// What its file consists of, so many times.
const WORD: &str = "dolmen";
const LINES: usize = 200_000;
/// How long it lasts, by the guest's clock: usually, and at full length.
const SECONDS: u64 = 60;
const ALL_SECONDS: u64 = 300;
/// Pause between two looks at it.
const PAUSE: Duration = Duration::from_secs(10);
/// How long the work that is under way when the time is over may still take.
const GRACE: Duration = Duration::from_secs(120);
/// Physical processors: a quarter of the virtual ones.
const CPUS: u32 = 2;
/// Longest delay of one that sleeps, among all that work, in hundredths of a second.
const LATEST: u64 = 2000;
/// How far a guest's clock may run from the host's: thousandths, and what reading it may be off by.
const DRIFT_PER_MILLE: f64 = 1.0;
const READING: f64 = 0.05;
/// Fewest timer interrupts a second on each of a guest's processors, which has a quarter of a real one.
const LEAST_TICKS: u64 = 20;
/// Longest wait for the way out.
const END: Duration = Duration::from_secs(60);
/// Between two looks at what a guest that is silent has done.
const GLANCE: Duration = Duration::from_secs(5);

/// The tests of this file.
pub(super) const CASES: &[Case] =
    &[Case { name: "two_kernels_carry_a_parallel_load_side_by_side", run: side_by_side }];

fn side_by_side(scene: &Scene<'_>) -> Result<()> {
    let release = release(scene)?;
    let seconds = if scene.bench.all { ALL_SECONDS } else { SECONDS };
    let lab = scene.lab("bios")?.with_cpus(CPUS);
    let mut machine = lab.boot("load", &release.parts)?;
    lab::measured(&mut machine)?;
    let names = release.manifest.guests.iter().map(|guest| guest.name.clone());
    let shells = lab::shells(&mut machine, &release.manifest)?;
    let mut guests: Vec<Guest> =
        names.zip(shells).map(|(name, shell)| Guest::begin(name, shell, seconds)).collect::<Result<_>>()?;
    let before = Shares::read(&mut guests)?;
    if let Err(error) = watch(&mut guests, seconds) {
        return Err(error.context(what_others_see(&mut guests)));
    }
    Shares::read(&mut guests)?.are_equal_since(&before)?;
    for guest in &mut guests {
        guest.verdict(&scene.folder, seconds).with_context(|| guest.name.clone())?;
    }
    leave(&mut machine, guests)
}

/// One guest under load.
struct Guest {
    name: String,
    shell: Shell,
    begun: Reading,
    ticks: Vec<u64>,
    /// The load's last word, once it has ended.
    sum: Option<String>,
}

impl Guest {
    /// Brings the load into the guest and starts it.
    fn begin(name: String, mut shell: Shell, seconds: u64) -> Result<Self> {
        shell.send("/tmp/load.sh", SCRIPT)?;
        let (begun, ticks) = (Reading::take(&mut shell)?, ticks(&mut shell)?);
        let sum = hex::encode(Sha256::digest(format!("{WORD}\n").repeat(LINES)));
        shell.expect(&format!("{{ sh /tmp/load.sh {seconds} {WORD} {sum} >/tmp/load.log 2>&1 & }}"))?;
        Ok(Self { name, shell, begun, ticks, sum: None })
    }

    /// How far the load is.
    fn look(&mut self) -> Result<()> {
        let said = self.shell.expect("tail -n 1 /tmp/load.log")?;
        if said.starts_with("load: done ") {
            self.sum = Some(said);
        }
        Ok(())
    }

    /// Whether all went as it must.
    fn verdict(&mut self, folder: &Path, seconds: u64) -> Result<()> {
        let now = Reading::take(&mut self.shell)?;
        let ticks = ticks(&mut self.shell)?;
        let sum = self.sum.as_deref().context("the load has not ended")?;
        ui::fact(&format!("{}: {sum}", self.name));
        for kind in ["sums", "forks", "pipes", "pings", "sleeps", "files"] {
            ensure!(count(sum, kind)? > 0, "nothing of one kind was done: {sum}");
        }
        if count(sum, "faults")? > 0 {
            bail!("the load found faults:\n{}", self.shell.expect("tail -n 6 /tmp/load.log")?);
        }
        ensure!(count(sum, "late")? <= LATEST, "a sleeper was woken late: {sum}");
        now.agrees_since(&self.begun)?;
        for (number, (before, after)) in self.ticks.iter().zip(&ticks).enumerate() {
            let rate = after.saturating_sub(*before).checked_div(seconds).unwrap_or_default();
            ui::fact(&format!("{}: processor {number} took {rate} timer interrupts a second", self.name));
            ensure!(rate >= LEAST_TICKS, "processor {number} took {rate} timer interrupts a second");
        }
        linux::content(&mut self.shell, &folder.join(format!("{}-dmesg.txt", self.name)))?;
        linux::look(&mut self.shell)
    }
}

/// Looks at all guests now and then until the load of the last one has ended.
fn watch(guests: &mut [Guest], seconds: u64) -> Result<()> {
    let limit = Duration::from_secs(seconds).saturating_add(GRACE);
    let start = Instant::now();
    while guests.iter().any(|guest| guest.sum.is_none()) {
        ensure!(start.elapsed() < limit, "the load did not end within {} s", limit.as_secs());
        thread::sleep(PAUSE);
        for guest in guests.iter_mut().filter(|guest| guest.sum.is_none()) {
            guest.look().with_context(|| format!("{} fell silent under load", guest.name))?;
        }
    }
    Ok(())
}

/// What the hypervisor tells those guests that still answer, twice: whether a silent one computes, waits, or is gone.
fn what_others_see(guests: &mut [Guest]) -> String {
    let mut seen = String::new();
    for _ in 0..2 {
        for guest in guests.iter_mut() {
            let said = guest.shell.expect("dolmen --json ps").unwrap_or_else(|error| error.to_string());
            seen.push_str(&format!("\n{} sees: {said}", guest.name));
        }
        thread::sleep(GLANCE);
    }
    seen
}

/// The number after `name=` in what the load has said.
fn count(said: &str, name: &str) -> Result<u64> {
    let number = said.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    number.with_context(|| format!("no {name} in {said:?}"))?.parse().context("not a number")
}

/// Timer interrupts of each processor so far.
fn ticks(shell: &mut Shell) -> Result<Vec<u64>> {
    let line = shell.expect("grep LOC: /proc/interrupts")?;
    let counts = line.split_whitespace().skip(1).take(VCPUS);
    counts.map(|count| count.parse().with_context(|| format!("not a number: {line}"))).collect()
}

/// A guest's clock, and between which moments of the host's it was read.
#[derive(Clone, Copy, Debug)]
struct Reading {
    uptime: f64,
    asked: Instant,
    answered: Instant,
}

impl Reading {
    fn take(shell: &mut Shell) -> Result<Self> {
        let asked = Instant::now();
        let said = shell.expect("cat /proc/uptime")?;
        let uptime = said.split(' ').next().context("no clock")?.parse().context("not a time")?;
        Ok(Self { uptime, asked, answered: Instant::now() })
    }

    /// Whether as much time has passed for the guest as for the host.
    fn agrees_since(&self, before: &Self) -> Result<()> {
        let passed = self.uptime - before.uptime;
        let least = self.asked.saturating_duration_since(before.answered).as_secs_f64();
        let most = self.answered.saturating_duration_since(before.asked).as_secs_f64();
        let slack = most * DRIFT_PER_MILLE / 1000.0 + READING;
        ui::fact(&format!("{passed:.2} s passed for the guest, {least:.2} to {most:.2} s for the host"));
        ensure!(
            passed >= least - slack && passed <= most + slack,
            "{passed:.2} s passed for the guest, {least:.2} to {most:.2} s for the host"
        );
        Ok(())
    }
}

/// Processor time of each guest.
struct Shares(Vec<u64>);

impl Shares {
    /// Asks the hypervisor, through the first guest.
    fn read(guests: &mut [Guest]) -> Result<Self> {
        let first = guests.first_mut().context("no guest")?;
        let said = first.shell.expect("dolmen --json ps")?;
        let list: serde_json::Value = serde_json::from_str(&said).context("not JSON")?;
        let all = list.get("guests").and_then(|guests| guests.as_array()).context("no list of guests")?;
        let had = all.iter().map(|guest| guest.get("cpu_ns")?.as_u64());
        Ok(Self(had.collect::<Option<_>>().context("no processor time in the list")?))
    }

    /// Whether each guest had the same, within a tenth.
    fn are_equal_since(&self, before: &Self) -> Result<()> {
        let had: Vec<u64> =
            self.0.iter().zip(&before.0).map(|(now, then)| now.saturating_sub(*then) / 1_000_000).collect();
        let fair = had.iter().sum::<u64>().checked_div(u64::try_from(had.len())?).context("no guest")?;
        ui::fact(&format!("processor time: {had:?} ms"));
        let is_fair = |had: &u64| had.abs_diff(fair).saturating_mul(10) <= fair;
        ensure!(had.iter().all(is_fair), "guests of one weight had {had:?} ms of the processors");
        Ok(())
    }
}

/// The first guest reboots, the other goes off; then the first too, and with it the machine.
fn leave(machine: &mut Machine, guests: Vec<Guest>) -> Result<()> {
    let mut shells = guests.into_iter().map(|guest| guest.shell);
    let (first, second) = (shells.next().context("no guest")?, shells.next().context("no second guest")?);
    let console = first.leave("reboot -f")?;
    machine.log.wait_for("guest stopped name=cloud cause=reboot", END)?;
    let first = Shell::wait(console, lab::GUEST)?;
    drop(second.leave("poweroff -f")?);
    machine.log.wait_for("guest at rest, memory wiped name=generic cause=power-off", END)?;
    drop(first.leave("poweroff -f")?);
    machine.log.wait_for("guest stopped name=cloud cause=power-off", END).map(drop)
}

/// Both kernels of Debian's 6.12, with four processors each and no affinity.
fn release(scene: &Scene<'_>) -> Result<Release> {
    let artifacts = &scene.bench.artifacts;
    let guest = |name: &str, kernel: &Path, more: &str| {
        format!(
            "[[guest]]\nname = \"{name}\"\nmemory_mib = 640\nvcpus = {VCPUS}\n{more}\non_reboot = \"restart\"\n\
             on_crash = \"halt-machine\"\nkernel = \"{}\"\ninitrd = \"{}\"\ncmdline = \"console=ttyS0,115200\"\n",
            kernel.display(),
            artifacts.file("initramfs.cpio").display(),
        )
    };
    let text = [
        guest(
            "cloud",
            &artifacts.file("vmlinuz"),
            "consoles = [\"com2\"]\nhypercalls = [\"manage\"]\non_power_off = \"halt-machine\"",
        ),
        guest(
            "generic",
            &kernel::ensure_generic(&kernel::CURRENT)?,
            "consoles = [\"multiplexed\"]\nhypercalls = [\"manage\"]",
        ),
    ];
    super::release(scene.bench, &scene.folder, &text.concat())
}
