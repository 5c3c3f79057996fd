//! The owner makes the sealing root persistent in an ordinary system, and launches find it.

use dolmen_tpm::constant::{ResponseCode, cc};
use dolmen_tpm::keys::{Provisioned, Setup, check_persistent, set_up};
use dolmen_tpm::policy::launch_policy;
use dolmen_tpm::provision::{Order, Outcome, ProvisionError, provision};
use dolmen_tpm::session::start_policy_session;
use dolmen_tpm::{KeyError, TpmError, Transport, TransportError, command};

use crate::forging::{PERSISTENT, plant};
use crate::keys::{IMAGE, change_auth, pcr17, setup};
use crate::swtpm::Swtpm;
use crate::tap::{Tap, code_of, refusal};

const OWNER: u32 = 0x4000_0001;
/// What [`change_auth`] sets.
const VALUE: &[u8] = b"secret";

fn order(value: &[u8]) -> Order<'_> {
    Order { pcr17: pcr17(IMAGE), handle: PERSISTENT, value, entropy: [0x77; 32] }
}

/// A TPM in the owner's ordinary system, whose owner hierarchy has a value.
fn owned() -> Swtpm {
    let mut tpm = Swtpm::new();
    change_auth(&mut tpm, OWNER);
    tpm
}

fn launch(tpm: &mut Swtpm) {
    tpm.dynamic_launch(IMAGE);
    tpm.set_locality(2);
}

fn with_root(root: Provisioned) -> Setup<'static> {
    Setup { provisioned: Some(root), ..setup(IMAGE) }
}

fn is_there(tpm: &mut Swtpm) -> bool {
    let name = Provisioned { handle: PERSISTENT, name: [0; 34] };
    let found = check_persistent(tpm, &launch_policy(&pcr17(IMAGE)), &name);
    found != Err(KeyError::NotProvisioned(PERSISTENT))
}

#[test]
fn a_root_that_the_owner_made_serves_every_launch() {
    let mut tpm = owned();
    let Outcome { root, was_there } = provision(&mut tpm, &order(VALUE)).unwrap();
    assert!(!was_there);
    launch(&mut tpm);
    let first = set_up(&mut tpm, &with_root(root)).unwrap();
    tpm.restart();
    launch(&mut tpm);
    let second = set_up(&mut tpm, &with_root(root)).unwrap();
    assert_eq!(first.root.expose(), second.root.expose());
    tpm.dynamic_launch(b"evil image");
    assert_eq!(set_up(&mut tpm, &with_root(root)).unwrap_err(), KeyError::NotThisLaunch);
}

#[test]
fn it_is_the_root_of_launches_without_an_owners_value() {
    let mut tpm = Swtpm::new();
    let root = provision(&mut tpm, &order(&[])).unwrap().root;
    launch(&mut tpm);
    let made = set_up(&mut tpm, &setup(IMAGE)).unwrap();
    let found = set_up(&mut tpm, &with_root(root)).unwrap();
    assert_eq!(made.root.expose(), found.root.expose());
}

#[test]
fn the_owners_value_does_not_cross_the_bus() {
    let mut tap = Tap::new(owned());
    provision(&mut tap, &order(VALUE)).unwrap();
    assert!(tap.heard.iter().any(|(command, _)| code_of(command) == cc::EVICT_CONTROL));
    assert!(!tap.all_bytes().windows(VALUE.len()).any(|window| window == VALUE));
}

#[test]
fn values_of_every_length_and_with_zeroes_at_the_end_are_proved() {
    for (said, given) in [
        ("00", &[][..]),
        ("ff00", &[0xff]),
        ("ff", &[0xff, 0, 0]),
        (&"5a".repeat(33), &[0x5a; 33]),
        (&"5a".repeat(64), &[0x5a; 64]),
    ] {
        let mut tpm = Swtpm::new();
        tpm.with_tools(|tools| tools.run(&format!("tpm2_changeauth -c owner hex:{said}")));
        assert!(provision(&mut tpm, &order(given)).is_ok(), "{said}");
    }
}

#[test]
fn without_the_right_value_nothing_is_made() {
    let mut tpm = owned();
    for (value, want) in [
        (&b""[..], ProvisionError::NoValue),
        (b"secre", ProvisionError::WrongValue),
        (b"secret\n", ProvisionError::WrongValue),
        (&[b's'; 65], ProvisionError::LongValue),
    ] {
        assert_eq!(provision(&mut tpm, &order(value)), Err(want));
    }
    assert!(!is_there(&mut tpm));
    let mut free = Swtpm::new();
    assert_eq!(provision(&mut free, &order(VALUE)), Err(ProvisionError::WrongValue));
    assert!(provision(&mut tpm, &order(VALUE)).is_ok());
}

