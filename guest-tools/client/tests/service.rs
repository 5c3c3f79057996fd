//! The client against the hypervisor's own service.
#![allow(clippy::arithmetic_side_effects, clippy::unwrap_used, reason = "tests may fail loudly")]

use dolmen_abi::evidence::Evidence;
use dolmen_abi::{GuestInfo, GuestState, MAX_SECRET, SEALED_OVERHEAD, SealPolicy, Status};
use dolmen_guest::loopback::Loopback;
use dolmen_guest::{Client, Error, GuestList, Transport};

fn client() -> Client<Loopback> {
    Client::new(Loopback::launched().unwrap())
}

#[test]
fn every_call_works_against_the_service() {
    let mut client = client();
    assert_eq!(client.version().unwrap().abi_version, dolmen_abi::ABI_VERSION);
    let (mut one, mut two) = ([0; 5000], [0; 5000]);
    client.random(&mut one).unwrap();
    client.random(&mut two).unwrap();
    assert_ne!(one, two);
    let value = client.extend(4, &[9; 48]).unwrap();
    assert_eq!(client.registers().unwrap()[4], value);
    let mut key = [0; 512];
    let length = client.ak_public(&mut key).unwrap();
    assert_eq!(&key[..length], b"the public part of a key");
}

#[test]
fn the_largest_secret_makes_the_way_there_and_back() {
    let mut client = client();
    let secret: Vec<u8> = (0..MAX_SECRET).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let mut blob = vec![0; MAX_SECRET + SEALED_OVERHEAD];
    let policy = SealPolicy::G0 | SealPolicy::G7;
    assert_eq!(client.seal(policy, b"label", &secret, &mut blob), Ok(blob.len()));
    let mut opened = vec![0; MAX_SECRET];
    assert_eq!(client.unseal(b"label", &blob, &mut opened), Ok(MAX_SECRET));
    assert_eq!(opened, secret);
    assert_eq!(client.unseal(b"other", &blob, &mut opened), Err(Error::Refused(Status::REFUSED)));
}

#[test]
fn what_cannot_be_sent_is_refused_before_it_is() {
    let mut client = client();
    let long = vec![0; MAX_SECRET + SEALED_OVERHEAD + 1];
    let mut out = vec![0; MAX_SECRET * 2];
    assert_eq!(client.seal(SealPolicy::G0, &[0; 129], b"", &mut out), Err(Error::Length));
    assert_eq!(client.seal(SealPolicy::G0, b"", &long[..=MAX_SECRET], &mut out), Err(Error::Length));
    assert_eq!(client.unseal(b"", &long, &mut out), Err(Error::Length));
    assert_eq!(client.unseal(&[0; 129], &long[..100], &mut out), Err(Error::Length));
}

#[test]
fn the_log_is_fetched_in_as_many_windows_as_it_takes() {
    let log: &'static [u8] = Box::leak((0..5000).map(|i| u8::try_from(i % 256).unwrap()).collect());
    for length in [0, 1, 1023, 1024, 1025, 5000] {
        let mut client = client();
        client.transport().tpm.log = &log[..length];
        let mut out = vec![0; 5000];
        assert_eq!(client.event_log(&mut out), Ok(length));
        assert_eq!(out[..length], log[..length]);
        if length > 0 {
            assert_eq!(client.event_log(&mut out[..length - 1]), Err(Error::Length), "{length}");
        }
    }
}

#[test]
fn evidence_holds_what_the_hypervisor_said() {
    let mut client = client();
    let file = client.evidence(&[0x77; 64]).unwrap();
    let evidence = Evidence::decode(&file).unwrap();
    assert_eq!(evidence.binding.report_data, [0x77; 64]);
    assert_eq!(evidence.binding.registers, client.registers().unwrap());
    assert_eq!(evidence.event_log, client.transport().tpm.log);
    assert_eq!(evidence.ak_public, b"the public part of a key");
    assert!(client.transport().waits.contains(&Status::AGAIN));
}

#[test]
fn a_guest_that_asks_too_often_waits_its_turn() {
    let mut client = client();
    for _ in 0..12 {
        client.quote(&[1; 64]).unwrap();
    }
    assert!(client.transport().waits.contains(&Status::BUSY));
}

