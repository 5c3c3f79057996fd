//! Tests of the manifest compiler.

use std::path::Path;

use dolmen_vm::manifest::{Answer, ComponentConfig, Console, GuestConfig, Header, SealingRoot};

use super::Manifest;
use super::compile::Images;

const GOOD: &str = r#"
[[guest]]
name = "debian"
memory_mib = 512
format = "pvh"
kernel = "Cargo.toml"
initrd = "src/main.rs"
data = ["src/ui.rs"]
modules = ["src/cpio.rs", { file = "src/run.rs", text = "run it" }]
hypercalls = ["seal", "random"]
cmdline = "console=ttyS0"
"#;

const SECOND: &str = "[[guest]]\nname = \"second\"\nmemory_mib = 64\nkernel = \"Cargo.toml\"\n";

fn compile(text: &str) -> Result<Manifest, String> {
    compile_with(text, Images::Taken)
}

fn compile_with(text: &str, images: Images) -> Result<Manifest, String> {
    Manifest::compile(text, Path::new(env!("CARGO_MANIFEST_DIR")), images)
        .map_err(|complaint| complaint.in_file("dolmen.toml"))
}

#[test]
fn a_manifest_becomes_a_header_and_one_record_for_each_guest() {
    let manifest = compile(&format!("{GOOD}{SECOND}")).unwrap();
    assert_eq!(manifest.bytes.len(), size_of::<Header>() + 2 * size_of::<GuestConfig>());
    let config = manifest.guests[0].config;
    assert_eq!(config.name(), "debian");
    assert_eq!(config.memory, 512 << 20);
    assert_eq!(config.hypercalls, 0b101);
    assert_eq!(config.cmdline(), b"console=ttyS0");
    assert_eq!(config.components()[3].text(), b"run it");
    assert_eq!(manifest.guests[1].config.name(), "second");
}

/// `[sealing_root]` with this handle and Name, and a guest.
fn rooted(handle: &str, name: &str) -> String {
    format!("[sealing_root]\nhandle = {handle}\nname = {name}\n{SECOND}")
}

fn root_name(digits: &str) -> String {
    format!("\"000b{}\"", digits.repeat(32))
}

#[test]
fn a_sealing_root_is_measured_and_no_part_of_a_guest() {
    let without = compile(SECOND).unwrap();
    let with = compile(&rooted("0x81000100", &root_name("a5"))).unwrap();
    let root = dolmen_vm::manifest::Manifest::parse(&with.bytes).unwrap().sealing_root().unwrap();
    let want = [&[0, 0x0b][..], &[0xa5; 32]].concat();
    assert_eq!((root.handle, root.name.as_slice()), (0x8100_0100, want.as_slice()));
    assert_eq!(with.bytes.len(), without.bytes.len() + size_of::<SealingRoot>());
    assert_eq!(with.guests[0].config, without.guests[0].config);
    // Decimal is the same number, and capital digits are the same Name.
    let same = compile(&rooted("2164261120", &root_name("A5"))).unwrap();
    assert_eq!(same.bytes, with.bytes);
    assert_ne!(compile(&rooted("0x81000101", &root_name("a5"))).unwrap().bytes, with.bytes);
    assert_ne!(compile(&rooted("0x81000100", &root_name("a6"))).unwrap().bytes, with.bytes);
}

#[test]
fn a_sealing_root_that_no_owner_can_have_made_is_refused() {
    let handle = |handle: &str| rooted(handle, &root_name("a5"));
    let name = |name: &str| rooted("0x81000100", name);
    refused(&[
        (
            handle("0x81800000"),
            "dolmen.toml:2:10: [sealing_root]: `handle` is 0x81800000; expected 0x81000000 to 0x817fffff",
        ),
        (handle("0x80ffffff"), ":2:10: [sealing_root]: `handle` is 0x80ffffff; expected 0x81000000"),
        (handle("\"0x81000100\""), "`handle` is \"0x81000100\"; expected 0x81000000"),
        (name("12"), ":3:8: [sealing_root]: `name` is 12; expected 68 hexadecimal digits"),
        (name("\"000b\""), ":3:8: [sealing_root]: `name` is \"000b\"; expected 68 hexadecimal digits"),
        (
            name(&root_name("a5").replace("000b", "000c")),
            "expected 68 hexadecimal digits that begin with 000b",
        ),
        (name(&root_name("a5").replace("000b", "")), "expected 68 hexadecimal digits that begin with 000b"),
        (name(&root_name("g5")), "expected 68 hexadecimal digits that begin with 000b"),
        (
            format!("[sealing_root]\nhandle = 0x81000100\n{SECOND}"),
            ":1:1: [sealing_root]: `name` is missing (its Name",
        ),
        (
            format!("[sealing_root]\nname = {}\n{SECOND}", root_name("a5")),
            "`handle` is missing (where the key is persistent); expected 0x81000000 to 0x817fffff",
        ),
        (
            handle("0x81000100\nhandel = 1"),
            ":3:1: [sealing_root]: unknown field `handel`; did you mean `handle`?",
        ),
        (format!("sealing_root = 7\n{SECOND}"), ":1:16: the manifest: `sealing_root` is 7; expected a table"),
    ]);
}

