//! Secrets and evidence: what opens when, and what a relying party believes.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::launch;
use super::{Case, Scene};
use crate::guest::{self, Opened};
use crate::lab::{self, LAUNCH, Lab, Release};
use crate::machine::Machine;
use crate::machine::shell::Shell;
use crate::proof::{Objection, Proof, RelyingParty, Verdict};
use crate::{artifact, demo, folder, measure, place, release};

/// What is sealed in these tests.
const SECRET: &str = "three knocks and a whistle";
/// Its label.
const LABEL: &str = "door";
/// Longest wait for a way out.
const END: Duration = Duration::from_secs(60);

/// The tests of this file.
pub(super) const CASES: &[Case] = &[
    Case { name: "the_whole_story_on_uefi", run: story },
    Case {
        name: "a_quote_with_another_nonce_or_a_changed_log_or_an_unknown_key_is_refused",
        run: refused_evidence,
    },
    Case { name: "a_blob_opens_only_for_the_guest_that_sealed_it", run: other_guests },
    Case { name: "the_same_secret_opens_after_the_guest_reboots_the_machine", run: reboot },
    Case { name: "a_guest_that_powers_off_leaves_capped_registers", run: power_off },
    Case { name: "a_tpm_whose_owner_set_a_password_gives_no_keys", run: owner_password },
];

fn story(scene: &Scene<'_>) -> Result<()> {
    let lab = scene.lab("uefi")?;
    // In a folder of its own: the other tests' manifest is another.
    let manifest = String::from_utf8(place::read(&place::root().join("dolmen.toml"))?)?;
    let release = Release::of(&scene.bench.artifacts, &scene.folder, &manifest)?;
    demo::tell(&lab, &scene.bench.artifacts, &release)
}

/// Boots to the guest's shell.
pub(super) fn shell(lab: &Lab<'_>, cycle: &str, release: &Release) -> Result<(Machine, Shell)> {
    let mut machine = lab.boot(cycle, &release.parts)?;
    lab::measured(&mut machine)?;
    let shell = lab::shell(&mut machine)?;
    Ok((machine, shell))
}

/// Gets evidence over a fresh nonce.
pub(super) fn quote(shell: &mut Shell, folder: &Path) -> Result<Proof> {
    let nonce = demo::nonce()?;
    let evidence = guest::quote(shell, &hex::encode(nonce))?;
    Proof::save(&evidence, &nonce, folder)
}

fn must_refuse(party: &RelyingParty, proof: &Proof, what: &str) -> Result<()> {
    match party.verify(proof)? {
        Verdict::Refused(..) => Ok(()),
        Verdict::Trusted => bail!("dolmen-verify trusts evidence with {what}"),
    }
}

fn refused_evidence(scene: &Scene<'_>) -> Result<()> {
    let lab = scene.lab("bios")?;
    let reference = &scene.release.reference;
    let party = RelyingParty::new(&scene.bench.artifacts, reference, &scene.folder.join("policy.toml"))?;
    let (_machine, mut shell) = shell(&lab, "one", &scene.release)?;
    let proof = quote(&mut shell, &scene.folder.join("evidence"))?;
    must_refuse(&party, &proof, "a key that nobody enrolled")?;
    party.trust(&proof)?;
    let key = party.export(&proof)?.join("ak.pub");
    if party.verify(&proof)? != Verdict::Trusted {
        bail!("good evidence is refused: {:?}", party.verify(&proof)?);
    }
    party.checkquote(&proof, &key, reference)?;
    released(scene, &proof)?;
    must_refuse(&party, &proof.about(&demo::nonce()?), "another nonce")?;
    let later = quote(&mut shell, &scene.folder.join("later"))?;
    must_refuse(&party, &proof.about_that_of(&later), "the nonce of a later request")?;
    let bytes = place::read(&proof.evidence())?;
    for (at, objection) in changes(&bytes, &scene.release)? {
        let mut changed = bytes.clone();
        *changed.get_mut(at).context("a place outside of the evidence")? ^= 1;
        let changed = proof.with(&changed, &scene.folder.join(format!("changed-{at}")))?;
        must_refuse(&party, &changed, &format!("byte {at} changed"))?;
        let objects = party.objection(&changed, &key, reference)?;
        if objects != Some(objection) {
            bail!("with byte {at} changed tpm2_checkquote has this against the evidence: {objects:?}");
        }
    }
    Ok(())
}

