//! The tampered corpus: every field of evidence changed once, none accepted, each refused by the checks that are about
//! it. The evidence is real (`tests/vectors/evidence`: whole machines with a software TPM), and once more made up, so
//! that what was changed can be signed again and only the field's own check is left to refuse it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use dolmen_abi::LaunchFacts;
use dolmen_verify::{Expected, FactRules, Outcome, Policy, Verdict, check};

use crate::forge::{Forge, NONCE};
use crate::parts::{self, Field, Parts, bytes, head};
use crate::reference;

/// One change, and the checks that must fail for it.
struct Change {
    name: String,
    file: Vec<u8>,
    fails: BTreeSet<&'static str>,
}

/// Evidence, and who judges it.
struct Subject {
    name: String,
    parts: Parts,
    policy: Policy,
    expected: Expected,
    /// Signs what was changed again, where somebody can.
    forge: Option<Forge>,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/evidence")
}

/// Real evidence.
fn vectors() -> Vec<Subject> {
    let folder = folder();
    let text = std::fs::read_to_string(folder.join("policy.toml")).unwrap();
    let policy = Policy::parse_in(&text, &folder).unwrap();
    let subject = |name: &str| {
        let nonce = std::fs::read_to_string(folder.join(format!("{name}.nonce"))).unwrap();
        let file = std::fs::read(folder.join(format!("{name}.cbor"))).unwrap();
        let parts = Parts::of(&file);
        assert_eq!(parts.file(), file, "the writer of this test writes {name} otherwise");
        Subject {
            name: name.to_owned(),
            parts,
            policy: policy.clone(),
            expected: Expected::nonce(&hex::decode(nonce.trim()).unwrap()).unwrap(),
            forge: None,
        }
    };
    vec![subject("alone"), subject("shared-beta"), subject("shared-gamma")]
}

/// Evidence that can be signed again.
fn forged() -> Subject {
    let mut forge = Forge::honest();
    forge.place = (2, 7, vec![[1; 32], [2; 32], [3; 32]]);
    let zero = "00".repeat(48);
    let pins: String = (1..8).map(|n| format!("registers.g{n} = \"{zero}\"\n")).collect();
    let rules = format!(
        "max_launches = 1\n[tpm]\nmin_reset_count = 7\nmin_restart_count = 1\nsafe_clock = true\n\
         firmware = 0x2020031800120000\n[guests.demo]\n{pins}"
    );
    let mut policy = reference::policy(&forge, &rules);
    policy.keys[0].restart_count = 1;
    Subject {
        name: "forged".to_owned(),
        parts: Parts::of(&forge.bytes()),
        policy,
        expected: Expected::nonce(NONCE).unwrap(),
        forge: Some(forge),
    }
}

fn flipped(content: &[u8], field: &Field) -> Vec<u8> {
    let mut changed = content.to_vec();
    changed[field.1.end - 1] ^= 1;
    changed
}

/// A counter, one lower: a change that only the past explains.
fn lowered(content: &[u8], field: &Field) -> Vec<u8> {
    let mut changed = content.to_vec();
    let place = &mut changed[field.1.clone()];
    let value = u32::from_be_bytes(place.try_into().unwrap());
    place.copy_from_slice(&value.checked_sub(1).expect("a counter that counts").to_be_bytes());
    changed
}

