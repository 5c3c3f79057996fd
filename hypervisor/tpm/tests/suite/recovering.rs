//! The clerk on a bus that loses and garbles answers now and then: nothing stays broken.

use dolmen_tpm::attestation::AkKind;
use dolmen_tpm::clerk::{Answer, ClerkPoll, EkKind, Errand, ErrandError, Parcel};
use dolmen_tpm::constant::cc;
use dolmen_tpm::policy::QUOTED;
use dolmen_tpm::{TpmError, Transport, TransportError, command};

use crate::clerking::{CHALLENGE, Office, activation, bytes, clerk, make, name, quote_by, quoted, send};
use crate::keys::launched;
use crate::tap::{Tap, code_of, refusal};

type Garble = fn(&mut Vec<u8>) -> Result<(), TransportError>;

/// What may become of an answer.
const GARBLES: [Garble; 6] = [
    |response| {
        response.truncate(9);
        Ok(())
    },
    |response| {
        response.extend([0; 4]);
        Ok(())
    },
    |response| {
        response.fill(0xff);
        Ok(())
    },
    |response| {
        *response = refusal(0x101);
        Ok(())
    },
    |response| {
        *response = refusal(0x9a2); // as if the session did not authorise
        Ok(())
    },
    |_| Err(TransportError::Disconnected),
];

/// Handles that the TPM holds from `first` on.
fn held(tap: &mut Tap, first: u32) -> Vec<u32> {
    let (mut buf, mut response) = ([0; 32], [0; 256]);
    let command = command::get_capability(&mut buf, 1, first, 30).unwrap();
    let size = tap.tpm.transmit(command, &mut response).unwrap();
    let handles = response[19..size].chunks(4).map(|bytes| u32::from_be_bytes(bytes.try_into().unwrap()));
    handles.collect()
}

fn prepared() -> (Office, Tap, Errand) {
    let mut tpm = launched();
    let mut office = clerk(&mut tpm);
    let endorsement = bytes(&mut office, &mut tpm, Errand::EndorsementKey(EkKind::Ecc));
    let area = bytes(&mut office, &mut tpm, Errand::Public(AkKind::GuestEcdsa));
    let file = make(&mut tpm, &endorsement, &name(&area));
    let errand = activation(AkKind::GuestEcdsa, EkKind::Ecc, &file);
    assert_eq!(send(&mut office, &mut tpm, errand), ClerkPoll::Done(Answer::Bytes));
    (office, Tap::new(tpm), errand)
}

/// TPM2_GetCapability's answer that names one handle.
fn list(handle: u32) -> Vec<u8> {
    let head = [0x80, 1, 0, 0, 0, 23, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1];
    [&head[..], &handle.to_be_bytes()].concat()
}

/// Garbles the next answer to `code`.
fn garble_once(tap: &mut Tap, code: u32, garble: Garble) {
    let mut left = 1;
    tap.forge = Box::new(move |seen, response| {
        if seen == code && left > 0 {
            left -= 1;
            return garble(response);
        }
        Ok(())
    });
}

#[test]
fn whatever_answer_is_lost_or_garbled_the_next_errand_works_and_the_tpm_holds_nothing_besides() {
    let (mut office, mut tap, activate) = prepared();
    let errands = [
        (quote_by(AkKind::GuestEcdsa, QUOTED, &[1; 32]), &[cc::START_AUTH_SESSION, cc::QUOTE][..]),
        (quote_by(AkKind::HostEcdsa, QUOTED, &[2; 32]), &[cc::PCR_READ]),
        (
            Errand::Certify { key: AkKind::HostEcdsa, data: Parcel::new(&[3; 16]).unwrap() },
            &[cc::START_AUTH_SESSION, cc::CERTIFY],
        ),
        (Errand::EndorsementKey(EkKind::Ecc), &[cc::CREATE_PRIMARY, cc::FLUSH_CONTEXT]),
        (activate, &[cc::CREATE_PRIMARY, cc::START_AUTH_SESSION, cc::POLICY_SECRET, cc::ACTIVATE_CREDENTIAL]),
    ];
    for (errand, codes) in errands {
        for code in codes {
            for (index, garble) in GARBLES.into_iter().enumerate() {
                garble_once(&mut tap, *code, garble);
                let end = send(&mut office, &mut tap, errand);
                assert!(matches!(end, ClerkPoll::Failed(_)), "{code:#x}, {index}: {end:?}");
                let end = send(&mut office, &mut tap, errand);
                let end = match end {
                    // A forged refusal leaves the session out of step, which the TPM's own refusal then shows.
                    ClerkPoll::Failed(ErrandError::Command(
                        cc::ACTIVATE_CREDENTIAL,
                        TpmError::Refused(_),
                    )) if index == 3 => send(&mut office, &mut tap, errand),
                    other => other,
                };
                assert!(matches!(end, ClerkPoll::Done(_)), "{code:#x}, {index}: {end:?}");
                if errand == activate {
                    assert_eq!(office.answer(), CHALLENGE);
                }
            }
        }
    }
    assert_eq!(held(&mut tap, 0x0200_0000), [office.salted.handle()]);
    assert_eq!(held(&mut tap, 0x8000_0000).len(), 2, "the launch's key and the host's");
}

