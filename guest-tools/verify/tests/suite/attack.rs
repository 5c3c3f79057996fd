//! Each way to lie, and the check that says so.

use dolmen_abi::LaunchFacts;
use dolmen_drtm::Algorithm;
use dolmen_tpm::policy::launch_policy;
use dolmen_verify::{AttestationKey, Expected, Outcome, Report, Verdict, check};

use crate::forge::{Forge, NONCE, judge};

/// Refused, and by this check.
fn refuses(report: &Report, id: &str) {
    assert_eq!(report.verdict, Verdict::Refused, "{report}");
    assert!(!report.accepted);
    assert!(report.has_failed(id), "{id} did not fail:\n{report}");
}

/// Refused by this check and no other.
fn refuses_only(report: &Report, id: &str) {
    refuses(report, id);
    let failed: Vec<_> = report.checks.iter().filter(|c| c.outcome == Outcome::Fail).map(|c| c.id).collect();
    assert_eq!(failed, [id], "{report}");
}

#[test]
fn honest_evidence_is_trusted() {
    let report = judge(&Forge::honest());
    assert_eq!(report.verdict, Verdict::Trusted, "{report}");
    assert!(report.accepted);
    assert_eq!(report.guest.as_deref(), Some("demo"));
}

#[test]
fn one_of_several_requests_is_trusted_by_its_path() {
    let mut forge = Forge::honest();
    forge.place = (5, 7, vec![[1; 32], [2; 32], [3; 32]]);
    assert_eq!(judge(&forge).verdict, Verdict::Trusted);
    let quoted = (forge.attest(), forge.sign(&forge.attest()));
    forge.quoted = Some(quoted);
    forge.place.2[1] = [9; 32];
    refuses_only(&judge(&forge), "binding");
}

#[test]
fn a_replayed_quote_has_the_wrong_nonce() {
    let expected = Expected::nonce(b"the next nonce").unwrap();
    let honest = Forge::honest();
    refuses_only(&check(&honest.bytes(), &honest.policy(), &expected), "report-data");
}

#[test]
fn an_old_quote_under_a_new_binding_is_refused() {
    let mut forge = Forge::honest();
    forge.binding.report_data = [0; 64];
    let old = forge.attest();
    forge.quoted = Some((old.clone(), forge.sign(&old)));
    forge.binding = Forge::honest().binding;
    refuses_only(&judge(&forge), "binding");
}

#[test]
fn another_key_is_not_enrolled() {
    let mut forge = Forge::honest();
    forge.secret = [4; 32];
    refuses_only(&judge(&forge), "enrolled");
}

#[test]
fn a_quote_by_another_key_than_the_one_shown_is_refused() {
    let mut other = Forge::honest();
    other.secret = [4; 32];
    let mut forge = Forge::honest();
    forge.quoted = Some((forge.attest(), other.sign(&forge.attest())));
    refuses_only(&judge(&forge), "signature");
    forge.quoted = Some((other.attest(), other.sign(&other.attest())));
    refuses(&judge(&forge), "quote");
}

#[test]
fn a_key_that_other_software_can_use_is_refused() {
    for (bit, why) in [(6, "password"), (1, "another TPM"), (5, "outside"), (16, "forged quotes")] {
        let mut forge = Forge::honest();
        forge.attributes ^= 1 << bit;
        let report = judge(&forge);
        refuses(&report, "key");
        assert!(report.find("key").unwrap().text.contains(why), "{report}");
    }
}

#[test]
fn the_keys_policy_is_recomputed_from_the_reference_and_not_from_the_evidence() {
    let mut forge = Forge::honest();
    forge.events[1].2 = b"evil core";
    forge.key_policy = launch_policy(&forge.pcr(17));
    let report = judge(&forge);
    refuses(&report, "key-policy");
    refuses(&report, "pcrs");
    let mut nobody = Forge::honest();
    nobody.key_policy = [0; 32];
    refuses(&judge(&nobody), "key-policy");
}

#[test]
fn an_empty_list_of_keys_trusts_nobody_unless_the_policy_says_so() {
    let honest = Forge::honest();
    let mut policy = honest.policy();
    policy.keys.clear();
    let expected = Expected::nonce(NONCE).unwrap();
    let report = check(&honest.bytes(), &policy, &expected);
    assert_eq!((report.verdict, report.accepted), (Verdict::Unenrolled, false));
    assert!(report.to_string().contains("UNENROLLED"));
    policy.allow_unenrolled = true;
    let report = check(&honest.bytes(), &policy, &expected);
    assert_eq!((report.verdict, report.accepted), (Verdict::Unenrolled, true));
}

