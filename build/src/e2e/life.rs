//! Guests that start, stop, crash and start again while others go on; and who may say so.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{Case, Scene, release};
use crate::lab::{LAUNCH, Lab, Release, STANDS_STILL};
use crate::machine::Machine;
use crate::machine::debugger::Socket;
use crate::machine::stream::Stream;
use crate::place;

/// Longest wait for something that a guest does.
const LIMIT: Duration = Duration::from_secs(60);

/// Bytes of a file that takes its time to be copied, and none to be compared since it is not measured.
const LARGE: usize = 40 << 20;
/// How long after its beginning a start is cut short.
const MOMENTS: [Duration; 6] = [
    Duration::from_millis(0),
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(150),
    Duration::from_millis(200),
];

/// The tests of this file.
pub(super) const CASES: &[Case] = &[
    Case { name: "a_guest_is_reset_while_another_goes_on_and_finds_nothing_of_its_last_run", run: reset },
    Case { name: "a_guest_that_crashes_starts_again_up_to_its_limit", run: crash },
    Case { name: "a_guest_starts_on_demand_of_the_one_that_may_and_of_nobody_else", run: demand },
    Case { name: "a_start_that_is_cut_short_leaves_nothing_to_the_next_one", run: cut_short },
    Case { name: "no_guest_can_forge_a_line_of_the_log", run: forge },
    Case { name: "a_guest_whose_file_changed_in_memory_does_not_run_again", run: changed },
    Case { name: "while_one_guest_waits_for_the_tpm_the_others_go_on", run: slow_tpm },
];

/// A micro-guest that obeys its console.
fn guest(scene: &Scene<'_>, name: &str, role: &str, more: &str) -> Result<String> {
    let kernel = scene.micro.parts.components.first().context("no micro-guest")?.display();
    Ok(format!(
        "[[guest]]\nname = \"{name}\"\nmemory_mib = 64\nformat = \"pvh\"\nkernel = \"{kernel}\"\n\
         cmdline = \"role={role}\"\n{more}\n"
    ))
}

/// The one that manages the others.
fn warden(scene: &Scene<'_>) -> Result<String> {
    guest(scene, "warden", "quiet", "consoles = [\"com2\"]\nhypercalls = [\"manage\"]")
}

/// Four guests that obey their consoles: one that manages, two that count aloud, one that is off.
fn village(scene: &Scene<'_>) -> Result<Release> {
    let alpha = "hypercalls = [\"registers\", \"quote\"]\non_crash = \"restart\"\nrestart_limit = 2";
    let beta = "hypercalls = [\"registers\", \"quote\", \"log\"]";
    let text = [
        warden(scene)?,
        guest(scene, "alpha", "resident", alpha)?,
        guest(scene, "beta", "resident", beta)?,
        guest(scene, "spare", "resident", "start = \"on-demand\"")?,
    ];
    release(scene.bench, &scene.folder.join("village"), &text.concat())
}

/// The machine with those guests, all that start with it at work.
struct Village {
    machine: Machine,
    warden: Stream,
    alpha: Stream,
    beta: Stream,
    spare: Stream,
}

impl Village {
    fn open(lab: &Lab<'_>, release: &Release) -> Result<Self> {
        Self::open_with(lab, release, &[])
    }

    fn open_with(lab: &Lab<'_>, release: &Release, more: &[String]) -> Result<Self> {
        let more = [&STANDS_STILL.map(str::to_owned), more].concat();
        let mut machine = lab.boot_with("one", &release.parts, None, &more)?;
        machine.log.wait_for("serve: guest runs name=beta", LAUNCH)?;
        let guest = |name| machine.log.guest(name);
        let (mut alpha, mut beta, spare) = (guest("alpha")?, guest("beta")?, guest("spare")?);
        let mut warden = machine.console.take().context("no console")?;
        warden.wait_for("memory is clean", LIMIT)?;
        alpha.wait_for("memory is clean", LIMIT)?;
        beta.wait_for("beat 3", LIMIT)?;
        Ok(Self { machine, warden, alpha, beta, spare })
    }

