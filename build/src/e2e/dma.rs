//! A hostile device: from SKINIT on it writes, again and again, where it could do harm.
//!
//! The device (`qemu/patches`, dolmen-dma) counts what went through, by phase of the launch. Where the
//! places lie is taken from the log of a peaceful start of the same machine.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::launch;
use super::{Case, Scene};
use crate::lab::{self, LAUNCH, MEASURED, STANDS_STILL};

/// Longest wait for the guest's tests with the device at work.
const GUEST: Duration = Duration::from_secs(120);

/// The tests of this file.
pub(super) const CASES: &[Case] = &[
    Case { name: "a_device_that_writes_into_the_launch_image_is_refused_from_skinit_on", run: launch_image },
    Case { name: "what_a_device_wrote_into_the_launch_image_before_skinit_is_measured", run: before },
    Case { name: "a_device_that_writes_into_region_and_guest_memory_changes_nothing", run: region },
    Case {
        name: "a_device_that_rewrites_iommu_tables_at_every_step_of_the_shield_changes_nothing",
        run: tables,
    },
];

/// Where things lie, as the loader says.
#[derive(Clone, Copy, Debug)]
struct Places {
    region: u64,
    region_bytes: u64,
    pool: u64,
}

impl Places {
    /// Learns the places from a start without a hostile device.
    fn learn(scene: &Scene<'_>) -> Result<Self> {
        let lab = scene.lab("bios")?;
        let quiet = device("never", "", "0xffff0000/0x40", &scene.folder.join("quiet.txt"));
        let mut machine = lab.boot_with("peaceful", &scene.micro.parts, None, &quiet)?;
        lab::measured(&mut machine)?;
        let lines = machine.log.lines();
        let find = |name: &str| {
            lines.iter().find_map(|line| {
                let rest = line.split_once(&format!("loader: placed {name}=0x"))?.1;
                let (base, bytes) = rest.split_once(" bytes=0x")?;
                Some((u64::from_str_radix(base, 16).ok()?, u64::from_str_radix(bytes.trim(), 16).ok()?))
            })
        };
        let (region, region_bytes) = find("region").context("the loader does not say where the region is")?;
        let (pool, _) = find("guest_pool").context("the loader does not say where the guest pool is")?;
        Ok(Self { region, region_bytes, pool })
    }

    /// Places in the region and the pool, evenly spread, as the device's list of targets.
    fn targets(self) -> String {
        let step = self.region_bytes.checked_div(24).unwrap_or(0) & !0xfff;
        let mut targets: Vec<String> = (0..24_u64)
            .map(|index| format!("{:#x}/0x40", self.region.saturating_add(step.saturating_mul(index))))
            .collect();
        targets.extend((0..8_u64).map(|index| {
            format!(
                "{:#x}/0x40",
                self.pool.saturating_add(index.saturating_mul(0x20_0000)).saturating_add(0x1000)
            )
        }));
        targets.join(";")
    }
}

/// QEMU's arguments for the device.
fn device(start: &str, each: &str, targets: &str, report: &Path) -> Vec<String> {
    let each = if each.is_empty() { "period=20000".to_owned() } else { format!("each={each},period=100000") };
    let report = report.display().to_string().replace(',', ",,");
    let mut more = STANDS_STILL.map(str::to_owned).to_vec();
    more.extend([
        "-device".to_owned(),
        format!("dolmen-dma,targets={targets},start={start},{each},write=on,read=on,report={report}"),
    ]);
    more
}

/// Targets all over the part of the secure loader block that is measured or holds the hand-off's code.
fn block() -> String {
    let targets: Vec<String> = (0..0x8000_u32).step_by(0x400).map(|at| format!("slb:{at:#x}/0x40")).collect();
    targets.join(";")
}

fn launch_image(scene: &Scene<'_>) -> Result<()> {
    attack(scene, "protected", "", &block())
}

