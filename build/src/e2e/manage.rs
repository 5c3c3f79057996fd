//! `dolmen ps`, `top`, `start`, `stop` and `reset` from the shell of an unmodified guest, upon guests of several
//! processors that run on several.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Case, Scene};
use crate::guest::{self, Opened};
use crate::lab::{self, GUEST, Release};
use crate::machine::Machine;
use crate::machine::shell::{Answer, Shell};
use crate::machine::stream::Stream;
use crate::place;

/// Longest wait for something that a small guest does.
const LIMIT: Duration = Duration::from_secs(60);
/// More runners than the guest has processors.
const BUSY: &str = "for n in 1 2 3 4 5 6; do { while :; do :; done & }; done";

/// The tests of this file.
pub(super) const CASES: &[Case] = &[
    Case { name: "a_shell_lists_starts_stops_and_watches_other_guests", run: from_a_shell },
    Case { name: "guests_of_four_processors_restart_on_two", run: on_two },
    Case { name: "guests_of_four_processors_restart_on_four", run: on_four },
];

/// One that may manage, one that may not, and two small ones.
struct Town {
    machine: Machine,
    warden: Shell,
    /// Its shell, while nothing keeps it busy.
    office: Option<Shell>,
    team: Stream,
    spare: Stream,
}

impl Town {
    fn open(scene: &Scene<'_>, cpus: u32) -> Result<Self> {
        let release = release(scene)?;
        let lab = scene.lab("bios")?.with_cpus(cpus);
        let mut machine = lab.boot("town", &release.parts)?;
        lab::measured(&mut machine)?;
        let (team, spare) = (machine.log.guest("team")?, machine.log.guest("spare")?);
        let office = machine.log.guest("office")?;
        let console = machine.console.take().context("no console")?;
        let (warden, office) = (Shell::wait(console, GUEST)?, Some(Shell::wait(office, GUEST)?));
        Ok(Self { machine, warden, office, team, spare })
    }

    /// Starts the small one of four processors, which keeps them all awake.
    fn start_team(&mut self) -> Result<()> {
        self.says("dolmen start team", "team runs")?;
        is_alive(&mut self.team)
    }

    /// A command of the warden's that must fail so.
    fn refused(&mut self, command: &str, want: &str) -> Result<()> {
        is_refused(&self.warden.run(command)?, command, want)
    }

    /// A command of the warden's that must say exactly this.
    fn says(&mut self, command: &str, want: &str) -> Result<()> {
        let said = self.warden.expect(command)?;
        ensure!(said == want, "`{command}` says {said:?}, not {want:?}");
        Ok(())
    }

    /// What JSON tells of a guest.
    fn told(&mut self, name: &str) -> Result<Value> {
        let said = self.warden.expect("dolmen --json ps")?;
        let list: Value = serde_json::from_str(&said).context("not JSON")?;
        let all = list.get("guests").and_then(Value::as_array).context("no list of guests")?;
        let one = all.iter().find(|guest| guest.get("name").is_some_and(|own| own == name));
        one.cloned().with_context(|| format!("{name} is not in {said}"))
    }

    /// No guest has found anything wrong, and the machine's run goes on.
    fn close(self) -> Result<()> {
        let lines = self.machine.log.lines();
        let bad = lines.iter().find(|line| line.contains("FAIL") || line.starts_with("stop: "));
        ensure!(bad.is_none(), "{bad:?}");
        Ok(())
    }
}

/// A small guest has begun anew, with clean memory and all its processors.
fn is_alive(guest: &mut Stream) -> Result<()> {
    guest.wait_for("memory is clean", LIMIT)?;
    guest.wait_for("beat 3", LIMIT).map(drop)
}

fn is_refused(answer: &Answer, command: &str, want: &str) -> Result<()> {
    let text = answer.text();
    let is_one_line = text.starts_with("dolmen: ") && text.lines().count() == 1;
    ensure!(
        answer.status == 1 && is_one_line && text.contains(want),
        "`{command}` ended with {}: {text}",
        answer.status
    );
    Ok(())
}

fn from_a_shell(scene: &Scene<'_>) -> Result<()> {
    let mut town = Town::open(scene, 2)?;
    town.start_team()?;
    list(&mut town, scene)?;
    watch(&mut town, scene)?;
    for command in ["dolmen ps", "dolmen top", "dolmen stop warden", "dolmen reset team"] {
        is_refused(
            &town.office.as_mut().context("no shell")?.run(command)?,
            command,
            "dolmen: this guest may not see or manage other guests (NOT_PERMITTED). Hint: add \"manage\" to \
             `hypercalls` in its part of the manifest",
        )?;
    }
    start_and_stop(&mut town)?;
    share_secrets(&mut town)?;
    town.close()
}

