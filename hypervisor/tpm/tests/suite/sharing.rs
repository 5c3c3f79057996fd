//! The one salted session that a reseed and an activation both need.

use dolmen_tpm::attestation::AkKind;
use dolmen_tpm::clerk::{Answer, ClerkPoll, EkKind, Errand, ErrandError};
use dolmen_tpm::constant::cc;
use dolmen_tpm::reseed::{ReseedJob, ReseedPoll};
use dolmen_tpm::{KeyError, PolledTransport, TpmError, Transport, TransportError};

use crate::clerking::{CHALLENGE, Office, activation, bytes, clerk, make, name};
use crate::keys::launched;
use crate::tap::{Tap, code_of};

/// A transport on which a command takes some polls, one at a time, and may be lost.
struct Line {
    tap: Tap,
    busy: bool,
    left: u32,
    /// The next command with this code has no answer.
    lose: Option<u32>,
}

impl Line {
    fn heard(&self, code: u32) -> usize {
        self.tap.heard.iter().filter(|(command, _)| code_of(command) == code).count()
    }
}

impl PolledTransport for Line {
    fn start(&mut self, _: &[u8]) -> Result<(), TransportError> {
        if self.busy {
            return Err(TransportError::Busy);
        }
        (self.busy, self.left) = (true, 3);
        Ok(())
    }

    fn poll(&mut self, command: &[u8], response: &mut [u8]) -> Result<Option<usize>, TransportError> {
        if self.left > 0 {
            self.left -= 1;
            return Ok(None);
        }
        self.busy = false;
        let size = self.tap.transmit(command, response)?;
        if self.lose.take_if(|code| *code == code_of(command)).is_some() {
            return Err(TransportError::Disconnected);
        }
        Ok(Some(size))
    }

    fn abort(&mut self) {
        self.busy = false;
    }
}

/// Both who need the session, with a generator that wants a seed and a credential to be opened.
struct Both {
    office: Office,
    reseed: ReseedJob,
    line: Line,
    errand: Errand,
}

impl Both {
    fn new() -> Self {
        let mut tpm = launched();
        let mut office = clerk(&mut tpm);
        let endorsement = bytes(&mut office, &mut tpm, Errand::EndorsementKey(EkKind::Ecc));
        let area = bytes(&mut office, &mut tpm, Errand::Public(AkKind::GuestEcdsa));
        let file = make(&mut tpm, &endorsement, &name(&area));
        let errand = activation(AkKind::GuestEcdsa, EkKind::Ecc, &file);
        let mut line = Line { tap: Tap::new(tpm), busy: false, left: 0, lose: None };
        // The first use of an authorisation value after a start is answered with RETRY: let that be over.
        let mut one = Self {
            office,
            reseed: ReseedJob::new(),
            errand,
            line: {
                line.left = 0;
                line
            },
        };
        one.office.start(one.errand).unwrap();
        one.activated();
        one.thirst();
        one.line.tap.heard.clear();
        one
    }

    /// Has the generator want a seed.
    fn thirst(&mut self) {
        for _ in 0..4100 {
            self.office.drbg.draw().unwrap();
        }
        assert!(self.office.drbg.wants_reseed());
    }

    fn clerk(&mut self) -> ClerkPoll {
        self.office.poll(&mut self.line)
    }

    fn reseed(&mut self) -> ReseedPoll {
        let office = &mut self.office;
        self.reseed.poll(&mut self.line, &mut office.salted, &mut office.drbg, &[])
    }

    fn activated(&mut self) -> ClerkPoll {
        (0..200).map(|_| self.clerk()).find(|poll| *poll != ClerkPoll::Pending).expect("it ends")
    }

    fn reseeded(&mut self) -> ReseedPoll {
        (0..200).map(|_| self.reseed()).find(|poll| *poll != ReseedPoll::Pending).expect("it ends")
    }

    /// Turns the clerk until this command of its errand is on its way.
    fn until_sent(&mut self, code: u32) {
        self.office.start(self.errand).unwrap();
        let before = self.line.heard(code);
        let last = if code == cc::ACTIVATE_CREDENTIAL { cc::POLICY_SECRET } else { cc::START_AUTH_SESSION };
        for _ in 0..200 {
            assert_eq!(self.clerk(), ClerkPoll::Pending);
            if self.line.heard(last) > 0 && self.line.busy && self.line.left == 2 {
                assert_eq!(self.line.heard(code), before);
                return;
            }
        }
        panic!("{code:#x} is never sent");
    }

