//! Makes bootable disk images: UEFI firmware finds the loader, the loader finds its files.

mod gpt;
pub(crate) mod task;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::artifact::Artifacts;
use crate::manifest::Manifest;
use crate::{place, process};

/// Fixed volume number: images are reproducible.
const VOLUME: &str = "D0118E4E";
/// Date of all files in an image.
const DATE: &str = "1767225600";
/// Files in the folder for Multiboot besides the guests': the loader, what it loads, GRUB's menu.
const LOADER: &str = "loader.elf";
const FOR_MULTIBOOT: [&str; 3] = ["launch.bin", "core.bin", "manifest.bin"];
const MENU: &str = "grub.cfg";

/// Files that go into an image.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    /// The UEFI loader.
    pub(crate) loader: PathBuf,
    /// The launch image.
    pub(crate) launch: PathBuf,
    /// The core.
    pub(crate) core: PathBuf,
    /// The canonical manifest.
    pub(crate) manifest: PathBuf,
    /// The guests' files in manifest order.
    pub(crate) components: Vec<PathBuf>,
    /// RAM that the core takes for itself, where the manifest says how much.
    pub(crate) region_mib: Option<u64>,
}

impl Parts {
    /// Parts of a normal start: what was built, and the manifest, whose bytes are written to `compiled`.
    pub(crate) fn collect(artifacts: &Artifacts, manifest: &Manifest, compiled: PathBuf) -> Result<Self> {
        place::write(&compiled, &manifest.bytes)?;
        Ok(Self {
            loader: artifacts.loader_uefi(),
            launch: artifacts.launch(),
            core: artifacts.core(),
            manifest: compiled,
            components: manifest.files(),
            region_mib: manifest.region_mib,
        })
    }

    /// What the loader is told on its command line, where no file tells it.
    pub(crate) fn arguments(&self) -> String {
        self.region_mib.map_or_else(String::new, |mib| format!("region_mib={mib}"))
    }

    /// Multiboot modules, in the loader's order.
    pub(crate) fn modules(&self) -> Vec<PathBuf> {
        let first = [&self.launch, &self.core, &self.manifest];
        first.into_iter().chain(&self.components).cloned().collect()
    }
}

/// Writes a disk image that boots `parts`.
pub(crate) fn write(parts: &Parts, image: &Path) -> Result<()> {
    let folder = image.parent().context("an image needs a folder")?;
    place::make(folder)?;
    let work = tempfile::tempdir_in(folder).context("cannot make a folder")?;
    let partition = work.path().join("esp");
    let mut files = vec![
        (parts.loader.clone(), "EFI/BOOT/BOOTX64.EFI".to_owned()),
        (parts.launch.clone(), "dolmen/launch.bin".to_owned()),
        (parts.core.clone(), "dolmen/core.bin".to_owned()),
        (parts.manifest.clone(), "dolmen/manifest.bin".to_owned()),
    ];
    let mut configuration = String::from(
        "launch=\\dolmen\\launch.bin\ncore=\\dolmen\\core.bin\nmanifest=\\dolmen\\manifest.bin\n",
    );
    if let Some(mib) = parts.region_mib {
        writeln!(configuration, "region_mib={mib}").context("cannot write to memory")?;
    }
    for (index, component) in parts.components.iter().enumerate() {
        let name = format!("guest{index}.bin");
        writeln!(configuration, "component=\\dolmen\\{name}").context("cannot write to memory")?;
        files.push((component.clone(), format!("dolmen/{name}")));
    }
    let listed = work.path().join("boot.cfg");
    place::write(&listed, configuration.as_bytes())?;
    files.push((listed, "dolmen/boot.cfg".to_owned()));

    format(&partition, &files)?;
    for directory in ["EFI", "EFI/BOOT", "dolmen"] {
        mtools("mmd", &partition, &[OsString::from(format!("::{directory}"))])?;
    }
    for (from, to) in &files {
        mtools("mcopy", &partition, &[from.clone().into_os_string(), format!("::{to}").into()])?;
    }
    place::write(image, &gpt::wrap(&place::read(&partition)?)?)
}

/// Whether [`write_multiboot`] writes a file of this name.
fn is_for_multiboot(name: &str) -> bool {
    let number = name.strip_prefix("guest").and_then(|rest| rest.strip_suffix(".bin"));
    let is_guest = number.is_some_and(|number| number.parse::<usize>().is_ok());
    is_guest || FOR_MULTIBOOT.contains(&name) || [LOADER, MENU].contains(&name)
}

