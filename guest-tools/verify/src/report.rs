//! The verdict, for people and for programs.

use std::fmt;

use serde::Serialize;

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

/// All checks of one piece of evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The verdict.
    pub verdict: Verdict,
    /// Whether the policy accepts that verdict.
    pub accepted: bool,
    /// The guest, if its name could be read.
    pub guest: Option<String>,
    /// The Name of the key, in hex, if it could be read.
    pub key: Option<String>,
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
            writeln!(f, "{mark} {:<11} {}", check.id, check.text)?;
        }
        let guest = self.guest.as_deref().unwrap_or("?");
        match self.verdict {
            Verdict::Trusted => {
                write!(f, "TRUSTED: guest {guest} runs on the reference hypervisor, as bound")
            }
            Verdict::Unenrolled => write!(
                f,
                "UNENROLLED: everything holds for guest {guest}, if the key belongs to a TPM; nobody has proved that it does"
            ),
            Verdict::Refused => write!(f, "REFUSED: believe nothing of this evidence"),
        }
    }
}