/// `dolmen ps`, for people and for programs.
fn list(town: &mut Town, scene: &Scene<'_>) -> Result<()> {
    let text = town.warden.expect("dolmen ps")?;
    place::write(&scene.folder.join("ps.txt"), text.as_bytes())?;
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let heading = ["GUEST", "STATE", "FOR", "CPU", "VCPUS", "MEMORY", "STARTS", "LAST", "STOP"];
    ensure!(rows.first().is_some_and(|row| row == &heading), "no heading:\n{text}");
    for (row, (name, state, vcpus, starts)) in rows.iter().skip(1).zip([
        ("warden*", "running", "2", "1"),
        ("office", "running", "4", "1"),
        ("team", "running", "4", "1"),
        ("spare", "off", "2", "0"),
    ]) {
        let [is_name, is_state, _, _, has_vcpus, _, "MiB", has_starts, "-"] = row.as_slice() else {
            anyhow::bail!("{row:?} in\n{text}");
        };
        ensure!(
            (*is_name, *is_state, *has_vcpus, *has_starts) == (name, state, vcpus, starts),
            "not {name}:\n{text}"
        );
    }
    ensure!(rows.len() == 5, "not four guests:\n{text}");
    let team = town.told("team")?;
    let at = |field: &str| team.get(field).and_then(Value::as_u64).unwrap_or_default();
    ensure!(at("vcpus") == 4 && at("memory") == 64 << 20 && at("cpu_ns") > 0, "JSON says {team}");
    ensure!(
        team.pointer("/exits/port").and_then(Value::as_u64).unwrap_or_default() > 0,
        "no exits in {team}"
    );
    Ok(())
}

/// `dolmen top`: on the console until a key ends it, into a file, and for programs.
fn watch(town: &mut Town, scene: &Scene<'_>) -> Result<()> {
    let settings = town.warden.expect("stty -a </dev/console")?;
    let live = town.warden.press("dolmen top </dev/console", "spare", b"q")?;
    place::write(&scene.folder.join("top-live.txt"), live.text().as_bytes())?;
    ensure!(live.status == 0 && live.text().contains("\x1b[H"), "not live: {live:?}");
    ensure!(town.warden.expect("stty -a </dev/console")? == settings, "the terminal is not as it was");
    let text = town.warden.expect("dolmen top --count 2 | cat")?;
    place::write(&scene.folder.join("top.txt"), text.as_bytes())?;
    let heads = text.lines().filter(|line| line.contains("3 of 4 guests run")).count();
    ensure!(heads == 2 && !text.contains('\x1b'), "not two plain tables:\n{text}");
    let team: Vec<&str> = text.lines().filter(|line| line.starts_with("team ")).collect();
    for row in &team {
        let cells: Vec<&str> = row.split_whitespace().collect();
        let [_, "running", cpu, exits, ..] = cells.as_slice() else { anyhow::bail!("{row:?}") };
        let (cpu, exits): (f64, u64) = (cpu.parse()?, exits.parse()?);
        // Its first processor never rests.
        ensure!(cpu > 5.0 && cpu < 401.0 && exits > 100, "{row:?}");
    }
    ensure!(team.len() == 2, "not in both tables:\n{text}");
    let json = town.warden.expect("dolmen --json top --count 2")?;
    for line in json.lines() {
        let frame: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
        let guests = frame.get("guests").and_then(Value::as_array).context("no guests")?;
        ensure!(guests.len() == 4, "not four guests: {line}");
    }
    ensure!(json.lines().count() == 2, "not two frames: {json}");
    Ok(())
}

/// `dolmen start` and `stop`, as they should and as they should not be used.
fn start_and_stop(town: &mut Town) -> Result<()> {
    town.refused("dolmen start nobody", "dolmen: no guest is called nobody; `dolmen ps` lists them")?;
    let wrong = "(WRONG_STATE)";
    town.refused("dolmen stop spare", wrong)?;
    town.refused("dolmen start team", wrong)?;
    town.says("dolmen start spare", "spare runs")?;
    is_alive(&mut town.spare)?;
    town.refused("dolmen start spare", wrong)?;
    town.says("dolmen stop spare", "spare is stopped, its memory wiped")?;
    let spare = town.told("spare")?;
    let is = |field: &str, want: &str| spare.get(field).is_some_and(|own| own == want);
    ensure!(is("state", "stopped") && is("last_stop", "requested"), "JSON says {spare}");
    town.says("dolmen start spare", "spare runs")?;
    is_alive(&mut town.spare)?;
    let said = town.warden.expect("dolmen --json reset spare")?;
    let told: Value = serde_json::from_str(&said).context("not JSON")?;
    ensure!(told.get("starts").is_some_and(|starts| *starts == 3), "JSON says {said}");
    is_alive(&mut town.spare)
}

