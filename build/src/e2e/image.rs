//! Guests of every image format: measured as predicted, entered as their specification says, refused by name.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Case, Scene, launch};
use crate::lab::{self, LAUNCH, Release};
use crate::manifest::Manifest;
use crate::{measure, place, process};

/// Longest wait for a way out.
const END: Duration = Duration::from_secs(60);

/// The tests of this file.
pub(super) const CASES: &[Case] = &[
    Case { name: "an_image_that_does_not_fit_is_refused_at_launch_by_name_too", run: does_not_fit },
    Case { name: "three_guests_of_three_formats_run_and_are_measured_as_predicted", run: three_formats },
    Case { name: "what_the_machine_lacks_is_refused_with_the_name_of_the_guest", run: machine_lacks },
    Case { name: "a_pvh_guest_of_64_bits_finds_what_its_specification_promises", run: pvh_64 },
    Case { name: "a_pvh_guest_of_32_bits_finds_what_its_specification_promises", run: pvh_32 },
    Case { name: "a_multiboot_elf_guest_finds_what_its_specification_promises", run: multiboot_elf },
    Case { name: "a_multiboot_guest_with_load_addresses_finds_what_it_promises", run: multiboot_addresses },
];

/// A release of this manifest, whatever its images are.
pub(super) fn release(scene: &Scene<'_>, name: &str, text: &str) -> Result<Release> {
    let folder = scene.folder.join(name);
    let path = folder.join("dolmen.toml");
    place::write(&path, text.as_bytes())?;
    let manifest = Manifest::load_with_any_images(&path)?;
    let mut parts = scene.micro.parts.clone();
    parts.manifest = folder.join("manifest.bin");
    place::write(&parts.manifest, &manifest.bytes)?;
    parts.components = manifest.files();
    let reference = measure::reference(&parts, &manifest)?;
    Ok(Release { manifest, parts, reference })
}

/// The kernel wants to be where a guest of 16 MiB has no RAM: `cargo xtask image` refuses it, and so does the core.
fn does_not_fit(scene: &Scene<'_>) -> Result<()> {
    let text = "[[guest]]\nname = \"tight\"\nmemory_mib = 16\nkernel = \"built:vmlinuz\"\n";
    let tight = release(scene, "tight", text)?;
    let path = scene.folder.join("tight/dolmen.toml");
    match Manifest::load(&path).map_err(|error| error.to_string()) {
        Err(complaint) if complaint.contains("4:10: guest tight: the kernel cannot be loaded: needs 0x") => {}
        other => bail!("the build says {:?}", other.map(drop)),
    }
    let mut machine = scene.lab("bios")?.boot("one", &tight.parts)?;
    machine.log.wait_for("no guest name=tight", LAUNCH)?;
    let line = machine.log.wait_for("stop: ", LAUNCH)?;
    if !line.contains("needs 0x") || !line.contains("which is not RAM of the guest") {
        bail!("it stopped, but not for its size: {line}");
    }
    machine.log.wait_for("capped", END)?;
    let (_power, tpm) = lab::autopsy(machine)?;
    match launch::check(&tpm, &tight.reference, &["sha256"]) {
        Ok(()) => bail!("the registers were not capped"),
        Err(_) => Ok(()),
    }
}

/// Linux, PVH and Multiboot side by side; the first one's shell shows that it runs with the others there.
fn three_formats(scene: &Scene<'_>) -> Result<()> {
    let kernel = kernel(scene)?;
    place::write(&scene.folder.join("three/one.bin"), &contents(5000))?;
    let bare = |name: &str, format: &str| {
        format!(
            "[[guest]]\nname = \"{name}\"\nmemory_mib = 32\nformat = \"{format}\"\nkernel = \"{}\"\n\
             modules = [{{ file = \"one.bin\", text = \"{name}\" }}]\ncmdline = \"handover\"\nconsoles = [\"none\"]\n",
            kernel.display()
        )
    };
    let linux = "[host]\nregion_mib = 64\n\n[[guest]]\nname = \"linux\"\nmemory_mib = 512\nkernel = \"built:vmlinuz\"\n\
                 initrd = \"built:initramfs.cpio\"\ncmdline = \"console=ttyS0,115200\"\nconsoles = [\"com2\"]\n";
    let text = format!("{linux}\n{}\n{}", bare("pvh", "pvh"), bare("multiboot", "multiboot"));
    let three = release(scene, "three", &text)?;
    Manifest::load(&scene.folder.join("three/dolmen.toml"))?;
    let mut machine = scene.lab("bios")?.boot("one", &three.parts)?;
    for guest in &three.reference.guests {
        let said = format!("guest name={} g0={}", guest.name, guest.g0);
        machine.log.wait_for(&said, LAUNCH).with_context(|| format!("what was predicted: {said}"))?;
    }
    lab::measured(&mut machine)?;
    for guest in &three.reference.guests {
        machine.log.wait_for(&format!("guest runs name={}", guest.name), LAUNCH)?;
    }
    drop(lab::shell(&mut machine)?);
    let (_power, tpm) = lab::autopsy(machine)?;
    launch::check(&tpm, &three.reference, &["sha1", "sha256", "sha384", "sha512"])
}

