use proptest::prelude::*;

use super::*;
use crate::bank::{BankSet, DigestSet};
use crate::log::LogWriter;

fn banks(ids: &[u16]) -> BankSet {
    BankSet::select(ids.iter().map(|id| (*id, 0xff_ffff))).unwrap()
}

fn log_of(ids: &[u16], events: &[(u8, &[u8])]) -> Vec<u8> {
    let banks = banks(ids);
    let mut buf = vec![0; 8192];
    let mut log = LogWriter::begin(&mut buf, &banks).unwrap();
    for (pcr, data) in events {
        log.append(*pcr, &DigestSet::of(&banks, data), data).unwrap();
    }
    log.bytes().to_vec()
}

/// Header of a SHA-256 log: 28 + 37 bytes.
const HEADER: usize = 65;

#[test]
fn what_was_written_is_read_back() {
    let bytes = log_of(&[0x4, 0xb], &[(17, b"SKINIT"), (18, b"manifest")]);
    let log = EventLog::parse(&bytes).unwrap();
    let events: Vec<_> = log.events().collect();
    assert_eq!(events.len(), 2);
    assert_eq!((events[0].pcr, events[0].kind, events[0].data), (17, 0x502, b"SKINIT".as_slice()));
    assert_eq!(events[1].digest(Algorithm::Sha1), Some(Algorithm::Sha1.hash(&[b"manifest"]).bytes()));
    assert_eq!(events[1].digest(Algorithm::Sha384), None);
    assert_eq!(log.algorithms().collect::<Vec<_>>(), [Algorithm::Sha1, Algorithm::Sha256]);
    assert_eq!(log.replay(Algorithm::Sha512, 17), Err(ReplayError::NoSuchBank(Algorithm::Sha512)));
}

#[test]
fn an_algorithm_that_dolmen_lacks_is_skipped_by_its_size() {
    // SM3-256 added by hand to a SHA-256 log of one event.
    let plain = log_of(&[0xb], &[(17, b"x")]);
    let mut bytes = plain.clone();
    bytes[28] += 4;
    bytes[56] = 2;
    bytes.splice(64..64, [0x12, 0, 32, 0]);
    let record = HEADER + 4;
    bytes[record + 8] = 2;
    let mut digest = vec![0x12, 0];
    digest.extend([7; 32]);
    bytes.splice(record + 12..record + 12, digest);
    let (log, reference) = (EventLog::parse(&bytes).unwrap(), EventLog::parse(&plain).unwrap());
    assert_eq!(log.algorithms().collect::<Vec<_>>(), [Algorithm::Sha256]);
    assert_eq!(log.replay(Algorithm::Sha256, 17), reference.replay(Algorithm::Sha256, 17));
}

#[test]
fn hostile_logs_are_refused_for_the_reason_that_the_table_says() {
    let good = log_of(&[0xb], &[(17, b"core")]);
    let changed = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    let padded = |count: usize, value: u8| {
        let mut bytes = good.clone();
        bytes.extend(std::iter::repeat_n(value, count));
        bytes
    };
    let table = [
        ("empty", vec![], ReplayError::Truncated(0)),
        ("header PCR", changed(0, 1), ReplayError::Header),
        ("header type", changed(4, 4), ReplayError::Header),
        ("header digest", changed(8, 1), ReplayError::Header),
        ("header length", changed(28, 0xff), ReplayError::Header),
        ("signature", changed(32, b's'), ReplayError::Header),
        ("major version", changed(53, 1), ReplayError::Header),
        ("no algorithms", changed(56, 0), ReplayError::Algorithms),
        ("too many algorithms", changed(57, 1), ReplayError::Algorithms),
        ("digest size", changed(62, 31), ReplayError::Algorithms),
        ("vendor data beyond the header", changed(64, 4), ReplayError::Header),
        ("PCR 24", changed(HEADER, 24), ReplayError::Pcr(HEADER)),
        ("padding PCR", changed(HEADER + 3, 0xff), ReplayError::Pcr(HEADER)),
        (
            "no action",
            [&good[..HEADER + 4], &[3, 0], &good[HEADER + 6..]].concat(),
            ReplayError::NoAction(HEADER),
        ),
        ("digest count 0", changed(HEADER + 8, 0), ReplayError::Digests(HEADER)),
        ("digest count 2", changed(HEADER + 8, 2), ReplayError::Digests(HEADER)),
        ("unlisted algorithm", changed(HEADER + 12, 4), ReplayError::Digests(HEADER)),
        ("data too long", changed(HEADER + 46, 5), ReplayError::Truncated(HEADER + 50)),
        ("padding with zeroes", padded(16, 0), ReplayError::Digests(good.len())),
        ("padding with ones", padded(16, 0xff), ReplayError::Pcr(good.len())),
        ("one byte more", padded(1, 0), ReplayError::Truncated(good.len())),
    ];
    for (name, bytes, want) in table {
        assert_eq!(EventLog::parse(&bytes).err(), Some(want), "{name}");
    }
}

