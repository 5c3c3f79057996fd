//! Keys of a launch, on a real TPM: usable by that launch at locality 2, by nobody and nowhere else.

use dolmen_tpm::command::PcrIndex;
use dolmen_tpm::constant::{ResponseCode, alg, cc};
use dolmen_tpm::keys::{Keys, Setup, set_up};
use dolmen_tpm::policy::launch_policy;
use dolmen_tpm::quote::{QuoteError, QuoteJob, QuotePoll};
use dolmen_tpm::reseed::{ReseedJob, ReseedPoll};
use dolmen_tpm::tis::{Locality, Tis};
use dolmen_tpm::{KeyError, KeyRole, TpmError, Transport, measure};
use sha2::{Digest as _, Sha256};

use crate::swtpm::Swtpm;
use crate::tap::Tap;
use crate::tis_model::TisModel;

pub(crate) const IMAGE: &[u8] = b"the launch image";

pub(crate) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    Sha256::digest(parts.concat()).into()
}

/// PCR 17 after the launch of `image` and nothing more.
pub(crate) fn pcr17(image: &[u8]) -> [u8; 32] {
    sha256(&[&[0; 32], &sha256(&[image])])
}

pub(crate) fn setup(image: &[u8]) -> Setup<'static> {
    Setup { pcr17: pcr17(image), cpu_entropy: &[0x5a; 32], provisioned: None }
}

/// A TPM after the launch of [`IMAGE`], at locality 2.
pub(crate) fn launched() -> Swtpm {
    let mut tpm = Swtpm::new();
    tpm.dynamic_launch(IMAGE);
    tpm.set_locality(2);
    tpm
}

/// Turns a quote job until it ends.
pub(crate) fn quote(tpm: &mut Swtpm, keys: &Keys, extra_data: [u8; 32]) -> QuotePoll {
    let mut job = QuoteJob::new();
    job.start(extra_data, [3; 32]).unwrap();
    loop {
        match job.poll(tpm, &keys.ak) {
            QuotePoll::Pending => {}
            end => return end,
        }
    }
}

#[test]
fn a_launch_gets_the_same_root_and_key_again_after_a_restart_of_the_tpm() {
    let mut tpm = launched();
    let first = set_up(&mut tpm, &setup(IMAGE)).unwrap();
    let again = set_up(&mut tpm, &setup(IMAGE)).unwrap();
    tpm.restart();
    tpm.dynamic_launch(IMAGE);
    tpm.set_locality(2);
    let after = set_up(&mut tpm, &setup(IMAGE)).unwrap();
    assert_eq!(first.root.expose(), again.root.expose());
    assert_eq!(first.root.expose(), after.root.expose());
    assert_ne!(first.root.expose(), &[0; 32]);
    assert_eq!(first.ak.public, after.ak.public);
}

#[test]
fn another_launch_gets_another_root_and_another_key() {
    let mut tpm = launched();
    let ours = set_up(&mut tpm, &setup(IMAGE)).unwrap();
    tpm.dynamic_launch(b"evil image");
    let theirs = set_up(&mut tpm, &setup(b"evil image")).unwrap();
    assert_ne!(ours.root.expose(), theirs.root.expose());
    assert_ne!(ours.ak.name, theirs.ak.name);
}

#[test]
fn another_tpm_gets_another_root_for_the_same_launch() {
    let (mut one, mut two) = (launched(), launched());
    let first = set_up(&mut one, &setup(IMAGE)).unwrap();
    let second = set_up(&mut two, &setup(IMAGE)).unwrap();
    assert_ne!(first.root.expose(), second.root.expose());
}

#[test]
fn an_evil_launch_that_asks_for_our_keys_is_refused() {
    let mut tpm = launched();
    let keys = set_up(&mut tpm, &setup(IMAGE)).unwrap();
    tpm.dynamic_launch(b"evil image");
    assert_eq!(quote(&mut tpm, &keys, [1; 32]), QuotePoll::Failed(QuoteError::NotThisLaunch));
    assert_eq!(set_up(&mut tpm, &setup(IMAGE)).unwrap_err(), KeyError::NotThisLaunch);
}

#[test]
fn the_keys_are_refused_at_every_other_locality() {
    for locality in [0, 1, 3, 4] {
        let mut tpm = launched();
        let keys = set_up(&mut tpm, &setup(IMAGE)).unwrap();
        tpm.set_locality(locality);
        let refused = QuoteError::Command(cc::QUOTE, TpmError::Refused(ResponseCode::LOCALITY));
        assert_eq!(quote(&mut tpm, &keys, [1; 32]), QuotePoll::Failed(refused), "locality {locality}");
        assert_eq!(
            set_up(&mut tpm, &setup(IMAGE)).unwrap_err(),
            KeyError::WrongLocality,
            "locality {locality}"
        );
    }
}

#[test]
fn an_extend_of_the_code_register_after_the_launch_shuts_the_keys() {
    let mut tpm = launched();
    let keys = set_up(&mut tpm, &setup(IMAGE)).unwrap();
    let digest = [0; 32];
    let digests = [dolmen_tpm::command::Digest::new(alg::SHA256, &digest).unwrap()];
    measure::extend_all(&mut tpm, PcrIndex::DRTM_CODE, &digests).unwrap();
    assert_eq!(quote(&mut tpm, &keys, [1; 32]), QuotePoll::Failed(QuoteError::NotThisLaunch));
}

#[test]
fn a_tpm_without_the_sha256_bank_is_refused() {
    let mut tpm = Swtpm::with_banks("sha1,sha384");
    tpm.dynamic_launch(IMAGE);
    tpm.set_locality(2);
    let error = set_up(&mut tpm, &setup(IMAGE)).unwrap_err();
    assert_eq!(error, KeyError::BankOff);
    assert!(error.to_string().contains("tpm2_pcrallocate"), "{error}");
}

