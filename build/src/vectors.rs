//! `cargo xtask vectors`: takes evidence from a whole machine into `tests/vectors/evidence`, for tests and benchmarks
//! of those who verify it.
//!
//! Only needed when the format of evidence changes: three Debian guests boot, one of them extends a register and asks
//! alone, then all three ask at once while the TPM is slow, so that two of them share a quote.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::artifact::{self, Artifacts};
use crate::lab::{self, Lab, Release};
use crate::machine::Machine;
use crate::machine::shell::Shell;
use crate::setup::Tools;
use crate::{demo, e2e, guest, place, setup, ui};

/// The guests.
const GUESTS: [&str; 3] = ["alpha", "beta", "gamma"];
/// What the first one extends into G3.
const EXTENDED: &str = "a service that started";
/// Where a guest keeps its evidence meanwhile.
const KEPT: &str = "/tmp/evidence";
/// Attempts to get two requests into one quote.
const ROUNDS: u8 = 8;

/// Takes the evidence.
pub(crate) fn run() -> Result<()> {
    let tools = setup::ensure()?;
    let artifacts = artifact::build(&tools)?;
    let work = place::output().join("vectors");
    let release = Release::of(&artifacts, &work.join("release"), &manifest()?)?;
    let (mut machine, mut shells) = start(&tools, &artifacts, &release, &work.join("machine"))?;
    let folder = folder();
    place::make(&folder)?;
    place::write(&folder.join("release.json"), serde_json::to_string_pretty(&release.reference)?.as_bytes())?;
    let first = shells.first_mut().context("no guest")?;
    guest::extend(first, 3, EXTENDED)?;
    let nonce = hex::encode(demo::nonce()?);
    keep(&folder, "alone", &guest::quote(first, &nonce)?, &nonce)?;
    machine.tpm_bus()?.set_slow(true);
    for round in 1..=ROUNDS {
        if share(&mut shells, &folder)? {
            ui::good(&format!("{}: evidence alone and from a shared quote", folder.display()));
            return machine_off(&mut machine);
        }
        ui::note(&format!("round {round}: nobody shared a quote; once more"));
    }
    bail!("in {ROUNDS} rounds no two guests shared a quote")
}

/// Where the vectors are.
pub(crate) fn folder() -> PathBuf {
    place::root().join("tests/vectors/evidence")
}

fn machine_off(machine: &mut Machine) -> Result<()> {
    machine.tpm_bus()?.set_slow(false);
    Ok(())
}

fn manifest() -> Result<String> {
    let mut text = String::new();
    for name in GUESTS {
        write!(
            text,
            "[[guest]]\nname = \"{name}\"\nmemory_mib = 256\nconsoles = [\"multiplexed\"]\n\
             hypercalls = [\"registers\", \"quote\", \"log\"]\nkernel = \"built:vmlinuz\"\n\
             initrd = \"built:initramfs.cpio\"\ncmdline = \"console=ttyS0,115200\"\n\n"
        )?;
    }
    Ok(text)
}

fn start(
    tools: &Tools,
    artifacts: &Artifacts,
    release: &Release,
    folder: &Path,
) -> Result<(Machine, Vec<Shell>)> {
    let lab = Lab::new(tools, artifacts, "bios", folder, e2e::ALL_BANKS)?.with_tpm_bus(&[]);
    let mut machine = lab.boot("vectors", &release.parts)?;
    lab::measured(&mut machine)?;
    let shells = lab::shells(&mut machine, &release.manifest)?;
    Ok((machine, shells))
}

/// All ask at once, the first one first: the others wait for its quote, and then share the next one. Whether they did.
fn share(shells: &mut [Shell], folder: &Path) -> Result<bool> {
    let mut nonces = Vec::new();
    for shell in shells.iter_mut() {
        let nonce = hex::encode(demo::nonce()?);
        shell.expect(&format!(
            "rm -f {KEPT}.done; (dolmen --frame quote --nonce {nonce} > {KEPT}; touch {KEPT}.done) & true"
        ))?;
        nonces.push(nonce);
    }
    let mut has_shared = false;
    for ((shell, nonce), name) in shells.iter_mut().zip(&nonces).zip(GUESTS) {
        shell.expect(&format!("while ! test -e {KEPT}.done; do sleep 1; done"))?;
        let evidence = shell.receive(&format!("cat {KEPT}"))?;
        // The map's last three entries: index, number of leaves, path. One sibling makes the last one 36 bytes long.
        let tail = evidence.len().checked_sub(36).and_then(|at| evidence.get(at..));
        if tail.is_some_and(|tail| tail.starts_with(&[0x08, 0x81, 0x58, 0x20])) {
            keep(folder, &format!("shared-{name}"), &evidence, nonce)?;
            has_shared = true;
        }
    }
    Ok(has_shared)
}

fn keep(folder: &Path, name: &str, evidence: &[u8], nonce: &str) -> Result<()> {
    place::write(&folder.join(format!("{name}.cbor")), evidence)?;
    place::write(&folder.join(format!("{name}.nonce")), format!("{nonce}\n").as_bytes())
}
