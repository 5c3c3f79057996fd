//! Every field of the manifest's language: what the reader knows, and what `docs/manifest.md` says.

use dolmen_abi::CallGroup;
use dolmen_vm::manifest::{
    Answer, Console, MAX_CMDLINE, MAX_COMPONENTS, MAX_CPUS, MAX_GUEST_COMPONENTS, MAX_GUESTS, MAX_MEMORY,
    MAX_NAME, MAX_RESTARTS, MAX_TEXT, MAX_TOTAL_VCPUS, MAX_UARTS, MAX_VCPUS, MAX_WEIGHT, SealingRoot,
};

/// Weight where the manifest does not say.
pub(super) const USUAL_WEIGHT: u32 = 100;
/// Restarts after crashes, where the manifest does not say how many.
pub(super) const USUAL_RESTARTS: u32 = 3;
/// The core's own memory, where the manifest does not say how much.
pub(super) const USUAL_REGION_MIB: u64 = 32;
/// Sizes of the core's own memory.
pub(super) const REGION_MIB: std::ops::RangeInclusive<u64> = 8..=1024;
/// Image formats by name.
pub(super) const FORMATS: [&str; 3] = ["linux", "pvh", "multiboot"];
/// Ways to start by name.
pub(super) const STARTS: [&str; 2] = ["boot", "on-demand"];

/// One field.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    /// Its name.
    pub(crate) name: &'static str,
    /// What may stand there.
    pub(crate) limits: String,
    /// What holds without it.
    #[cfg_attr(not(test), expect(dead_code, reason = "the document has it, and a test compares"))]
    pub(crate) default: String,
    /// What it is for.
    pub(crate) meaning: &'static str,
}

fn field(
    name: &'static str,
    limits: impl Into<String>,
    default: impl Into<String>,
    meaning: &'static str,
) -> Field {
    Field { name, limits: limits.into(), default: default.into(), meaning }
}

/// Names as a list of alternatives.
pub(super) fn one_of<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = names.into_iter().map(|name| format!("\"{name}\"")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

/// Fields of the file itself.
pub(crate) fn top() -> Vec<Field> {
    vec![
        field(
            "host",
            "a table",
            "nothing is known of the machine",
            "what is known of the machine; not measured",
        ),
        field(
            "sealing_root",
            "a table",
            "none",
            "the key of the TPM that must serve as sealing root, where the TPM's owner made it",
        ),
        field(
            "guest",
            format!("1 to {MAX_GUESTS} tables `[[guest]]`"),
            "required",
            "the guests, in the order in which they are measured",
        ),
    ]
}

/// Fields of `[host]`.
pub(crate) fn host() -> Vec<Field> {
    let (low, high) = (REGION_MIB.start(), REGION_MIB.end());
    vec![
        field(
            "memory_mib",
            "an integer, at least 1",
            "not checked",
            "RAM of the machine: guests, their files and the core must fit into it",
        ),
        field(
            "cpus",
            format!("1 to {MAX_CPUS}"),
            "not checked",
            "processors of the machine: an affinity may name no other",
        ),
        field(
            "region_mib",
            format!("an even number, {low} to {high}"),
            USUAL_REGION_MIB.to_string(),
            "RAM that the core takes for itself",
        ),
    ]
}

/// Fields of `[sealing_root]`.
pub(crate) fn sealing_root() -> Vec<Field> {
    let (first, last) = SealingRoot::HANDLES.into_inner();
    vec![
        field("handle", format!("{first:#x} to {last:#x}"), "required", "where the key is persistent"),
        field(
            "name",
            "68 hexadecimal digits that begin with `000b`",
            "required",
            "its Name: that of SHA-256, then the digest of its public area",
        ),
    ]
}

/// Fields of `[[guest]]`.
pub(crate) fn guest() -> Vec<Field> {
    [running(), ending(), parts()].concat()
}

fn running() -> Vec<Field> {
    vec![
        field(
            "name",
            format!("1 to {MAX_NAME} of `a-z`, `0-9` and `-`; unique"),
            "required",
            "what logs, evidence and management call it",
        ),
        field("memory_mib", format!("an even number, 2 to {}", MAX_MEMORY >> 20), "required", "its RAM"),
        field("vcpus", format!("1 to {MAX_VCPUS}; {MAX_TOTAL_VCPUS} in all"), "1", "virtual processors"),
        field(
            "affinity",
            format!("a list of 0 to {}", MAX_CPUS.saturating_sub(1)),
            "all",
            "physical processors that may run it; 0 is the one that was launched",
        ),
        field(
            "weight",
            format!("1 to {MAX_WEIGHT}"),
            USUAL_WEIGHT.to_string(),
            "its share of a processor that others want too",
        ),
    ]
}

fn ending() -> Vec<Field> {
    let answers = one_of(Answer::ALL.map(|entry| entry.2));
    vec![
        field(
            "start",
            one_of(STARTS),
            "\"boot\"",
            "with the machine, or when a guest with the group `manage` says so",
        ),
        field("on_reboot", answers.clone(), "\"restart\"", "what follows when it resets itself"),
        field(
            "on_crash",
            answers.clone(),
            "\"stop\"",
            "what follows when it can run no further, such as a triple fault",
        ),
        field(
            "restart_limit",
            format!("1 to {MAX_RESTARTS}; only with `on_crash = \"restart\"`"),
            USUAL_RESTARTS.to_string(),
            "restarts after crashes before it stays stopped",
        ),
        field("on_power_off", answers, "\"stop\"", "what follows when it switches itself off"),
    ]
}

fn parts() -> Vec<Field> {
    let groups = one_of(CallGroup::ALL.iter().map(|entry| entry.1));
    let file = "the path of a file that is not empty";
    let files = format!(
        "a list of paths, or of `{{ file, text }}`; at most {MAX_GUEST_COMPONENTS} files for one guest, {MAX_COMPONENTS} in all"
    );
    vec![
        field(
            "consoles",
            format!("a list of 1 or {MAX_UARTS} of {}", one_of(Console::ALL.map(|entry| entry.2))),
            "[\"multiplexed\"]",
            "what is behind its serial ports COM1 and COM2",
        ),
        field("hypercalls", format!("a list of {groups}"), "[]", "groups of hypercalls that it may use"),
        field("format", one_of(FORMATS), "\"linux\"", "image format of the kernel"),
        field("kernel", file, "required", "measured"),
        field("initrd", file, "none", "measured; the first module for `pvh`; not for `multiboot`"),
        field("modules", files.clone(), "[]", "measured; for `linux` they are appended to the initrd"),
        field("data", files, "[]", "**not measured**; not for `linux`"),
        field("cmdline", format!("at most {MAX_CMDLINE} bytes of printable ASCII"), "\"\"", "measured"),
    ]
}

/// Fields of a module that is more than a path.
pub(crate) fn module() -> Vec<Field> {
    vec![
        field("file", "the path of a file that is not empty", "required", "the module"),
        field(
            "text",
            format!("at most {MAX_TEXT} bytes of printable ASCII; not for `linux`"),
            "\"\"",
            "handed over beside it; measured, for `data` too",
        ),
    ]
}
