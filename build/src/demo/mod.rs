//! `cargo xtask demo`: the whole story on one emulated machine, each claim checked as it is made.

mod act;
mod intel;
mod narrator;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

use crate::artifact::Artifacts;
use crate::lab::{Lab, Release};
use crate::machine::profile::Profile;
use crate::manifest::CompiledGuest;
use crate::proof::RelyingParty;
use crate::setup::Tools;
use crate::{artifact, e2e, folder, place, setup, ui};

pub(crate) use act::nonce;

/// Says that a folder is a demo's: the next one replaces what is in it.
const MARK: &str = ".dolmen-demo";
/// Where the machine lives in that folder.
const MACHINE: &str = "machine";

/// What the user chose.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Keep transcripts, evidence and TPM state in this folder, which is new, empty or an earlier demo's.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// The machine: a file of qemu/machines, without `.toml`; or `bochs`, which has an Intel processor.
    #[arg(long, default_value = "uefi")]
    machine: String,
}

/// Tells the story; success only if every part of it was so.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let folder = match &options.keep {
        Some(folder) => claim(folder)?,
        None => place::output().join("demo"),
    };
    let tools = setup::ensure()?;
    ui::heading("Building the hypervisor and its guest");
    let artifacts = artifact::build(&tools)?;
    let start = Instant::now();
    prepare(&folder)?;
    if options.machine == intel::NAME {
        return Ok(end(intel::tell(&artifacts, &folder), start, options.keep.is_some(), &folder));
    }
    let release = Release::load(&artifacts, &place::root().join("dolmen.toml"))?;
    let profile = Profile::load(&options.machine)?;
    ui::heading("The machine");
    ui::note(&format!("{} (emulated: no hardware virtualisation is needed)", profile.description));
    for (guest, predicted) in release.manifest.guests.iter().zip(&release.reference.guests) {
        ui::note(&format!("guest {}: {}, unmodified", guest.name, kernel_of(guest, &artifacts, &tools)));
        ui::fact(&format!("its identity, G0 {}", predicted.g0));
    }
    ui::note(&format!("the processor will measure {} bytes of launch image", release.reference.launch_bytes));
    let bank = release.reference.bank("sha256")?;
    ui::note("predicted from the files alone, before anything runs (SHA-256 bank):");
    ui::fact(&format!("PCR 17 {}", bank.pcr17));
    ui::fact(&format!("PCR 18 {}", bank.pcr18));
    let lab = Lab::new(&tools, &artifacts, &options.machine, &folder.join(MACHINE), e2e::ALL_BANKS)?;
    Ok(end(tell(&lab, &artifacts, &release), start, options.keep.is_some(), &folder))
}

/// The folder, if a demo may keep its things there.
fn claim(wanted: &Path) -> Result<PathBuf> {
    let is_demo = wanted.join(MARK).exists();
    folder::claim(wanted, "--keep", |name| {
        is_demo && [MARK, MACHINE].into_iter().chain(intel::OWN).any(|own| own == name)
    })
}

/// Empties it, and marks it as a demo's.
fn prepare(folder: &Path) -> Result<()> {
    folder::clear(folder)?;
    let says = "`cargo xtask demo --keep` with this folder replaces what is in it.\n";
    place::write(&folder.join(MARK), says.as_bytes())
}

/// Says how it ended.
fn end(told: Result<()>, start: Instant, is_kept: bool, folder: &Path) -> ExitCode {
    let seconds = start.elapsed().as_secs();
    match told {
        Ok(()) => {
            ui::heading("That was the story");
            ui::good(&format!("every part of it was so ({seconds} s after set-up and build)"));
            if is_kept {
                ui::note(&format!("transcripts and evidence: {}", folder.display()));
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            ui::bad(&format!("{error:#}"));
            ui::note(&format!("the story ends here; transcripts: {}", folder.display()));
            ExitCode::FAILURE
        }
    }
}

/// What a guest of the demo boots.
fn kernel_of(guest: &CompiledGuest, artifacts: &Artifacts, tools: &Tools) -> String {
    let is = |name: &str| guest.files.iter().any(|file| file.path == artifacts.file(name));
    if is("vmlinuz") {
        format!("Debian 12's kernel {}", tools.kernel.version)
    } else if is("vmlinuz-6.1") {
        format!("Debian 12's kernel {}", tools.older.version)
    } else {
        "a kernel of its own".to_owned()
    }
}

/// Tells the story on this machine.
pub(crate) fn tell(lab: &Lab<'_>, artifacts: &Artifacts, release: &Release) -> Result<()> {
    let party = RelyingParty::new(artifacts, &release.reference, &lab.folder().join("policy.toml"))?;
    act::Story::new(lab, release, party).tell()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demo_keeps_its_things_where_an_earlier_one_did() {
        let top = tempfile::tempdir().unwrap();
        let folder = claim(&top.path().join("kept")).unwrap();
        prepare(&folder).unwrap();
        place::write(&folder.join(MACHINE).join("1-com1.log"), b"x").unwrap();
        assert!(claim(&folder).is_ok());
        prepare(&folder).unwrap();
        assert!(!folder.join(MACHINE).exists());
    }

    #[test]
    fn a_demo_refuses_a_folder_of_somebody_elses_and_strange_files_in_its_own() {
        let folder = tempfile::tempdir().unwrap();
        place::write(&folder.path().join("my-novel.txt"), b"x").unwrap();
        let error = claim(folder.path()).unwrap_err().to_string();
        assert!(error.contains("`my-novel.txt`") && error.contains("--keep"), "{error}");
        place::write(&folder.path().join(MARK), b"x").unwrap();
        assert!(claim(folder.path()).is_err());
    }
}
