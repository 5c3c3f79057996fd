//! `cargo xtask image`: a disk to boot from, files for GRUB, and the reference values that go with them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::artifact::Artifacts;
use crate::lab::Release;
use crate::manifest::Manifest;
use crate::measure::{self, Reference};
use crate::{artifact, folder, place, proof, setup, ui};

/// What the user chose.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Manifest of the guests.
    #[arg(long, default_value = "dolmen.toml")]
    manifest: PathBuf,
    /// Where the image goes; everything else goes beside it, by the same name without `.img` and with other endings.
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
    let [multiboot, disc, reference_file, policy] = beside(&image)?;
    folder::claim(&multiboot, "--output", super::is_for_multiboot)?;
    let release = Release::load(artifacts, manifest)?;
    super::write(&release.parts, &image)?;
    super::write_multiboot(&release.parts, &artifacts.loader_multiboot(), &multiboot)?;
    super::write_disc(&multiboot, &disc)?;
    place::write(&reference_file, serde_json::to_string_pretty(&release.reference)?.as_bytes())?;
    place::write(&policy, proof::policy_text(&reference_file)?.as_bytes())?;
    Ok(Made { image, disc, multiboot, policy, reference_file, reference: release.reference })
}

/// What goes beside an image: its name without `.img`, and with an ending of its own each. Only that one ending is
/// taken off, so that `dolmen-1.2` and `dolmen-1.3` share nothing, and none of these is the image, whatever it is called.
fn beside(image: &Path) -> Result<[PathBuf; 4]> {
    let name = image.file_name().context("an image needs a name")?;
    let stem = match image.extension() {
        Some(extension) if extension == "img" => image.file_stem().unwrap_or(name),
        _ => name,
    };
    Ok(["multiboot", "iso", "reference.json", "policy.toml"].map(|ending| {
        let mut name = stem.to_owned();
        name.push(".");
        name.push(ending);
        image.with_file_name(name)
    }))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn names(image: &str) -> Vec<String> {
        beside(Path::new(image)).unwrap().iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn what_goes_beside_an_image_has_its_name_without_img() {
        let want = ["a/my.multiboot", "a/my.iso", "a/my.reference.json", "a/my.policy.toml"];
        assert_eq!(names("a/my.img"), want);
    }

    #[test]
    fn two_versions_share_no_file() {
        let (one, other) = (names("dolmen-1.2"), names("dolmen-1.3"));
        assert!(one.iter().all(|name| name.starts_with("dolmen-1.2.") && !other.contains(name)), "{one:?}");
    }

    #[test]
    fn nothing_that_goes_beside_an_image_is_the_image() {
        for image in
            ["my.iso", "my.img", "my.img.img", "my.multiboot", "my.reference.json", "my.policy.toml", ".img"]
        {
            assert!(!names(image).contains(&image.to_owned()), "{image}");
        }
        assert!(beside(Path::new("..")).is_err());
    }
}
