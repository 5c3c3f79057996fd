//! `cargo xtask run`: an emulated machine to play with.

use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use anyhow::{Context, Result};
use dolmen_vm::manifest::Console;

use crate::artifact;
use crate::image::{self, Parts};
use crate::machine::profile::{Firmware, Profile};
use crate::machine::swtpm::Record;
use crate::machine::terminal::{self, Raw};
use crate::machine::{ConsoleTo, Machine, Medium, Setting};
use crate::manifest::Manifest;
use crate::{place, setup, ui};

/// Longest run.
const LONGEST: Duration = Duration::from_secs(3600);
/// Time between two looks whether the machine is off.
const GLANCE: Duration = Duration::from_millis(200);

/// What the user chose.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Manifest to run.
    #[arg(long, default_value = "dolmen.toml")]
    manifest: std::path::PathBuf,
    /// Machine profile: a file of qemu/machines, without `.toml`.
    #[arg(long, default_value = "bios")]
    machine: String,
    /// Forget the machine's TPM and firmware settings first.
    #[arg(long)]
    fresh: bool,
    /// More arguments for QEMU.
    #[arg(last = true)]
    qemu: Vec<String>,
}

/// Runs the machine until it is switched off.
pub(crate) fn run(options: &Options) -> Result<()> {
    let tools = setup::ensure()?;
    let artifacts = artifact::build(&tools)?;
    let manifest = Manifest::load(&options.manifest)?;
    let profile = Profile::load(&options.machine)?;
    let parts = Parts::collect(&artifacts, &manifest, artifacts.file("manifest.bin"))?;
    let folder = place::output().join("machines").join(&options.machine);
    if options.fresh && folder.exists() {
        std::fs::remove_dir_all(&folder).context("cannot remove the machine's folder")?;
    }
    let medium = medium(&profile, &artifacts, &parts)?;
    let has_port =
        manifest.guests.iter().any(|guest| guest.config.consoles.contains(&Console::Com2.to_wire()));
    let (console, hint) = match has_port {
        true => (ConsoleTo::Terminal, "the console on COM2 is yours"),
        false => (ConsoleTo::Harness, "the shared console is yours; Ctrl-^ NAME Enter chooses the guest"),
    };
    ui::heading(&format!("{}: {hint}; Ctrl-A X switches the machine off", profile.description));
    ui::note(&format!("transcripts and TPM state: {}", folder.display()));
    let mut machine = Machine::start(&Setting {
        qemu: &tools.qemu,
        profile: &profile,
        medium: &medium,
        folder: &folder,
        cycle: "run",
        more: &options.qemu,
        console,
        record: Record::default(),
        bus: None,
    })?;
    if has_port {
        machine.log.follow(|line| println!("\r│ {line}\r"));
        machine.wait_off(LONGEST)?;
    } else {
        let _raw = Raw::enter()?;
        let off = terminal::attach(&machine.log)?;
        while !machine.is_off()? && off.recv_timeout(GLANCE) == Err(RecvTimeoutError::Timeout) {}
    }
    ui::note("the machine is off");
    Ok(())
}

/// The medium that fits the machine's firmware.
pub(crate) fn medium(profile: &Profile, artifacts: &artifact::Artifacts, parts: &Parts) -> Result<Medium> {
    match profile.firmware {
        Firmware::Bios => Ok(Medium::Multiboot {
            kernel: artifacts.loader_multiboot(),
            modules: parts.modules(),
            arguments: parts.arguments(),
        }),
        Firmware::Uefi => {
            let path = artifacts.file("dolmen.img");
            image::write(parts, &path)?;
            Ok(Medium::Disk(path))
        }
    }
}
