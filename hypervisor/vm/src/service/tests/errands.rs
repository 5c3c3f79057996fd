use super::*;
use crate::service::desk::serve_waiting;
use crate::service::errand::{Errand, Found};
use dolmen_abi::{
    ActivateRequest, AkId, CertifyReply, CertifyRequest, ChainRequest, EkId, HostQuoteReply,
    HostQuoteRequest, KeyRequest, TpmFailure,
};

fn key(key: u32) -> Vec<u8> {
    KeyRequest { key, reserved: 0 }.as_bytes().to_vec()
}

fn host_quote() -> HostQuoteRequest {
    let mut request =
        HostQuoteRequest { key: 3, pcrs: 1 << 17, nonce_length: 5, reserved: 0, nonce: [0; 64] };
    request.nonce[..5].copy_from_slice(b"nonce");
    request
}

fn certify() -> CertifyRequest {
    let mut request = CertifyRequest { key: 3, nonce_length: 5, nonce: [0; 64] };
    request.nonce[..5].copy_from_slice(b"nonce");
    request
}

/// Repeats a request until the answer is another than AGAIN.
fn repeat<C: Call>(rig: &mut Rig, request: &[u8]) -> (Status, Vec<u8>) {
    for _ in 0..20 {
        let answer = rig.bytes::<C>(request);
        if answer.0 != Status::AGAIN {
            return answer;
        }
    }
    panic!("no answer after 20 calls");
}

#[test]
fn a_quote_about_the_host_has_nonce_and_values() {
    let (status, reply) = repeat::<HostQuote>(&mut Rig::new(), host_quote().as_bytes());
    assert_eq!(status, Status::OK);
    let reply = HostQuoteReply::read_from_bytes(&reply).unwrap();
    assert_eq!((&reply.attest[..5], reply.attest_length), (&b"nonce"[..], 5));
    assert_eq!((reply.values[17], reply.values[18]), ([17; 32], [0; 32]));
}

#[test]
fn a_key_attests_itself_over_the_nonce() {
    let (status, reply) = repeat::<Certify>(&mut Rig::new(), certify().as_bytes());
    assert_eq!(status, Status::OK);
    let reply = CertifyReply::read_from_bytes(&reply).unwrap();
    assert_eq!((&reply.attest[..6], reply.attest_length), (&b"nonce\0"[..], 5));
    assert_eq!((reply.signature[71], reply.signature[72], reply.signature_length), (0xa5, 0, 72));
}

#[test]
fn a_key_that_binds_guests_attests_nothing_for_anybody() {
    let mut rig = Rig::new();
    let good = certify();
    let mut padded = good;
    padded.nonce[5] = 1;
    for (request, want) in [
        (CertifyRequest { key: AkId::GUEST_ECDSA.0, ..good }, Status::BAD_ARGUMENT),
        (CertifyRequest { key: AkId::GUEST_RSA.0, ..good }, Status::BAD_ARGUMENT),
        (CertifyRequest { key: 4, ..good }, Status::BAD_ARGUMENT),
        (CertifyRequest { nonce_length: 65, ..good }, Status::BAD_ARGUMENT),
        (CertifyRequest { nonce_length: u32::MAX, ..good }, Status::BAD_ARGUMENT),
        (padded, Status::RESERVED_NOT_ZERO),
    ] {
        assert_eq!(rig.refused::<Certify>(request.as_bytes()), want, "{request:?}");
    }
    assert_eq!(rig.tpm.errands_started, 0);
    // Nor does a guest that may bind itself, but not speak of the host.
    let mut rig = Rig::with(ServiceConfig { groups: CallGroup::all() - CallGroup::HOST_QUOTE, ..config() });
    assert_eq!(rig.refused::<Certify>(good.as_bytes()), Status::NOT_PERMITTED);
}

