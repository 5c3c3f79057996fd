//! The same guests on an Intel processor: the micro-guest's tests and ways to end under VMX, by the development image;
//! and that no way leads from the release to a run that nobody measured.
//!
//! The machine is Debian's Bochs, which executes some 50 million instructions in a second: few machines, short runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::guest::sum;
use super::noise::last_words;
use super::smp::{self, Guest};
use super::table::{DIFFERENCES, ENDINGS, Ending, LOOKS_AROUND, TASK_SWITCH};
use super::{Bench, Tally};
use crate::artifact::{self, CORE_UNMEASURED_SELF_CHECK, Development, MICRO_GUEST};
use crate::e2e;
use crate::e2e::noise::{self, Noisy};
use crate::lab::Release;
use crate::machine::bochs::{Bochs, Model};
use crate::machine::shell::Shell;
use crate::pool::{self, Job};
use crate::{place, ui};

/// Longest wait for BIOS, GRUB and whatever starts then.
const START: Duration = Duration::from_secs(400);
/// Longest run of a micro-guest.
const LIMIT: Duration = Duration::from_secs(300);
/// Longest wait for a neighbour's answer: all guests share one processor, and this one is slow.
const ANSWER: Duration = Duration::from_secs(120);
/// Longest wait for Linux' shell.
const LINUX: Duration = Duration::from_secs(1500);

/// Processors with all that VMX needs.
const PROCESSORS: [&str; 2] = ["corei7_skylake_x", "corei7_icelake_u"];

/// Said when the guest has run its tests: the list is the other vendor's, and so are the results.
const SAID_OF_POWER_OFF: &str = "stop: the guest switched its machine off";

/// Said when nothing of the guests' is left.
const WIPED: &str = "memory wiped; UNMEASURED";

/// Machines for guests with several processors, or several guests: sentence, processors, guests.
const COMPANIES: [(&str, u32, &[Guest]); 3] = [
    ("four processors of a guest take turns on one under vmx", 1, &[(4, "smp", "com2")]),
    ("two processors of a guest run on two under vmx", 2, &[(2, "smp", "com2")]),
    (
        "two guests on one processor keep every register apart under vmx",
        1,
        &[(1, "keep=1 brief", "com2"), (1, "keep=2 brief", "com1")],
    ),
];

/// More on the command lines of noisy guests: without what ends a guest here, and not as long.
const NOT_ALL: &str = " without=switch part=10";

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
    let tally = pool::run("Machines with an Intel processor", jobs(&makings));
    ui::note("all that the table of results (docs/micro-guest.md) lists as different:");
    DIFFERENCES.iter().for_each(|difference| ui::fact(&difference.to_string()));
    Ok(tally)
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
    for ending in ENDINGS {
        let name = format!("a guest ends by {} under vmx", ending.name);
        add(name, Box::new(move |folder| end(makings, folder, ending)));
    }
    for (sentence, processors, guests) in COMPANIES {
        add(sentence.to_owned(), Box::new(move |folder| company(makings, folder, processors, guests)));
    }
    add(
        "a guest that switches hardware tasks is stopped by name under vmx".to_owned(),
        Box::new(move |folder| task_switch(makings, folder)),
    );
    for (sentence, noisy) in [
        ("a neighbour answers through all noise at once under vmx", noise::every_kind()),
        ("a neighbour answers while guests end in every way under vmx", noise::every_doom()),
    ] {
        add(sentence.to_owned(), Box::new(move |folder| beside(makings, folder, &noisy)));
    }
    for mix in REFUSED {
        add(mix.name.to_owned(), Box::new(move |folder| refused(makings, folder, mix)));
    }
    let counts: &[u32] = if makings.bench.all { &[2, 1] } else { &[2] };
    for &vcpus in counts {
        let name = format!("debian reaches a shell with {vcpus} under vmx");
        add(name, Box::new(move |folder| linux(makings, folder, vcpus)));
    }
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
    boot(&makings.development, folder, &Model { processor, count: 1, memory_mib: 512 }, release)
}

/// Starts the development image with whatever guests.
fn boot(development: &Development, folder: &Path, model: &Model<'_>, release: Release) -> Result<Bochs> {
    let parts = development.instead_of(release.parts);
    let mut machine = Bochs::start(model, &parts, &development.loader, folder)?;
    machine.log.wait_for("UNMEASURED development image: DMA is open", START)?;
    // Until then all files of the guests are hashed.
    machine.log.wait_for("serve: guest runs", LINUX)?;
    Ok(machine)
}

