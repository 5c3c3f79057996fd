//! Noise next door: guests that misbehave on purpose, all at once, beside one that must not notice. The
//! hypervisor is the one that checks itself, and says after each guest's end whether all is well.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{ALL_BANKS, Case, Scene};
use crate::artifact::{self, CORE_SELF_CHECK};
use crate::lab::{LAUNCH, Lab, Release};
use crate::machine::stream::Stream;
use crate::test::noise::OWN_FAULT;
use crate::test::table::{DEADLY, DOOMS};
use crate::{measure, place, ui};

/// Longest run of all noise.
const LIMIT: Duration = Duration::from_secs(600);
/// Longest wait for the neighbour's answer in QEMU: many processors share few.
const ANSWER: Duration = Duration::from_secs(30);
/// Pause between two questions.
const PAUSE: Duration = Duration::from_millis(500);
/// Physical processors: fewer than virtual ones.
const CPUS: u32 = 2;

/// A noisy guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Noisy {
    kind: &'static str,
    seed: u32,
    vcpus: u32,
    /// It must go on to its own end.
    lasts: bool,
}

/// Kinds that last, seeds, and virtual processors.
const LASTING: [(&str, u32, u32); 4] = [("all", 1, 1), ("start", 1, 4), ("race", 1, 3), ("remap", 1, 3)];

/// Between the seeds of the kinds that do not last, and those that they have alone in a machine.
const OTHER_SEEDS: u32 = 2;

/// How the hypervisor calls the end of a guest that switched itself off.
const SWITCHED_OFF: &str = "power-off ";

/// The tests of this file.
pub(super) const CASES: &[Case] = &[
    Case { name: "a_neighbour_answers_through_all_noise_at_once", run: all_at_once },
    Case { name: "a_neighbour_answers_while_guests_end_in_every_way", run: every_end },
];

fn all_at_once(scene: &Scene<'_>) -> Result<()> {
    beside(scene, &every_kind())
}

fn every_end(scene: &Scene<'_>) -> Result<()> {
    beside(scene, &every_doom())
}

/// Guests that make all noise at once.
pub(crate) fn every_kind() -> Vec<Noisy> {
    let lasting = LASTING.map(|(kind, seed, vcpus)| Noisy { kind, seed, vcpus, lasts: true });
    let deadly = DEADLY.iter().map(|&(kind, seed)| Noisy {
        kind,
        seed: seed.saturating_add(OTHER_SEEDS),
        vcpus: 1,
        lasts: false,
    });
    lasting.into_iter().chain(deadly).collect()
}

/// Guests each of which ends by itself, and by no way out of the sandbox.
pub(crate) fn every_doom() -> Vec<Noisy> {
    (0..DOOMS).map(|seed| Noisy { kind: "doom", seed, vcpus: 1, lasts: false }).collect()
}

/// Runs noisy guests beside the neighbour.
fn beside(scene: &Scene<'_>, noisy: &[Noisy]) -> Result<()> {
    let release = release(scene, noisy)?;
    let lab = Lab::new(
        &scene.bench.tools,
        &scene.bench.artifacts,
        "bios",
        &scene.folder.join("machine"),
        ALL_BANKS,
    )?
    .with_cpus(CPUS);
    let mut machine = lab.boot("run", &release.parts)?;
    machine.log.wait_for("serve: guest runs", LAUNCH)?;
    let mut console = machine.console.take().context("the neighbour's console is in use")?;
    converse(&machine.log, &mut console, noisy, ANSWER)?;
    machine.log.wait_for("memory wiped, PCR 17 and 18 capped", LAUNCH)?;
    verdict(&machine.log.lines(), noisy)
}

/// Asks the neighbour until the last noisy guest has ended, then lets it end; says what its longest delay was.
pub(crate) fn converse(log: &Stream, console: &mut Stream, noisy: &[Noisy], limit: Duration) -> Result<()> {
    console.wait_for("neighbour: here", LAUNCH)?;
    let (begin, mut slowest) = (Instant::now(), Duration::ZERO);
    for number in 0u32.. {
        let asked = Instant::now();
        console.send(format!("ping {number}\n").as_bytes())?;
        console.wait_for(&format!("pong {number} "), limit).context("the neighbour fell silent")?;
        slowest = slowest.max(asked.elapsed());
        let ended = ended(log);
        if ended >= noisy.len() {
            break;
        }
        if begin.elapsed() > LIMIT {
            bail!("after {} s only {ended} of {} noisy guests ended", LIMIT.as_secs(), noisy.len());
        }
        std::thread::sleep(PAUSE);
    }
    ui::fact(&format!("the slowest of the neighbour's answers took {} ms", slowest.as_millis()));
    console.send(b"off\n")
}