#[test]
fn requests_that_no_version_defines_are_refused_and_nothing_is_started() {
    let mut rig = Rig::new();
    let good = host_quote();
    let mut padded = good;
    padded.nonce[63] = 1;
    for (request, want) in [
        (HostQuoteRequest { key: AkId::GUEST_ECDSA.0, ..good }, Status::BAD_ARGUMENT),
        (HostQuoteRequest { key: AkId::GUEST_RSA.0, ..good }, Status::BAD_ARGUMENT),
        (HostQuoteRequest { key: 4, ..good }, Status::BAD_ARGUMENT),
        (HostQuoteRequest { pcrs: 0, ..good }, Status::BAD_ARGUMENT),
        (HostQuoteRequest { pcrs: 1 << 24, ..good }, Status::BAD_ARGUMENT),
        (HostQuoteRequest { nonce_length: 65, ..good }, Status::BAD_ARGUMENT),
        (HostQuoteRequest { nonce_length: 4, ..good }, Status::RESERVED_NOT_ZERO),
        (HostQuoteRequest { reserved: 1, ..good }, Status::RESERVED_NOT_ZERO),
        (padded, Status::RESERVED_NOT_ZERO),
    ] {
        assert_eq!(rig.refused::<HostQuote>(request.as_bytes()), want, "{request:?}");
    }
    assert_eq!(rig.refused::<KeyPublic>(&key(4)), Status::BAD_ARGUMENT);
    assert_eq!(rig.refused::<EndorsementKey>(&key(2)), Status::BAD_ARGUMENT);
    assert_eq!(rig.refused::<EkCertificate>(&key(u32::MAX)), Status::BAD_ARGUMENT);
    for (part, reserved, want) in [(256, 0, Status::BAD_ARGUMENT), (0, 1, Status::RESERVED_NOT_ZERO)] {
        assert_eq!(rig.refused::<EkChain>(ChainRequest { part, reserved }.as_bytes()), want);
    }
    let request = ActivateRequest { key: 0, ek: 0, credential_length: 1, secret_length: 1 };
    assert_eq!(rig.refused::<ActivateCredential>(request.as_bytes()), Status::BAD_LENGTH);
    let longer = [request.as_bytes(), &[0; 3]].concat();
    assert_eq!(rig.refused::<ActivateCredential>(&longer), Status::BAD_LENGTH);
    assert_eq!(rig.tpm.errands_started, 0);
}

#[test]
#[cfg_attr(miri, ignore = "takes too long in the interpreter")]
fn keys_certificates_and_credentials_come_as_the_tpm_gives_them() {
    let mut rig = Rig::new();
    assert_eq!(repeat::<KeyPublic>(&mut rig, &key(AkId::GUEST_RSA.0)), (Status::OK, b"k\x01".to_vec()));
    assert_eq!(repeat::<EndorsementKey>(&mut rig, &key(EkId::ECC.0)), (Status::OK, b"e\x01".to_vec()));
    assert_eq!(repeat::<EkCertificate>(&mut rig, &key(EkId::RSA.0)), (Status::OK, b"a certificate".to_vec()));
    let request = ActivateRequest { key: 1, ek: 0, credential_length: 6, secret_length: 2 };
    let request = [request.as_bytes(), b"sealedxx"].concat();
    assert_eq!(repeat::<ActivateCredential>(&mut rig, &request), (Status::OK, b"sealed".to_vec()));
}

#[test]
fn a_certificate_that_is_not_there_has_a_status_of_its_own() {
    let mut rig = Rig::new();
    assert_eq!(repeat::<EkCertificate>(&mut rig, &key(EkId::ECC.0)), (Status::NO_CERTIFICATE, Vec::new()));
    let part = |part| ChainRequest { part, reserved: 0 }.as_bytes().to_vec();
    assert_eq!(repeat::<EkChain>(&mut rig, &part(1)), (Status::OK, b"c\x01".to_vec()));
    assert_eq!(repeat::<EkChain>(&mut rig, &part(255)), (Status::NO_CERTIFICATE, Vec::new()));
    // The place is free again.
    assert_eq!(rig.bytes::<KeyPublic>(&key(0)).0, Status::AGAIN);
}

#[test]
fn without_a_launch_there_are_no_keys() {
    let facts = LaunchFacts::UNMEASURED;
    let mut rig = Rig::with(ServiceConfig { facts, ..config() });
    assert_eq!(rig.refused::<KeyPublic>(&key(0)), Status::NOT_LAUNCHED);
    assert_eq!(rig.refused::<HostQuote>(host_quote().as_bytes()), Status::NOT_LAUNCHED);
    assert_eq!(rig.refused::<Certify>(certify().as_bytes()), Status::NOT_LAUNCHED);
}

#[test]
fn the_tpms_refusal_reaches_the_guest_once() {
    let mut rig = Rig::new();
    rig.tpm.failure = 0x921;
    let (status, reply) = repeat::<EndorsementKey>(&mut rig, &key(0));
    assert_eq!(status, Status::TPM_FAILED);
    assert_eq!(TpmFailure::read_from_bytes(&reply).unwrap().response_code, 0x921);
    rig.tpm.failure = 0;
    assert_eq!(repeat::<EndorsementKey>(&mut rig, &key(0)).0, Status::OK);
}

#[test]
fn an_answer_is_kept_until_it_is_delivered() {
    let mut rig = Rig::new();
    assert_eq!(rig.bytes::<KeyPublic>(&key(0)).0, Status::AGAIN);
    let args = CallArgs { rdi: REQUEST, rsi: 8, rdx: REPLY, rcx: 1 };
    for _ in 0..5 {
        let (status, length) = rig.raw(KeyPublic::NUMBER, args);
        assert!(matches!(status, Status::AGAIN | Status::REPLY_TOO_SMALL) && length == 0, "{status}");
    }
    assert_eq!(repeat::<KeyPublic>(&mut rig, &key(0)).0, Status::OK);
    assert_eq!(rig.tpm.errands_started, 1);
}

