//! A guest keeps its host attested in push mode, until the host is launched otherwise.
//!
//! The guest has no network: IP goes over its second serial port, SLIP in Debian's generic kernel at the one end and the
//! program `slirp` at the other, whose host is this machine's loopback.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::site::{ADDRESS, Site};
use crate::artifact::{self, DEVICE_MODULE};
use crate::initramfs::{self, Extra};
use crate::kernel::{CURRENT, Kernel};
use crate::lab::{self, GUEST, Lab, Release};
use crate::machine::shell::Shell;
use crate::machine::stream::Stream;
use crate::machine::swtpm::Maker;
use crate::machine::{Machine, child};
use crate::test::Bench;
use crate::{e2e, kernel, package, place, ui};

/// The test.
pub(super) const NAME: &str = "a guest keeps its host attested at Keylime until something else is launched";
/// The host's name at Keylime.
const AGENT: &str = "d0e5e000-0000-4000-8000-00000000d01e";
/// The calls that the agent needs.
const MAY: &str = "\"host-quote\", \"enrol\", \"log\"";
/// Attestations that must pass.
const ENOUGH: u64 = 3;
/// Longest wait for a change at the verifier.
const CHANGE: Duration = Duration::from_secs(180);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(500);
/// The kernel's modules for IP over a serial line, and the names that they have in the guest.
const SLIP: [(&str, &str); 2] =
    [("drivers/net/slip/slhc.ko", "lib/slhc.ko"), ("drivers/net/slip/slip.ko", "lib/slip.ko")];
/// The C library of this machine and its loader: `slattach` is linked with it.
const LIBRARY: [(&str, &str); 2] = [
    ("/lib64/ld-linux-x86-64.so.2", "lib/ld-linux-x86-64.so.2"),
    ("/lib/x86_64-linux-gnu/libc.so.6", "lib/libc.so.6"),
];
/// What the guest does to have a network.
const NETWORK: &str = "insmod /lib/slhc.ko && insmod /lib/slip.ko && \
    { /lib/ld-linux-x86-64.so.2 --library-path /lib /bin/slattach -L -p slip -s 115200 /dev/ttyS1 >/tmp/slattach 2>&1 & } && \
    for n in 1 2 3 4 5 6 7 8 9; do busybox ifconfig sl0 10.0.2.15 pointopoint 10.0.2.2 mtu 1500 up 2>/dev/null && break; sleep 1; done && \
    busybox ifconfig sl0";

/// The story.
pub(super) fn story(bench: &Bench, site: &Site, work: &Path) -> Result<()> {
    let folder = work.join("push");
    let maker = Maker::of(&folder.join("maker"))?;
    let lab = Lab::new(&bench.tools, &bench.artifacts, "bios", &folder.join("machine"), e2e::ALL_BANKS)?
        .with_tpm_by(&maker)?;
    place::copy(&maker.root(), &site.makers().join("root.pem"))?;
    place::copy(&maker.intermediate(), &site.makers().join("intermediate.pem"))?;
    let system = System::of(bench, site, &maker, &folder)?;
    let honest = system.release(bench, &folder.join("honest"), &[("agent", MAY)])?;
    attested(&lab, site, &honest, &folder)?;
    // Another hypervisor has another key.
    let evil = Release { parts: e2e::launch::flip_core(&honest.parts, &folder)?, ..honest };
    unknown(&lab, site, &evil)?;
    // The same hypervisor, another manifest: the same key, another PCR 18.
    let guests = [("agent", MAY), ("bystander", "\"log\"")];
    let other = system.release(bench, &folder.join("other"), &guests)?;
    refused(&lab, site, &other)
}

/// What the guest consists of.
struct System {
    kernel: Kernel,
    initrd: PathBuf,
}

impl System {
    /// Debian's generic kernel, since the other has no SLIP, with its driver, and the agent.
    fn of(bench: &Bench, site: &Site, maker: &Maker, folder: &Path) -> Result<Self> {
        let kernel = kernel::ensure_generic_modules(&CURRENT, &SLIP.map(|(within, _)| within))?;
        let driver = artifact::driver(&kernel, &place::output().join("driver-generic"))?;
        let agent = artifact::keylime_agent()?;
        let mut extras = Vec::new();
        let mut add = |path: &str, rights, content| {
            extras.push(Extra { path: path.to_owned(), rights, content });
        };
        for (within, path) in SLIP {
            add(path, 0o644, kernel.module(within)?);
        }
        for (here, path) in LIBRARY {
            add(path, 0o755, place::read(Path::new(here))?);
        }
        add("bin/slattach", 0o755, place::read(&package::file("net-tools", "sbin/slattach")?)?);
        add("bin/dolmen-keylime", 0o755, place::read(&agent)?);
        add("root/ca.pem", 0o644, place::read(&site.authority())?);
        add("root/other-ca.pem", 0o644, place::read(&maker.root())?);
        let archive = initramfs::build(&bench.artifacts.command(), &driver.join(DEVICE_MODULE), &extras)?;
        let initrd = folder.join("initramfs.cpio");
        place::write(&initrd, &archive)?;
        Ok(Self { kernel, initrd })
    }