/// What one guest seals to the manifest opens in the other; what it seals to itself does not.
fn share_secrets(town: &mut Town) -> Result<()> {
    const SECRET: &str = "the key to the cellar";
    let office = town.office.as_mut().context("no shell")?;
    for (policy, opens) in
        [("guest", false), ("manifest", true), ("guest,manifest", false), ("any-guest", true)]
    {
        let blob = guest::seal_to(&mut town.warden, policy, "cellar", SECRET)?;
        let opened = guest::unseal(office, "cellar", &blob)?;
        let is_open = opened == Opened::Secret(SECRET.to_owned());
        ensure!(is_open == opens, "sealed to {policy}, in another guest: {opened:?}");
        ensure!(
            guest::unseal(&mut town.warden, "cellar", &blob)? == Opened::Secret(SECRET.to_owned()),
            "sealed to {policy}, it no longer opens for who sealed it"
        );
    }
    town.warden.expect(
        "echo -n x | dolmen -o /tmp/blob seal - && printf '\\011' | dd of=/tmp/blob bs=1 seek=8 conv=notrunc",
    )?;
    let newer = town.warden.run("dolmen unseal /tmp/blob")?;
    ensure!(newer.status == 4 && newer.text().contains("NEWER_BLOB"), "of a newer version: {newer:?}");
    Ok(())
}

fn on_two(scene: &Scene<'_>) -> Result<()> {
    restart(scene, 2)
}

fn on_four(scene: &Scene<'_>) -> Result<()> {
    restart(scene, 4)
}

/// Guests of four processors, at work on all of them, are reset, stopped and started.
fn restart(scene: &Scene<'_>, cpus: u32) -> Result<()> {
    let mut town = Town::open(scene, cpus)?;
    let mut office = town.office.take().context("no shell")?.leave(BUSY)?;
    let (reset, stop_and_start) = ("dolmen reset office", "dolmen stop office && dolmen start office");
    for (command, want) in
        [(reset, "office runs"), (stop_and_start, "office is stopped, its memory wiped\noffice runs")]
    {
        town.says(command, want)?;
        let mut shell = Shell::wait(office, GUEST)?;
        super::linux::content(&mut shell, &scene.folder.join("dmesg.txt"))?;
        super::linux::look(&mut shell)?;
        office = shell.leave(BUSY)?;
    }
    town.start_team()?;
    for _ in 0..5 {
        town.says("dolmen reset team", "team runs")?;
        is_alive(&mut town.team)?;
    }
    for _ in 0..3 {
        town.says("dolmen stop team", "team is stopped, its memory wiped")?;
        town.start_team()?;
    }
    let team = town.told("team")?;
    ensure!(team.get("starts").is_some_and(|starts| *starts == 9), "JSON says {team}");
    town.close()
}

fn release(scene: &Scene<'_>) -> Result<Release> {
    let artifacts = &scene.bench.artifacts;
    let micro = scene.micro.parts.components.first().context("no micro-guest")?.display().to_string();
    let linux = |name: &str, more: &str| {
        format!(
            "[[guest]]\nname = \"{name}\"\nmemory_mib = 448\nkernel = \"{}\"\ninitrd = \"{}\"\n\
             cmdline = \"console=ttyS0,115200\"\n{more}\n",
            artifacts.file("vmlinuz").display(),
            artifacts.file("initramfs.cpio").display(),
        )
    };
    let small = |name: &str, more: &str| {
        format!(
            "[[guest]]\nname = \"{name}\"\nmemory_mib = 64\nformat = \"pvh\"\nkernel = \"{micro}\"\n\
             cmdline = \"role=resident\"\n{more}\n"
        )
    };
    let text = [
        linux("warden", "vcpus = 2\nconsoles = [\"com2\"]\nhypercalls = [\"manage\", \"seal\"]"),
        linux("office", "vcpus = 4\nconsoles = [\"multiplexed\"]\nhypercalls = [\"random\", \"seal\"]"),
        small("team", "vcpus = 4\nstart = \"on-demand\""),
        small("spare", "vcpus = 2\nstart = \"on-demand\""),
    ];
    super::release(scene.bench, &scene.folder, &text.concat())
}
