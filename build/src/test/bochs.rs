//! The same guests on an Intel processor: the micro-guest's tests and ways to end under VMX, by the development image;
//! and that no way leads from the release to a run that nobody measured.
//!
//! The machine is Debian's Bochs, which executes some 50 million instructions in a second: few machines, short runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::guest::sum;
use super::{Bench, Tally};
use crate::artifact::{self, Development, MICRO_GUEST};
use crate::e2e;
use crate::lab::{self, Release};
use crate::machine::bochs::{Bochs, Model};
use crate::machine::shell::Shell;
use crate::pool::{self, Job};
use crate::{place, ui};

/// Longest wait for BIOS, GRUB and whatever starts then.
const START: Duration = Duration::from_secs(240);
/// Longest run of a micro-guest.
const LIMIT: Duration = Duration::from_secs(300);
/// Longest wait for Linux' shell.
const LINUX: Duration = Duration::from_secs(900);

/// Processors with all that VMX needs.
const PROCESSORS: [&str; 2] = ["corei7_skylake_x", "corei7_icelake_u"];

/// Said when the guest has run its tests: the list is the other vendor's, and so are the results.
const SAID_OF_POWER_OFF: &str = "stop: the guest switched its machine off";

/// Ways to end, and what the hypervisor's log must say of each.
const ENDINGS: [(&str, &str); 3] =
    [("triple-fault", "stop: "), ("tables", "stop: "), ("reset", "stop: the guest resets the machine")];

/// What is started: everything of one kind, or of both.
#[derive(Clone, Copy, Debug)]
struct Mix {
    name: &'static str,
    release_loader: bool,
    release_stage: bool,
    release_core: bool,
    /// What the machine must say when it refuses.
    said: &'static str,
}

/// Images that must not run guests here.
const REFUSED: [Mix; 3] = [
    Mix {
        name: "the release refuses a machine without dynamic launch and says why",
        release_loader: true,
        release_stage: true,
        release_core: true,
        said: "stop: this machine lacks",
    },
    Mix {
        name: "the release's launch image does not run when it is only jumped to",
        release_loader: false,
        release_stage: true,
        release_core: true,
        said: "stop: not an AMD processor with MTRRs",
    },
    Mix {
        name: "the release's core takes no unmeasured start",
        release_loader: false,
        release_stage: false,
        release_core: true,
        said: "stop: an UNMEASURED start",
    },
];

/// What all of it is made from.
struct Makings<'a> {
    bench: &'a Bench,
    development: Development,
    kernel: PathBuf,
    folder: PathBuf,
}

/// What one machine shows, in a folder of its own.
type Test<'a> = Box<dyn FnOnce(&Path) -> Result<Tally> + Send + 'a>;

/// Runs it.
pub(super) fn run(bench: &Bench) -> Result<Tally> {
    let artifacts = &bench.artifacts.folder;
    let makings = Makings {
        bench,
        development: artifact::development(artifacts)?,
        kernel: artifact::compile(&MICRO_GUEST, &place::root(), &place::target(), artifacts)?,
        folder: place::output().join("bochs"),
    };
    Ok(pool::run("Machines with an Intel processor", jobs(&makings)))
}

fn jobs<'a>(makings: &'a Makings<'_>) -> Vec<Job<'a>> {
    let mut jobs = Vec::new();
    let mut add = |name: String, test: Test<'a>| {
        let word = name.replace(' ', "_");
        if makings.bench.is_chosen(&word) {
            let folder = makings.folder.join(&word);
            jobs.push(Job::new(name.clone(), 1, move || report(&name, test(&folder))));
        }
    };
    for processor in PROCESSORS {
        let name = format!("a guest looks around on {processor}");
        add(name, Box::new(move |folder| own_tests(makings, folder, processor)));
    }
    for (ending, said) in ENDINGS {
        let name = format!("a guest ends by {ending} under vmx");
        add(name, Box::new(move |folder| end(makings, folder, ending, said)));
    }
    for mix in REFUSED {
        add(mix.name.to_owned(), Box::new(move |folder| refused(makings, folder, mix)));
    }
    let name = "debian reaches a shell under vmx".to_owned();
    add(name, Box::new(move |folder| linux(makings, folder)));
    jobs
}

