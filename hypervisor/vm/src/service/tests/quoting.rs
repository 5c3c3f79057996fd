use super::super::desk;
use super::super::fake::ATTEST_HEAD;
use super::*;
use dolmen_abi::{Binding, ExtendRequest, QuoteReply, QuoteRequest, TpmFailure, merkle};
use proptest::prelude::*;

fn request(fill: u8) -> Vec<u8> {
    QuoteRequest { flags: 0, reserved: 0, report_data: [fill; 64] }.as_bytes().to_vec()
}

/// The binding of a guest with the test's configuration, but for registers and report data.
fn binding_of_config() -> Binding {
    let (name, facts) = (config().name, config().facts.bits());
    Binding { name, facts, reserved: 0, registers: [[0; 48]; 8], report_data: [0; 64] }
}

/// Repeats a request until the answer is another than AGAIN.
fn repeat(rig: &mut Rig, request: &[u8]) -> (Status, Vec<u8>) {
    for _ in 0..20 {
        let answer = rig.bytes::<Quote>(request);
        if answer.0 != Status::AGAIN {
            return answer;
        }
    }
    panic!("no answer after 20 calls");
}

fn quoted(answer: (Status, Vec<u8>)) -> QuoteReply {
    assert_eq!(answer.0, Status::OK);
    QuoteReply::read_from_bytes(&answer.1).unwrap()
}

/// The root that the fake TPM was asked to sign.
fn signed_root(reply: &QuoteReply) -> [u8; 32] {
    assert_eq!((reply.attest_length, reply.signature_length), (ATTEST_HEAD as u32 + 32, 72));
    reply.attest[ATTEST_HEAD..ATTEST_HEAD + 32].try_into().unwrap()
}

fn root_of(reply: &QuoteReply) -> [u8; 32] {
    let path = &reply.path[..reply.path_length as usize];
    merkle::root(desk::leaf(&reply.binding), reply.index, reply.count, path, desk::node).unwrap()
}

#[test]
fn a_quote_takes_repeated_calls_and_binds_the_guest() {
    let mut rig = Rig::new();
    let extend = ExtendRequest { index: 5, reserved: 0, digest: [3; 48] };
    assert_eq!(rig.bytes::<Extend>(extend.as_bytes()).0, Status::OK);
    assert_eq!(rig.bytes::<Quote>(&request(9)), (Status::AGAIN, Vec::new()));
    assert_eq!(rig.bytes::<Quote>(&request(9)), (Status::AGAIN, Vec::new()));
    let reply = quoted(repeat(&mut rig, &request(9)));
    let registers = *rig.service.registers();
    let want = Binding { registers, report_data: [9; 64], ..binding_of_config() };
    assert_eq!(reply.binding, want);
    assert_eq!((reply.index, reply.count, reply.path_length), (0, 1, 0));
    assert_eq!(signed_root(&reply), desk::leaf(&want));
    assert_eq!(rig.tpm.started, 1);
}

#[test]
fn the_leaf_is_the_documented_hash() {
    use sha2::{Digest, Sha256};
    let mut rig = Rig::new();
    let reply = quoted(repeat(&mut rig, &request(1)));
    let input = [&[0], b"dolmen-quote-1".as_slice(), reply.binding.as_bytes()].concat();
    assert_eq!(input.len(), 503);
    assert_eq!(signed_root(&reply), <[u8; 32]>::from(Sha256::digest(input)));
}

#[test]
fn malformed_requests_are_refused_and_nothing_is_started() {
    let mut rig = Rig::new();
    let flagged = QuoteRequest { flags: 2, reserved: 0, report_data: [0; 64] };
    let reserved = QuoteRequest { flags: 0, reserved: 1, report_data: [0; 64] };
    assert_eq!(rig.refused::<Quote>(flagged.as_bytes()), Status::BAD_FLAGS);
    assert_eq!(rig.refused::<Quote>(reserved.as_bytes()), Status::RESERVED_NOT_ZERO);
    assert_eq!(rig.tpm.started, 0);
}

#[test]
fn a_finished_quote_is_not_lost_to_a_bad_reply_buffer() {
    let mut rig = Rig::new();
    assert_eq!(rig.bytes::<Quote>(&request(9)).0, Status::AGAIN);
    let args = CallArgs { rdi: REQUEST, rsi: 72, rdx: 0x1_0000, rcx: 0x6000 };
    for _ in 0..5 {
        assert_eq!(rig.raw(Quote::NUMBER, args), (Status::BAD_REPLY_ADDRESS, 0));
    }
    assert_eq!(repeat(&mut rig, &request(9)).0, Status::OK);
    assert_eq!(rig.tpm.started, 1);
}

