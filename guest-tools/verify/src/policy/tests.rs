use super::*;

const FILES: &[(&str, &str)] = &[
    (
        "host.json",
        r#"{"format": "dolmen-enrolment-1", "ak_name": "000b22", "reset_count": 1, "restart_count": 2}"#,
    ),
    // Of a later version, which has other fields.
    ("later.json", r#"{"format": "dolmen-enrolment-2", "ak_names": ["000b22"]}"#),
    ("bare.json", r#"{"ak_name": "000b22", "reset_count": 1, "restart_count": 2}"#),
];

fn text(extra: &str) -> String {
    let (pcr, g) = ("11".repeat(32), "22".repeat(48));
    format!("pcr17 = \"{pcr}\"\npcr18 = \"{pcr}\"\n{extra}\n[guests.demo]\ng0 = \"{g}\"\n")
}

fn parse(text: &str) -> Result<Policy, PolicyError> {
    let name = "33".repeat(32);
    let record = format!(
        "{{\"ak_name\": \"000b{name}\", \"format\": \"dolmen-enrolment-1\", \
         \"reset_count\": 4, \"restart_count\": 2, \"more\": 1}}"
    );
    Policy::parse_with(text, &|path| match path {
        "good.json" => Ok(record.clone().into_bytes()),
        other => FILES
            .iter()
            .find(|(name, _)| *name == other)
            .map(|(_, content)| content.as_bytes().to_vec())
            .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::NotFound, "no such file")),
    })
}

/// Line, field and message of the complaint about `text`.
fn complaint(text: &str) -> (usize, String, String) {
    let error = parse(text).unwrap_err();
    let message = error.to_string().lines().next().unwrap().to_owned();
    (error.line(), error.field().to_owned(), message)
}

#[test]
fn the_smallest_policy_has_safe_defaults() {
    let policy = Policy::parse(&text("")).unwrap();
    assert_eq!(policy.code, [AcceptedCode::new([0x11; 32])]);
    assert_eq!(policy.configuration.values, [[0x11; 32]]);
    assert!(!policy.configuration.is_any);
    assert_eq!(policy.guests.get("demo").unwrap().g0, [[0x22; 48]]);
    assert!(!policy.allow_unenrolled && policy.keys.is_empty());
    assert!(policy.facts.require.contains(LaunchFacts::IOMMU_SHIELDED));
    assert!(!policy.facts.allow.contains(LaunchFacts::SHIELD_RACE));
    assert_eq!(policy.tpm, TpmRules::default());
}

#[test]
fn one_value_and_a_list_are_both_taken() {
    let (a, b) = ("aa".repeat(32), "bb".repeat(32));
    let listed =
        text("").replacen(&format!("\"{}\"", "11".repeat(32)), &format!("[\"{a}\", \"{b}\", \"{a}\"]"), 1);
    let policy = parse(&listed).unwrap();
    assert_eq!(policy.code, [AcceptedCode::new([0xaa; 32]), AcceptedCode::new([0xbb; 32])]);
}

#[test]
fn components_make_every_combination() {
    let (a, b, c) = ("aa".repeat(32), "bb".repeat(32), "cc".repeat(32));
    let whole = text("").lines().skip(2).collect::<Vec<_>>().join("\n");
    let components = format!(
        "launch_image = \"{a}\"\ncore = [\"{b}\", \"{c}\"]\nmanifest = \"{a}\"\ncomponents = [\"{b}\"]\n{whole}"
    );
    let policy = parse(&components).unwrap();
    let sha256 = dolmen_tpm::crypto::sha256;
    let launched = sha256(&[&[0; 32], &[0xaa; 32]]);
    let mut want = [0xbb, 0xcc].map(|core| AcceptedCode::new(sha256(&[&launched, &[core; 32]])));
    want.sort_unstable_by_key(|code| *code.pcr17());
    assert_eq!(policy.code, want);
    assert_eq!((policy.configuration.manifests.len(), policy.configuration.parts.len()), (1, 1));
    let (line, field, _) = complaint(&components.replace("core = ", "#"));
    assert_eq!((line, field.as_str()), (1, "launch_image"));
    let (line, field, _) = complaint(&components.replace("components = ", "#"));
    assert_eq!((line, field.as_str()), (3, "manifest"));
}

