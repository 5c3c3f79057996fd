//! End-to-end tests: the whole machine, its story, and attacks on it.

mod cpus;
mod dma;
mod enrolment;
mod errands;
mod fault;
mod foreign;
mod grub;
mod hostile;
mod image;
pub(crate) mod launch;
mod life;
mod linux;
mod load;
mod locality;
mod manage;
mod many;
pub(crate) mod noise;
mod provision;
mod share;
mod slow;
mod tools;
mod traffic;
mod trust;
mod tsm;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::artifact::{self, MICRO_GUEST};
use crate::lab::{Lab, Release};
use crate::machine::{EMULATOR, LOG};
use crate::pool::{self, Job};
use crate::test::{Bench, Tally};
use crate::{place, ui};

/// All banks that swtpm has.
pub(crate) const ALL_BANKS: &str = "sha1,sha256,sha384,sha512";

/// Lines of each transcript that a failure shows.
const LAST_WORDS: usize = 20;

/// What every test works with.
#[derive(Debug)]
pub(crate) struct Scene<'a> {
    /// Emulator, kernel, programs.
    pub(crate) bench: &'a Bench,
    /// One Debian guest.
    pub(crate) release: Release,
    /// The same hypervisor with a small bare guest, where a guest's size only costs time.
    pub(crate) micro: Release,
    /// Folder of this test alone.
    pub(crate) folder: PathBuf,
}

impl Scene<'_> {
    /// A new machine of this profile, all banks active.
    pub(crate) fn lab(&self, machine: &str) -> Result<Lab<'_>> {
        self.lab_with_banks(machine, ALL_BANKS)
    }

    /// A new machine of this profile with these banks active.
    pub(crate) fn lab_with_banks(&self, machine: &str, banks: &str) -> Result<Lab<'_>> {
        Lab::new(&self.bench.tools, &self.bench.artifacts, machine, &self.folder.join("machine"), banks)
    }
}

/// One test: a sentence, and what shows it.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    /// The sentence, in words joined by underscores.
    pub(crate) name: &'static str,
    /// Fails with the reason.
    pub(crate) run: fn(&Scene<'_>) -> Result<()>,
}