/// Lets one guest of a machine call.
fn call_as(rig: &mut Rig, tpm: &mut Box<FakeTpm>, request: &[u8]) -> Status {
    core::mem::swap(&mut rig.tpm, tpm);
    let answer = rig.bytes::<KeyPublic>(request).0;
    core::mem::swap(&mut rig.tpm, tpm);
    answer
}

/// What a neighbour's call on another processor does.
fn neighbour_asks(tpm: &mut FakeTpm) {
    let (errand, now_ms) = (Errand::KeyPublic(AkId::HOST_RSA), tpm.now_ms);
    if tpm.errands().look(slot(1), &errand, now_ms) == Found::Free && tpm.errands().submit(slot(1), errand) {
        serve_waiting(tpm);
    }
}

#[test]
fn a_neighbour_that_asks_at_the_same_time_takes_nothing_away() {
    let mut rig = Rig::new();
    rig.tpm.interference = Some(neighbour_asks);
    assert_eq!(rig.bytes::<KeyPublic>(&key(0)).0, Status::AGAIN);
    assert!(rig.tpm.interference.is_none());
    assert_eq!(repeat::<KeyPublic>(&mut rig, &key(0)), (Status::OK, b"k\0".to_vec()));
}

#[test]
fn an_answer_is_its_owners_even_if_a_neighbour_takes_the_place_meanwhile() {
    let mut rig = Rig::new();
    rig.tpm.delay = 0;
    assert_eq!(rig.bytes::<KeyPublic>(&key(0)).0, Status::AGAIN);
    serve_waiting(&mut *rig.tpm);
    neighbour_asks(&mut rig.tpm);
    rig.tpm.now_ms += 2_000;
    rig.tpm.interference = Some(neighbour_asks);
    assert_eq!(rig.bytes::<KeyPublic>(&key(0)), (Status::OK, b"k\0".to_vec()));
    assert!(rig.tpm.interference.is_none());
}

#[test]
fn an_answer_that_nobody_fetches_blocks_others_for_two_seconds_and_no_longer() {
    let mut rigs: Vec<Rig> =
        (0..2).map(|index| Rig::with(ServiceConfig { slot: slot(index), ..config() })).collect();
    let mut tpm = Box::<FakeTpm>::default();
    assert_eq!(call_as(&mut rigs[0], &mut tpm, &key(0)), Status::AGAIN);
    for _ in 0..10 {
        assert_eq!(call_as(&mut rigs[1], &mut tpm, &key(0)), Status::BUSY);
    }
    tpm.now_ms += 1_999;
    assert_eq!(call_as(&mut rigs[1], &mut tpm, &key(0)), Status::BUSY);
    tpm.now_ms += 1;
    assert_eq!(call_as(&mut rigs[1], &mut tpm, &key(0)), Status::AGAIN);
    assert_eq!(call_as(&mut rigs[0], &mut tpm, &key(0)), Status::BUSY);
}

#[test]
#[cfg_attr(miri, ignore = "takes too long in the interpreter")]
fn who_asks_all_the_time_leaves_the_place_to_others() {
    let mut rigs: Vec<Rig> =
        (0..2).map(|index| Rig::with(ServiceConfig { slot: slot(index), ..config() })).collect();
    let mut tpm = Box::<FakeTpm>::default();
    tpm.delay = 0;
    let served = (0..100).filter(|_| call_as(&mut rigs[0], &mut tpm, &key(0)) == Status::OK).count();
    assert_eq!(served, 8);
    let answers: Vec<Status> = (0..3).map(|_| call_as(&mut rigs[1], &mut tpm, &key(0))).collect();
    assert!(answers.contains(&Status::OK), "{answers:?}");
}

#[test]
#[cfg_attr(miri, ignore = "takes too long in the interpreter")]
fn a_guest_that_ends_in_the_middle_leaves_the_place_when_the_tpm_is_done() {
    let mut rig = Rig::new();
    assert_eq!(rig.bytes::<KeyPublic>(&key(0)).0, Status::AGAIN);
    rig.service.restart(&mut *rig.tpm);
    assert_eq!(rig.refused::<KeyPublic>(&key(1)), Status::BUSY);
    let answers: Vec<Status> = (0..8).map(|_| rig.bytes::<KeyPublic>(&key(1)).0).collect();
    assert!(answers.contains(&Status::OK), "{answers:?}");
}
