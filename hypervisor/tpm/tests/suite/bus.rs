//! The TIS driver on a bus that fails: each wait ends and says what it waited for.

use dolmen_tpm::command::{self, PcrIndex};
use dolmen_tpm::constant::{ResponseCode, alg};
use dolmen_tpm::tis::{Locality, Tis, TisIo, TisReg};
use dolmen_tpm::{PolledTransport, TpmError, Transport, TransportError, measure};

use crate::tis_model::{Fault, TisModel};

/// A TPM that answers each command with one fixed response.
pub(crate) struct Canned(pub(crate) Vec<u8>);

impl Transport for Canned {
    fn transmit(&mut self, _: &[u8], response: &mut [u8]) -> Result<usize, TransportError> {
        response[..self.0.len()].copy_from_slice(&self.0);
        Ok(self.0.len())
    }
}

const OK: [u8; 10] = [0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0];
const RETRY: [u8; 10] = [0x80, 1, 0, 0, 0, 10, 0, 0, 0x09, 0x22];
/// TPM2_Startup.
const COMMAND: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0];

fn model(answer: &[u8]) -> TisModel<Canned> {
    TisModel::new(Canned(answer.to_vec()), |_, _| {})
}

fn tis(model: TisModel<Canned>) -> Tis<TisModel<Canned>> {
    let mut tis = Tis::new(model, Locality::Two);
    tis.claim().unwrap();
    tis
}

fn try_with(fault: Fault) -> Result<usize, TransportError> {
    let mut tis = tis(model(&OK));
    tis.io_mut().fault = fault;
    let result = tis.transmit(&COMMAND, &mut [0; 64]);
    tis.io_mut().fault = Fault::None;
    assert_eq!(
        tis.start(&COMMAND),
        if result == Err(TransportError::LocalityLost(Locality::Two)) {
            Err(TransportError::LocalityLost(Locality::Two))
        } else {
            Ok(())
        },
        "after {fault:?} nothing is in flight"
    );
    result
}

fn timed_out(mask: u32, want: u32) -> impl Fn(Result<usize, TransportError>) -> bool {
    move |result| {
        matches!(result, Err(TransportError::Timeout { locality: Locality::Two, register: TisReg::Status, mask: m, want: w, .. })
            if (m, w) == (mask, want))
    }
}

#[test]
fn each_wait_that_never_ends_names_the_register_and_the_bits() {
    assert!(timed_out(0x40, 0x40)(try_with(Fault::NeverReady)));
    assert!(timed_out(0x00ff_ff88, 0x88)(try_with(Fault::NoBurst)));
    assert!(timed_out(0x90, 0x90)(try_with(Fault::NeverDone)));
}

#[test]
fn a_command_that_never_ends_is_cancelled() {
    let mut tis = tis(model(&OK));
    tis.io_mut().fault = Fault::NeverDone;
    assert!(tis.transmit(&COMMAND, &mut [0; 64]).is_err());
    assert_eq!(tis.io_mut().cancelled, 1);
}

#[test]
fn a_tpm_that_stops_listening_or_wants_more_is_an_error() {
    assert_eq!(try_with(Fault::EndsEarlyAfter(7)), Err(TransportError::EndedEarly));
    assert_eq!(try_with(Fault::ExpectsMore), Err(TransportError::ExpectsMore));
    assert_eq!(try_with(Fault::Trailing), Err(TransportError::TrailingData));
}

#[test]
fn a_tpm_that_disappears_in_the_middle_reads_as_absent() {
    for bytes in 0..10 {
        let mut tis = tis(model(&OK));
        tis.io_mut().fault = Fault::GoneAfter(bytes);
        let result = tis.transmit(&COMMAND, &mut [0; 64]);
        assert_eq!(result, Err(TransportError::Absent(Locality::Two)), "after {bytes} bytes");
    }
}

#[test]
fn a_locality_that_is_taken_away_is_noticed() {
    assert_eq!(try_with(Fault::Seized), Err(TransportError::LocalityLost(Locality::Two)));
}

#[test]
fn a_bus_of_garbage_is_an_error_and_never_a_response() {
    for pattern in 0..=0xff {
        let result = try_with(Fault::Garbage(pattern));
        assert!(result.is_err(), "pattern {pattern:#x}: {result:?}");
    }
}

#[test]
fn a_closed_page_reads_as_ones_and_is_not_taken_for_an_active_locality() {
    let mut tis = Tis::new(model(&OK), Locality::Four);
    assert_eq!(tis.request(), Err(TransportError::Absent(Locality::Four)));
    assert_eq!(tis.claim(), Err(TransportError::Absent(Locality::Four)));
}

#[test]
fn a_tpm_with_another_interface_is_told_apart() {
    let mut crb = model(&OK);
    crb.interface = 0x4011;
    assert_eq!(Tis::new(&mut crb, Locality::Two).claim(), Err(TransportError::NotFifo(0x4011)));
    assert_eq!(crb.active, None);
    crb.interface = u32::MAX; // an old FIFO has no such register
    assert_eq!(Tis::new(&mut crb, Locality::Two).claim(), Ok(()));
}

