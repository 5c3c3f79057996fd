//! Reports by the kernel's own interface, configfs-tsm, in an unmodified Debian guest; and the driver under torment.
//!
//! One boot shows all of it. The programs in the guest are those of `tests/tsm`: one reads a report by a library of
//! other people, the other is the tormentor.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Case, Scene, linux};
use crate::artifact::{DEVICE_MODULE, REPORT_MODULE};
use crate::initramfs::{self, Extra};
use crate::lab::{self, Release};
use crate::machine::shell::Shell;
use crate::proof::{Proof, RelyingParty, Verdict};
use crate::{demo, guest, place, process, ui};

/// Target of the guest's programs.
const MUSL: &str = "x86_64-unknown-linux-musl";
/// The kernel's modules that the provider of reports needs, in order.
const KERNEL_MODULES: [(&str, &str); 2] =
    [("configfs.ko", "fs/configfs/configfs.ko"), ("tsm.ko", "drivers/virt/coco/tsm.ko")];
/// The storm, which runs in the guest.
const STORM: &[u8] = include_bytes!("tsm.sh");
/// How long it lasts: usually, and at full length.
const SECONDS: u64 = 12;
const ALL_SECONDS: u64 = 40;
/// How much longer those that are at work when it is over may take.
const GRACE: Duration = Duration::from_secs(120);
/// Pause between two looks at it.
const PAUSE: Duration = Duration::from_secs(1);
/// What each part of the storm must have done at least, by the name of its line.
const LEAST: [(&str, u64); 9] = [
    ("device-1", 1),
    ("device-2", 1),
    ("own-1", 1),
    ("own-2", 1),
    ("shared-1", 1),
    ("shared-2", 1),
    ("signals", 3),
    ("deaths", 2),
    ("unloads", 1),
];
/// Where the kernel has its reports.
const REPORTS: &str = "/sys/kernel/config/tsm/report";

/// The tests of this file.
pub(super) const CASES: &[Case] = &[Case {
    name: "a_library_of_others_reads_reports_by_configfs_tsm_and_the_driver_survives_a_storm",
    run: reports,
}];

fn reports(scene: &Scene<'_>) -> Result<()> {
    let release = release(scene, "")?;
    let lab = scene.lab("bios")?;
    let mut machine = lab.boot("tsm", &release.parts)?;
    lab::measured(&mut machine)?;
    let mut shell = lab::shell(&mut machine)?;
    let party = RelyingParty::new(&scene.bench.artifacts, &release.reference, &scene.folder.join("policy"))?;
    load(&mut shell)?;
    foreign_library(&mut shell, scene, &party, &release)?;
    attributes(&mut shell)?;
    let seconds = if scene.bench.all { ALL_SECONDS } else { SECONDS };
    storm(&mut shell, seconds)?;
    starve(&mut shell)?;
    unload(&mut shell)?;
    linux::content(&mut shell, &scene.folder.join("dmesg.txt"))
}

/// A guest of two processors with the modules, the programs and the storm, and so many calls besides the usual ones.
pub(super) fn release(scene: &Scene<'_>, calls: &str) -> Result<Release> {
    let artifacts = &scene.bench.artifacts;
    let programs = programs()?;
    let mut extras = Vec::new();
    let mut add = |path: String, rights, content| extras.push(Extra { path, rights, content });
    for (name, within) in KERNEL_MODULES {
        add(format!("lib/{name}"), 0o644, scene.bench.tools.kernel.module(within)?);
    }
    add(format!("lib/{REPORT_MODULE}"), 0o644, place::read(&artifacts.module(REPORT_MODULE))?);
    for name in ["tsm-report", "tsm-torment"] {
        add(format!("bin/{name}"), 0o755, place::read(&programs.join(name))?);
    }
    add("lib/storm.sh".to_owned(), 0o755, STORM.to_vec());
    let initrd = scene.folder.join("initramfs.cpio");
    let driver = artifacts.module(DEVICE_MODULE);
    place::write(&initrd, &initramfs::build(&artifacts.command(), &driver, &extras)?)?;
    let text = std::fs::read_to_string(super::one_guest())?
        .replace("built:initramfs.cpio", &initrd.display().to_string())
        .replace("memory_mib = 512", "memory_mib = 512\nvcpus = 2")
        .replace("\"log\"]", &format!("\"log\"{calls}]"));
    super::release(scene.bench, &scene.folder, &text)
}

/// Builds the guest's programs, which have a lock file of their own: one of them is not under our licence.
fn programs() -> Result<PathBuf> {
    process::run(
        "Building programs that read reports, for a guest",
        Command::new("cargo")
            .args(["build", "--quiet", "--release", "--locked", "--target", MUSL])
            .current_dir(place::root().join("tests/tsm"))
            .env("CARGO_TARGET_DIR", place::target())
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS"),
    )?;
    Ok(place::target().join(MUSL).join("release"))
}

