//! The two back ends beside each other, exit kind by exit kind.
//!
//! Each is counted in the emulator that executes its extension, by the same guest, on one processor. Both emulators'
//! time-stamp counters count executed instructions; what a world switch costs on top of its one instruction, neither
//! tells.

use std::time::Duration;

use anyhow::{Result, bail};
use serde::Serialize;

use super::{Cost, cost, figures, grouped, operation};
use crate::artifact::{self, MICRO_GUEST};
use crate::machine::bochs::{Bochs, Model};
use crate::test::Bench;
use crate::{e2e, place, ui};

/// Longest run: some 50 million instructions are executed in a second, BIOS and GRUB included.
const LIMIT: Duration = Duration::from_secs(400);
const COMMAND_LINE: &str = "bench-exits";

/// One kind of exit, in instructions, on both.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Pair {
    what: &'static str,
    svm: u64,
    vmx: u64,
}

/// Runs the same guest on both.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Pair>> {
    let progress = ui::Progress::start("Counting the same exits under SVM and under VMX (development image)");
    let kernel = bench.artifacts.file(MICRO_GUEST.output);
    let manifest = format!(
        "[[guest]]\nname = \"measures\"\nmemory_mib = 32\nformat = \"pvh\"\nconsoles = [\"com2\"]\n\
         on_power_off = \"halt-machine\"\nkernel = \"{}\"\ncmdline = \"{COMMAND_LINE}\"\n",
        kernel.display()
    );
    let (svm, _) = figures(bench, "svm", &manifest)?;
    let vmx = intel(bench)?;
    progress.done();
    let median =
        |costs: &[Cost], name: &str| costs.iter().find(|cost| cost.name == name).map(|cost| cost.median);
    let pairs: Vec<Pair> = operation::exits()
        .filter_map(|(name, what)| Some(Pair { what, svm: median(&svm, name)?, vmx: median(&vmx, name)? }))
        .collect();
    if pairs.is_empty() {
        bail!("the two guests measured nothing in common");
    }
    Ok(pairs)
}

fn intel(bench: &Bench) -> Result<Vec<Cost>> {
    let folder = place::output().join("bench/vmx");
    let development = artifact::development(&bench.artifacts.folder)?;
    let kernel = bench.artifacts.file(MICRO_GUEST.output);
    let release = e2e::small_guest(bench, &folder, &kernel, COMMAND_LINE)?;
    let parts = development.instead_of(release.parts);
    let model = Model { processor: "corei7_skylake_x", count: 1, memory_mib: 512 };
    let mut machine = Bochs::start(&model, &parts, &development.loader, &folder)?;
    let mut costs = Vec::new();
    let last = machine.console.find("the micro-guest's figures", LIMIT, |line| {
        costs.extend(cost(line));
        (line == "cost done" || line.starts_with("FAIL ")).then(|| line.to_owned())
    })?;
    if last.starts_with("FAIL ") {
        bail!("the micro-guest says `{last}`");
    }
    Ok(costs)
}

/// Prints the table.
pub(super) fn show(pairs: &[Pair]) {
    ui::heading("The same exits on both back ends, each in its emulator, instructions (median)");
    ui::note(&format!("{:<40}{:>10}{:>10}", "operation", "SVM", "VMX"));
    for Pair { what, svm, vmx } in pairs {
        ui::note(&format!("{what:<40}{:>10}{:>10}", grouped(*svm), grouped(*vmx)));
    }
}
