//! Evidence about a host: what a verdict about it says, and what it does not.

use dolmen_verify::{Expected, Report, Subject, Verdict, check, check_host};

use crate::forge::{Forge, NONCE};

fn last_line(report: &Report) -> String {
    report.to_string().lines().last().unwrap().to_owned()
}

#[test]
fn a_verdict_about_a_host_says_nothing_of_a_guest() {
    let forge = Forge::of_host();
    let mut policy = forge.policy();
    let report = check_host(&forge.host_bytes(), &policy, NONCE);
    assert_eq!((report.verdict, report.subject, &report.guest), (Verdict::Trusted, Subject::Host, &None));
    assert_eq!(
        last_line(&report),
        "TRUSTED: the host runs the reference hypervisor; this says nothing of any guest"
    );
    policy.keys.clear();
    let report = check_host(&forge.host_bytes(), &policy, NONCE);
    assert_eq!(report.verdict, Verdict::Unenrolled, "{report}");
    let line = last_line(&report);
    assert!(
        line.starts_with("UNENROLLED: everything holds for the host,") && !line.contains("guest"),
        "{line}"
    );
    let report = check_host(&forge.host_bytes(), &policy, b"another nonce");
    assert!(report.has_failed("report-data") && report.subject == Subject::Host, "{report}");
}

#[test]
fn neither_kind_of_evidence_and_of_key_passes_for_the_other() {
    let (guest, host) = (Forge::honest(), Forge::of_host());
    let expected = Expected::nonce(NONCE).unwrap();
    assert!(check_host(&guest.bytes(), &guest.policy(), NONCE).has_failed("format"));
    assert!(check(&host.host_bytes(), &host.policy(), &expected).has_failed("format"));
    assert!(check_host(&guest.host_bytes(), &guest.policy(), NONCE).has_failed("key-policy"));
    assert!(check(&host.bytes(), &host.policy(), &expected).has_failed("key-policy"));
}
