//! Debian's kernels, unmodified, on several virtual processors.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Case, Scene};
use crate::kernel;
use crate::lab::{self, Release};
use crate::machine::shell::Shell;
use crate::place;

/// Virtual processors of these guests.
pub(super) const VCPUS: usize = 4;
/// Work for all of them at once.
const LOAD: &str =
    "for n in 1 2 3 4 5 6; do head -c 8M /dev/zero | sha256sum > /tmp/$n & done; wait; cat /tmp/?";
/// Longest wait for the way out.
const END: Duration = Duration::from_secs(60);
/// Words that a kernel uses when something about the machine displeases it.
const COMPLAINTS: &[&str] = &[
    "WARNING: CPU",
    "BUG:",
    "Call Trace",
    "[Firmware Bug]",
    "[Firmware Warn]",
    "unstable",
    "rcu_sched detected",
    "rcu_preempt detected",
    "rcu: INFO",
    "soft lockup",
    "blocked for more than",
    "hard LOCKUP",
    "unchecked MSR access",
    "APIC error",
    "APIC: failed",
    "irq: nobody cared",
    "nobody cared",
    "Spurious",
    "timed out",
    "failed to come online",
    "not responding",
    "skew",
];

/// The emulated processor has no invariant time-stamp counter, which the guest is told. Linux 6.1 then takes the
/// counters of several processors for unsynchronised, and stays with the paravirtual clock.
const EMULATOR: &[&str] = &["Marking TSC unstable due to TSCs unsynchronized"];

/// The tests of this file.
pub(super) const CASES: &[Case] = &[
    Case { name: "linux_6_12_cloud_runs_on_four_processors_without_complaint", run: cloud },
    Case { name: "linux_6_12_generic_runs_on_four_processors_without_complaint", run: generic },
    Case { name: "linux_6_1_runs_on_four_processors_without_complaint", run: older },
    Case { name: "linux_6_12_boots_by_its_pvh_note_and_runs_on_four_processors", run: pvh },
];

fn cloud(scene: &Scene<'_>) -> Result<()> {
    four(scene, &scene.bench.artifacts.file("vmlinuz"), &Boot::default())
}

fn generic(scene: &Scene<'_>) -> Result<()> {
    let boot = Boot { way_out: WayOut::PowerOff, ..Boot::default() };
    four(scene, &kernel::ensure_generic(&kernel::CURRENT)?, &boot)
}

fn older(scene: &Scene<'_>) -> Result<()> {
    // With its local APICs in memory, as without x2APIC.
    let boot = Boot { parameters: " nox2apic", way_out: WayOut::PowerOff, ..Boot::default() };
    four(scene, &scene.bench.artifacts.file("vmlinuz-6.1"), &boot)
}

/// The ELF file that Debian's bzImage unpacks, entered where its note says, as Xen and other hypervisors enter it.
fn pvh(scene: &Scene<'_>) -> Result<()> {
    let kernel = scene.folder.join("vmlinux");
    place::write(&kernel, &kernel::vmlinux(&place::read(&scene.bench.artifacts.file("vmlinuz"))?)?)?;
    four(scene, &kernel, &Boot { format: "pvh", ..Boot::default() })
}

/// How a kernel is entered, and how it ends.
#[derive(Clone, Copy, Debug)]
struct Boot {
    format: &'static str,
    /// More words for its command line.
    parameters: &'static str,
    way_out: WayOut,
}

impl Default for Boot {
    fn default() -> Self {
        Self { format: "linux", parameters: "", way_out: WayOut::Reboot }
    }
}

/// How a guest ends.
#[derive(Clone, Copy, Debug)]
enum WayOut {
    PowerOff,
    Reboot,
}

/// Boots `kernel` on four processors, looks at what it says of them, and lets it end.
fn four(scene: &Scene<'_>, kernel: &Path, boot: &Boot) -> Result<()> {
    let release = release(scene, kernel, boot)?;
    let lab = scene.lab("bios")?;
    let mut machine = lab.boot("linux", &release.parts)?;
    lab::measured(&mut machine)?;
    let mut shell = lab::shell(&mut machine)?;
    shell.expect(LOAD)?;
    content(&mut shell, &scene.folder.join("dmesg.txt"))?;
    look(&mut shell)?;
    let (command, said) = match boot.way_out {
        WayOut::PowerOff => ("poweroff -f", "cause=power-off"),
        WayOut::Reboot => ("reboot -f", "cause=reboot"),
    };
    drop(shell.leave(command)?);
    machine.log.wait_for(said, END).map(drop)
}

/// Whether the kernel has nothing to complain of; its log is kept in `file`.
pub(super) fn content(shell: &mut Shell, file: &Path) -> Result<()> {
    let log = shell.expect("dmesg")?;
    place::write(file, log.as_bytes())?;
    let complaints: Vec<&str> = log.lines().filter(|line| is_complaint(line)).collect();
    if !complaints.is_empty() {
        bail!("the kernel complains:\n{}", complaints.join("\n"));
    }
    Ok(())
}

/// Whether a line of the kernel's log is about something wrong with the machine.
fn is_complaint(line: &str) -> bool {
    COMPLAINTS.iter().any(|word| line.contains(word)) && !EMULATOR.iter().any(|word| line.contains(word))
}

/// Processors, clock and interrupts as the kernel has found them.
pub(super) fn look(shell: &mut Shell) -> Result<()> {
    for (command, want) in [
        ("nproc", VCPUS.to_string()),
        ("cat /sys/devices/system/cpu/cpu*/topology/physical_package_id | sort -u", "0".to_owned()),
        ("cat /sys/devices/system/cpu/cpu*/topology/core_id | sort -u | wc -l", VCPUS.to_string()),
        ("cat /sys/devices/system/clocksource/clocksource0/current_clocksource", "kvm-clock".to_owned()),
    ] {
        let said = shell.expect(command)?;
        if said.trim() != want {
            bail!("`{command}` says {said:?}, not {want:?}");
        }
    }
    // Every processor takes timer interrupts and interrupts from the others.
    let interrupts = shell.expect("cat /proc/interrupts")?;
    for name in ["LOC:", "RES:", "CAL:"] {
        let line = interrupts.lines().find(|line| line.trim_start().starts_with(name));
        let counts = line.with_context(|| format!("no {name} among the interrupts"))?;
        let busy = counts.split_whitespace().skip(1).take(VCPUS);
        let idle = busy.filter(|count| *count == "0").count();
        if name == "LOC:" && idle > 0 || idle == VCPUS {
            bail!("processors take no interrupts: {counts}");
        }
    }
    Ok(())
}

/// A release with one guest of four processors, whose user space is the demo's.
fn release(scene: &Scene<'_>, kernel: &Path, boot: &Boot) -> Result<Release> {
    let artifacts = &scene.bench.artifacts;
    let Boot { format, parameters, .. } = boot;
    let text = format!(
        "[[guest]]\nname = \"debian\"\nmemory_mib = 768\nvcpus = {VCPUS}\nconsoles = [\"com2\"]\n\
         on_power_off = \"halt-machine\"\non_crash = \"halt-machine\"\non_reboot = \"reset-machine\"\n\
         hypercalls = []\nformat = \"{format}\"\nkernel = \"{}\"\ninitrd = \"{}\"\ncmdline = \"console=ttyS0,115200{parameters}\"\n",
        kernel.display(),
        artifacts.file("initramfs.cpio").display(),
    );
    super::release(scene.bench, &scene.folder, &text)
}