#[test]
fn another_request_waits_for_the_one_in_flight() {
    let mut rig = Rig::new();
    assert_eq!(rig.bytes::<Quote>(&request(1)).0, Status::AGAIN);
    assert_eq!(rig.refused::<Quote>(&request(2)), Status::BUSY);
    // The first was given up: once it is done, the second takes its place.
    let answers: Vec<Status> = (0..6).map(|_| rig.bytes::<Quote>(&request(2)).0).collect();
    assert_eq!(
        answers,
        [Status::BUSY, Status::AGAIN, Status::AGAIN, Status::AGAIN, Status::OK, Status::AGAIN]
    );
}

#[test]
fn a_request_repeated_after_an_extend_is_another_request() {
    let mut rig = Rig::new();
    assert_eq!(rig.bytes::<Quote>(&request(1)).0, Status::AGAIN);
    let extend = ExtendRequest { index: 1, reserved: 0, digest: [3; 48] };
    assert_eq!(rig.bytes::<Extend>(extend.as_bytes()).0, Status::OK);
    assert_eq!(rig.refused::<Quote>(&request(1)), Status::BUSY);
}

#[test]
#[cfg_attr(miri, ignore = "takes too long in the interpreter")]
fn each_quote_is_fresh() {
    let mut rig = Rig::new();
    for started in 1..4 {
        assert_eq!(repeat(&mut rig, &request(1)).0, Status::OK);
        assert_eq!(rig.tpm.started, started);
    }
}

#[test]
fn the_tpms_response_code_reaches_the_guest_once() {
    let mut rig = Rig::new();
    rig.tpm.failure = 0x922;
    let (status, reply) = repeat(&mut rig, &request(1));
    assert_eq!(status, Status::TPM_FAILED);
    assert_eq!(
        TpmFailure::read_from_bytes(&reply).unwrap(),
        TpmFailure { response_code: 0x922, reserved: 0 }
    );
    rig.tpm.failure = 0;
    assert_eq!(repeat(&mut rig, &request(1)).0, Status::OK);
}

#[test]
fn a_busy_tpm_is_asked_again() {
    let mut rig = Rig::new();
    rig.tpm.is_free = false;
    for _ in 0..5 {
        assert_eq!(rig.bytes::<Quote>(&request(1)), (Status::AGAIN, Vec::new()));
    }
    assert!(rig.tpm.desk().is_busy());
    rig.tpm.is_free = true;
    assert_eq!(repeat(&mut rig, &request(1)).0, Status::OK);
    assert!(!rig.tpm.desk().is_busy());
}

#[test]
#[cfg_attr(miri, ignore = "minutes of hashing; the other tests run the same code")]
fn asking_too_often_is_answered_with_busy_until_time_passes() {
    let mut rig = Rig::new();
    rig.tpm.delay = 0;
    let served = (0..20).filter(|_| repeat(&mut rig, &request(1)).0 == Status::OK).count();
    assert_eq!((served, rig.tpm.started), (8, 8));
    rig.tpm.now_ms += 250;
    let served = (0..20).filter(|_| repeat(&mut rig, &request(1)).0 == Status::OK).count();
    assert_eq!(served, 2);
}

/// Guests of one machine: each its own service and memory, one TPM.
fn machine(guests: usize) -> (Vec<Rig>, Box<FakeTpm>) {
    let rigs = (0..guests).map(|index| Rig::with(ServiceConfig { slot: slot(index), ..config() }));
    (rigs.collect(), Box::default())
}

/// Lets one guest of the machine call.
fn call_as(rig: &mut Rig, tpm: &mut Box<FakeTpm>, request: &[u8]) -> (Status, Vec<u8>) {
    core::mem::swap(&mut rig.tpm, tpm);
    let answer = rig.bytes::<Quote>(request);
    core::mem::swap(&mut rig.tpm, tpm);
    answer
}

#[test]
#[cfg_attr(miri, ignore = "minutes of hashing; the other tests run the same code")]
fn all_that_wait_share_the_next_quote() {
    let (mut rigs, mut tpm) = machine(32);
    tpm.delay = 100;
    assert_eq!(call_as(&mut rigs[0], &mut tpm, &request(0)).0, Status::AGAIN);
    for (n, rig) in rigs.iter_mut().enumerate().skip(1) {
        assert_eq!(call_as(rig, &mut tpm, &request(n as u8)).0, Status::AGAIN, "guest {n}");
    }
    assert_eq!(tpm.started, 1);
    let mut open: Vec<usize> = (0..32).collect();
    for _ in 0..400 {
        open.retain(|n| {
            let (status, reply) = call_as(&mut rigs[*n], &mut tpm, &request(*n as u8));
            if status == Status::AGAIN {
                return true;
            }
            let reply = quoted((status, reply));
            assert_eq!(reply.binding.report_data, [*n as u8; 64]);
            assert_eq!(root_of(&reply), signed_root(&reply), "guest {n}");
            assert_eq!(reply.count, if *n == 0 { 1 } else { 31 });
            false
        });
    }
    assert!(open.is_empty(), "{open:?} have no quote");
    assert_eq!(tpm.started, 2);
}