/// Lines after the first two of a policy; line and field that are complained of, and the words.
const MISTAKES: &[(&str, usize, &str, &str)] = &[
    (
        "[[keys]]\nname = \"000b\"",
        4,
        "keys.name",
        "line 4, column 8: `keys.name` is \"000b\"; expected 34 bytes in hex (68 digits)",
    ),
    (
        "max_launches = \"one\"",
        3,
        "max_launches",
        "line 3, column 16: `max_launches` is \"one\"; expected a number of launches, 0 to 4294967295",
    ),
    (
        "max_launches = -1",
        3,
        "max_launches",
        "line 3, column 16: `max_launches` is -1; expected a number of launches, 0 to 4294967295",
    ),
    (
        "allow_unenrolled = 1",
        3,
        "allow_unenrolled",
        "line 3, column 20: `allow_unenrolled` is 1; expected true or false",
    ),
    (
        "pcr19 = \"\"",
        3,
        "pcr19",
        "line 3, column 1: there is no field `pcr19`; expected one of releases, pcr17, pcr18, launch_image, core, manifest, components, allow_unenrolled, max_launches, guests, keys, tpm, facts",
    ),
    (
        "[tpm]\nfirmware = \"x\"",
        4,
        "tpm.firmware",
        "line 4, column 12: `tpm.firmware` is \"x\"; expected a firmware version of 64 bits, such as 0x2020031800120000, or a list of them",
    ),
    (
        "[tpm]\nmin_restart_count = 1",
        4,
        "tpm.min_restart_count",
        "line 4, column 21: `tpm.min_restart_count`: expected `min_reset_count` too: a reset of the TPM sets the restart count to zero",
    ),
    (
        "[facts]\nallow = [\"DEBUG\"]",
        4,
        "facts.allow",
        "line 4, column 10: `facts.allow` is \"DEBUG\"; expected no fact that is always refused",
    ),
    (
        "[facts]\nrequire = [\"UNMEASURED\"]",
        4,
        "facts.require",
        "line 4, column 12: `facts.require` is \"UNMEASURED\"; expected no fact that is always refused",
    ),
    (
        "releases = \"none.json\"",
        3,
        "releases",
        "line 3, column 12: `releases` is \"none.json\"; expected the path of a file with reference values, or a list of such paths; it cannot be read: no such file",
    ),
    (
        "releases = \"good.json\"",
        3,
        "releases",
        "line 3, column 12: `releases` is \"good.json\"; expected the path of a file with reference values, or a list of such paths; it is none: unknown field `ak_name`, expected one of `format`, `launch_bytes`, `banks`, `events`, `guests` at line 1 column 10",
    ),
    (
        "[[keys]]\nrecord = \"host.json\"",
        4,
        "keys.record",
        "line 4, column 10: `keys.record`: expected the path of an enrolment record; host.json is none: `ak_name`: expected 34 bytes in hex",
    ),
    (
        "[[keys]]\nrecord = \"later.json\"",
        4,
        "keys.record",
        "line 4, column 10: `keys.record`: expected the path of an enrolment record; later.json is none: `format` is \"dolmen-enrolment-2\"; expected \"dolmen-enrolment-1\"",
    ),
    (
        "[[keys]]\nrecord = \"bare.json\"",
        4,
        "keys.record",
        "line 4, column 10: `keys.record`: expected the path of an enrolment record; bare.json is none: missing field `format` at line 1 column 59",
    ),
    (
        "[[keys]]\nrecord = \"good.json\"\nreset_count = 3",
        5,
        "keys.reset_count",
        "line 5, column 15: `keys.reset_count`: not beside `record`, which says it already",
    ),
    (
        "[[keys]]\nreset_count = 3",
        3,
        "keys.name",
        "line 3, column 1: `keys.name`: expected the key's Name, one value of 34 bytes in hex, or a `record`",
    ),
    ("pcr17 = 3", 3, "", "line 3, column 1: duplicate key"),
];

