//! One TPM for many guests: how long each waits, whatever the others do.

use super::super::desk::{self, Progress};
use super::super::fake::ATTEST_HEAD;
use super::*;
use dolmen_abi::{AkId, KeyRequest, MAX_WAITING, QuoteRequest, merkle};
use proptest::prelude::*;

/// What is done at the desk in one step.
#[derive(Clone, Copy, Debug)]
enum Deed {
    /// The guest asks for a quote, unless one of its requests waits or is in flight.
    Quote { rsa: bool, fill: u8 },
    /// The guest asks for something else of the TPM's, if the place for that is free.
    Errand,
    /// The guest is started anew, and forgets what it asked for.
    Forget,
    /// Nobody calls; the TPM works on.
    Work,
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        8 => (any::<bool>(), any::<u8>()).prop_map(|(rsa, fill)| Deed::Quote { rsa, fill }),
        4 => Just(Deed::Errand),
        1 => Just(Deed::Forget),
        6 => Just(Deed::Work),
    ]
}

/// A request, and what had been started when it was put in line.
#[derive(Clone, Copy, Debug)]
struct Request {
    leaf: [u8; 32],
    quotes: u32,
    errands: u32,
}

/// Guests at one TPM.
struct Town {
    tpm: FakeTpm,
    requests: Vec<Option<Request>>,
    /// Quotes that each has had.
    answered: Vec<u32>,
}

impl Town {
    fn progress(&mut self, guest: usize) -> Progress {
        self.tpm.desk().slot(slot(guest)).progress
    }

    fn step(&mut self, guest: usize, deed: Deed) {
        match deed {
            Deed::Quote { rsa, fill } => {
                if ![Progress::Waiting, Progress::InFlight].contains(&self.progress(guest)) {
                    let key = if rsa { AkId::GUEST_RSA } else { AkId::GUEST_ECDSA };
                    let leaf = [[guest as u8, fill].repeat(16)].concat().try_into().unwrap();
                    self.tpm.desk().submit(slot(guest), key, leaf);
                    let (quotes, errands) = (self.tpm.started, self.tpm.errands_started);
                    self.requests[guest] = Some(Request { leaf, quotes, errands });
                }
            }
            Deed::Errand => {
                let errand = Errand::KeyPublic(AkId::HOST_RSA);
                let was_busy = self.tpm.errands().is_busy();
                assert_eq!(self.tpm.errands().submit(slot(guest), errand), !was_busy);
            }
            Deed::Forget => {
                self.tpm.desk().release(slot(guest));
                self.requests[guest] = None;
            }
            Deed::Work => {}
        }
        serve_waiting(&mut self.tpm);
        (0..self.requests.len()).for_each(|guest| self.look_at(guest));
    }

    /// Whoever waits has been passed by one quote at most, and by two errands; whoever is served has a path that leads
    /// from the request to what the TPM signed.
    fn look_at(&mut self, guest: usize) {
        let Some(request) = self.requests[guest] else { return };
        let passed = (self.tpm.started - request.quotes, self.tpm.errands_started - request.errands);
        let slot = self.tpm.desk().slot(slot(guest));
        match slot.progress {
            Progress::Waiting => {
                assert!(passed.0 <= 1 && passed.1 <= 2, "guest {guest} was passed by {passed:?}");
            }
            Progress::Done => {
                let root = merkle::root(request.leaf, slot.index, slot.count, slot.path(), desk::node);
                assert_eq!(root.unwrap(), slot.quote.attest()[ATTEST_HEAD..], "guest {guest}");
                self.requests[guest] = None;
                self.answered[guest] += 1;
            }
            Progress::InFlight => {}
            Progress::Free | Progress::Failed(_) => panic!("guest {guest}: {:?}", slot.progress),
        }
    }
}

