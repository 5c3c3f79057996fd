//! The sealing root that a TPM's owner made with `dolmen provision`: it serves, and no other does.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::trust;
use super::{Case, Scene};
use crate::artifact::MICRO_GUEST;
use crate::guest::{self, Opened};
use crate::lab::{self, LAUNCH, Lab, Release, STANDS_STILL};
use crate::machine::Medium;
use crate::machine::relay::ToolTpm;
use crate::{place, process};

/// The owner's value.
const VALUE: &str = "beneath the mat";
/// Where the owner makes the key persistent.
const HANDLE: &str = "0x81000100";
/// What is sealed, and its label.
const SECRET: (&str, &str) = ("three knocks and a whistle", "door");
/// Longest wait for a way out.
const END: Duration = Duration::from_secs(60);

/// The tests of this file.
pub(super) const CASES: &[Case] =
    &[Case { name: "a_root_that_the_tpms_owner_provisioned_serves_and_no_other_does", run: provisioned }];

fn provisioned(scene: &Scene<'_>) -> Result<()> {
    let lab = scene.lab("bios")?;
    let table = own_and_provision(scene, &lab)?;
    let linux = with_table(scene, "linux", &table, &std::fs::read_to_string(super::one_guest())?)?;
    let (machine, mut before) = trust::shell(&lab, "sealing", &linux)?;
    let blob = guest::seal(&mut before, SECRET.1, SECRET.0)?;
    drop(machine);
    let (machine, mut after) = trust::shell(&lab, "opening", &linux)?;
    match guest::unseal(&mut after, SECRET.1, &blob)? {
        Opened::Secret(secret) if secret == SECRET.0 => {}
        other @ (Opened::Secret(_) | Opened::Shut(_)) => bail!("what the last boot sealed: {other:?}"),
    }
    drop(machine);
    let kernel = scene.bench.artifacts.file(MICRO_GUEST.output);
    let micro = with_table(scene, "small", &table, &super::small_manifest(&kernel, ""))?;
    for (what, plant, want) in [
        (
            "a key whose secret the owner knows",
            Plant::Known,
            "the provisioned sealing root is not our template",
        ),
        ("another key of the same template", Plant::Other, "the provisioned sealing root has another Name"),
        ("no key", Plant::Nothing, "there is no key at the persistent handle 0x81000100"),
    ] {
        replace(&lab, plant).with_context(|| format!("cannot leave {what}"))?;
        let mut machine = lab.boot(&what.replace(' ', "-"), &micro.parts)?;
        let line = machine.log.wait_for("stop: ", LAUNCH)?;
        if !line.contains(want) || !line.contains("`dolmen provision`") {
            bail!("with {what} it should stop with \"{want}\" and say what to do: {line}");
        }
        machine.log.wait_for("capped", END)?;
    }
    Ok(())
}

/// Gives the TPM an owner with a value, who makes the sealing root in the machine's own system; the manifest's table. Whoever
/// runs the command again, by whatever way to the TPM, gets the same one.
fn own_and_provision(scene: &Scene<'_>, lab: &Lab<'_>) -> Result<String> {
    let (power, tpm) = lab.tpm_alone()?;
    tpm.run("tpm2_changeauth", &["-c", "owner", VALUE])?;
    tpm.run("tpm2_shutdown", &["-c"])?;
    drop((power, tpm));
    let (reference, value) = (scene.folder.join("reference.json"), scene.folder.join("value"));
    place::write(&reference, serde_json::to_string_pretty(&scene.release.reference)?.as_bytes())?;
    place::write(&value, format!("{VALUE}\n").as_bytes())?;
    let table = in_own_system(scene, lab, &[(&reference, "reference.json"), (&value, "value")])?;
    let (_power, tpm) = lab.tpm_alone()?;
    let mut command = Command::new(scene.bench.artifacts.command());
    command.args(["provision", "--handle", HANDLE, "--reference"]).arg(&reference);
    command.arg("--owner-value").arg(&value).arg("--tpm").arg(tpm.socket());
    let again = process::output(&mut command)?;
    let rest = |text: &str| text.split_once('\n').map(|(_, rest)| rest.trim_end().to_owned());
    if rest(&table) != rest(&again) || !again.starts_with("# The very same key was there already") {
        bail!("the second time it says something else:\n{table}{again}");
    }
    tpm.run("tpm2_shutdown", &["-c"])?;
    Ok(table)
}

/// Runs `dolmen provision` under Debian's kernel without any hypervisor, by the kernel's own device; what it prints. Without
/// the owner's value it does nothing.
fn in_own_system(scene: &Scene<'_>, lab: &Lab<'_>, files: &[(&Path, &str)]) -> Result<String> {
    let artifacts = &scene.bench.artifacts;
    let medium = Medium::Multiboot {
        kernel: artifacts.file("vmlinuz"),
        modules: vec![artifacts.file("initramfs.cpio")],
        // The machine's second port is the one with a shell.
        arguments: "console=ttyS1,115200 quiet".to_owned(),
    };
    let mut machine = lab.boot_medium("own-system", &medium, &STANDS_STILL.map(str::to_owned))?;
    let mut shell = lab::shell(&mut machine)?;
    for (file, name) in files {
        shell.send(&format!("/tmp/{name}"), &place::read(file)?)?;
    }
    let command = format!("dolmen provision --handle {HANDLE} --reference /tmp/reference.json");
    let refused = shell.run(&command)?;
    if refused.status == 0 || !refused.text().contains("has an authorisation value, and none was given") {
        bail!("without the owner's value: {}", refused.text());
    }
    let table = shell.expect(&format!("{command} --owner-value /tmp/value"))?;
    if !table.starts_with("# The key is made") {
        bail!("it made no key: {table}");
    }
    Ok(format!("{table}\n"))
}

