//! Any bytes at all as responses: nothing panics, nothing loops, nothing forged gets through.

use std::sync::OnceLock;

use dolmen_tpm::attest::{CertifyAttest, QuoteAttest, parse_ecdsa};
use dolmen_tpm::certify::decode_certify;
use dolmen_tpm::codec::Reader;
use dolmen_tpm::command::PcrIndex;
use dolmen_tpm::constant::alg;
use dolmen_tpm::keys::set_up;
use dolmen_tpm::primary::{decode_created, decode_created_with_password, decode_hmac, decode_read_public};
use dolmen_tpm::public::Template;
use dolmen_tpm::quote::{QuoteJob, QuotePoll, decode_quote};
use dolmen_tpm::response::{
    Response, decode_banks, decode_first_handle, decode_pcr_read, decode_property, decode_random,
};
use dolmen_tpm::session::decode_start_session;
use dolmen_tpm::tis::{Locality, Tis};
use dolmen_tpm::{PolledTransport, Transport, TransportError, measure};
use proptest::prelude::{Just, Strategy, any, prop, prop_oneof, proptest};
use proptest::test_runner::Config;

use crate::bus::Canned;
use crate::keys::{IMAGE, launched, setup};
use crate::tap::Tap;
use crate::tis_model::TisModel;

/// Every decoder of the crate, on the same bytes.
fn decode_all(bytes: &[u8]) {
    let outcomes = [
        Response::parse(bytes).is_ok(),
        Response::password_only(bytes).is_ok(),
        decode_pcr_read(bytes, alg::SHA256, PcrIndex::DRTM_CODE).is_ok(),
        decode_banks(bytes).is_ok(),
        decode_property(bytes, 0x105).is_ok(),
        decode_first_handle(bytes).is_ok(),
        decode_random(bytes, 32).is_ok(),
        decode_start_session(bytes).is_ok(),
        decode_created_with_password(bytes).is_ok(),
        decode_read_public(bytes).is_ok(),
        decode_quote(bytes).is_ok(),
        decode_certify(bytes).is_ok(),
        decode_created(Reader::new(bytes)).is_ok(),
        decode_hmac(Reader::new(bytes)).is_ok(),
        QuoteAttest::parse(bytes).is_ok(),
        CertifyAttest::parse(bytes).is_ok(),
        parse_ecdsa(bytes).is_ok(),
        Template::session_salt().unwrap().check(bytes).is_ok(),
        Template::sealing_root(&[0; 32]).unwrap().check(bytes).is_ok(),
    ];
    std::hint::black_box(outcomes);
}

/// Commands and responses of a whole life: set-up, measuring, quote.
fn captured() -> &'static Vec<(Vec<u8>, Vec<u8>)> {
    static CAPTURED: OnceLock<Vec<(Vec<u8>, Vec<u8>)>> = OnceLock::new();
    CAPTURED.get_or_init(|| {
        let mut tap = Tap::new(launched());
        let banks = measure::read_banks(&mut tap).unwrap();
        measure::read_all(&mut tap, &banks, PcrIndex::DRTM_CODE, |_, _| {}).unwrap();
        let keys = set_up(&mut tap, &setup(IMAGE)).unwrap();
        let mut job = QuoteJob::new();
        job.start([1; 32], [3; 32]).unwrap();
        while job.poll(&mut tap, &keys.ak) == QuotePoll::Pending {}
        tap.heard
    })
}

#[derive(Clone, Debug)]
enum Change {
    Keep,
    Flip(usize, u8),
    Cut(usize),
    Append(Vec<u8>),
    Replace(Vec<u8>),
    /// Bytes that matter: lengths and counts at their limits, with a header that fits.
    Word(usize, u32),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let length = bytes.len().max(1);
        match self {
            Self::Keep => {}
            Self::Flip(at, bits) => {
                bytes.iter_mut().skip(at % length).take(1).for_each(|byte| *byte ^= bits);
            }
            Self::Cut(at) => bytes.truncate(at % length),
            Self::Append(more) => bytes.extend(more),
            Self::Replace(other) => bytes.clone_from(other),
            Self::Word(at, word) => {
                let start = at % length;
                bytes.iter_mut().skip(start).zip(word.to_be_bytes()).for_each(|(to, from)| *to = from);
            }
        }
    }
}