fn town(guests: usize, delay: u32) -> Town {
    let mut tpm = FakeTpm::default();
    tpm.delay = delay;
    Town { tpm, requests: vec![None; guests], answered: vec![0; guests] }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases(60)) })]

    #[test]
    #[cfg_attr(miri, ignore = "minutes of it; the other tests run the same code")]
    fn nobody_is_passed_by_more_than_one_quote_and_two_errands(
        guests in 1_usize..=MAX_WAITING, delay in 0_u32..6,
        steps in proptest::collection::vec((any::<usize>(), deed()), 1..250),
    ) {
        let mut town = town(guests, delay);
        for (guest, deed) in steps {
            town.step(guest % guests, deed);
        }
        // Once nobody asks for more, all that still waits is served.
        for _ in 0..6 * (delay + 2) {
            town.step(0, Deed::Work);
        }
        prop_assert!(town.requests.iter().all(Option::is_none), "{:?}", town.requests);
    }
}

#[test]
#[cfg_attr(miri, ignore = "minutes of hashing; the other tests run the same code")]
fn a_crowd_that_asks_without_rest_is_served_evenly() {
    let mut town = town(MAX_WAITING, 4);
    for round in 0..32 * 30_usize {
        let guest = round % MAX_WAITING;
        town.step(guest, Deed::Quote { rsa: guest.is_multiple_of(2), fill: round as u8 });
        town.step(guest, Deed::Errand);
    }
    let (quotes, errands) = (town.tpm.started, town.tpm.errands_started);
    assert!(quotes.abs_diff(errands) <= 1, "{quotes} quotes and {errands} errands have taken turns");
    let (least, most) = (town.answered.iter().min().unwrap(), town.answered.iter().max().unwrap());
    assert!(*least + 2 >= *most && *least >= 28, "{:?}", town.answered);
    let all: u32 = town.answered.iter().sum();
    assert!(all > 4 * quotes, "{all} requests were answered by {quotes} quotes");
}

fn call<C: Call>(rig: &mut Rig, tpm: &mut Box<FakeTpm>, request: &[u8]) -> Status {
    core::mem::swap(&mut rig.tpm, tpm);
    let (status, _) = rig.bytes::<C>(request);
    core::mem::swap(&mut rig.tpm, tpm);
    status
}

#[test]
#[cfg_attr(miri, ignore = "minutes of hashing; the other tests run the same code")]
fn who_floods_is_told_busy_and_takes_nothing_of_anothers_rate() {
    let mut rigs: Vec<Rig> =
        (0..2).map(|index| Rig::with(ServiceConfig { slot: slot(index), ..config() })).collect();
    let mut tpm = Box::<FakeTpm>::default();
    tpm.delay = 0;
    let request = |fill| QuoteRequest { flags: 0, reserved: 0, report_data: [fill; 64] };
    let key = KeyRequest { key: AkId::HOST_ECDSA.0, reserved: 0 };
    let (mut served, mut refused) = (0, 0);
    // One asks a hundred times as often as the other, for two seconds.
    for round in 0..20 {
        tpm.now_ms += 100;
        for _ in 0..100 {
            match call::<Quote>(&mut rigs[0], &mut tpm, request(1).as_bytes()) {
                Status::OK => served += 1,
                Status::BUSY => refused += 1,
                other => assert_eq!(other, Status::AGAIN),
            }
            let status = call::<KeyPublic>(&mut rigs[0], &mut tpm, key.as_bytes());
            assert!([Status::OK, Status::AGAIN, Status::BUSY].contains(&status), "{status}");
        }
        let answers: Vec<Status> =
            (0..6).map(|_| call::<Quote>(&mut rigs[1], &mut tpm, request(2).as_bytes())).collect();
        let until_served = answers.iter().take_while(|status| **status == Status::AGAIN).count();
        assert_eq!(answers[until_served], Status::OK, "round {round}: {answers:?}");
    }
    assert_eq!(served, 8 + 19, "eight at once, then ten a second");
    assert!(refused > 1000, "{refused}");
}