#[test]
fn a_key_that_is_there_already_is_told_and_any_other_is_left_alone() {
    let mut tpm = owned();
    let first = provision(&mut tpm, &order(VALUE)).unwrap();
    let again = provision(&mut tpm, &order(VALUE)).unwrap();
    assert_eq!(again, Outcome { was_there: true, ..first });
    // For another hypervisor it is another key.
    let other = Order { pcr17: pcr17(b"the next release"), ..order(VALUE) };
    let error = provision(&mut tpm, &other).unwrap_err();
    assert_eq!(error, ProvisionError::Occupied(PERSISTENT));
    assert!(error.to_string().contains("tpm2_evictcontrol -C o -c 0x81"), "{error}");
    let elsewhere = Order { handle: PERSISTENT + 1, ..other };
    assert!(provision(&mut tpm, &elsewhere).is_ok());
    launch(&mut tpm);
    assert!(set_up(&mut tpm, &with_root(first.root)).is_ok(), "the first is as it was");
    let mut tpm = Swtpm::new();
    plant(&mut tpm);
    assert_eq!(provision(&mut tpm, &order(&[])), Err(ProvisionError::Occupied(PERSISTENT)));
}

#[test]
fn a_handle_that_is_not_the_owners_is_refused_by_the_tpm() {
    let mut tpm = owned();
    let platform = Order { handle: 0x8180_0000, ..order(VALUE) };
    let error = provision(&mut tpm, &platform).unwrap_err();
    assert!(matches!(error, ProvisionError::Command(cc::EVICT_CONTROL, TpmError::Refused(_))), "{error}");
}

#[test]
fn what_others_have_loaded_stays_and_nothing_of_ours_does() {
    let mut tpm = owned();
    let (mut command, mut response) = ([0; 128], [0; 128]);
    let start = start_policy_session(&mut command, &[1; 32]).unwrap();
    tpm.transmit(start, &mut response).unwrap();
    let theirs = u32::from_be_bytes(response[10..14].try_into().unwrap());
    // More often than a TPM has places, in success and in failure.
    for _ in 0..4 {
        provision(&mut tpm, &order(VALUE)).unwrap();
        provision(&mut tpm, &order(b"wrong")).unwrap_err();
        provision(&mut tpm, &Order { pcr17: [1; 32], ..order(VALUE) }).unwrap_err();
    }
    command::flush(&mut tpm, theirs).unwrap();
}

#[test]
fn a_tpm_that_is_full_says_so() {
    let full = refusal(ResponseCode::NV_SPACE.0);
    let mut tap = Tap::on(owned(), cc::EVICT_CONTROL, move |response| response.clone_from(&full));
    assert_eq!(provision(&mut tap, &order(VALUE)), Err(ProvisionError::NoRoom));
}

#[test]
fn a_forged_answer_to_what_makes_the_key_is_refused() {
    for code in [cc::CREATE_PRIMARY, cc::EVICT_CONTROL] {
        let mut seen = 0;
        let mut tap = Tap::on(owned(), code, move |response| {
            seen += 1;
            // The first primary key is the session's own.
            if seen == 2 || code == cc::EVICT_CONTROL {
                let last = response.len() - 1;
                response[last] ^= 1;
            }
        });
        let want = Err(ProvisionError::Command(code, TpmError::Forged));
        assert_eq!(provision(&mut tap, &order(VALUE)), want);
    }
}

#[test]
fn each_command_may_be_refused_cut_or_lost_without_a_panic() {
    type Forgery = fn(&mut Vec<u8>) -> Result<(), TransportError>;
    let mut tap = Tap::new(owned());
    provision(&mut tap, &order(VALUE)).unwrap();
    let commands = tap.heard.len();
    let forgeries: [Forgery; 3] = [
        |response| {
            *response = refusal(0x101);
            Ok(())
        },
        |response| {
            response.truncate(9);
            Ok(())
        },
        |_| Err(TransportError::Disconnected),
    ];
    for (kind, forgery) in forgeries.into_iter().enumerate() {
        for victim in 0..commands {
            let mut seen = 0;
            let mut tap = Tap::new(owned());
            tap.forge = Box::new(move |_, response| {
                seen += 1;
                if seen == victim + 1 { forgery(response) } else { Ok(()) }
            });
            let result = provision(&mut tap, &order(VALUE));
            assert!(result.is_err(), "command {victim} of {commands}, forgery {kind}");
        }
    }
}