#[test]
fn a_holder_that_does_not_let_go_is_overruled_by_the_higher_locality_only() {
    let mut model = model(&OK);
    model.active = Some(Locality::Zero);
    model.holder_lets_go = false;
    let mut tis = Tis::new(model, Locality::Two);
    assert!(matches!(tis.request(), Err(TransportError::Timeout { register: TisReg::Access, .. })));
    assert_eq!(tis.claim(), Ok(()));
    assert_eq!(tis.transmit(&COMMAND, &mut [0; 64]), Ok(10));
    let mut lower = Tis::new(tis.into_io(), Locality::One);
    assert!(matches!(lower.claim(), Err(TransportError::Timeout { register: TisReg::Access, .. })));
}

#[test]
fn a_locality_that_is_relinquished_can_be_had_again() {
    let mut tis = tis(model(&OK));
    assert_eq!(tis.relinquish(), Ok(()));
    assert_eq!(tis.io_mut().active, None);
    assert_eq!(tis.transmit(&COMMAND, &mut [0; 64]), Err(TransportError::LocalityLost(Locality::Two)));
    assert_eq!(tis.claim(), Ok(()));
    assert_eq!(tis.transmit(&COMMAND, &mut [0; 64]), Ok(10));
}

#[test]
fn a_response_that_somebody_left_is_flushed_first() {
    let mut tis = tis(model(&OK));
    tis.io_mut().leave_stale_response(&[0xee; 40]);
    let mut response = [0; 64];
    assert_eq!(tis.transmit(&COMMAND, &mut response), Ok(10));
    assert_eq!(response[..10], OK);
}

#[test]
fn a_command_that_somebody_left_executing_is_ended_first() {
    let mut theirs = tis(model(&OK));
    theirs.io_mut().fault = Fault::NeverDone;
    theirs.start(&COMMAND).unwrap();
    while theirs.io_mut().executed == 0 {
        assert_eq!(theirs.poll(&COMMAND, &mut [0; 64]), Ok(None));
    }
    let mut ours = Tis::new(theirs.into_io(), Locality::Two);
    ours.io_mut().fault = Fault::None;
    assert_eq!(ours.transmit(&COMMAND, &mut [0; 64]), Ok(10));
}

#[test]
fn lengths_that_cannot_be_are_refused_in_both_directions() {
    for length in [0u32, 9, 11, 65, 4097, u32::MAX] {
        let mut answer = OK;
        answer[2..6].copy_from_slice(&length.to_be_bytes());
        let result = tis(model(&answer)).transmit(&COMMAND, &mut [0; 64]);
        assert!(result.is_err(), "{length}: {result:?}");
        let mut command = COMMAND;
        command[2..6].copy_from_slice(&length.to_be_bytes());
        let result = tis(model(&OK)).transmit(&command, &mut [0; 64]);
        assert_eq!(result, Err(TransportError::BadCommand), "{length}");
    }
    assert!(tis(model(&OK)).transmit(&COMMAND, &mut [0; 9]).is_err());
}

#[test]
fn a_command_is_sent_again_as_long_as_the_tpm_asks_and_not_for_ever() {
    let mut soon = tis(model(&OK));
    let mut left = 3;
    soon.io_mut().tamper = Box::new(move |_, response| {
        if left > 0 {
            left -= 1;
            *response = RETRY.to_vec();
        }
    });
    let mut response = [0; 64];
    assert_eq!(soon.transmit(&COMMAND, &mut response), Ok(10));
    assert_eq!((response[..10].to_vec(), soon.io_mut().executed), (OK.to_vec(), 4));

    let mut never = tis(model(&RETRY));
    assert_eq!(command::start(&mut never), Err(TpmError::Refused(ResponseCode::RETRY)));
    assert_eq!(never.io_mut().executed, 21);
}

#[test]
fn only_one_command_is_in_flight_and_polling_without_one_is_refused() {
    let mut tis = tis(model(&OK));
    assert_eq!(tis.poll(&COMMAND, &mut [0; 64]), Err(TransportError::BadCommand));
    assert_eq!(tis.start(&COMMAND), Ok(()));
    assert_eq!(tis.start(&COMMAND), Err(TransportError::Busy));
    tis.abort();
    assert_eq!(tis.transmit(&COMMAND, &mut [0; 64]), Ok(10));
}

#[test]
fn refusals_and_nonsense_of_the_tpm_reach_the_caller() {
    let refused = |code: u32| {
        let mut answer = OK;
        answer[6..10].copy_from_slice(&code.to_be_bytes());
        command::start(&mut Canned(answer.to_vec()))
    };
    for code in [0x101, 0x123, 0x128, 0x12f, 0x1c4, 0x98e, 0x99d, 0x907, 0x902, 0xffff_ffff] {
        assert_eq!(refused(code), Err(TpmError::Refused(ResponseCode(code))), "{code:#x}");
    }
    assert_eq!(refused(0x100), Ok(()), "started already");
    let mut wrong_tag = OK;
    wrong_tag[1] = 3;
    assert!(matches!(command::start(&mut Canned(wrong_tag.to_vec())), Err(TpmError::Decode(_))));
    let zero = [0; 32];
    let digests = [command::Digest::new(alg::SHA256, &zero).unwrap()];
    let plain = measure::extend_all(&mut Canned(OK.to_vec()), PcrIndex::DRTM_CODE, &digests);
    assert!(matches!(plain, Err(TpmError::Decode(_))), "an extend is answered with its session");
}

#[test]
fn a_stopped_clock_is_the_only_way_to_wait_for_ever() {
    let mut model = model(&OK);
    model.restart_deadline(5_000);
    let accesses = (0..).take_while(|_| !model.expired()).count();
    assert!(accesses <= 50, "{accesses}");
}