fn fit_header(bytes: &mut [u8]) {
    let size = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    bytes.iter_mut().skip(2).zip(size).for_each(|(to, from)| *to = from);
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => Just(Change::Keep),
        2 => (any::<usize>(), 1..=255u8).prop_map(|(at, bits)| Change::Flip(at, bits)),
        1 => any::<usize>().prop_map(Change::Cut),
        1 => prop::collection::vec(any::<u8>(), 1..40).prop_map(Change::Append),
        1 => prop::collection::vec(any::<u8>(), 0..200).prop_map(Change::Replace),
        1 => (any::<usize>(), prop_oneof![Just(0), Just(u32::MAX), Just(0xffff), Just(16), Just(17), any::<u32>()])
            .prop_map(|(at, word)| Change::Word(at, word)),
    ]
}

/// Plays recorded responses back, one after the other, each with its change; then it is gone.
struct Player {
    changes: Vec<(Change, bool)>,
    next: usize,
    script: Vec<Vec<u8>>,
}

impl Player {
    fn answer(&mut self, response: &mut [u8]) -> Result<usize, TransportError> {
        let mut bytes = self.script.get(self.next).ok_or(TransportError::Disconnected)?.clone();
        let (change, fits) = self.changes.get(self.next).cloned().unwrap_or((Change::Keep, false));
        self.next += 1;
        change.apply(&mut bytes);
        if fits {
            fit_header(&mut bytes);
        }
        response.get_mut(..bytes.len()).ok_or(TransportError::TrailingData)?.copy_from_slice(&bytes);
        Ok(bytes.len())
    }
}

impl Transport for Player {
    fn transmit(&mut self, _: &[u8], response: &mut [u8]) -> Result<usize, TransportError> {
        self.answer(response)
    }
}

impl PolledTransport for Player {
    fn start(&mut self, _: &[u8]) -> Result<(), TransportError> {
        Ok(())
    }

    fn poll(&mut self, _: &[u8], response: &mut [u8]) -> Result<Option<usize>, TransportError> {
        self.answer(response).map(Some)
    }

    fn abort(&mut self) {}
}

proptest! {
    #![proptest_config(Config { cases: 1000, failure_persistence: None, ..Config::default() })]

    #[test]
    fn random_bytes_break_no_decoder(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        decode_all(&bytes);
        let mut fitted = bytes;
        fit_header(&mut fitted);
        decode_all(&fitted);
    }

    #[test]
    fn changed_responses_of_a_real_tpm_break_no_decoder(pick in any::<usize>(), change in change(), fits in any::<bool>()) {
        let all = captured();
        let mut bytes = all[pick % all.len()].1.clone();
        change.apply(&mut bytes);
        if fits {
            fit_header(&mut bytes);
        }
        decode_all(&bytes);
    }

    #[test]
    fn no_recording_however_changed_sets_up_keys(changes in prop::collection::vec((change(), any::<bool>()), 1..24)) {
        let script = captured().iter().skip(5).map(|(_, response)| response.clone()).collect();
        let mut player = Player { changes, next: 0, script };
        // The salt is fresh, so a recorded session never fits. Other entropy makes it another launch.
        let other = dolmen_tpm::keys::Setup { cpu_entropy: &[0xc3; 32], ..setup(IMAGE) };
        proptest::prop_assert!(set_up(&mut player, &other).is_err());
    }

    #[test]
    fn a_quote_job_ends_whatever_it_is_told(changes in prop::collection::vec((change(), any::<bool>()), 1..12), extra in any::<[u8; 32]>()) {
        let keys = quoting_keys();
        let start = captured().len() - 4;
        let script = captured()[start..].iter().map(|(_, response)| response.clone()).collect();
        let mut player = Player { changes, next: 0, script };
        let mut job = QuoteJob::new();
        job.start(extra, [3; 32]).unwrap();
        let end = (0..50).map(|_| job.poll(&mut player, keys)).find(|poll| *poll != QuotePoll::Pending);
        proptest::prop_assert!(matches!(end, Some(QuotePoll::Failed(_))), "{:?}", end);
    }

    #[test]
    fn a_bus_that_delivers_anything_ends_each_command(answer in prop::collection::vec(any::<u8>(), 10..100), burst in 1..70u16) {
        let mut model = TisModel::new(Canned(answer), |_, _| {});
        model.burst = burst;
        let mut tis = Tis::new(model, Locality::Two);
        tis.claim().unwrap();
        let mut response = [0; 80];
        if let Ok(size) = tis.transmit(&[0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0x7b], &mut response) {
            proptest::prop_assert!(size <= response.len());
            decode_all(&response[..size]);
        }
    }
}

/// A key whose TPM is gone: only its public part matters.
fn quoting_keys() -> &'static dolmen_tpm::attestation::AttestationKey {
    static KEY: OnceLock<dolmen_tpm::attestation::AttestationKey> = OnceLock::new();
    KEY.get_or_init(|| set_up(&mut launched(), &setup(IMAGE)).unwrap().ak)
}