/// Writes a folder that GRUB boots `parts` from, as does anything else that speaks Multiboot.
pub(crate) fn write_multiboot(parts: &Parts, loader: &Path, folder: &Path) -> Result<()> {
    let name = folder.file_name().and_then(|name| name.to_str()).context("a folder needs a name")?;
    if folder.exists() {
        std::fs::remove_dir_all(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    place::copy(loader, &folder.join(LOADER))?;
    let fixed = FOR_MULTIBOOT.map(str::to_owned);
    let names = fixed.into_iter().chain((0..parts.components.len()).map(|index| format!("guest{index}.bin")));
    // GRUB would unpack a compressed file, and another file would be measured.
    let mut menu =
        format!("menuentry \"Dolmen\" {{\n    multiboot2 /{name}/{LOADER} {}\n", parts.arguments());
    for (file, to) in parts.modules().iter().zip(names) {
        place::copy(file, &folder.join(&to))?;
        writeln!(menu, "    module2 --nounzip /{name}/{to}").context("cannot write to memory")?;
    }
    menu.push_str("}\n");
    place::write(&folder.join(MENU), menu.as_bytes())
}

/// Said by GRUB on the serial port before it starts the loader.
pub(crate) const DISC_SAYS: &str = "GRUB: starting Dolmen";

/// Makes a CD image from what [`write_multiboot`] wrote: GRUB for machines with BIOS, whose menu goes on with the
/// folder's. A disk that holds it boots as well.
pub(crate) fn write_disc(multiboot: &Path, image: &Path) -> Result<()> {
    let name = multiboot.file_name().and_then(|name| name.to_str()).context("a folder needs a name")?;
    let folder = image.parent().context("an image needs a folder")?;
    place::make(folder)?;
    let work = tempfile::tempdir_in(folder).context("cannot make a folder")?;
    for entry in multiboot.read_dir().with_context(|| format!("cannot list {}", multiboot.display()))? {
        let file = entry?;
        place::copy(&file.path(), &work.path().join(name).join(file.file_name()))?;
    }
    let menu = format!(
        "serial --unit=0 --speed=115200\nterminal_output console serial\nset timeout=0\necho \"{DISC_SAYS}\"\n\
         source /{name}/grub.cfg\n"
    );
    place::write(&work.path().join("boot/grub/grub.cfg"), menu.as_bytes())?;
    process::output(
        Command::new("grub-mkrescue")
            .args(["--directory=/usr/lib/grub/i386-pc", "--compress=no", "-o"])
            .args([image, work.path()])
            .env("SOURCE_DATE_EPOCH", DATE),
    )
    .context("cannot make a CD image; `cargo xtask setup` installs what makes it")
    .map(drop)
}

/// Makes an empty FAT32 file system with room for `files`.
fn format(partition: &Path, files: &[(PathBuf, String)]) -> Result<()> {
    let mut bytes = 0_u64;
    for (path, _) in files {
        let length = path.metadata().with_context(|| format!("no file {}", path.display()))?.len();
        bytes = bytes.saturating_add(length.next_multiple_of(4096));
    }
    // FAT32 needs 65,525 clusters to be FAT32: 36 MiB with the smallest ones, and some room to spare.
    let mib = bytes.div_ceil(1 << 20).saturating_add(4).max(40);
    let file = std::fs::File::create(partition).context("cannot make a partition")?;
    file.set_len(mib.saturating_mul(1 << 20)).context("cannot make a partition")?;
    let sectors = mib.saturating_mul(2048).to_string();
    let options =
        ["-F", "-v", "DOLMEN", "-N", VOLUME, "-T", &sectors, "-h", "64", "-s", "32", "-H", "2048", "::"];
    mtools("mformat", partition, &options.map(OsString::from))
}

fn mtools(tool: &str, partition: &Path, arguments: &[OsString]) -> Result<()> {
    let mut command = Command::new(tool);
    command
        .arg("-i")
        .arg(partition)
        .args(arguments)
        .env("MTOOLS_SKIP_CHECK", "1")
        .env("SOURCE_DATE_EPOCH", DATE);
    process::output(&mut command).map(drop)
}