#[test]
fn another_core_or_manifest_is_told_apart() {
    for (index, want) in [(0, "PCR 17"), (1, "PCR 17"), (2, "PCR 18"), (3, "PCR 18")] {
        let mut forge = Forge::honest();
        forge.events[index].2 = b"something else";
        let report = judge(&forge);
        refuses_only(&report, "pcrs");
        assert!(report.find("pcrs").unwrap().text.starts_with(want), "{report}");
    }
}

#[test]
fn a_log_that_does_not_replay_is_refused() {
    let mut other = Forge::honest();
    other.events[3].2 = b"another kernel";
    let mut forge = Forge::honest();
    forge.log = Some(other.event_log());
    refuses_only(&judge(&forge), "log");
}

#[test]
fn a_padded_cut_or_foreign_log_is_refused() {
    let honest = Forge::honest().event_log();
    let no_action =
        [&honest[..], &[17, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0], &[4, 0], &[0; 20], &[11, 0], &[0; 32], &[0; 4]];
    for log in [
        [&honest[..], &[0; 16]].concat(),
        [&honest[..], &[0xff; 16]].concat(),
        honest[..honest.len() - 1].to_vec(),
        no_action.concat(),
        b"not a log".to_vec(),
    ] {
        let mut forge = Forge::honest();
        forge.log = Some(log);
        refuses_only(&judge(&forge), "log");
    }
}

#[test]
fn events_that_dolmen_does_not_write_are_refused_though_they_replay() {
    let mut extra = Forge::honest();
    extra.events.push((22, "core", b"x"));
    refuses_only(&judge(&extra), "log");
    let mut renamed = Forge::honest();
    renamed.events[1].1 = "kernel";
    refuses_only(&judge(&renamed), "log");
    let mut reordered = Forge::honest();
    reordered.events[2].1 = "guest/demo/kernel";
    refuses_only(&judge(&reordered), "log");
}

#[test]
fn further_banks_in_the_log_change_nothing_but_without_sha256_it_is_refused() {
    let mut more = Forge::honest();
    more.algorithms = Algorithm::ALL.to_vec();
    assert_eq!(judge(&more).verdict, Verdict::Trusted);
    let log = Forge::honest().event_log();
    let mut unlisted = log.clone();
    unlisted[60] = 0x0c; // the header lists SHA-384 with the size of SHA-1
    let mut forge = Forge::honest();
    forge.log = Some(unlisted);
    refuses_only(&judge(&forge), "log");
}

#[test]
fn other_registers_or_banks_in_the_quote_are_refused() {
    for selection in [
        vec![0, 0, 0, 1, 0, 0x0b, 3, 0, 0, 0x02],
        vec![0, 0, 0, 1, 0, 0x0b, 3, 0x80, 0, 0x06],
        vec![0, 0, 0, 1, 0, 0x04, 3, 0, 0, 0x06],
        vec![0, 0, 0, 2, 0, 0x0b, 3, 0, 0, 0x06, 0, 0x04, 3, 0, 0, 0x06],
        vec![0, 0, 0, 2, 0, 0x0b, 3, 0, 0, 0x06, 0, 0x04, 3, 0, 0, 0],
        vec![0, 0, 0, 0],
    ] {
        let mut forge = Forge::honest();
        forge.selection = selection;
        refuses_only(&judge(&forge), "selection");
    }
}

#[test]
fn what_a_tpm_did_not_make_or_what_is_no_quote_is_refused() {
    for (at, value) in [(0, 0xfe), (5, 0x17), (5, 0x14)] {
        let mut forge = Forge::honest();
        forge.head[at] = value;
        refuses(&judge(&forge), "quote");
    }
}

#[test]
fn debug_unmeasured_and_unknown_facts_are_refused() {
    let good = LaunchFacts::from_bits_retain(Forge::honest().binding.facts);
    for facts in [
        good | LaunchFacts::DEBUG,
        good | LaunchFacts::UNMEASURED,
        LaunchFacts::UNMEASURED | LaunchFacts::IOMMU_SHIELDED,
        good | LaunchFacts::SHIELD_RACE,
        good | LaunchFacts::NO_PROCESSOR_RANDOM,
        good | LaunchFacts::INTEL_SENTER,
        LaunchFacts::AMD_SKINIT,
        good | LaunchFacts::from_bits_retain(1 << 31),
        LaunchFacts::empty(),
    ] {
        let mut forge = Forge::honest();
        forge.binding.facts = facts.bits();
        refuses_only(&judge(&forge), "facts");
    }
}