fn machine_lacks(scene: &Scene<'_>) -> Result<()> {
    let kernel = kernel(scene)?;
    for (name, more, want) in [
        ("pinned", "memory_mib = 16\naffinity = [0, 9]", "a processor that this machine lacks"),
        ("huge", "memory_mib = 65536", "stop: "),
    ] {
        let text = format!(
            "[[guest]]\nname = \"{name}\"\nformat = \"pvh\"\nkernel = \"{}\"\n{more}\n",
            kernel.display()
        );
        let release = release(scene, name, &text)?;
        let mut machine = scene.lab("bios")?.boot(name, &release.parts)?;
        machine.log.wait_for(&format!("no guest name={name}"), LAUNCH)?;
        machine.log.wait_for(want, END)?;
        machine.log.wait_for("capped", END)?;
    }
    Ok(())
}

/// What the modules are made of: lengths that end in the middle of a page, and texts beside them.
const MODULES: [(&str, usize, &str); 3] =
    [("one.bin", 5000, "one -a"), ("two.bin", 1, ""), ("loose.bin", 4097, "loose")];

fn pvh_64(scene: &Scene<'_>) -> Result<()> {
    let kernel = kernel(scene)?;
    is_pvh(&told(scene, "pvh", &kernel)?)
}

fn pvh_32(scene: &Scene<'_>) -> Result<()> {
    let kernel = to_32_bits(&kernel(scene)?, &scene.folder)?;
    is_pvh(&told(scene, "pvh", &kernel)?)
}

/// The same file, its header rewritten so that the loader must read the program headers.
fn multiboot_elf(scene: &Scene<'_>) -> Result<()> {
    let kernel = to_32_bits(&kernel(scene)?, &scene.folder)?;
    let mut bytes = place::read(&kernel)?;
    let magic = 0x1bad_b002_u32;
    let at = lab::once(&bytes, &magic.to_le_bytes()).context("no Multiboot header")?;
    let flags = 3_u32;
    let header = [flags, 0_u32.wrapping_sub(magic.wrapping_add(flags))].map(u32::to_le_bytes);
    let slot = bytes.get_mut(at.saturating_add(4)..at.saturating_add(12)).context("a header cut short")?;
    slot.copy_from_slice(header.as_flattened());
    place::write(&kernel, &bytes)?;
    is_multiboot(&told(scene, "multiboot", &kernel)?)
}

fn multiboot_addresses(scene: &Scene<'_>) -> Result<()> {
    let kernel = kernel(scene)?;
    is_multiboot(&told(scene, "multiboot", &kernel)?)
}

pub(super) fn kernel(scene: &Scene<'_>) -> Result<PathBuf> {
    let guest = scene.micro.manifest.guests.first().context("no guest")?;
    Ok(guest.files.first().context("no kernel")?.path.clone())
}

/// The same program as an ELF file of 32 bits.
fn to_32_bits(kernel: &Path, folder: &Path) -> Result<PathBuf> {
    place::make(folder)?;
    let to = folder.join("guest-32.elf");
    process::output(Command::new("objcopy").args(["-O", "elf32-i386"]).arg(kernel).arg(&to))?;
    Ok(to)
}

/// What the guest tells of its handover.
fn told(scene: &Scene<'_>, format: &str, kernel: &Path) -> Result<Vec<String>> {
    let folder = scene.folder.join("told");
    for (name, length, _) in MODULES {
        place::write(&folder.join(name), &contents(length))?;
    }
    let list = |modules: &[(&str, usize, &str)]| {
        let tables =
            modules.iter().map(|(name, _, text)| format!("{{ file = \"{name}\", text = \"{text}\" }}"));
        tables.collect::<Vec<_>>().join(", ")
    };
    let (measured, loose) = MODULES.split_at(2);
    let text = format!(
        "[[guest]]\nname = \"tells\"\nmemory_mib = 64\nformat = \"{format}\"\nkernel = \"{}\"\nmodules = [{}]\n\
         data = [{}]\ncmdline = \"a=1 b handover\"\nconsoles = [\"com2\"]\non_power_off = \"halt-machine\"\n",
        kernel.display(),
        list(measured),
        list(loose),
    );
    let path = folder.join("dolmen.toml");
    place::write(&path, text.as_bytes())?;
    Manifest::load(&path)?;
    let release = release(scene, "told", &text)?;
    let mut machine = scene.lab("bios")?.boot("one", &release.parts)?;
    let measured = lab::measured(&mut machine)?;
    let mut console = machine.console.take().with_context(|| format!("no console after {measured}"))?;
    let mut lines = Vec::new();
    console.find("the end of what the guest tells", LAUNCH, |line| {
        let told = line.trim_end().strip_prefix("handover ")?;
        lines.push(told.to_owned());
        (told == "end").then_some(())
    })?;
    let (_power, tpm) = lab::autopsy(machine)?;
    drop(tpm);
    Ok(lines)
}

