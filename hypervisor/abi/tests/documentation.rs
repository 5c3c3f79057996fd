//! Holds `docs/abi.md` to the code: its tables are what is generated here.
//!
//! `DOLMEN_BLESS=1 cargo test -p dolmen-abi --test documentation` writes them anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]

mod generated;

use core::fmt::Write;

use dolmen_abi::{
    ActivateRequest, AkId, Binding, BlobHeader, CALLS, CallGroup, CertifyReply, CertifyRequest, ChainRequest,
    EXIT_KINDS, EkId, EventLogReply, EventLogRequest, ExtendReply, ExtendRequest, GuestInfo, GuestName,
    GuestState, HostQuoteReply, HostQuoteRequest, KeyRequest, LaunchFacts, Layout, ListGuestsReply,
    MAX_ACTIVATED, MAX_AK_PUBLIC, MAX_ATTEST, MAX_CERTIFICATE, MAX_HOST_NONCE, MAX_LABEL, MAX_LOG_WINDOW,
    MAX_PATH, MAX_RANDOM, MAX_SECRET, MAX_SIGNATURE, MAX_WAITING, QuoteReply, QuoteRequest, RandomRequest,
    RegistersReply, SealPolicy, SealRequest, Status, StopCause, TpmFailure, UnsealRequest, VersionReply,
};

/// A table for each mark in the document.
fn tables() -> Vec<(&'static str, String)> {
    vec![
        ("calls", calls()),
        ("statuses", statuses()),
        (
            "launch facts",
            bits(LaunchFacts::ALL.iter().map(|(bit, name, meaning)| (bit.bits(), *name, *meaning))),
        ),
        (
            "call groups",
            bits(CallGroup::ALL.iter().map(|(bit, name, meaning)| (bit.bits(), *name, *meaning))),
        ),
        ("limits", limits()),
        ("VersionReply", structure::<VersionReply>()),
        ("RandomRequest", structure::<RandomRequest>()),
        ("RegistersReply", structure::<RegistersReply>()),
        ("ExtendRequest", structure::<ExtendRequest>()),
        ("ExtendReply", structure::<ExtendReply>()),
        (
            "seal policy",
            bits(SealPolicy::ALL.iter().map(|(bit, word, meaning)| (bit.bits(), *word, *meaning))),
        ),
        ("SealRequest", structure::<SealRequest>()),
        ("UnsealRequest", structure::<UnsealRequest>()),
        ("BlobHeader", structure::<BlobHeader>()),
        ("QuoteRequest", structure::<QuoteRequest>()),
        ("QuoteReply", structure::<QuoteReply>()),
        ("Binding", structure::<Binding>()),
        ("HostQuoteRequest", structure::<HostQuoteRequest>()),
        ("HostQuoteReply", structure::<HostQuoteReply>()),
        ("CertifyRequest", structure::<CertifyRequest>()),
        ("CertifyReply", structure::<CertifyReply>()),
        ("ChainRequest", structure::<ChainRequest>()),
        ("KeyRequest", structure::<KeyRequest>()),
        ("ActivateRequest", structure::<ActivateRequest>()),
        ("attestation keys", numbers(AkId::ALL.iter().map(|(key, word, meaning)| (key.0, *word, *meaning)))),
        ("endorsement keys", numbers(EkId::ALL.iter().map(|(key, word, meaning)| (key.0, *word, *meaning)))),
        ("EventLogRequest", structure::<EventLogRequest>()),
        ("EventLogReply", structure::<EventLogReply>()),
        ("TpmFailure", structure::<TpmFailure>()),
        ("GuestName", structure::<GuestName>()),
        ("ListGuestsReply", structure::<ListGuestsReply>()),
        ("GuestInfo", structure::<GuestInfo>()),
        (
            "guest states",
            numbers(GuestState::ALL.iter().map(|(state, word, meaning)| (state.0, *word, *meaning))),
        ),
        (
            "stop causes",
            numbers(StopCause::ALL.iter().map(|(cause, word, meaning)| (cause.0, *word, *meaning))),
        ),
        ("exit kinds", numbers((0..).zip(EXIT_KINDS).map(|(slot, (name, meaning))| (slot, name, meaning)))),
    ]
}