#[test]
fn the_tpms_refusal_is_told_with_its_code() {
    let mut client = client();
    client.transport().tpm.failure = 0x99d;
    assert_eq!(client.quote(&[1; 64]), Err(Error::Tpm(0x99d)));
}

#[test]
fn guests_are_listed_started_and_stopped() {
    let mut client = client();
    let mut buffer = [0; GuestList::BYTES];
    let list = client.guests(&mut buffer).unwrap();
    let names: Vec<String> = list.guests().map(|guest| guest.name().to_owned()).collect();
    assert_eq!(names, ["first", "second", "third"]);
    assert_eq!(list.guests().map(|guest| guest.state()).next(), Some(GuestState::RUNNING));
    assert_eq!(client.start_guest("third"), Ok(()));
    assert_eq!(client.stop_guest("first"), Ok(()));
    assert_eq!(client.reset_guest("second"), Err(Error::Refused(Status::WRONG_STATE)));
    assert_eq!(client.start_guest("fourth"), Err(Error::Refused(Status::NO_SUCH_GUEST)));
    assert_eq!(client.start_guest(&"x".repeat(33)), Err(Error::Length));
    let states = |client: &mut Client<Loopback>| -> Vec<GuestState> {
        let mut buffer = [0; GuestList::BYTES];
        client.guests(&mut buffer).unwrap().guests().map(|guest| guest.state()).collect()
    };
    for _ in 0..5 {
        states(&mut client);
    }
    assert_eq!(states(&mut client), [GuestState::STOPPED, GuestState::OFF, GuestState::RUNNING]);
    assert_eq!(
        client.guests(&mut [0; 16 + size_of::<GuestInfo>()]).err(),
        Some(Error::Refused(Status::REPLY_TOO_SMALL))
    );
}

/// A hypervisor that answers everything in the same wrong way.
struct Liar {
    status: Status,
    length: usize,
    fill: u8,
}

impl Transport for Liar {
    type Error = &'static str;

    fn call(&mut self, _: u32, _: &[&[u8]], reply: &mut [u8]) -> Result<(Status, usize), Self::Error> {
        reply.fill(self.fill);
        Ok((self.status, self.length))
    }

    fn wait(&mut self, _: Status, attempt: u32) -> Result<(), Self::Error> {
        if attempt < 3 { Ok(()) } else { Err("out of patience") }
    }
}

#[test]
fn malformed_replies_are_noticed() {
    for length in [0, 7, 100, 1440, 100_000, usize::MAX] {
        for fill in [0, 1, 0xff] {
            let mut client = Client::new(Liar { status: Status::OK, length, fill });
            assert_eq!(client.version(), Err(Error::Reply));
            assert_eq!(client.random(&mut [0; 32]), Err(Error::Reply));
            assert_eq!(client.registers(), Err(Error::Reply));
            assert_eq!(client.seal(SealPolicy::G0, b"", b"x", &mut [0; 200]), Err(Error::Reply));
            assert_eq!(client.quote(&[5; 64]), Err(Error::Reply));
            assert_eq!(client.guests(&mut [0; 400]).err(), Some(Error::Reply));
            assert_eq!(client.stop_guest("x").is_ok(), length == 0);
            assert!(client.evidence(&[5; 64]).is_err());
        }
    }
}

#[test]
fn a_log_that_never_ends_does_not_loop_for_ever() {
    let mut client = Client::new(Liar { status: Status::OK, length: 8, fill: 1 });
    assert_eq!(client.event_log(&mut [0; 64]), Err(Error::Reply));
    let mut client = Client::new(Liar { status: Status::OK, length: 1032, fill: 0xff });
    assert_eq!(client.event_log(&mut [0; 4096]), Err(Error::Length));
}

#[test]
fn refusals_and_lost_patience_are_told_apart() {
    let ask = |status| Client::new(Liar { status, length: 0, fill: 0 }).version();
    assert_eq!(ask(Status::NOT_PERMITTED), Err(Error::Refused(Status::NOT_PERMITTED)));
    assert_eq!(ask(Status(999)), Err(Error::Refused(Status(999))));
    assert_eq!(ask(Status::AGAIN), Err(Error::Transport("out of patience")));
    assert_eq!(ask(Status::BUSY), Err(Error::Transport("out of patience")));
    assert_eq!(ask(Status::TPM_FAILED), Err(Error::Reply));
}
