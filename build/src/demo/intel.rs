//! The other story: guests on an Intel processor, by the development image. Nothing is measured there, and it is said.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use super::narrator::{Detail, Narrator};
use crate::artifact::{self, Artifacts};
use crate::lab::Release;
use crate::machine::bochs::{Bochs, Model};
use crate::machine::shell::Shell;
use crate::{place, ui};

/// What `--machine` calls it.
pub(super) const NAME: &str = "bochs";
/// Folders of its two machines.
pub(super) const OWN: [&str; 2] = [RELEASE, DEVELOPMENT];
const RELEASE: &str = "release";
const DEVELOPMENT: &str = "development";
/// One processor, which Bochs executes several times as fast as two; memory for both guests, the hypervisor, and what the
/// guests are loaded from.
const MODEL: Model<'_> = Model { processor: "corei7_skylake_x", count: 1, memory_mib: 2000 };
/// Longest wait for BIOS, GRUB and the hypervisor, which hashes the guests' files, and for a guest's shell after that.
const START: Duration = Duration::from_secs(900);
const GUEST: Duration = Duration::from_secs(1800);

/// Tells it.
pub(super) fn tell(artifacts: &Artifacts, folder: &Path) -> Result<()> {
    ui::heading("The machine");
    ui::note(
        "Intel computer with one processor (Skylake, emulated by Bochs), BIOS; no dynamic launch, IOMMU or TPM",
    );
    ui::note("so this is the development image: another loader, first stage and core than the release's");
    let development = artifact::development(&artifacts.folder)?;
    let release = Release::load(artifacts, &place::root().join("dolmen.toml"))?;
    let parts = development.instead_of(release.parts.clone());
    ui::heading("1. The release refuses this machine");
    refused(&release, artifacts, &folder.join(RELEASE))?;
    ui::heading("2. The development image starts; two guests run");
    let mut machine = Bochs::start(&MODEL, &parts, &development.loader, &folder.join(DEVELOPMENT))?;
    Narrator::follow(&machine.log, Detail::Unmeasured);
    machine.log.wait_for("UNMEASURED development image: DMA is open", START)?;
    ui::good("it says UNMEASURED before anything else");
    machine.log.wait_for("serve: guest runs", START)?;
    let names: Vec<&str> = release.manifest.guests.iter().map(|guest| guest.name.as_str()).collect();
    let progress = ui::Progress::start(&format!("Debian's kernels boot, as {}", names.join(" and ")));
    let mut shells = Vec::new();
    for name in &names {
        shells.push(Shell::wait(machine.log.guest(name)?, GUEST)?);
    }
    progress.done();
    for (name, shell) in names.iter().zip(&mut shells) {
        ask(name, shell)?;
    }
    ui::heading("What that means");
    ui::note("the guests are kept apart by VMX and nested paging, as on AMD by SVM");
    ui::note("nobody measured what keeps them apart: there is nothing to quote and nothing to seal to");
    ui::note("a relying party sees that no evidence comes, and that the image of a release is another one");
    Ok(())
}

/// The release ends in a sentence.
fn refused(release: &Release, artifacts: &Artifacts, folder: &Path) -> Result<()> {
    let mut machine = Bochs::start(&MODEL, &release.parts, &artifacts.loader_multiboot(), folder)?;
    let line = machine.log.find("a refusal", START, |line| {
        (line.contains("stop: ") || line.contains("guest runs")).then(|| line.to_owned())
    })?;
    if !line.contains("stop: this machine lacks") {
        bail!("the release does not refuse: {line}");
    }
    ui::good(&line);
    Ok(())
}

/// A guest runs, sees what it runs on, and is refused what only a launch can give.
fn ask(name: &str, shell: &mut Shell) -> Result<()> {
    ui::good(&format!("{name}: its shell answers: {}", shell.expect("uname -sr")?));
    let status = shell.expect("dolmen status")?;
    let Some(line) = status.lines().find(|line| line.contains("UNMEASURED")) else {
        bail!("{name} is not told that nothing was measured: {status}");
    };
    ui::good(&format!("{name}: `dolmen status` says: {}", line.trim()));
    for (what, command) in [
        ("quote", "dolmen --frame quote --nonce 00"),
        ("seal", "printf %s secret | dolmen --frame seal --label demo -"),
    ] {
        let answer = shell.run(command)?;
        if answer.status == 0 || !answer.text().contains("NOT_LAUNCHED") {
            bail!("{name}: {what} is answered with {}: {}", answer.status, answer.text());
        }
        ui::good(&format!("{name}: {what} is refused: {}", answer.text().trim()));
    }
    Ok(())
}