/// Loads the modules: without a provider there are no reports.
fn load(shell: &mut Shell) -> Result<()> {
    for (name, _) in KERNEL_MODULES {
        shell.expect(&format!("insmod /lib/{name}"))?;
    }
    shell.expect("mount -t configfs none /sys/kernel/config")?;
    ensure!(shell.run(&format!("mkdir {REPORTS}/early"))?.status != 0, "a report without a provider");
    shell.expect(&format!("insmod /lib/{REPORT_MODULE}")).map(drop)
}

/// The crate `configfs-tsm`, unmodified, reads a report; the relying party judges it as it judges all evidence.
fn foreign_library(
    shell: &mut Shell,
    scene: &Scene<'_>,
    party: &RelyingParty,
    release: &Release,
) -> Result<()> {
    let nonce = demo::nonce()?;
    let digits = hex::encode(nonce);
    // Padded with zeroes, as `dolmen quote --nonce` does it.
    shell.expect(&format!("tsm-report dolmen {digits:0<128} /tmp/report"))?;
    let proof = Proof::save(&bring(shell, "/tmp/report")?, &nonce, &scene.folder.join("evidence"))?;
    party.trust(&proof)?;
    match party.verify(&proof)? {
        Verdict::Trusted => {}
        Verdict::Refused(checks, why) => bail!("a good report is refused ({}): {why}", checks.join(", ")),
    }
    match party.verify(&proof.about(&demo::nonce()?))? {
        Verdict::Refused(checks, _) if checks == ["report-data"] => {}
        other @ (Verdict::Refused(..) | Verdict::Trusted) => bail!("with another nonce: {other:?}"),
    }
    let key = party.export(&proof)?.join("ak.pub");
    party.checkquote(&proof, &key, &release.reference)?;
    // The same key signs what the guest's own command asks for.
    let own = guest::quote(shell, &digits)?;
    let own = Proof::save(&own, &nonce, &scene.folder.join("own"))?;
    ensure!(party.verify(&own)? == Verdict::Trusted, "evidence of the command is refused");
    let answer = shell.run(&format!("tsm-report tdx_guest {digits:0<128} /tmp/report"))?;
    ensure!(answer.status == 1 && answer.text().contains("dolmen"), "as TDX: {}", answer.text());
    keys(shell, &place::read(&key)?)
}

/// In a guest that may enrol, a report brings what vouches for its key: for each of these names, these bytes. The evidence
/// comes back.
pub(super) fn vouched(shell: &mut Shell, want: &[(&str, &[u8])]) -> Result<()> {
    load(shell)?;
    let read = format!(
        "tsm-report dolmen {} /tmp/report /tmp/keys && ls /tmp/keys | sort | tr '\\n' ' '",
        "5a".repeat(64)
    );
    let mut names: Vec<&str> = want.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    // Asked for once, and kept: the second report has the same.
    for _ in 0..2 {
        shell.expect("rm -rf /tmp/keys")?;
        let said = shell.expect(&read)?;
        ensure!(said.trim() == names.join(" "), "the auxiliary blob has {said:?}, not {names:?}");
        for (name, want) in want {
            let found = bring(shell, &format!("/tmp/keys/{name}"))?;
            ensure!(found == *want, "the auxiliary blob's {name} is {}", hex::encode(&found));
        }
        shell.expect(&format!("rmdir {REPORTS}/*"))?;
    }
    Ok(())
}

/// Beside the evidence there are the keys behind it (`docs/evidence.md`): the attestation key alone, if the guest may not
/// enrol.
fn keys(shell: &mut Shell, key: &[u8]) -> Result<()> {
    let report = shell.expect(&format!("ls {REPORTS}"))?;
    let keys = bring(shell, &format!("{REPORTS}/{}/auxblob", report.trim()))?;
    let length = u8::try_from(key.len()).context("a long key")?;
    let want = [&b"\xa2\x00\x6ddolmen-keys-1\x01\x58"[..], &[length], key].concat();
    ensure!(keys == want, "the auxiliary blob is {}", hex::encode(&keys));
    shell.expect(&format!("rmdir {REPORTS}/{}", report.trim())).map(drop)
}

