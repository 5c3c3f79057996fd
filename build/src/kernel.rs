//! The guests' kernels: the newest Linux 6.12 and 6.1 "cloud" kernels of Debian 12's security suite, unmodified.
//!
//! The packages are downloaded by apt, which checks their signatures, and unpacked into the cache; nothing
//! is installed. The headers of the same version serve to build the guest driver.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{package, place, process, ui};

/// Marks a folder whose packages were unpacked to the end.
const COMPLETE: &str = ".complete";
/// The same for the headers of the generic kernel, which only some want.
const COMPLETE_GENERIC: &str = ".complete-generic";

/// Kernels that Debian keeps up to date under one name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Series {
    /// Linux version without the last number.
    name: &'static str,
    /// What every version of it begins with, as packages name it.
    begins: &'static str,
    /// The same for apt, with the rest of the version.
    pattern: &'static str,
    /// Whether the package of build tools bears the whole version, or only the series' name.
    has_own_tools: bool,
}

/// The kernel of most guests.
pub(crate) const CURRENT: Series =
    Series { name: "6.12", begins: "6.12.", pattern: r"6\.12\.[0-9]+\+deb12", has_own_tools: true };
/// Debian 12's own kernel.
pub(crate) const OLDER: Series =
    Series { name: "6.1", begins: "6.1.0-", pattern: r"6\.1\.0-[0-9]+", has_own_tools: false };

/// A kernel in the cache.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// Version as packages name it, without the flavour.
    pub(crate) version: String,
    /// The bzImage.
    pub(crate) image: PathBuf,
    /// Folder that `make -C` wants for modules of this kernel.
    pub(crate) headers: PathBuf,
    /// Folder of the kernel's own modules.
    modules: PathBuf,
}

impl Kernel {
    fn in_folder(folder: &Path, version: &str) -> Self {
        Self {
            version: version.to_owned(),
            image: folder.join(format!("boot/vmlinuz-{version}-cloud-amd64")),
            headers: folder.join(format!("usr/src/linux-headers-{version}-cloud-amd64")),
            modules: folder.join(format!("lib/modules/{version}-cloud-amd64/kernel")),
        }
    }

    /// One of the kernel's own modules, which the package has compressed.
    pub(crate) fn module(&self, within: &str) -> Result<Vec<u8>> {
        package::unpacked("xz", &place::read(&self.modules.join(format!("{within}.xz")))?)
    }
}

/// Finds the newest kernel of the series in the cache, or downloads it.
pub(crate) fn ensure(series: &Series) -> Result<Kernel> {
    let kernels = place::cache()?.join("kernel");
    place::make(&kernels)?;
    let mut offered = newest_offered(series)?;
    let cached = newest_cached(&kernels, series)?;
    if offered.is_none() && cached.is_none() && rustix::process::geteuid().is_root() {
        process::run("Reading the package lists (apt-get update)", Command::new("apt-get").arg("update"))?;
        offered = newest_offered(series)?;
    }
    let version = match offered {
        Some(version) => version,
        None => cached.with_context(|| {
            format!(
                "apt offers no linux-image-{}*-cloud-amd64: run `apt-get update`, and keep Debian 12's security \
                 suite (bookworm-security) among its sources",
                series.begins
            )
        })?,
    };
    let folder = kernels.join(&version);
    let kernel = Kernel::in_folder(&folder, &version);
    if !folder.join(COMPLETE).exists() {
        fetch(series, &kernels, &folder, &version)?;
        if !kernel.image.exists() {
            bail!("the kernel packages of {version} hold no kernel; remove {}", folder.display());
        }
        relocate_headers(&kernel.headers, &folder)?;
        ui::note(&format!("kernel {version} is in {}", folder.display()));
        place::write(&folder.join(COMPLETE), b"")?;
    }
    Ok(kernel)
}

/// Finds the generic kernel of the series' newest version in the cache, or downloads it. It is for a guest that
/// needs no module, so nothing but the bzImage is kept.
pub(crate) fn ensure_generic(series: &Series) -> Result<PathBuf> {
    let version = ensure(series)?.version;
    package::file(&format!("linux-image-{version}-amd64"), &format!("boot/vmlinuz-{version}-amd64"))
}

/// The same with headers and these of its own modules, for a guest that needs one.
pub(crate) fn ensure_generic_modules(series: &Series, modules: &[&str]) -> Result<Kernel> {
    let version = ensure(series)?.version;
    let (_, headers) = ensure_generic_headers(series)?;
    let (image, folder) =
        (format!("boot/vmlinuz-{version}-amd64"), format!("lib/modules/{version}-amd64/kernel"));
    let mut within = vec![image.clone()];
    within.extend(modules.iter().map(|module| format!("{folder}/{module}.xz")));
    let within: Vec<&str> = within.iter().map(String::as_str).collect();
    let files = package::files(&format!("linux-image-{version}-amd64"), &within)?;
    Ok(Kernel { version, image: files.join(image), headers, modules: files.join(folder) })
}

