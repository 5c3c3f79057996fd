//! Quotes of a real TPM: stock tools take ours, and nothing but ours is handed out.

use std::process::Command;

use dolmen_tpm::attest::QuoteAttest;
use dolmen_tpm::command::PcrIndex;
use dolmen_tpm::constant::{ResponseCode, alg, cc};
use dolmen_tpm::keys::{Keys, set_up};
use dolmen_tpm::quote::{Busy, Quote, QuoteError, QuoteJob, QuotePoll};
use dolmen_tpm::{PolledTransport, TpmError, TransportError, measure};

use crate::keys::{IMAGE, launched, quote, setup, sha256};
use crate::swtpm::Swtpm;
use crate::tap::{Tap, code_of, refusal};

fn done(poll: QuotePoll) -> Quote {
    match poll {
        QuotePoll::Done(quote) => quote,
        other => panic!("no quote: {other:?}"),
    }
}

/// Turns a quote job over `tpm` until it ends.
fn drive(tpm: &mut impl PolledTransport, keys: &Keys, extra_data: [u8; 32]) -> QuotePoll {
    let mut job = QuoteJob::new();
    job.start(extra_data, [3; 32]).unwrap();
    for _ in 0..100 {
        match job.poll(tpm, &keys.ak) {
            QuotePoll::Pending => {}
            end => {
                assert!(!job.is_busy());
                return end;
            }
        }
    }
    panic!("the job does not end")
}

/// A launched TPM with keys, and a tap on its bus from now on.
fn tapped(code: u32, forge: impl FnMut(&mut Vec<u8>) + 'static) -> (Tap, Keys) {
    let mut tpm = launched();
    let keys = set_up(&mut tpm, &setup(IMAGE)).unwrap();
    (Tap::on(tpm, code, forge), keys)
}

#[test]
fn unmodified_tpm2_checkquote_accepts_the_quote_and_refuses_another_nonce() {
    let mut tpm = launched();
    let keys = set_up(&mut tpm, &setup(IMAGE)).unwrap();
    let quote = done(quote(&mut tpm, &keys, [0xab; 32]));
    let mut pcrs = Vec::new();
    for pcr in [PcrIndex::DRTM_CODE, PcrIndex::DRTM_CONFIGURATION] {
        pcrs.extend(measure::read_pcr(&mut tpm, alg::SHA256, pcr).unwrap().unwrap().bytes());
    }
    let public = keys.ak.public.bytes();
    let size = u16::try_from(public.len()).unwrap().to_be_bytes();
    let write = |name: &str, bytes: &[u8]| std::fs::write(tpm.folder().join(name), bytes).unwrap();
    write("ak", &[&size, public].concat());
    write("attest", quote.attest());
    write("signature", quote.signature());
    write("pcrs", &pcrs);
    let check = |nonce: &str| {
        Command::new("tpm2_checkquote")
            .current_dir(tpm.folder())
            .args(["-u", "ak", "-m", "attest", "-s", "signature", "-f", "pcrs", "-l", "sha256:17,18"])
            .args(["-g", "sha256", "-q", nonce])
            .output()
            .expect("tpm2_checkquote is missing: install the package tpm2-tools")
    };
    let right = check(&"ab".repeat(32));
    assert!(right.status.success(), "{}", String::from_utf8_lossy(&right.stderr));
    assert!(!check(&"ac".repeat(32)).status.success());
}

#[test]
fn a_quote_is_over_exactly_both_registers_and_the_extra_data() {
    let mut tpm = launched();
    let keys = set_up(&mut tpm, &setup(IMAGE)).unwrap();
    let quote = done(quote(&mut tpm, &keys, [0xab; 32]));
    let attest = QuoteAttest::parse(quote.attest()).unwrap();
    let values = [crate::keys::pcr17(IMAGE), [0; 32]].concat();
    assert_eq!(attest.pcr_digest, sha256(&[&values]));
    assert_eq!(attest.extra_data, [0xab; 32]);
    assert_eq!(attest.qualified_signer, keys.ak.qualified_name());
    assert_eq!(quote.signature().len(), 72);
}

