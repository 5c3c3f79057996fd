//! Verifiers that know nothing of Dolmen, unmodified, on evidence from a real run: one boot for all of them, and for
//! enrolment, which is told in `enrolment`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest as _, Sha256};

use super::{Case, Scene, enrolment, trust, tsm};
use crate::machine::shell::Shell;
use crate::machine::swtpm::Maker;
use crate::proof::{Proof, RelyingParty, Verdict};
use crate::{demo, guest, place, process};

/// The tests of this file.
pub(super) const CASES: &[Case] = &[Case {
    name: "unmodified_tools_accept_evidence_by_every_key_and_credentials_enrol_keys",
    run: strangers,
}];

/// What the guest of these tests may do besides.
const ALLOWED: &str = ", \"host-quote\", \"enrol\"";

fn strangers(scene: &Scene<'_>) -> Result<()> {
    let verifier = stranger()?;
    let maker = Maker::of(&scene.folder.join("maker"))?;
    let lab = scene.lab("bios")?.with_tpm_by(&maker)?;
    enrolment::store_chain(&lab, &maker)?;
    let release = tsm::release(scene, ALLOWED)?;
    let party =
        RelyingParty::new(&scene.bench.artifacts, &release.reference, &scene.folder.join("policy.toml"))?;
    let (_machine, mut shell) = trust::shell(&lab, "one", &release)?;
    for key in ["ecdsa", "rsa"] {
        let proof = guest_quote(&mut shell, key, &scene.folder.join(key))?;
        let parts = party.export(&proof)?;
        stock_tools(&parts, true)?;
        party.trust_key(&name_of(&parts)?)?;
        if party.verify(&proof)? != Verdict::Trusted {
            bail!("good evidence by the key {key} is refused: {:?}", party.verify(&proof)?);
        }
    }
    for (key, pcrs) in [("ecdsa", "17,18"), ("rsa", "all")] {
        let nonce = demo::nonce()?;
        let evidence = guest::host_quote(&mut shell, key, pcrs, &hex::encode(nonce))?;
        let proof = Proof::save(&evidence, &nonce, &scene.folder.join(format!("host-{key}")))?;
        let parts = party.export(&proof)?;
        if std::fs::read_to_string(parts.join("extra-data"))?.trim() != hex::encode(nonce) {
            bail!("the extra data is not the nonce as it is");
        }
        stock_tools(&parts, pcrs != "all")?;
        party.trust_key(&name_of(&parts)?)?;
        host(&party, &proof)?;
        if pcrs == "all" {
            independent(&verifier, &parts, &hex::encode(nonce))?;
        }
    }
    enrolment::tell(&mut shell, scene, &release, &maker)
}

fn guest_quote(shell: &mut Shell, key: &str, folder: &Path) -> Result<Proof> {
    let nonce = demo::nonce()?;
    let evidence = guest::quote_by(shell, key, &hex::encode(nonce))?;
    Proof::save(&evidence, &nonce, folder)
}

/// The Name of the exported key.
fn name_of(parts: &Path) -> Result<String> {
    let public = place::read(&parts.join("ak.pub"))?;
    Ok(format!("000b{}", hex::encode(Sha256::digest(public.get(2..).context("no key")?))))
}

/// Evidence about the host is trusted as that, for its nonce, and never as evidence about a guest.
fn host(party: &RelyingParty, proof: &Proof) -> Result<()> {
    let (is_trusted, said) = party.verify_host(proof)?;
    if !is_trusted {
        bail!("good evidence about the host is refused:\n{said}");
    }
    if party.verify_host(&proof.about(&demo::nonce()?))?.0 {
        bail!("dolmen-verify trusts a host with another nonce");
    }
    match party.verify(proof)? {
        Verdict::Refused(..) => Ok(()),
        Verdict::Trusted => bail!("evidence about the host is taken for evidence about a guest"),
    }
}

/// `tpm2_checkquote` without and with the log, `tpm2_eventlog`, `openssl dgst`. The log has no events of firmware, so
/// that it fits no quote over firmware's registers.
fn stock_tools(parts: &Path, has_log_of_all: bool) -> Result<()> {
    let extra = std::fs::read_to_string(parts.join("extra-data"))?;
    let checkquote = |message: &str, nonce: &str, more: &[&str]| {
        let mut command = Command::new("tpm2_checkquote");
        command.current_dir(parts).args(["-u", "ak.pem", "-m", message, "-s", "quote.sig", "-f", "pcrs"]);
        command.args(["-g", "sha256", "-q", nonce]).args(more);
        process::output(&mut command)
    };
    let openssl = |message: &str| {
        let mut command = Command::new("openssl");
        command.current_dir(parts).args(["dgst", "-sha256", "-verify", "ak.pem", "-signature", "quote.der"]);
        process::output(command.arg(message))
    };
    checkquote("quote.msg", extra.trim(), &[])?;
    if has_log_of_all {
        checkquote("quote.msg", extra.trim(), &["-e", "eventlog"])?;
    }
    process::output(Command::new("tpm2_eventlog").arg(parts.join("eventlog")))?;
    openssl("quote.msg")?;
    let mut changed = place::read(&parts.join("quote.msg"))?;
    *changed.last_mut().context("an empty quote")? ^= 1;
    place::write(&parts.join("changed.msg"), &changed)?;
    let refused = [
        checkquote("quote.msg", &"00".repeat(32), &[]).is_err(),
        checkquote("changed.msg", extra.trim(), &[]).is_err(),
        openssl("changed.msg").is_err(),
    ];
    if refused == [true; 3] {
        Ok(())
    } else {
        bail!("a stock tool accepts another nonce or quote: {refused:?}")
    }
}

/// The verifier of the crate az-cvm-vtpm.
fn independent(verifier: &Path, parts: &Path, nonce: &str) -> Result<()> {
    let run = |nonce: &str| process::output(Command::new(verifier).arg(parts).arg(nonce));
    run(nonce)?;
    if run(&"00".repeat(32)).is_ok() {
        bail!("az-cvm-vtpm accepts another nonce");
    }
    let at = parts.join("values");
    let good = place::read(&at)?;
    let mut changed = good.clone();
    *changed.first_mut().context("no values")? ^= 1;
    place::write(&at, &changed)?;
    if run(nonce).is_ok() {
        bail!("az-cvm-vtpm accepts another value of a register");
    }
    place::write(&at, &good)
}

/// Builds the program around that crate, which has a workspace of its own.
fn stranger() -> Result<PathBuf> {
    let target = place::target().join("third-party");
    let mut command = Command::new("cargo");
    command.args(["build", "--locked", "--quiet", "--manifest-path"]);
    command.arg(place::root().join("tests/third-party/Cargo.toml")).arg("--target-dir").arg(&target);
    process::run("Building the independent quote verifier (az-cvm-vtpm)", &mut command)?;
    Ok(target.join("debug/dolmen-third-party"))
}
