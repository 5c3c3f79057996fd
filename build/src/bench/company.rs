//! What several processors of a guest, and several guests, cost one another.

use anyhow::{Context, Result};
use serde::Serialize;

use super::{Cost, figures, grouped};
use crate::test::Bench;
use crate::ui;

/// One figure, and the peers' where there are any.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figure {
    what: &'static str,
    least: u64,
    median: u64,
    kvm: Option<u64>,
    xen: Option<u64>,
}

/// Measures on one processor, where one tick is one instruction of whoever runs.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let progress = ui::Progress::start("Counting an interrupt between processors, and lives of a guest");
    let kernel = bench.artifacts.file("micro-guest.elf").display().to_string();
    let guest = |name: &str, cmdline: &str, more: &str| {
        format!(
            "[[guest]]\nname = \"{name}\"\nmemory_mib = 32\nformat = \"pvh\"\nkernel = \"{kernel}\"\n\
             cmdline = \"{cmdline}\"\n{more}\n"
        )
    };
    let measures = "consoles = [\"com2\"]\non_power_off = \"halt-machine\"";
    let pair = guest("pair", "bench-pair", &format!("{measures}\nvcpus = 2"));
    let life = guest("master", "bench-life", &format!("{measures}\nhypercalls = [\"manage\"]"));
    let other = guest("leaves", "ends=off", "consoles = [\"none\"]\nstart = \"on-demand\"");
    let (pair, _) = figures(bench, "pair", &pair)?;
    let (life, _) = figures(bench, "life", &[life, other].concat())?;
    progress.done();
    Ok(vec![
        figure(
            &pair,
            "ipi-to-sleeper",
            "interrupt to a sleeping processor, until it is handled",
            None,
            None,
        )?,
        // KVM's is a guest that leaves at once under a minimal monitor, Xen's one that `xl` starts.
        figure(
            &life,
            "life",
            "a guest's life: hashed, loaded, run, wiped",
            Some(51_200_000),
            Some(60_900_000),
        )?,
    ])
}

fn figure(
    costs: &[Cost],
    name: &str,
    what: &'static str,
    kvm: Option<u64>,
    xen: Option<u64>,
) -> Result<Figure> {
    let cost = costs.iter().find(|cost| cost.name == name);
    let Cost { least, median, .. } =
        *cost.with_context(|| format!("the micro-guest did not measure `{name}`"))?;
    Ok(Figure { what, least, median, kvm, xen })
}

/// Prints the table.
pub(super) fn show(figures: &[Figure]) {
    ui::heading("Processors and guests among each other, one physical processor, instructions");
    ui::note(&format!("{:<52} {:>12} {:>12} | {:>12} {:>12}", "what", "least", "median", "KVM", "Xen"));
    let shown = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), grouped);
    for Figure { what, least, median, kvm, xen } in figures {
        ui::note(&format!(
            "{what:<52} {:>12} {:>12} | {:>12} {:>12}",
            grouped(*least),
            grouped(*median),
            shown(*kvm),
            shown(*xen)
        ));
    }
}
