//! Evidence in the relying party's hands: judged by `dolmen-verify` and by unmodified tpm2-tools.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use dolmen_abi::evidence::Evidence;
use serde::Deserialize;

use crate::artifact::Artifacts;
use crate::measure::Reference;
use crate::{place, process, release};

/// A relying party: its verifier and its policy file.
#[derive(Clone, Debug)]
pub(crate) struct RelyingParty {
    verifier: PathBuf,
    policy: PathBuf,
}

/// What a verifier says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Everything fits.
    Trusted,
    /// Something does not: short names of the checks that failed, and why, in sentences.
    Refused(Vec<String>, String),
}

/// What `tpm2_checkquote` has against evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Objection {
    /// The key did not sign the quote.
    Signature,
    /// The quote is about another binding.
    Binding,
    /// The quote is over other registers.
    Registers,
    /// The log replays to other registers.
    Log,
}

impl Objection {
    /// The objection in the tool's words; none if it ended for another reason, by the same exit status.
    fn of(said: &str) -> Option<Self> {
        let words = [
            ("Error validating signed message with public key", Self::Signature),
            ("Error validating nonce from quote", Self::Binding),
            ("Error validating PCR composite", Self::Registers),
            ("Eventlog and quote PCR mismatch", Self::Log),
        ];
        words.into_iter().find(|(words, _)| said.contains(words)).map(|(_, objection)| objection)
    }
}

/// The verifier's report, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Report {
    verdict: String,
    accepted: bool,
    checks: Vec<Check>,
}

#[derive(Debug, Deserialize)]
struct Check {
    id: String,
    outcome: String,
    text: String,
}

/// One piece of evidence in its own folder, and the nonce that it should be about.
#[derive(Clone, Debug)]
pub(crate) struct Proof {
    folder: PathBuf,
    nonce: String,
}

impl Proof {
    /// Keeps `evidence`, which should be about `nonce`, in `folder`.
    pub(crate) fn save(evidence: &[u8], nonce: &[u8], folder: &Path) -> Result<Self> {
        let proof = Self { folder: folder.to_owned(), nonce: hex::encode(nonce) };
        place::write(&proof.evidence(), evidence)?;
        Ok(proof)
    }

    /// The same evidence, said to be about another nonce.
    pub(crate) fn about(&self, nonce: &[u8]) -> Self {
        Self { folder: self.folder.clone(), nonce: hex::encode(nonce) }
    }

    /// The same evidence, said to be about the nonce of `other`.
    pub(crate) fn about_that_of(&self, other: &Self) -> Self {
        Self { folder: self.folder.clone(), nonce: other.nonce.clone() }
    }

    /// Other evidence, said to be about the same nonce.
    pub(crate) fn with(&self, evidence: &[u8], folder: &Path) -> Result<Self> {
        let proof = Self { folder: folder.to_owned(), nonce: self.nonce.clone() };
        place::write(&proof.evidence(), evidence)?;
        Ok(proof)
    }

    /// Writes the parts that `tpm2_checkquote` judges as they are, though nothing in them be true: whoever refuses them
    /// before leaves nothing to the tool.
    fn take_apart(&self) -> Result<PathBuf> {
        let bytes = place::read(&self.evidence())?;
        let evidence = Evidence::decode(&bytes)?;
        let folder = self.folder.join("unchecked");
        for (name, part) in [
            ("quote.msg", evidence.attest),
            ("quote.sig", evidence.signature),
            ("eventlog", evidence.event_log),
        ] {
            place::write(&folder.join(name), part)?;
        }
        Ok(folder)
    }

    /// The file with the evidence.
    pub(crate) fn evidence(&self) -> PathBuf {
        self.folder.join("evidence.cbor")
    }
}

impl RelyingParty {
    /// A relying party that expects `reference`, in a file beside its policy, and knows no key yet.
    pub(crate) fn new(artifacts: &Artifacts, reference: &Reference, policy: &Path) -> Result<Self> {
        let values = policy.with_extension("reference.json");
        place::write(&values, serde_json::to_string_pretty(reference)?.as_bytes())?;
        Self::of_values(artifacts, &values, policy)
    }

    /// A relying party that expects what the file `values`, beside its policy, says.
    pub(crate) fn of_values(artifacts: &Artifacts, values: &Path, policy: &Path) -> Result<Self> {
        place::write(policy, policy_text(values)?.as_bytes())?;
        Ok(Self { verifier: artifacts.verifier(), policy: policy.to_owned() })
    }