    /// Both work, and go on to work.
    fn both_work(&mut self) {
        self.office.start(self.errand).unwrap();
        assert_eq!(self.activated(), ClerkPoll::Done(Answer::Bytes));
        assert_eq!(self.office.answer(), CHALLENGE);
        self.thirst();
        assert_eq!(self.reseeded(), ReseedPoll::Done);
    }
}

#[test]
fn a_reseed_waits_for_an_activation_that_is_on_its_way() {
    let mut both = Both::new();
    both.until_sent(cc::ACTIVATE_CREDENTIAL);
    assert!(both.office.salted.is_out());
    for _ in 0..20 {
        assert_eq!(both.reseed(), ReseedPoll::Pending);
    }
    assert_eq!(both.line.heard(cc::GET_RANDOM), 0, "a second command was sealed over the first");
    assert_eq!(both.activated(), ClerkPoll::Done(Answer::Bytes));
    assert_eq!(both.office.answer(), CHALLENGE);
    assert_eq!(both.reseeded(), ReseedPoll::Done);
    both.both_work();
}

#[test]
fn an_activation_waits_for_a_reseed_that_was_sealed_before() {
    let mut both = Both::new();
    both.until_sent(cc::POLICY_SECRET);
    // Sealed, but the line is busy with what goes before the activation.
    assert_eq!(both.reseed(), ReseedPoll::Pending);
    assert!(both.office.salted.is_out());
    for _ in 0..20 {
        assert_eq!(both.clerk(), ClerkPoll::Pending);
    }
    assert_eq!(both.line.heard(cc::POLICY_SECRET), 1);
    assert_eq!(both.line.heard(cc::ACTIVATE_CREDENTIAL), 0, "a second command was sealed over the first");
    assert_eq!(both.reseeded(), ReseedPoll::Done);
    assert_eq!(both.activated(), ClerkPoll::Done(Answer::Bytes));
    assert_eq!(both.office.answer(), CHALLENGE);
    both.both_work();
}

#[test]
fn in_whatever_order_both_are_turned_both_end_well() {
    for pattern in [0b01_u32, 0b0011, 0b0001_0111, 0b0111_0001, 0b1111_0000] {
        let mut both = Both::new();
        both.office.start(both.errand).unwrap();
        let (mut activated, mut reseeded) = (ClerkPoll::Pending, ReseedPoll::Pending);
        for turn in 0..400 {
            if pattern >> (turn % 8) & 1 == 0 && activated == ClerkPoll::Pending {
                activated = both.clerk();
            } else if reseeded == ReseedPoll::Pending {
                reseeded = both.reseed();
            }
        }
        assert_eq!((activated, reseeded), (ClerkPoll::Done(Answer::Bytes), ReseedPoll::Done), "{pattern:#b}");
        assert_eq!(both.office.answer(), CHALLENGE);
    }
}

#[test]
fn a_reseed_that_was_lost_holds_up_no_activation() {
    let mut both = Both::new();
    both.line.lose = Some(cc::GET_RANDOM);
    let lost = KeyError::Command(cc::GET_RANDOM, TpmError::Transport(TransportError::Disconnected));
    assert_eq!(both.reseeded(), ReseedPoll::Failed(lost));
    // The TPM has rolled its nonce and we have not: the session is free, and of no use.
    assert_eq!((both.office.salted.is_out(), both.office.salted.is_lost()), (false, true));
    both.both_work();
    assert!(!both.office.salted.is_lost());
}

#[test]
fn an_activation_that_was_lost_holds_up_a_reseed_until_the_session_is_renewed() {
    let mut both = Both::new();
    both.line.lose = Some(cc::ACTIVATE_CREDENTIAL);
    both.office.start(both.errand).unwrap();
    let lost = TpmError::Transport(TransportError::Disconnected);
    assert_eq!(both.activated(), ClerkPoll::Failed(ErrandError::Command(cc::ACTIVATE_CREDENTIAL, lost)));
    assert_eq!((both.office.salted.is_out(), both.office.salted.is_lost()), (false, true));
    for _ in 0..20 {
        assert_eq!(both.reseed(), ReseedPoll::Pending);
    }
    assert_eq!(both.line.heard(cc::GET_RANDOM), 0, "it asked through a session that is lost");
    both.office.start(Errand::Renew).unwrap();
    assert_eq!(both.activated(), ClerkPoll::Done(Answer::Bytes));
    assert!(!both.office.salted.is_lost());
    assert_eq!(both.reseeded(), ReseedPoll::Done);
    both.both_work();
}
