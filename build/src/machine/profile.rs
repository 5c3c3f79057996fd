//! Machine profiles: what the emulated computer is made of, as data in `qemu/machines/*.toml`.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::place;

/// One emulated computer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Profile {
    /// What it stands for, in a sentence.
    pub(crate) description: String,
    /// QEMU's machine type.
    pub(crate) machine: String,
    /// QEMU's processor model with its features.
    pub(crate) cpu: String,
    /// Number of processors.
    #[serde(default = "one")]
    pub(crate) cpus: u32,
    /// RAM in MiB.
    pub(crate) memory_mib: u32,
    /// Firmware.
    pub(crate) firmware: Firmware,
    /// Whether there is a TPM, and how it is reached.
    #[serde(default)]
    pub(crate) tpm: Option<TpmInterface>,
    /// Devices, as QEMU's `-device` takes them, in order.
    #[serde(default)]
    pub(crate) devices: Vec<String>,
    /// Any other QEMU arguments.
    #[serde(default)]
    pub(crate) arguments: Vec<String>,
}

/// What runs first.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Firmware {
    /// SeaBIOS.
    Bios,
    /// OVMF.
    Uefi,
}

/// How software reaches the TPM.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TpmInterface {
    /// TPM Interface Specification: localities 0 to 4.
    Tis,
    /// Command/response buffer: locality 0 only in QEMU.
    Crb,
}

impl TpmInterface {
    /// QEMU's name of the device.
    pub(crate) const fn device(self) -> &'static str {
        match self {
            Self::Tis => "tpm-tis",
            Self::Crb => "tpm-crb",
        }
    }
}

const fn one() -> u32 {
    1
}

impl Profile {
    /// Reads the profile `name`.
    pub(crate) fn load(name: &str) -> Result<Self> {
        let folder = place::root().join("qemu/machines");
        let path = folder.join(format!("{name}.toml"));
        if !path.exists() {
            bail!("no machine is called `{name}`; there are: {}", names(&folder)?.join(", "));
        }
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is no machine profile", path.display()))
    }
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in folder.read_dir().with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_of_the_tree_can_be_read() {
        for name in names(&place::root().join("qemu/machines")).unwrap() {
            let profile = Profile::load(&name).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            assert!(!profile.description.is_empty(), "{name}");
        }
    }
}