#[test]
fn what_is_left_out_has_its_documented_default() {
    let config = compile(SECOND).unwrap().guests[0].config;
    assert_eq!((config.vcpus, config.weight, config.affinity, config.hypercalls), (1, 100, 0, 0));
    assert_eq!(config.consoles(), [Console::Multiplexed, Console::None]);
    assert_eq!((config.on_reboot(), config.on_crash()), (Answer::Restart, Answer::Stop));
    assert_eq!((config.on_power_off(), config.restart_limit), (Answer::Stop, 0));
    assert!(!config.starts_on_demand());
}

#[test]
fn what_is_said_is_what_the_core_reads() {
    let more = "vcpus = 3\nweight = 7\naffinity = [0, 31]\nconsoles = [\"none\", \"com2\"]\non_crash = \"restart\"\n\
                on_reboot = \"reset-machine\"\non_power_off = \"halt-machine\"\n";
    let config = compile(&format!("{SECOND}{more}")).unwrap().guests[0].config;
    assert_eq!((config.vcpus, config.weight, config.affinity), (3, 7, 0x8000_0001));
    assert_eq!(config.consoles(), [Console::None, Console::Com2]);
    assert_eq!((config.on_crash(), config.restart_limit), (Answer::Restart, 3));
    assert_eq!((config.on_reboot(), config.on_power_off()), (Answer::ResetMachine, Answer::HaltMachine));
}

#[test]
fn components_are_in_measuring_order_whatever_the_order_of_the_lines() {
    let kinds: Vec<u32> = compile(GOOD).unwrap().guests[0].files.iter().map(|file| file.kind).collect();
    let module = ComponentConfig::MODULE;
    assert_eq!(
        kinds,
        [ComponentConfig::KERNEL, ComponentConfig::INITRD, module, module, ComponentConfig::DATA]
    );
}

/// Each text must be refused with its words.
fn refused(cases: &[(String, &str)]) {
    for (text, want) in cases {
        let complaint = compile(text).map(drop).unwrap_err();
        assert!(complaint.contains(want), "want {want}\ngot  {complaint}");
    }
}

fn good(from: &str, to: &str) -> String {
    GOOD.replace(from, to)
}

fn second(more: &str) -> String {
    format!("{GOOD}{SECOND}{more}")
}

#[test]
fn a_complaint_names_place_field_and_what_was_expected() {
    refused(&[
        (
            good("\"debian\"", "\"Debian\""),
            "dolmen.toml:3:8: guest Debian: `name` is \"Debian\"; expected 1 to 32 characters",
        ),
        (
            good("512", "511"),
            "dolmen.toml:4:14: guest debian: `memory_mib` is 511; expected an even number, 2 to 1048576",
        ),
        (good("512", "\"x\""), ":4:14: guest debian: `memory_mib` is \"x\"; expected an even number"),
        (good("512", "0"), ":4:14: guest debian: `memory_mib` is 0; expected an even number"),
        (good("512", "-2"), ":4:14: guest debian: `memory_mib` is -2; expected an even number"),
        (
            good("memory_mib = 512", ""),
            ":2:1: guest debian: `memory_mib` is missing (its RAM); expected an even number",
        ),
        (
            good("memory_mib", "memory_mb"),
            ":4:1: guest debian: unknown field `memory_mb`; did you mean `memory_mib`?",
        ),
        (good("name", "nam"), ":3:1: guest without a name: unknown field `nam`; did you mean `name`?"),
        (good("\"seal\"", "\"sael\""), "`hypercalls` is \"sael\"; expected \"random\", "),
        (good("\"seal\"", "\"sael\""), "did you mean \"seal\"?"),
        (
            good("[\"seal\", \"random\"]", "\"seal\""),
            ":10:14: guest debian: `hypercalls` is \"seal\"; expected a list of",
        ),
        (
            good("\"Cargo.toml\"", "\"absent\""),
            ":6:10: guest debian: `kernel` is \"absent\"; expected the path of a file",
        ),
        (
            good("\"Cargo.toml\"", "\"src\""),
            ":6:10: guest debian: `kernel` is \"src\"; expected a file that is not empty",
        ),
    ]);
}

