//! The other way of `cargo xtask image`: the folder for GRUB, booted by the GRUB that Debian ships.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::{Case, Scene, launch};
use crate::image::task;
use crate::lab::{self, LAUNCH, STANDS_STILL};
use crate::machine::Medium;
use crate::{place, process};

/// The tests of this file.
pub(super) const CASES: &[Case] =
    &[Case { name: "grub_boots_the_folder_that_the_image_command_writes_for_it", run: grub }];

/// What a user has: a manifest beside kernels of their own, and nothing of this tree.
const MANIFEST: &str = r#"
[host]
memory_mib = 2048
cpus = 1
region_mib = 64

[[guest]]
name = "web"
memory_mib = 512
kernel = "vmlinuz"
initrd = "initrd.img"
cmdline = "console=ttyS0,115200"
consoles = ["com2"]
hypercalls = ["registers"]

[[guest]]
name = "small"
memory_mib = 16
format = "multiboot"
kernel = "small.elf"
cmdline = "handover"
consoles = ["none"]
"#;

/// Firmware, GRUB's own boot sector, GRUB, our loader, and from there on as ever.
fn grub(scene: &Scene<'_>) -> Result<()> {
    let own = scene.folder.join("own");
    let artifacts = &scene.bench.artifacts;
    place::write(&own.join("my.toml"), MANIFEST.as_bytes())?;
    place::copy(&artifacts.file("vmlinuz"), &own.join("vmlinuz"))?;
    place::copy(&artifacts.file("initramfs.cpio"), &own.join("initrd.img"))?;
    place::copy(&super::image::kernel(scene)?, &own.join("small.elf"))?;
    let made = task::make(artifacts, &own.join("my.toml"), own.join("my.img"))?;
    let disk = disk(&made.multiboot, &scene.folder)?;

    let lab = scene.lab("bios")?;
    let mut machine = lab.boot_medium("grub", &Medium::Disk(disk), &STANDS_STILL.map(str::to_owned))?;
    machine.log.wait_for("GRUB: the menu of the image command", LAUNCH)?;
    lab::measured(&mut machine)?;
    for guest in ["web", "small"] {
        machine.log.wait_for(&format!("guest runs name={guest}"), LAUNCH)?;
    }
    let mut shell = lab::shell(&mut machine)?;
    shell.expect("grep -q '^flags.* hypervisor' /proc/cpuinfo")?;
    let (_power, tpm) = lab::autopsy(machine)?;
    launch::check(&tpm, &made.reference, &["sha1", "sha256", "sha384", "sha512"])
}

/// A disk with GRUB for machines with BIOS, whose own menu goes on with the folder's.
fn disk(multiboot: &Path, folder: &Path) -> Result<PathBuf> {
    let tree = folder.join("disk");
    let name = multiboot.file_name().unwrap_or_default();
    for entry in std::fs::read_dir(multiboot)? {
        let file = entry?.path();
        place::copy(&file, &tree.join(name).join(file.file_name().unwrap_or_default()))?;
    }
    let menu = format!(
        "serial --unit=0 --speed=115200\nterminal_output serial\nset timeout=0\n\
         echo \"GRUB: the menu of the image command\"\nsource /{}/grub.cfg\n",
        name.to_string_lossy()
    );
    place::write(&tree.join("boot/grub/grub.cfg"), menu.as_bytes())?;
    let disk = folder.join("grub.img");
    process::output(
        Command::new("grub-mkrescue")
            .args(["--directory=/usr/lib/grub/i386-pc", "--compress=no", "-o"])
            .args([&disk, &tree]),
    )?;
    Ok(disk)
}