/// The guest prints a line for each test and a sum at the end.
fn own_tests(makings: &Makings<'_>, folder: &Path, processor: &str) -> Result<Tally> {
    let mut machine = start(makings, folder, processor, "")?;
    let tally = sum(&mut machine.console, LIMIT, LOOKS_AROUND)?;
    machine.log.wait_for(SAID_OF_POWER_OFF, LIMIT)?;
    Ok(tally)
}

/// Guests with several processors, or several guests, on so many processors.
fn company(makings: &Makings<'_>, folder: &Path, processors: u32, guests: &[Guest]) -> Result<Tally> {
    let [processor, ..] = PROCESSORS;
    let release = e2e::release(makings.bench, folder, &smp::manifest(&makings.kernel, guests)?)?;
    let model = Model { processor, count: processors, memory_mib: 512 };
    let mut machine = boot(&makings.development, folder, &model, release)?;
    let mut console = machine.console.again()?;
    smp::hear(&mut machine.log, &mut console, guests, LIMIT)
}

fn end(makings: &Makings<'_>, folder: &Path, Ending { name, said }: Ending) -> Result<Tally> {
    let [processor, ..] = PROCESSORS;
    let mut machine = start(makings, folder, processor, &format!("ends={name}"))?;
    machine.log.wait_for(said, LIMIT)?;
    if machine.console.lines().iter().any(|line| line.starts_with("FAIL")) {
        bail!("the guest went on");
    }
    machine.log.wait_for(WIPED, LIMIT)?;
    Ok(Tally::one(true))
}

/// The one kind of noise that a guest cannot make here.
fn task_switch(makings: &Makings<'_>, folder: &Path) -> Result<Tally> {
    let [processor, ..] = PROCESSORS;
    let mut machine = start(makings, folder, processor, "noise=switch seed=1")?;
    let end = machine.log.wait_for("stop: ", LIMIT)?;
    machine.log.wait_for(WIPED, LIMIT)?;
    let last = last_words(&machine.log, &machine.console)?;
    if last != "noise switch seed=1" || !end.contains(TASK_SWITCH) {
        bail!("it ended at `{last}`: {end}");
    }
    Ok(Tally::one(true))
}

/// Noisy guests beside a neighbour, all of them on one processor, under a core that checks itself.
fn beside(makings: &Makings<'_>, folder: &Path, noisy: &[Noisy]) -> Result<Tally> {
    let [processor, ..] = PROCESSORS;
    let manifest = noise::manifest(&makings.kernel, noisy, NOT_ALL);
    let release = e2e::release(makings.bench, folder, &manifest)?;
    let artifacts = &makings.bench.artifacts.folder;
    let core = artifact::compile(&CORE_UNMEASURED_SELF_CHECK, &place::root(), &place::target(), artifacts)?;
    let development = Development { core, ..makings.development.clone() };
    let model = Model { processor, count: 1, memory_mib: 2048 };
    let mut machine = boot(&development, folder, &model, release)?;
    let mut console = machine.console.again()?;
    noise::converse(&machine.log, &mut console, noisy, ANSWER)?;
    machine.log.wait_for(WIPED, LIMIT)?;
    noise::verdict(&machine.log.lines(), noisy)?;
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

/// Debian's kernel runs to a shell with so many processors, and its tools are told that nothing was launched. They take
/// turns on one: Bochs executes one several times as fast as two.
fn linux(makings: &Makings<'_>, folder: &Path, vcpus: u32) -> Result<Tally> {
    let [processor, ..] = PROCESSORS;
    let text = std::fs::read_to_string(e2e::one_guest()).context("no manifest")?;
    let text = text.replace("memory_mib = 512", &format!("memory_mib = 512\nvcpus = {vcpus}"));
    let release = Release::of(&makings.bench.artifacts, folder, &text)?;
    let machine =
        boot(&makings.development, folder, &Model { processor, count: 1, memory_mib: 1024 }, release)?;
    let mut shell = Shell::wait(machine.console.again()?, LINUX)?;
    let online = shell.expect("nproc")?;
    if online.trim() != vcpus.to_string() {
        bail!("the guest has {online} processors");
    }
    let answer = shell.run("dolmen --frame quote --nonce 00")?;
    if answer.status == 0 || !answer.text().contains("NOT_LAUNCHED") {
        bail!("a quote is answered with {}: {}", answer.status, answer.text());
    }
    Ok(Tally::one(true))
}