#[test]
fn files_that_make_no_sense_are_refused() {
    refused(&[
        (good("\"pvh\"", "\"elf\""), "`format` is \"elf\"; expected \"linux\", \"pvh\" or \"multiboot\""),
        (
            good("\"pvh\"", "\"linux\"").replace(", text = \"run it\"", ""),
            "`data` with format \"linux\": the kernel would unpack it",
        ),
        (
            good("\"pvh\"", "\"linux\"").replace("data = [\"src/ui.rs\"]", ""),
            ":9:57: guest debian: `text` with format \"linux\"",
        ),
        (
            good("\"pvh\"", "\"multiboot\""),
            ":7:10: guest debian: `initrd` with format \"multiboot\"; put it among `modules`",
        ),
        (
            good("initrd =", "# initrd =").replace("modules =", "# modules ="),
            "`data` behind nothing measured but the kernel",
        ),
        (good("text =", "txt ="), "`modules`: unknown field `txt`; did you mean `text`?"),
        (good("file = \"src/run.rs\",", ""), "`file` is missing (the module); expected the path of a file"),
        (
            good("\"run it\"", "\"tab\\there\""),
            "`text` is \"tab\\there\"; expected at most 120 bytes of printable ASCII",
        ),
        (
            good("data = [", "data = [\"src/lab.rs\", \"src/lab.rs\", \"src/lab.rs\", \"src/lab.rs\", "),
            "9 files; expected at most 8",
        ),
        (good("console=ttyS0", &"x".repeat(2049)), "expected at most 2048 bytes of printable ASCII"),
    ]);
}

#[test]
fn ways_to_run_that_make_no_sense_are_refused() {
    refused(&[
        (second("vcpus = 9\n"), ":16:9: guest second: `vcpus` is 9; expected 1 to 8"),
        (second("weight = 0\n"), "`weight` is 0; expected 1 to 1000"),
        (
            second("affinity = [1, 32]\n"),
            ":16:16: guest second: `affinity` is 32; expected a list of 0 to 31",
        ),
        (second("start = \"later\"\n"), "`start` is \"later\"; expected \"boot\" or \"on-demand\""),
        (
            second("start = \"on-demand\"\n"),
            "`start` is \"on-demand\"; expected \"boot\": no guest that starts at boot",
        ),
        (second("on_crash = \"reboot\"\n"), "`on_crash` is \"reboot\"; expected \"restart\", \"stop\", "),
        (second("restart_limit = 2\n"), "`restart_limit` without `on_crash = \"restart\"` limits nothing"),
        (
            second("consoles = [\"com1\"]\n"),
            "`consoles` is \"com1\"; expected no \"com1\" beside \"multiplexed\"",
        ),
        (
            second("consoles = [\"multiplexed\", \"com1\"]\n"),
            "`consoles` is \"com1\"; expected no \"com1\" beside",
        ),
        (second("consoles = [\"com2\", \"com2\"]\n"), "expected another console than the first"),
        (second("consoles = [\"none\", \"com1\", \"com2\"]\n"), "expected at most 2 of them"),
        (second("consoles = []\n"), "`consoles` is empty"),
        (
            format!("{GOOD}consoles = [\"com2\"]\n{SECOND}consoles = [\"com2\"]\n"),
            "expected a console that no other guest has (guest debian)",
        ),
        (
            format!("{GOOD}{GOOD}"),
            ":14:8: guest debian: `name` is \"debian\"; expected a name that no other guest has",
        ),
    ]);
}

#[test]
fn what_guests_want_together_is_checked() {
    let host = |host: &str, more: &str| format!("{host}\n{GOOD}{more}");
    let several = |count: u32, more: &str| -> String {
        (0..count).map(|n| format!("{}{more}", SECOND.replace("second", &format!("g{n}")))).collect()
    };
    refused(&[
        (String::new(), "0 tables [[guest]]; expected 1 to 32"),
        (several(33, ""), "33 tables [[guest]]; expected 1 to 32"),
        (several(9, "vcpus = 8\n"), "72 virtual processors with this guest; expected at most 64 in all"),
        (host("[host]\ncpus = 2", "affinity = [2]\n"), "`affinity` is 2; expected 0 to 1: [host] has 2 cpus"),
        (
            host("[host]\nmemory_mib = 540", ""),
            ":6:14: guest debian: guests, their files and the core need 545 MiB",
        ),
        (host("[host]\nregion_mib = 7", ""), "[host]: `region_mib` is 7; expected an even number, 8 to 1024"),
        (host("[hots]\ncpus = 2", ""), "the manifest: unknown field `hots`; did you mean `host`?"),
        (good("name =", "name"), "dolmen.toml:3:"),
    ]);
}

#[test]
fn an_image_that_cannot_be_loaded_is_refused_where_the_kernel_is_named() {
    let complaint = compile_with(SECOND, Images::Checked).map(drop).unwrap_err();
    let want =
        "dolmen.toml:4:10: guest second: the kernel cannot be loaded: not a Linux bzImage; check `format`";
    assert!(complaint.starts_with(want), "{complaint}");
}

#[test]
fn a_packed_kernel_is_refused_with_the_advice_to_unpack_it() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("Cargo.toml"), [&[0x1f, 0x8b][..], &[0; 9000]].concat()).unwrap();
    let text = format!("{SECOND}format = \"multiboot\"\n");
    let complaint = Manifest::compile(&text, folder.path(), Images::Checked).map(drop).unwrap_err();
    let complaint = complaint.in_file("dolmen.toml");
    assert!(complaint.contains("check `format` (it is packed: unpack it with gunzip first)"), "{complaint}");
}

#[test]
fn every_handle_that_an_owner_can_provision_can_be_named_and_no_other() {
    assert_eq!(SealingRoot::HANDLES, dolmen_tpm::provision::HANDLES);
}