    /// A relying party that trusts the code of a release in `folder`, and knows manifest and guests of `reference`.
    pub(crate) fn of_release(
        artifacts: &Artifacts,
        folder: &Path,
        reference: &Reference,
        policy: &Path,
    ) -> Result<Self> {
        let values = folder.join(release::VALUES);
        let pcr18 = &reference.bank("sha256")?.pcr18;
        let mut text = format!("releases = [\"{}\"]\npcr18 = \"{pcr18}\"\n", values.display());
        for guest in &reference.guests {
            write!(text, "\n[guests.{}]\ng0 = \"{}\"\n", guest.name, guest.g0).context("no memory")?;
        }
        place::write(policy, format!("{text}\n").as_bytes())?;
        Ok(Self { verifier: artifacts.verifier(), policy: policy.to_owned() })
    }

    /// Trusts the key of this evidence on first use; the evidence must be good in all else.
    pub(crate) fn trust(&self, proof: &Proof) -> Result<()> {
        let entry = process::output(
            Command::new(&self.verifier)
                .arg("trust")
                .arg(proof.evidence())
                .arg("--policy")
                .arg(&self.policy)
                .args(["--nonce", &proof.nonce]),
        )?;
        let mut text = std::fs::read_to_string(&self.policy).context("the policy is gone")?;
        text.push_str(&entry);
        place::write(&self.policy, text.as_bytes())
    }

    /// One step of `dolmen-verify enrol`, by this policy: what it prints, or why it refuses.
    pub(crate) fn enrol(&self, step: &[&OsStr]) -> Result<core::result::Result<Vec<u8>, String>> {
        let mut command = Command::new(&self.verifier);
        process::judge(command.arg("enrol").args(step).arg("--policy").arg(&self.policy))
    }

    /// Keeps an enrolment record, and has the policy name it.
    pub(crate) fn accept(&self, record: &[u8], name: &str) -> Result<()> {
        let file = format!("{name}.record.json");
        place::write(&self.policy.with_file_name(&file), record)?;
        let mut text = std::fs::read_to_string(&self.policy).context("the policy is gone")?;
        write!(text, "[[keys]]\nrecord = \"{file}\"\n").context("no memory")?;
        place::write(&self.policy, text.as_bytes())
    }

    /// Judges evidence with `dolmen-verify`.
    pub(crate) fn verify(&self, proof: &Proof) -> Result<Verdict> {
        let done = Command::new(&self.verifier)
            .arg("check")
            .arg(proof.evidence())
            .arg("--policy")
            .arg(&self.policy)
            .args(["--nonce", &proof.nonce, "--json"])
            .output()
            .context("cannot start dolmen-verify")?;
        let report: Report = serde_json::from_slice(&done.stdout)
            .with_context(|| format!("dolmen-verify: {}", String::from_utf8_lossy(&done.stderr).trim()))?;
        if report.accepted != done.status.success() {
            bail!("dolmen-verify's exit status is not what its report says");
        }
        if report.accepted && report.verdict == "TRUSTED" {
            return Ok(Verdict::Trusted);
        }
        let failed = report.checks.iter().filter(|check| check.outcome == "fail");
        let (names, texts): (Vec<String>, Vec<&str>) =
            failed.map(|check| (check.id.clone(), check.text.as_str())).unzip();
        if names.is_empty() {
            return Ok(Verdict::Refused(Vec::new(), report.verdict));
        }
        Ok(Verdict::Refused(names, texts.join("; ")))
    }

    /// Judges evidence about a host: whether it is accepted as trusted, and what was said.
    pub(crate) fn verify_host(&self, proof: &Proof) -> Result<(bool, String)> {
        let done = Command::new(&self.verifier)
            .arg("check-host")
            .arg(proof.evidence())
            .arg("--policy")
            .arg(&self.policy)
            .args(["--nonce", &proof.nonce])
            .output()
            .context("cannot start dolmen-verify")?;
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        Ok((done.status.success() && said.contains("TRUSTED"), said))
    }

    /// Adds an entry for a key to the policy.
    pub(crate) fn trust_key(&self, name: &str) -> Result<()> {
        let mut text = std::fs::read_to_string(&self.policy).context("the policy is gone")?;
        write!(text, "[[keys]]\nname = \"{name}\"\n").context("no memory")?;
        place::write(&self.policy, text.as_bytes())
    }

    /// Takes the evidence apart into the files that tpm2-tools read, below its folder.
    pub(crate) fn export(&self, proof: &Proof) -> Result<PathBuf> {
        let folder = proof.folder.join("parts");
        process::output(Command::new(&self.verifier).arg("export").arg(proof.evidence()).arg(&folder))?;
        Ok(folder)
    }

    /// `tpm2_checkquote`: the key in `enrolled` signed exactly the predicted registers and this evidence's
    /// binding, and the log replays to them.
    pub(crate) fn checkquote(&self, proof: &Proof, enrolled: &Path, reference: &Reference) -> Result<()> {
        match self.objection(proof, enrolled, reference)? {
            None => Ok(()),
            Some(objection) => bail!("tpm2_checkquote refuses it: {objection:?}"),
        }
    }