#[test]
fn a_complaint_points_at_line_and_field_and_says_what_was_expected() {
    for (extra, line, field, message) in MISTAKES {
        assert_eq!(complaint(&text(extra)), (*line, (*field).to_owned(), (*message).to_owned()));
    }
    let (_, field, message) = complaint(&text("[facts]\nallow = [\"NOPE\"]"));
    assert_eq!(field, "facts.allow");
    assert!(
        message.contains("is \"NOPE\"; expected launch facts: AMD_SKINIT, INTEL_SENTER, IOMMU_SHIELDED"),
        "{message}"
    );
}

#[test]
fn a_policy_that_accepts_nothing_is_refused() {
    for (what, field) in [("pcr17 =", "pcr17"), ("pcr18 =", "pcr18"), ("g0 =", "guests.demo.g0")] {
        let without: Vec<String> =
            text("").lines().filter(|line| !line.starts_with(what)).map(str::to_owned).collect();
        assert_eq!(complaint(&without.join("\n")).1, field);
    }
    let empty = text("").replace(&format!("pcr18 = \"{}\"", "11".repeat(32)), "pcr18 = []");
    let (line, field, message) = complaint(&empty);
    assert_eq!((line, field.as_str()), (2, "pcr18"));
    assert!(message.ends_with("expected at least one value: an empty list accepts nothing"), "{message}");
    let nobody = text("").split("[guests").next().unwrap().to_owned();
    assert_eq!(complaint(&nobody).1, "guests");
    assert_eq!(complaint(&format!("{nobody}[guests]")).1, "guests");
}

#[test]
fn a_register_that_a_guest_cannot_extend_is_refused() {
    let pinned = |name: &str| {
        text("")
            .replace("[guests.demo]", &format!("[guests.demo]\nregisters.{name} = \"{}\"", "00".repeat(48)))
    };
    let policy = parse(&pinned("g7")).unwrap();
    assert_eq!(policy.guests.get("demo").unwrap().registers.get(&7), Some(&vec![[0; 48]]));
    for name in ["g0", "g8"] {
        assert_eq!(complaint(&pinned(name)).1, format!("guests.demo.registers.{name}"));
    }
}

#[test]
fn an_enrolment_record_gives_name_and_counters() {
    let policy = parse(&text("[[keys]]\nrecord = \"good.json\"")).unwrap();
    let [key] = policy.keys.as_slice() else { panic!("{:?}", policy.keys) };
    assert_eq!((key.name[..3].to_vec(), key.reset_count, key.restart_count), (vec![0, 0x0b, 0x33], 4, 2));
    assert_eq!(key.record.as_deref(), Some("good.json"));
}

#[test]
fn a_key_that_is_listed_twice_is_refused_where_it_is_the_second_time() {
    let by_name = format!("[[keys]]\nname = \"000b{}\"\n", "33".repeat(32));
    let by_record = "[[keys]]\nrecord = \"good.json\"\n".to_owned();
    for (first, second, field) in [
        (&by_name, &by_name, "keys.name"),
        (&by_name, &by_record, "keys.record"),
        (&by_record, &by_name, "keys.name"),
        (&by_record, &by_record, "keys.record"),
    ] {
        let (line, at, message) = complaint(&text(&format!("{first}{second}")));
        assert_eq!((line, at.as_str()), (6, field));
        assert!(message.contains("expected a key that no earlier entry has"), "{message}");
    }
    let other = by_name.replace("33", "34");
    assert_eq!(parse(&text(&format!("{by_name}{other}"))).unwrap().keys.len(), 2);
}

#[test]
fn without_a_way_to_read_files_none_is_named() {
    let error = Policy::parse(&text("releases = \"good.json\"")).unwrap_err();
    assert_eq!(error.field(), "releases");
    assert!(error.to_string().contains("policies without files only"), "{error}");
}

#[test]
fn too_many_combinations_are_refused() {
    let list = |count: u32| {
        let values: Vec<String> = (0..count).map(|n| format!("\"{n:064x}\"")).collect();
        format!("[{}]", values.join(", "))
    };
    let (_, field, message) = complaint(&text(&format!("launch_image = {}\ncore = {}", list(40), list(40))));
    assert_eq!(field, "launch_image");
    assert!(message.contains("at most 1024 combinations"), "{message}");
}
