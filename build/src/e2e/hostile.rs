//! A loader that lies: whatever it says, the launch either stops or is what was predicted.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::launch;
use super::{Case, Scene};
use crate::artifact::{self, LOADER_HOSTILE};
use crate::lab::{self, MEASURED, STANDS_STILL};
use crate::machine::Machine;
use crate::{place, ui};

/// Longest wait for the one or the other.
const LIMIT: Duration = Duration::from_secs(60);

/// What must come of a lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The launch stops and says why.
    Stop,
    /// It stops for this reason.
    For(&'static str),
    /// It stops for this reason after everything is measured as predicted, and no guest runs.
    Later(&'static str),
    /// The launch stops, or it is exactly what was predicted.
    StopOrSame,
}

/// Lies that the hostile loader knows (`hypervisor/loader/src/hostile.rs`), and what must come of them.
const LIES: &[(&str, &str, Fate)] = &[
    ("magic", "bios", Fate::Stop),
    ("version", "bios", Fate::Stop),
    ("reserved", "bios", Fate::Stop),
    ("count-huge", "bios", Fate::Stop),
    ("memory-count-huge", "bios", Fate::Stop),
    ("core-at-mmio", "bios", Fate::Stop),
    ("core-overlaps-slb", "bios", Fate::Stop),
    ("core-wraps", "bios", Fate::Stop),
    ("core-empty", "bios", Fate::Stop),
    ("length-huge", "bios", Fate::Stop),
    ("manifest-in-slb", "bios", Fate::Stop),
    ("manifest-in-region", "bios", Fate::Stop),
    ("region-is-apic", "bios", Fate::Stop),
    ("region-unaligned", "bios", Fate::Stop),
    ("region-overlaps-core", "bios", Fate::Stop),
    ("region-overlaps-slb", "bios", Fate::Stop),
    ("region-high", "bios", Fate::Stop),
    ("region-small", "bios", Fate::Stop),
    ("pool-overlaps-region", "bios", Fate::Stop),
    ("pool-at-mmio", "bios", Fate::Stop),
    ("pool-overlaps-core", "bios", Fate::StopOrSame),
    ("component-at-tseg", "bios", Fate::Stop),
    ("component-at-iommu", "bios", Fate::Stop),
    ("component-overlaps-region", "bios", Fate::Stop),
    ("map-without-core", "bios", Fate::StopOrSame),
    ("map-all-ram", "bios", Fate::Stop),
    ("map-empty", "bios", Fate::StopOrSame),
    ("rsdp-wild", "bios", Fate::StopOrSame),
    ("cpus-huge", "smp", Fate::Stop),
    ("aps-not-parked", "smp", Fate::Stop),
    ("skip-tpm-startup", "bios", Fate::StopOrSame),
    ("locality-held", "bios", Fate::StopOrSame),
    // Registers that route addresses: the processor's word, not the hand-off's, says what is RAM.
    ("top-low", "bios", Fate::For("ACPI table outside memory")),
    // The launch image switches TOP_MEM on itself.
    ("top-off", "bios", Fate::StopOrSame),
    ("io-range-over-core", "bios", Fate::For("in an I/O range")),
    ("io-range-torn", "bios", Fate::For("irregular range register")),
    ("tseg-over-region", "bios", Fate::For("in SMRAM")),
    ("config-over-core", "bios", Fate::For("configuration space: RAM, not registers")),
    ("apic-over-core", "bios", Fate::For("on the APIC's page")),
    ("uncached-core", "bios", Fate::For("memory type 0")),
    ("low-routes-cut", "smp", Fate::Later("no RAM below 640 KiB")),
    // An enabled base register takes no writes until the next reset.
    ("iommu-base-moved", "bios", Fate::StopOrSame),
    ("iommu-off", "bios", Fate::StopOrSame),
];

/// The tests of this file.
pub(super) const CASES: &[Case] = &[
    Case { name: "a_loader_that_lies_can_only_make_the_launch_stop", run: lies },
    Case { name: "another_launch_image_gives_another_pcr_17", run: evil_launch },
];

fn lies(scene: &Scene<'_>) -> Result<()> {
    let bench = scene.bench;
    artifact::compile(&LOADER_HOSTILE, &place::root(), &place::target(), &bench.artifacts.folder)?;
    let mut failed = Vec::new();
    for (word, machine, fate) in LIES {
        match lie(scene, word, machine, *fate) {
            Ok(line) => ui::fact(&format!("{word}: {line}")),
            Err(error) => failed.push(format!("{word}: {error:#}")),
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("\n     ")) }
}

fn lie(scene: &Scene<'_>, word: &str, machine: &str, fate: Fate) -> Result<String> {
    let lab = scene.lab(machine)?;
    let loader = scene.bench.artifacts.file("loader-hostile.elf");
    let arguments = format!("attack={word}");
    let mut machine = lab.boot_with(
        word,
        &scene.micro.parts,
        Some((&loader, &arguments)),
        &STANDS_STILL.map(str::to_owned),
    )?;
    let start = Instant::now();
    let line = machine.log.find("a stop or the end of measuring", LIMIT, |line| {
        (line.contains("stop: ") || line.contains(MEASURED)).then(|| line.to_owned())
    })?;
    let stopped = line.contains("stop: ");
    match fate {
        Fate::Stop | Fate::For(_) if !stopped => bail!("the launch goes on"),
        Fate::For(reason) if !line.contains(reason) => bail!("not for `{reason}`: {line}"),
        Fate::Later(reason) => return stops_later(&mut machine, reason),
        Fate::Stop | Fate::For(_) | Fate::StopOrSame => {}
    }
    if stopped {
        // Time to cap the registers; a stop that leaves them as they should be for a guest is no stop.
        let left = LIMIT.saturating_sub(start.elapsed()).min(Duration::from_secs(3));
        drop(machine.log.wait_for("capped", left));
    }
    let (_power, tpm) = lab::autopsy(machine)?;
    let same = launch::check(&tpm, &scene.micro.reference, &["sha256"]);
    match (stopped, same) {
        (true, Ok(())) => bail!("it stopped, but the registers are those of a good launch: {line}"),
        (true, Err(_)) => Ok(line),
        (false, Ok(())) => Ok("no effect: measured as predicted".to_owned()),
        (false, Err(error)) => Err(error.context("it goes on")),
    }
}

/// What the core finds wrong when it starts the other processors.
fn stops_later(machine: &mut Machine, reason: &str) -> Result<String> {
    let line = machine.log.find("a stop or a guest", LIMIT, |line| {
        (line.contains("stop: ") || line.contains("guest runs")).then(|| line.to_owned())
    })?;
    if !line.contains("stop: ") || !line.contains(reason) {
        bail!("not for `{reason}`: {line}");
    }
    machine.log.wait_for("capped", LIMIT)?;
    Ok(line)
}

/// The loader launches another image in place of ours: it may do what it likes, but not be ours.
fn evil_launch(scene: &Scene<'_>) -> Result<()> {
    let bench = scene.bench;
    let loader =
        artifact::compile(&LOADER_HOSTILE, &place::root(), &place::target(), &bench.artifacts.folder)?;
    let evil = scene.folder.join("evil-launch.bin");
    lab::flipped(&scene.micro.parts.launch, &evil, |bytes| {
        let length: [u8; 2] = bytes.get(2..4)?.try_into().ok()?;
        usize::from(u16::from_le_bytes(length)).checked_sub(1)
    })?;
    let mut parts = scene.micro.parts.clone();
    parts.components.push(evil);
    let lab = scene.lab("bios")?;
    let mut machine = lab.boot_with(
        "evil",
        &parts,
        Some((&loader, "attack=evil-launch")),
        &STANDS_STILL.map(str::to_owned),
    )?;
    machine.log.wait_for("loader: skinit", LIMIT)?;
    drop(machine.log.wait_for("stop: ", Duration::from_secs(10)));
    let (_power, tpm) = lab::autopsy(machine)?;
    let held = tpm.pcr("sha256", 17)?;
    if held == scene.micro.reference.bank("sha256")?.pcr17 || held.chars().all(|digit| digit == 'f') {
        bail!("PCR 17 is {held}");
    }
    Ok(())
}
