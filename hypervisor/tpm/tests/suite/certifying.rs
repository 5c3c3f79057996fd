//! What an attestation key says of itself, on a real TPM and on a bus that lies.

use std::process::Command;

use dolmen_tpm::TpmError;
use dolmen_tpm::attest::{CertifyAttest, QuoteAttest};
use dolmen_tpm::attestation::AkKind;
use dolmen_tpm::clerk::{ClerkPoll, Errand, ErrandError, Parcel};
use dolmen_tpm::constant::cc;
use dolmen_tpm::policy::QUOTED;
use dolmen_tpm::quote::QuoteError;

use crate::clerking::{bytes, clerk, name, quote_by, quoted, send};
use crate::keys::{launched, sha256};
use crate::swtpm::Swtpm;
use crate::tap::{Tap, code_of};

fn certify(key: AkKind, data: &[u8]) -> Errand {
    Errand::Certify { key, data: Parcel::new(data).unwrap() }
}

/// Whether openssl takes `signature` (TPMT_SIGNATURE by RSASSA) over `message` for one by the key of this public area.
fn openssl(tpm: &mut Swtpm, area: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let folder = tpm.folder().to_owned();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).unwrap();
    write("ak", &[&u16::try_from(area.len()).unwrap().to_be_bytes()[..], area].concat());
    write("message", message);
    let print = |to: &str| {
        let printed = Command::new("tpm2_print")
            .current_dir(&folder)
            .args(["-t", "TPM2B_PUBLIC", "-f", to, "ak"])
            .output()
            .expect("tpm2_print is missing: install the package tpm2-tools");
        printed.stdout
    };
    write("ak.pem", &print("pem"));
    let [0, 0x14, 0, 0x0b, 1, 0, number @ ..] = signature else { panic!("not by RSASSA: {signature:02x?}") };
    write("signature", number);
    let done = Command::new("openssl")
        .current_dir(&folder)
        .args(["dgst", "-sha256", "-verify", "ak.pem", "-signature", "signature", "message"])
        .output()
        .expect("openssl is missing: install the package openssl");
    done.status.success()
}

#[test]
fn a_key_attests_itself_with_the_data_of_who_asks() {
    let mut tpm = launched();
    let mut clerk = clerk(&mut tpm);
    for kind in AkKind::ALL {
        let area = bytes(&mut clerk, &mut tpm, Errand::Public(kind));
        for data in [&[7; 64][..], &[0xab; 16], &[]] {
            let made = quoted(send(&mut clerk, &mut tpm, certify(kind, data)));
            let attest = CertifyAttest::parse(made.attest()).unwrap();
            let qualified = sha256(&[&0x4000_000b_u32.to_be_bytes(), &name(&area)]);
            assert_eq!((attest.extra_data, attest.name), (data, &name(&area)[..]), "{kind:?}");
            assert_eq!(&attest.qualified_name[2..], qualified, "{kind:?}");
            assert_eq!(attest.qualified_signer, attest.qualified_name, "{kind:?}");
            assert!(QuoteAttest::parse(made.attest()).is_err(), "it passes for a quote");
            if kind.is_rsa() {
                assert!(openssl(&mut tpm, &area, made.attest(), made.signature()), "{kind:?}");
                assert!(!openssl(&mut tpm, &area, &[made.attest(), &[0]].concat(), made.signature()));
            }
        }
    }
}

#[test]
fn what_is_no_attestation_of_this_key_is_not_handed_out() {
    let mut tpm = launched();
    let mut office = clerk(&mut tpm);
    let mut tap = Tap::new(tpm);
    for kind in [AkKind::HostEcdsa, AkKind::HostRsa] {
        quoted(send(&mut office, &mut tap, certify(kind, &[1; 16])));
        let answer = |tap: &Tap, code| {
            tap.heard.iter().rev().find(|(command, _)| code_of(command) == code).unwrap().1.clone()
        };
        let replayed = answer(&tap, cc::CERTIFY);
        quoted(send(&mut office, &mut tap, quote_by(kind, QUOTED, &[2; 16])));
        let quote = answer(&tap, cc::QUOTE);
        for (forged, want) in [
            (Some(replayed), Some(QuoteError::OtherAttestation)),
            (Some(quote), None),
            (None, Some(QuoteError::OtherAttestation)),
        ] {
            tap.forge = Box::new(move |code, response| {
                match &forged {
                    _ if code != cc::CERTIFY => {}
                    Some(forged) => response.clone_from(forged),
                    // The last byte of the Name that it is about: after it come qualified Name, signature and sessions.
                    None => {
                        let size = usize::from(response[14]) << 8 | usize::from(response[15]);
                        response[16 + size - 37] ^= 1;
                    }
                }
                Ok(())
            });
            let end = send(&mut office, &mut tap, certify(kind, &[2; 16]));
            let ClerkPoll::Failed(ErrandError::Quote(error)) = end else { panic!("{kind:?}: {end:?}") };
            match want {
                Some(want) => assert_eq!(error, want, "{kind:?}"),
                None => assert!(matches!(error, QuoteError::Command(cc::CERTIFY, TpmError::Decode(_)))),
            }
            tap.forge = Box::new(|_, _| Ok(()));
        }
        quoted(send(&mut office, &mut tap, certify(kind, &[3; 16])));
    }
    // The signature of an ECDSA key is verified.
    tap.forge = Box::new(|code, response| {
        if code == cc::CERTIFY && response.len() > 100 {
            let inside_the_signature = response.len() - 50;
            response[inside_the_signature] ^= 1;
        }
        Ok(())
    });
    let end = send(&mut office, &mut tap, certify(AkKind::HostEcdsa, &[4; 16]));
    assert_eq!(end, ClerkPoll::Failed(ErrandError::Quote(QuoteError::BadSignature)));
}

#[test]
fn in_lockout_no_key_attests_itself() {
    let mut tpm = launched();
    tpm.with_tools(|tools| tools.lock_out());
    tpm.set_locality(2);
    let mut clerk = clerk(&mut tpm);
    let ClerkPoll::Failed(error) = send(&mut clerk, &mut tpm, certify(AkKind::HostRsa, &[1; 16])) else {
        panic!("a key's empty value works in lockout")
    };
    assert_eq!(error.response_code(), 0x921);
    quoted(send(&mut clerk, &mut tpm, quote_by(AkKind::HostRsa, QUOTED, &[1; 16])));
}
