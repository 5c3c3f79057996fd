//! Holds `docs/manifest.md` to the reader: its tables are what is generated here, its examples compile.
//!
//! `DOLMEN_BLESS=1 cargo test -p xtask manifest` writes the tables anew.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::compile::{Compiler, Images};
use super::field::{self, Field};
use super::{Complaint, Manifest};
use crate::place;

fn document() -> PathBuf {
    place::root().join("docs/manifest.md")
}

fn table(fields: &[Field]) -> String {
    let mut text = "| field | values | default | what |\n|---|---|---|---|\n".to_owned();
    for Field { name, limits, default, meaning } in fields {
        let default = match default.as_str() {
            word @ ("required" | "none" | "all" | "not checked" | "nothing is known of the machine") => {
                word.to_owned()
            }
            value => format!("`{value}`"),
        };
        writeln!(text, "| `{name}` | {limits} | {default} | {meaning} |").unwrap();
    }
    text
}

#[test]
fn the_documents_tables_are_those_of_the_reader() {
    let old = std::fs::read_to_string(document()).unwrap();
    let mut new = old.clone();
    let tables = [
        ("top", field::top()),
        ("guest", field::guest()),
        ("module", field::module()),
        ("host", field::host()),
        ("sealing_root", field::sealing_root()),
    ];
    for (name, fields) in tables {
        let mark = format!("<!-- generated: {name} -->\n");
        let start = new.find(&mark).unwrap() + mark.len();
        let end = start + new[start..].find("<!-- end -->").unwrap();
        new.replace_range(start..end, &table(&fields));
    }
    if std::env::var_os("DOLMEN_BLESS").is_some() {
        std::fs::write(document(), &new).unwrap();
    } else {
        assert_eq!(new, old, "run it again with DOLMEN_BLESS=1");
    }
}

/// Every example, and the number of files it names made in `folder`.
fn examples(folder: &Path) -> Vec<String> {
    for file in ["vmlinuz", "vmlinux", "initrd.img", "router.elf", "rules.bin", "table.bin", "hints.bin"] {
        std::fs::write(folder.join(file), b"bytes").unwrap();
    }
    let text = std::fs::read_to_string(document()).unwrap();
    let blocks = text.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned());
    blocks.collect()
}

#[test]
fn every_example_of_the_document_compiles() {
    let folder = tempfile::tempdir().unwrap();
    let examples = examples(folder.path());
    assert!(examples.len() >= 2);
    for example in examples {
        if let Err(complaint) = Manifest::compile(&example, folder.path(), Images::Taken) {
            panic!("{}", complaint.in_file("docs/manifest.md"));
        }
    }
}

#[test]
fn every_field_has_an_example() {
    let folder = tempfile::tempdir().unwrap();
    let examples = examples(folder.path()).concat();
    let all = [field::guest(), field::module(), field::host(), field::sealing_root()].concat();
    for Field { name, .. } in all {
        let is_set = |line: &str| line.contains(&format!("{name} = "));
        assert!(examples.lines().any(is_set), "{name}");
    }
}

#[test]
fn the_reader_asks_for_every_field_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let example = examples(folder.path()).concat();
    let mut read = Compiler::fields_read(&example, folder.path());
    read.sort();
    read.dedup();
    let mut known: Vec<String> = field::guest().iter().map(|field| field.name.to_owned()).collect();
    known.sort();
    assert_eq!(read, known);
}

#[test]
fn the_complaint_of_the_document_is_what_is_said() {
    let text = std::fs::read_to_string(document()).unwrap();
    let shown = text.split("```text\n").nth(1).unwrap().split("\n```").next().unwrap();
    let mistaken = "[[guest]]\nname = \"web\"\nmemory_mib = 511\n";
    let complaint: Complaint = Manifest::compile(mistaken, Path::new("."), Images::Taken).unwrap_err();
    assert_eq!(complaint.in_file("my.toml"), shown);
}

#[test]
fn the_canonical_form_is_as_documented() {
    use core::mem::offset_of;
    use dolmen_vm::manifest::{ComponentConfig, GuestConfig, Header, SealingRoot};
    let text = std::fs::read_to_string(document()).unwrap();
    let row = |offset: usize, what: &str| {
        let found =
            text.lines().find(|line| line.starts_with(&format!("| {offset} |")) && line.contains(what));
        assert!(found.is_some(), "{offset} {what}");
    };
    let (usual, with_root) = (Header::VERSION, Header::VERSION_WITH_ROOT);
    row(offset_of!(Header, version), &format!("version: {usual}, or {with_root} with a sealing root"));
    row(offset_of!(SealingRoot, handle), "handle");
    row(offset_of!(SealingRoot, name), "Name");
    row(offset_of!(SealingRoot, reserved), "zero");
    assert!(text.contains(&format!("a record of {} bytes for the sealing root", size_of::<SealingRoot>())));
    let guest = size_of::<GuestConfig>();
    assert!(text.contains(&format!("{guest} bytes for each guest")));
    let interface = std::fs::read_to_string(place::root().join("docs/abi.md")).unwrap();
    assert!(interface.contains(&format!("the guest's {guest} bytes of the canonical manifest")));
    for (offset, what) in [
        (offset_of!(GuestConfig, memory), "RAM"),
        (offset_of!(GuestConfig, affinity), "affinity"),
        (offset_of!(GuestConfig, format), "format"),
        (offset_of!(GuestConfig, vcpus), "vcpus"),
        (offset_of!(GuestConfig, weight), "weight"),
        (offset_of!(GuestConfig, start), "start"),
        (offset_of!(GuestConfig, on_reboot), "on_reboot"),
        (offset_of!(GuestConfig, on_crash), "on_crash"),
        (offset_of!(GuestConfig, on_power_off), "on_power_off"),
        (offset_of!(GuestConfig, restart_limit), "restart limit"),
        (offset_of!(GuestConfig, consoles), "consoles"),
        (offset_of!(GuestConfig, hypercalls), "hypercall groups"),
        (offset_of!(GuestConfig, component_count), "components"),
        (offset_of!(GuestConfig, cmdline_length), "length of the command line"),
        (offset_of!(GuestConfig, components), &format!("8 × {}", size_of::<ComponentConfig>())),
        (offset_of!(GuestConfig, cmdline), "2048"),
    ] {
        row(offset, what);
    }
    assert!(text.contains(&format!("record of\n{} bytes", size_of::<GuestConfig>())));
}