    /// A release with guests of these names, which may make these calls. The first has the second serial port.
    fn release(&self, bench: &Bench, folder: &Path, guests: &[(&str, &str)]) -> Result<Release> {
        let mut text = String::new();
        for (index, (name, calls)) in guests.iter().enumerate() {
            let second = if index == 0 { ", \"com2\"" } else { "" };
            write!(
                text,
                "[[guest]]\nname = \"{name}\"\nmemory_mib = 512\nformat = \"linux\"\n\
                 consoles = [\"multiplexed\"{second}]\nhypercalls = [{calls}]\n\
                 kernel = \"{}\"\ninitrd = \"{}\"\ncmdline = \"console=ttyS0,115200\"\n",
                self.kernel.image.display(),
                self.initrd.display()
            )?;
        }
        Release::of(&bench.artifacts, folder, &text)
    }
}

/// `slirp`, unmodified, at the machine's second serial port.
struct Slirp(Child);

impl Slirp {
    fn at(port: &Stream) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair().context("cannot make a socket")?;
        let mut command = child::bound_to_us("slirp-fullbolt");
        command.arg("mtu 1500").stdin(OwnedFd::from(theirs.try_clone()?)).stdout(OwnedFd::from(theirs));
        let child = command.stderr(Stdio::null()).spawn();
        let child = child.context("cannot start slirp-fullbolt; `cargo xtask setup` installs it")?;
        let (to, mut from) = (ours.try_clone()?, ours);
        port.follow_bytes(move |bytes| {
            // When slirp is gone, the test has ended.
            drop((&to).write_all(bytes));
        });
        let mut machine = port.again()?;
        thread::spawn(move || {
            let mut piece = [0; 2048];
            while let Ok(count @ 1..) = from.read(&mut piece) {
                if machine.send(piece.get(..count).unwrap_or_default()).is_err() {
                    return;
                }
            }
        });
        Ok(Self(child))
    }
}

impl Drop for Slirp {
    fn drop(&mut self) {
        child::end(&mut self.0);
    }
}

/// A machine whose guest has a network.
struct Online {
    shell: Shell,
    _slirp: Slirp,
    machine: Machine,
}

impl Online {
    fn boot(lab: &Lab<'_>, cycle: &str, release: &Release) -> Result<Self> {
        let mut machine = lab.boot(cycle, &release.parts)?;
        lab::measured(&mut machine)?;
        let slirp = Slirp::at(machine.console.as_ref().context("no second port")?)?;
        let guest = release.manifest.guests.first().context("no guest")?;
        let console = machine.console_of(guest)?;
        let mut shell = Shell::wait(console, GUEST)?;
        shell.expect(NETWORK)?;
        Ok(Self { shell, _slirp: slirp, machine })
    }

    /// Lets the agent run once; its status and what it says.
    fn once(&mut self, site: &Site, authority: &str) -> Result<(i32, String)> {
        let answer = self.shell.run(&format!("{} --once 2>&1", agent(site, authority)))?;
        Ok((answer.status, answer.text()))
    }
}

/// The agent's command line.
fn agent(site: &Site, authority: &str) -> String {
    format!(
        "dolmen-keylime --registrar https://{ADDRESS}:{} --verifier https://{ADDRESS}:{} --ca /root/{authority} \
         --agent {AGENT} --interval 1 --json",
        site.registrar, site.verifier
    )
}

