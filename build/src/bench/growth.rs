//! What exits cost while other guests are there, and what each guest needs of the hypervisor's memory.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde::Serialize;

use super::{Cost, figures, grouped, operation};
use crate::test::Bench;
use crate::ui;

/// Numbers of guests: one measures, the others sleep and wake up ten times a second.
const CROWDS: [usize; 3] = [1, 8, 32];

/// Costs with one number of guests.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Crowd {
    guests: usize,
    /// KiB of the hypervisor's memory that are left once all guests are built.
    left_kib: u64,
    costs: Vec<Cost>,
}

/// Measures with each number of guests.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Crowd>> {
    CROWDS.iter().map(|guests| crowd(bench, *guests)).collect()
}

fn crowd(bench: &Bench, guests: usize) -> Result<Crowd> {
    let progress = ui::Progress::start(&format!("Counting with {guests} guests"));
    let (costs, log) = figures(bench, &format!("crowd-{guests}"), &manifest(bench, guests)?)?;
    progress.done();
    Ok(Crowd { guests, left_kib: left(&log)?, costs })
}

/// The guest that measures comes first; the others have no console.
fn manifest(bench: &Bench, guests: usize) -> Result<String> {
    let kernel = bench.artifacts.file("micro-guest.elf");
    let mut text = String::new();
    for number in 0..guests {
        let (name, console, what) = match number {
            0 => ("measures".to_owned(), "com2", "bench-exits"),
            _ => (format!("rests-{number}"), "none", "rest"),
        };
        write!(
            text,
            "[[guest]]\nname = \"{name}\"\nmemory_mib = 16\nformat = \"pvh\"\nconsoles = [\"{console}\"]\n\
             on_power_off = \"halt-machine\"\nkernel = \"{}\"\ncmdline = \"{what}\"\n",
            kernel.display()
        )?;
    }
    Ok(text)
}

/// The hypervisor's free memory, as its log tells it.
fn left(log: &[String]) -> Result<u64> {
    let line = log.iter().find(|line| line.contains("virtualise: guests built"));
    let value = line.and_then(|line| line.split(' ').find_map(|word| word.strip_prefix("left_kib=")));
    value.and_then(|kib| kib.trim().parse().ok()).context("the log does not tell how much memory is left")
}

/// What each guest took beyond the first, in KiB.
fn kib_for_each(crowds: &[Crowd]) -> Option<u64> {
    let (first, last) = (crowds.first()?, crowds.last()?);
    let more = u64::try_from(last.guests.checked_sub(first.guests)?).ok()?;
    first.left_kib.checked_sub(last.left_kib)?.checked_div(more)
}

/// Prints a column for each number of guests.
pub(super) fn show(crowds: &[Crowd]) {
    ui::heading("The same while other guests sleep beside, one processor, instructions (median)");
    let column = |text: String| format!("{text:>12}");
    let heads: String = crowds.iter().map(|crowd| column(format!("{} guests", crowd.guests))).collect();
    ui::note(&format!("{:<40}{heads}", "operation"));
    for (name, what) in operation::exits() {
        let median = |crowd: &Crowd| {
            let found = crowd.costs.iter().find(|cost| cost.name == name);
            column(found.map_or_else(|| "-".to_owned(), |cost| grouped(cost.median)))
        };
        ui::note(&format!("{what:<40}{}", crowds.iter().map(median).collect::<String>()));
    }
    if let Some(kib) = kib_for_each(crowds) {
        ui::note(&format!("each guest takes {kib} KiB of the hypervisor's memory beyond its own RAM"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_takes_is_the_mean_of_the_steps() {
        let crowd = |guests, left_kib| Crowd { guests, left_kib, costs: Vec::new() };
        assert_eq!(kib_for_each(&[crowd(1, 1000), crowd(8, 950), crowd(32, 690)]), Some(10));
        assert_eq!(kib_for_each(&[crowd(1, 1000)]), None);
    }

    #[test]
    fn free_memory_is_read_from_the_log() {
        let log = ["virtualise: guest built name=a", "virtualise: guests built count=1 vcpus=1 left_kib=77"];
        assert_eq!(left(&log.map(str::to_owned)).unwrap(), 77);
        assert!(left(&[]).is_err());
    }
}
