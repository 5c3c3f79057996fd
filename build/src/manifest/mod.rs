//! Compiles `dolmen.toml` into the canonical manifest that PCR 18 measures and the core obeys.
//!
//! The language is described in `docs/manifest.md`, whose tables come from `field`. Every complaint names file, line,
//! column and field, what was found and what was expected there, and shows the line.

mod compile;
mod complaint;
mod field;
mod read;
mod root;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use dolmen_vm::manifest::{GuestConfig, Header};
use toml::de::DeTable;
use zerocopy::IntoBytes;

use compile::{Compiler, Images, Whole};
use complaint::Complaint;

/// Prefix of files that `cargo xtask build` makes.
const BUILT: &str = "built:";

/// A manifest that was compiled.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    /// Canonical bytes.
    pub(crate) bytes: Vec<u8>,
    /// Guests in order.
    pub(crate) guests: Vec<CompiledGuest>,
    /// RAM that the core takes for itself, where the manifest says how much.
    pub(crate) region_mib: Option<u64>,
}

/// One guest: its part of the canonical manifest, and the files behind its components.
#[derive(Clone, Debug)]
pub(crate) struct CompiledGuest {
    /// Name.
    pub(crate) name: String,
    /// Canonical configuration.
    pub(crate) config: GuestConfig,
    /// Files in the order of `config.components`.
    pub(crate) files: Vec<Component>,
}

/// A file of a guest.
#[derive(Clone, Debug)]
pub(crate) struct Component {
    /// One of the kinds of [`dolmen_vm::manifest::ComponentConfig`].
    pub(crate) kind: u32,
    /// Where the file is.
    pub(crate) path: PathBuf,
}

impl Manifest {
    /// Files of all guests in the order in which the loader stages them.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        self.guests.iter().flat_map(|guest| guest.files.iter().map(|file| file.path.clone())).collect()
    }

    /// Compiles the manifest in the file `path`, and checks that its images can be loaded.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        Self::read(path, Images::Checked)
    }

    /// Complains before anything is built, unless the manifest names what only building makes.
    pub(crate) fn check_early(path: &Path) -> Result<()> {
        let names_built = std::fs::read_to_string(path).is_ok_and(|text| text.contains(BUILT));
        if names_built { Ok(()) } else { Self::load(path).map(drop) }
    }

    /// Compiles the manifest in the file `path` whatever its images are: for tests of who else refuses them.
    pub(crate) fn load_with_any_images(path: &Path) -> Result<Self> {
        Self::read(path, Images::Taken)
    }

    fn read(path: &Path, images: Images) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the manifest {}", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        Self::compile(&text, folder, images)
            .map_err(|complaint| anyhow!("{}", complaint.in_file(&path.display().to_string())))
    }

    /// Compiles `text`; relative paths start at `folder`.
    fn compile(text: &str, folder: &Path, images: Images) -> Result<Self, Complaint> {
        let table = DeTable::parse(text).map_err(|error| {
            Complaint::new(text, &error.span().unwrap_or_default(), error.message().to_owned())
        })?;
        let compiler = Compiler { text, folder, images };
        let Whole { host, sealing_root, guests } = compiler.file(&table)?;
        let header = Header {
            magic: Header::MAGIC,
            version: if sealing_root.is_some() { Header::VERSION_WITH_ROOT } else { Header::VERSION },
            guest_count: u32::try_from(guests.len()).unwrap_or(u32::MAX),
        };
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(sealing_root.as_ref().map_or(&[], IntoBytes::as_bytes));
        for guest in &guests {
            bytes.extend_from_slice(guest.config.as_bytes());
        }
        // What the compiler lets pass and the core would not is a mistake of the compiler: said, never shipped.
        dolmen_vm::manifest::Manifest::parse(&bytes)
            .map_err(|error| Complaint::new(text, &(0..0), format!("the core would refuse it: {error}")))?;
        Ok(Self { bytes, guests, region_mib: host.region_mib })
    }
}

#[cfg(test)]
mod document;
#[cfg(test)]
mod tests;
