//! The cases, as data in `qemu/conformance/cases.toml`, which describes every field.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::machine::profile::TpmInterface;

/// One power cycle.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Case {
    /// What holds if the case passes.
    pub(super) name: String,
    /// Words for the image.
    pub(super) run: String,
    /// Processor model.
    #[serde(default = "processor")]
    pub(super) cpu: String,
    /// Number of processors.
    #[serde(default = "one")]
    pub(super) cpus: u32,
    /// TPM interface.
    #[serde(default)]
    pub(super) tpm: Option<TpmInterface>,
    /// Devices; none means the northbridge function alone.
    #[serde(default)]
    pub(super) devices: Vec<String>,
    /// Other arguments for QEMU.
    #[serde(default)]
    pub(super) arguments: Vec<String>,
    /// PCR 17, report by report.
    #[serde(default)]
    pub(super) pcr17: Vec<Register>,
    /// Whether the TPM dies when the image asks for it.
    #[serde(default)]
    pub(super) kill_tpm: bool,
    /// What becomes of the hostile device's accesses.
    #[serde(default)]
    pub(super) attack: Option<Attack>,
}

/// What PCR 17 holds.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Register {
    /// The measurement of the loader block as built.
    Measured,
    /// The measurement of nothing: a launch that nobody may trust.
    Nothing,
    /// Neither: the block was changed before it was measured.
    Changed,
}

/// Expectations for each phase of a launch.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Attack {
    /// Before the protection.
    pub(super) before: Accesses,
    /// While it holds.
    pub(super) protected: Accesses,
    /// After its release.
    pub(super) released: Accesses,
}

/// What becomes of accesses.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Accesses {
    /// There are none.
    None,
    /// All reach memory.
    Through,
    /// All are refused.
    Refused,
    /// Some are, some are not.
    Mixed,
}

fn processor() -> String {
    "EPYC,+svm,+npt,+skinit,-monitor,-smap".to_owned()
}

const fn one() -> u32 {
    1
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    case: Vec<Case>,
}

/// Reads all cases.
pub(super) fn load(path: &Path) -> Result<Vec<Case>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let file: File =
        toml::from_str(&text).with_context(|| format!("{} is no list of cases", path.display()))?;
    Ok(file.case)
}

impl Case {
    /// Whether the image says nothing about PCR 17 by itself.
    pub(super) fn is_silent(&self) -> bool {
        self.run.split_whitespace().next() == Some("case=runs")
    }

    /// Length that the image gives its block, if not that of its code.
    pub(super) fn length(&self) -> Result<Option<usize>> {
        self.run
            .split_whitespace()
            .find_map(|word| word.strip_prefix("length="))
            .map(|digits| digits.parse().with_context(|| format!("`length={digits}` is no number")))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::place;

    #[test]
    fn every_case_of_the_tree_can_be_read_and_has_a_name_of_its_own() {
        let cases = load(&place::root().join("qemu/conformance/cases.toml")).unwrap();
        let names: HashSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names.len(), cases.len());
        for case in &cases {
            assert!(case.run.starts_with("case="), "{}", case.name);
            case.length().unwrap();
        }
    }
}
