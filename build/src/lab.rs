//! A machine with its TPM, switched on and off as a story or a test needs it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::artifact::Artifacts;
use crate::image::{self, Parts};
use crate::machine::fault::Plan;
use crate::machine::profile::{Firmware, Profile};
use crate::machine::relay::ToolTpm;
use crate::machine::shell::Shell;
use crate::machine::stream::Stream;
use crate::machine::swtpm::Record;
use crate::machine::{ConsoleTo, Machine, Medium, Setting, swtpm};
use crate::manifest::Manifest;
use crate::measure::{self, Reference};
use crate::setup::Tools;
use crate::{machine, place};

/// Longest wait for firmware, loader, launch and measurement.
pub(crate) const LAUNCH: Duration = Duration::from_secs(120);
/// Longest wait for the guest's shell after that.
pub(crate) const GUEST: Duration = Duration::from_secs(240);

/// A machine that resets or switches itself off stands still instead, and its TPM keeps what it holds.
pub(crate) const STANDS_STILL: [&str; 3] = ["-no-reboot", "-action", "shutdown=pause"];

/// One machine that lives through several power cycles.
#[derive(Clone, Debug)]
pub(crate) struct Lab<'a> {
    tools: &'a Tools,
    artifacts: &'a Artifacts,
    profile: Profile,
    folder: PathBuf,
    record: Record,
    bus: Option<Vec<Plan>>,
}

impl<'a> Lab<'a> {
    /// A new machine with a TPM whose given banks are active.
    pub(crate) fn new(
        tools: &'a Tools,
        artifacts: &'a Artifacts,
        machine: &str,
        folder: &Path,
        banks: &str,
    ) -> Result<Self> {
        if folder.exists() {
            std::fs::remove_dir_all(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
        }
        place::make(folder)?;
        let profile = Profile::load(machine)?;
        if profile.tpm.is_some() {
            swtpm::manufacture(&folder.join("tpm"), banks, None)?;
        }
        Ok(Self {
            tools,
            artifacts,
            profile,
            folder: folder.to_owned(),
            record: Record::default(),
            bus: None,
        })
    }

    /// The same machine with a TPM that records every command.
    pub(crate) fn recording(mut self) -> Self {
        self.record = Record::Commands;
        self
    }

    /// The same machine with somebody on its TPM's bus, who does as planned from each start.
    pub(crate) fn with_tpm_bus(mut self, plans: &[Plan]) -> Self {
        self.bus = Some(plans.to_vec());
        self
    }

    /// The same machine with a new TPM, all banks active, for whose endorsement keys `maker` vouches.
    pub(crate) fn with_tpm_by(self, maker: &swtpm::Maker) -> Result<Self> {
        swtpm::manufacture(&self.folder.join("tpm"), crate::e2e::ALL_BANKS, Some(maker))?;
        Ok(self)
    }

    /// The same machine with so many processors.
    pub(crate) const fn with_cpus(mut self, cpus: u32) -> Self {
        self.profile.cpus = cpus;
        self
    }

    /// The machine's folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Switches the machine on with these parts; where it would reset, it stands still.
    pub(crate) fn boot(&self, cycle: &str, parts: &Parts) -> Result<Machine> {
        self.boot_with(cycle, parts, None, &STANDS_STILL.map(str::to_owned))
    }

    /// Switches the machine on with these parts, another loader with arguments, and more QEMU arguments.
    pub(crate) fn boot_with(
        &self,
        cycle: &str,
        parts: &Parts,
        loader: Option<(&Path, &str)>,
        more: &[String],
    ) -> Result<Machine> {
        let medium = match self.profile.firmware {
            Firmware::Bios => {
                let usual = self.artifacts.loader_multiboot();
                let own = parts.arguments();
                let (kernel, arguments) = loader.unwrap_or((&usual, &own));
                Medium::Multiboot {
                    kernel: kernel.to_owned(),
                    modules: parts.modules(),
                    arguments: arguments.to_owned(),
                }
            }
            Firmware::Uefi => {
                let disk = self.folder.join(format!("{cycle}.img"));
                image::write(parts, &disk)?;
                Medium::Disk(disk)
            }
        };
        self.boot_medium(cycle, &medium, more)
    }

    /// Switches the machine on with this medium, and more QEMU arguments.
    pub(crate) fn boot_medium(&self, cycle: &str, medium: &Medium, more: &[String]) -> Result<Machine> {
        Machine::start(&Setting {
            qemu: &self.tools.qemu,
            profile: &self.profile,
            medium,
            folder: &self.folder,
            cycle,
            more,
            console: ConsoleTo::Harness,
            record: self.record,
            bus: self.bus.as_deref(),
        })
    }

    /// Powers the TPM alone, as somebody does who took the board home: starts it and serves it to tools.
    pub(crate) fn tpm_alone(&self) -> Result<(swtpm::Swtpm, ToolTpm)> {
        let log = self.folder.join("tpm-alone.log");
        let tpm = swtpm::Swtpm::start(&self.folder.join("tpm"), &machine::sockets()?, &log, self.record)?;
        let mut attached = tpm.attach()?;
        attached.reset()?;
        let tool = ToolTpm::serve(attached)?;
        tool.run("tpm2_startup", &["-c"])?;
        Ok((tpm, tool))
    }
}

/// What a start consists of: manifest, files, predicted registers.
#[derive(Clone, Debug)]
pub(crate) struct Release {
    /// The compiled manifest.
    pub(crate) manifest: Manifest,
    /// The files.
    pub(crate) parts: Parts,
    /// The reference values.
    pub(crate) reference: Reference,
}

impl Release {
    /// What was built, with a manifest of this text, kept in `folder`.
    pub(crate) fn of(artifacts: &Artifacts, folder: &Path, manifest: &str) -> Result<Self> {
        let path = folder.join("dolmen.toml");
        place::write(&path, manifest.as_bytes())?;
        let manifest = Manifest::load(&path)?;
        let parts = Parts::collect(artifacts, &manifest, folder.join("manifest.bin"))?;
        let reference = measure::reference(&parts, &manifest)?;
        Ok(Self { manifest, parts, reference })
    }

