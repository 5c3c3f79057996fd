//! The clerk on a real TPM: every attestation key, quotes about the host, endorsement keys, certificates, credentials.

use std::process::Command;

use dolmen_tpm::attest::QuoteAttest;
use dolmen_tpm::attestation::AkKind;
use dolmen_tpm::clerk::{Answer, Clerk, ClerkPoll, EkKind, Errand, ErrandError, Parcel};
use dolmen_tpm::constant::{ResponseCode, cc};
use dolmen_tpm::drbg::Drbg;
use dolmen_tpm::keys::set_up;
use dolmen_tpm::policy::QUOTED;
use dolmen_tpm::quote::{Busy, Quote};
use dolmen_tpm::session::HmacSession;
use dolmen_tpm::{PolledTransport, Secret, TpmError};

use crate::keys::{IMAGE, change_auth, launched, setup, sha256};
use crate::swtpm::Swtpm;
use crate::tap::{Tap, refusal};

const ALL: u32 = 0x00ff_ffff;

/// A clerk with the launch's salted session and generator.
pub(crate) struct Office {
    pub(crate) clerk: Clerk,
    pub(crate) salted: HmacSession,
    pub(crate) drbg: Drbg,
}

impl Office {
    pub(crate) fn start(&mut self, errand: Errand) -> Result<(), Busy> {
        self.clerk.start(errand, Secret::new(self.drbg.draw().unwrap()))
    }

    pub(crate) fn poll(&mut self, tpm: &mut impl PolledTransport) -> ClerkPoll {
        self.clerk.poll(tpm, &mut self.salted)
    }

    const fn is_busy(&self) -> bool {
        self.clerk.is_busy()
    }

    pub(crate) fn answer(&self) -> &[u8] {
        self.clerk.answer()
    }
}

pub(crate) fn clerk(tpm: &mut Swtpm) -> Office {
    let keys = set_up(tpm, &setup(IMAGE)).unwrap();
    Office { clerk: Clerk::new(keys.ak), salted: keys.session, drbg: keys.drbg }
}

/// What the credentials of [`make`] hold.
pub(crate) const CHALLENGE: &[u8] = b"a challenge of the enroller's";

#[test]
fn what_a_credential_holds_crosses_the_bus_encrypted_and_a_forged_answer_is_refused() {
    let mut tpm = launched();
    let mut clerk = clerk(&mut tpm);
    let endorsement = bytes(&mut clerk, &mut tpm, Errand::EndorsementKey(EkKind::Ecc));
    let area = bytes(&mut clerk, &mut tpm, Errand::Public(AkKind::GuestEcdsa));
    let file = make(&mut tpm, &endorsement, &name(&area));
    let errand = activation(AkKind::GuestEcdsa, EkKind::Ecc, &file);
    let mut tap = Tap::new(tpm);
    assert_eq!(send(&mut clerk, &mut tap, errand), ClerkPoll::Done(Answer::Bytes));
    assert_eq!(clerk.answer(), CHALLENGE);
    let bus = tap.all_bytes();
    assert!(!bus.windows(8).any(|window| window == &CHALLENGE[..8]), "it crossed the bus in the clear");
    tap.forge = Box::new(|code, response| {
        if code == cc::ACTIVATE_CREDENTIAL && response.len() > 20 {
            response[17] ^= 1;
        }
        Ok(())
    });
    let forged = ErrandError::Command(cc::ACTIVATE_CREDENTIAL, TpmError::Forged);
    assert_eq!(send(&mut clerk, &mut tap, errand), ClerkPoll::Failed(forged));
    tap.forge = Box::new(|_, _| Ok(()));
    let end = send(&mut clerk, &mut tap, quote_by(AkKind::GuestEcdsa, QUOTED, &[1; 32]));
    assert!(matches!(end, ClerkPoll::Done(_)), "{end:?}");
}

/// Sends the clerk and waits.
pub(crate) fn send(clerk: &mut Office, tpm: &mut impl PolledTransport, errand: Errand) -> ClerkPoll {
    let end = send_once(clerk, tpm, errand);
    // A TPM asks for a repetition before the first use of an authorisation value after its start; the registers' driver
    // repeats by itself, the bare connection does not.
    match end {
        ClerkPoll::Failed(error) if error.response_code() == ResponseCode::RETRY.0 => {
            send_once(clerk, tpm, errand)
        }
        other => other,
    }
}

