//! What is told while it runs: lines for people, or one JSON object a line.

use core::fmt;
use std::io::Write;

use serde_json::{Value, json};

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The registrar knows both keys of this TPM, and that the one is in it.
    Registered,
    /// The verifier gave a token for the proof of possession.
    Session,
    /// The verifier took this attestation, to judge it; it wants the next one in so many seconds.
    Sent {
        /// The attestation's number.
        index: String,
        /// Seconds.
        next: u64,
    },
    /// Something did not work and is tried again in so many seconds.
    Trouble {
        /// What.
        why: String,
        /// Seconds.
        pause: u64,
    },
}

impl Event {
    fn as_json(&self) -> Value {
        match self {
            Self::Registered => json!({ "event": "registered" }),
            Self::Session => json!({ "event": "session" }),
            Self::Sent { index, next } => json!({ "event": "sent", "attestation": index, "next_in_s": next }),
            Self::Trouble { why, pause } => json!({ "event": "trouble", "why": why, "again_in_s": pause }),
        }
    }

    fn as_text(&self) -> String {
        match self {
            Self::Registered => "registered: the registrar knows this TPM and its attestation key".to_owned(),
            Self::Session => "session: the verifier takes the proof of possession".to_owned(),
            Self::Sent { index, next } => {
                format!("attestation {index} sent for judgement; the next one in {next} s")
            }
            Self::Trouble { why, pause } => format!("{why}; trying again in {pause} s"),
        }
    }
}

/// Who tells.
#[derive(Debug)]
pub(crate) struct Voice<W> {
    /// In JSON.
    pub(crate) json: bool,
    /// Where to.
    pub(crate) out: W,
}

impl<W: Write> Voice<W> {
    /// Tells it.
    pub(crate) fn say(&mut self, event: &Event) {
        if self.json { tell(&mut self.out, &event.as_json()) } else { tell(&mut self.out, &event.as_text()) }
    }
}

/// Writes a line. If that fails the line is lost, and nothing else: the host stays attested when whoever read the log
/// has gone, or its disk is full.
pub(crate) fn tell(out: &mut impl Write, line: &impl fmt::Display) {
    let written = writeln!(out, "{line}").and_then(|()| out.flush());
    written.unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io;

    #[test]
    fn each_event_is_one_line_either_way() {
        let events = [
            Event::Registered,
            Event::Session,
            Event::Sent { index: "3".to_owned(), next: 5 },
            Event::Trouble { why: "no way\nthere".to_owned(), pause: 2 },
        ];
        for event in &events {
            assert!(!event.as_json().to_string().contains('\n'), "{event:?}");
        }
        assert!(events[2].as_text().contains("attestation 3"));
    }

    #[test]
    fn a_line_that_nobody_reads_is_lost_and_no_more() {
        let (reader, mut writer) = io::pipe().unwrap();
        drop(reader);
        tell(&mut writer, &"a line");
        let mut full = File::options().write(true).open("/dev/full").unwrap();
        tell(&mut full, &"a line");
        let mut log = Vec::new();
        tell(&mut log, &"a line");
        assert_eq!(log, b"a line\n");
    }
}