#[test]
fn a_new_key_whose_answer_is_lost_again_and_again_fills_no_places() {
    let (mut office, mut tap, _) = prepared();
    for round in 0..8 {
        for kind in [AkKind::HostRsa, AkKind::GuestRsa, AkKind::HostEcdsa] {
            garble_once(&mut tap, cc::CREATE_PRIMARY, GARBLES[round % GARBLES.len()]);
            let end = send(&mut office, &mut tap, Errand::Public(kind));
            assert!(matches!(end, ClerkPoll::Failed(_)), "{kind:?}: {end:?}");
        }
    }
    assert_eq!(send(&mut office, &mut tap, Errand::Public(AkKind::HostRsa)), ClerkPoll::Done(Answer::Bytes));
    quoted(send(&mut office, &mut tap, quote_by(AkKind::GuestEcdsa, QUOTED, &[1; 32])));
}

#[test]
fn another_session_is_salted_anew_and_a_salt_key_that_is_garbled_is_not_believed() {
    let (mut office, mut tap, activate) = prepared();
    for code in [cc::CREATE_PRIMARY, cc::START_AUTH_SESSION] {
        garble_once(&mut tap, cc::ACTIVATE_CREDENTIAL, GARBLES[0]);
        assert!(matches!(send(&mut office, &mut tap, activate), ClerkPoll::Failed(_)));
        assert!(office.salted.is_lost());
        let mut left = 1;
        tap.forge = Box::new(move |seen, response| {
            if seen == code && left > 0 {
                left -= 1;
                response[27] ^= 1; // an attribute of the public area, or the TPM's nonce
            }
            Ok(())
        });
        tap.heard.clear();
        assert!(matches!(send(&mut office, &mut tap, activate), ClerkPoll::Failed(_)), "{code:#x}");
        let renewed = tap.heard.iter().any(|(command, _)| {
            code_of(command) == cc::START_AUTH_SESSION && command[10..14] != [0x40, 0, 0, 7]
        });
        assert_eq!(renewed, code == cc::START_AUTH_SESSION);
        tap.forge = Box::new(|_, _| Ok(()));
        assert_eq!(send(&mut office, &mut tap, activate), ClerkPoll::Done(Answer::Bytes), "{code:#x}");
        assert_eq!(office.answer(), CHALLENGE);
    }
    let bus = tap.all_bytes();
    assert!(!bus.windows(8).any(|window| window == &CHALLENGE[..8]), "it crossed the bus in the clear");
    assert_eq!(held(&mut tap, 0x0200_0000), [office.salted.handle()]);
}

#[test]
fn a_forged_list_of_handles_costs_no_key_that_is_in_use_and_ends() {
    let (mut office, mut tap, activate) = prepared();
    let keys = held(&mut tap, 0x8000_0000);
    let in_use = [keys[0], office.salted.handle()];
    for forged in [in_use[0], in_use[1], 0x0200_0005, 0x80ab_cdef] {
        garble_once(&mut tap, cc::QUOTE, GARBLES[0]);
        send(&mut office, &mut tap, quote_by(AkKind::GuestEcdsa, QUOTED, &[1; 32]));
        tap.forge = Box::new(move |seen, response| {
            if seen == cc::GET_CAPABILITY && response[14] == 1 {
                *response = list(forged);
            }
            Ok(())
        });
        tap.heard.clear();
        quoted(send(&mut office, &mut tap, quote_by(AkKind::GuestEcdsa, QUOTED, &[1; 32])));
        let flushed = tap.heard.iter().any(|(command, _)| {
            code_of(command) == cc::FLUSH_CONTEXT
                && in_use.iter().any(|used| command[10..] == used.to_be_bytes())
        });
        assert!(!flushed, "{forged:#x}");
        assert!(tap.heard.len() < 12, "{} commands", tap.heard.len());
    }
    // One that names another handle each time ends, too.
    let mut count: u32 = 0;
    garble_once(&mut tap, cc::QUOTE, GARBLES[0]);
    send(&mut office, &mut tap, quote_by(AkKind::GuestEcdsa, QUOTED, &[1; 32]));
    tap.forge = Box::new(move |seen, response| {
        if seen == cc::GET_CAPABILITY && response[14] == 1 {
            count += 1;
            *response = list(0x8000_0100 + count);
        }
        Ok(())
    });
    tap.heard.clear();
    quoted(send(&mut office, &mut tap, quote_by(AkKind::GuestEcdsa, QUOTED, &[1; 32])));
    assert!((100..140).contains(&tap.heard.len()), "{} commands", tap.heard.len());
    tap.forge = Box::new(|_, _| Ok(()));
    assert_eq!(send(&mut office, &mut tap, activate), ClerkPoll::Done(Answer::Bytes));
}

#[test]
fn errands_without_a_failure_before_them_ask_nothing_more() {
    let (mut office, mut tap, _) = prepared();
    quoted(send(&mut office, &mut tap, quote_by(AkKind::GuestEcdsa, QUOTED, &[1; 32])));
    assert_eq!(tap.heard.len(), 4);
}