/// A relying party that knows the code by a release alone, as a stranger does who rebuilt it, says the same, and so does
/// one whose release has manifest and guests; by a release with another core it refuses.
fn released(scene: &Scene<'_>, proof: &Proof) -> Result<()> {
    let (artifacts, reference) = (&scene.bench.artifacts, &scene.release.reference);
    let party = |name: &str, built: &Path| {
        let folder = scene.folder.join(name);
        release::assemble(&place::root(), built, &folder, None)?;
        RelyingParty::of_release(artifacts, &folder, reference, &folder.with_extension("toml"))
    };
    let whole = scene.folder.join("whole-release");
    // A run that failed may have left its policy there.
    folder::clear(&whole)?;
    release::assemble(&place::root(), &artifacts.folder, &whole, Some(&super::one_guest()))?;
    let whole = RelyingParty::of_values(artifacts, &whole.join(release::VALUES), &whole.join("policy.toml"))?;
    for party in [party("release", &artifacts.folder)?, whole] {
        party.trust(proof)?;
        match party.verify(proof)? {
            Verdict::Trusted => {}
            Verdict::Refused(_, why) => bail!("by the release, good evidence is refused: {why}"),
        }
    }
    let other = scene.folder.join("another-build");
    for program in &artifact::RELEASED {
        place::copy(&artifacts.file(program.output), &other.join(program.output))?;
    }
    lab::flipped(&artifacts.core(), &other.join(artifact::CORE.output), |bytes| bytes.len().checked_sub(1))?;
    match party("another-release", &other)?.verify(proof)? {
        Verdict::Refused(checks, _) if checks.iter().any(|check| check == "pcrs") => Ok(()),
        verdict @ (Verdict::Trusted | Verdict::Refused(..)) => {
            bail!("by a release with another core: {verdict:?}")
        }
    }
}

/// Places that matter, and what a stranger has against a change there: in the quote, its signature, the log's digest of the
/// core, the binding.
fn changes(evidence: &[u8], release: &Release) -> Result<[(usize, Objection); 4]> {
    use sha2::{Digest as _, Sha256};
    let find = |pattern: &[u8], what: &str| {
        evidence
            .windows(pattern.len())
            .position(|window| window == pattern)
            .with_context(|| format!("no {what}"))
    };
    let core = Sha256::digest(place::read(&release.parts.core)?);
    let g0 = hex::decode(&release.reference.guests.first().context("no guest")?.g0)?;
    Ok([
        (find(b"\xffTCG\x80\x18", "quote")?.saturating_add(60), Objection::Signature),
        (find(&[0, 0x18, 0, 0x0b, 0, 0x20], "signature")?.saturating_add(10), Objection::Signature),
        (find(&core, "digest of the core")?.saturating_add(5), Objection::Log),
        (find(&g0, "guest identity")?.saturating_add(5), Objection::Binding),
    ])
}

fn other_guests(scene: &Scene<'_>) -> Result<()> {
    let lab = scene.lab("bios")?;
    let (machine, mut first) = shell(&lab, "sealing", &scene.release)?;
    let blob = guest::seal(&mut first, LABEL, SECRET)?;
    if guest::unseal(&mut first, "window", &blob)? == Opened::Secret(SECRET.to_owned()) {
        bail!("it opens under another label");
    }
    let of_manifest = guest::seal_to(&mut first, "manifest", LABEL, SECRET)?;
    let of_hypervisor = guest::seal_to(&mut first, "any-guest", LABEL, SECRET)?;
    let mut broken = blob.clone();
    *broken.last_mut().context("an empty blob")? ^= 1;
    if guest::unseal(&mut first, LABEL, &broken)? == Opened::Secret(SECRET.to_owned()) {
        bail!("it opens with a bit changed");
    }
    drop(machine);
    let text = std::fs::read_to_string(super::one_guest())?;
    for (what, from, to) in [
        ("another name", "name = \"debian\"", "name = \"debiax\""),
        ("another configuration", "memory_mib = 512", "memory_mib = 514"),
        ("another command line", "console=ttyS0,115200", "console=ttyS0,115200 single"),
    ] {
        let other = variant(scene, what, &text.replace(from, to))?;
        let (_machine, mut shell) = shell(&lab, &what.replace(' ', "-"), &other)?;
        for blob in [&blob, &of_manifest] {
            if let Opened::Secret(_) = guest::unseal(&mut shell, LABEL, blob)? {
                bail!("it opens for a guest with {what}");
            }
        }
        if guest::unseal(&mut shell, LABEL, &of_hypervisor)? != Opened::Secret(SECRET.to_owned()) {
            bail!("what is bound to no guest stays shut for one with {what}");
        }
    }
    let (_machine, mut again) = shell(&lab, "again", &scene.release)?;
    match guest::unseal(&mut again, LABEL, &blob)? {
        Opened::Secret(secret) if secret == SECRET => Ok(()),
        other @ (Opened::Secret(_) | Opened::Shut(_)) => bail!("it no longer opens for its owner: {other:?}"),
    }
}