/// One burst at the instruction itself, before its protection is up: the changed image runs, or crashes, but
/// PCR 17 is not that of ours.
fn before(scene: &Scene<'_>) -> Result<()> {
    let lab = scene.lab("bios")?;
    let mut more = device("skinit", "", &block(), &scene.folder.join("report.txt"));
    if let Some(last) = more.last_mut() {
        last.push_str(",limit=1");
    }
    let mut machine = lab.boot_with("before", &scene.micro.parts, None, &more)?;
    machine.log.wait_for("loader: skinit", LAUNCH)?;
    drop(machine.log.wait_for("stop: ", Duration::from_secs(5)));
    let (_power, tpm) = lab::autopsy(machine)?;
    let held = tpm.pcr("sha256", 17)?;
    if held == scene.micro.reference.bank("sha256")?.pcr17 || held.chars().all(|digit| digit == 'f') {
        bail!("PCR 17 is {held}: nobody noticed, or nothing was launched");
    }
    Ok(())
}

fn region(scene: &Scene<'_>) -> Result<()> {
    let places = Places::learn(scene)?;
    attack(scene, "released", "", &places.targets())
}

fn tables(scene: &Scene<'_>) -> Result<()> {
    let places = Places::learn(scene)?;
    attack(scene, "skinit", "iommu-store;iommu-write;iommu-command", &places.targets())
}

/// Starts with the device at work; then the launch is as predicted and the guest finds nothing wrong, or the
/// launch stops. Once DMA is released to the IOMMU, every access must be refused.
fn attack(scene: &Scene<'_>, start: &str, each: &str, targets: &str) -> Result<()> {
    let lab = scene.lab("bios")?;
    let report = scene.folder.join("report.txt");
    let more = device(start, each, targets, &report);
    let mut machine = lab.boot_with("attacked", &scene.micro.parts, None, &more)?;
    let line = machine.log.find("a stop or the end of measuring", LAUNCH, |line| {
        (line.contains("stop: ") || line.contains(MEASURED)).then(|| line.to_owned())
    })?;
    let stopped = line.contains("stop: ");
    if !stopped {
        let mut console = machine.console.take().context("no console")?;
        let sum = console.wait_for("micro: ", GUEST)?;
        if !sum.ends_with(", 0 failed") {
            bail!("the guest finds something wrong: {sum}");
        }
    }
    if stopped {
        let (_power, tpm) = lab::autopsy(machine)?;
        if launch::check(&tpm, &scene.micro.reference, &["sha256"]).is_ok() {
            bail!("it stopped with the registers of a good launch");
        }
    } else {
        // The guest has ended, so the registers are capped by now; the core said what they were.
        let bank = scene.micro.reference.bank("sha256")?;
        for (register, want) in [("pcr17", &bank.pcr17), ("pcr18", &bank.pcr18)] {
            let line = format!("measure: {register} sha256={want}");
            if !machine.log.lines().iter().any(|said| said.contains(&line)) {
                bail!("{register} is not as predicted");
            }
        }
        // The device completes its report when the emulator ends.
        machine.switch_off()?;
    }
    judge(&report, stopped)
}

/// Reads the device's own account.
fn judge(report: &Path, stopped: bool) -> Result<()> {
    let text = std::fs::read_to_string(report).context("the device left no report")?;
    let count = |line: &str, key: &str| -> u64 {
        let found = line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok());
        found.unwrap_or(0)
    };
    let mut refused = 0_u64;
    for line in text.lines() {
        refused = refused.saturating_add(count(line, "write-refused"));
        let through = count(line, "written").saturating_add(count(line, "read"));
        let slb = line.contains("target=slb:") && line.contains("phase=protected");
        if through > 0 && (slb || line.contains("phase=released")) {
            bail!("an access went through: {line}");
        }
    }
    if refused == 0 && !stopped {
        bail!("the device never tried: {}", text.lines().last().unwrap_or_default());
    }
    Ok(())
}
