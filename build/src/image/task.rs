//! `cargo xtask image`: a disk to boot from, files for GRUB, and the reference values that go with them.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;

use crate::artifact::Artifacts;
use crate::lab::Release;
use crate::manifest::Manifest;
use crate::measure::{self, Reference};
use crate::{artifact, place, proof, setup, ui};

/// What the user chose.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Manifest of the guests.
    #[arg(long, default_value = "dolmen.toml")]
    manifest: PathBuf,
    /// Where the image goes; everything else goes beside it.
    #[arg(long)]
    output: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What was made.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Made {
    /// Disk image for UEFI firmware.
    pub(crate) image: PathBuf,
    /// CD image for firmware that is a BIOS.
    pub(crate) disc: PathBuf,
    /// Folder with the files for GRUB.
    pub(crate) multiboot: PathBuf,
    /// Policy for `dolmen-verify`.
    policy: PathBuf,
    /// File with the reference values.
    reference_file: PathBuf,
    /// The reference values.
    pub(crate) reference: Reference,
}

/// Makes the image that the user asks for, and says what was made.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.json {
        ui::data_only();
    }
    Manifest::check_early(&options.manifest)?;
    let artifacts = artifact::build(&setup::ensure()?)?;
    let image = options.output.clone().unwrap_or_else(|| artifacts.file("dolmen.img"));
    let made = make(&artifacts, &options.manifest, image)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&made)?);
    } else {
        show(&made);
    }
    Ok(())
}

/// Makes `image`, and everything that goes beside it.
pub(crate) fn make(artifacts: &Artifacts, manifest: &Path, image: PathBuf) -> Result<Made> {
    let release = Release::load(artifacts, manifest)?;
    super::write(&release.parts, &image)?;
    let multiboot = image.with_extension("multiboot");
    super::write_multiboot(&release.parts, &artifacts.loader_multiboot(), &multiboot)?;
    let disc = image.with_extension("iso");
    super::write_disc(&multiboot, &disc)?;
    let reference_file = image.with_extension("reference.json");
    place::write(&reference_file, serde_json::to_string_pretty(&release.reference)?.as_bytes())?;
    let policy = image.with_extension("policy.toml");
    place::write(&policy, proof::policy_text(&reference_file)?.as_bytes())?;
    Ok(Made { image, disc, multiboot, policy, reference_file, reference: release.reference })
}

fn show(made: &Made) {
    measure::show(&made.reference);
    ui::heading("Files");
    ui::good(&format!("{}: boots on UEFI firmware", made.image.display()));
    ui::good(&format!("{}: boots on a BIOS, by GRUB, from CD or disk", made.disc.display()));
    ui::good(&format!("{}: what GRUB boots, with an entry for its menu", made.multiboot.display()));
    ui::good(&format!("{}: PCR 17, PCR 18 and each guest's identity", made.reference_file.display()));
    ui::good(&format!(
        "{}: a policy for dolmen-verify; `dolmen-verify enrol` or `trust` adds the key",
        made.policy.display()
    ));
    ui::note(&format!(
        "write it to a disk with: dd if={} of=/dev/DISK bs=4M conv=fsync",
        made.image.display()
    ));
}
