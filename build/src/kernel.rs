//! The guest kernel: the newest Linux 6.12 "cloud" kernel of Debian 12's security suite, unmodified.
//!
//! The packages are downloaded by apt, which checks their signatures, and unpacked into the cache; nothing
//! is installed. The headers of the same version serve to build the guest driver.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{place, process, ui};

/// Marks a folder whose packages were unpacked to the end.
const COMPLETE: &str = ".complete";

/// A kernel in the cache.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// Version as packages name it, without the flavour.
    pub(crate) version: String,
    /// The bzImage.
    pub(crate) image: PathBuf,
    /// Folder that `make -C` wants for modules of this kernel.
    pub(crate) headers: PathBuf,
}

impl Kernel {
    fn in_folder(folder: &Path, version: &str) -> Self {
        Self {
            version: version.to_owned(),
            image: folder.join(format!("boot/vmlinuz-{version}-cloud-amd64")),
            headers: folder.join(format!("usr/src/linux-headers-{version}-cloud-amd64")),
        }
    }
}

/// Finds the kernel in the cache, or downloads it.
pub(crate) fn ensure() -> Result<Kernel> {
    let kernels = place::cache()?.join("kernel");
    place::make(&kernels)?;
    let mut offered = newest_offered()?;
    let cached = newest_cached(&kernels)?;
    if offered.is_none() && cached.is_none() && rustix::process::geteuid().is_root() {
        process::run("Reading the package lists (apt-get update)", Command::new("apt-get").arg("update"))?;
        offered = newest_offered()?;
    }
    let version = match offered {
        Some(version) => version,
        None => cached.context(
            "apt offers no linux-image-6.12.*-cloud-amd64: run `apt-get update`, and keep Debian 12's security \
             suite (bookworm-security) among its sources",
        )?,
    };
    let folder = kernels.join(&version);
    let kernel = Kernel::in_folder(&folder, &version);
    if !folder.join(COMPLETE).exists() {
        fetch(&kernels, &folder, &version)?;
        relocate_headers(&kernel, &folder)?;
        place::write(&folder.join(COMPLETE), b"")?;
    }
    Ok(kernel)
}

/// Asks apt for the newest version it knows.
fn newest_offered() -> Result<Option<String>> {
    let listed = process::output(Command::new("apt-cache").args([
        "search",
        "--names-only",
        r"^linux-image-6\.12\.[0-9]+\+deb12-cloud-amd64$",
    ]))?;
    Ok(newest(listed.lines().filter_map(|line| {
        line.split_whitespace().next()?.strip_prefix("linux-image-")?.strip_suffix("-cloud-amd64")
    })))
}

fn newest_cached(kernels: &Path) -> Result<Option<String>> {
    let mut names = Vec::new();
    for entry in kernels.read_dir().context("cannot list the kernels in the cache")? {
        let path = entry?.path();
        if path.join(COMPLETE).exists() {
            names.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    Ok(newest(names.iter().map(String::as_str)))
}

/// The version with the highest third number: `6.12.9+deb12` comes before `6.12.10+deb12`.
fn newest<'a>(versions: impl Iterator<Item = &'a str>) -> Option<String> {
    let rank = |version: &str| {
        version
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|part| part.parse().ok())
            .collect::<Vec<u32>>()
    };
    versions.max_by_key(|version| rank(version)).map(str::to_owned)
}

fn fetch(kernels: &Path, folder: &Path, version: &str) -> Result<()> {
    let downloads = tempfile::tempdir_in(kernels).context("cannot make a folder for downloads")?;
    let packages = [
        format!("linux-image-{version}-cloud-amd64"),
        format!("linux-headers-{version}-cloud-amd64"),
        format!("linux-headers-{version}-common"),
        format!("linux-kbuild-{version}"),
    ];
    process::run(
        &format!("Downloading Debian's kernel {version} and its headers (50 MB), the demo's guest"),
        Command::new("apt-get").arg("download").args(&packages).current_dir(downloads.path()),
    )?;
    if folder.exists() {
        std::fs::remove_dir_all(folder).context("cannot remove a half-unpacked kernel")?;
    }
    place::make(folder)?;
    let progress = ui::Progress::start("Unpacking it");
    for entry in downloads.path().read_dir().context("cannot list the downloads")? {
        let package = entry?.path();
        if package.extension().is_some_and(|extension| extension == "deb") {
            process::output(Command::new("dpkg-deb").arg("-x").arg(&package).arg(folder))?;
        }
    }
    progress.done();
    Ok(())
}

/// Makes the unpacked headers usable where they lie.
fn relocate_headers(kernel: &Kernel, folder: &Path) -> Result<()> {
    if !kernel.image.exists() || !kernel.headers.exists() {
        bail!(
            "the kernel packages of {} do not hold what they should; remove {}",
            kernel.version,
            folder.display()
        );
    }
    let makefile = kernel.headers.join("Makefile");
    let text = String::from_utf8(place::read(&makefile)?).context("the headers' Makefile is not text")?;
    let here = format!("{}/usr/src/", folder.display());
    place::write(&makefile, text.replace("/usr/src/", &here).as_bytes())?;
    // With it the module's build would want `pahole`, only to make type information for BPF.
    let types = kernel.headers.join("vmlinux");
    if types.exists() {
        std::fs::remove_file(&types).context("cannot remove the kernel's type information")?;
    }
    ui::note(&format!("kernel {} is in {}", kernel.version, folder.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_is_found_by_number_and_not_by_letter() {
        let offered = ["6.12.9+deb12", "6.12.117+deb12", "6.12.22+deb12"];
        assert_eq!(newest(offered.into_iter()).as_deref(), Some("6.12.117+deb12"));
    }
}
