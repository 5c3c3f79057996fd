//! What became of the hostile device's accesses: its report, line by line.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::case::{Accesses, Attack};

/// Judges the last complete state that the device reported.
pub(super) fn judge(expected: &Attack, report: &Path) -> Result<()> {
    let text = std::fs::read_to_string(report)
        .with_context(|| format!("the hostile device left no report in {}", report.display()))?;
    for (phase, want) in
        [("before", expected.before), ("protected", expected.protected), ("released", expected.released)]
    {
        let got = accesses(&text, phase).with_context(|| format!("its report does not cover `{phase}`"))?;
        if got != want {
            bail!("accesses {phase}: {got:?}, want {want:?} (report: {})", report.display());
        }
    }
    Ok(())
}

/// The newest line about `phase`.
fn accesses(report: &str, phase: &str) -> Option<Accesses> {
    let line = report
        .lines()
        .rev()
        .find(|line| line.split(' ').any(|word| word.strip_prefix("phase=") == Some(phase)))?;
    let count = |key: &str| -> Option<u64> {
        line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
    };
    let through = count("written")?.saturating_add(count("read")?);
    let refused = count("write-refused")?.saturating_add(count("read-refused")?);
    Some(match (through, refused) {
        (0, 0) => Accesses::None,
        (_, 0) => Accesses::Through,
        (0, _) => Accesses::Refused,
        _ => Accesses::Mixed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "\
at=protected target=slb:0x0/0x40 phase=before written=3 write-refused=0 read=0 read-refused=0 last-read=0x0
at=protected target=slb:0x0/0x40 phase=protected written=0 write-refused=0 read=0 read-refused=0 last-read=0x0
at=stop target=slb:0x0/0x40 phase=before written=3 write-refused=0 read=0 read-refused=0 last-read=0x0
at=stop target=slb:0x0/0x40 phase=protected written=0 write-refused=9 read=0 read-refused=9 last-read=0x0
";

    #[test]
    fn the_newest_state_of_a_phase_counts() {
        assert_eq!(accesses(REPORT, "before"), Some(Accesses::Through));
        assert_eq!(accesses(REPORT, "protected"), Some(Accesses::Refused));
        assert_eq!(accesses(REPORT, "released"), None);
    }
}
