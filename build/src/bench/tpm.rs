//! What a quote costs: time, and TPM commands as the software TPM recorded them.

use anyhow::{Context, Result};
use serde::Serialize;

use super::{Run, grouped};
use crate::ui;

/// TPM2_StartAuthSession and TPM2_Quote (TPM 2.0 library, part 2, 6.5.2).
const START_AUTH_SESSION: &str = "00000176";
const QUOTE: &str = "00000158";
/// TPM commands of a quote.
const COMMANDS: [(&str, &str); 7] = [
    (START_AUTH_SESSION, "StartAuthSession"),
    ("0000017F", "PolicyPCR"),
    ("0000016F", "PolicyLocality"),
    (QUOTE, "Quote"),
    ("00000165", "FlushContext"),
    ("00000131", "CreatePrimary"),
    ("00000173", "ReadPublic"),
];

/// One quote.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub(super) struct Quote {
    /// Instructions from the request to the evidence.
    instructions: u64,
    /// The same on the host's clock, emulation and software TPM included.
    milliseconds: u64,
    /// TPM commands, in order.
    commands: Vec<String>,
}

/// Puts together what guest and TPM say.
pub(super) fn quote(run: &Run, record: &str) -> Result<Quote> {
    let cost = run.costs.iter().find(|cost| cost.name == "quote").context("no quote was measured")?;
    let commands = commands(record);
    if !commands.iter().any(|name| name == "Quote") {
        anyhow::bail!("the TPM's record has no quote");
    }
    Ok(Quote { instructions: cost.least, milliseconds: u64::try_from(run.quote.as_millis())?, commands })
}

impl Quote {
    pub(super) fn show(&self) {
        ui::heading("A quote");
        ui::note(&format!(
            "{} instructions, {} ms on this host's clock, emulator and software TPM included",
            grouped(self.instructions),
            self.milliseconds
        ));
        ui::note(&format!("{} TPM commands: {}", self.commands.len(), self.commands.join(", ")));
    }
}

/// Names of the TPM commands from the last StartAuthSession before the quote, in swtpm's record.
fn commands(record: &str) -> Vec<String> {
    let mut sent: Vec<String> = Vec::new();
    let mut lines = record.lines();
    while let Some(line) = lines.next() {
        if !line.contains("SWTPM_IO_Read:") {
            continue;
        }
        let bytes: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
        let code = bytes.get(6..10).unwrap_or_default().concat();
        if code == START_AUTH_SESSION {
            sent.clear();
        }
        let name = COMMANDS.iter().find(|(known, _)| *known == code).map_or(code.as_str(), |(_, name)| name);
        sent.push(name.to_owned());
        if code == QUOTE {
            break;
        }
    }
    sent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_of_a_quote_are_found_in_the_record() {
        let line = |code: &str| format!(" SWTPM_IO_Read: length 22\n 80 01 00 00 00 16 {code} 00\n 00\n");
        let record = [
            line("00 00 01 76"),
            line("00 00 01 31"),
            line("00 00 01 76"),
            line("00 00 01 7F"),
            line("00 00 01 58"),
            line("00 00 01 65"),
        ];
        assert_eq!(commands(&record.concat()), ["StartAuthSession", "PolicyPCR", "Quote"]);
    }
}