/// A release of this manifest with the table: another configuration of the same hypervisor.
fn with_table(scene: &Scene<'_>, name: &str, table: &str, manifest: &str) -> Result<Release> {
    let release = super::release(scene.bench, &scene.folder.join(name), &format!("{table}{manifest}"))?;
    let (with, without) = (release.reference.bank("sha256")?, scene.release.reference.bank("sha256")?);
    if with.pcr17 != without.pcr17 || with.pcr18 == without.pcr18 {
        bail!("the table changes PCR 17, or leaves PCR 18 as it is");
    }
    Ok(release)
}

/// What the owner leaves at the handle instead.
#[derive(Clone, Copy)]
enum Plant {
    /// A key like ours, but of a secret that the owner brought.
    Known,
    /// A key exactly like ours, but another.
    Other,
    /// Nothing.
    Nothing,
}

/// Removes the key at the handle, and leaves something in its place that looks the same.
fn replace(lab: &Lab<'_>, plant: Plant) -> Result<()> {
    let (_power, tpm) = lab.tpm_alone()?;
    let policy = policy(&tpm)?;
    let evict = |object: &[&str]| {
        tpm.run("tpm2_evictcontrol", &[&["-Q", "-C", "o", "-P", VALUE, "-c"][..], object].concat())
    };
    evict(&[HANDLE])?;
    let (bytes, none) = ([0x11; 32].as_slice(), [].as_slice());
    let made = match plant {
        Plant::Known => {
            Some(create_primary(&tpm, &policy, LIKE_OURS & !SENSITIVE_DATA_ORIGIN, (bytes, none))?)
        }
        Plant::Other => Some(create_primary(&tpm, &policy, LIKE_OURS, (none, bytes))?),
        Plant::Nothing => None,
    };
    if let Some(key) = made {
        evict(&[&format!("{key:#x}"), HANDLE])?;
    }
    tpm.run("tpm2_shutdown", &["-c"]).map(drop)
}

/// The policy of the key at the handle, which anybody can read.
fn policy(tpm: &ToolTpm) -> Result<Vec<u8>> {
    let shown = tpm.run("tpm2_readpublic", &["-c", HANDLE])?;
    let digits = shown.lines().find_map(|line| line.strip_prefix("authorization policy: "));
    hex::decode(digits.context("the key has no policy")?.trim()).context("a policy that is not hexadecimal")
}

/// Attributes of the sealing root (`docs/tpm.md`).
const LIKE_OURS: u32 = 0x0004_0032;
/// That of a key whose secret the TPM made itself.
const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;

/// An HMAC primary key of the owner hierarchy from a secret or with unique bytes of its maker, as no stock tool makes one; its
/// handle.
fn create_primary(
    tpm: &ToolTpm,
    policy: &[u8],
    attributes: u32,
    (secret, unique): (&[u8], &[u8]),
) -> Result<u32> {
    let sized = |parts: &[&[u8]]| -> Result<Vec<u8>> {
        let bytes = parts.concat();
        Ok([u16::try_from(bytes.len())?.to_be_bytes().as_slice(), &bytes].concat())
    };
    let password = [&[0x40, 0, 0, 9, 0, 0, 0], sized(&[VALUE.as_bytes()])?.as_slice()].concat();
    let sensitive = sized(&[&sized(&[])?, &sized(&[secret])?])?;
    let head = [&[0, 8, 0, 0x0b], attributes.to_be_bytes().as_slice()].concat();
    let public = sized(&[&head, &sized(&[policy])?, &[0, 5, 0, 0x0b], &sized(&[unique])?])?;
    let body = [
        &[0x40, 0, 0, 1],
        u32::try_from(password.len())?.to_be_bytes().as_slice(),
        &password,
        &sensitive,
        &public,
        &[0; 6],
    ]
    .concat();
    let size = u32::try_from(body.len().saturating_add(10))?.to_be_bytes();
    let command = [&[0x80, 2], size.as_slice(), &[0, 0, 1, 0x31], &body].concat();
    let mut socket = UnixStream::connect(tpm.socket()).context("cannot reach the TPM")?;
    socket.set_read_timeout(Some(END)).context("cannot bound the wait for the TPM")?;
    socket.write_all(&command).context("the TPM takes no command")?;
    let mut answer = [0; 14];
    socket.read_exact(&mut answer).context("the TPM makes no such key")?;
    match answer {
        [_, _, _, _, _, _, 0, 0, 0, 0, key @ ..] => Ok(u32::from_be_bytes(key)),
        other => bail!("the TPM makes no such key: {other:02x?}"),
    }
}
