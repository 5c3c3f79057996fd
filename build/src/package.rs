//! Single files out of Debian packages: programs of other people that run as guests.
//!
//! apt downloads the packages and checks their signatures; nothing is installed. The files are kept in the cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{place, process};

/// The file `within` of the package `name`, of the version that apt offers, else of one in the cache.
pub(crate) fn file(name: &str, within: &str) -> Result<PathBuf> {
    Ok(files(name, &[within])?.join(within))
}

/// A folder with these files of the package, each where the package has it.
pub(crate) fn files(name: &str, within: &[&str]) -> Result<PathBuf> {
    let packages = place::cache()?.join("package");
    place::make(&packages)?;
    let cached = cached(&packages, name)?;
    let mut offered = offered(name)?;
    if offered.is_none() && cached.is_none() && rustix::process::geteuid().is_root() {
        process::run("Reading the package lists (apt-get update)", Command::new("apt-get").arg("update"))?;
        offered = self::offered(name)?;
    }
    let folder = match (&offered, cached) {
        (Some(version), _) => packages.join(format!("{name}_{}", version.replace([':', '/'], "%"))),
        (None, Some(folder)) => folder,
        (None, None) => {
            bail!("apt offers no package {name}: run `apt-get update`, and keep Debian 12 among its sources")
        }
    };
    if !within.iter().all(|file| folder.join(file).exists()) {
        fetch(name, offered.as_deref(), within, &folder)?;
    }
    Ok(folder)
}

/// The version that apt would install.
fn offered(name: &str) -> Result<Option<String>> {
    let told = process::output(Command::new("apt-cache").args(["policy", name]).env("LC_ALL", "C"))?;
    let version = told.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    Ok(version.filter(|version| *version != "(none)").map(str::to_owned))
}

/// Any version of the package in the cache.
fn cached(packages: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in packages.read_dir().context("cannot list the packages in the cache")? {
        let path = entry?.path();
        let own = path.file_name().and_then(|own| own.to_str()).and_then(|own| own.split_once('_'));
        if own.is_some_and(|(own, _)| own == name) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Downloads the package and takes the files out of it.
fn fetch(name: &str, version: Option<&str>, within: &[&str], to: &Path) -> Result<()> {
    let folder = place::scratch()?;
    let chosen = version.map_or_else(|| name.to_owned(), |version| format!("{name}={version}"));
    process::run(
        &format!("Downloading Debian's package {name}, for a guest"),
        Command::new("apt-get").arg("download").arg(chosen).current_dir(folder.path()),
    )?;
    let package = folder.path().read_dir().context("cannot list the downloads")?.next();
    let package = package.context("apt-get downloaded nothing")?.context("cannot list the downloads")?.path();
    let archive = folder.path().join("content.tar");
    let content = std::fs::File::create(&archive).context("cannot write the unpacked package")?;
    let status = Command::new("dpkg-deb").arg("--fsys-tarfile").arg(&package).stdout(content).status();
    if !status.context("`dpkg-deb` does not run")?.success() {
        bail!("{} cannot be unpacked", package.display());
    }
    let mut unpack = Command::new("tar");
    unpack.args(["-xf", "content.tar"]).args(within.iter().map(|file| format!("./{file}")));
    process::output(unpack.current_dir(folder.path()))
        .with_context(|| format!("the package {name} does not hold all of {within:?}"))?;
    within.iter().try_for_each(|file| place::copy(&folder.path().join(file), &to.join(file)))
}

/// What `program`, a decompressor, makes of `bytes`.
pub(crate) fn unpacked(program: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    let folder = place::scratch()?;
    let packed = folder.path().join("packed");
    place::write(&packed, bytes)?;
    let input = std::fs::File::open(&packed).context("cannot read what is to be unpacked")?;
    let done = Command::new(program).arg("-dc").stdin(input).output();
    let done = done
        .with_context(|| format!("cannot start {program}; is it installed? `cargo xtask setup` does it"))?;
    if !done.status.success() {
        bail!("{program} cannot unpack it: {}", String::from_utf8_lossy(&done.stderr).trim_end());
    }
    Ok(done.stdout)
}
