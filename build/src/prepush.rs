//! `cargo xtask prepush`: what must hold before a change leaves the machine; CI checks it again, and more.

use std::process::ExitCode;

use anyhow::Result;

use crate::{lint, test};

/// Writes the ledger, then runs format, lints, documentation, unit tests, Miri and the reproducible build.
pub(crate) fn run() -> Result<ExitCode> {
    lint::run()?;
    test::run(&test::Options::before_push())
}
