//! Key set-up on a bus that somebody listens to and forges on.

use dolmen_tpm::constant::{ResponseCode, cc};
use dolmen_tpm::keys::{Provisioned, check_persistent, set_up};
use dolmen_tpm::policy::launch_policy;
use dolmen_tpm::primary::{create_with_password, decode_created_with_password};
use dolmen_tpm::public::{PublicArea, ROOT_ATTRIBUTES, Template};
use dolmen_tpm::{KeyError, KeyRole, TpmError, Transport, TransportError, command};

use crate::keys::{IMAGE, change_auth, launched, pcr17, setup};
use crate::swtpm::Swtpm;
use crate::tap::{Tap, code_of, refusal};

type Forgery = fn(&mut Vec<u8>) -> Result<(), TransportError>;

pub(crate) const PERSISTENT: u32 = 0x8100_d01e;

#[test]
fn neither_root_nor_seed_crosses_the_bus_in_the_clear() {
    let mut tap = Tap::new(launched());
    let keys = set_up(&mut tap, &setup(IMAGE)).unwrap();
    let bus = tap.all_bytes();
    assert!(!bus.windows(32).any(|window| window == keys.root.expose()));
    assert!(!bus.windows(8).any(|window| window == &keys.root.expose()[..8]));
    // The label of the command is encrypted as well.
    assert!(!bus.windows(14).any(|window| window == b"dolmen-sealing"));
}

#[test]
fn the_generator_holds_what_no_listener_heard() {
    // Even with the processor's part and the first answer of the TPM known to all.
    let draw = || {
        let mut tap = Tap::on(launched(), cc::GET_RANDOM, |response| {
            if response[1] == 1 {
                response[12..].fill(7);
            }
        });
        set_up(&mut tap, &setup(IMAGE)).unwrap().drbg.draw().unwrap()
    };
    assert_ne!(draw(), draw());
}

#[test]
fn every_command_after_the_session_that_makes_or_uses_a_key_is_checked() {
    // Any changed bit in the answers that the session protects is found.
    for code in [cc::HMAC, cc::GET_RANDOM] {
        for from_end in [1, 20, 33, 36, 60] {
            let mut tap = Tap::on(launched(), code, move |response| {
                // The first TPM2_GetRandom goes without session: nothing depends on it alone.
                if response[1] == 2 {
                    let at = response.len() - from_end;
                    response[at] ^= 1;
                }
            });
            let error = set_up(&mut tap, &setup(IMAGE)).unwrap_err();
            assert!(
                matches!(error, KeyError::Command(seen, TpmError::Forged | TpmError::Decode(_)) if seen == code),
                "{code:#x} {from_end}: {error:?}"
            );
        }
    }
}

#[test]
fn an_old_answer_to_the_same_command_is_refused() {
    let mut old: Option<Vec<u8>> = None;
    let mut tap = Tap::on(launched(), cc::GET_RANDOM, move |response| {
        if response[1] == 2 {
            match &old {
                None => old = Some(response.clone()),
                Some(recorded) => response.clone_from(recorded),
            }
        }
    });
    let mut keys = set_up(&mut tap, &setup(IMAGE)).unwrap();
    keys.drbg.fill(&mut vec![0; 1 << 20]).unwrap();
    let mut job = dolmen_tpm::reseed::ReseedJob::new();
    let end = job.poll(&mut tap, &mut keys.session, &mut keys.drbg, &[]);
    let expected = KeyError::Command(cc::GET_RANDOM, TpmError::Forged);
    assert_eq!(end, dolmen_tpm::reseed::ReseedPoll::Failed(expected));
    assert!(!keys.drbg.wants_reseed(), "it is not asked again at once");
}

#[test]
fn another_public_area_than_the_template_is_refused() {
    // Attributes, policy, scheme, curve: whatever a forger changes in the answer for the salt key.
    for at in [0, 3, 7, 11, 15, 19] {
        let mut tap = Tap::on(launched(), cc::CREATE_PRIMARY, move |response| response[20 + at] ^= 1);
        let error = set_up(&mut tap, &setup(IMAGE)).unwrap_err();
        assert!(matches!(error, KeyError::NotTheTemplate(KeyRole::Salt, _)), "{at}: {error:?}");
    }
    // The others are protected by the session.
    let mut count = 0;
    let mut tap = Tap::on(launched(), cc::CREATE_PRIMARY, move |response| {
        count += 1;
        response[27] ^= u8::from(count == 2);
    });
    let error = set_up(&mut tap, &setup(IMAGE)).unwrap_err();
    assert_eq!(error, KeyError::Command(cc::CREATE_PRIMARY, TpmError::Forged));
}