#[test]
fn another_guest_or_another_image_of_it_is_refused() {
    let mut other = Forge::honest();
    other.binding.name[..4].copy_from_slice(b"evil");
    refuses_only(&judge(&other), "guest");
    let mut image = Forge::honest();
    image.binding.registers[0] = [0x62; 48];
    refuses_only(&judge(&image), "guest");
    let mut unprintable = Forge::honest();
    unprintable.binding.name[1] = 0x1b;
    refuses_only(&judge(&unprintable), "guest");
}

#[test]
fn a_pinned_register_must_have_its_value() {
    let honest = Forge::honest();
    let pinned = honest
        .policy_text()
        .replace("[[keys]]", &format!("registers.g3 = \"{}\"\n[[keys]]", "00".repeat(48)));
    let policy = dolmen_verify::Policy::parse(&pinned).unwrap();
    let expected = Expected::nonce(NONCE).unwrap();
    assert_eq!(check(&honest.bytes(), &policy, &expected).verdict, Verdict::Trusted);
    let mut forge = Forge::honest();
    forge.binding.registers[3] = [1; 48];
    refuses_only(&check(&forge.bytes(), &policy, &expected), "registers");
}

#[test]
fn a_tpm_whose_counters_ran_back_is_refused() {
    let mut forge = Forge::honest();
    forge.counts = (6, 9);
    refuses_only(&judge(&forge), "counters");
    forge.counts = (8, 0);
    assert_eq!(judge(&forge).verdict, Verdict::Trusted);
}

#[test]
fn more_launches_than_allowed_are_refused() {
    let mut policy = Forge::honest().policy();
    policy.max_launches = Some(1);
    let expected = Expected::nonce(NONCE).unwrap();
    let mut forge = Forge::honest();
    assert_eq!(check(&forge.bytes(), &policy, &expected).verdict, Verdict::Trusted);
    forge.counts = (7, 2);
    refuses_only(&check(&forge.bytes(), &policy, &expected), "launches");
}

#[test]
fn a_reserved_field_that_is_set_is_refused() {
    let mut forge = Forge::honest();
    forge.binding.reserved = 1;
    refuses_only(&judge(&forge), "binding");
}

#[test]
fn a_register_may_have_one_of_several_values() {
    let honest = Forge::honest();
    let list = format!("registers.g3 = [\"{}\", \"{}\"]\n[[keys]]", "00".repeat(48), "01".repeat(48));
    let policy = dolmen_verify::Policy::parse(&honest.policy_text().replace("[[keys]]", &list)).unwrap();
    let expected = Expected::nonce(NONCE).unwrap();
    for (value, verdict) in [(0, Verdict::Trusted), (1, Verdict::Trusted), (2, Verdict::Refused)] {
        let mut forge = Forge::honest();
        forge.binding.registers[3] = [value; 48];
        assert_eq!(check(&forge.bytes(), &policy, &expected).verdict, verdict, "{value}");
    }
}

#[test]
fn any_configuration_is_accepted_only_if_the_policy_says_so_and_the_verdict_tells() {
    let honest = Forge::honest();
    let text = honest.policy_text();
    let line = text.lines().nth(1).unwrap();
    let any = dolmen_verify::Policy::parse(&text.replace(line, "pcr18 = \"any\"")).unwrap();
    let mut forge = Forge::honest();
    forge.events[2].2 = b"another manifest";
    let expected = Expected::nonce(NONCE).unwrap();
    let report = check(&forge.bytes(), &any, &expected);
    assert_eq!(report.verdict, Verdict::Trusted, "{report}");
    assert_eq!(report.find("configuration").unwrap().outcome, Outcome::Note);
    refuses_only(&check(&forge.bytes(), &honest.policy(), &expected), "pcrs");
}

