//! `cargo xtask release`: what somebody else can rebuild and compare, with reference values and a list of what is in it.
//!
//! Everything in the folder follows from the sources alone: no date, no name of this machine, no order of a file system.
//! `docs/verify-a-release.md` tells how to compare.

mod corim;
mod sbom;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::artifact::{self, CORE, LAUNCH, RELEASED};
use crate::image::Parts;
use crate::manifest::Manifest;
use crate::measure::{self, CodeReference, Reference};
use crate::{folder, place, setup, ui};

/// Reference values, for `dolmen-verify`.
pub(crate) const VALUES: &str = "reference-values.json";
/// The same as a CoRIM, for other verifiers.
const CORIM: &str = "reference-values.corim";
/// What the programs are made of.
const SBOM: &str = "sbom.cdx.json";
/// The manifest, where a release has one.
const MANIFEST: &str = "manifest.bin";
/// SHA-256 of every file.
const SUMS: &str = "SHA256SUMS";

/// What the user chose.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Folder for the release; target/dolmen/release without it.
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// Add this manifest and its guests to the reference values.
    #[arg(long)]
    manifest: Option<PathBuf>,
}

/// What a release measures to.
enum Values {
    /// Launch image and core.
    Code(CodeReference),
    /// Those, a manifest and its guests.
    Whole(Box<Manifest>, Reference),
}

/// Builds a release and says what is in it.
pub(crate) fn run(options: &Options) -> Result<()> {
    let folder = claim(&options.output.clone().unwrap_or_else(|| place::output().join("release")))?;
    let built = match &options.manifest {
        None => {
            // The hypervisor needs neither the emulator nor a guest's kernel.
            setup::toolchain()?;
            let built = place::output();
            artifact::hypervisor(&place::root(), &place::target(), &built)?;
            built
        }
        Some(manifest) => {
            Manifest::check_early(manifest)?;
            artifact::build(&setup::ensure()?)?.folder
        }
    };
    assemble(&place::root(), &built, &folder, options.manifest.as_deref())?;
    ui::heading("Release");
    for name in files(&folder)? {
        ui::good(&format!("{}", folder.join(name).display()));
    }
    ui::note("docs/verify-a-release.md tells a stranger how to rebuild and compare");
    Ok(())
}

/// The folder, if a release may go there: what it replaces is an earlier one, whose sums name all that is in it.
fn claim(wanted: &Path) -> Result<PathBuf> {
    let sums = std::fs::read_to_string(wanted.join(SUMS)).unwrap_or_default();
    let listed: Vec<&str> = sums.lines().filter_map(|line| Some(line.split_once("  ")?.1)).collect();
    // Others have files of this name too.
    let is_release = listed.contains(&VALUES);
    folder::claim(wanted, "--output", |name| is_release && (name == SUMS || listed.contains(&name)))
}

/// Puts a release of the sources in `root`, built into `built`, together in `folder`.
pub(crate) fn assemble(root: &Path, built: &Path, folder: &Path, manifest: Option<&Path>) -> Result<()> {
    folder::replace(&claim(folder)?, |fresh| fill(root, built, fresh, manifest))
}

/// Puts it together in an empty folder.
fn fill(root: &Path, built: &Path, folder: &Path, manifest: Option<&Path>) -> Result<()> {
    for program in &RELEASED {
        place::copy(&built.join(program.output), &folder.join(program.output))?;
    }
    let values = match manifest {
        None => Values::Code(measure::code(&folder.join(LAUNCH.output), &folder.join(CORE.output))?),
        Some(path) => whole(built, folder, path)?,
    };
    let (text, corim) = match &values {
        Values::Code(code) => {
            (serde_json::to_string_pretty(code)?, corim::of(&code.events, &code.registers())?)
        }
        Values::Whole(manifest, reference) => {
            place::write(&folder.join(MANIFEST), &manifest.bytes)?;
            let text = serde_json::to_string_pretty(reference)?;
            (text, corim::of(&reference.events, &reference.registers())?)
        }
    };
    place::write(&folder.join(VALUES), format!("{text}\n").as_bytes())?;
    place::write(&folder.join(CORIM), &corim)?;
    place::write(&folder.join(SBOM), sbom::of(root, folder)?.as_bytes())?;
    let mut sums = String::new();
    for name in files(folder)? {
        writeln!(sums, "{}  {name}", hex::encode(Sha256::digest(place::read(&folder.join(&name))?)))?;
    }
    place::write(&folder.join(SUMS), sums.as_bytes())
}