fn send_once(clerk: &mut Office, tpm: &mut impl PolledTransport, errand: Errand) -> ClerkPoll {
    clerk.start(errand).unwrap();
    for _ in 0..300 {
        match clerk.poll(tpm) {
            ClerkPoll::Pending => assert!(clerk.is_busy()),
            end => {
                assert!(!clerk.is_busy());
                return end;
            }
        }
    }
    panic!("the errand does not end")
}

pub(crate) fn quote_by(key: AkKind, pcrs: u32, data: &[u8]) -> Errand {
    Errand::Quote { key, pcrs, data: Parcel::new(data).unwrap(), with_values: key.is_host() }
}

pub(crate) fn quoted(end: ClerkPoll) -> Quote {
    match end {
        ClerkPoll::Done(Answer::Quote(quote)) => quote,
        other => panic!("no quote: {other:?}"),
    }
}

pub(crate) fn bytes(clerk: &mut Office, tpm: &mut Swtpm, errand: Errand) -> Vec<u8> {
    assert_eq!(send(clerk, tpm, errand), ClerkPoll::Done(Answer::Bytes));
    clerk.answer().to_vec()
}

fn with_size(area: &[u8]) -> Vec<u8> {
    [&u16::try_from(area.len()).unwrap().to_be_bytes()[..], area].concat()
}

/// The Name of a public area.
pub(crate) fn name(area: &[u8]) -> Vec<u8> {
    [&[0, 0x0b][..], &sha256(&[area])].concat()
}

/// Registers as `tpm2_quote -o` writes them: a selection, then lists of eight digests.
fn serialized(pcrs: u32, values: &[&[u8]]) -> Vec<u8> {
    let mut out = 1_u32.to_le_bytes().to_vec();
    out.extend([0x0b, 0, 3]);
    out.extend(&pcrs.to_le_bytes()[..3]);
    out.resize(4 + 16 * 8, 0);
    out.extend(u32::try_from(values.len().div_ceil(8)).unwrap().to_le_bytes());
    for list in values.chunks(8) {
        let start = out.len();
        out.extend(u32::try_from(list.len()).unwrap().to_le_bytes());
        for value in list {
            out.extend([32, 0]);
            out.extend(*value);
            out.extend([0; 32]);
        }
        out.resize(start + 4 + 8 * 66, 0);
    }
    out
}

/// `tpm2_checkquote` on a quote: by the key of this public area, with these registers and this extra data.
fn checkquote(tpm: &Swtpm, area: &[u8], quote: &Quote, pcrs: &[u8], nonce: &str) -> bool {
    let write = |name: &str, bytes: &[u8]| std::fs::write(tpm.folder().join(name), bytes).unwrap();
    write("ak", &with_size(area));
    write("attest", quote.attest());
    write("signature", quote.signature());
    write("pcrs", pcrs);
    let done = Command::new("tpm2_checkquote")
        .current_dir(tpm.folder())
        .args(["-u", "ak", "-m", "attest", "-s", "signature", "-f", "pcrs", "-g", "sha256", "-q", nonce])
        .output()
        .expect("tpm2_checkquote is missing: install the package tpm2-tools");
    done.status.success()
}

#[test]
fn stock_tools_accept_quotes_by_every_key_and_over_every_register() {
    let mut tpm = launched();
    let mut clerk = clerk(&mut tpm);
    for kind in AkKind::ALL {
        let area = bytes(&mut clerk, &mut tpm, Errand::Public(kind));
        let pcrs = if kind.is_host() { ALL } else { QUOTED };
        let quote = quoted(send(&mut clerk, &mut tpm, quote_by(kind, pcrs, &[0xab; 20])));
        let launched = [crate::keys::pcr17(IMAGE), [0; 32]];
        let values: Vec<&[u8]> = if kind.is_host() {
            clerk.answer().chunks(32).collect()
        } else {
            launched.iter().map(|value| &value[..]).collect()
        };
        let pcrs = serialized(pcrs, &values);
        assert!(checkquote(&tpm, &area, &quote, &pcrs, &"ab".repeat(20)), "{kind:?}");
        assert!(!checkquote(&tpm, &area, &quote, &pcrs, &"ab".repeat(19)), "{kind:?}");
    }
}

