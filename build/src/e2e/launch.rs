//! The launch: what is measured, what is refused.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Case, Scene};
use crate::image::Parts;
use crate::lab::{self, LAUNCH, MEASURED};
use crate::machine::Machine;
use crate::machine::relay::ToolTpm;
use crate::measure::Reference;

/// Longest wait for a refusal.
const REFUSAL: Duration = Duration::from_secs(60);

/// The tests of this file.
pub(super) const CASES: &[Case] = &[
    Case { name: "pcr_17_and_18_are_as_predicted_in_every_bank", run: predicted },
    Case { name: "a_flipped_byte_of_the_launch_image_changes_pcr_17", run: flipped_launch },
    Case { name: "a_flipped_byte_of_the_core_changes_pcr_17_as_predicted", run: flipped_core },
    Case { name: "a_changed_manifest_changes_pcr_18_and_not_pcr_17", run: changed_manifest },
    Case { name: "a_flipped_byte_of_the_kernel_changes_pcr_18_as_predicted", run: flipped_kernel },
    Case { name: "a_machine_without_iommu_is_refused", run: no_iommu },
    Case { name: "a_machine_without_tpm_is_refused", run: no_tpm },
    Case { name: "a_processor_without_skinit_is_refused", run: no_skinit },
    Case { name: "a_processor_without_top_mem_is_refused", run: no_top_memory },
    Case { name: "a_launch_that_measured_nothing_is_stopped", run: untrusted_launch },
    Case { name: "a_tpm_without_the_sha256_bank_is_refused", run: no_sha256 },
    Case { name: "a_tpm_with_sha256_alone_is_measured_as_predicted", run: sha256_alone },
    Case { name: "four_processors_are_parked_and_the_launch_is_as_predicted", run: four_processors },
    Case { name: "data_segments_are_not_used_before_they_are_loaded", run: strict },
];

/// The registers that a TPM holds, bank by bank, against what was predicted.
pub(crate) fn check(tpm: &ToolTpm, want: &Reference, banks: &[&str]) -> Result<()> {
    for name in banks {
        let bank = want.bank(name)?;
        for (index, predicted) in [(17, &bank.pcr17), (18, &bank.pcr18)] {
            let held = tpm.pcr(name, index)?;
            if held != *predicted {
                bail!("PCR {index} of bank {name} is {held}; predicted was {predicted}");
            }
        }
    }
    Ok(())
}

/// Waits until everything is measured, cuts the power, checks the TPM.
fn measured_as(mut machine: Machine, want: &Reference, banks: &[&str]) -> Result<()> {
    lab::measured(&mut machine)?;
    let (_power, tpm) = lab::autopsy(machine)?;
    check(&tpm, want, banks)
}

fn predicted(scene: &Scene<'_>) -> Result<()> {
    let machine = scene.lab("bios")?.boot("one", &scene.micro.parts)?;
    measured_as(machine, &scene.micro.reference, &["sha1", "sha256", "sha384", "sha512"])
}

fn four_processors(scene: &Scene<'_>) -> Result<()> {
    let machine = scene.lab("smp")?.boot("one", &scene.micro.parts)?;
    measured_as(machine, &scene.micro.reference, &["sha256"])
}

fn strict(scene: &Scene<'_>) -> Result<()> {
    let machine = scene.lab("strict")?.boot("one", &scene.micro.parts)?;
    measured_as(machine, &scene.micro.reference, &["sha256"])
}

fn sha256_alone(scene: &Scene<'_>) -> Result<()> {
    let machine = scene.lab_with_banks("bios", "sha256")?.boot("one", &scene.micro.parts)?;
    measured_as(machine, &scene.micro.reference, &["sha256"])
}

/// The launch image may not even run with a byte changed: what counts is what the TPM holds.
fn flipped_launch(scene: &Scene<'_>) -> Result<()> {
    let mut parts = scene.micro.parts.clone();
    parts.launch = scene.folder.join("launch.bin");
    // The last measured byte: the code before it still runs.
    lab::flipped(&scene.micro.parts.launch, &parts.launch, |bytes| {
        let length: [u8; 2] = bytes.get(2..4)?.try_into().ok()?;
        usize::from(u16::from_le_bytes(length)).checked_sub(1)
    })?;
    differs(scene, &parts, 17)
}

/// Any readable text of the core will do: the program still runs, and says something slightly different.
pub(crate) fn flip_core(scene_parts: &Parts, folder: &std::path::Path) -> Result<Parts> {
    let mut parts = scene_parts.clone();
    parts.core = folder.join("core.bin");
    lab::flipped(&scene_parts.core, &parts.core, |bytes| lab::once(bytes, b"please report it")).or_else(
        |_| lab::flipped(&scene_parts.core, &parts.core, |bytes| first(bytes, b"please report it")),
    )?;
    Ok(parts)
}

