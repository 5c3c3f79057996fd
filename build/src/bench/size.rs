//! How much is measured, and how much of it is unsafe.

use anyhow::{Result, anyhow};
use serde::Serialize;

use super::grouped;
use crate::artifact::Artifacts;
use crate::{lint, place, ui};

/// Bytes and lines.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Sizes {
    /// Bytes of the launch image that the processor measures.
    measured_bytes: u64,
    /// Bytes of the core's file.
    core_bytes: u64,
    /// Bytes of the untrusted UEFI loader.
    loader_bytes: u64,
    /// Lines of code in the measured crates, without tests, comments and empty lines.
    lines: u64,
    /// Of these, lines in files that hold unsafe code.
    lines_in_unsafe_files: u64,
    /// Unsafe blocks and functions.
    unsafe_uses: u64,
}

/// Measures the files and the tree.
pub(super) fn measure(artifacts: &Artifacts) -> Result<Sizes> {
    let launch = place::read(&artifacts.launch())?;
    let measured = dolmen_drtm::predict::measured_part(&launch)
        .map_err(|error| anyhow!("{} is no launch image: {error:?}", artifacts.launch().display()))?;
    let lines = lint::measured_lines()?;
    Ok(Sizes {
        measured_bytes: u64::try_from(measured.len())?,
        core_bytes: artifacts.core().metadata()?.len(),
        loader_bytes: artifacts.loader_uefi().metadata()?.len(),
        lines: u64::try_from(lines.all)?,
        lines_in_unsafe_files: u64::try_from(lines.unsafe_files)?,
        unsafe_uses: u64::try_from(lines.unsafe_uses)?,
    })
}

impl Sizes {
    pub(super) fn show(&self) {
        let share = self.lines_in_unsafe_files.saturating_mul(1000).checked_div(self.lines).unwrap_or(0);
        ui::heading("Sizes");
        let note = |what: &str, number: u64, unit: &str| {
            ui::note(&format!("{what:<27}{:>10} {unit}", grouped(number)));
        };
        note("measured by the processor", self.measured_bytes, "bytes");
        note("core, file", self.core_bytes, "bytes");
        note("loader, UEFI, untrusted", self.loader_bytes, "bytes");
        note(
            "code in the measured crates",
            self.lines,
            "lines (tests, comments and empty lines not counted)",
        );
        let unsafe_share = format!(
            "lines ({}.{} %), {} unsafe blocks and functions",
            share.checked_div(10).unwrap_or(0),
            share.checked_rem(10).unwrap_or(0),
            self.unsafe_uses
        );
        note("of it in files with unsafe", self.lines_in_unsafe_files, &unsafe_share);
    }
}
