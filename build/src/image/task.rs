//! `cargo xtask image`: a disk to boot from, and the reference values that go with it.

use std::path::PathBuf;

use anyhow::Result;

use crate::lab::Release;
use crate::{artifact, place, proof, setup, ui};

/// What the user chose.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Manifest of the guests.
    #[arg(long, default_value = "dolmen.toml")]
    manifest: PathBuf,
    /// Where the image goes; reference values go beside it.
    #[arg(long)]
    output: Option<PathBuf>,
}

/// Makes the image.
pub(crate) fn run(options: &Options) -> Result<()> {
    let artifacts = artifact::build(&setup::ensure()?)?;
    let release = Release::load(&artifacts, &options.manifest)?;
    let image = options.output.clone().unwrap_or_else(|| artifacts.file("dolmen.img"));
    super::write(&release.parts, &image)?;
    let reference = image.with_extension("reference.json");
    place::write(&reference, serde_json::to_string_pretty(&release.reference)?.as_bytes())?;
    let policy = image.with_extension("policy.toml");
    place::write(&policy, proof::policy_text(&release.reference)?.as_bytes())?;
    ui::good(&format!("{}: boots on UEFI firmware", image.display()));
    ui::good(&format!("{}: PCR 17, PCR 18 and each guest's identity", reference.display()));
    ui::good(&format!(
        "{}: a policy for dolmen-verify; `dolmen-verify enroll` adds the key",
        policy.display()
    ));
    ui::note(&format!("write it to a disk with: dd if={} of=/dev/DISK bs=4M conv=fsync", image.display()));
    Ok(())
}
