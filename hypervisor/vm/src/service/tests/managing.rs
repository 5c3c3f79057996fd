use super::super::fake::{GUESTS, padded};
use super::*;
use dolmen_abi::{ExtendRequest, GuestInfo, GuestName, GuestState, ListGuestsReply, QuoteRequest, StopCause};

fn named(name: &str) -> Vec<u8> {
    GuestName { name: padded(name) }.as_bytes().to_vec()
}

fn list(rig: &mut Rig) -> (ListGuestsReply, Vec<GuestInfo>) {
    let (status, reply) = rig.bytes::<ListGuests>(&[]);
    assert_eq!(status, Status::OK);
    let (head, rest) = ListGuestsReply::read_from_prefix(&reply).unwrap();
    let guests: Vec<_> =
        rest.chunks(size_of::<GuestInfo>()).map(|c| GuestInfo::read_from_bytes(c).unwrap()).collect();
    assert_eq!(guests.len(), head.count as usize);
    (head, guests)
}

fn state(rig: &mut Rig, index: usize) -> GuestState {
    list(rig).1[index].state()
}

fn until(rig: &mut Rig, index: usize, wanted: GuestState) {
    for _ in 0..20 {
        if state(rig, index) == wanted {
            return;
        }
    }
    panic!("guest {index} never is {wanted}");
}

#[test]
fn the_list_tells_all_guests_and_which_of_them_asks() {
    let mut rig = Rig::with(launched_config(slot(2)));
    let (head, guests) = list(&mut rig);
    assert_eq!((head.count, head.caller, head.uptime_ns), (3, 2, 2_000_000_000));
    assert_eq!(guests.iter().map(GuestInfo::name).collect::<Vec<_>>(), GUESTS);
    assert_eq!(guests[0].state(), GuestState::RUNNING);
    assert_eq!((guests[0].starts, guests[0].run_ns, guests[1].starts), (1, 2_000_000_000, 0));
    assert_eq!(guests[1].state(), GuestState::OFF);
    assert_eq!((guests[1].memory, guests[1].identity), (1 << 20, [0x60; 48]));
}

#[test]
fn requests_are_answered_at_once_and_carried_out_later() {
    let mut rig = Rig::new();
    assert_eq!(rig.bytes::<StartGuest>(&named("second")), (Status::OK, Vec::new()));
    assert_eq!(rig.bytes::<StopGuest>(&named("first")), (Status::OK, Vec::new()));
    until(&mut rig, 1, GuestState::RUNNING);
    until(&mut rig, 0, GuestState::STOPPED);
    assert_eq!(list(&mut rig).1[0].cause(), StopCause::REQUESTED);
    assert_eq!(rig.bytes::<ResetGuest>(&named("second")).0, Status::OK);
    until(&mut rig, 1, GuestState::STOPPING);
    until(&mut rig, 1, GuestState::RUNNING);
    assert_eq!(list(&mut rig).1[1].starts, 2);
}

#[test]
fn what_cannot_be_done_has_its_status() {
    let mut rig = Rig::new();
    assert_eq!(rig.refused::<StartGuest>(&named("fourth")), Status::NO_SUCH_GUEST);
    assert_eq!(rig.refused::<StartGuest>(&[0xff; 32]), Status::NO_SUCH_GUEST);
    assert_eq!(rig.refused::<StartGuest>(&named("")), Status::NO_SUCH_GUEST);
    assert_eq!(rig.refused::<StartGuest>(&named("first")), Status::WRONG_STATE);
    assert_eq!(rig.refused::<StopGuest>(&named("second")), Status::WRONG_STATE);
    assert_eq!(rig.refused::<ResetGuest>(&named("second")), Status::WRONG_STATE);
    assert_eq!(rig.refused::<StartGuest>(b"short"), Status::BAD_LENGTH);
}

#[test]
fn without_the_group_nothing_is_seen_or_done() {
    let groups = CallGroup::all().difference(CallGroup::MANAGE);
    let mut rig = Rig::with(ServiceConfig { groups, ..config() });
    assert_eq!(rig.refused::<ListGuests>(&[]), Status::NOT_PERMITTED);
    assert_eq!(rig.refused::<StopGuest>(&named("first")), Status::NOT_PERMITTED);
    assert_eq!(rig.refused::<StartGuest>(&named("second")), Status::NOT_PERMITTED);
    assert_eq!(rig.refused::<ResetGuest>(&named("first")), Status::NOT_PERMITTED);
    let life = rig.tpm.guests.life(0).unwrap();
    assert_eq!(life.state(), GuestState::RUNNING);
}

#[test]
fn a_list_that_does_not_fit_is_not_written() {
    let mut rig = Rig::new();
    let args = CallArgs { rdi: REQUEST, rsi: 0, rdx: REPLY, rcx: 16 + 3 * 280 - 1 };
    assert_eq!(rig.raw(ListGuests::NUMBER, args), (Status::REPLY_TOO_SMALL, 0));
    assert_eq!(
        rig.raw(ListGuests::NUMBER, CallArgs { rcx: 16 + 3 * 280, ..args }),
        (Status::OK, 16 + 3 * 280)
    );
}

#[test]
#[cfg_attr(miri, ignore = "takes too long in the interpreter")]
fn after_a_restart_registers_and_quotes_are_as_at_the_first_start() {
    let mut rig = Rig::new();
    let fresh = *rig.service.registers();
    let extend = ExtendRequest { index: 3, reserved: 0, digest: [5; 48] };
    let sealed = dolmen_abi::SealRequest { policy: 1, label_length: 0, data_length: 4, reserved: 0 };
    let (_, blob) = rig.bytes::<Seal>(&[sealed.as_bytes(), b"data"].concat());
    assert_eq!(rig.bytes::<Extend>(extend.as_bytes()).0, Status::OK);
    let quote = QuoteRequest { flags: 0, reserved: 0, report_data: [7; 64] };
    assert_eq!(rig.bytes::<Quote>(quote.as_bytes()).0, Status::AGAIN);
    rig.service.restart(&mut *rig.tpm);
    assert_eq!(*rig.service.registers(), fresh);
    // The same request is a new one: the old one's answer goes to nobody.
    let started = rig.tpm.started;
    for _ in 0..10 {
        if rig.bytes::<Quote>(quote.as_bytes()).0 == Status::OK {
            break;
        }
    }
    assert_eq!(rig.tpm.started, started + 1);
    let open = dolmen_abi::UnsealRequest { label_length: 0, blob_length: blob.len() as u32, reserved: 0 };
    assert_eq!(rig.bytes::<Unseal>(&[open.as_bytes(), &blob].concat()), (Status::OK, b"data".to_vec()));
}
