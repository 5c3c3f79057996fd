//! The emulator: Debian's QEMU with our patches in `qemu/`, built once and cached outside the tree.
//!
//! The cache is named by the content of `qemu/` that goes into the build, so a changed patch means a new build and an
//! old clone keeps its own. One build runs at a time; an interrupted one leaves nothing that could be taken for a whole.

mod apt;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::{place, process, ui};
use apt::Sources;

/// The program's name, in QEMU's build and in the cache.
const PROGRAM: &str = "qemu-system-x86_64";
/// How names of work folders begin.
const WORK: &str = "work-";
/// The release of QEMU that the series is for.
const SERIES: &str = "7.2.";
/// Longest wait for another process that builds.
const OTHER_BUILD: Duration = Duration::from_secs(30 * 60);
/// Where the distribution keeps its programs: another Python in front of its own breaks QEMU's configuration.
const DISTRIBUTION_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// An emulator that executes SKINIT.
#[derive(Clone, Debug)]
pub(crate) struct Emulator {
    /// The program.
    pub(crate) qemu: PathBuf,
}

/// Finds the emulator in the cache, or builds it.
pub(crate) fn ensure() -> Result<Emulator> {
    let recipe = Recipe::load(&place::root().join("qemu"))?;
    let cache = place::cache()?.join("emulator");
    place::make(&cache)?;
    let home = cache.join(recipe.digest());
    let emulator = Emulator { qemu: home.join(PROGRAM) };
    if emulator.runs() {
        return Ok(emulator);
    }
    let _lock = lock(&cache)?;
    if !emulator.runs() {
        build(&recipe, &cache, &home)?;
        if !emulator.runs() {
            bail!("{} was built but does not start", emulator.qemu.display());
        }
    }
    Ok(emulator)
}

impl Emulator {
    /// Whether the program is there and all its libraries are.
    fn runs(&self) -> bool {
        self.qemu.is_file() && process::output(Command::new(&self.qemu).arg("--version")).is_ok()
    }
}

/// What of `qemu/` goes into a build.
struct Recipe {
    /// Patches in order: name and content.
    patches: Vec<(String, Vec<u8>)>,
    /// Arguments of QEMU's `configure`.
    configure: String,
    /// Device list.
    devices: Vec<u8>,
}

impl Recipe {
    fn load(folder: &Path) -> Result<Self> {
        let text = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let mut patches = Vec::new();
        for name in text("patches/series")?.lines().map(str::trim).filter(|line| !line.is_empty()) {
            patches.push((name.to_owned(), place::read(&folder.join("patches").join(name))?));
        }
        Ok(Self {
            patches,
            configure: text("configure.args")?,
            devices: place::read(&folder.join("devices.mak"))?,
        })
    }

    fn digest(&self) -> String {
        let mut hash = Sha256::new();
        let parts = [self.configure.as_bytes(), &self.devices];
        for part in parts.into_iter().chain(self.patches.iter().map(|(_, patch)| patch.as_slice())) {
            hash.update(Sha256::digest(part));
        }
        hex::encode(hash.finalize())
    }
}

/// Waits until no other process builds. The lock ends with this process, however it ends.
fn lock(cache: &Path) -> Result<File> {
    let path = cache.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    if file.try_lock().is_ok() {
        return Ok(file);
    }
    let progress = ui::Progress::start("Waiting for another process that builds the emulator");
    let step = Duration::from_millis(200);
    let mut waited = Duration::ZERO;
    while waited < OTHER_BUILD {
        if file.try_lock().is_ok() {
            progress.done();
            return Ok(file);
        }
        std::thread::sleep(step);
        waited = waited.saturating_add(step);
    }
    bail!("another process holds {} for too long; end it, then run this again", path.display())
}

/// Removes what interrupted builds have left. Whoever holds the lock is the only one that builds.
fn sweep(cache: &Path) -> Result<()> {
    for entry in cache.read_dir().with_context(|| format!("cannot list {}", cache.display()))? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(WORK)) {
            std::fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

fn build(recipe: &Recipe, cache: &Path, home: &Path) -> Result<()> {
    ui::heading("Building the emulator (once; a few minutes)");
    sweep(cache)?;
    let work =
        tempfile::Builder::new().prefix(WORK).tempdir_in(cache).context("cannot make a work folder")?;
    let version = fetch(work.path())?;
    let source = work.path().join("source");
    check_release(&source, &version)?;
    for (name, patch) in &recipe.patches {
        apply(&source, name, patch, &version)?;
    }
    place::write(&source.join("configs/devices/x86_64-softmmu/dolmen.mak"), &recipe.devices)?;
    let objects = work.path().join("objects");
    place::make(&objects)?;
    let mut configure = at_home(source.join("configure"), &objects);
    process::run("Configuring QEMU", configure.args(recipe.configure.split_whitespace()))?;
    process::run("Compiling QEMU", at_home("ninja", &objects).arg(PROGRAM))?;
    process::run("Stripping it", at_home("strip", &objects).arg(PROGRAM))?;
    place::write(&home.join("source-version"), format!("{version}\n").as_bytes())?;
    let program = home.join(PROGRAM);
    // Within one file system, so that the program is there as a whole or not at all.
    std::fs::rename(objects.join(PROGRAM), &program)
        .with_context(|| format!("cannot write {}", program.display()))
}

/// A command for the build: the distribution's programs only, nothing of the user's Python or compiler set-up.
fn at_home(program: impl AsRef<std::ffi::OsStr>, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).env("PATH", DISTRIBUTION_PATH).env("LC_ALL", "C");
    for variable in ["PYTHON", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "CC", "CXX", "CFLAGS", "LDFLAGS"] {
        command.env_remove(variable);
    }
    command
}

