//! Where things are: the source tree, what is built, what is cached outside of the tree.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Top folder of the source tree.
pub(crate) fn root() -> PathBuf {
    let own = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    own.parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Cargo's target folder.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// What `cargo xtask build` makes.
pub(crate) fn output() -> PathBuf {
    target().join("dolmen")
}

/// Downloads and the emulator: kept between clones, named by content or version.
pub(crate) fn cache() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(
            std::env::var_os("HOME").context("HOME is not set; it says where downloads are kept")?,
        )
        .join(".cache"),
    };
    let dir = base.join("dolmen");
    make(&dir)?;
    Ok(dir)
}

/// Creates a folder and its parents.
pub(crate) fn make(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))
}

/// Reads a whole file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Writes a whole file, replacing it in one step.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().context("a file needs a folder")?;
    make(folder)?;
    let mut name = path.file_name().context("a file needs a name")?.to_owned();
    name.push(".new");
    let fresh = folder.join(name);
    std::fs::write(&fresh, bytes).with_context(|| format!("cannot write {}", fresh.display()))?;
    std::fs::rename(&fresh, path).with_context(|| format!("cannot replace {}", path.display()))
}

/// Copies a file with its rights, replacing the old one in one step.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    write(to, &read(from)?)?;
    let rights = from.metadata().with_context(|| format!("cannot look at {}", from.display()))?.permissions();
    std::fs::set_permissions(to, rights).with_context(|| format!("cannot set the rights of {}", to.display()))
}