#[test]
fn each_key_is_another_and_comes_out_the_same_again() {
    let mut tpm = launched();
    let mut clerk = clerk(&mut tpm);
    let all = |clerk: &mut Office, tpm: &mut Swtpm| {
        AkKind::ALL.map(|kind| name(&bytes(clerk, tpm, Errand::Public(kind))))
    };
    let first = all(&mut clerk, &mut tpm);
    for (index, one) in first.iter().enumerate() {
        assert!(first.iter().skip(index + 1).all(|other| other != one), "key {index} has a twin");
    }
    assert_eq!(first[0], set_up(&mut tpm, &setup(IMAGE)).unwrap().ak.name);
    let mut again = self::clerk(&mut tpm);
    assert_eq!(all(&mut again, &mut tpm), first);
}

#[test]
fn a_quote_about_the_host_has_the_nonce_as_it_is_and_the_values_that_were_quoted() {
    let mut tpm = launched();
    let mut clerk = clerk(&mut tpm);
    for (pcrs, data) in [(QUOTED, &[7; 64][..]), (ALL, b"n"), (1 << 17, &[])] {
        let quote = quoted(send(&mut clerk, &mut tpm, quote_by(AkKind::HostEcdsa, pcrs, data)));
        let attest = QuoteAttest::parse(quote.attest()).unwrap();
        assert_eq!(attest.extra_data, data);
        let values = clerk.answer().chunks(32).enumerate();
        let selected: Vec<u8> =
            values.filter(|(pcr, _)| pcrs >> pcr & 1 == 1).flat_map(|(_, value)| value.to_vec()).collect();
        assert_eq!(attest.pcr_digest, sha256(&[&selected]));
        assert_eq!(clerk.answer()[17 * 32..18 * 32], crate::keys::pcr17(IMAGE));
    }
}

#[test]
fn no_order_of_errands_runs_out_of_the_tpms_places() {
    let mut tpm = launched();
    let mut clerk = clerk(&mut tpm);
    for round in 0..6 {
        for kind in AkKind::ALL {
            quoted(send(&mut clerk, &mut tpm, quote_by(kind, QUOTED, &[round; 32])));
            bytes(&mut clerk, &mut tpm, Errand::EndorsementKey(EkKind::Ecc));
        }
    }
}

#[test]
fn one_errand_at_a_time() {
    let mut tpm = launched();
    let mut clerk = clerk(&mut tpm);
    assert_eq!(clerk.poll(&mut tpm), ClerkPoll::Idle);
    clerk.start(Errand::Public(AkKind::GuestEcdsa)).unwrap();
    assert_eq!(clerk.start(Errand::Public(AkKind::GuestEcdsa)), Err(Busy));
}

#[test]
fn endorsement_keys_are_those_of_the_stock_tools() {
    let mut tpm = launched();
    let mut clerk = clerk(&mut tpm);
    for (kind, word) in [(EkKind::Rsa, "rsa"), (EkKind::Ecc, "ecc")] {
        let ours = bytes(&mut clerk, &mut tpm, Errand::EndorsementKey(kind));
        tpm.with_tools(|tools| {
            tools.run("tpm2_flushcontext -l");
            tools.run(&format!("tpm2_createek -Q -G {word} -c ek.ctx -u ek.pub"));
            tools.run("tpm2_flushcontext -t");
            assert_eq!(tools.read("ek.pub"), with_size(&ours), "{word}");
        });
        tpm.set_locality(2);
        clerk = self::clerk(&mut tpm);
    }
}

#[test]
fn a_certificate_is_read_whole_and_a_missing_one_is_no_bytes() {
    let mut tpm = launched();
    let certificate: Vec<u8> = (0..1300_u32).map(|n| n as u8).collect();
    tpm.with_tools(|tools| {
        tools.write("certificate", &certificate);
        tools.run("tpm2_nvdefine -Q -C p -s 1300 -a ppwrite|ppread|ownerread|authread|no_da|platformcreate 0x1c00002");
        tools.run("tpm2_nvwrite -Q -C p -i certificate 0x1c00002");
        tools.write("part", &certificate[..700]);
        tools.run("tpm2_nvdefine -Q -C p -s 700 -a ppwrite|ppread|ownerread|authread|no_da|platformcreate 0x1c00101");
        tools.run("tpm2_nvwrite -Q -C p -i part 0x1c00101");
    });
    tpm.set_locality(2);
    let mut clerk = clerk(&mut tpm);
    assert_eq!(bytes(&mut clerk, &mut tpm, Errand::Certificate(EkKind::Rsa)), certificate);
    assert!(bytes(&mut clerk, &mut tpm, Errand::Certificate(EkKind::Ecc)).is_empty());
    assert_eq!(bytes(&mut clerk, &mut tpm, Errand::Chain(1)), certificate[..700]);
    assert!(bytes(&mut clerk, &mut tpm, Errand::Chain(2)).is_empty());
}

