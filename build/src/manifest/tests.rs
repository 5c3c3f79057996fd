//! Tests of the manifest compiler.

use std::path::Path;

use dolmen_vm::manifest::{ComponentConfig, GuestConfig, Header};

use super::Manifest;

const GOOD: &str = r#"
[[guest]]
name = "debian"
memory_mib = 512
format = "pvh"
kernel = "Cargo.toml"
initrd = "src/main.rs"
data = ["src/ui.rs"]
modules = ["src/cpio.rs"]
hypercalls = ["seal", "random"]
cmdline = "console=ttyS0"
"#;

fn compile(text: &str) -> Result<Manifest, String> {
    Manifest::compile(text, Path::new(env!("CARGO_MANIFEST_DIR"))).map_err(|error| format!("{error:#}"))
}

#[test]
fn a_manifest_becomes_a_header_and_one_record_for_each_guest() {
    let manifest = compile(GOOD).unwrap();
    assert_eq!(manifest.bytes.len(), size_of::<Header>() + size_of::<GuestConfig>());
    let config = manifest.guests[0].config;
    assert_eq!(&config.name[..7], b"debian\0");
    assert_eq!(config.memory, 512 << 20);
    assert_eq!(config.hypercalls, 0b101);
    assert_eq!(&config.cmdline[..13], b"console=ttyS0");
}

#[test]
fn components_are_in_measuring_order_whatever_the_order_of_the_lines() {
    let kinds: Vec<u32> = compile(GOOD).unwrap().guests[0].files.iter().map(|file| file.kind).collect();
    let order =
        [ComponentConfig::KERNEL, ComponentConfig::INITRD, ComponentConfig::MODULE, ComponentConfig::DATA];
    assert_eq!(kinds, order);
}

#[test]
fn a_complaint_names_line_field_and_what_was_expected() {
    for (from, to, want) in [
        (
            "\"debian\"",
            "\"Debian\"",
            "line 3: `name` is \"Debian\"; expected 1 to 32 characters of a-z, 0-9 and -",
        ),
        ("512", "511", "line 4: `memory_mib` is 511; expected an even number of MiB, at least 2"),
        ("\"seal\"", "\"fly\"", "line 10: `hypercalls` is \"fly\"; expected one of random,"),
        ("\"Cargo.toml\"", "\"absent\"", "line 6: `kernel` is \"absent\"; expected the path of a file"),
    ] {
        let complaint = compile(&GOOD.replace(from, to)).unwrap_err();
        assert!(complaint.contains(want), "{complaint}");
    }
}

#[test]
fn an_unknown_field_is_refused_with_its_line() {
    let complaint = compile(&format!("{GOOD}colour = 1\n")).unwrap_err();
    assert!(complaint.contains("line 12") && complaint.contains("colour"), "{complaint}");
}

#[test]
fn two_guests_of_one_name_are_refused() {
    let complaint = compile(&format!("{GOOD}{GOOD}")).unwrap_err();
    assert!(complaint.contains("no other guest"), "{complaint}");
}

#[test]
fn a_manifest_without_guests_is_refused() {
    assert!(compile("").unwrap_err().contains("expected 1 to"));
}
