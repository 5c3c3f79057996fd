use super::super::seal::{self, Here};
use super::*;
use dolmen_abi::{
    Blob, BlobHeader, ExtendRequest, MAX_LABEL, MAX_SECRET, SEALED_OVERHEAD, SealPolicy, SealRequest,
    UnsealRequest,
};
use proptest::prelude::*;

fn seal_request(policy: u32, label: &[u8], data: &[u8]) -> Vec<u8> {
    let (label_length, data_length) = (label.len() as u32, data.len() as u32);
    [SealRequest { policy, label_length, data_length, reserved: 0 }.as_bytes(), label, data].concat()
}

fn unseal_request(label: &[u8], blob: &[u8]) -> Vec<u8> {
    let (label_length, blob_length) = (label.len() as u32, blob.len() as u32);
    [UnsealRequest { label_length, blob_length, reserved: 0 }.as_bytes(), label, blob].concat()
}

impl Rig {
    fn seal(&mut self, policy: u32, label: &[u8], data: &[u8]) -> Vec<u8> {
        let (status, blob) = self.bytes::<Seal>(&seal_request(policy, label, data));
        assert_eq!(status, Status::OK);
        blob
    }

    fn unseal(&mut self, label: &[u8], blob: &[u8]) -> (Status, Vec<u8>) {
        self.bytes::<Unseal>(&unseal_request(label, blob))
    }

    fn extend(&mut self, index: u32) {
        let request = ExtendRequest { index, reserved: 0, digest: [1; 48] };
        assert_eq!(self.bytes::<Extend>(request.as_bytes()).0, Status::OK);
    }
}

#[test]
#[cfg_attr(miri, ignore = "minutes of cipher; the other tests run the same code")]
fn what_was_sealed_opens_again() {
    let mut rig = Rig::new();
    for length in [0, 1, 31, 32, 4096, MAX_SECRET] {
        let data: Vec<u8> = (0..length).map(|i| i as u8).collect();
        let blob = rig.seal(1, b"disk", &data);
        assert_eq!(blob.len(), length + SEALED_OVERHEAD);
        assert_eq!(rig.unseal(b"disk", &blob), (Status::OK, data));
    }
}

#[test]
fn it_opens_after_a_restart_of_the_same_machine() {
    let blob = Rig::new().seal(1, b"", b"secret");
    assert_eq!(Rig::new().unseal(b"", &blob), (Status::OK, b"secret".to_vec()));
}

#[test]
fn the_same_secret_never_seals_to_the_same_blob() {
    let mut rig = Rig::new();
    let (one, two) = (rig.seal(1, b"", &[7; 64]), rig.seal(1, b"", &[7; 64]));
    let shared = one.iter().zip(&two).skip(56).filter(|(a, b)| a == b).count();
    assert!(shared < 20, "{shared} of 80 bytes are the same");
}

