//! Installs what is missing: Debian packages, parts of the Rust toolchain, the guest kernel, the emulator.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::emulator;
use crate::kernel::{self, Kernel};
use crate::{place, process, ui};

/// What the rest of xtask needs from the machine.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    /// The emulator that executes SKINIT.
    pub(crate) qemu: PathBuf,
    /// The kernel of most guests, and its headers.
    pub(crate) kernel: Kernel,
    /// An older kernel, for guests of another kind.
    pub(crate) older: Kernel,
}

/// Packages and why they are needed.
const PACKAGES: &[(&str, &str)] = &[
    ("build-essential", "compiles the emulator and links host programs"),
    ("gcc-12", "compiles the guest's kernel driver"),
    ("pkg-config", "configures the emulator"),
    ("python3", "configures the emulator"),
    ("python3-venv", "the environment in which Keylime runs"),
    ("python3-gpg", "bindings that Keylime wants from Debian"),
    ("python3-cryptography", "library of Keylime"),
    ("python3-yaml", "library of Keylime"),
    ("ninja-build", "builds the emulator"),
    ("meson", "builds the emulator"),
    ("libglib2.0-dev", "library of the emulator"),
    ("libpixman-1-dev", "library of the emulator"),
    ("libfdt-dev", "library of the emulator"),
    ("zlib1g-dev", "library of the emulator"),
    ("dpkg-dev", "unpacks the emulator's source package"),
    ("xz-utils", "unpacks the emulator's source package"),
    ("swtpm", "the emulated machine's TPM 2.0"),
    ("swtpm-tools", "makes the TPM's endorsement key certificate"),
    ("tpm2-tools", "the relying party's unmodified tools"),
    ("libtss2-dev", "library of the independent quote verifier"),
    ("libssl-dev", "library of the independent quote verifier"),
    ("acpica-tools", "iasl, which reads the ACPI tables that guests get"),
    ("openssl", "makes the reader's keys in tests of evidence"),
    ("ovmf", "UEFI firmware of the emulated machine"),
    ("seabios", "BIOS of the emulated machine"),
    ("qemu-system-data", "option ROMs of the emulated machine"),
    ("mtools", "makes the EFI system partition"),
    ("bochs", "the emulated machine with an Intel processor"),
    ("bochsbios", "BIOS of the emulated machine with an Intel processor"),
    ("vgabios", "the same machine's video BIOS, which its BIOS wants"),
    ("grub-common", "makes CD images that GRUB boots"),
    ("grub-pc-bin", "GRUB for BIOS machines, on those images"),
    ("xorriso", "makes the file system of those images"),
    ("busybox-static", "user space of the demo's guest"),
    ("musl-tools", "compiles the C parts of TLS, for guests"),
    ("slirp", "a guest's network over a serial line"),
    ("zstd", "unpacks the kernel in Debian's bzImage, for a guest"),
];

/// Targets of the pinned toolchain.
const TARGETS: &[&str] = &["x86_64-unknown-none", "x86_64-unknown-uefi", "x86_64-unknown-linux-musl"];
/// Components of the pinned toolchain.
const COMPONENTS: &[&str] = &["rustfmt", "clippy"];

/// Installs packages and toolchain parts; says what it changes.
pub(crate) fn host() -> Result<()> {
    packages()?;
    toolchain()
}

/// Makes this machine ready for everything: besides the host's parts, guest kernel and emulator.
pub(crate) fn ensure() -> Result<Tools> {
    host()?;
    let kernel = kernel::ensure(&kernel::CURRENT)?;
    let older = kernel::ensure(&kernel::OLDER)?;
    let qemu = emulator::ensure()?.qemu;
    Ok(Tools { qemu, kernel, older })
}

fn packages() -> Result<()> {
    let missing = missing_packages()?;
    if missing.is_empty() {
        return Ok(());
    }
    supported(&missing)?;
    ui::heading("Setting up: Debian packages that are missing");
    for (package, why) in &missing {
        ui::note(&format!("{package}: {why}"));
    }
    process::run("Reading the package lists (apt-get update)", apt().arg("update"))?;
    process::run(
        "Installing them (apt-get install)",
        apt()
            .args(["install", "--yes", "--no-install-recommends"])
            .args(missing.iter().map(|(package, _)| package)),
    )
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.args(["--quiet", "-o", "DPkg::Lock::Timeout=300"]).env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn missing_packages() -> Result<Vec<(&'static str, &'static str)>> {
    if !process::installed("dpkg-query") {
        bail!("{}", unsupported("this machine has no dpkg"));
    }
    // The status of unknown packages makes dpkg-query fail, yet it prints those it knows.
    let listed = Command::new("dpkg-query")
        .args(["--show", "--showformat", "${db:Status-Abbrev}${Package}\n"])
        .args(PACKAGES.iter().map(|(package, _)| package))
        .stderr(Stdio::null())
        .output()
        .context("cannot start dpkg-query")?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let installed: Vec<&str> =
        listed.lines().filter_map(|line| line.strip_prefix("ii")).map(str::trim).collect();
    Ok(PACKAGES.iter().copied().filter(|(package, _)| !installed.contains(package)).collect())
}

/// Refuses machines on which we cannot install packages, and says what is supported.
fn supported(missing: &[(&str, &str)]) -> Result<()> {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = |key: &str| {
        release.lines().find_map(|line| line.strip_prefix(key)).map(|v| v.trim_matches('"').to_owned())
    };
    let (id, version) = (value("ID=").unwrap_or_default(), value("VERSION_ID=").unwrap_or_default());
    if (id.as_str(), version.as_str()) != ("debian", "12") {
        bail!("{}", unsupported(&format!("this is {id} {version}")));
    }
    if !rustix::process::geteuid().is_root() {
        let names: Vec<&str> = missing.iter().map(|(package, _)| *package).collect();
        bail!(
            "packages are missing and only root can install them. As root: apt-get install {}\n\
             then run this again (as any user)",
            names.join(" ")
        );
    }
    Ok(())
}

fn unsupported(what: &str) -> String {
    format!(
        "{what}; the emulated machine is supported on Debian 12 (bookworm, amd64), as root for the set-up. \
         A container will do: `docker run -it -v \"$PWD\":/dolmen -w /dolmen rust:1.95-bookworm cargo xtask demo`"
    )
}

/// Installs parts of the toolchain that are missing.
pub(crate) fn toolchain() -> Result<()> {
    if !process::installed("rustup") {
        return Ok(());
    }
    add(
        "target",
        TARGETS,
        &process::output(Command::new("rustup").args(["target", "list", "--installed"]))?,
    )?;
    add(
        "component",
        COMPONENTS,
        &process::output(Command::new("rustup").args(["component", "list", "--installed"]))?,
    )
}

fn add(kind: &str, wanted: &[&str], installed: &str) -> Result<()> {
    let missing: Vec<&str> = wanted
        .iter()
        .copied()
        .filter(|want| !installed.lines().any(|line| line == *want || line.starts_with(&format!("{want}-"))))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    process::run(
        &format!("Adding to the Rust toolchain ({kind}): {}", missing.join(", ")),
        Command::new("rustup").arg(kind).arg("add").args(&missing).current_dir(place::root()),
    )
}
