//! `cargo xtask bench`: sizes, lines, and counts of executed instructions, beside those of KVM and Xen.
//!
//! Counts come from the emulator's deterministic mode: one processor, one tick of the time-stamp counter for each
//! executed instruction. The peers were measured the same way, on the same processor model.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::artifact::{self, Artifacts, MICRO_GUEST};
use crate::lab::{LAUNCH, Lab};
use crate::machine::Machine;
use crate::test::Bench;
use crate::{e2e, lint, place, setup, ui};

/// Longest measurement: the emulator is slow in this mode.
const LIMIT: Duration = Duration::from_secs(300);
/// Options of the deterministic mode.
const COUNTING: [&str; 6] =
    ["-icount", "shift=0,sleep=off", "-rtc", "base=2024-01-01,clock=vm", "-seed", "1"];

/// Operation of the micro-guest, what it is, and instructions with KVM (its VMM in C; then without the decoding
/// that processors with next-RIP save) and with Xen, if they were measured.
const OPERATIONS: &[(&str, &str, &str, &str, &str)] = &[
    ("cpuid", "CPUID", "3063", "1350", "5435"),
    ("rdmsr-apic-base", "RDMSR APIC_BASE", "3138", "1430", "5345"),
    ("in-0x21", "IN, handled in the hypervisor", "1688", "1688", "1175"),
    ("in-unused-port", "IN, nobody there", "3575", "-", "1175"),
    ("out-0x80", "OUT 0x80", "3561", "-", "6"),
    ("unknown-hypercall", "hypercall, unknown", "3329", "1620", "5561"),
    ("hypercall-version", "hypercall, Version", "-", "-", "-"),
    ("hypercall-random-32", "hypercall, 32 random bytes", "-", "-", "-"),
    ("seal-32", "seal 32 bytes", "-", "-", "-"),
    ("unseal-32", "unseal 32 bytes", "-", "-", "-"),
    ("quote", "quote, TPM included", "-", "-", "-"),
];

/// Stages of the launch: a mark in the log, the key of the tick count at its end, and what has been done by then.
const STAGES: &[(&str, &str, &str)] = &[
    ("launch: ticks", "began=", "the launch image runs"),
    ("launch: ticks", "shielded=", "shield: every device is refused"),
    ("launch: ticks", "measured=", "core and manifest are measured"),
    ("launch: ticks", "left=", "the core is entered"),
    ("serve: guest runs", "tsc=", "guest measured, keys derived, guest built"),
];

/// Measures and prints.
pub(crate) fn run() -> Result<()> {
    let tools = setup::ensure()?;
    let artifacts = artifact::build(&tools)?;
    sizes(&artifacts)?;
    let bench = Bench { tools, artifacts, only: None };
    let mut machine = start(&bench)?;
    let lines = costs(&mut machine)?;
    launch(&machine);
    table(&lines);
    Ok(())
}

fn sizes(artifacts: &Artifacts) -> Result<()> {
    ui::heading("Sizes");
    let launch = place::read(&artifacts.launch())?;
    let Ok(measured) = dolmen_drtm::predict::measured_part(&launch) else {
        bail!("launch.bin is no launch image")
    };
    ui::note(&format!("measured by the processor  {:>9} bytes", measured.len()));
    ui::note(&format!("core, file                 {:>9} bytes", artifacts.core().metadata()?.len()));
    ui::note(&format!("loader, UEFI, untrusted    {:>9} bytes", artifacts.loader_uefi().metadata()?.len()));
    let lines = lint::measured_lines()?;
    let share = lines.unsafe_files.saturating_mul(1000).checked_div(lines.all).unwrap_or(0);
    ui::note(&format!(
        "code in the measured crates{:>9} lines (tests, comments and empty lines not counted)",
        lines.all
    ));
    ui::note(&format!(
        "of it in files with unsafe {:>9} lines ({}.{} %), {} unsafe blocks and functions",
        lines.unsafe_files,
        share.checked_div(10).unwrap_or(0),
        share.checked_rem(10).unwrap_or(0),
        lines.unsafe_uses
    ));
    Ok(())
}

fn start(bench: &Bench) -> Result<Machine> {
    let kernel = artifact::compile(&MICRO_GUEST, &place::root(), &place::target(), &bench.artifacts.folder)?;
    let folder = place::output().join("bench");
    let release = e2e::small_guest(bench, &folder.join("guest"), &kernel, "bench")?;
    let lab = Lab::new(&bench.tools, &bench.artifacts, "bios", &folder.join("machine"), "sha256")?;
    let more: Vec<String> = COUNTING.iter().map(|&option| option.to_owned()).collect();
    lab.boot_with("bench", &release.parts, None, &more)
}

/// The guest's figures: name, least, median.
fn costs(machine: &mut Machine) -> Result<Vec<(String, String, String)>> {
    let progress = ui::Progress::start("Counting instructions (deterministic emulation, SHA-256 bank alone)");
    machine.log.wait_for("serve: guest runs", LAUNCH)?;
    let mut console = machine.console.take().context("no console")?;
    let mut lines = Vec::new();
    console.find("the micro-guest's figures", LIMIT, |line| {
        if let Some(failure) = line.strip_prefix("FAIL ") {
            ui::bad(failure);
        }
        let figure = line.strip_prefix("cost ")?;
        let mut words = figure.split(' ');
        let name = words.next()?.to_owned();
        let value = |key: &str| {
            figure.split(' ').find_map(|word| word.strip_prefix(key)).unwrap_or_default().to_owned()
        };
        lines.push((name, value("min="), value("median=")));
        (figure == "done").then_some(())
    })?;
    progress.done();
    Ok(lines)
}

fn launch(machine: &Machine) {
    ui::heading("From SKINIT to the guest (SHA-256 bank alone, small guest), instructions");
    let lines = machine.log.lines();
    let mut before: Option<u64> = None;
    for (mark, key, meaning) in STAGES {
        let line = lines.iter().find(|line| line.contains(mark));
        let ticks = line.and_then(|line| {
            line.split(' ').find_map(|word| word.strip_prefix(key)?.trim().parse::<u64>().ok())
        });
        if let (Some(before), Some(ticks)) = (before, ticks) {
            ui::note(&format!("{meaning:<44} {:>12}", ticks.saturating_sub(before)));
        }
        before = ticks.or(before);
    }
}

fn table(lines: &[(String, String, String)]) {
    ui::heading("Exits and calls, instructions (least; median of 64)");
    ui::note(&format!(
        "{:<30} {:>10} {:>10} | {:>8} {:>10} {:>8}",
        "operation", "Dolmen", "median", "KVM", "KVM, NRIP*", "Xen"
    ));
    for (name, meaning, kvm, adjusted, xen) in OPERATIONS {
        let found = lines.iter().find(|(measured, ..)| measured == name);
        let (least, median) =
            found.map_or(("-", "-"), |(_, least, median)| (least.as_str(), median.as_str()));
        ui::note(&format!("{meaning:<30} {least:>10} {median:>10} | {kvm:>8} {adjusted:>10} {xen:>8}"));
    }
    ui::note(
        "* without the instruction decoding that processors with next-RIP save; the emulator has no next-RIP",
    );
    ui::note("Peers: Linux 6.1 KVM with a minimal VMM, Xen 4.17 PVH, same emulator and processor model.");
}