/// What `tpm2_makecredential` writes: a magic and a version, then both structures with their sizes.
fn credential(file: &[u8]) -> (&[u8], &[u8]) {
    let rest = &file[8..];
    let size = usize::from(u16::from_be_bytes([rest[0], rest[1]]));
    (&rest[2..2 + size], &rest[4 + size..])
}

/// A credential for the key of this Name, made by a stock tool without a TPM.
pub(crate) fn make(tpm: &mut Swtpm, ek: &[u8], name: &[u8]) -> Vec<u8> {
    let name: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut made = Vec::new();
    tpm.with_tools(|tools| {
        tools.write("ek.pub", &with_size(ek));
        tools.write("secret", CHALLENGE);
        tools.run(&format!("tpm2_makecredential -Q -T none -u ek.pub -s secret -n {name} -o credential"));
        made = tools.read("credential");
    });
    tpm.set_locality(2);
    made
}

pub(crate) fn activation(key: AkKind, ek: EkKind, file: &[u8]) -> Errand {
    let (credential, secret) = credential(file);
    let (credential, secret) = (Parcel::new(credential).unwrap(), Parcel::new(secret).unwrap());
    Errand::Activate { key, ek, credential, secret }
}

#[test]
fn a_credential_opens_for_the_key_that_it_was_made_for_and_for_no_other() {
    let mut tpm = launched();
    let mut clerk = clerk(&mut tpm);
    for ek in [EkKind::Rsa, EkKind::Ecc] {
        let endorsement = bytes(&mut clerk, &mut tpm, Errand::EndorsementKey(ek));
        for (key, other) in AkKind::ALL.into_iter().zip(AkKind::ALL.into_iter().cycle().skip(1)) {
            let area = bytes(&mut clerk, &mut tpm, Errand::Public(key));
            let file = make(&mut tpm, &endorsement, &name(&area));
            let opened = bytes(&mut clerk, &mut tpm, activation(key, ek, &file));
            assert_eq!(opened, b"a challenge of the enroller's", "{key:?}, {ek:?}");
            let refused = send(&mut clerk, &mut tpm, activation(other, ek, &file));
            assert!(matches!(refused, ClerkPoll::Failed(ErrandError::Command(cc::ACTIVATE_CREDENTIAL, _))));
        }
    }
    quoted(send(&mut clerk, &mut tpm, quote_by(AkKind::GuestRsa, QUOTED, &[1; 32])));
}

#[test]
fn in_lockout_no_credential_opens_but_quotes_go_on() {
    let mut tpm = launched();
    let mut clerk = clerk(&mut tpm);
    let endorsement = bytes(&mut clerk, &mut tpm, Errand::EndorsementKey(EkKind::Ecc));
    let area = bytes(&mut clerk, &mut tpm, Errand::Public(AkKind::GuestEcdsa));
    let file = make(&mut tpm, &endorsement, &name(&area));
    tpm.with_tools(|tools| tools.lock_out());
    tpm.set_locality(2);
    let mut clerk = self::clerk(&mut tpm);
    // Known before anything is made.
    let mut tap = Tap::on(tpm, cc::CREATE_PRIMARY, |_| panic!("a key is made"));
    let end = send(&mut clerk, &mut tap, activation(AkKind::GuestEcdsa, EkKind::Ecc, &file));
    assert_eq!(end, ClerkPoll::Failed(ErrandError::InLockout));
    // And by the TPM itself, if it did not tell.
    let mut tap = Tap::on(tap.tpm, cc::GET_CAPABILITY, |response| response[19..].fill(0));
    let ClerkPoll::Failed(error) =
        send(&mut clerk, &mut tap, activation(AkKind::GuestEcdsa, EkKind::Ecc, &file))
    else {
        panic!("it opened")
    };
    assert!(matches!(error, ErrandError::Command(cc::ACTIVATE_CREDENTIAL, _)), "{error:?}");
    assert_eq!((error.response_code(), ErrandError::InLockout.response_code()), (0x921, 0x921));
    let mut tpm = tap.tpm;
    quoted(send(&mut clerk, &mut tpm, quote_by(AkKind::GuestEcdsa, QUOTED, &[1; 32])));
    quoted(send(&mut clerk, &mut tpm, quote_by(AkKind::HostRsa, QUOTED, &[1; 32])));
    set_up(&mut tpm, &setup(IMAGE)).unwrap();
}

