//! Any bytes: a verdict, never a panic, and never trust.

use dolmen_verify::{AttestationKey, Expected, Verdict, check, explain, export};
use proptest::prelude::*;

use crate::forge::{Forge, NONCE};

/// Where the event log lies in the file. Its labels and the digests of other banks are remarks that nothing
/// signs; its SHA-256 digests have tests of their own.
fn log_in(bytes: &[u8], log: &[u8]) -> std::ops::Range<usize> {
    let at = bytes.windows(log.len()).position(|window| window == log).unwrap();
    at..at + log.len()
}

#[test]
fn every_byte_of_evidence_outside_of_the_log_matters() {
    let honest = Forge::honest();
    let (bytes, policy, expected) = (honest.bytes(), honest.policy(), Expected::nonce(NONCE).unwrap());
    let log = log_in(&bytes, &honest.event_log());
    for at in (0..bytes.len()).filter(|at| !log.contains(at)) {
        let mut altered = bytes.clone();
        altered[at] ^= 1 << (at % 8);
        let report = check(&altered, &policy, &expected);
        assert_eq!(report.verdict, Verdict::Refused, "byte {at} changes nothing:\n{report}");
    }
}

#[test]
fn an_altered_log_never_changes_what_is_believed_of_the_registers() {
    let honest = Forge::honest();
    let (bytes, policy, expected) = (honest.bytes(), honest.policy(), Expected::nonce(NONCE).unwrap());
    for at in log_in(&bytes, &honest.event_log()) {
        let mut altered = bytes.clone();
        altered[at] ^= 1 << (at % 8);
        assert!(!check(&altered, &policy, &expected).has_failed("pcrs"), "byte {at}");
    }
}

#[test]
fn every_cut_is_refused() {
    let honest = Forge::honest();
    let (bytes, policy) = (honest.bytes(), honest.policy());
    for length in 0..bytes.len() {
        assert_eq!(check(&bytes[..length], &policy, &Expected::Anything).verdict, Verdict::Refused);
    }
}

proptest! {
    #[test]
    fn any_bytes_get_a_verdict(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let policy = Forge::honest().policy();
        prop_assert_eq!(check(&bytes, &policy, &Expected::Anything).verdict, Verdict::Refused);
        prop_assert!(explain(&bytes).is_err());
        prop_assert!(export::export(&bytes).is_err());
    }

    #[test]
    fn any_key_log_and_quote_get_a_verdict(
        quote in proptest::collection::vec(any::<u8>(), 1..200),
        signature in proptest::collection::vec(any::<u8>(), 1..100),
        log in proptest::collection::vec(any::<u8>(), 1..400),
        area in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut forge = Forge::honest();
        forge.quoted = Some((quote, signature));
        forge.log = Some(log);
        let bytes = forge.bytes();
        prop_assert_eq!(check(&bytes, &forge.policy(), &Expected::Anything).verdict, Verdict::Refused);
        prop_assert!(explain(&bytes).is_ok());
        prop_assert!(AttestationKey::parse(&area).is_err());
    }
}
