//! The verdict, for people and for programs.

use std::fmt;

use serde::Serialize;

/// What the JSON form of a verdict is, and its version.
pub const VERDICT_FORMAT: &str = "dolmen-verdict-1";

/// Every check that a verdict may have: its short name, and what holds if it passes.
pub const CHECKS: &[(&str, &str)] = &[
    ("format", "the file decodes, in its one encoding"),
    (
        "key",
        "the key is ECC P-256 / ECDSA / SHA-256 or RSA-2048 / RSASSA / SHA-256, with exactly the attributes fixedTPM, fixedParent, sensitiveDataOrigin, restricted, sign: userWithAuth and adminWithPolicy are clear",
    ),
    (
        "key-policy",
        "its policy is PolicyPCR(sha256:17) ∧ PolicyLocality(two, 04h), computed from an *accepted* PCR 17, never from the evidence: only that hypervisor can sign with it",
    ),
    (
        "enrolled",
        "its Name is in the policy or in a record that the policy names; with no keys in the policy the verdict is UNENROLLED",
    ),
    ("signature", "the quote is signed by it"),
    (
        "quote",
        "a TPM made it (magic FF544347h), it is a quote, and its signer is the key as a primary of the endorsement hierarchy",
    ),
    ("selection", "it selects PCR 17 and 18 of the SHA-256 bank and nothing else"),
    (
        "log",
        "the log is byte for byte one that Dolmen writes (`measurement.md`), replays to the quoted digest, has the events of a launch of Dolmen and no others, and is that of the release if its registers are a release's",
    ),
    (
        "pcrs",
        "PCR 17 is accepted and the one that the key's policy names, and PCR 18 is accepted, as the log that replays to the quoted digest has them",
    ),
    ("configuration", "(a note) any PCR 18 is accepted, so the guest's neighbours are not known"),
    ("binding", "the binding's Merkle root is the quote's extra data"),
    ("report-data", "the report data is what the relying party demanded"),
    (
        "facts",
        "exactly one kind of dynamic launch, every required fact, none that is not allowed; DEBUG, UNMEASURED and facts that the verifier does not know are always refused",
    ),
    ("smm", "(a note) system management mode is not isolated, so the firmware's code in it stays trusted"),
    ("guest", "the policy has a guest of that name with that G0"),
    ("registers", "registers that the policy pins have one of their values"),
    ("counters", "(reset count, restart count) are not less than at enrolment"),
    ("min-counters", "(reset count, restart count) are not less than the policy's"),
    (
        "launches",
        "no more dynamic launches since the TPM's last reset than allowed: each adds one to its restart count",
    ),
    ("clock", "the TPM's clock never ran backwards, if the policy wants that"),
    ("firmware", "the TPM's firmware has a version that the policy lists"),
];

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// What was checked holds.
    Pass,
    /// It does not hold: the evidence is refused.
    Fail,
    /// Nothing was checked, but the reader should know.
    Note,
    /// It could not be checked because something before it failed.
    Skipped,
}

/// One check: a sentence and whether it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Short name, stable for programs.
    pub id: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// Why.
    pub text: String,
}

/// What is to be thought of the evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// Every check passed, and the key is enrolled.
    Trusted,
    /// Every check passed, but nobody enrolled the key: software could have made all of this.
    Unenrolled,
    /// A check failed.
    Refused,
}

/// What a key, evidence by it and a report about that speak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    /// A guest, by its binding.
    Guest,
    /// The host, over a nonce as it is: nothing is said of any guest.
    Host,
}

/// All checks of one piece of evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// [`VERDICT_FORMAT`].
    pub format: &'static str,
    /// What the evidence was taken as speaking of.
    pub subject: Subject,
    /// The verdict.
    pub verdict: Verdict,
    /// Whether the policy accepts that verdict.
    pub accepted: bool,
    /// The guest, if it is about one and its name could be read.
    pub guest: Option<String>,
    /// The Name of the key, in hex, if it could be read.
    pub key: Option<String>,
    /// What says that the key is enrolled: the path of a record, or `policy`.
    pub enrolled_by: Option<String>,
    /// The checks, in order.
    pub checks: Vec<Check>,
}

impl Report {
    /// The check with this short name.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<&Check> {
        self.checks.iter().find(|check| check.id == id)
    }

    /// Whether the check with this short name was made and failed.
    #[must_use]
    pub fn has_failed(&self, id: &str) -> bool {
        self.find(id).is_some_and(|check| check.outcome == Outcome::Fail)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            let mark = match check.outcome {
                Outcome::Pass => '✓',
                Outcome::Fail => '✗',
                Outcome::Note => '!',
                Outcome::Skipped => '·',
            };
            writeln!(f, "{mark} {:<13} {}", check.id, check.text)?;
        }
        let guest = self.guest.as_deref().unwrap_or("?");
        match (self.verdict, self.subject) {
            (Verdict::Trusted, Subject::Guest) => {
                write!(f, "TRUSTED: guest {guest} runs on the reference hypervisor, as bound")
            }
            (Verdict::Trusted, Subject::Host) => {
                write!(f, "TRUSTED: the host runs the reference hypervisor; this says nothing of any guest")
            }
            (Verdict::Unenrolled, Subject::Guest) => write!(
                f,
                "UNENROLLED: everything holds for guest {guest}, if the key belongs to a TPM; nobody has proved that it does"
            ),
            (Verdict::Unenrolled, Subject::Host) => write!(
                f,
                "UNENROLLED: everything holds for the host, if the key belongs to a TPM; nobody has proved that it does"
            ),
            (Verdict::Refused, _) => write!(f, "REFUSED: believe nothing of this evidence"),
        }
    }
}
