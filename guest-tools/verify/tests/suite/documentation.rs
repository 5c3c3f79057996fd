//! Holds `docs/verify.md` to the code.
//!
//! `DOLMEN_BLESS=1 cargo test -p dolmen-verify documentation` writes its table anew.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use dolmen_verify::{CHECKS, Expected, FIELDS, FactRules, Policy, VERDICT_FORMAT, check};

use crate::forge::{Forge, NONCE};
use crate::reference;

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/verify.md")
}

fn document() -> String {
    std::fs::read_to_string(path()).unwrap()
}

/// The first block of this language.
fn block(language: &str) -> String {
    let document = document();
    document.split(&format!("```{language}\n")).nth(1).unwrap().split("```").next().unwrap().to_owned()
}

/// The example policy, with the files that it names.
fn example() -> Policy {
    let values = reference::values(&Forge::honest()).to_string();
    Policy::parse_with(&block("toml"), &|name| {
        assert_eq!(name, "reference-values.json");
        Ok(values.clone().into_bytes())
    })
    .unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn the_table_of_checks_is_that_of_the_code() {
    let old = document();
    let mut table = "| check | holds if |\n|---|---|\n".to_owned();
    for (id, meaning) in CHECKS {
        writeln!(table, "| `{id}` | {meaning} |").unwrap();
    }
    let mark = "<!-- generated: checks -->\n";
    let (before, rest) = old.split_once(mark).unwrap();
    let (_, after) = rest.split_once("<!-- end -->").unwrap();
    let new = format!("{before}{mark}{table}<!-- end -->{after}");
    if std::env::var_os("DOLMEN_BLESS").is_some() {
        std::fs::write(path(), new).unwrap();
    } else {
        assert_eq!(new, old, "DOLMEN_BLESS=1 writes it anew");
    }
}

#[test]
fn every_check_that_is_made_is_in_the_table_and_every_one_in_the_table_is_made() {
    let forge = Forge::honest();
    let zero = "00".repeat(48);
    let rules = format!(
        "pcr18 = \"any\"\nmax_launches = 1\n[tpm]\nmin_reset_count = 7\nsafe_clock = true\n\
         firmware = 0x2020031800120000\n[guests.demo]\nregisters.g1 = \"{zero}\""
    );
    let report = check(&forge.bytes(), &reference::policy(&forge, &rules), &Expected::nonce(NONCE).unwrap());
    let made: BTreeSet<&str> = report.checks.iter().map(|check| check.id).collect();
    let known: BTreeSet<&str> = CHECKS.iter().map(|(id, _)| *id).collect();
    assert_eq!(made, known);
}

#[test]
fn the_example_is_a_policy_and_shows_the_defaults() {
    let policy = example();
    assert_eq!(policy.facts, FactRules::default());
    assert_eq!((policy.keys[0].reset_count, policy.tpm.min_counts), (12, Some((12, 1))));
}

#[test]
fn every_field_of_a_policy_is_described() {
    let document = document();
    let table: Vec<&str> =
        document.split("## Policy").nth(1).unwrap().lines().filter(|line| line.starts_with("| `")).collect();
    for (parent, fields) in FIELDS {
        for field in *fields {
            let is_table =
                FIELDS.iter().any(|(name, _)| name.split('.').next() == Some(*field) && parent.is_empty());
            let is_numbered = field.starts_with('g') && field.len() == 2 && *field != "g0";
            let path = if parent.is_empty() { (*field).to_owned() } else { format!("{parent}.{field}") };
            let described =
                table.iter().any(|line| line.split('|').nth(1).unwrap().contains(&format!("`{path}`")));
            assert!(described || is_table || is_numbered || path.ends_with(".registers"), "{path}");
        }
    }
}

#[test]
fn the_complaint_of_the_document_is_what_is_said() {
    let (pcr, g0) = ("11".repeat(32), "22".repeat(48));
    let text = format!(
        "pcr17 = \"{pcr}\"\npcr18 = \"{pcr}\"\nkeys = [{{name = \"000b\"}}]\n[guests.demo]\ng0 = \"{g0}\"\n"
    );
    let said = Policy::parse(&text).unwrap_err().to_string();
    assert_eq!(said.lines().next(), block("text").lines().next());
}

#[test]
fn the_json_form_has_exactly_the_documented_fields() {
    let honest = Forge::honest();
    let report = check(&honest.bytes(), &honest.policy(), &Expected::nonce(NONCE).unwrap());
    let json = serde_json::to_value(&report).unwrap();
    let made: BTreeSet<String> = json.as_object().unwrap().keys().cloned().collect();
    let document = document();
    let section = document.split("### JSON").nth(1).unwrap().split("\n`outcome` is").next().unwrap();
    let told: BTreeSet<String> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(field, _)| field.to_owned()))
        .collect();
    assert_eq!(made, told);
    assert_eq!(json["format"], VERDICT_FORMAT);
    assert!(section.contains(VERDICT_FORMAT));
    let check: BTreeSet<&str> = json["checks"][0].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(check, ["id", "outcome", "text"].into());
}