#[test]
fn many_quotes_leave_nothing_behind_in_the_tpm() {
    let mut tpm = launched();
    let keys = set_up(&mut tpm, &setup(IMAGE)).unwrap();
    for round in 0..10 {
        done(quote(&mut tpm, &keys, [round; 32]));
    }
}

#[test]
fn one_quote_at_a_time() {
    let mut tpm = launched();
    let keys = set_up(&mut tpm, &setup(IMAGE)).unwrap();
    let mut job = QuoteJob::new();
    assert_eq!(job.poll(&mut tpm, &keys.ak), QuotePoll::Idle);
    assert_eq!(job.start([1; 32], [3; 32]), Ok(()));
    assert_eq!(job.start([2; 32], [3; 32]), Err(Busy));
    job.abort(&mut tpm);
    assert_eq!(job.start([2; 32], [3; 32]), Ok(()));
}

#[test]
fn a_register_that_changes_once_in_between_costs_a_second_try_and_no_more() {
    for (refusals, expected) in [(1, None), (2, Some(QuoteError::NotThisLaunch))] {
        let mut left = refusals;
        let (mut tap, keys) = tapped(cc::QUOTE, move |response| {
            if left > 0 {
                left -= 1;
                *response = refusal(0x128);
            }
        });
        let end = drive(&mut tap, &keys, [1; 32]);
        let error = if let QuotePoll::Failed(error) = end { Some(error) } else { None };
        assert_eq!(error, expected, "{refusals}");
    }
}

#[test]
fn a_real_extend_in_between_is_retried() {
    let mut tpm = launched();
    let keys = set_up(&mut tpm, &setup(IMAGE)).unwrap();
    let mut job = QuoteJob::new();
    job.start([1; 32], [3; 32]).unwrap();
    for _ in 0..2 {
        assert_eq!(job.poll(&mut tpm, &keys.ak), QuotePoll::Pending);
    }
    let zero = [0; 32];
    let digests = [dolmen_tpm::command::Digest::new(alg::SHA256, &zero).unwrap()];
    measure::extend_all(&mut tpm, PcrIndex::DRTM_CONFIGURATION, &digests).unwrap();
    let end = (0..20).map(|_| job.poll(&mut tpm, &keys.ak)).find(|poll| *poll != QuotePoll::Pending);
    assert!(matches!(end, Some(QuotePoll::Done(_))), "{end:?}");
}

#[test]
fn each_refusal_at_each_step_is_reported_with_its_code_and_the_session_is_freed() {
    for step in [cc::START_AUTH_SESSION, cc::POLICY_PCR, cc::POLICY_LOCALITY, cc::QUOTE] {
        for code in [0x101, 0x12f, 0x902, 0x903, 0x905, 0x907, 0x909, 0x921, 0x98e, 0x99d, 0x9a2] {
            let (mut tap, keys) = tapped(step, move |response| *response = refusal(code));
            let expected = QuoteError::Command(step, TpmError::Refused(ResponseCode(code)));
            assert_eq!(drive(&mut tap, &keys, [1; 32]), QuotePoll::Failed(expected), "{step:#x} {code:#x}");
            assert_eq!(expected.response_code(), code);
            let flushed = tap.heard.iter().any(|(command, _)| code_of(command) == cc::FLUSH_CONTEXT);
            assert_eq!(flushed, step != cc::START_AUTH_SESSION, "{step:#x} {code:#x}");
        }
    }
}

#[test]
fn a_replayed_quote_is_not_handed_out_for_another_question() {
    let mut old: Option<Vec<u8>> = None;
    let (mut tap, keys) = tapped(cc::QUOTE, move |response| match &old {
        None => old = Some(response.clone()),
        Some(recorded) => response.clone_from(recorded),
    });
    done(drive(&mut tap, &keys, [1; 32]));
    assert_eq!(drive(&mut tap, &keys, [2; 32]), QuotePoll::Failed(QuoteError::OtherAttestation));
}

