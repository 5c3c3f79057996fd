//! `dolmen ps`: all guests in a table.

use core::fmt::Write;

use dolmen_abi::{EXIT_KINDS, GuestInfo, GuestState, StopCause};
use serde_json::{Map, Value, json};

use crate::manage::Snapshot;
use crate::output::Product;

/// The list as a table, and as JSON.
pub(crate) fn list(all: &Snapshot) -> Product {
    let mut rows =
        vec![["GUEST", "STATE", "FOR", "CPU", "VCPUS", "MEMORY", "STARTS", "LAST STOP"].map(str::to_owned)];
    rows.extend(all.guests.iter().enumerate().map(|(index, guest)| row(guest, index == all.caller)));
    let json = json!({
        "uptime_ns": all.uptime_ns,
        "guests": all.guests.iter().enumerate().map(|(index, guest)| object(guest, index == all.caller)).collect::<Vec<_>>(),
    });
    Product::report("guests", table(&rows), json)
}

fn row(guest: &GuestInfo, is_caller: bool) -> [String; 8] {
    let ran = if guest.starts > 0 { duration(guest.run_ns) } else { "-".to_owned() };
    [
        format!("{}{}", guest.name().escape_default(), if is_caller { "*" } else { "" }),
        guest.state().to_string(),
        ran,
        duration(guest.cpu_ns),
        guest.vcpus.to_string(),
        bytes(guest.memory),
        guest.starts.to_string(),
        last_stop(guest),
    ]
}

/// Why it stopped, and where it stood if it crashed.
fn last_stop(guest: &GuestInfo) -> String {
    match guest.cause() {
        StopCause::NONE => "-".to_owned(),
        cause if cause.is_crash() && guest.last_rip != 0 => format!("{cause} at {:#x}", guest.last_rip),
        cause => cause.to_string(),
    }
}

fn object(guest: &GuestInfo, is_caller: bool) -> Value {
    let exits: Map<String, Value> = EXIT_KINDS
        .iter()
        .zip(guest.exits)
        .map(|((name, _), count)| ((*name).to_owned(), count.into()))
        .collect();
    json!({
        "name": guest.name(),
        "is_caller": is_caller,
        "state": guest.state().to_string(),
        "last_stop": guest.cause().to_string(),
        "last_rip": guest.last_rip,
        "last_cr3": guest.last_cr3,
        "last_detail": guest.last_detail,
        "vcpus": guest.vcpus,
        "memory": guest.memory,
        "starts": guest.starts,
        "restarts": guest.restarts,
        "run_ns": guest.run_ns,
        "cpu_ns": guest.cpu_ns,
        "g0": hex::encode(guest.identity),
        "exits": exits,
    })
}

/// Whether the guest has anything to measure now.
pub(crate) fn is_alive(guest: &GuestInfo) -> bool {
    guest.state() == GuestState::RUNNING
}

/// Rows as columns that line up; the last one is not padded.
pub(crate) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            // Writing to a string cannot fail.
            write!(line, "{cell:<width$}  ").unwrap_or_default();
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A time in the two largest units that it has.
pub(crate) fn duration(ns: u64) -> String {
    let ms = ns / 1_000_000;
    let s = ms / 1000;
    match s {
        0..10 => format!("{s}.{}s", ms % 1000 / 100),
        10..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d{:02}h", s / 86_400, s / 3600 % 24),
    }
}

fn bytes(count: u64) -> String {
    match count {
        0x4000_0000.. if count.is_multiple_of(0x4000_0000) => format!("{} GiB", count >> 30),
        _ => format!("{} MiB", count >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> GuestInfo {
        let mut guest = GuestInfo { memory: 512 << 20, vcpus: 2, ..GuestInfo::default() };
        guest.name[..name.len()].copy_from_slice(name.as_bytes());
        guest
    }

    #[test]
    fn the_table_says_what_each_guest_does_and_where_a_crash_was() {
        let guests = vec![
            GuestInfo {
                state: 2,
                starts: 1,
                run_ns: 75_000_000_000,
                cpu_ns: 4_200_000_000,
                ..named("debian")
            },
            GuestInfo { state: 4, cause: 4, starts: 3, last_rip: 0xffff_8000, memory: 4 << 30, ..named("b") },
            named("spare"),
        ];
        let all = Snapshot { caller: 0, uptime_ns: 1, guests };
        assert_eq!(
            list(&all).as_text(false),
            "GUEST    STATE    FOR    CPU   VCPUS  MEMORY   STARTS  LAST STOP\n\
             debian*  running  1m15s  4.2s  2      512 MiB  1       -\n\
             b        stopped  0.0s   0.0s  2      4 GiB    3       triple-fault at 0xffff8000\n\
             spare    off      -      0.0s  2      512 MiB  0       -\n"
        );
    }

    #[test]
    fn json_has_every_counter() {
        let mut guest = named("a");
        guest.exits[2] = 77;
        let all = Snapshot { caller: 9, uptime_ns: 5, guests: vec![guest] };
        let json: Value = serde_json::from_str(&list(&all).as_text(true)).unwrap();
        assert_eq!(json["guests"][0]["exits"]["cpuid"], 77);
        assert_eq!(json["guests"][0]["exits"].as_object().unwrap().len(), EXIT_KINDS.len());
        assert_eq!((&json["guests"][0]["is_caller"], &json["uptime_ns"]), (&false.into(), &5.into()));
    }

    #[test]
    fn times_have_the_units_that_matter() {
        for (seconds, want) in
            [(0, "0.0s"), (9, "9.0s"), (10, "10s"), (61, "1m01s"), (3660, "1h01m"), (90_000, "1d01h")]
        {
            assert_eq!(duration(seconds * 1_000_000_000), want);
        }
        assert_eq!(duration(u64::MAX).len(), 10);
    }
}