/// A release with another manifest.
fn variant(scene: &Scene<'_>, name: &str, manifest: &str) -> Result<Release> {
    let folder = scene.folder.join(name.replace(' ', "-"));
    let path = folder.join("dolmen.toml");
    place::write(&path, manifest.as_bytes())?;
    let manifest = crate::manifest::Manifest::load(&path)?;
    let mut parts = scene.release.parts.clone();
    parts.manifest = folder.join("manifest.bin");
    place::write(&parts.manifest, &manifest.bytes)?;
    parts.components = manifest.files();
    let reference = measure::reference(&parts, &manifest)?;
    if reference.bank("sha256")?.pcr18 == scene.release.reference.bank("sha256")?.pcr18 {
        bail!("the manifest with {name} is the same");
    }
    Ok(Release { manifest, parts, reference })
}

fn reboot(scene: &Scene<'_>) -> Result<()> {
    let lab = scene.lab("bios")?;
    let mut machine = lab.boot_with("one", &scene.release.parts, None, &[])?;
    lab::measured(&mut machine)?;
    let mut before = lab::shell(&mut machine)?;
    let blob = guest::seal(&mut before, LABEL, SECRET)?;
    let console = before.leave("reboot -f")?;
    machine.log.wait_for("stop: the guest resets the machine", END)?;
    machine.log.wait_for("PCR 17 and 18 capped", END)?;
    lab::measured(&mut machine)?;
    let mut after = Shell::wait(console, lab::GUEST)?;
    match guest::unseal(&mut after, LABEL, &blob)? {
        Opened::Secret(secret) if secret == SECRET => Ok(()),
        other @ (Opened::Secret(_) | Opened::Shut(_)) => bail!("after the reboot: {other:?}"),
    }
}

fn power_off(scene: &Scene<'_>) -> Result<()> {
    let lab = scene.lab("bios")?;
    let (mut machine, shell) = shell(&lab, "one", &scene.release)?;
    let _console = shell.leave("poweroff -f")?;
    machine.log.wait_for("stop: the guest switched its machine off", END)?;
    machine.log.wait_for("memory wiped, PCR 17 and 18 capped", END)?;
    let (_power, tpm) = lab::autopsy(machine)?;
    for name in ["sha1", "sha256", "sha384", "sha512"] {
        let bank = scene.release.reference.bank(name)?;
        if tpm.pcr(name, 17)? == bank.pcr17 || tpm.pcr(name, 18)? == bank.pcr18 {
            bail!("a register of bank {name} was not capped");
        }
    }
    Ok(())
}

/// Whoever owns the TPM could have planted a key; without one that the manifest pins there is no way on.
fn owner_password(scene: &Scene<'_>) -> Result<()> {
    let lab = scene.lab("bios")?;
    let (power, tpm) = lab.tpm_alone()?;
    tpm.run("tpm2_changeauth", &["-c", "owner", "beneath the mat"])?;
    tpm.run("tpm2_shutdown", &["-c"])?;
    drop(tpm);
    drop(power);
    let mut machine = lab.boot("one", &scene.micro.parts)?;
    let line = machine.log.wait_for("stop: ", LAUNCH)?;
    if !line.contains("keys") || !line.contains("the owner hierarchy has an authorisation value") {
        bail!("it stopped, but not for want of keys: {line}");
    }
    if !line.contains("tpm2_changeauth -c owner") || !line.contains("`dolmen provision`") {
        bail!("it does not say what to do: {line}");
    }
    machine.log.wait_for("capped", END)?;
    let (_power, tpm) = lab::autopsy(machine)?;
    if launch::check(&tpm, &scene.micro.reference, &["sha256"]).is_ok() {
        bail!("the registers were not capped");
    }
    Ok(())
}