#[test]
fn components_are_judged_one_by_one() {
    let digest = |bytes: &[u8]| hex::encode(dolmen_tpm::crypto::sha256(&[bytes]));
    let list = |all: &[&[u8]]| {
        all.iter().map(|bytes| format!("\"{}\"", digest(bytes))).collect::<Vec<_>>().join(", ")
    };
    let honest = Forge::honest();
    let text = honest.policy_text();
    let rest: Vec<&str> = text.lines().skip(2).collect();
    let text = format!(
        "launch_image = [{}]\ncore = [{}]\nmanifest = [{}]\ncomponents = [{}]\n{}\n",
        list(&[b"launch image", b"older launch image"]),
        list(&[b"core", b"newer core"]),
        list(&[b"manifest"]),
        list(&[b"kernel", b"newer kernel", b"console=ttyS0"]),
        rest.join("\n")
    );
    let policy = dolmen_verify::Policy::parse(&text).unwrap();
    let expected = Expected::nonce(NONCE).unwrap();
    let judged = |index: usize, bytes: &'static [u8]| {
        let mut forge = Forge::honest();
        forge.events[index].2 = bytes;
        forge.key_policy = launch_policy(&forge.pcr(17));
        let mut policy = policy.clone();
        policy.keys[0].name = AttestationKey::parse(&forge.public()).unwrap().name();
        check(&forge.bytes(), &policy, &expected)
    };
    for (index, bytes) in [(0, &b"older launch image"[..]), (1, b"newer core"), (3, b"newer kernel")] {
        assert_eq!(judged(index, bytes).verdict, Verdict::Trusted, "{}", judged(index, bytes));
    }
    for (index, want) in [
        (0, "the launch image (sha256 "),
        (1, "the core (sha256 "),
        (2, "the manifest (sha256 "),
        (3, "part 1 of the guests (sha256 "),
        (4, "part 2 of the guests (sha256 "),
    ] {
        let report = judged(index, b"evil");
        refuses(&report, "pcrs");
        assert!(report.find("pcrs").unwrap().text.contains(want), "{report}");
    }
}

#[test]
fn the_quoted_hypervisor_is_the_one_that_the_keys_policy_names() {
    // Both are accepted, but a key of the one that signs a quote of the other is in no TPM.
    let mut other = Forge::honest();
    other.events[1].2 = b"newer core";
    let honest = Forge::honest();
    let text = honest.policy_text();
    let list = format!("pcr17 = [\"{}\", \"{}\"]", hex::encode(honest.pcr(17)), hex::encode(other.pcr(17)));
    let policy = dolmen_verify::Policy::parse(&text.replace(text.lines().next().unwrap(), &list)).unwrap();
    let expected = Expected::nonce(NONCE).unwrap();
    assert_eq!(check(&honest.bytes(), &policy, &expected).verdict, Verdict::Trusted);
    let report = check(&other.bytes(), &policy, &expected);
    refuses_only(&report, "pcrs");
    assert!(
        report.find("pcrs").unwrap().text.contains("not the one that the key's policy names"),
        "{report}"
    );
}

#[test]
fn a_tpm_that_is_not_as_the_policy_wants_is_refused() {
    let honest = Forge::honest();
    let expected = Expected::nonce(NONCE).unwrap();
    for (rules, verdict) in [
        ("min_reset_count = 7\nmin_restart_count = 1", Verdict::Trusted),
        ("min_reset_count = 6\nmin_restart_count = 9", Verdict::Trusted),
        ("min_reset_count = 7\nmin_restart_count = 2", Verdict::Refused),
        ("min_reset_count = 8", Verdict::Refused),
        ("safe_clock = true", Verdict::Trusted),
        ("firmware = [1, 0x2020031800120000]", Verdict::Trusted),
        ("firmware = 1", Verdict::Refused),
    ] {
        let policy =
            dolmen_verify::Policy::parse(&format!("{}[tpm]\n{rules}\n", honest.policy_text())).unwrap();
        assert_eq!(check(&honest.bytes(), &policy, &expected).verdict, verdict, "{rules}");
    }
}

#[test]
fn a_key_is_enrolled_by_its_record() {
    let honest = Forge::honest();
    let text = honest.policy_text();
    let (rest, key) = text.split_once("[[keys]]").unwrap();
    let name = key.split('"').nth(1).unwrap().to_owned();
    let policy = |resets: u32| {
        let record = format!(
            "{{\"format\": \"dolmen-enrolment-1\", \"ak_name\": \"{name}\", \"reset_count\": {resets}, \"restart_count\": 0}}"
        );
        let text = format!("{rest}[[keys]]\nrecord = \"host-17.json\"\n");
        dolmen_verify::Policy::parse_with(&text, &|_| Ok(record.clone().into_bytes())).unwrap()
    };
    let expected = Expected::nonce(NONCE).unwrap();
    let report = check(&honest.bytes(), &policy(7), &expected);
    assert_eq!((report.verdict, report.enrolled_by.as_deref()), (Verdict::Trusted, Some("host-17.json")));
    assert!(report.find("enrolled").unwrap().text.contains("by host-17.json"), "{report}");
    refuses_only(&check(&honest.bytes(), &policy(8), &expected), "counters");
}