#[test]
fn an_owner_with_an_authorisation_value_is_told_what_to_do() {
    for (hierarchy, role) in [(0x4000_0001, KeyRole::Root), (0x4000_000b, KeyRole::Attestation)] {
        let mut tpm = launched();
        change_auth(&mut tpm, hierarchy);
        // Known before anything is made.
        let mut tap = Tap::on(tpm, cc::CREATE_PRIMARY, |_| panic!("a key is made"));
        let error = set_up(&mut tap, &setup(IMAGE)).unwrap_err();
        assert_eq!(error, KeyError::HierarchyHasAuth(role));
        let word = if role == KeyRole::Root { "owner" } else { "endorsement" };
        assert!(error.to_string().contains(&format!("the {word} hierarchy has")), "{error}");
        assert!(error.to_string().contains(&format!("tpm2_changeauth -c {word}")), "{error}");
        assert_eq!(error.to_string().contains("`dolmen provision`"), role == KeyRole::Root, "{error}");
        // A TPM that does not tell, or a bus that lies, leads to the same refusal, by the TPM.
        let mut tap = Tap::on(tap.tpm, cc::GET_CAPABILITY, |response| {
            if let Some(at) = response.windows(4).position(|window| window == [0, 0, 2, 0]) {
                response[at + 4..at + 8].fill(0);
            }
        });
        assert_eq!(set_up(&mut tap, &setup(IMAGE)).unwrap_err(), KeyError::HierarchyHasAuth(role));
    }
}

#[test]
fn a_lockout_and_its_authorisation_value_stop_no_launch_and_are_told() {
    let mut tpm = launched();
    assert!(!set_up(&mut tpm, &setup(IMAGE)).unwrap().permanent.is_in_lockout());
    change_auth(&mut tpm, 0x4000_000a);
    let told = set_up(&mut tpm, &setup(IMAGE)).unwrap().permanent;
    assert!(told.has_lockout_value() && !told.is_in_lockout());
    let mut tpm = launched();
    tpm.with_tools(|tools| tools.lock_out());
    tpm.set_locality(2);
    let told = set_up(&mut tpm, &setup(IMAGE)).unwrap().permanent;
    assert!(told.is_in_lockout() && told.lockout_remedy().contains("tpm2_dictionarylockout -c"));
}

/// TPM2_HierarchyChangeAuth to "secret".
pub(crate) fn change_auth(tpm: &mut Swtpm, hierarchy: u32) {
    let mut command = vec![0x80, 0x02, 0, 0, 0, 35, 0, 0, 0x01, 0x29];
    command.extend(hierarchy.to_be_bytes());
    command.extend([0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0, 0, 6]);
    command.extend(b"secret");
    let mut response = [0; 64];
    tpm.transmit(&command, &mut response).unwrap();
    assert_eq!(response[6..10], [0; 4]);
}

#[test]
fn the_attestation_key_names_the_policy_of_the_launch_and_nothing_more_than_the_design_says() {
    let mut tpm = launched();
    let keys = set_up(&mut tpm, &setup(IMAGE)).unwrap();
    let public = keys.ak.public.bytes();
    assert_eq!(public[..8], [0, 0x23, 0, 0x0b, 0, 5, 0, 0x32]);
    assert_eq!(public[8..10], [0, 32]);
    assert_eq!(public[10..42], launch_policy(&pcr17(IMAGE)));
}

#[test]
fn software_that_left_every_slot_full_does_not_stop_a_launch() {
    let mut tpm = launched();
    for _ in 0..3 {
        start_foreign_session(&mut tpm);
    }
    assert!(set_up(&mut tpm, &setup(IMAGE)).is_ok());
    // Three times over: nothing of ours is left behind either.
    for _ in 0..3 {
        assert!(set_up(&mut tpm, &setup(IMAGE)).is_ok());
    }
}

fn start_foreign_session(tpm: &mut Swtpm) {
    let mut command = [0; 128];
    let mut response = [0; 128];
    let command = dolmen_tpm::session::start_policy_session(&mut command, &[1; 32]).unwrap();
    tpm.transmit(command, &mut response).unwrap();
    assert_eq!(response[6..10], [0; 4]);
}

#[test]
fn the_session_reseeds_the_generator_while_guests_run() {
    let mut tpm = launched();
    let mut keys = set_up(&mut tpm, &setup(IMAGE)).unwrap();
    let mut job = ReseedJob::new();
    assert_eq!(job.poll(&mut tpm, &mut keys.session, &mut keys.drbg, &[]), ReseedPoll::Idle);
    for round in 0..3 {
        keys.drbg.fill(&mut vec![0; 1 << 20]).unwrap();
        let done = job.poll(&mut tpm, &mut keys.session, &mut keys.drbg, &[]);
        assert_eq!(done, ReseedPoll::Done, "round {round}");
    }
}

#[test]
fn keys_and_quotes_work_through_the_register_interface() {
    let mut tis = Tis::new(TisModel::new(launched(), Swtpm::set_locality), Locality::Two);
    tis.claim().unwrap();
    let keys = set_up(&mut tis, &setup(IMAGE)).unwrap();
    let mut job = QuoteJob::new();
    job.start([9; 32], [3; 32]).unwrap();
    let mut polls = 0;
    let end = loop {
        polls += 1;
        match job.poll(&mut tis, &keys.ak) {
            QuotePoll::Pending => {}
            end => break end,
        }
    };
    assert!(matches!(end, QuotePoll::Done(_)), "{end:?}");
    assert!(polls > 100, "a poll is a small step, not the whole quote: {polls}");
}