impl Case {
    /// The sentence, for people.
    fn sentence(&self) -> String {
        self.name.replace('_', " ")
    }
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Tests that measure time, or keep two processors of this computer busy for long: they have it to themselves.
const ALONE: [&[Case]; 4] = [load::CASES, share::CASES, slow::CASES, fault::MEASURING];

/// Runs all tests, or those that the user chose.
pub(crate) fn run(bench: &Bench) -> Result<Tally> {
    let release = Release::load(&bench.artifacts, &one_guest())?;
    let top = place::output().join("e2e");
    let micro = micro(bench, &top)?;
    let chosen = |case: &&Case| bench.only.as_ref().is_none_or(|only| case.name.contains(only.as_str()));
    let all = [
        many::CASES,
        launch::CASES,
        linux::CASES,
        load::CASES,
        share::CASES,
        slow::CASES,
        fault::MEASURING,
        manage::CASES,
        hostile::CASES,
        cpus::CASES,
        dma::CASES,
        locality::CASES,
        trust::CASES,
        provision::CASES,
        tsm::CASES,
        tools::CASES,
        image::CASES,
        grub::CASES,
        foreign::CASES,
        noise::CASES,
        fault::CASES,
        errands::CASES,
        traffic::CASES,
        life::CASES,
    ];
    let cases: Vec<Case> = all.into_iter().flatten().filter(chosen).copied().collect();
    if cases.is_empty() {
        bail!("no end-to-end test has such a name");
    }
    let jobs = cases.into_iter().map(|case| {
        let scene =
            Scene { bench, release: release.clone(), micro: micro.clone(), folder: top.join(case.name) };
        let is_alone = ALONE.into_iter().flatten().any(|other| other.name == case.name);
        let processors = if is_alone { usize::MAX } else { 1 };
        Job::new(case.sentence(), processors, move || perform(&case, &scene))
    });
    Ok(pool::run("Whole machines, one for each test", jobs.collect()))
}

/// The manifest of most tests.
pub(crate) fn one_guest() -> PathBuf {
    place::root().join("tests/e2e/one-guest.toml")
}

/// A release whose guest is the micro-guest.
pub(crate) fn micro(bench: &Bench, folder: &Path) -> Result<Release> {
    let artifacts = &bench.artifacts;
    let kernel = artifact::compile(&MICRO_GUEST, &place::root(), &place::target(), &artifacts.folder)?;
    small_guest(bench, &folder.join("micro"), &kernel, "")
}

/// A release whose guest is a bare program with a command line.
pub(crate) fn small_guest(
    bench: &Bench,
    folder: &Path,
    kernel: &Path,
    command_line: &str,
) -> Result<Release> {
    release(bench, folder, &small_manifest(kernel, command_line))
}

/// The manifest of such a guest.
fn small_manifest(kernel: &Path, command_line: &str) -> String {
    format!(
        "[[guest]]\nname = \"micro\"\nmemory_mib = 64\nformat = \"pvh\"\nconsoles = [\"com2\"]\n\
         hypercalls = [\"random\", \"registers\", \"seal\", \"quote\", \"log\"]\non_reboot = \"reset-machine\"\n\
         on_crash = \"halt-machine\"\non_power_off = \"halt-machine\"\n\
         kernel = \"{}\"\ncmdline = \"{command_line}\"\n",
        kernel.display()
    )
}

/// A release of the guests that this manifest describes.
pub(crate) fn release(bench: &Bench, folder: &Path, text: &str) -> Result<Release> {
    Release::of(&bench.artifacts, folder, text)
}

fn perform(case: &Case, scene: &Scene<'_>) -> Tally {
    match (case.run)(scene) {
        Ok(()) => {
            ui::good(&case.sentence());
            forget(&scene.folder);
            Tally::one(true)
        }
        Err(error) => {
            let folder = scene.folder.display();
            ui::bad(&format!("{}: {error:#}\n     transcripts: {folder}", case.sentence()));
            last_words(&scene.folder).iter().for_each(|line| ui::fact(line));
            Tally::one(false)
        }
    }
}

/// What the hypervisor and the emulator of the last power cycle in this folder said last: where a test failed that is
/// not repeated, the transcripts may be out of reach.
fn last_words(folder: &Path) -> Vec<String> {
    [LOG, EMULATOR].into_iter().flat_map(|what| tail(folder, what)).collect()
}

/// The end of the newest transcript of this kind.
fn tail(folder: &Path, what: &str) -> Vec<String> {
    let suffix = format!("-{what}.log");
    let Some(newest) = newest(folder, &suffix) else {
        return Vec::new();
    };
    let text = std::fs::read(&newest).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(LAST_WORDS);
    let name = newest.file_name().unwrap_or_default().to_string_lossy();
    lines.iter().skip(from).map(|line| format!("{name}: {}", line.trim_end())).collect()
}

/// The file that was written to last, of those in a folder and below whose names end so.
fn newest(folder: &Path, suffix: &str) -> Option<PathBuf> {
    let paths = std::fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let files = paths.filter_map(|path| match path.is_dir() {
        true => newest(&path, suffix),
        false => path.to_string_lossy().ends_with(suffix).then_some(path),
    });
    files.max_by_key(|path| path.metadata().ok().and_then(|data| data.modified().ok()))
}

/// Transcripts of tests that passed are of no use; what cannot be removed stays.
fn forget(folder: &Path) {
    if folder.exists() {
        drop(std::fs::remove_dir_all(folder));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_the_end_of_the_newest_transcripts() {
        let folder = tempfile::tempdir().unwrap();
        let machine = folder.path().join("machine");
        std::fs::create_dir(&machine).unwrap();
        std::fs::write(machine.join("first-com1.log"), "old\n").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        let said: String = (0..30).map(|number| format!("line {number}\r\n")).collect();
        std::fs::write(machine.join("second-com1.log"), said).unwrap();
        std::fs::write(machine.join("second-qemu.log"), "the emulator died of signal 11\n").unwrap();
        let shown = last_words(folder.path());
        assert_eq!(shown.len(), LAST_WORDS + 1);
        assert_eq!(shown.first().map(String::as_str), Some("second-com1.log: line 10"));
        assert_eq!(shown.last().map(String::as_str), Some("second-qemu.log: the emulator died of signal 11"));
        assert!(last_words(&folder.path().join("nothing")).is_empty());
    }
}
