//! Where things are: the source tree, what is built, what is cached outside of the tree.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use tempfile::TempDir;

/// Files written so far.
static WRITES: AtomicU32 = AtomicU32::new(0);

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
    // Of its own for each writer: several may write the same file at once.
    name.push(format!(".{}-{}.new", std::process::id(), WRITES.fetch_add(1, Ordering::Relaxed)));
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

/// A new folder with a short name for sockets and passing files; it goes when it is dropped, or with this process.
pub(crate) fn scratch() -> Result<TempDir> {
    static ALL: OnceLock<Option<Scratch>> = OnceLock::new();
    let all =
        ALL.get_or_init(|| Scratch::new().ok()).as_ref().context("cannot make a folder for passing files")?;
    tempfile::tempdir_in(all.folder.path()).context("cannot make a folder")
}

/// The folder of all such folders.
#[derive(Debug)]
struct Scratch {
    folder: TempDir,
    // Holds the write end of the pipe that the process waits on.
    _remover: Child,
}

impl Scratch {
    fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("dolmen-").tempdir().context("cannot make a folder")?;
        let remover = remover(folder.path(), Stdio::piped())?;
        Ok(Self { folder, _remover: remover })
    }
}

/// A process that removes `folder` once nobody can write to `input` any more: however we end, by Ctrl-C or a kill,
/// the kernel closes our end. In a process group of its own, so that the terminal's Ctrl-C is not for it.
fn remover(folder: &Path, input: Stdio) -> Result<Child> {
    Command::new("sh")
        .args(["-c", "cat >/dev/null; rm -rf -- \"$0\" || { sleep 1; rm -rf -- \"$0\"; }"])
        .arg(folder)
        .current_dir("/")
        .process_group(0)
        .stdin(input)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start a shell")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_goes_with_the_process_that_holds_it_even_if_that_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("socket"), b"x").unwrap();
        let mut holder = Command::new("sleep").arg("600").stdout(Stdio::piped()).spawn().unwrap();
        let pipe = holder.stdout.take().unwrap();
        let mut remover = remover(folder.path(), pipe.into()).unwrap();
        assert!(remover.try_wait().unwrap().is_none() && folder.path().exists());
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert!(remover.wait().unwrap().success());
        assert!(!folder.path().exists());
    }

    #[test]
    fn two_scratch_folders_are_two() {
        let (one, two) = (scratch().unwrap(), scratch().unwrap());
        assert_ne!(one.path(), two.path());
        assert_eq!(one.path().parent(), two.path().parent());
    }
}