#[test]
fn an_endorsement_value_that_came_after_the_launch_is_named() {
    let mut tpm = launched();
    let mut clerk = clerk(&mut tpm);
    let endorsement = bytes(&mut clerk, &mut tpm, Errand::EndorsementKey(EkKind::Ecc));
    let area = bytes(&mut clerk, &mut tpm, Errand::Public(AkKind::GuestEcdsa));
    let file = make(&mut tpm, &endorsement, &name(&area));
    tpm.set_locality(2);
    let mut clerk = self::clerk(&mut tpm);
    change_auth(&mut tpm, 0x4000_000b);
    let end = send(&mut clerk, &mut tpm, activation(AkKind::GuestEcdsa, EkKind::Ecc, &file));
    assert_eq!(end, ClerkPoll::Failed(ErrandError::EndorsementValue));
    // The same code as the TPM's own, where it is the one that refuses.
    let ClerkPoll::Failed(error) = send(&mut clerk, &mut tpm, Errand::EndorsementKey(EkKind::Rsa)) else {
        panic!("a key without the value")
    };
    assert_eq!(error.response_code(), ErrandError::EndorsementValue.response_code());
}

#[test]
fn whatever_command_is_refused_the_places_are_free_again() {
    for code in [
        cc::CREATE_PRIMARY,
        cc::START_AUTH_SESSION,
        cc::POLICY_SECRET,
        cc::ACTIVATE_CREDENTIAL,
        cc::PCR_READ,
        cc::QUOTE,
        cc::CERTIFY,
        cc::NV_READ_PUBLIC,
        cc::FLUSH_CONTEXT,
    ] {
        let mut tpm = launched();
        let mut clerk = clerk(&mut tpm);
        let endorsement = bytes(&mut clerk, &mut tpm, Errand::EndorsementKey(EkKind::Ecc));
        let area = bytes(&mut clerk, &mut tpm, Errand::Public(AkKind::HostEcdsa));
        let file = make(&mut tpm, &endorsement, &name(&area));
        clerk = self::clerk(&mut tpm);
        let mut refusals = 3;
        let mut tap = Tap::on(tpm, code, move |response| {
            if refusals > 0 {
                refusals -= 1;
                *response = refusal(0x101);
            }
        });
        let errands = [
            activation(AkKind::HostEcdsa, EkKind::Ecc, &file),
            quote_by(AkKind::HostRsa, QUOTED, &[1; 32]),
            Errand::Certify { key: AkKind::HostRsa, data: Parcel::new(&[2; 16]).unwrap() },
            Errand::Certificate(EkKind::Rsa),
        ];
        let mut failures = 0;
        for errand in errands {
            if let ClerkPoll::Failed(error) = send(&mut clerk, &mut tap, errand) {
                assert_eq!(error.response_code(), 0x101, "{code:#x}: {error:?}");
                failures += 1;
            }
        }
        assert!(failures > 0, "{code:#x}");
    }
}

#[test]
fn a_forged_public_area_is_refused_and_its_key_flushed() {
    let mut tpm = launched();
    let mut clerk = clerk(&mut tpm);
    let mut left = 4;
    let mut tap = Tap::on(tpm, cc::CREATE_PRIMARY, move |response| {
        if left > 0 {
            left -= 1;
            response[26] ^= 1; // an attribute of the public area
        }
    });
    for _ in 0..4 {
        let end = send(&mut clerk, &mut tap, Errand::Public(AkKind::HostRsa));
        assert!(matches!(end, ClerkPoll::Failed(ErrandError::NotTheTemplate(_))), "{end:?}");
    }
    assert_eq!(send(&mut clerk, &mut tap, Errand::Public(AkKind::HostRsa)), ClerkPoll::Done(Answer::Bytes));
    let refused = ErrandError::Command(cc::QUOTE, TpmError::Refused(ResponseCode(1)));
    assert_eq!(refused.response_code(), 1);
}