    /// One guest's line in the list.
    fn listed(&mut self, name: &str) -> Result<String> {
        listed(&mut self.warden, name)
    }

    /// No guest has found anything wrong, and the machine's run goes on.
    fn close(self) -> Result<()> {
        let lines = [self.machine.log.lines(), self.warden.lines()].concat();
        match lines.iter().find(|line| line.contains("FAIL") || line.starts_with("stop: ")) {
            Some(line) => bail!("`{line}`"),
            None => Ok(()),
        }
    }
}

/// One guest's line in the list that another one asks for.
fn listed(warden: &mut Stream, name: &str) -> Result<String> {
    warden.send(b"ps\r")?;
    let line = warden.wait_for(&format!("guest {name} "), LIMIT)?;
    warden.wait_for("done ps: OK", LIMIT)?;
    Ok(line)
}

/// Stops a guest, and waits until its memory is wiped.
fn put_to_rest(warden: &mut Stream, name: &str) -> Result<()> {
    expect(warden, &format!("stop {name}"), "OK")?;
    let begin = Instant::now();
    while !listed(warden, name)?.contains("stopped requested") {
        ensure!(begin.elapsed() < LIMIT, "{name} does not come to rest");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Tells a guest something, and waits for what it answers.
fn tell(guest: &mut Stream, line: &str) -> Result<String> {
    guest.send(format!("{line}\r").as_bytes())?;
    let done = format!("done {line}: ");
    guest.find(&format!("`{done}`"), LIMIT, |said| said.strip_prefix(&done).map(str::to_owned))
}

fn expect(guest: &mut Stream, line: &str, want: &str) -> Result<()> {
    let answer = tell(guest, line)?;
    ensure!(answer == want, "`{line}` was answered with {answer}, not {want}");
    Ok(())
}

fn reset(scene: &Scene<'_>) -> Result<()> {
    let lab = scene.lab("bios")?;
    let mut village = Village::open(&lab, &village(scene)?)?;
    expect(&mut village.alpha, "extend", "OK")?;
    expect(&mut village.alpha, "registers", "extended")?;
    expect(&mut village.warden, "reset alpha", "OK")?;
    village.machine.log.wait_for("serve: guest asked for name=alpha request=Reset", LIMIT)?;
    village.machine.log.wait_for("serve: guest runs name=alpha starts=2", LIMIT)?;
    village.alpha.wait_for("memory is clean", LIMIT)?;
    expect(&mut village.alpha, "registers", "fresh")?;
    expect(&mut village.alpha, "extend", "OK")?;
    // A guest's own reset is the same: it starts again by itself.
    village.alpha.send(b"reset\r")?;
    village.machine.log.wait_for("serve: guest stopped name=alpha cause=reboot", LIMIT)?;
    village.alpha.wait_for("memory is clean", LIMIT)?;
    expect(&mut village.alpha, "registers", "fresh")?;
    let listed = village.listed("alpha")?;
    ensure!(listed.contains("running reboot starts=3 restarts=1"), "the list says: {listed}");
    let lines = village.machine.log.lines();
    let at = |text: &str| lines.iter().position(|line| line.contains(text)).context("a line is gone");
    let (asked, runs) = (at("guest asked for name=alpha")?, at("guest runs name=alpha starts=2")?);
    let beats = lines.get(asked..runs).unwrap_or_default().iter().filter(|line| line.contains("[beta] beat"));
    ensure!(beats.count() > 0, "the other guest was silent while this one was reset");
    ensure!(village.listed("beta")?.contains("starts=1 restarts=0"), "the other guest was reset too");
    village.close()
}

fn crash(scene: &Scene<'_>) -> Result<()> {
    let lab = scene.lab("bios")?;
    let mut village = Village::open(&lab, &village(scene)?)?;
    for start in 2..=3 {
        village.alpha.send(b"crash\r")?;
        village.machine.log.wait_for("serve: guest stopped name=alpha cause=triple-fault rip=0x", LIMIT)?;
        village.machine.log.wait_for(&format!("serve: guest runs name=alpha starts={start}"), LIMIT)?;
        village.alpha.wait_for("memory is clean", LIMIT)?;
    }
    village.alpha.send(b"crash\r")?;
    village.machine.log.wait_for("guest at rest, memory wiped name=alpha cause=triple-fault", LIMIT)?;
    let listed = village.listed("alpha")?;
    ensure!(listed.contains("stopped triple-fault starts=3 restarts=2 rip=0x"), "the list says: {listed}");
    ensure!(listed.contains("ran=true had=true"), "the list says: {listed}");
    expect(&mut village.warden, "stop alpha", "WRONG_STATE")?;
    expect(&mut village.warden, "reset alpha", "WRONG_STATE")?;
    expect(&mut village.warden, "start alpha", "OK")?;
    village.alpha.wait_for("memory is clean", LIMIT)?;
    expect(&mut village.warden, "start alpha", "WRONG_STATE")?;
    village.beta.wait_for("beat ", LIMIT)?;
    village.close()
}

fn demand(scene: &Scene<'_>) -> Result<()> {
    let lab = scene.lab("bios")?;
    let mut village = Village::open(&lab, &village(scene)?)?;
    for line in ["ps", "start spare", "stop alpha", "reset beta"] {
        expect(&mut village.beta, line, "NOT_PERMITTED")?;
    }
    ensure!(village.listed("spare")?.contains("off none starts=0"), "it is not off");
    expect(&mut village.warden, "stop nobody", "NO_SUCH_GUEST")?;
    expect(&mut village.warden, "start spare", "OK")?;
    village.spare.wait_for("memory is clean", LIMIT)?;
    village.spare.wait_for("beat 2", LIMIT)?;
    expect(&mut village.warden, "stop spare", "OK")?;
    village.machine.log.wait_for("guest at rest, memory wiped name=spare cause=requested", LIMIT)?;
    expect(&mut village.warden, "start spare", "OK")?;
    village.spare.wait_for("memory is clean", LIMIT)?;
    for name in ["alpha", "beta", "spare"] {
        expect(&mut village.warden, &format!("stop {name}"), "OK")?;
        village.machine.log.wait_for(&format!("memory wiped name={name} cause=requested"), LIMIT)?;
    }
    // Nobody is left who could start another one.
    village.warden.send(b"stop warden\r")?;
    village.machine.log.wait_for("stop: the guest stopped: warden: requested", LIMIT)?;
    village.machine.log.wait_for("memory wiped, PCR 17 and 18 capped", LIMIT)?;
    Ok(())
}

/// A large guest is stopped at some moments of its loading; the start after each must be whole. (That its memory is not
/// empty it notes itself: the file is there.)
fn cut_short(scene: &Scene<'_>) -> Result<()> {
    let (module, data) = (scene.folder.join("module"), scene.folder.join("data"));
    place::write(&module, b"something measured")?;
    place::write(&data, &vec![0x5a; LARGE])?;
    let files = format!("modules = [\"{}\"]\ndata = [\"{}\"]", module.display(), data.display());
    let late = format!("start = \"on-demand\"\n{files}");
    let text = [warden(scene)?, guest(scene, "spare", "resident", &late)?];
    let release = release(scene.bench, &scene.folder.join("cut"), &text.concat())?;
    let lab = scene.lab("bios")?;
    let mut machine = lab.boot("one", &release.parts)?;
    let mut spare = machine.log.guest("spare")?;
    let mut warden = machine.console.take().context("no console")?;
    warden.wait_for("memory is clean", LAUNCH)?;
    for moment in MOMENTS {
        expect(&mut warden, "start spare", "OK")?;
        std::thread::sleep(moment);
        put_to_rest(&mut warden, "spare")?;
        expect(&mut warden, "start spare", "OK")?;
        machine.log.wait_for("serve: guest runs name=spare", LIMIT)?;
        spare
            .wait_for("beat 1", LIMIT)
            .with_context(|| format!("after a stop in {} ms", moment.as_millis()))?;
        put_to_rest(&mut warden, "spare")?;
    }
    let starts = machine.log.lines().iter().filter(|line| line.contains("guest runs name=spare")).count();
    ensure!(starts < MOMENTS.len().saturating_mul(2), "no start was cut short");
    Ok(())
}

fn forge(scene: &Scene<'_>) -> Result<()> {
    let lab = scene.lab("bios")?;
    let mut village = Village::open(&lab, &village(scene)?)?;
    village.alpha.send(b"forge\r")?;
    village.alpha.wait_for("stop: forged", LIMIT)?;
    village.beta.wait_for("beat ", LIMIT)?;
    for line in village.machine.log.lines() {
        for part in line.split('\r').filter(|part| part.contains("forged")) {
            ensure!(part.starts_with("[alpha] "), "a line that a guest forged: {line:?}");
            ensure!(!part.contains('\x1b'), "an escape sequence reached the console: {line:?}");
        }
    }
    village.close()
}

/// The second file that the loader staged is the kernel of the second guest.
fn changed(scene: &Scene<'_>) -> Result<()> {
    let (lab, socket) = (scene.lab("bios")?, Socket::new()?);
    let mut village = Village::open_with(&lab, &village(scene)?, &socket.arguments())?;
    let lines = village.machine.log.lines();
    let mut staged = lines.iter().filter_map(|line| line.strip_prefix("loader: staged component=0x"));
    let alpha = staged.nth(1).and_then(|rest| rest.split_once(' ')).context("nothing is staged")?.0;
    let at = u64::from_str_radix(alpha, 16).context("not an address")?.saturating_add(0x5000);
    expect(&mut village.warden, "reset alpha", "OK")?;
    village.alpha.wait_for("memory is clean", LIMIT)?;
    socket.flip(at)?;
    expect(&mut village.warden, "reset alpha", "OK")?;
    village.machine.log.wait_for("serve: guest refused name=alpha", LIMIT)?;
    socket.flip(at)?;
    for line in ["start alpha", "reset alpha", "stop alpha"] {
        expect(&mut village.warden, line, "CHANGED_FILE")?;
    }
    let listed = village.listed("alpha")?;
    ensure!(listed.contains("refused changed-file starts=2"), "the list says: {listed}");
    expect(&mut village.warden, "reset beta", "OK")?;
    village.beta.wait_for("memory is clean", LIMIT)?;
    village.close()
}

fn slow_tpm(scene: &Scene<'_>) -> Result<()> {
    let lab = scene.lab("bios")?;
    let mut village = Village::open(&lab, &village(scene)?)?;
    expect(&mut village.alpha, "quote", "OK")?;
    village.machine.hold_tpm(true)?;
    village.alpha.send(b"quote\r")?;
    let asked = village.machine.log.lines().len();
    let count = |lines: &[String], text: &str| {
        lines.get(asked..).unwrap_or_default().iter().filter(|line| line.contains(text)).count()
    };
    for _ in 0..20 {
        expect(&mut village.beta, "registers", "fresh")?;
        village.beta.wait_for("beat ", LIMIT)?;
    }
    expect(&mut village.warden, "reset beta", "OK")?;
    village.beta.wait_for("memory is clean", LIMIT)?;
    let lines = village.machine.log.lines();
    ensure!(count(&lines, "[alpha] done quote") == 0, "the quote came from a TPM that stands still");
    ensure!(count(&lines, "[beta] beat") >= 20, "the other guest was held up");
    village.machine.hold_tpm(false)?;
    village.alpha.wait_for("done quote: OK", LIMIT)?;
    village.close()
}
