//! `cargo xtask reproduce`: two clean builds in two folders must give the same bytes, and the same release.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use sha2::{Digest, Sha256};

use crate::artifact::{self, reproduced};
use crate::{place, process, release, ui};

/// Builds twice and compares.
pub(crate) fn run() -> Result<()> {
    let work = place::scratch()?;
    let sources = sources()?;
    // Names of different lengths: a path that got into a program would also move what follows it.
    let [first, second] = ["a", "another-folder/of-another-depth"].map(|name| work.path().join(name));
    std::thread::scope(|scope| {
        let builds = [&first, &second].map(|folder| scope.spawn(|| build(&sources, folder)));
        builds.into_iter().try_for_each(|build| build.join().map_err(|_| anyhow!("a build broke off"))?)
    })?;
    compare(&first.join("output"), &second.join("output"))?;
    release::compare(&first.join("release"), &second.join("release"))?;
    check_sums(&first.join("release"))?;
    check_by_hand(&first.join("release"))
}

/// The document's way to PCR 17 without our code ends at the released value.
fn check_by_hand(folder: &Path) -> Result<()> {
    let document = String::from_utf8(place::read(&place::root().join("docs/verify-a-release.md"))?)?;
    let script =
        document.split("```sh\n").find(|block| block.starts_with("h() {")).context("no way by hand")?;
    let script = script.split("```").next().unwrap_or_default();
    let printed = process::output(Command::new("sh").args(["-euc", script]).current_dir(folder))?;
    let value: String = printed.split_whitespace().collect();
    let released = String::from_utf8(place::read(&folder.join(release::VALUES))?)?;
    if value.len() != 64 || !released.contains(&format!("\"pcr17\": \"{value}\"")) {
        bail!("by hand PCR 17 is {value}, which is not what was released");
    }
    Ok(())
}

/// As a stranger does it: with the command of every Linux system.
fn check_sums(folder: &Path) -> Result<()> {
    let mut command = Command::new("sha256sum");
    process::output(command.args(["--check", "--strict", "--quiet", "SHA256SUMS"]).current_dir(folder))
        .map(drop)
}

fn build(sources: &[PathBuf], folder: &Path) -> Result<()> {
    clone(sources, &folder.join("sources"))?;
    let [sources, target, output] = ["sources", "target", "output"].map(|name| folder.join(name));
    artifact::hypervisor(&sources, &target, &output)?;
    artifact::develop(&sources, &target, &output)?;
    release::assemble(&sources, &output, &folder.join("release"), None)
}

fn compare(first: &Path, second: &Path) -> Result<()> {
    for program in reproduced() {
        let (one, two) =
            (place::read(&first.join(program.output))?, place::read(&second.join(program.output))?);
        if one != two {
            let at = one.iter().zip(&two).position(|(a, b)| a != b).unwrap_or(one.len().min(two.len()));
            bail!("two builds of the {} differ, first at byte {at:#x}", program.what);
        }
        ui::good(&format!("{}: sha256 {} in both builds", program.output, hex::encode(Sha256::digest(&one))));
    }
    Ok(())
}

/// Files of the tree: what git knows or would know, relative to the top folder.
fn sources() -> Result<Vec<PathBuf>> {
    let mut command = Command::new("git");
    command.current_dir(place::root()).args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    let listed = process::output(&mut command).context("listing the sources")?;
    Ok(listed.lines().map(PathBuf::from).filter(|path| place::root().join(path).is_file()).collect())
}

fn clone(sources: &[PathBuf], folder: &Path) -> Result<()> {
    for path in sources {
        place::copy(&place::root().join(path), &folder.join(path))?;
    }
    Ok(())
}