/// The honest host: registered, enrolled, and attested again and again.
fn attested(lab: &Lab<'_>, site: &Site, release: &Release, folder: &Path) -> Result<()> {
    let mut online = Online::boot(lab, "honest", release)?;
    let (status, said) = online.once(site, "other-ca.pem")?;
    ensure!(status == 1 && said.contains("--ca"), "with another authority: {status}: {said}");
    ensure!(!said.contains("registered"), "it registers at a server that nobody vouches for: {said}");
    // Not enrolled yet: it registers, and is told what to do.
    online.shell.expect(&format!("{{ {} >/tmp/agent 2>&1 & }}", agent(site, "ca.pem")))?;
    online.wait_for("registered")?;
    online.wait_for("keylime_tenant -c add --push-model")?;
    enrol(site, release, folder)?;
    let agent = change(site, "passes", |agent| {
        agent.get("attestation_count").and_then(Value::as_u64) >= Some(ENOUGH)
    });
    let agent = agent.with_context(|| online.shell.expect("tail -n 5 /tmp/agent").unwrap_or_default())?;
    ensure!(status_of(&agent) == "PASS", "the verifier says {agent}");
    ui::fact(&format!("{} attestations passed", agent.get("attestation_count").unwrap_or(&Value::Null)));
    online.wait_for("\"attestation\":\"2\"")?;
    drop(online.machine.cut_power()?);
    Ok(())
}

/// The tenant adds the host: what its registers must hold, and what its log must replay to.
fn enrol(site: &Site, release: &Release, folder: &Path) -> Result<()> {
    let bank = release.reference.bank("sha256")?;
    let pins = super::pins(&bank.pcr17, Some(&bank.pcr18));
    let policy = folder.join("reference-values.json");
    place::write(&policy, serde_json::to_string(&release.reference)?.as_bytes())?;
    let policy = policy.to_str().context("a path that is not text")?;
    let who = ["-c", "add", "--push-model", "-u", AGENT, "--tpm_policy", &pins, "--mb-policy", policy];
    site.tenant(&who).map(drop)
}

/// Another hypervisor: nobody takes its key, and the host falls silent.
fn unknown(lab: &Lab<'_>, site: &Site, release: &Release) -> Result<()> {
    let mut online = Online::boot(lab, "evil", release)?;
    let (status, said) = online.once(site, "ca.pem")?;
    ensure!(status == 1 && said.contains("keylime_tenant -c regdelete"), "status {status}: {said}");
    ensure!(!said.contains("registered") && !said.contains("session"), "another key is taken: {said}");
    change(site, "falls silent", |agent| status_of(agent) == "TIMEOUT").map(drop)
}

/// What was launched otherwise: its attestations come, and fail for PCR 18.
fn refused(lab: &Lab<'_>, site: &Site, release: &Release) -> Result<()> {
    let mut online = Online::boot(lab, "other", release)?;
    let before = site.verifiers_log()?.len();
    let (status, said) = online.once(site, "ca.pem")?;
    ensure!(status == 0 && said.contains("sent"), "status {status}: {said}");
    change(site, "fails", |agent| status_of(agent) == "FAIL")?;
    let log = site.verifiers_log()?;
    let judged = log.get(before..).unwrap_or_default();
    ensure!(judged.contains("PCR #18") && !judged.contains("PCR #17: "), "another reason:\n{judged}");
    // The other guest may not speak of the host, and is told what it lacks before anything is sent.
    let bystander = release.manifest.guests.get(1).context("no second guest")?;
    let mut shell = Shell::wait(online.machine.console_of(bystander)?, GUEST)?;
    let answer = shell.run(&format!("{} --once 2>&1", agent(site, "ca.pem")))?;
    let said = answer.text();
    ensure!(
        answer.status == 1 && said.contains("`host-quote`, `enrol` and `log`"),
        "the other guest: {said}"
    );
    Ok(())
}

impl Online {
    /// Waits until the agent in the background says this.
    fn wait_for(&mut self, words: &str) -> Result<()> {
        let start = Instant::now();
        while self.shell.run(&format!("grep -qF -- '{words}' /tmp/agent"))?.status != 0 {
            if start.elapsed() > CHANGE {
                bail!("the agent does not say {words}: {}", self.shell.expect("tail -n 20 /tmp/agent")?);
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }
}

/// What the verifier calls the agent's state.
fn status_of(agent: &Value) -> &str {
    agent.get("attestation_status").and_then(Value::as_str).unwrap_or_default()
}

/// Waits until the verifier has what is wanted on the agent.
fn change(site: &Site, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let start = Instant::now();
    loop {
        let agent = site.agent(AGENT)?;
        if wanted(&agent) {
            return Ok(agent);
        }
        if start.elapsed() > CHANGE {
            bail!("the host {what} not within {} s: {agent}", CHANGE.as_secs());
        }
        thread::sleep(PAUSE);
    }
}