fn calls() -> String {
    let mut text =
        "| number | call | group | request | reply | what |\n|---|---|---|---|---|---|\n".to_owned();
    for call in CALLS {
        let groups: Vec<&str> =
            CallGroup::ALL.iter().filter(|entry| call.group.contains(entry.0)).map(|entry| entry.1).collect();
        let group = if groups.is_empty() { "always".to_owned() } else { groups.join(" or ") };
        let length = |fixed: usize, data: usize| match (fixed, data) {
            (0, 0) => "none".to_owned(),
            (fixed, 0) => format!("{fixed}"),
            (0, data) => format!("up to {data}"),
            (fixed, data) => format!("{fixed} + up to {data}"),
        };
        let (request, reply) =
            (length(call.request_bytes, call.request_data), length(call.reply_bytes, call.reply_data));
        let (number, name, meaning) = (call.number, call.name, call.meaning.trim());
        writeln!(text, "| {number:#010x} | {name} | {group} | {request} | {reply} | {meaning} |").unwrap();
    }
    text
}

fn statuses() -> String {
    let mut text = "| value | status | meaning |\n|---|---|---|\n".to_owned();
    for (status, name, meaning) in Status::ALL {
        writeln!(text, "| {} | {name} | {} |", status.0.cast_signed(), meaning.trim()).unwrap();
    }
    text
}

fn bits<'a>(bits: impl Iterator<Item = (u32, &'a str, &'a str)>) -> String {
    let mut text = "| bit | name | meaning |\n|---|---|---|\n".to_owned();
    for (bit, name, meaning) in bits {
        writeln!(text, "| {} | {name} | {meaning} |", bit.trailing_zeros()).unwrap();
    }
    text
}

fn numbers<'a>(numbers: impl Iterator<Item = (u32, &'a str, &'a str)>) -> String {
    let mut text = "| number | word | meaning |\n|---|---|---|\n".to_owned();
    for (number, word, meaning) in numbers {
        writeln!(text, "| {number} | {word} | {} |", meaning.trim()).unwrap();
    }
    text
}

fn limits() -> String {
    let mut text = "| what | most |\n|---|---|\n".to_owned();
    for (what, most) in [
        ("random bytes in one call", MAX_RANDOM),
        ("bytes of a label", MAX_LABEL),
        ("bytes that one blob seals", MAX_SECRET),
        ("bytes of the event log in one call", MAX_LOG_WINDOW),
        ("bytes of the attestation key", MAX_AK_PUBLIC),
        ("bytes of a quote (`TPMS_ATTEST`)", MAX_ATTEST),
        ("bytes of its signature (`TPMT_SIGNATURE`)", MAX_SIGNATURE),
        ("bytes of a nonce about the host", MAX_HOST_NONCE),
        ("bytes of a certificate", MAX_CERTIFICATE),
        ("bytes in a credential", MAX_ACTIVATED),
        ("requests in one quote", MAX_WAITING),
        ("siblings in a Merkle path", MAX_PATH),
    ] {
        writeln!(text, "| {what} | {most} |").unwrap();
    }
    text
}

fn structure<T: Layout>() -> String {
    let mut text = format!("| {} | size | meaning |\n|---|---|---|\n", T::NAME);
    for field in T::FIELDS {
        writeln!(text, "| {} `{}` | {} | {} |", field.offset, field.name, field.size, field.meaning.trim())
            .unwrap();
    }
    writeln!(text, "| {} | | end |", size_of::<T>()).unwrap();
    text
}

#[test]
fn the_tables_of_the_specification_are_those_of_the_code() {
    generated::assert_tables("abi.md", &tables());
}

#[test]
fn every_structure_of_the_interface_has_a_table() {
    let names: Vec<&str> = tables().iter().map(|(name, _)| *name).collect();
    let source = concat!(include_str!("../src/call.rs"), include_str!("../src/manage.rs"));
    for line in source.lines().filter_map(|line| line.trim().strip_prefix("pub struct ")) {
        let name = line.trim_end_matches([' ', '{', ';']);
        let is_wire = line.ends_with('{') && name != "CallInfo" && !name.starts_with('$');
        assert!(!is_wire || names.contains(&name), "{name} has no table");
    }
}
