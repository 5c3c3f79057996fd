//! Images that other people wrote for other machines, as Debian ships them, and what becomes of each.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Case, Scene};
use crate::lab::{self, LAUNCH};
use crate::machine::Machine;
use crate::machine::stream::Stream;
use crate::manifest::Manifest;
use crate::{kernel, package, place};

/// Longest wait for the next sign of life.
const LIFE: Duration = Duration::from_secs(300);

/// The tests of this file.
pub(super) const CASES: &[Case] = &[
    Case {
        name: "images_that_cannot_be_entered_are_refused_by_name_when_built_and_at_the_launch",
        run: refused,
    },
    Case { name: "memtest86_tests_the_memory_of_a_guest_with_two_processors", run: memtest },
    Case { name: "xen_boots_and_runs_a_linux_dom0_on_two_processors", run: xen },
];

/// Memtest86+ knows nothing of hypervisors: it finds processors by ACPI, measures their rate by the interval timer, moves
/// itself through memory, and resets the machine when it is told to go.
fn memtest(scene: &Scene<'_>) -> Result<()> {
    let kernel = package::file("memtest86+", "boot/memtest86+x64.bin")?;
    let more = "cmdline = \"console=ttyS0,115200\"\nvcpus = 2\non_reboot = \"halt-machine\"\n";
    let (mut machine, mut console) = running(scene, &manifest("memtest", "linux", &kernel, more))?;
    for sign in ["Memtest86+", "MHz", "64MB", "2 Threads", "SMP: 2T (PAR)", "[Moving inversions", "All Cores"]
    {
        console.wait_for_prompt(sign, LIFE)?;
    }
    console.wait_for_prompt("#5 ", LIFE)?;
    let screen = console.again()?.lines().join("\n");
    let errors = screen.split("Errors: ").skip(1).find(|rest| !rest.starts_with("0 "));
    if let Some(errors) = errors {
        bail!("it finds errors: {}", errors.chars().take(20).collect::<String>());
    }
    console.send(b"\x1b")?;
    machine.log.wait_for("cause=reboot", LIFE).map(drop)
}

/// Xen goes back to real mode to ask a BIOS, measures time by the interval timer and insists on its interrupt, starts
/// the other processor, and runs Debian's kernel without any privilege of its own, whose shell prompts through
/// Xen's serial port. Nothing is typed there: an emulator that gets too little of its computer lets Xen miss turns of its
/// 16-bit clock, and then time in the dom0 all but stands still.
fn xen(scene: &Scene<'_>) -> Result<()> {
    let packed = place::read(&package::file("xen-hypervisor-4.17-amd64", "boot/xen-4.17-amd64.gz")?)?;
    let kernel = scene.folder.join("xen.elf");
    place::write(&kernel, &package::unpacked("gzip", &packed)?)?;
    let linux = kernel::ensure_generic(&kernel::CURRENT)?;
    // Xen and its modules pass over the first word of a command line, in which old boot loaders gave the file's name.
    let more = format!(
        "vcpus = 2\ncmdline = \"xen console=com1 com1=115200,8n1 dom0_max_vcpus=1 noreboot\"\n\
         modules = [{{ file = \"{}\", text = \"linux console=hvc0 rdinit=/bin/sh\" }}, \
         {{ file = \"{}\", text = \"initrd\" }}]\n",
        linux.display(),
        scene.bench.artifacts.file("initramfs.cpio").display(),
    );
    let text = manifest("xen", "multiboot", &kernel, &more).replace("memory_mib = 64", "memory_mib = 768");
    let (_machine, mut console) = running(scene, &text)?;
    for sign in [
        "Xen version 4.17",
        "Bootloader: Dolmen",
        "Multiboot-e820 RAM map:",
        "[0000000000100000, 000000002fffffff] (usable)",
        "Brought up 2 CPUs",
        "Dom0 kernel: 64-bit",
        "Linux version 6.12",
        "Run /bin/sh as init process",
        "# ",
    ] {
        console.wait_for_prompt(sign, LIFE)?;
    }
    Ok(())
}

/// A machine whose only guest runs, and the guest's console.
fn running(scene: &Scene<'_>, manifest: &str) -> Result<(Machine, Stream)> {
    let release = super::release(scene.bench, &scene.folder, manifest)?;
    let mut machine = scene.lab("bios")?.boot("one", &release.parts)?;
    lab::measured(&mut machine)?;
    machine.log.wait_for("guest runs name=", LAUNCH)?;
    let console = machine.console.take().context("no console")?;
    Ok((machine, console))
}

/// An image of a Debian package, its format, and why it cannot be a guest.
struct Refused {
    package: &'static str,
    file: &'static str,
    format: &'static str,
    because: &'static str,
}

const REFUSED: [Refused; 4] = [
    Refused {
        package: "ipxe",
        file: "boot/ipxe.lkrn",
        format: "linux",
        because: "boot protocol 0x0207 is older than 2.12",
    },
    Refused {
        package: "memtest86+",
        file: "boot/memtest86+ia32.bin",
        format: "linux",
        because: "the kernel has no 64-bit entry",
    },
    Refused {
        package: "multiboot",
        file: "usr/lib/multiboot/examples/kernel",
        format: "multiboot",
        because: "asks for features 0x4 (bit 2: a video mode)",
    },
    Refused {
        package: "ipxe",
        file: "boot/ipxe.efi",
        format: "pvh",
        because: "not an ELF file; check `format`",
    },
];

fn refused(scene: &Scene<'_>) -> Result<()> {
    for (number, image) in REFUSED.iter().enumerate() {
        let kernel = package::file(image.package, image.file)?;
        let name = format!("refused-{number}");
        let text = manifest(&name, image.format, &kernel, "");
        let release = super::image::release(scene, &name, &text)?;
        match Manifest::load(&scene.folder.join(&name).join("dolmen.toml")).map_err(|error| error.to_string())
        {
            Err(said) if said.contains(&format!("guest {name}: ")) && said.contains(image.because) => {}
            other => bail!("of {} the build says {:?}", image.file, other.map(drop)),
        }
        let mut machine = scene.lab("bios")?.boot(&name, &release.parts)?;
        machine.log.wait_for(&format!("no guest name={name}"), LAUNCH)?;
        let line = machine.log.wait_for("stop: ", LAUNCH)?;
        if !line.contains(image.because) {
            bail!("of {} the launch says {line}", image.file);
        }
    }
    Ok(())
}

/// One guest with its console on the second port.
fn manifest(name: &str, format: &str, kernel: &Path, more: &str) -> String {
    format!(
        "[[guest]]\nname = \"{name}\"\nmemory_mib = 64\nformat = \"{format}\"\nkernel = \"{}\"\n\
         consoles = [\"com2\"]\n{more}",
        kernel.display()
    )
}