fn contents(length: usize) -> Vec<u8> {
    (0..length).map(|n| u8::try_from(n % 251).unwrap_or(0)).collect()
}

/// The lines about modules and memory are the same for both protocols, the list's order included.
fn common(no_text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for (_, length, text) in MODULES {
        let add = |sum: u32, byte: &u8| sum.wrapping_mul(31).wrapping_add(u32::from(*byte));
        let sum = contents(length).iter().fold(0, add);
        lines.push(format!("module offset=0x0 length={length} sum={sum:#x}"));
        let place = if text.is_empty() { no_text } else { "somewhere" };
        lines.push(format!("text at={place} [{text}]"));
    }
    for (start, length, kind) in [
        (0x0, 0x9_fc00, 1),
        (0x9_fc00, 0x6_0400, 2),
        (0x10_0000, 0x3f0_0000, 1),
        (0xfec0_0000_u64, 0x1000, 2),
        (0xfee0_0000, 0x1000, 2),
    ] {
        lines.push(format!("map {start:#x} {length:#x} {kind}"));
    }
    lines
}

/// Takes `name=0x…` out of a line.
fn number(lines: &[String], name: &str) -> Result<u32> {
    let words = lines.iter().flat_map(|line| line.split_whitespace());
    let mut found = words.filter_map(|word| word.strip_prefix(name)?.strip_prefix("=0x"));
    let digits = found.next().with_context(|| format!("nothing is told of {name}"))?;
    u32::from_str_radix(digits, 16).with_context(|| format!("{name}={digits}"))
}

/// What both protocols promise of the processor: protected mode without paging, interrupts and traps off,
/// flat segments. Then the rest of the lines.
fn processor(lines: &[String], want_cr0: u32) -> Result<&[String]> {
    // The extension type bit cannot be cleared on any processor that virtualises.
    let cr0 = number(lines, "cr0")? & !0x10;
    if cr0 & want_cr0 != 1 || number(lines, "eflags")? & 0x2_0300 != 0 {
        bail!("control registers: {lines:?}");
    }
    if !lines.iter().any(|line| line.starts_with("segments ") && line.ends_with("ok=true")) {
        bail!("segments: {lines:?}");
    }
    lines.get(3..).context("too little is told")
}

fn is_pvh(lines: &[String]) -> Result<()> {
    let rest = processor(lines, u32::MAX)?;
    if number(lines, "cr4")? != 0 || number(lines, "ebx")? == 0 {
        bail!("registers: {lines:?}");
    }
    let mut want = vec![
        "pvh magic=0x336ec578 version=1 flags=0 modules=3 reserved=0".to_owned(),
        "cmdline at=somewhere [a=1 b handover]".to_owned(),
    ];
    want.extend(common("nowhere"));
    want.push(format!("rsdp {:#x}", u64::from_le_bytes(*b"RSD PTR ")));
    want.push("end".to_owned());
    same(rest, &want)
}

fn is_multiboot(lines: &[String]) -> Result<()> {
    let rest = processor(lines, 0x8000_0001)?;
    if number(lines, "eax")? != 0x2bad_b002 {
        bail!("registers: {lines:?}");
    }
    let mut want = vec![
        "multiboot flags=0x24d lower=639 upper=64512".to_owned(),
        "cmdline at=somewhere [a=1 b handover]".to_owned(),
        "loader at=somewhere [Dolmen]".to_owned(),
    ];
    want.extend(common("somewhere"));
    want.push("end".to_owned());
    same(rest, &want)
}

fn same(told: &[String], want: &[String]) -> Result<()> {
    let pairs = told.iter().zip(want).find(|(told, want)| told != want);
    match pairs {
        Some((told, want)) => bail!("the guest tells {told:?}, promised is {want:?}"),
        None if told.len() != want.len() => {
            bail!("{} lines are told, promised are {}", told.len(), want.len())
        }
        None => Ok(()),
    }
}
