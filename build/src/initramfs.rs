//! The demo guest's user space: busybox, the `dolmen` command, its driver, and one script.

use std::path::Path;

use anyhow::{Context, Result};

use crate::cpio::Archive;
use crate::place;

/// Statically linked busybox of the package `busybox-static`.
const BUSYBOX: &str = "/bin/busybox";
/// First program of the guest.
const INIT: &[u8] = include_bytes!("guest-init.sh");
/// Commands that the script and its user call by name.
const APPLETS: &[&str] = &[
    "sh",
    "mount",
    "umount",
    "insmod",
    "lsmod",
    "cat",
    "echo",
    "ls",
    "mkdir",
    "mknod",
    "dmesg",
    "stty",
    "setsid",
    "cttyhack",
    "poweroff",
    "reboot",
    "sleep",
    "head",
    "tail",
    "hexdump",
    "od",
    "grep",
    "sed",
    "dd",
    "sha256sum",
    "sha384sum",
    "base64",
    "free",
    "uname",
    "date",
    "true",
    "false",
    "test",
    "wc",
    "cmp",
    "printf",
    "cp",
    "rm",
    "mv",
    "devmem",
    "time",
    "ps",
    "kill",
    "nproc",
    "tee",
    "usleep",
    "sync",
    "sort",
    "uniq",
    "gzip",
    "gunzip",
    "[",
];

/// A file besides the usual ones.
#[derive(Clone, Debug)]
pub(crate) struct Extra {
    /// Where it is in the guest, without the first slash; its folder is one of the usual ones.
    pub(crate) path: String,
    /// Its rights.
    pub(crate) rights: u32,
    /// Its bytes.
    pub(crate) content: Vec<u8>,
}

/// Builds the archive from our command and driver, and more files.
pub(crate) fn build(command: &Path, driver: &Path, extras: &[Extra]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "proc", "sys", "tmp", "lib", "root"] {
        archive.directory(folder)?;
    }
    // The kernel opens it for the first program before anything is mounted.
    archive.character_device("dev/console", 5, 1)?;
    archive.character_device("dev/null", 1, 3)?;
    archive.file("init", 0o755, INIT)?;
    let busybox = place::read(Path::new(BUSYBOX))
        .context("no static busybox; `cargo xtask setup` installs it (package busybox-static)")?;
    archive.file("bin/busybox", 0o755, &busybox)?;
    for applet in APPLETS {
        archive.link(&format!("bin/{applet}"), "busybox")?;
    }
    archive.file("bin/dolmen", 0o755, &place::read(command)?)?;
    archive.file("lib/dolmen.ko", 0o644, &place::read(driver)?)?;
    for Extra { path, rights, content } in extras {
        archive.file(path, *rights, content)?;
    }
    archive.finish()
}
