//! Noise next door: guests that misbehave on purpose, all at once, beside one that must not notice. The
//! hypervisor is the one that checks itself, and says after each guest's end whether all is well.

use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{ALL_BANKS, Case, Scene};
use crate::artifact::{self, CORE_SELF_CHECK};
use crate::image::Parts;
use crate::lab::{LAUNCH, Lab, Release};
use crate::machine::Machine;
use crate::manifest::Manifest;
use crate::{measure, place, ui};

/// Longest run of all noise.
const LIMIT: Duration = Duration::from_secs(600);
/// Longest wait for the neighbour's answer: many processors share few, in an emulator.
const ANSWER: Duration = Duration::from_secs(30);
/// Pause between two questions.
const PAUSE: Duration = Duration::from_millis(500);
/// Physical processors: fewer than virtual ones.
const CPUS: u32 = 2;

/// Kind, seed, virtual processors, and whether it must last to its own end.
type Noisy = (&'static str, u32, u32, bool);

/// Noisy guests, all at once.
const NOISY: &[Noisy] = &[
    ("all", 1, 1, true),
    ("start", 1, 4, true),
    ("race", 1, 3, true),
    ("remap", 1, 3, true),
    ("code", 3, 1, false),
    ("code", 4, 1, false),
    ("access", 2, 1, false),
    ("walk", 2, 1, false),
    ("attributes", 1, 1, false),
    ("stack", 1, 1, false),
    ("tasks", 3, 1, false),
];

/// Ways to a guest's end, each in a guest of its own: as many as `noise/doom.rs` of the micro-guest knows.
const DOOMS: u32 = 21;

/// How the hypervisor calls the end of a guest that switched itself off.
const SWITCHED_OFF: &str = "power-off ";

/// The tests of this file.
pub(super) const CASES: &[Case] = &[
    Case { name: "a_neighbour_answers_through_all_noise_at_once", run: all_at_once },
    Case { name: "a_neighbour_answers_while_guests_end_in_every_way", run: every_end },
];

fn all_at_once(scene: &Scene<'_>) -> Result<()> {
    beside(scene, NOISY)
}

/// Each ends by itself, and by no way out of the sandbox.
fn every_end(scene: &Scene<'_>) -> Result<()> {
    let doomed: Vec<_> = (0..DOOMS).map(|seed| ("doom", seed, 1, false)).collect();
    beside(scene, &doomed)
}

/// Runs noisy guests beside the neighbour.
fn beside(scene: &Scene<'_>, noisy: &[Noisy]) -> Result<()> {
    let release = release(scene, &scene.folder, noisy)?;
    let lab = Lab::new(
        &scene.bench.tools,
        &scene.bench.artifacts,
        "bios",
        &scene.folder.join("machine"),
        ALL_BANKS,
    )?
    .with_cpus(CPUS);
    let mut machine = lab.boot("run", &release.parts)?;
    let slowest = converse(&mut machine, noisy.len())?;
    ui::fact(&format!("the slowest of the neighbour's answers took {} ms", slowest.as_millis()));
    machine.log.wait_for("memory wiped, PCR 17 and 18 capped", LAUNCH)?;
    verdict(&machine, noisy)
}

/// Asks until the last noisy guest has ended, then lets the neighbour end; answers its longest delay.
fn converse(machine: &mut Machine, noisy: usize) -> Result<Duration> {
    machine.log.wait_for("serve: guest runs", LAUNCH)?;
    let mut console = machine.console.take().context("the neighbour's console is in use")?;
    console.wait_for("neighbour: here", LAUNCH)?;
    let (begin, mut slowest) = (Instant::now(), Duration::ZERO);
    for number in 0u32.. {
        let asked = Instant::now();
        console.send(format!("ping {number}\n").as_bytes())?;
        console.wait_for(&format!("pong {number} "), ANSWER).context("the neighbour fell silent")?;
        slowest = slowest.max(asked.elapsed());
        if ended(machine) >= noisy {
            break;
        }
        if begin.elapsed() > LIMIT {
            bail!("after {} s only {} of {} noisy guests ended", LIMIT.as_secs(), ended(machine), noisy);
        }
        std::thread::sleep(PAUSE);
    }
    console.send(b"off\n")?;
    Ok(slowest)
}

fn ended(machine: &Machine) -> usize {
    machine.log.lines().iter().filter(|line| line.contains("guest stopped name=noise-")).count()
}

/// Guests that last switched themselves off, nobody complains, and the machine ended as the neighbour asked.
fn verdict(machine: &Machine, noisy: &[Noisy]) -> Result<()> {
    let lines = machine.log.lines();
    if let Some(line) = lines.iter().find(|line| line.contains("FAIL") || line.contains("please report it")) {
        bail!("{line}");
    }
    if !lines.iter().any(|line| line.contains("self-check: DEBUG image")) {
        bail!("the image does not check itself");
    }
    for (number, (kind, seed, _, lasts)) in noisy.iter().enumerate() {
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

/// The neighbour and all noisy guests; those that last share the log's port, the others have no console.
fn release(scene: &Scene<'_>, folder: &Path, noisy: &[Noisy]) -> Result<Release> {
    let kernel = scene.micro.parts.components.first().context("no kernel")?;
    let guest = |name: &str, vcpus: u32, console: &str, off: &str, line: &str| {
        format!(
            "[[guest]]\nname = \"{name}\"\nmemory_mib = 64\nvcpus = {vcpus}\nformat = \"pvh\"\nkernel = \"{}\"\n\
             consoles = [\"{console}\"]\non_power_off = \"{off}\"\non_reboot = \"stop\"\n\
             hypercalls = [\"random\", \"registers\", \"seal\", \"quote\", \"log\"]\ncmdline = \"{line}\"\n",
            kernel.display()
        )
    };
    let mut text = guest("neighbour", 1, "com2", "halt-machine", "noise=neighbour");
    for (number, (kind, seed, vcpus, lasts)) in noisy.iter().enumerate() {
        let console = if *lasts { "multiplexed" } else { "none" };
        let line = format!("noise={kind} seed={seed}");
        write!(text, "{}", guest(&name(number, kind), *vcpus, console, "stop", &line))?;
    }
    let path = folder.join("dolmen.toml");
    place::write(&path, text.as_bytes())?;
    let manifest = Manifest::load(&path)?;
    let artifacts = &scene.bench.artifacts;
    let mut parts = Parts::collect(artifacts, &manifest, folder.join("manifest.bin"))?;
    parts.core = artifact::compile(&CORE_SELF_CHECK, &place::root(), &place::target(), &artifacts.folder)?;
    let reference = measure::reference(&parts, &manifest)?;
    Ok(Release { manifest, parts, reference })
}