/// Downloads and unpacks Debian's source package, with Debian's patches applied; returns its version.
fn fetch(work: &Path) -> Result<String> {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .context("/etc/os-release names no release; the emulator is built on Debian 12")?;
    Sources::of_this_machine(&codename)?.write(&work.join("parts"))?;
    place::make(&work.join("lists/partial"))?;
    process::run("Reading the lists of source packages", apt_get(work).arg("update"))?;
    process::run(
        "Downloading QEMU's source package",
        apt_get(work).args(["source", "--only-source", "--download-only", "qemu"]),
    )?;
    let description = find(work, "dsc")?;
    process::run(
        "Unpacking it",
        // apt has checked it against the signed package list.
        at_home("dpkg-source", work).args(["--no-check", "--extract"]).arg(&description).arg("source"),
    )?;
    let text = String::from_utf8_lossy(&place::read(&description)?).into_owned();
    text.lines()
        .find_map(|line| line.strip_prefix("Version:"))
        .map(|version| version.trim().to_owned())
        .context("QEMU's source package names no version")
}

/// apt with lists and sources of its own: the machine's stay as they are.
fn apt_get(work: &Path) -> Command {
    let mut command = at_home("apt-get", work);
    let set = |command: &mut Command, name: &str, value: &Path| {
        command.arg("-o").arg(format!("{name}={}", value.display()));
    };
    set(&mut command, "Dir::Etc::SourceList", Path::new("/dev/null"));
    set(&mut command, "Dir::Etc::SourceParts", &work.join("parts"));
    set(&mut command, "Dir::State::Lists", &work.join("lists"));
    command.args(["-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none"]);
    command.args(["-o", "Acquire::Retries=3", "-o", "Acquire::http::Timeout=60", "--quiet"]);
    command
}

fn find(folder: &Path, extension: &str) -> Result<PathBuf> {
    for entry in folder.read_dir().with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == extension) {
            return Ok(path);
        }
    }
    bail!("apt delivered no .{extension} file for QEMU's source package")
}

fn check_release(source: &Path, version: &str) -> Result<()> {
    let release = std::fs::read_to_string(source.join("VERSION")).context("QEMU's source has no VERSION")?;
    if release.starts_with(SERIES) {
        return Ok(());
    }
    bail!(
        "the package sources offer QEMU {version}; the patches in qemu/ are for {SERIES}x, which Debian 12 has: \
         use Debian 12, or move the series as qemu/README.md says"
    )
}

fn apply(source: &Path, name: &str, patch: &[u8], version: &str) -> Result<()> {
    let file = source.join(name);
    place::write(&file, patch)?;
    let mut command = at_home("patch", source);
    command.args(["--strip=1", "--batch", "--forward", "--fuzz=1", "--no-backup-if-mismatch", "--input"]);
    let outcome = process::supervise(command.arg(&file), process::LIMIT, |_| ())?;
    if !outcome.success() {
        let lines: Vec<&str> = outcome.tail.iter().map(String::as_str).collect();
        bail!(
            "qemu/patches/{name} does not apply to {} of QEMU {version}. Debian has changed that file: \
             refresh the patch as qemu/README.md says. patch said:\n{}",
            refused(&lines).unwrap_or("a file"),
            lines.join("\n")
        );
    }
    std::fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))
}

/// The first file of which `patch` could not place a hunk.
fn refused<'a>(lines: &[&'a str]) -> Option<&'a str> {
    let mut current = None;
    for line in lines {
        if let Some(file) = line.strip_prefix("patching file ") {
            current = Some(file);
        } else if let Some(file) = line.strip_prefix("|+++ b/") {
            // It says so where it cannot find the file.
            return Some(file);
        } else if line.contains("FAILED") || line.contains("previously applied") {
            return current;
        }
    }
    current
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_names_the_file_that_a_patch_does_not_fit() {
        let changed = [
            "patching file hw/pci/pci.c",
            "patching file target/i386/cpu.c",
            "Hunk #2 FAILED at 645.",
            "1 out of 3 hunks FAILED -- saving rejects to file target/i386/cpu.c.rej",
        ];
        assert_eq!(refused(&changed), Some("target/i386/cpu.c"));
        let gone = ["can't find file to patch at input line 12", "|--- a/hw/gone.c", "|+++ b/hw/gone.c"];
        assert_eq!(refused(&gone), Some("hw/gone.c"));
    }

    #[test]
    fn every_patch_of_the_series_is_there_and_no_other() {
        let recipe = Recipe::load(&place::root().join("qemu")).unwrap();
        let named: Vec<String> = recipe.patches.iter().map(|(name, _)| name.clone()).collect();
        let mut present: Vec<String> = place::root()
            .join("qemu/patches")
            .read_dir()
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".patch"))
            .collect();
        present.sort();
        assert_eq!(named, present);
    }

    #[test]
    fn a_changed_patch_changes_the_name_of_the_build() {
        let mut recipe = Recipe::load(&place::root().join("qemu")).unwrap();
        let before = recipe.digest();
        recipe.devices.push(b'\n');
        assert_ne!(before, recipe.digest());
    }
}