fn ended(log: &Stream) -> usize {
    log.lines().iter().filter(|line| line.contains("guest stopped name=noise-")).count()
}

/// Guests that last switched themselves off, nobody complains, and the machine ended as the neighbour asked.
pub(crate) fn verdict(lines: &[String], noisy: &[Noisy]) -> Result<()> {
    if let Some(line) = lines.iter().find(|line| line.contains("FAIL") || line.contains(OWN_FAULT)) {
        bail!("{line}");
    }
    if !lines.iter().any(|line| line.contains("self-check: DEBUG image")) {
        bail!("the image does not check itself");
    }
    for (number, Noisy { kind, seed, lasts, .. }) in noisy.iter().enumerate() {
        let mark = format!("guest stopped name={} cause=", name(number, kind));
        let end = lines.iter().find_map(|line| Some(line.split_once(&mark)?.1.trim().to_owned()));
        let end = end.with_context(|| format!("{kind}, seed {seed}, did not end"))?;
        let well = format!("self-check: all is well after={}", name(number, kind));
        if !lines.iter().any(|line| line.contains(&well)) {
            bail!("nobody looked after the hypervisor when {kind}, seed {seed}, had ended");
        }
        if *lasts && !end.starts_with(SWITCHED_OFF) {
            bail!("{kind}, seed {seed}, did not last: {end}");
        }
        if *kind == "doom" && end.starts_with(SWITCHED_OFF) {
            bail!("way {seed} is not the guest's end");
        }
        ui::fact(&format!("{kind}, seed {seed}: {end}"));
    }
    match lines.iter().find(|line| line.contains("stop: ")) {
        Some(line) if line.contains("the guest switched its machine off") => Ok(()),
        other => bail!("the machine ended otherwise: {other:?}"),
    }
}

fn name(number: usize, kind: &str) -> String {
    format!("noise-{number}-{kind}")
}

/// The neighbour and all noisy guests, under a core that checks itself.
fn release(scene: &Scene<'_>, noisy: &[Noisy]) -> Result<Release> {
    let kernel = scene.micro.parts.components.first().context("no kernel")?;
    let artifacts = &scene.bench.artifacts;
    let mut release = Release::of(artifacts, &scene.folder, &manifest(kernel, noisy, ""))?;
    release.parts.core =
        artifact::compile(&CORE_SELF_CHECK, &place::root(), &place::target(), &artifacts.folder)?;
    release.reference = measure::reference(&release.parts, &release.manifest)?;
    Ok(release)
}

/// The manifest of all of them, with more on the noisy ones' command lines. Those that last share the log's port, the
/// others have no console.
pub(crate) fn manifest(kernel: &Path, noisy: &[Noisy], more: &str) -> String {
    let guest = |name: &str, vcpus: u32, console: &str, off: &str, line: &str| {
        format!(
            "[[guest]]\nname = \"{name}\"\nmemory_mib = 64\nvcpus = {vcpus}\nformat = \"pvh\"\nkernel = \"{}\"\n\
             consoles = [\"{console}\"]\non_power_off = \"{off}\"\non_reboot = \"stop\"\n\
             hypercalls = [\"random\", \"registers\", \"seal\", \"quote\", \"log\"]\ncmdline = \"{line}\"\n",
            kernel.display()
        )
    };
    let mut text = guest("neighbour", 1, "com2", "halt-machine", "noise=neighbour");
    for (number, Noisy { kind, seed, vcpus, lasts }) in noisy.iter().enumerate() {
        let console = if *lasts { "multiplexed" } else { "none" };
        let line = format!("noise={kind} seed={seed}{more}");
        text.push_str(&guest(&name(number, kind), *vcpus, console, "stop", &line));
    }
    text
}