#[test]
fn a_quote_by_another_tpm_and_one_with_a_forged_signature_are_not_handed_out() {
    let (mut other, keys) = tapped(0, |_| {});
    done(drive(&mut other, &keys, [1; 32]));
    let theirs = other.heard.into_iter().find(|(command, _)| code_of(command) == cc::QUOTE).unwrap().1;
    let (mut tap, keys) = tapped(cc::QUOTE, move |response| response.clone_from(&theirs));
    assert_eq!(drive(&mut tap, &keys, [1; 32]), QuotePoll::Failed(QuoteError::OtherAttestation));

    let (mut tap, keys) = tapped(cc::QUOTE, |response| {
        let inside_the_signature = response.len() - 45;
        response[inside_the_signature] ^= 1;
    });
    assert_eq!(drive(&mut tap, &keys, [1; 32]), QuotePoll::Failed(QuoteError::BadSignature));
}

#[test]
fn a_quote_over_other_registers_than_asked_for_is_not_handed_out() {
    let (mut tap, keys) = tapped(0, |_| {});
    tap.alter = |code, command| {
        if code == cc::QUOTE {
            *command.last_mut().unwrap() = 0x02; // PCR 17 alone
        }
    };
    assert_eq!(drive(&mut tap, &keys, [1; 32]), QuotePoll::Failed(QuoteError::OtherAttestation));
}

#[test]
fn no_byte_of_the_attestation_or_signature_can_be_changed() {
    let mut tpm = launched();
    let keys = set_up(&mut tpm, &setup(IMAGE)).unwrap();
    let mut tap = Tap::new(tpm);
    let quote = done(drive(&mut tap, &keys, [1; 32]));
    let length = quote.attest().len() + quote.signature().len();
    for index in (14..14 + 2 + length).step_by(3) {
        tap.forge = Box::new(move |code, response| {
            if code == cc::QUOTE {
                response[index] ^= 0x10;
            }
            Ok(())
        });
        let end = drive(&mut tap, &keys, [1; 32]);
        assert!(matches!(end, QuotePoll::Failed(_)), "byte {index}: {end:?}");
    }
}

#[test]
fn a_tpm_that_vanishes_fails_the_quote_and_the_next_one_works() {
    for step in [cc::START_AUTH_SESSION, cc::POLICY_PCR, cc::POLICY_LOCALITY, cc::QUOTE] {
        let mut tpm = launched();
        let keys = set_up(&mut tpm, &setup(IMAGE)).unwrap();
        let mut tap = Tap::new(tpm);
        tap.forge =
            Box::new(move |code, _| if code == step { Err(TransportError::Disconnected) } else { Ok(()) });
        let lost = QuoteError::Command(step, TpmError::Transport(TransportError::Disconnected));
        assert_eq!(drive(&mut tap, &keys, [1; 32]), QuotePoll::Failed(lost));
        tap.forge = Box::new(|_, _| Ok(()));
        done(drive(&mut tap, &keys, [1; 32]));
    }
}

/// A transport on which somebody else's command is in flight at first.
struct Shared {
    tpm: Swtpm,
    busy: u8,
}

impl PolledTransport for Shared {
    fn start(&mut self, command: &[u8]) -> Result<(), TransportError> {
        if self.busy > 0 {
            self.busy -= 1;
            return Err(TransportError::Busy);
        }
        self.tpm.start(command)
    }

    fn poll(&mut self, command: &[u8], response: &mut [u8]) -> Result<Option<usize>, TransportError> {
        self.tpm.poll(command, response)
    }

    fn abort(&mut self) {}
}

#[test]
fn a_quote_waits_its_turn_while_another_command_is_in_flight() {
    let mut tpm = launched();
    let keys = set_up(&mut tpm, &setup(IMAGE)).unwrap();
    let mut shared = Shared { tpm, busy: 5 };
    done(drive(&mut shared, &keys, [1; 32]));
    assert_eq!(shared.busy, 0);
}