#[test]
#[cfg_attr(miri, ignore = "takes too long in the interpreter")]
fn requests_for_different_keys_are_in_different_quotes_and_both_have_their_turn() {
    use dolmen_abi::AkId;
    let (mut rigs, mut tpm) = machine(4);
    tpm.is_free = false;
    let request = |rsa: bool, fill: u8| {
        let flags = if rsa { QuoteRequest::RSA } else { 0 };
        QuoteRequest { flags, reserved: 0, report_data: [fill; 64] }.as_bytes().to_vec()
    };
    let wanted: Vec<Vec<u8>> = (0..4).map(|n| request(n % 2 == 1, n)).collect();
    for (rig, wanted) in rigs.iter_mut().zip(&wanted) {
        assert_eq!(call_as(rig, &mut tpm, wanted).0, Status::AGAIN);
    }
    tpm.is_free = true;
    let mut keys = Vec::new();
    let mut open: Vec<usize> = (0..4).collect();
    for _ in 0..20 {
        open.retain(|n| {
            let (status, reply) = call_as(&mut rigs[*n], &mut tpm, &wanted[*n]);
            if tpm.in_flight.is_some() && keys.last() != Some(&tpm.key) {
                keys.push(tpm.key);
            }
            if status == Status::AGAIN {
                return true;
            }
            let reply = quoted((status, reply));
            assert_eq!((root_of(&reply), reply.count), (signed_root(&reply), 2), "guest {n}");
            false
        });
    }
    assert!(open.is_empty(), "{open:?} have no quote");
    assert_eq!(keys, [AkId::GUEST_ECDSA, AkId::GUEST_RSA]);
}

#[test]
fn the_same_request_for_another_key_is_another_request() {
    let mut rig = Rig::new();
    assert_eq!(rig.bytes::<Quote>(&request(1)).0, Status::AGAIN);
    let other = QuoteRequest { flags: QuoteRequest::RSA, reserved: 0, report_data: [1; 64] };
    assert_eq!(rig.refused::<Quote>(other.as_bytes()), Status::BUSY);
}

#[test]
fn an_inner_node_is_the_documented_hash() {
    use sha2::{Digest, Sha256};
    let (mut rigs, mut tpm) = machine(2);
    tpm.is_free = false;
    for rig in &mut rigs {
        assert_eq!(call_as(rig, &mut tpm, &request(1)).0, Status::AGAIN);
    }
    tpm.is_free = true;
    assert_eq!(call_as(&mut rigs[0], &mut tpm, &request(1)).0, Status::AGAIN);
    let leaf = |data: [u8; 64]| {
        let binding =
            Binding { report_data: data, registers: *rigs[0].service.registers(), ..binding_of_config() };
        Sha256::digest([&[0], b"dolmen-quote-1".as_slice(), binding.as_bytes()].concat())
    };
    let node = Sha256::digest([&[1], leaf([1; 64]).as_slice(), leaf([1; 64]).as_slice()].concat());
    assert_eq!(tpm.in_flight, Some(node.into()));
}

#[test]
fn a_delivered_quote_is_forgotten() {
    let mut rig = Rig::new();
    assert_eq!(repeat(&mut rig, &request(1)).0, Status::OK);
    let slot = rig.tpm.desk().slot(slot(0));
    assert_eq!((slot.progress, slot.quote.attest().len()), (desk::Progress::Free, 0));
}

#[test]
#[cfg_attr(miri, ignore = "minutes of hashing; the other tests run the same code")]
fn a_guest_that_never_collects_delays_nobody() {
    let (mut rigs, mut tpm) = machine(2);
    assert_eq!(call_as(&mut rigs[0], &mut tpm, &request(0)).0, Status::AGAIN);
    for round in 0..5 {
        let answers: Vec<Status> = (0..8).map(|_| call_as(&mut rigs[1], &mut tpm, &request(1)).0).collect();
        assert!(answers.contains(&Status::OK), "round {round}: {answers:?}");
    }
    assert_eq!(call_as(&mut rigs[0], &mut tpm, &request(0)).0, Status::OK);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(64)))]

    #[test]
    #[cfg_attr(miri, ignore = "minutes of it; the other tests run the same code")]
    fn every_quote_leads_to_its_root_whoever_asks_when(
        steps in proptest::collection::vec((0usize..9, 0u8..3), 1..200), delay in 0u32..12,
    ) {
        let (mut rigs, mut tpm) = machine(9);
        tpm.delay = delay;
        for (guest, fill) in steps {
            tpm.now_ms += 40;
            let (status, reply) = call_as(&mut rigs[guest], &mut tpm, &request(fill));
            match status {
                Status::AGAIN | Status::BUSY => prop_assert!(reply.is_empty()),
                _ => {
                    let reply = quoted((status, reply));
                    prop_assert_eq!(reply.binding.report_data, [fill; 64]);
                    prop_assert_eq!(root_of(&reply), signed_root(&reply));
                }
            }
        }
    }
}