fn report(name: &str, outcome: Result<Tally>) -> Tally {
    match outcome {
        Ok(tally) => {
            ui::good(name);
            tally
        }
        Err(error) => {
            ui::bad(&format!("{name}: {error:#}"));
            Tally::one(false)
        }
    }
}

/// Starts the development image with a micro-guest.
fn start(makings: &Makings<'_>, folder: &Path, processor: &str, command_line: &str) -> Result<Bochs> {
    let release = e2e::small_guest(makings.bench, folder, &makings.kernel, command_line)?;
    let model = Model { processor, count: 1, memory_mib: 512 };
    let parts = makings.development.instead_of(release.parts);
    let mut machine = Bochs::start(&model, &parts, &makings.development.loader, folder)?;
    machine.log.wait_for("UNMEASURED development image: DMA is open", START)?;
    machine.log.wait_for("serve: guest runs", START)?;
    Ok(machine)
}

/// The guest prints a line for each test and a sum at the end.
fn own_tests(makings: &Makings<'_>, folder: &Path, processor: &str) -> Result<Tally> {
    let mut machine = start(makings, folder, processor, "")?;
    let tally = sum(&mut machine.console, LIMIT)?;
    machine.log.wait_for(SAID_OF_POWER_OFF, LIMIT)?;
    Ok(tally)
}

fn end(makings: &Makings<'_>, folder: &Path, ending: &str, said: &str) -> Result<Tally> {
    let [processor, ..] = PROCESSORS;
    let mut machine = start(makings, folder, processor, &format!("ends={ending}"))?;
    machine.log.wait_for(said, LIMIT)?;
    if machine.console.lines().iter().any(|line| line.starts_with("FAIL")) {
        bail!("the guest went on");
    }
    machine.log.wait_for("memory wiped; UNMEASURED", LIMIT)?;
    Ok(Tally::one(true))
}

fn refused(makings: &Makings<'_>, folder: &Path, mix: Mix) -> Result<Tally> {
    let [processor, ..] = PROCESSORS;
    let release = e2e::small_guest(makings.bench, folder, &makings.kernel, "")?;
    let own = release.parts.clone();
    let mut parts = makings.development.instead_of(release.parts);
    if mix.release_stage {
        parts.launch = own.launch;
    }
    if mix.release_core {
        parts.core = own.core;
    }
    let loader = if mix.release_loader {
        makings.bench.artifacts.loader_multiboot()
    } else {
        makings.development.loader.clone()
    };
    let model = Model { processor, count: 1, memory_mib: 512 };
    let mut machine = Bochs::start(&model, &parts, &loader, folder)?;
    let line = machine.log.find("a refusal", START, |line| {
        (line.contains("stop: ") || line.contains("guest runs")).then(|| line.to_owned())
    })?;
    if !line.contains(mix.said) {
        bail!("the machine says `{line}`");
    }
    Ok(Tally::one(true))
}

/// Debian's kernel runs to a shell, and its tools are told that nothing was launched.
fn linux(makings: &Makings<'_>, folder: &Path) -> Result<Tally> {
    let [processor, ..] = PROCESSORS;
    let text = std::fs::read_to_string(e2e::one_guest()).context("no manifest")?;
    let release = Release::of(&makings.bench.artifacts, folder, &text)?;
    let model = Model { processor, count: 1, memory_mib: 1024 };
    let parts = makings.development.instead_of(release.parts);
    let mut machine = Bochs::start(&model, &parts, &makings.development.loader, folder)?;
    machine.log.wait_for("serve: guest runs", lab::LAUNCH.max(START))?;
    let mut shell = Shell::wait(machine.console.again()?, LINUX)?;
    let answer = shell.run("dolmen --frame quote --nonce 00")?;
    if answer.status == 0 || !answer.text().contains("NOT_LAUNCHED") {
        bail!("a quote is answered with {}: {}", answer.status, answer.text());
    }
    Ok(Tally::one(true))
}
