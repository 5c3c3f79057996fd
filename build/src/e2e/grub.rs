//! The other way of `cargo xtask image`: a CD with Debian's GRUB. `test --bochs` boots discs that are made in the same way.

use anyhow::Result;

use super::{Case, Scene, launch};
use crate::image::{DISC_SAYS, task};
use crate::lab::{self, LAUNCH, STANDS_STILL};
use crate::machine::Medium;
use crate::place;

/// The tests of this file.
pub(super) const CASES: &[Case] =
    &[Case { name: "grub_boots_the_disc_of_the_image_command_and_ends_where_uefi_does", run: grub }];

/// All that swtpm has.
const BANKS: [&str; 4] = ["sha1", "sha256", "sha384", "sha512"];

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

/// Firmware, GRUB from its CD, our loader, and from there on as ever. The same start by UEFI ends in the same registers.
fn grub(scene: &Scene<'_>) -> Result<()> {
    let own = scene.folder.join("own");
    let artifacts = &scene.bench.artifacts;
    place::write(&own.join("my.toml"), MANIFEST.as_bytes())?;
    place::copy(&artifacts.file("vmlinuz"), &own.join("vmlinuz"))?;
    place::copy(&artifacts.file("initramfs.cpio"), &own.join("initrd.img"))?;
    place::copy(&super::image::kernel(scene)?, &own.join("small.elf"))?;
    let made = task::make(artifacts, &own.join("my.toml"), own.join("my.img"))?;

    let lab = scene.lab("bios")?;
    let medium = Medium::Disc(made.disc.clone());
    let mut machine = lab.boot_medium("grub", &medium, &STANDS_STILL.map(str::to_owned))?;
    machine.log.wait_for(DISC_SAYS, LAUNCH)?;
    lab::measured(&mut machine)?;
    for guest in ["web", "small"] {
        machine.log.wait_for(&format!("guest runs name={guest}"), LAUNCH)?;
    }
    let mut shell = lab::shell(&mut machine)?;
    shell.expect("grep -q '^flags.* hypervisor' /proc/cpuinfo")?;
    let (_power, tpm) = lab::autopsy(machine)?;
    launch::check(&tpm, &made.reference, &BANKS)?;

    let lab = scene.lab("uefi")?;
    let medium = Medium::Disk(made.image.clone());
    let mut machine = lab.boot_medium("uefi", &medium, &STANDS_STILL.map(str::to_owned))?;
    lab::measured(&mut machine)?;
    let (_power, tpm) = lab::autopsy(machine)?;
    launch::check(&tpm, &made.reference, &BANKS)
}