#[test]
#[cfg_attr(miri, ignore = "takes too long in the interpreter")]
fn another_guest_identity_hypervisor_or_label_is_refused() {
    let blob = Rig::new().seal(1, b"disk", b"secret");
    let mut other_hypervisor = config();
    other_hypervisor.sealing_root = Some(Secret::new([0x12; 32]));
    // The identity covers image, name and whole configuration: `measure_guest` shows it.
    let other_guest = ServiceConfig { identity: [0x61; 48], ..config() };
    for config in [other_guest, other_hypervisor] {
        assert_eq!(Rig::with(config).unseal(b"disk", &blob), (Status::REFUSED, Vec::new()));
    }
    for label in [b"".as_slice(), b"dis", b"disk\0", b"Disk"] {
        assert_eq!(Rig::new().unseal(label, &blob), (Status::REFUSED, Vec::new()), "{label:?}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "minutes of it; the other tests run the same code")]
fn two_guests_of_one_image_cannot_open_each_others_blobs() {
    use crate::manifest::{ComponentConfig, ComponentDigest, GuestConfig, measure_guest};
    use zerocopy::FromZeros;
    let mut one = GuestConfig::new_zeroed();
    one.name[..3].copy_from_slice(b"one");
    one.component_count = 1;
    one.components[0].kind = ComponentConfig::KERNEL;
    let (mut renamed, mut reconfigured) = (one, one);
    renamed.name[..3].copy_from_slice(b"two");
    reconfigured.memory = 1 << 30;
    let image = [ComponentDigest::of(ComponentConfig::KERNEL, b"the same image")];
    let rig =
        |guest| Rig::with(ServiceConfig { identity: measure_guest(guest, &image).unwrap(), ..config() });
    let blob = rig(&one).seal(1, b"", b"secret");
    assert_eq!(rig(&one).unseal(b"", &blob).0, Status::OK);
    assert_eq!(rig(&renamed).unseal(b"", &blob).0, Status::REFUSED);
    assert_eq!(rig(&reconfigured).unseal(b"", &blob).0, Status::REFUSED);
}

#[test]
#[cfg_attr(miri, ignore = "minutes of cipher; the other tests run the same code")]
fn a_blob_is_bound_to_the_registers_of_its_policy_and_no_others() {
    for bound in 1..8u32 {
        let mut rig = Rig::new();
        rig.extend(bound);
        let policy = (SealPolicy::G0.bits()) | (1 << bound);
        let blob = rig.seal(policy, b"", b"secret");
        for other in (1..8).filter(|other| *other != bound) {
            rig.extend(other);
        }
        assert_eq!(rig.unseal(b"", &blob).0, Status::OK, "G{bound}");
        rig.extend(bound);
        assert_eq!(rig.unseal(b"", &blob), (Status::REFUSED, Vec::new()), "G{bound}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "minutes of cipher; the other tests run the same code")]
fn every_changed_bit_is_noticed() {
    let mut rig = Rig::new();
    let blob = rig.seal(1, b"label", b"a secret of some length");
    for at in 0..blob.len() * 8 {
        let mut bent = blob.clone();
        bent[at / 8] ^= 1 << (at % 8);
        let (status, reply) = rig.unseal(b"label", &bent);
        let named = [Status::REFUSED, Status::BAD_BLOB, Status::NEWER_BLOB].contains(&status);
        assert!(named, "bit {at}: {status}");
        assert!(reply.is_empty(), "bit {at}");
    }
}

#[test]
fn a_header_from_another_blob_does_not_fit() {
    let mut rig = Rig::new();
    let (one, two) = (rig.seal(1, b"", &[1; 40]), rig.seal(1, b"", &[2; 40]));
    let mixed = [&one[..56], &two[56..]].concat();
    assert_eq!(rig.unseal(b"", &mixed), (Status::REFUSED, Vec::new()));
}

#[test]
#[cfg_attr(miri, ignore = "minutes of cipher; the other tests run the same code")]
fn truncated_and_oversized_blobs_are_refused() {
    let mut rig = Rig::new();
    let blob = rig.seal(1, b"", b"secret");
    for length in 0..blob.len() {
        assert_eq!(rig.unseal(b"", &blob[..length]), (Status::BAD_BLOB, Vec::new()), "{length}");
    }
    let longer = [blob.as_slice(), &[0]].concat();
    assert_eq!(rig.unseal(b"", &longer), (Status::BAD_BLOB, Vec::new()));
    let mut claims = blob.clone();
    claims[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(rig.unseal(b"", &claims), (Status::BAD_BLOB, Vec::new()));
    let mut huge = BlobHeader::read_from_prefix(&blob).unwrap().0;
    huge.length = MAX_SECRET as u32 + 1;
    let huge = [huge.as_bytes(), &vec![0; MAX_SECRET]].concat();
    assert_eq!(rig.unseal(b"", &huge), (Status::BAD_BLOB, Vec::new()));
}

#[test]
#[cfg_attr(miri, ignore = "minutes of cipher; the other tests run the same code")]
fn malformed_requests_are_refused_with_their_status() {
    let mut rig = Rig::new();
    let seal = |policy, label_length, data_length, reserved, rest: usize| {
        [SealRequest { policy, label_length, data_length, reserved }.as_bytes(), &vec![0; rest]].concat()
    };
    for (request, want) in [
        (seal(0, 0, 8, 0, 8), Status::BAD_FLAGS),
        (seal(2, 0, 8, 0, 8), Status::BAD_FLAGS),
        (seal(0x201, 0, 8, 0, 8), Status::BAD_FLAGS),
        (seal(0x300, 0, 8, 0, 8), Status::BAD_FLAGS),
        (seal(0x401, 0, 8, 0, 8), Status::BAD_FLAGS),
        (seal(1, 0, 8, 1, 8), Status::RESERVED_NOT_ZERO),
        (seal(1, 0, 8, 0, 7), Status::BAD_LENGTH),
        (seal(1, 0, 8, 0, 9), Status::BAD_LENGTH),
        (seal(1, 9, 0, 0, 8), Status::BAD_LENGTH),
        (seal(1, 129, 0, 0, 129), Status::BAD_LENGTH),
        (seal(1, u32::MAX, 8, 0, 8), Status::BAD_LENGTH),
        (seal(1, 0, u32::MAX, 0, 8), Status::BAD_LENGTH),
        (seal(1, 0, MAX_SECRET as u32 + 1, 0, MAX_SECRET + 1), Status::BAD_LENGTH),
    ] {
        assert_eq!(rig.refused::<Seal>(&request), want);
    }
    let unseal = |label_length, blob_length, reserved, rest: usize| {
        [UnsealRequest { label_length, blob_length, reserved }.as_bytes(), &vec![0; rest]].concat()
    };
    for (request, want) in [
        (unseal(0, 100, 1, 100), Status::RESERVED_NOT_ZERO),
        (unseal(0, 100, 0, 99), Status::BAD_LENGTH),
        (unseal(129, 0, 0, 129), Status::BAD_LENGTH),
        (unseal(0, u32::MAX, 0, 99), Status::BAD_LENGTH),
        (unseal(0, 100, 0, 100), Status::BAD_BLOB),
        (unseal(0, 0, 0, 0), Status::BAD_BLOB),
    ] {
        assert_eq!(rig.refused::<Unseal>(&request), want);
    }
}

#[test]
fn no_blob_is_made_without_randomness() {
    let mut rig = Rig::new();
    rig.tpm.has_entropy = false;
    assert_eq!(rig.refused::<Seal>(&seal_request(1, b"", b"secret")), Status::NO_ENTROPY);
}

#[test]
#[cfg_attr(miri, ignore = "takes too long in the interpreter")]
fn a_secret_needs_its_room() {
    let mut rig = Rig::new();
    let blob = rig.seal(1, b"", &[9; 100]);
    let request = unseal_request(b"", &blob);
    rig.ram.write(Gpa::new(REQUEST), &request).unwrap();
    let args = CallArgs { rdi: REQUEST, rsi: request.len() as u64, rdx: REPLY, rcx: 99 };
    assert_eq!(rig.raw(Unseal::NUMBER, args), (Status::REPLY_TOO_SMALL, 0));
    assert_eq!(rig.raw(Unseal::NUMBER, CallArgs { rcx: 100, ..args }), (Status::OK, 100));
}

#[test]
fn the_format_is_pinned_by_blobs_of_an_independent_implementation() {
    let registers = core::array::from_fn(|i| [i as u8; 48]);
    let root = Secret::new([0x42; 32]);
    let here = Here::new(Some(&root), &[0x18; 32], &registers).unwrap();
    for (policy, want) in [
        (SealPolicy::G0 | SealPolicy::G2, include_str!("../../../tests/sealed-blob.hex")),
        (SealPolicy::MANIFEST | SealPolicy::G2, include_str!("../../../tests/sealed-blob-2.hex")),
    ] {
        let mut blob = vec![0; 6 + SEALED_OVERHEAD];
        seal::seal(&here, policy, b"label", b"secret", [0x24; 32], &mut blob).unwrap();
        let hex: String = blob.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, want.trim(), "{policy:?}");
    }
}

/// Everything that a policy can select, in the order of its bits: G0 to G7, the manifest.
const SELECTABLE: usize = 9;

/// A place where the values at these bits are others than elsewhere.
fn place(others: usize) -> ([u8; 32], Registers) {
    let value = |index: usize| if others >> index & 1 == 0 { 0x10 + index as u8 } else { 0xe0 + index as u8 };
    ([value(8); 32], core::array::from_fn(|index| [value(index); 48]))
}

#[test]
#[cfg_attr(miri, ignore = "minutes of cipher; the other tests run the same code")]
fn every_policy_opens_where_all_that_it_selects_is_equal_and_nowhere_else() {
    let (root, other_root) = (Secret::new([0x42; 32]), Secret::new([0x43; 32]));
    let mut policies = 0;
    for selected in 0..1_usize << SELECTABLE {
        let names_nobody = selected & 0x101 == 0;
        let bits = selected as u32 | if names_nobody { SealPolicy::ANY_GUEST.bits() } else { 0 };
        let policy = SealPolicy::checked(bits).unwrap();
        let mut blob = [0; 6 + SEALED_OVERHEAD];
        let (manifest, registers) = place(0);
        let here = Here::new(Some(&root), &manifest, &registers).unwrap();
        seal::seal(&here, policy, b"", b"secret", [0x24; 32], &mut blob).unwrap();
        let opens = |root, others: usize| {
            let (manifest, registers) = place(others);
            let there = Here::new(Some(root), &manifest, &registers).unwrap();
            let mut out = [0xff; 6];
            let opened = seal::unseal(&there, b"", &Blob::read(&blob).unwrap(), &mut out);
            assert_eq!(out, if opened.is_ok() { *b"secret" } else { [0; 6] }, "{policy:?}");
            opened
        };
        let all = (1 << SELECTABLE) - 1;
        assert_eq!(opens(&root, 0), Ok(()), "{policy:?} where all is equal");
        assert_eq!(opens(&root, all & !selected), Ok(()), "{policy:?} where all is equal that it selects");
        assert_eq!(opens(&other_root, 0), Err(Status::REFUSED), "{policy:?} under another hypervisor");
        for index in 0..SELECTABLE {
            let want = if selected >> index & 1 == 0 { Ok(()) } else { Err(Status::REFUSED) };
            assert_eq!(opens(&root, 1 << index), want, "{policy:?} where value {index} is another");
        }
        policies += 1;
    }
    assert_eq!(policies, 512);
}

#[test]
#[cfg_attr(miri, ignore = "minutes of cipher; the other tests run the same code")]
fn a_blob_of_one_policy_does_not_open_as_one_of_another() {
    let mut rig = Rig::new();
    for (sealed, claimed) in [(0x200_u32, 0x100_u32), (0x100, 0x200), (0x100, 0x101), (0x202, 0x102), (1, 3)]
    {
        let mut blob = rig.seal(sealed, b"", b"secret");
        blob[12..16].copy_from_slice(&claimed.to_le_bytes());
        let version = SealPolicy::checked(claimed).unwrap().blob_version();
        blob[8..12].copy_from_slice(&version.to_le_bytes());
        assert_eq!(rig.unseal(b"", &blob), (Status::REFUSED, Vec::new()), "{sealed:#x} as {claimed:#x}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "minutes of cipher; the other tests run the same code")]
fn who_may_open_a_blob_is_what_its_policy_says() {
    let other_guest = || ServiceConfig { identity: [0x61; 48], ..config() };
    let other_manifest = || ServiceConfig { identity: [0x62; 48], manifest: [0x19; 32], ..config() };
    let (opens, shut) = (Status::OK, Status::REFUSED);
    for (policy, in_other_guest, under_other_manifest) in
        [(0x1, shut, shut), (0x101, shut, shut), (0x100, opens, shut), (0x200, opens, opens)]
    {
        let blob = Rig::new().seal(policy, b"", b"secret");
        assert_eq!(Rig::new().unseal(b"", &blob).0, opens, "{policy:#x}");
        assert_eq!(Rig::with(other_guest()).unseal(b"", &blob).0, in_other_guest, "{policy:#x}");
        assert_eq!(Rig::with(other_manifest()).unseal(b"", &blob).0, under_other_manifest, "{policy:#x}");
    }
}

#[test]
fn a_blob_of_a_newer_version_is_refused_by_that_name() {
    let mut rig = Rig::new();
    let mut blob = rig.seal(1, b"", b"secret");
    blob[8..12].copy_from_slice(&(BlobHeader::NEWEST + 1).to_le_bytes());
    assert_eq!(rig.unseal(b"", &blob), (Status::NEWER_BLOB, Vec::new()));
    // A version that is to come may have other lengths.
    assert_eq!(rig.unseal(b"", &blob[..40]), (Status::NEWER_BLOB, Vec::new()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(64)))]

    #[test]
    #[cfg_attr(miri, ignore = "minutes of it; the other tests run the same code")]
    fn no_forged_blob_opens(
        version in 0_u32..5, policy in 0_u32..0x500, length in 0_u32..40,
        rest in proptest::collection::vec(any::<u8>(), 32..90),
    ) {
        let words = [version, policy, length, 0].map(u32::to_le_bytes).concat();
        fake::open_forged(&[words, rest.clone()].concat());
        fake::open_forged(&rest);
    }

    #[test]
    #[cfg_attr(miri, ignore = "minutes of it; the other tests run the same code")]
    fn a_blob_opens_exactly_where_the_model_says(
        bound in 0u32..128, before in proptest::collection::vec(1u32..8, 0..6), after in proptest::collection::vec(1u32..8, 0..3),
        data in proptest::collection::vec(any::<u8>(), 0..300), label in proptest::collection::vec(any::<u8>(), 0..MAX_LABEL),
        wrong_label in proptest::bool::weighted(0.2), wrong_guest in proptest::bool::weighted(0.2),
    ) {
        let policy = 1 | (bound << 1);
        let mut rig = Rig::new();
        before.iter().for_each(|index| rig.extend(*index));
        let blob = rig.seal(policy, &label, &data);
        let identity = if wrong_guest { [1; 48] } else { [0x60; 48] };
        let mut later = Rig::with(ServiceConfig { identity, ..config() });
        before.iter().chain(&after).for_each(|index| later.extend(*index));
        let asked: Vec<u8> = if wrong_label { [label.as_slice(), b"x"].concat() } else { label };
        let changed = after.iter().any(|index| policy & (1 << index) != 0);
        let opened = later.unseal(&asked, &blob);
        if changed || wrong_label || wrong_guest {
            prop_assert_eq!(opened, (Status::REFUSED, Vec::new()));
        } else {
            prop_assert_eq!(opened, (Status::OK, data));
        }
    }
}