/// What a report has, and what its generation counts.
fn attributes(shell: &mut Shell) -> Result<()> {
    let report = format!("{REPORTS}/one");
    let put = |count: usize| format!("head -c {count} /dev/zero >{report}/inblob");
    for (command, want) in [
        (
            format!("mkdir {report} && ls {report} | tr '\\n' ' '"),
            "auxblob generation inblob outblob provider",
        ),
        (format!("cat {report}/provider"), "dolmen"),
        (format!("cat {report}/generation"), "0"),
        // Nothing to bind yet.
        (format!("cat {report}/outblob 2>&1 >/dev/null | sed s/.*:.//"), "Invalid argument"),
        (format!("{}; cat {report}/generation", put(64)), "1"),
        // Read twice, it is the same: made once.
        (
            format!(
                "cat {report}/outblob >/tmp/1; cat {report}/outblob >/tmp/2; cmp /tmp/1 /tmp/2 && echo same"
            ),
            "same",
        ),
        (format!("{}; cat {report}/generation", put(64)), "2"),
        // Made anew for each generation, even about the same.
        (format!("cat {report}/outblob >/tmp/2; cmp -s /tmp/1 /tmp/2 || echo other"), "other"),
        // The TPM's quote binds 64 bytes; fewer are not padded behind the caller's back.
        (format!("{}; cat {report}/outblob 2>&1 >/dev/null | sed s/.*:.//", put(63)), "Invalid argument"),
        (format!("rmdir {report} && ls {REPORTS}"), ""),
    ] {
        let said = shell.expect(&command)?;
        ensure!(said.trim() == want, "`{command}` says {said:?}, not {want:?}");
    }
    Ok(())
}

/// Many callers at once, signals, deaths, and modules that go and come.
fn storm(shell: &mut Shell, seconds: u64) -> Result<()> {
    shell.expect(&format!("{{ sh /lib/storm.sh {seconds} >/tmp/storm.log 2>&1 & }}"))?;
    let limit = Duration::from_secs(seconds).saturating_add(GRACE);
    let start = Instant::now();
    while shell.run("grep -q '^storm: over' /tmp/storm.log")?.status != 0 {
        if start.elapsed() > limit {
            let state = shell.expect("cat /tmp/storm.log /tmp/storm/*; ps; dmesg | tail -n 40")?;
            bail!("the storm is not over after {} s:\n{state}", limit.as_secs());
        }
        thread::sleep(PAUSE);
    }
    let said = shell.expect("cat /tmp/storm.log")?;
    for line in said.lines() {
        ui::fact(line);
    }
    ensure!(!said.contains("storm: faults"), "it found faults: {said}");
    for (name, least) in LEAST {
        let begin = format!("storm: {name} done=");
        let line = said.lines().find_map(|line| line.strip_prefix(&begin));
        let done: u64 = line
            .and_then(|line| line.split(' ').next())
            .with_context(|| format!("no {name} in {said}"))?
            .parse()?;
        ensure!(done >= least, "{name} was done {done} times: {said}");
    }
    Ok(())
}

/// Memory that the kernel refuses, at one page more each time.
fn starve(shell: &mut Shell) -> Result<()> {
    shell.expect("mkdir -p /tmp/groups && mount -t cgroup2 none /tmp/groups")?;
    shell.expect("echo +memory >/tmp/groups/cgroup.subtree_control")?;
    let answer = shell.run("tsm-torment starve /tmp/groups")?;
    if answer.status != 0 {
        let log = shell.expect("dmesg | tail -n 60")?;
        bail!("without memory: status {}: {}\n{log}", answer.status, answer.text());
    }
    ui::fact(&format!("done and refused for want of memory: {}", answer.text()));
    // Nothing was killed for it, and all of it works as before.
    let killed = shell.expect("cat /tmp/groups/step-*/memory.events | grep '^oom_kill ' | sort -u")?;
    ensure!(killed.trim() == "oom_kill 0", "processes were killed: {killed}");
    shell.expect("tsm-torment device 1").map(drop)
}

/// With nobody left, both modules go, and come again.
fn unload(shell: &mut Shell) -> Result<()> {
    shell.expect(&format!("rmdir {REPORTS}/* 2>/dev/null; busybox rmmod dolmen_tsm"))?;
    shell.expect("busybox rmmod dolmen && test ! -e /dev/dolmen")?;
    ensure!(shell.run(&format!("insmod /lib/{REPORT_MODULE}"))?.status != 0, "it loads without the device");
    shell.expect(&format!("insmod /lib/{DEVICE_MODULE} && insmod /lib/{REPORT_MODULE}"))?;
    let data = "1".repeat(128);
    shell.expect(&format!("tsm-report dolmen {data} /tmp/report && tsm-torment device 1")).map(drop)
}

/// A file of the guest.
fn bring(shell: &mut Shell, path: &str) -> Result<Vec<u8>> {
    let text = shell.expect(&format!("base64 {path}"))?;
    let digits: String = text.split_whitespace().collect();
    STANDARD.decode(digits).with_context(|| format!("{} is not base64", Path::new(path).display()))
}
