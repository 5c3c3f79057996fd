//! Turns the hypervisor's log into a story: a caption where a stage begins, its facts below.

use std::sync::{Mutex, PoisonError};

use crate::machine::stream::Stream;
use crate::ui;

/// Stages as their log lines begin, and what they mean.
const STAGES: [(&str, &str); 7] = [
    ("loader", "The loader, untrusted, puts everything in place and executes SKINIT"),
    ("launch", "The processor has measured the launch image; now it alone runs"),
    ("shield", "Shield: no device can write memory any more"),
    ("measure", "Measure: core and configuration, hashed where nothing can change them"),
    ("virtualise", "Virtualise: a box for the guest"),
    ("serve", "Serve: the guest runs"),
    ("stop", "The machine stops"),
];
/// The same where nothing is measured and nothing is shielded: other captions of some stages.
const UNMEASURED: [(&str, &str); 4] = [
    ("loader", "The loader, untrusted, puts everything in place and jumps: there is no SKINIT"),
    ("launch", "The core begins, and nobody has measured what leads to it"),
    ("shield", "Shield: the core runs on tables of its own; devices can still write memory"),
    ("measure", "Measure: guests' files are hashed; nothing vouches for the result"),
];
/// Longest line shown; hash values are longer than a terminal is wide.
const WIDTH: usize = 108;

/// How much of a power cycle is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detail {
    /// Every fact.
    Full,
    /// Every fact of an image that nobody measures.
    Unmeasured,
    /// What was measured, for somebody who has heard the rest.
    Brief,
}

impl Detail {
    /// What a stage means, if it means this in a release.
    fn caption(self, stage: &str, released: &'static str) -> &'static str {
        let other = UNMEASURED.iter().find(|(name, _)| *name == stage).map(|(_, caption)| *caption);
        other.filter(|_| self == Self::Unmeasured).unwrap_or(released)
    }
}

/// Shows the log lines of one power cycle as they come.
#[derive(Debug)]
pub(crate) struct Narrator {
    detail: Detail,
    /// Stages that were announced.
    announced: Mutex<Vec<&'static str>>,
}

impl Narrator {
    /// Follows a log to its end, in the background.
    pub(crate) fn follow(log: &Stream, detail: Detail) {
        let narrator = Self { detail, announced: Mutex::default() };
        log.follow(move |line| narrator.tell(line));
    }

    fn tell(&self, line: &str) {
        let line = plain(line);
        let Some((stage, caption, fact)) = stage_of(&line) else { return };
        if self.detail == Detail::Brief && stage != "stop" && !fact.starts_with("pcr") {
            return;
        }
        let mut announced = self.announced.lock().unwrap_or_else(PoisonError::into_inner);
        if self.detail != Detail::Brief && !announced.contains(&stage) {
            announced.push(stage);
            ui::note(self.detail.caption(stage, caption));
        }
        let shown: String = fact.chars().take(WIDTH).collect();
        let more = if shown.len() < fact.len() { "…" } else { "" };
        ui::fact(&format!("{shown}{more}"));
    }
}

/// A line without the control sequences that firmware sends to a terminal (ECMA-48, CSI).
fn plain(line: &str) -> String {
    let mut parts = line.split("\x1b[");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str(
            part.trim_start_matches(|c: char| !c.is_ascii_alphabetic()).get(1..).unwrap_or_default(),
        );
    }
    text
}

/// The stage that a line of the log belongs to, and its fact.
fn stage_of(line: &str) -> Option<(&'static str, &'static str, &str)> {
    STAGES.iter().find_map(|(stage, caption)| {
        let (before, fact) = line.split_once(&format!("{stage}: "))?;
        let begins = !before.ends_with(|c: char| c.is_ascii_alphanumeric() || c == ' ');
        begins.then_some((*stage, *caption, fact))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_stage_are_told_from_others() {
        assert_eq!(
            stage_of("shield: dma closed iommus=1").map(|s| (s.0, s.2)),
            Some(("shield", "dma closed iommus=1"))
        );
        assert_eq!(stage_of(&plain("\x1b[2J\x1b[01;01Hloader: reading")).map(|s| s.0), Some("loader"));
        assert_eq!(stage_of("BdsDxe: loading Boot0001"), None);
        assert_eq!(stage_of("the loader: x"), None);
    }
    #[test]
    fn of_an_unmeasured_image_nobody_says_that_it_is_measured_or_shielded() {
        for (stage, released) in STAGES {
            let told = Detail::Unmeasured.caption(stage, released);
            let is_a_promise = ["loader", "launch", "shield", "measure"].contains(&stage);
            assert_eq!(told != released, is_a_promise, "{stage}");
            assert_eq!(Detail::Full.caption(stage, released), released);
        }
    }
}