fn whole(built: &Path, folder: &Path, path: &Path) -> Result<Values> {
    let manifest = Manifest::load(path)?;
    let artifacts = artifact::Artifacts { folder: built.to_owned() };
    let reference =
        measure::reference(&Parts::collect(&artifacts, &manifest, folder.join(MANIFEST))?, &manifest)?;
    Ok(Values::Whole(Box::new(manifest), reference))
}

/// Names of the files in a folder, in order.
fn files(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in folder.read_dir().with_context(|| format!("no folder {}", folder.display()))? {
        names.push(entry?.file_name().into_string().ok().context("a file whose name is no text")?);
    }
    names.sort();
    Ok(names)
}

/// Insists that two releases have the same files with the same bytes.
pub(crate) fn compare(first: &Path, second: &Path) -> Result<()> {
    let (names, others) = (files(first)?, files(second)?);
    if names != others {
        bail!("two releases have different files: {names:?} and {others:?}");
    }
    for name in &names {
        if place::read(&first.join(name))? != place::read(&second.join(name))? {
            bail!("two releases differ in {name}");
        }
    }
    ui::good(&format!("release: {} files, the same in both builds", names.len()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that holds these files, and one in which nothing was built, so that no release comes of it.
    fn folders(files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let top = tempfile::tempdir().unwrap();
        let [folder, built] = ["folder", "built"].map(|name| top.path().join(name));
        place::make(&built).unwrap();
        for (name, content) in files {
            place::write(&folder.join(name), content.as_bytes()).unwrap();
        }
        (top, folder, built)
    }

    fn refusal(folder: &Path, built: &Path) -> String {
        assemble(&place::root(), built, folder, None).unwrap_err().to_string()
    }

    const EARLIER: [(&str, &str); 3] =
        [("core.bin", "core"), (VALUES, "{}"), (SUMS, "00  core.bin\n00  reference-values.json\n")];

    #[test]
    fn a_folder_that_is_no_release_is_refused_and_keeps_what_it_holds() {
        let (_top, folder, built) = folders(&[("my-novel.txt", "letter")]);
        let error = refusal(&folder, &built);
        assert!(error.contains("`my-novel.txt`") && error.contains("--output"), "{error}");
        assert_eq!(files(&folder).unwrap(), ["my-novel.txt"]);
    }

    #[test]
    fn other_peoples_sums_make_no_release() {
        let (_top, folder, built) = folders(&[("disc.iso", "disc"), (SUMS, "00  disc.iso\n")]);
        assert!(refusal(&folder, &built).contains("would be lost"));
    }

    #[test]
    fn a_file_among_an_earlier_release_is_not_removed_with_it() {
        let (_top, folder, built) = folders(&EARLIER);
        place::write(&folder.join("dolmen.toml"), b"[[guest]]").unwrap();
        assert!(refusal(&folder, &built).contains("`dolmen.toml`"));
        assert!(folder.join("dolmen.toml").exists());
    }

    #[test]
    fn a_release_that_fails_leaves_the_earlier_one_whole() {
        let (_top, folder, built) = folders(&EARLIER);
        assert!(refusal(&folder, &built).contains("launch.bin"));
        for (name, content) in EARLIER {
            assert_eq!(place::read(&folder.join(name)).unwrap(), content.as_bytes());
        }
    }
}