/// Folder that `make -C` wants for modules of the generic kernel of the series' newest version, and that version with
/// the flavour: none, as in the packages' names.
pub(crate) fn ensure_generic_headers(series: &Series) -> Result<(String, PathBuf)> {
    let version = ensure(series)?.version;
    let folder = place::cache()?.join("kernel").join(&version);
    let headers = folder.join(format!("usr/src/linux-headers-{version}-amd64"));
    if !folder.join(COMPLETE_GENERIC).exists() {
        let downloads = tempfile::tempdir_in(&folder).context("cannot make a folder for downloads")?;
        process::run(
            &format!("Downloading the headers of Debian's generic kernel {version} (3 MB)"),
            Command::new("apt-get")
                .args(["download", &format!("linux-headers-{version}-amd64")])
                .current_dir(downloads.path()),
        )?;
        unpack(downloads.path(), &folder)?;
        relocate_headers(&headers, &folder)?;
        place::write(&folder.join(COMPLETE_GENERIC), b"")?;
    }
    Ok((format!("{version}-amd64"), headers))
}

/// The kernel proper, an ELF file, out of a bzImage that is packed with zstd (Linux,
/// `Documentation/arch/x86/boot.rst`: the payload's place counts from the protected-mode part; the kernel's build
/// appends its unpacked length).
pub(crate) fn vmlinux(image: &[u8]) -> Result<Vec<u8>> {
    const SETUP_SECTORS: usize = 0x1f1;
    const PAYLOAD_OFFSET: usize = 0x248;
    const PAYLOAD_LENGTH: usize = 0x24c;
    const LENGTH_WORD: usize = 4;
    let word = |at: usize| -> Result<usize> {
        let bytes = image.get(at..).and_then(|rest| rest.first_chunk()).context("a bzImage cut short")?;
        usize::try_from(u32::from_le_bytes(*bytes)).context("a length beyond memory")
    };
    let sectors = usize::from(*image.get(SETUP_SECTORS).context("a bzImage cut short")?);
    let start = sectors.saturating_add(1).saturating_mul(512).saturating_add(word(PAYLOAD_OFFSET)?);
    let end = start.saturating_add(word(PAYLOAD_LENGTH)?);
    let packed = image.get(start..end.saturating_sub(LENGTH_WORD)).context("a bzImage cut short")?;
    let kernel = package::unpacked("zstd", packed)?;
    if kernel.len() != word(end.saturating_sub(LENGTH_WORD))? {
        bail!("the kernel in the bzImage is not as long as it says");
    }
    Ok(kernel)
}

/// Asks apt for the newest version it knows.
fn newest_offered(series: &Series) -> Result<Option<String>> {
    let names = format!("^linux-image-{}-cloud-amd64$", series.pattern);
    let listed = process::output(Command::new("apt-cache").args(["search", "--names-only", &names]))?;
    Ok(newest(listed.lines().filter_map(|line| {
        line.split_whitespace().next()?.strip_prefix("linux-image-")?.strip_suffix("-cloud-amd64")
    })))
}

fn newest_cached(kernels: &Path, series: &Series) -> Result<Option<String>> {
    let mut names = Vec::new();
    for entry in kernels.read_dir().context("cannot list the kernels in the cache")? {
        let path = entry?.path();
        if path.join(COMPLETE).exists() {
            names.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    Ok(newest(names.iter().map(String::as_str).filter(|name| name.starts_with(series.begins))))
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

fn fetch(series: &Series, kernels: &Path, folder: &Path, version: &str) -> Result<()> {
    let downloads = tempfile::tempdir_in(kernels).context("cannot make a folder for downloads")?;
    let packages = [
        format!("linux-image-{version}-cloud-amd64"),
        format!("linux-headers-{version}-cloud-amd64"),
        format!("linux-headers-{version}-common"),
        format!("linux-kbuild-{}", if series.has_own_tools { version } else { series.name }),
    ];
    process::run(
        &format!("Downloading Debian's kernel {version} and its headers (50 MB), for guests"),
        Command::new("apt-get").arg("download").args(&packages).current_dir(downloads.path()),
    )?;
    if folder.exists() {
        std::fs::remove_dir_all(folder).context("cannot remove a half-unpacked kernel")?;
    }
    place::make(folder)?;
    let progress = ui::Progress::start("Unpacking it");
    unpack(downloads.path(), folder)?;
    progress.done();
    Ok(())
}

/// Unpacks all packages in `downloads` to `folder`.
fn unpack(downloads: &Path, folder: &Path) -> Result<()> {
    for entry in downloads.read_dir().context("cannot list the downloads")? {
        let package = entry?.path();
        if package.extension().is_some_and(|extension| extension == "deb") {
            process::output(Command::new("dpkg-deb").arg("-x").arg(&package).arg(folder))?;
        }
    }
    Ok(())
}

/// Makes the unpacked headers usable where they lie.
fn relocate_headers(headers: &Path, folder: &Path) -> Result<()> {
    if !headers.exists() {
        bail!("the packages do not hold {}; remove {}", headers.display(), folder.display());
    }
    let makefile = headers.join("Makefile");
    let text = String::from_utf8(place::read(&makefile)?).context("the headers' Makefile is not text")?;
    let here = format!("{}/usr/src/", folder.display());
    place::write(&makefile, text.replace("/usr/src/", &here).as_bytes())?;
    // With it the module's build would want `pahole`, only to make type information for BPF.
    let types = headers.join("vmlinux");
    if types.exists() {
        std::fs::remove_file(&types).context("cannot remove the kernel's type information")?;
    }
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

    #[test]
    fn a_bzimage_whose_payload_is_not_there_is_refused() {
        let mut image = vec![0; 0x400];
        image[0x24c..0x250].copy_from_slice(&0x1000u32.to_le_bytes());
        for length in [0x100, 0x24e, 0x400] {
            assert!(vmlinux(&image[..length]).is_err(), "{length:#x}");
        }
    }
}