#[test]
fn a_digest_that_comes_twice_cannot_hide_another() {
    let mut bytes = log_of(&[0x4, 0xb], &[(17, b"core")]);
    let second = HEADER + 4 + 12 + 2 + 20;
    bytes[second] = 4;
    assert_eq!(EventLog::parse(&bytes).err(), Some(ReplayError::Digests(HEADER + 4)));
}

#[test]
#[cfg_attr(miri, ignore = "takes too long in the interpreter")]
fn no_prefix_of_a_log_but_whole_records_parses() {
    let bytes = log_of(&[0x4, 0xb, 0xc, 0xd], &[(17, b"SKINIT"), (17, b"core"), (18, b"manifest")]);
    let whole: Vec<_> = (0..=bytes.len()).filter(|n| EventLog::parse(&bytes[..*n]).is_ok()).collect();
    assert_eq!(whole.len(), 4, "header alone, and after each of three records: {whole:?}");
}

proptest! {
    #[test]
    #[cfg_attr(miri, ignore = "takes too long in the interpreter")]
    fn a_written_log_replays_to_the_model_of_the_pcrs(
        mask in 0u8..8,
        events in prop::collection::vec((17u8..=18, prop::collection::vec(any::<u8>(), 0..40)), 0..12),
    ) {
        let extra = [0x4, 0xc, 0xd].into_iter().enumerate().filter(|(n, _)| mask & (1 << n) != 0);
        let ids: Vec<u16> = std::iter::once(0xb).chain(extra.map(|(_, id)| id)).collect();
        let borrowed: Vec<_> = events.iter().map(|(pcr, data)| (*pcr, data.as_slice())).collect();
        let bytes = log_of(&ids, &borrowed);
        let log = EventLog::parse(&bytes).unwrap();
        let banks = banks(&ids);
        for pcr in [17, 18] {
            let model = events.iter().filter(|event| event.0 == pcr).fold(
                DigestSet::zero(&banks),
                |value, event| value.extended(&DigestSet::of(&banks, &event.1)),
            );
            for algorithm in banks.algorithms() {
                let replayed = log.replay(algorithm, pcr).unwrap();
                prop_assert_eq!(Some(replayed.bytes()), model.get(algorithm));
            }
        }
    }

    #[test]
    fn no_bytes_make_the_reader_panic_or_read_past_the_end(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = log_of(&[0x4, 0xb], &[(17, b"SKINIT"), (18, b"manifest")]);
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        if let Ok(log) = EventLog::parse(&bytes) {
            let used: usize = log.events().map(|event| event.data.len()).sum();
            prop_assert!(used <= bytes.len());
            for algorithm in log.algorithms() {
                prop_assert!(log.replay(algorithm, 17).is_ok());
            }
        }
    }
}

/// What a launch image wrote in the emulator, with a TPM of four banks; `tpm2_eventlog` replays it to the same
/// values, and the TPM held them.
const CAPTURED: &[u8] = include_bytes!("../../../tests/vectors/launch-event-log.bin");

#[test]
fn a_captured_log_replays_to_what_the_tpm_held() {
    let log = EventLog::parse(CAPTURED).unwrap();
    let names: Vec<_> = log.events().map(|event| (event.pcr, event.data)).collect();
    assert_eq!(names, [(17, b"SKINIT".as_slice()), (17, b"core"), (18, b"manifest")]);
    for (algorithm, pcr, want) in [
        (Algorithm::Sha1, 17, "fd15e2f497a5388bb287d55bbfa5ad39bd132e24"),
        (Algorithm::Sha1, 18, "df90108f887c476d6752e0afe1bfad2fa796c7e4"),
        (Algorithm::Sha256, 17, "808b1099ea7a167dc9e569c8d9e964b9e1daf16a5bf72bc30df588ca679c07a8"),
        (Algorithm::Sha256, 18, "6f082e8f66dd0fab98713dc1cb2eddae58d635001c56c4bff321e3effd651ac7"),
    ] {
        assert_eq!(hex::encode(log.replay(algorithm, pcr).unwrap().bytes()), want, "{algorithm:?} {pcr}");
    }
}