    /// What was built, with the manifest of this path.
    pub(crate) fn load(artifacts: &Artifacts, manifest: &Path) -> Result<Self> {
        let manifest = Manifest::load(manifest)?;
        let parts = Parts::collect(artifacts, &manifest, artifacts.file("manifest.bin"))?;
        let reference = measure::reference(&parts, &manifest)?;
        Ok(Self { manifest, parts, reference })
    }
}

/// Said by the core once PCR 17 and 18 have their final values.
pub(crate) const MEASURED: &str = "measure: keys derived";

/// Waits until everything is measured, and returns the line that says so; a stop is an error.
pub(crate) fn measured(machine: &mut Machine) -> Result<String> {
    let line = machine.log.find("the end of measuring", LAUNCH, |line| {
        (line.contains("stop: ") || line.contains(MEASURED)).then(|| line.to_owned())
    })?;
    if line.contains("stop: ") {
        bail!("the launch stopped: {line}");
    }
    Ok(line)
}

/// Waits for the guest's shell.
pub(crate) fn shell(machine: &mut Machine) -> Result<Shell> {
    Shell::wait(machine.console.take().context("the console is somebody else's")?, GUEST)
}

/// Waits for the shells of all guests, in the manifest's order.
pub(crate) fn shells(machine: &mut Machine, manifest: &Manifest) -> Result<Vec<Shell>> {
    let consoles: Vec<Stream> =
        manifest.guests.iter().map(|guest| machine.console_of(guest)).collect::<Result<_>>()?;
    consoles.into_iter().map(|console| Shell::wait(console, GUEST)).collect()
}

/// Switches the machine off hard and serves its TPM, still powered, to tools.
pub(crate) fn autopsy(machine: Machine) -> Result<(swtpm::Swtpm, ToolTpm)> {
    let tpm = machine.cut_power()?;
    let tool = ToolTpm::serve(tpm.attach()?)?;
    Ok((tpm, tool))
}

/// A copy of `file` with one bit of one byte changed, at the place that `choose` finds.
pub(crate) fn flipped(file: &Path, to: &Path, choose: impl Fn(&[u8]) -> Option<usize>) -> Result<usize> {
    let mut bytes = place::read(file)?;
    let at = choose(&bytes).with_context(|| format!("nothing to change in {}", file.display()))?;
    let byte = bytes.get_mut(at).context("the place is outside of the file")?;
    *byte ^= 0x20;
    place::write(to, &bytes)?;
    Ok(at)
}

/// Where `text` occurs, exactly once, in `bytes`.
pub(crate) fn once(bytes: &[u8], text: &[u8]) -> Option<usize> {
    let mut places = bytes.windows(text.len()).enumerate().filter(|(_, window)| *window == text);
    let (at, _) = places.next()?;
    places.next().is_none().then_some(at)
}
