use super::*;
use dolmen_abi::ExtendRequest;
use proptest::prelude::*;
use sha2::{Digest, Sha384};

fn extend(index: u32, reserved: u32, fill: u8) -> Vec<u8> {
    ExtendRequest { index, reserved, digest: [fill; 48] }.as_bytes().to_vec()
}

#[test]
fn g0_is_the_identity_and_the_rest_begin_at_zero() {
    let values = Rig::new().ask::<ReadRegisters>(&()).values;
    assert_eq!(values[0], [0x60; 48]);
    assert_eq!(values[1..], [[0; 48]; 7]);
}

#[test]
fn extending_hashes_the_old_value_and_the_digest() {
    let mut rig = Rig::new();
    let reply = rig.bytes::<Extend>(&extend(3, 0, 0xaa));
    let want = Sha384::digest([[0; 48], [0xaa; 48]].concat());
    assert_eq!(reply, (Status::OK, want.to_vec()));
    assert_eq!(rig.ask::<ReadRegisters>(&()).values[3], want[..]);
}

#[test]
fn extending_what_cannot_be_extended_is_refused() {
    let mut rig = Rig::new();
    assert_eq!(rig.refused::<Extend>(&extend(0, 0, 1)), Status::READ_ONLY);
    assert_eq!(rig.refused::<Extend>(&extend(8, 0, 1)), Status::BAD_ARGUMENT);
    assert_eq!(rig.refused::<Extend>(&extend(u32::MAX, 0, 1)), Status::BAD_ARGUMENT);
    assert_eq!(rig.refused::<Extend>(&extend(1, 1, 1)), Status::RESERVED_NOT_ZERO);
    assert_eq!(rig.service.registers()[1..], [[0; 48]; 7]);
}

#[test]
fn an_extend_whose_reply_cannot_be_written_has_not_happened() {
    let mut rig = Rig::new();
    rig.ram.write(Gpa::new(REQUEST), &extend(1, 0, 1)).unwrap();
    let args = CallArgs { rdi: REQUEST, rsi: 56, rdx: 0x1_0000, rcx: 48 };
    assert_eq!(rig.raw(Extend::NUMBER, args), (Status::BAD_REPLY_ADDRESS, 0));
    assert_eq!(
        rig.raw(Extend::NUMBER, CallArgs { rdx: REPLY, rcx: 47, ..args }),
        (Status::REPLY_TOO_SMALL, 0)
    );
    assert_eq!(rig.service.registers()[1], [0; 48]);
}

#[test]
fn request_and_reply_may_be_the_same_memory() {
    let mut rig = Rig::new();
    rig.ram.write(Gpa::new(REQUEST), &extend(2, 0, 7)).unwrap();
    let args = CallArgs { rdi: REQUEST, rsi: 56, rdx: REQUEST + 8, rcx: 48 };
    assert_eq!(rig.raw(Extend::NUMBER, args), (Status::OK, 48));
    let mut value = [0; 48];
    rig.ram.read(Gpa::new(REQUEST + 8), &mut value).unwrap();
    assert_eq!(value[..], Sha384::digest([[0; 48], [7; 48]].concat())[..]);
}

proptest! {
    #[test]
    #[cfg_attr(miri, ignore = "takes too long in the interpreter")]
    fn registers_follow_the_model(steps in proptest::collection::vec((0u32..10, any::<u8>()), 0..40)) {
        let mut rig = Rig::new();
        let mut model = *rig.service.registers();
        for (index, fill) in steps {
            let (status, _) = rig.bytes::<Extend>(&extend(index, 0, fill));
            if (1..8).contains(&index) {
                let register = &mut model[index as usize];
                *register = Sha384::digest([*register, [fill; 48]].concat()).into();
                prop_assert_eq!(status, Status::OK);
            } else {
                prop_assert_ne!(status, Status::OK);
            }
            prop_assert_eq!(rig.service.registers(), &model);
        }
    }
}