#[test]
fn a_salt_key_in_the_middle_ends_in_a_session_that_does_not_work() {
    // The forger's point is on the curve, but the TPM does not hold its key.
    let mut first = true;
    let mut tap = Tap::on(launched(), cc::CREATE_PRIMARY, move |response| {
        if first {
            first = false;
            let generator = "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296\
                             4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5";
            let point = hex(generator);
            response[44..76].copy_from_slice(&point[..32]);
            response[78..110].copy_from_slice(&point[32..]);
        }
    });
    let error = set_up(&mut tap, &setup(IMAGE)).unwrap_err();
    assert!(matches!(error, KeyError::Command(_, TpmError::Refused(_) | TpmError::Forged)), "{error:?}");
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().filter_map(|c| c.to_digit(16)).map(|d| d as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

#[test]
fn each_command_of_the_set_up_may_be_refused_cut_or_lost_without_a_panic() {
    let mut tap = Tap::new(launched());
    set_up(&mut tap, &setup(IMAGE)).unwrap();
    let commands = tap.heard.len();
    let forgeries: [Forgery; 7] = [
        |response| {
            *response = refusal(0x101);
            Ok(())
        },
        |response| {
            response.truncate(response.len() / 2);
            Ok(())
        },
        |response| {
            response.extend([0; 3]);
            Ok(())
        },
        |response| {
            response[0] = 0;
            Ok(())
        },
        |response| {
            response.fill(0xff);
            Ok(())
        },
        |response| {
            response.clear();
            Ok(())
        },
        |_| Err(TransportError::Disconnected),
    ];
    for (kind, forgery) in forgeries.into_iter().enumerate() {
        for victim in 0..commands {
            let mut seen = 0;
            let mut tap = Tap::new(launched());
            tap.forge = Box::new(move |_, response| {
                seen += 1;
                if seen == victim + 1 { forgery(response) } else { Ok(()) }
            });
            let result = set_up(&mut tap, &setup(IMAGE));
            assert!(result.is_err(), "command {victim} of {commands}, forgery {kind}");
        }
    }
}

/// Makes an object persistent (TPM2_EvictControl) with the owner's empty password.
fn persist(tpm: &mut Swtpm, object: u32) {
    let mut evict = vec![0x80, 2, 0, 0, 0, 35, 0, 0, 0x01, 0x20, 0x40, 0, 0, 1];
    evict.extend(object.to_be_bytes());
    evict.extend([0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0]);
    evict.extend(PERSISTENT.to_be_bytes());
    let mut response = [0; 64];
    tpm.transmit(&evict, &mut response).unwrap();
    assert_eq!(response[6..10], [0; 4], "TPM2_EvictControl");
    command::flush(tpm, object).unwrap();
}

/// What the owner's provisioning does: the sealing root's template, made persistent.
fn provision(tpm: &mut Swtpm) -> Provisioned {
    let template = Template::sealing_root(&launch_policy(&pcr17(IMAGE))).unwrap();
    let (mut command, mut response) = ([0; 512], [0; 1024]);
    let command = create_with_password(&mut command, 0x4000_0001, &template, &[]).unwrap();
    let size = tpm.transmit(command, &mut response).unwrap();
    let (object, created) = decode_created_with_password(&response[..size]).unwrap();
    let name = PublicArea::from_bytes(created.public).unwrap().name();
    persist(tpm, object);
    Provisioned { handle: PERSISTENT, name }
}

/// What an evil owner does: a key that looks the same but whose secret the owner knows.
pub(crate) fn plant(tpm: &mut Swtpm) -> Provisioned {
    let secret = [0x11; 32];
    let mut public = vec![0, 8, 0, 0x0b];
    public.extend((ROOT_ATTRIBUTES & !(1 << 5)).to_be_bytes());
    public.extend([0, 32]);
    public.extend(launch_policy(&pcr17(IMAGE)));
    public.extend([0, 5, 0, 0x0b, 0, 0]);
    let mut command = vec![0x80, 2, 0, 0, 0, 0, 0, 0, 0x01, 0x31, 0x40, 0, 0, 1];
    command.extend([0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0]);
    command.extend([0, 36, 0, 0, 0, 32]);
    command.extend(secret);
    command.extend(u16::try_from(public.len()).unwrap().to_be_bytes());
    command.extend(public);
    command.extend([0, 0, 0, 0, 0, 0]);
    let size = u32::try_from(command.len()).unwrap().to_be_bytes();
    command[2..6].copy_from_slice(&size);
    let mut response = [0; 1024];
    let size = tpm.transmit(&command, &mut response).unwrap();
    let (object, created) = decode_created_with_password(&response[..size]).unwrap();
    let name = PublicArea::from_bytes(created.public).unwrap().name();
    persist(tpm, object);
    Provisioned { handle: PERSISTENT, name }
}

#[test]
fn a_provisioned_key_serves_where_the_owner_has_an_authorisation_value() {
    let mut tpm = launched();
    let provisioned = provision(&mut tpm);
    let primary = set_up(&mut tpm, &setup(IMAGE)).unwrap();
    change_auth(&mut tpm, 0x4000_0001);
    let with_key = dolmen_tpm::keys::Setup { provisioned: Some(provisioned), ..setup(IMAGE) };
    let first = set_up(&mut tpm, &with_key).unwrap();
    tpm.restart();
    tpm.dynamic_launch(IMAGE);
    tpm.set_locality(2);
    let second = set_up(&mut tpm, &with_key).unwrap();
    assert_eq!(first.root.expose(), second.root.expose());
    assert_eq!(first.root.expose(), primary.root.expose(), "the same template gives the same key");
    tpm.dynamic_launch(b"evil image");
    assert_eq!(set_up(&mut tpm, &with_key).unwrap_err(), KeyError::NotThisLaunch);
}

#[test]
fn a_planted_key_is_refused_even_if_its_name_is_the_one_pinned() {
    let mut tpm = launched();
    let planted = plant(&mut tpm);
    let error = check_persistent(&mut tpm, &launch_policy(&pcr17(IMAGE)), &planted).unwrap_err();
    assert!(matches!(error, KeyError::NotTheTemplate(KeyRole::Provisioned, _)), "{error:?}");
    assert!(error.to_string().contains("planted"), "{error}");
    let with_key = dolmen_tpm::keys::Setup { provisioned: Some(planted), ..setup(IMAGE) };
    assert_eq!(set_up(&mut tpm, &with_key).unwrap_err(), error);
}

#[test]
fn a_key_of_another_name_policy_or_handle_is_refused() {
    let mut tpm = launched();
    let policy = launch_policy(&pcr17(IMAGE));
    let mut provisioned = provision(&mut tpm);
    assert_eq!(check_persistent(&mut tpm, &policy, &provisioned), Ok(()));
    let other = check_persistent(&mut tpm, &launch_policy(&pcr17(b"evil image")), &provisioned);
    assert!(matches!(other, Err(KeyError::NotTheTemplate(KeyRole::Provisioned, _))), "{other:?}");
    provisioned.name[5] ^= 1;
    let other = check_persistent(&mut tpm, &policy, &provisioned);
    assert_eq!(other, Err(KeyError::WrongName(KeyRole::Provisioned)));
    provisioned.handle += 1;
    let missing = check_persistent(&mut tpm, &policy, &provisioned);
    assert_eq!(missing, Err(KeyError::NotProvisioned(PERSISTENT + 1)));
}

#[test]
fn a_forged_read_of_the_public_area_does_not_make_a_planted_key_serve() {
    // The forger shows the true key's public area and pins its name, but the handle holds the planted key.
    let mut tpm = launched();
    let true_key = provision(&mut tpm);
    let mut tap = Tap::new(tpm);
    check_persistent(&mut tap, &launch_policy(&pcr17(IMAGE)), &true_key).unwrap();
    let shown = tap.heard.pop().unwrap();
    assert_eq!(code_of(&shown.0), cc::READ_PUBLIC);
    let mut tpm = launched();
    plant(&mut tpm);
    let mut tap = Tap::on(tpm, cc::READ_PUBLIC, move |response| response.clone_from(&shown.1));
    let with_key = dolmen_tpm::keys::Setup { provisioned: Some(true_key), ..setup(IMAGE) };
    let error = set_up(&mut tap, &with_key).unwrap_err();
    let refused = matches!(error, KeyError::Command(cc::HMAC, TpmError::Refused(code))
        if matches!(code.base(), ResponseCode::AUTH_FAIL | ResponseCode::BAD_AUTH));
    assert!(refused, "{error:?}");
}
