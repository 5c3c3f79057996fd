use super::*;
use crate::{MAX_AK_PUBLIC, MAX_ATTEST, MAX_SIGNATURE};
use proptest::prelude::*;
use zerocopy::FromZeros;

fn sample<'a>(event_log: &'a [u8], path: &[[u8; 32]], index: u32, count: u32) -> Evidence<'a> {
    let mut binding = Binding::new_zeroed();
    binding.name[..5].copy_from_slice(b"first");
    binding.report_data = [0x5a; 64];
    Evidence {
        attest: &[0x11; 145],
        signature: &[0x22; 72],
        ak_public: &[0x33; 90],
        event_log,
        binding,
        index,
        count,
        path: Path::new(path).unwrap(),
    }
}

fn encoded(evidence: &Evidence<'_>) -> Vec<u8> {
    let mut out = vec![0; MAX_EVIDENCE];
    let length = evidence.encode(&mut out).unwrap();
    out.truncate(length);
    out
}

#[test]
fn evidence_reads_back_as_written() {
    let evidence = sample(&[7; 700], &[[1; 32], [2; 32]], 2, 4);
    assert_eq!(Evidence::decode(&encoded(&evidence)), Ok(evidence));
}

#[test]
fn the_encoding_is_the_documented_one() {
    let bytes = encoded(&sample(&[7; 3], &[], 0, 1));
    let mut want = vec![0xa9, 0x00, 0x71];
    want.extend(b"dolmen-evidence-1");
    want.extend([0x01, 0x58, 145]);
    want.extend([0x11; 145]);
    want.extend([0x02, 0x58, 72]);
    want.extend([0x22; 72]);
    want.extend([0x03, 0x58, 90]);
    want.extend([0x33; 90]);
    want.extend([0x04, 0x43, 7, 7, 7, 0x05, 0x59, 0x01, 0xe8]);
    want.extend(b"first");
    want.extend([0; 27 + 8 + 384]);
    want.extend([0x5a; 64]);
    want.extend([0x06, 0x00, 0x07, 0x01, 0x08, 0x80]);
    assert_eq!(bytes, want);
}

#[test]
fn the_longest_evidence_fits_its_limit() {
    let (log, part) = (vec![1; MAX_EVENT_LOG], vec![1; MAX_SIGNATURE]);
    let mut evidence = sample(&log, &[[9; 32]; MAX_PATH], 31, 32);
    evidence.attest = &part[..MAX_ATTEST];
    evidence.signature = &part;
    evidence.ak_public = &part[..MAX_AK_PUBLIC];
    assert!(encoded(&evidence).len() <= MAX_EVIDENCE);
}

#[test]
fn every_truncation_is_refused() {
    let bytes = encoded(&sample(&[7; 30], &[[1; 32]], 0, 2));
    for length in 0..bytes.len() {
        assert!(Evidence::decode(&bytes[..length]).is_err(), "{length} bytes");
    }
}

#[test]
fn bytes_after_the_end_are_refused() {
    let mut bytes = encoded(&sample(&[7; 30], &[], 0, 1));
    bytes.push(0);
    assert_eq!(Evidence::decode(&bytes), Err(EvidenceError::NotCanonical));
}

#[test]
fn a_longer_way_to_write_a_number_is_refused() {
    let bytes = encoded(&sample(&[7; 30], &[], 0, 1));
    let mut long = bytes.clone();
    let at = bytes.len() - 3; // the count, 1
    long.splice(at..=at, [0x18, 0x01]);
    assert_eq!(Evidence::decode(&long), Err(EvidenceError::NotCanonical));
}

#[test]
fn another_format_or_version_is_refused_as_such() {
    let mut bytes = encoded(&sample(&[7; 30], &[], 0, 1));
    bytes[3 + 16] = b'2';
    assert_eq!(Evidence::decode(&bytes), Err(EvidenceError::Format));
    bytes[0] = 0xa8;
    assert_eq!(Evidence::decode(&bytes), Err(EvidenceError::Format));
    assert!(matches!(Evidence::decode(b"\x80"), Err(EvidenceError::Malformed(_))));
}

#[test]
fn a_path_that_does_not_fit_its_leaf_is_refused() {
    let mut evidence = sample(&[7; 30], &[[1; 32]], 0, 2);
    evidence.count = 3;
    assert_eq!(evidence.encode(&mut [0; 4096]), Err(EvidenceError::Shape));
    let mut bytes = encoded(&sample(&[7; 30], &[[1; 32]], 0, 2));
    let at = bytes.len() - 37; // the count: before it key 7, after it key 8, the array, one sibling
    assert_eq!(bytes[at], 2);
    bytes[at] = 4;
    assert_eq!(Evidence::decode(&bytes), Err(EvidenceError::Shape));
}

#[test]
fn a_part_that_is_empty_or_too_long_is_refused_by_key() {
    let long = vec![0; MAX_EVENT_LOG + 1];
    let whole = sample(&[1], &[], 0, 1);
    for (evidence, key) in [
        (Evidence { attest: &[], ..whole }, 1),
        (Evidence { attest: &long[..=MAX_ATTEST], ..whole }, 1),
        (Evidence { signature: &[], ..whole }, 2),
        (Evidence { signature: &long[..=MAX_SIGNATURE], ..whole }, 2),
        (Evidence { ak_public: &[], ..whole }, 3),
        (Evidence { ak_public: &long[..=MAX_AK_PUBLIC], ..whole }, 3),
        (Evidence { event_log: &[], ..whole }, 4),
        (Evidence { event_log: &long, ..whole }, 4),
    ] {
        assert_eq!(evidence.encode(&mut [0; 4096]), Err(EvidenceError::Length(key)));
    }
}

#[test]
fn a_reply_becomes_evidence_only_with_lengths_that_can_be() {
    let mut reply = QuoteReply::new_zeroed();
    reply.attest_length = 145;
    reply.signature_length = 72;
    reply.count = 3;
    reply.index = 2;
    reply.path_length = 1;
    reply.path[0] = [4; 32];
    let evidence = Evidence::from_reply(&reply, &[1], &[2]).unwrap();
    assert_eq!(evidence.path.siblings(), [[4; 32]]);
    assert_eq!(evidence.attest.len(), 145);
    for (name, reply) in [
        ("attest", QuoteReply { attest_length: 257, ..reply }),
        ("signature", QuoteReply { signature_length: u32::MAX, ..reply }),
        ("path", QuoteReply { path_length: 6, ..reply }),
        ("path for index", QuoteReply { path_length: 2, ..reply }),
        ("index", QuoteReply { index: 3, ..reply }),
    ] {
        assert!(Evidence::from_reply(&reply, &[1], &[2]).is_err(), "{name}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_canonical(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        if let Ok(evidence) = Evidence::decode(&bytes) {
            prop_assert_eq!(encoded(&evidence), bytes);
        }
    }

    #[test]
    fn a_changed_byte_never_reads_as_the_same_evidence(at in 0usize..1000, by in 1u8..) {
        let evidence = sample(&[7; 40], &[[1; 32], [2; 32]], 1, 3);
        let mut bytes = encoded(&evidence);
        let at = at % bytes.len();
        bytes[at] = bytes[at].wrapping_add(by);
        prop_assert_ne!(Evidence::decode(&bytes), Ok(evidence));
    }
}