impl Subject {
    fn change(&self, name: String, fails: &[&'static str], edit: impl FnOnce(&mut Parts)) -> Change {
        let mut parts = self.parts.clone();
        edit(&mut parts);
        Change {
            name: format!("{}: {name}", self.name),
            file: parts.file(),
            fails: fails.iter().copied().collect(),
        }
    }

    /// What the TPM signed; and again with a new signature, if somebody can make one.
    fn attest(&self) -> Vec<Change> {
        let mut changes = Vec::new();
        for field in parts::attest(&self.parts.attest) {
            let fails: &[&str] = match field.0.as_str() {
                "magic" | "type" | "signer.size" | "signer" | "extra.size" | "selection.count"
                | "selection.size" | "digest.size" => &["quote"],
                "extra" => &["binding"],
                "clock" => &[],
                "resets" | "restarts" => &["counters", "min-counters"],
                "safe" => &["clock"],
                "firmware" => &["firmware"],
                "selection.hash" | "selection.0" | "selection.1" | "selection.2" => &["selection"],
                "digest" => &["log"],
                other => panic!("{other} has no entry"),
            };
            let is_counter = field.0 == "resets" || field.0 == "restarts";
            let attest = if is_counter { lowered } else { flipped }(&self.parts.attest, &field);
            let name = format!("attest.{}", field.0);
            let mut change = self.change(name.clone(), fails, |parts| parts.attest = attest.clone());
            change.fails.insert("signature");
            changes.push(change);
            if let Some(forge) = self.forge.as_ref().filter(|_| !fails.is_empty()) {
                changes.push(self.change(format!("{name}, signed again"), fails, |parts| {
                    parts.signature = forge.sign(&attest);
                    parts.attest = attest;
                }));
            }
        }
        changes
    }

    fn signature(&self) -> Vec<Change> {
        let change = |field: Field| {
            self.change(format!("signature.{}", field.0), &["signature"], |parts| {
                parts.signature = flipped(&parts.signature, &field);
            })
        };
        parts::signature(&self.parts.signature).into_iter().map(change).collect()
    }

    fn public(&self) -> Vec<Change> {
        let mut changes = Vec::new();
        for field in parts::public(&self.parts.public) {
            let fails: &[&str] = match field.0.as_str() {
                "attributes" => continue,
                "policy" => &["key-policy", "enrolled", "quote"],
                _ => &["key", "quote"],
            };
            changes.push(self.change(format!("key.{}", field.0), fails, |parts| {
                parts.public = flipped(&parts.public, &field);
            }));
        }
        for bit in 0..32u32 {
            changes.push(self.change(
                format!("key.attributes bit {bit}"),
                &["key", "enrolled", "quote"],
                |parts| {
                    let at = 6 + 3 - bit as usize / 8;
                    parts.public[at] ^= 1 << (bit % 8);
                },
            ));
        }
        changes.push(self.change("key.y negated".into(), &["signature", "enrolled", "quote"], |parts| {
            let at = parts.public.len() - 32;
            let y = subtracted(&FIELD_PRIME, &parts.public[at..]);
            parts.public[at..].copy_from_slice(&y);
        }));
        changes
    }

    fn log(&self) -> Vec<Change> {
        let fields = parts::log(&self.parts.log);
        let flip = |field: &Field| {
            self.change(format!("log.{}", field.0), &["log"], |parts| parts.log = flipped(&parts.log, field))
        };
        let mut changes: Vec<Change> = fields.iter().map(flip).collect();
        let records: Vec<_> = fields.iter().filter(|field| field.0.ends_with(".pcr")).skip(1).collect();
        let (first, second) = (records[0].1.start, records[1].1.start);
        let whole = &self.parts.log;
        for (name, log) in [
            ("the first event dropped", [&whole[..first], &whole[second..]].concat()),
            ("the first event twice", [&whole[..second], &whole[first..]].concat()),
            ("sixteen zeroes at the end", [&whole[..], &[0; 16]].concat()),
            ("one byte cut", whole[..whole.len() - 1].to_vec()),
            (
                "the first event moved to the end",
                [&whole[..first], &whole[second..], &whole[first..second]].concat(),
            ),
        ] {
            changes.push(self.change(format!("log, {name}"), &["log"], |parts| parts.log = log));
        }
        changes
    }

    fn binding(&self) -> Vec<Change> {
        let mut changes = Vec::new();
        for field in parts::binding(&self.parts.binding) {
            let fails: &[&str] = match field.0.as_str() {
                "name" | "name.rest" | "g0" => &["binding", "guest"],
                "facts" => continue,
                "reserved" => &["binding"],
                "report-data" => &["binding", "report-data"],
                _ => &["binding", "registers"],
            };
            changes.push(self.change(format!("binding.{}", field.0), fails, |parts| {
                parts.binding = flipped(&parts.binding, &field);
            }));
        }
        for bit in 0..32u32 {
            let is_free = FactRules::default().allow.contains(LaunchFacts::from_bits_retain(1 << bit));
            let fails: &[&str] = if is_free { &["binding"] } else { &["binding", "facts"] };
            changes.push(self.change(format!("binding.facts bit {bit}"), fails, |parts| {
                parts.binding[32 + bit as usize / 8] ^= 1 << (bit % 8);
            }));
        }
        changes
    }

    /// Index, count and path. Numbers that describe the same way up are another name for the same place, and left out.
    fn place(&self) -> Vec<Change> {
        let (index, count) = (self.parts.index, self.parts.count);
        let own = way(index, count).unwrap();
        let mut changes = Vec::new();
        let others = (0..40).map(|other| (other, count)).chain((0..40).map(|other| (index, other)));
        for (i, n) in others.chain([(u32::MAX, count), (index, u32::MAX)]) {
            let fails: &[&str] = match way(i, n) {
                Some(way) if way == own => continue,
                Some(way) if way.len() == own.len() => &["binding"],
                _ => &["format"],
            };
            changes.push(
                self.change(format!("place {i} of {n}"), fails, |parts| (parts.index, parts.count) = (i, n)),
            );
        }
        for at in 0..self.parts.path.len() {
            changes.push(self.change(format!("sibling {at}"), &["binding"], |parts| parts.path[at][31] ^= 1));
            for length in [31, 33] {
                changes.push(self.change(format!("sibling {at} of {length} bytes"), &["format"], |parts| {
                    parts.path[at].resize(length, 0);
                }));
            }
            changes.push(
                self.change(format!("no sibling {at}"), &["format"], |parts| drop(parts.path.remove(at))),
            );
        }
        changes
            .push(self.change("one sibling more".into(), &["format"], |parts| parts.path.push(vec![0; 32])));
        changes
    }

    /// The same content, encoded otherwise.
    fn encoding(&self) -> Vec<Change> {
        let entries = self.parts.entries();
        let map = |entries: &[Vec<u8>]| [head(5, entries.len() as u32), entries.concat()].concat();
        let file = self.parts.file();
        let mut files = vec![
            ("a byte after it".to_owned(), [&file[..], &[0]].concat()),
            ("one byte cut".to_owned(), file[..file.len() - 1].to_vec()),
            ("a tag before it".to_owned(), [&[0xd9, 0xd9, 0xf7], &file[..]].concat()),
            ("a map without an end".to_owned(), [&[0xbf], &entries.concat()[..], &[0xff]].concat()),
            ("a longer map head".to_owned(), [&[0xb8, 9], &entries.concat()[..]].concat()),
            ("a list instead of a map".to_owned(), [&head(4, 18), &entries.concat()[..]].concat()),
        ];
        for at in 0..entries.len() {
            let with = |entry: Vec<u8>| {
                let mut changed = entries.clone();
                changed[at] = entry;
                map(&changed)
            };
            let value = &entries[at][1..];
            let mut fewer = entries.clone();
            fewer.remove(at);
            let mut twice = entries.clone();
            twice.insert(at, entries[at].clone());
            files.push((format!("no entry {at}"), map(&fewer)));
            files.push((format!("entry {at} twice"), map(&twice)));
            files.push((format!("key {at} in two bytes"), with([&[0x18, at as u8], value].concat())));
            files.push((format!("another key for {at}"), with([&[at as u8 + 9], value].concat())));
            files.push((format!("a text as key {at}"), with([&[0x61, b'0' + at as u8], value].concat())));
            files.push((format!("null as {at}"), with(vec![at as u8, 0xf6])));
            if at > 0 {
                let mut swapped = entries.clone();
                swapped.swap(at - 1, at);
                files.push((format!("entries {} and {at} swapped", at - 1), map(&swapped)));
            }
        }
        files.extend(self.values(&entries, map));
        let change = |(name, file)| Change {
            name: format!("{}: encoding, {name}", self.name),
            file,
            fails: ["format"].into(),
        };
        files.into_iter().map(change).collect()
    }

    /// Values of other types, other lengths and other forms.
    fn values(&self, entries: &[Vec<u8>], map: impl Fn(&[Vec<u8>]) -> Vec<u8>) -> Vec<(String, Vec<u8>)> {
        let with = |at: usize, value: Vec<u8>| {
            let mut changed = entries.to_vec();
            changed[at] = [head(0, at as u32), value].concat();
            map(&changed)
        };
        let parts = &self.parts;
        let contents = [&parts.attest, &parts.signature, &parts.public, &parts.log, &parts.binding];
        let mut files = Vec::new();
        for (at, content) in (1..).zip(contents) {
            let length = content.len() as u32;
            let long = [&[0x5a][..], &length.to_be_bytes(), content].concat();
            let text = [head(3, length), content.clone()].concat();
            let open = [&[0x5f][..], &bytes(content), &[0xff]].concat();
            files.push((format!("part {at} with a longer head"), with(at, long)));
            files.push((format!("part {at} as text"), with(at, text)));
            files.push((format!("part {at} in pieces"), with(at, open)));
            files.push((format!("part {at} empty"), with(at, bytes(&[]))));
        }
        files.push(("a binding of 487 bytes".to_owned(), with(5, bytes(&parts.binding[1..]))));
        files.push((
            "a binding of 489 bytes".to_owned(),
            with(5, bytes(&[&parts.binding[..], &[0]].concat())),
        ));
        for (at, number) in [(6, parts.index), (7, parts.count)] {
            files.push((format!("number {at} longer"), with(at, vec![0x19, 0, number as u8])));
            files.push((format!("number {at} below zero"), with(at, vec![0x20])));
            files.push((format!("number {at} broken"), with(at, vec![0xf9, 0x3c, 0])));
            files.push((format!("number {at} of 64 bits"), with(at, [&[0x1b][..], &[0xff; 8]].concat())));
        }
        let version = [head(3, 17), b"dolmen-evidence-2".to_vec()].concat();
        files.push(("another version".to_owned(), with(0, version)));
        files.push(("the version as bytes".to_owned(), with(0, bytes(b"dolmen-evidence-1"))));
        files.push(("a path without an end".to_owned(), {
            let siblings: Vec<u8> = parts.path.iter().flat_map(|sibling| bytes(sibling)).collect();
            with(8, [&[0x9f], &siblings[..], &[0xff]].concat())
        }));
        files
    }

    fn changes(&self) -> Vec<Change> {
        [
            self.encoding(),
            self.attest(),
            self.signature(),
            self.public(),
            self.log(),
            self.binding(),
            self.place(),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// The unchanged evidence is trusted; no changed one is, each for the reasons of its change and for no others.
    fn judge(&self) -> usize {
        let untouched = check(&self.parts.file(), &self.policy, &self.expected);
        assert_eq!(untouched.verdict, Verdict::Trusted, "{}:\n{untouched}", self.name);
        let changes = self.changes();
        let names: BTreeSet<&str> = changes.iter().map(|change| change.name.as_str()).collect();
        for Change { name, file, fails } in &changes {
            assert_ne!(*file, self.parts.file(), "{name} changes nothing");
            let report = check(file, &self.policy, &self.expected);
            assert_eq!((report.verdict, report.accepted), (Verdict::Refused, false), "{name}:\n{report}");
            let failed: BTreeSet<&str> = report
                .checks
                .iter()
                .filter(|check| check.outcome == Outcome::Fail)
                .map(|check| check.id)
                .collect();
            assert_eq!(failed, *fails, "{name}:\n{report}");
        }
        names.len()
    }
}

/// Left and right on the way from a leaf to the root, by the words of the documentation.
fn way(mut index: u32, mut count: u32) -> Option<String> {
    if index >= count || count > 32 {
        return None;
    }
    let mut way = String::new();
    while count > 1 {
        match index % 2 {
            1 => way.push('l'),
            _ if index + 1 < count => way.push('r'),
            _ => {}
        }
        (index, count) = (index / 2, count.div_ceil(2));
    }
    Some(way)
}

/// The prime of P-256's field, and the order of its group (SEC 2, 2.4.2).
const FIELD_PRIME: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff,
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
];
const GROUP_ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa,
    0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];

/// `a` − `b` as numbers, most significant byte first.
fn subtracted(a: &[u8; 32], b: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    let mut borrow = 0;
    for at in (0..32).rev() {
        let difference = i32::from(a[at]) - i32::from(b[at]) - borrow;
        borrow = i32::from(difference < 0);
        out[at] = difference.rem_euclid(256) as u8;
    }
    out
}

#[test]
fn no_change_of_a_field_of_real_evidence_is_accepted() {
    for subject in vectors() {
        assert!(subject.judge() > 250, "{}", subject.name);
    }
}

#[test]
fn no_change_of_a_field_is_accepted_though_it_is_signed_again() {
    assert!(forged().judge() > 350);
}

#[test]
fn another_encoding_of_the_signature_and_another_name_of_the_place_prove_the_same() {
    // What ECDSA and the tree leave open (docs/evidence.md, "Format"): not other claims, but other bytes.
    let subject = forged();
    let mut negated = subject.parts.clone();
    let at = negated.signature.len() - 32;
    let s = subtracted(&GROUP_ORDER, &negated.signature[at..]);
    negated.signature[at..].copy_from_slice(&s);
    assert_ne!(negated.file(), subject.parts.file());
    assert_eq!(check(&negated.file(), &subject.policy, &subject.expected).verdict, Verdict::Trusted);
    assert_eq!(way(2, 7), way(2, 8));
    let mut renamed = subject.parts.clone();
    renamed.count = 8;
    assert_eq!(check(&renamed.file(), &subject.policy, &subject.expected).verdict, Verdict::Trusted);
}

#[test]
fn without_a_release_only_what_nothing_signs_may_change_in_the_log() {
    let subject = forged();
    let forge = subject.forge.as_ref().unwrap();
    let (policy, expected) = (forge.policy(), subject.expected);
    for field in parts::log(&subject.parts.log) {
        let mut parts = subject.parts.clone();
        parts.log = flipped(&parts.log, &field);
        let is_remark =
            field.0.ends_with(".digest-0400") || ["event3.data", "event4.data"].contains(&field.0.as_str());
        let verdict = check(&parts.file(), &policy, &expected).verdict;
        assert_eq!(verdict == Verdict::Trusted, is_remark, "{}", field.0);
    }
}
