//! What exits and calls cost, beside the peers.
//!
//! The peers' figures are constants: they were measured once, under the same emulator with the same processor model
//! and options, with the same loop around each operation. KVM is that of Linux 6.1 with a minimal monitor in C, in
//! its default configuration; Xen is 4.17 with a PVH guest. Neither has next-RIP in the emulator, so both decode
//! guest instructions; what that costs KVM, 1,711 instructions, was traced, and is taken off in a column of its own.

use anyhow::{Context, Result};
use serde::Serialize;

use super::{Cost, grouped};
use crate::ui;

/// A peer's figures for one operation.
#[derive(Clone, Copy, Debug, Serialize, PartialEq, Eq)]
pub(super) struct Peers {
    /// Linux 6.1 KVM.
    kvm: Option<u64>,
    /// The same without decoding, as on a processor that saves the next RIP.
    kvm_with_next_rip: Option<u64>,
    /// Xen 4.17.
    xen: Option<u64>,
}

/// Nobody has measured this.
const NONE: Peers = Peers { kvm: None, kvm_with_next_rip: None, xen: None };

const fn peers(kvm: u64, kvm_with_next_rip: Option<u64>, xen: u64) -> Peers {
    Peers { kvm: Some(kvm), kvm_with_next_rip, xen: Some(xen) }
}

const fn kvm(kvm: u64) -> Peers {
    Peers { kvm: Some(kvm), kvm_with_next_rip: None, xen: None }
}

/// The first of these need no service of the hypervisor's.
const EXITS: usize = 15;

/// Operation of the micro-guest, what it is, and the peers' figures.
const OPERATIONS: [(&str, &str, Peers); 19] = [
    ("cpuid", "CPUID", peers(3063, Some(1350), 5435)),
    ("rdmsr-apic-base", "RDMSR APIC_BASE", peers(3138, Some(1430), 5345)),
    ("in-0x21", "IN, a device of the hypervisor's", peers(1688, Some(1688), 1175)),
    ("in-unused-port", "IN, nobody there (KVM: its monitor)", peers(3575, None, 1175)),
    ("out-0x80", "OUT 0x80 (Xen: no exit)", peers(3561, None, 6)),
    ("unknown-hypercall", "hypercall, unknown (Xen: version)", peers(3329, Some(1620), 5561)),
    ("mmio-nobody", "memory read, nobody there", peers(6029, None, 14_679)),
    ("xapic-read", "local APIC, read", peers(3892, None, 13_974)),
    ("xapic-write-tpr", "local APIC, write of the priority", peers(3831, None, 17_694)),
    ("xapic-self-ipi", "interrupt to itself, delivered, ended", peers(11_552, None, 36_854)),
    ("xapic-timer-hlt", "timer and HLT, beyond the wait", peers(18_770, None, 76_200)),
    ("x2apic-read", "x2APIC, read", kvm(3244)),
    ("x2apic-write-tpr", "x2APIC, write of the priority", kvm(3219)),
    ("x2apic-self-ipi", "x2APIC, interrupt to itself", kvm(10_333)),
    ("x2apic-timer-hlt", "x2APIC, timer and HLT", NONE),
    ("hypercall-version", "hypercall, Version", NONE),
    ("hypercall-random-32", "hypercall, 32 random bytes", NONE),
    ("seal-32", "seal 32 bytes", NONE),
    ("unseal-32", "unseal 32 bytes", NONE),
];

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Operation {
    name: &'static str,
    what: &'static str,
    least: u64,
    median: u64,
    #[serde(flatten)]
    peers: Peers,
}

/// Operations that are measured in every guest: name, and what it is.
pub(super) fn exits() -> impl Iterator<Item = (&'static str, &'static str)> {
    OPERATIONS.iter().take(EXITS).map(|(name, what, _)| (*name, *what))
}

/// Puts the peers beside the guest's figures; an operation that was not measured is an error.
pub(super) fn compare(costs: &[Cost]) -> Result<Vec<Operation>> {
    let line = |(name, what, peers): (&'static str, &'static str, Peers)| {
        let cost = costs.iter().find(|cost| cost.name == name);
        let cost = cost.with_context(|| format!("the micro-guest did not measure `{name}`"))?;
        Ok(Operation { name, what, least: cost.least, median: cost.median, peers })
    };
    OPERATIONS.into_iter().map(line).collect()
}

/// Prints the table.
pub(super) fn show(operations: &[Operation]) {
    ui::heading("Exits and calls, instructions in the guest's view");
    ui::note(&format!(
        "{:<36} {:>8} {:>8} | {:>7} {:>13} {:>7}",
        "operation", "least", "median", "KVM", "KVM, next-RIP", "Xen"
    ));
    let shown = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), grouped);
    for Operation { what, least, median, peers, .. } in operations {
        ui::note(&format!(
            "{what:<36} {:>8} {:>8} | {:>7} {:>13} {:>7}",
            grouped(*least),
            grouped(*median),
            shown(peers.kvm),
            shown(peers.kvm_with_next_rip),
            shown(peers.xen)
        ));
    }
    ui::note("Peers in the same emulator: Linux 6.1 KVM with a minimal monitor, Xen 4.17 with a PVH guest.");
    ui::note("KVM, next-RIP: without the 1,711 instructions of decoding that hardware with next-RIP saves.");
    ui::note("The emulator has no next-RIP, so Dolmen's figures hold its own decoding.");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_that_was_not_measured_is_an_error() {
        let all: Vec<Cost> = OPERATIONS
            .iter()
            .map(|(name, ..)| Cost { name: (*name).to_owned(), least: 1, median: 2 })
            .collect();
        assert_eq!(compare(&all).unwrap().len(), OPERATIONS.len());
        assert!(compare(&all[1..]).is_err());
    }
}
