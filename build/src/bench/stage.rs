//! From SKINIT to the guest's first instruction, stage by stage, as the log's tick counts say.

use anyhow::{Context, Result};
use serde::Serialize;

use super::grouped;
use crate::ui;

/// Line of the log that holds the tick count before SKINIT, and its key.
const BEFORE: (&str, &str) = ("loader: skinit", "tsc=");
/// Stages: a mark in the log, the key of the tick count at its end, and what has been done by then.
const STAGES: [(&str, &str, &str); 5] = [
    ("launch: ticks", "began=", "SKINIT to the launch image's first line"),
    ("launch: ticks", "shielded=", "shield: every device is refused"),
    ("launch: ticks", "measured=", "measure: core and manifest"),
    ("launch: ticks", "left=", "the core is entered"),
    ("serve: guest runs", "tsc=", "core: guest measured, keys derived, guest built"),
];

/// One stage.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub(super) struct Stage {
    stage: &'static str,
    instructions: u64,
}

/// Reads the stages from the hypervisor's log.
pub(super) fn read(log: &[String]) -> Result<Vec<Stage>> {
    let ticks = |mark: &str, key: &str| {
        let line = log.iter().find(|line| line.contains(mark))?;
        line.split(' ').find_map(|word| word.strip_prefix(key)?.trim().parse::<u64>().ok())
    };
    let mut before = ticks(BEFORE.0, BEFORE.1).context("the loader does not say when it launches")?;
    let mut stages = Vec::new();
    for (mark, key, stage) in STAGES {
        let now = ticks(mark, key).with_context(|| format!("no tick count `{key}` in the log"))?;
        stages.push(Stage { stage, instructions: now.saturating_sub(before) });
        before = now;
    }
    Ok(stages)
}

/// Prints the stages and their sum.
pub(super) fn show(stages: &[Stage]) {
    ui::heading(
        "From SKINIT to the guest's first instruction (SHA-256 bank alone, small guest), instructions",
    );
    let sum = stages.iter().fold(0u64, |sum, stage| sum.saturating_add(stage.instructions));
    let all = Stage { stage: "together", instructions: sum };
    for stage in stages.iter().chain([&all]) {
        ui::note(&format!("{:<48} {:>12}", stage.stage, grouped(stage.instructions)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_is_what_passed_since_the_one_before() {
        let log = [
            "loader: skinit slb=0x1 tsc=100",
            "launch: ticks began=110 shielded=130 measured=160 left=161",
            "serve: guest runs name=micro tsc=200",
        ]
        .map(str::to_owned);
        let counted: Vec<u64> = read(&log).unwrap().iter().map(|stage| stage.instructions).collect();
        assert_eq!(counted, [10, 20, 30, 1, 39]);
        assert!(read(&log[1..]).is_err());
    }
}
