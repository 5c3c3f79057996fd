//! Guests of every image format: measured as predicted, entered as their specification says, refused by name.

use std::time::Duration;

use anyhow::{Result, bail};

use super::{Case, Scene, launch};
use crate::lab::{self, LAUNCH, Release};
use crate::manifest::Manifest;
use crate::{measure, place};

/// Longest wait for a way out.
const END: Duration = Duration::from_secs(60);

/// The tests of this file.
pub(super) const CASES: &[Case] =
    &[Case { name: "an_image_that_does_not_fit_is_refused_at_launch_by_name_too", run: does_not_fit }];

/// A release of this manifest, whatever its images are.
fn release(scene: &Scene<'_>, name: &str, text: &str) -> Result<Release> {
    let folder = scene.folder.join(name);
    let path = folder.join("dolmen.toml");
    place::write(&path, text.as_bytes())?;
    let manifest = Manifest::load_with_any_images(&path)?;
    let mut parts = scene.micro.parts.clone();
    parts.manifest = folder.join("manifest.bin");
    place::write(&parts.manifest, &manifest.bytes)?;
    parts.components = manifest.files();
    let reference = measure::reference(&parts, &manifest)?;
    Ok(Release { manifest, parts, reference })
}

/// The kernel wants to be where a guest of 16 MiB has no RAM: `cargo xtask image` refuses it, and so does the core.
fn does_not_fit(scene: &Scene<'_>) -> Result<()> {
    let text = "[[guest]]\nname = \"tight\"\nmemory_mib = 16\nkernel = \"built:vmlinuz\"\n";
    let tight = release(scene, "tight", text)?;
    let path = scene.folder.join("tight/dolmen.toml");
    match Manifest::load(&path).map_err(|error| error.to_string()) {
        Err(complaint) if complaint.contains("4:10: guest tight: the kernel cannot be loaded: needs 0x") => {}
        other => bail!("the build says {:?}", other.map(drop)),
    }
    let mut machine = scene.lab("bios")?.boot("one", &tight.parts)?;
    let line = machine.log.wait_for("stop: ", LAUNCH)?;
    if !line.contains("needs 0x") || !line.contains("which is not RAM of the guest") {
        bail!("it stopped, but not for its size: {line}");
    }
    machine.log.wait_for("capped", END)?;
    let (_power, tpm) = lab::autopsy(machine)?;
    match launch::check(&tpm, &tight.reference, &["sha256"]) {
        Ok(()) => bail!("the registers were not capped"),
        Err(_) => Ok(()),
    }
}