fn first(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text)
}

fn flipped_core(scene: &Scene<'_>) -> Result<()> {
    let parts = flip_core(&scene.micro.parts, &scene.folder)?;
    changed_as_predicted(scene, &parts, 17)
}

fn flipped_kernel(scene: &Scene<'_>) -> Result<()> {
    let mut release = scene.micro.clone();
    let file =
        release.manifest.guests.first_mut().and_then(|guest| guest.files.first_mut()).context("no kernel")?;
    let kernel = scene.folder.join("kernel.elf");
    // The last byte of an ELF file is in its tables of names, which nobody reads here.
    lab::flipped(&file.path, &kernel, |bytes| bytes.len().checked_sub(1))?;
    file.path = kernel;
    release.parts.components = release.manifest.files();
    let reference = crate::measure::reference(&release.parts, &release.manifest)?;
    expect_difference(&reference, &scene.micro.reference, 18)?;
    measured_as(scene.lab("bios")?.boot("one", &release.parts)?, &reference, &["sha256"])
}

fn changed_manifest(scene: &Scene<'_>) -> Result<()> {
    let kernel = scene.micro.parts.components.first().context("no kernel")?;
    let other = super::small_guest(scene.bench, &scene.folder.join("other"), kernel, "quiet")?;
    expect_difference(&other.reference, &scene.micro.reference, 18)?;
    measured_as(scene.lab("bios")?.boot("one", &other.parts)?, &other.reference, &["sha256"])
}

fn changed_as_predicted(scene: &Scene<'_>, parts: &Parts, register: u32) -> Result<()> {
    let reference = crate::measure::reference(parts, &scene.micro.manifest)?;
    expect_difference(&reference, &scene.micro.reference, register)?;
    measured_as(scene.lab("bios")?.boot("one", parts)?, &reference, &["sha256"])
}

/// The two predictions differ in exactly this register.
fn expect_difference(one: &Reference, other: &Reference, register: u32) -> Result<()> {
    let (one, other) = (one.bank("sha256")?, other.bank("sha256")?);
    let differs = [(17, one.pcr17 != other.pcr17), (18, one.pcr18 != other.pcr18)];
    for (index, differs) in differs {
        if differs != (index == register) {
            bail!("the change should show in PCR {register} and only there; PCR {index} says otherwise");
        }
    }
    Ok(())
}

/// With a changed launch image the machine may do anything, but PCR 17 cannot be what it was.
fn differs(scene: &Scene<'_>, parts: &Parts, register: u32) -> Result<()> {
    let mut machine = scene.lab("bios")?.boot("one", parts)?;
    machine.log.wait_for("loader: skinit", LAUNCH)?;
    // Until it says something more, stops, or stays silent.
    drop(machine.log.wait_for(MEASURED, Duration::from_secs(10)));
    let (_power, tpm) = lab::autopsy(machine)?;
    let held = tpm.pcr("sha256", register)?;
    let bank = scene.micro.reference.bank("sha256")?;
    if held == bank.pcr17 || held.chars().all(|digit| digit == 'f') {
        bail!("PCR {register} is {held}: the launch did not happen, or nobody noticed the change");
    }
    Ok(())
}

/// The machine says why it does not go on.
fn refused(scene: &Scene<'_>, machine: &str, banks: &str, because: &str) -> Result<()> {
    let mut machine = scene.lab_with_banks(machine, banks)?.boot("one", &scene.micro.parts)?;
    let line = machine.log.wait_for("stop: ", REFUSAL)?;
    // Where several things are missing, the lines before say which.
    if !machine.log.lines().iter().any(|line| line.to_lowercase().contains(because)) {
        bail!("it stopped, but not because of `{because}`: {line}");
    }
    Ok(())
}

fn no_iommu(scene: &Scene<'_>) -> Result<()> {
    refused(scene, "no-iommu", super::ALL_BANKS, "iommu")
}

fn no_tpm(scene: &Scene<'_>) -> Result<()> {
    refused(scene, "no-tpm", super::ALL_BANKS, "tpm")
}

fn no_skinit(scene: &Scene<'_>) -> Result<()> {
    refused(scene, "no-skinit", super::ALL_BANKS, "skinit")
}

fn no_top_memory(scene: &Scene<'_>) -> Result<()> {
    refused(scene, "no-top-memory", super::ALL_BANKS, "top_mem")
}

fn untrusted_launch(scene: &Scene<'_>) -> Result<()> {
    refused(scene, "untrusted-launch", super::ALL_BANKS, "pcr 17")
}

fn no_sha256(scene: &Scene<'_>) -> Result<()> {
    refused(scene, "bios", "sha1,sha384", "sha-256")
}
