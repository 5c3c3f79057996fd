//! Results that people read: status and registers.

use core::fmt::Write;

use dolmen_abi::{CallGroup, LaunchFacts, REGISTER_BYTES, Registers, VersionReply};
use serde_json::{Value, json};

use crate::output::Product;

/// How the machine was launched and what the guest may do.
pub(crate) fn status(version: &VersionReply) -> Product {
    let (facts, groups) = (LaunchFacts::from_bits_retain(version.facts), version.groups);
    let known: Vec<_> = LaunchFacts::ALL.iter().filter(|entry| facts.contains(entry.0)).collect();
    let allowed: Vec<_> =
        CallGroup::ALL.iter().filter(|entry| groups & entry.0.bits() != 0).map(|entry| entry.1).collect();
    let name = String::from_utf8_lossy(&version.name);
    let name = name.trim_end_matches('\0').escape_default().to_string();

    let mut text = Text::default();
    text.line("guest", &name);
    text.line("interface", &format!("version {}", version.abi_version));
    let mut title = "launch";
    for (_, fact, meaning) in &known {
        text.line(title, &format!("{fact:<20}{meaning}"));
        title = "";
    }
    let unknown = known.iter().fold(facts, |rest, entry| rest.difference(entry.0));
    if !unknown.is_empty() {
        text.line(title, &format!("{:#x}: facts that this command does not know", unknown.bits()));
    }
    if !facts.is_launched() {
        text.line("", "Nothing can be sealed or quoted here: the processor did not launch the hypervisor.");
    }
    text.line("calls", &allowed.join(", "));
    let (secret, label) = (version.max_secret, version.max_label);
    text.line("limits", &format!("secret {secret} bytes, label {label} bytes"));

    let json = json!({
        "guest": name,
        "abi_version": version.abi_version,
        "launched": facts.is_launched(),
        "facts": known.iter().map(|entry| entry.1).collect::<Vec<_>>(),
        "facts_bits": version.facts,
        "calls": allowed,
        "max_secret": version.max_secret,
        "max_label": version.max_label,
        "max_random": version.max_random,
    });
    Product::report("status", text.0, json)
}

/// All registers.
pub(crate) fn registers(registers: &Registers) -> Product {
    let mut text = Text::default();
    let mut json = serde_json::Map::new();
    for (index, value) in registers.iter().enumerate() {
        let name = format!("g{index}");
        text.line(&name, &hex::encode(value));
        json.insert(name, Value::String(hex::encode(value)));
    }
    Product::report("registers", text.0, Value::Object(json))
}

/// One register's new value.
pub(crate) fn extended(index: u32, value: &[u8; REGISTER_BYTES]) -> Product {
    let (name, value) = (format!("g{index}"), hex::encode(value));
    let mut text = Text::default();
    text.line(&name, &value);
    Product::report("register", text.0, json!({ name: value }))
}

/// Lines of a title and what it is.
#[derive(Default)]
struct Text(String);

impl Text {
    fn line(&mut self, title: &str, what: &str) {
        // Writing to a string cannot fail.
        writeln!(self.0, "{title:<11}{what}").unwrap_or_default();
    }
}
