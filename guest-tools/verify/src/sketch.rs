//! Tells what evidence claims, without judging it.

use std::fmt::Write;

use dolmen_abi::LaunchFacts;
use dolmen_abi::evidence::{Evidence, EvidenceError};
use dolmen_drtm::replay::EventLog;
use dolmen_tpm::attest::QuoteAttest;

use crate::binding::extra_data;
use crate::key::AttestationKey;
use crate::registers::replay;

/// What the evidence claims, as text. Control characters in it are escaped.
///
/// # Errors
/// The bytes are no evidence.
pub fn explain(bytes: &[u8]) -> Result<String, EvidenceError> {
    let evidence = Evidence::decode(bytes)?;
    let mut out = String::from("What the evidence claims (nothing of it is checked here):\n");
    // Writing to a string cannot fail.
    sections(&mut out, &evidence).unwrap_or_default();
    Ok(out)
}

fn sections(out: &mut String, evidence: &Evidence<'_>) -> std::fmt::Result {
    guest(out, evidence)?;
    facts(out, evidence.binding.facts)?;
    key(out, evidence.ak_public)?;
    quote(out, evidence)?;
    log(out, evidence.event_log)
}

fn guest(out: &mut String, evidence: &Evidence<'_>) -> std::fmt::Result {
    let binding = &evidence.binding;
    writeln!(out, "guest        {}", binding.name_text().unwrap_or("(not printable)"))?;
    for (index, register) in binding.registers.iter().enumerate() {
        let meaning = if index == 0 { "identity: image and configuration" } else { "extended by the guest" };
        if index == 0 || register.iter().any(|byte| *byte != 0) {
            writeln!(out, "  G{index}         {}  {meaning}", hex::encode(register))?;
        }
    }
    writeln!(out, "report data  {}", hex::encode(binding.report_data))?;
    let root = extra_data(evidence).unwrap_or_default();
    writeln!(
        out,
        "extra data   {}  request {} of {}",
        hex::encode(root),
        evidence.index.saturating_add(1),
        evidence.count
    )
}

fn facts(out: &mut String, bits: u32) -> std::fmt::Result {
    writeln!(out, "facts        {bits:#x}")?;
    let facts = LaunchFacts::from_bits_retain(bits);
    for (_, name, meaning) in LaunchFacts::ALL.iter().filter(|(bit, ..)| facts.contains(*bit)) {
        writeln!(out, "  {name}: {meaning}")?;
    }
    Ok(())
}

fn key(out: &mut String, public: &[u8]) -> std::fmt::Result {
    match AttestationKey::parse(public) {
        Err(problem) => writeln!(out, "key          none of Dolmen: {problem}"),
        Ok(key) => {
            writeln!(out, "key          Name {}", hex::encode(key.name()))?;
            writeln!(out, "  attributes {:#010x}, policy {}", key.attributes, hex::encode(key.policy))?;
            match key.check_attributes() {
                Ok(()) => Ok(()),
                Err(problem) => writeln!(out, "  but {problem}"),
            }
        }
    }
}

fn quote(out: &mut String, evidence: &Evidence<'_>) -> std::fmt::Result {
    match QuoteAttest::parse(evidence.attest) {
        Err(error) => writeln!(out, "quote        not readable ({error:?})"),
        Ok(quote) => {
            writeln!(out, "quote        digest of the registers {}", hex::encode(quote.pcr_digest))?;
            writeln!(out, "  extra data {}", hex::encode(quote.extra_data))?;
            writeln!(
                out,
                "  TPM clock {} ms, resets {}, restarts and launches {}, firmware {:#x}",
                quote.clock, quote.reset_count, quote.restart_count, quote.firmware_version
            )
        }
    }
}

fn log(out: &mut String, bytes: &[u8]) -> std::fmt::Result {
    let log = match EventLog::parse(bytes) {
        Err(error) => return writeln!(out, "log          not readable ({error:?})"),
        Ok(log) => log,
    };
    writeln!(out, "log          banks {:?}", log.algorithms().collect::<Vec<_>>())?;
    for event in log.events() {
        let digest = event.digest(dolmen_drtm::Algorithm::Sha256).map_or_else(String::new, hex::encode);
        writeln!(out, "  PCR {} {digest} {}", event.pcr, event.data.escape_ascii())?;
    }
    if let Some((pcr17, pcr18)) = replay(&log) {
        writeln!(out, "  replays to PCR 17 {}", hex::encode(pcr17))?;
        writeln!(out, "             PCR 18 {}", hex::encode(pcr18))?;
    }
    Ok(())
}