    /// What `tpm2_checkquote` has against the same; nothing if it accepts. That it could not judge is an error.
    pub(crate) fn objection(
        &self,
        proof: &Proof,
        enrolled: &Path,
        reference: &Reference,
    ) -> Result<Option<Objection>> {
        let parts = proof.take_apart()?;
        let bank = reference.bank("sha256")?;
        let expected = parts.join("expected.pcrs");
        place::write(&expected, &[hex::decode(&bank.pcr17)?, hex::decode(&bank.pcr18)?].concat())?;
        let binding = process::output(Command::new(&self.verifier).arg("binding").arg(proof.evidence()))?;
        let mut command = Command::new("tpm2_checkquote");
        command
            .arg("--public")
            .arg(enrolled)
            .arg("--message")
            .arg(parts.join("quote.msg"))
            .arg("--signature")
            .arg(parts.join("quote.sig"))
            .args(["--hash-algorithm", "sha256", "--qualification", binding.trim()])
            .args(["--pcr-list", "sha256:17,18"])
            .arg("--pcr")
            .arg(expected)
            .arg("--eventlog")
            .arg(parts.join("eventlog"));
        match process::judge(&mut command)? {
            Ok(_) => Ok(None),
            Err(said) => Objection::of(&said)
                .map(Some)
                .with_context(|| format!("{} did not come to a judgement: {said}", process::shown(&command))),
        }
    }

    /// `tpm2_eventlog`: the number of events, which the tool replays to the predicted registers.
    pub(crate) fn eventlog(&self, proof: &Proof, reference: &Reference) -> Result<usize> {
        let parts = self.export(proof)?;
        let printed = process::output(Command::new("tpm2_eventlog").arg(parts.join("eventlog")))?;
        for bank in &reference.banks {
            let replayed = section(&printed, bank.bank).with_context(|| format!("no bank {}", bank.bank))?;
            for (index, want) in [("17", &bank.pcr17), ("18", &bank.pcr18)] {
                if replayed.iter().find(|(name, _)| name == index).map(|(_, value)| value) != Some(want) {
                    bail!("tpm2_eventlog replays PCR {index} of {} to something else", bank.bank);
                }
            }
        }
        Ok(printed.lines().filter(|line| line.contains("EventType:")).count())
    }
}

/// A policy for `dolmen-verify` that takes the reference values of the file `values`, which lies beside it.
pub(crate) fn policy_text(values: &Path) -> Result<String> {
    let name = values.file_name().and_then(|name| name.to_str()).context("a file whose name is no text")?;
    // JSON and TOML write such a text alike.
    Ok(format!("releases = [{}]\n\n", serde_json::to_string(name)?))
}

/// Registers of one bank in the summary that `tpm2_eventlog` prints after the events.
fn section(printed: &str, bank: &str) -> Option<Vec<(String, String)>> {
    let summary = printed.split_once("\npcrs:")?.1;
    let mut lines = summary.lines().skip_while(|line| line.trim() != format!("{bank}:")).skip(1);
    let mut registers = Vec::new();
    for line in lines.by_ref() {
        let Some((index, value)) = line.split_once(": 0x") else { break };
        registers.push((index.trim().to_owned(), value.trim().to_lowercase()));
    }
    Some(registers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vectors;

    #[test]
    fn only_what_tpm2_checkquote_says_of_the_evidence_is_an_objection() {
        let said = "WARN: PCR17 mismatch\nERROR: Eventlog and quote PCR mismatch\nERROR: Unable to run tpm2_checkquote";
        assert_eq!(Objection::of(said), Some(Objection::Log));
        let said = "ERROR: Could not open file: \"eventlog\"\nERROR: Unable to run tpm2_checkquote";
        assert_eq!(Objection::of(said), None);
    }

    #[test]
    fn evidence_whose_log_does_not_replay_is_taken_apart_for_others_to_judge() {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = place::read(&vectors::folder().join("alone.cbor")).unwrap();
        let log = Evidence::decode(&bytes).unwrap().event_log.to_vec();
        let at = bytes.windows(log.len()).position(|window| window == log).unwrap();
        bytes[at + log.len() - 1] ^= 1;
        let parts = Proof::save(&bytes, &[0; 32], folder.path()).unwrap().take_apart().unwrap();
        let written = place::read(&parts.join("eventlog")).unwrap();
        assert!(written.len() == log.len() && written != log);
    }

    #[test]
    fn registers_are_found_in_the_summary_of_tpm2_eventlog() {
        let printed =
            "events:\n- a: 1\npcrs:\n  sha1:\n    17 : 0xAB\n  sha256:\n    17 : 0xCD\n    18 : 0xEF\n";
        let want = vec![("17".to_owned(), "cd".to_owned()), ("18".to_owned(), "ef".to_owned())];
        assert_eq!(section(printed, "sha256"), Some(want));
        assert_eq!(section(printed, "sha384"), Some(vec![]));
    }
}
