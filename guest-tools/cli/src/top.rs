//! `dolmen top`: what the guests do, per second, until somebody has seen enough.
//!
//! Needs no more of a terminal than a 16550 console has: cursor home, erase to the end.

use core::fmt;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use dolmen_abi::{EXIT_KINDS, EXIT_SLOTS, GuestInfo};
use dolmen_guest::{Client, Transport};
use serde_json::json;

use crate::failure::Failure;
use crate::guests::{duration, is_alive, table};
use crate::manage::{Snapshot, snapshot};
use crate::terminal::{Keys, Quiet};

/// Keys that end it: `q`, Ctrl-C, Ctrl-D.
const END: [u8; 3] = [b'q', 0x03, 0x04];
/// Exit kinds with a column of their own, by their place in [`EXIT_KINDS`]; the rest is in the sum.
const COLUMNS: [usize; 7] = [0, 2, 3, 4, 5, 6, 7];

/// Shows tables until a key ends it or `count` of them were shown.
pub(crate) fn watch<T>(client: &mut Client<T>, interval: u32, count: u32, json: bool) -> Result<(), Failure>
where
    T: Transport<Error: fmt::Display>,
{
    let quiet = Quiet::begin()?;
    let is_live = io::stdout().is_terminal() && !json;
    let mut before = snapshot(client)?;
    let mut shown = 0u32;
    while count == 0 || shown < count {
        let pause = Duration::from_secs(u64::from(interval));
        if quiet.as_ref().map_or(Keys::Nobody, Quiet::keys).wait(pause, &END)? {
            break;
        }
        let now = snapshot(client)?;
        show(&render(&before, &now, json), is_live)?;
        before = now;
        shown = shown.saturating_add(1);
    }
    Ok(())
}

fn show(text: &str, is_live: bool) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let mut whole = String::new();
    if is_live {
        // Home; each line erases what is left of the old one; then what is below.
        whole.push_str("\x1b[H");
        for line in text.lines() {
            whole.push_str(line);
            whole.push_str("\x1b[K\r\n");
        }
        whole.push_str("\x1b[J");
    } else {
        whole.push_str(text);
    }
    let written = out.write_all(whole.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| Failure::plain(&format!("cannot write to standard output: {error}")))
}

/// What happened between two looks at one guest, per second.
struct Rates {
    /// Thousandths of one processor.
    cpu: u64,
    exits: [u64; EXIT_SLOTS],
}

impl Rates {
    fn between(before: Option<&GuestInfo>, now: &GuestInfo, elapsed_ns: u64) -> Self {
        let per_second = |old: u64, new: u64, units: u64| {
            let change = u128::from(new.saturating_sub(old)).saturating_mul(u128::from(units));
            let rate = change.checked_div(u128::from(elapsed_ns)).unwrap_or_default();
            u64::try_from(rate).unwrap_or(u64::MAX)
        };
        let old = before.copied().unwrap_or_default();
        let mut exits = [0; EXIT_SLOTS];
        for (rate, (old, new)) in exits.iter_mut().zip(old.exits.iter().zip(now.exits)) {
            *rate = per_second(*old, new, 1_000_000_000);
        }
        Self { cpu: per_second(old.cpu_ns, now.cpu_ns, 1000), exits }
    }

    fn sum(&self) -> u64 {
        self.exits.iter().fold(0, |sum, rate| sum.saturating_add(*rate))
    }
}

fn render(before: &Snapshot, now: &Snapshot, as_json: bool) -> String {
    let elapsed = now.uptime_ns.saturating_sub(before.uptime_ns);
    let rates: Vec<_> = now
        .guests
        .iter()
        .enumerate()
        .map(|(index, guest)| (guest, Rates::between(before.guests.get(index), guest, elapsed)))
        .collect();
    if as_json {
        let guests: Vec<_> = rates
            .iter()
            .map(|(guest, rates)| {
                json!({ "name": guest.name(), "state": guest.state().to_string(),
                        "cpu_per_mille": rates.cpu, "exits_per_s": rates.sum() })
            })
            .collect();
        return format!("{}\n", json!({ "uptime_ns": now.uptime_ns, "guests": guests }));
    }
    let running = now.guests.iter().filter(|guest| is_alive(guest)).count();
    let mut heading = [const { String::new() }; 11];
    let titles = ["GUEST", "STATE", "CPU%", "EXITS/S"].into_iter();
    let kinds = COLUMNS.iter().filter_map(|kind| EXIT_KINDS.get(*kind)).map(|(name, _)| *name);
    for (cell, title) in heading.iter_mut().zip(titles.chain(kinds)) {
        *cell = title.to_uppercase();
    }
    let mut rows = vec![heading];
    rows.extend(rates.iter().map(|(guest, rates)| row(guest, rates)));
    let (up, all) = (duration(now.uptime_ns), now.guests.len());
    format!("dolmen top   up {up}   {running} of {all} guests run   q ends\n\n{}", table(&rows))
}

fn row(guest: &GuestInfo, rates: &Rates) -> [String; 11] {
    let mut cells = [const { String::new() }; 11];
    let first = [
        guest.name().escape_default().to_string(),
        guest.state().to_string(),
        format!("{}.{}", rates.cpu / 10, rates.cpu % 10),
        rates.sum().to_string(),
    ];
    let kinds = COLUMNS.iter().map(|kind| rates.exits.get(*kind).copied().unwrap_or_default().to_string());
    for (cell, text) in cells.iter_mut().zip(first.into_iter().chain(kinds)) {
        *cell = text;
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(uptime_ms: u64, cpu_ms: u64, cpuids: u64, msrs: u64) -> Snapshot {
        let mut guest = GuestInfo { state: 2, cpu_ns: cpu_ms * 1_000_000, ..GuestInfo::default() };
        guest.name[0] = b'a';
        (guest.exits[2], guest.exits[3]) = (cpuids, msrs);
        Snapshot { caller: 0, uptime_ns: uptime_ms * 1_000_000, guests: vec![guest] }
    }

    #[test]
    fn the_table_tells_rates_per_second() {
        let text = render(&at(1000, 500, 10, 0), &at(3000, 1501, 30, 2000), false);
        assert_eq!(
            text,
            "dolmen top   up 3.0s   1 of 1 guests run   q ends\n\n\
             GUEST  STATE    CPU%  EXITS/S  HOST  CPUID  MSR   PORT  HALT  HYPERCALL  DEVICE\n\
             a      running  50.0  1010     0     10     1000  0     0     0          0\n"
        );
    }

    #[test]
    fn counters_that_fall_and_clocks_that_stand_are_no_rate() {
        let text = render(&at(1000, 500, 10, 0), &at(1000, 400, 5, 0), true);
        assert!(text.contains("\"cpu_per_mille\":0") && text.contains("\"exits_per_s\":0"), "{text}");
    }

    #[test]
    fn a_line_fits_a_serial_console() {
        let text = render(&at(0, 0, 0, 0), &at(1000, 1000, 99_999, 999_999), false);
        assert!(text.lines().all(|line| line.len() < 96), "{text}");
    }
}
