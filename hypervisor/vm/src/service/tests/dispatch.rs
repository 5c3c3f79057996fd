use super::*;
use dolmen_abi::{EventLogReply, EventLogRequest, RandomRequest, TAG_BYTES, VersionReply};
use proptest::prelude::*;

#[test]
fn version_tells_what_the_guest_may_and_how_it_was_launched() {
    let mut config = config();
    config.groups = CallGroup::RANDOM | CallGroup::SEAL;
    let reply: VersionReply = Rig::with(config).ask::<Version>(&());
    assert_eq!((reply.abi_version, reply.groups, reply.facts), (5, 0b101, 0b1001));
    assert_eq!((reply.max_random, reply.max_label, reply.max_secret), (1024, 128, 16384));
    assert_eq!(&reply.name[..6], b"first\0");
}

#[test]
fn a_number_without_a_call_answers_as_kvm_and_touches_nothing() {
    let mut rig = Rig::new();
    let args = CallArgs { rdi: 1, rsi: 2, rdx: 0xdead_beef_cafe, rcx: 4 };
    for number in [0, 1, 5, 9, 0x444c_0000, 0x444c_0003, 0x444c_ffff, 0x444d_0001, 0x0100_0001, u32::MAX] {
        for privileged in [true, false] {
            let result = rig.service.call(number, args, privileged, &mut *rig.ram, &mut *rig.tpm);
            assert_eq!(result.status as i64, -1000, "{number:#x}");
            assert_eq!(result.reply_len, args.rdx, "{number:#x}");
        }
    }
    assert_eq!((rig.ram.reads.get(), rig.ram.writes), (0, 0));
}

#[test]
fn user_mode_gets_nothing_but_a_status() {
    let mut rig = Rig::new();
    for (call, args) in every_call() {
        let result = rig.service.call(call.number, args, false, &mut *rig.ram, &mut *rig.tpm);
        assert_eq!(Status::from_rax(result.status), Status::NOT_PRIVILEGED, "{}", call.name);
        assert_eq!(result.reply_len, 0, "{}", call.name);
    }
    assert_eq!((rig.ram.reads.get(), rig.ram.writes), (0, 0));
}

#[test]
fn each_group_bit_admits_exactly_its_calls() {
    for allowed in CallGroup::ALL.iter().map(|entry| entry.0).chain([CallGroup::empty()]) {
        let mut rig = Rig::with(ServiceConfig { groups: allowed, ..config() });
        for (call, args) in every_call() {
            let refused = rig.raw(call.number, args).0 == Status::NOT_PERMITTED;
            let may = call.group.is_empty() || call.group.intersects(allowed);
            assert_eq!(refused, !may, "{} with {allowed:?}", call.name);
        }
    }
}

#[test]
fn lengths_that_no_request_has_are_refused_before_memory_is_touched() {
    let mut rig = Rig::new();
    for (call, args) in every_call() {
        let (least, most) = (call.request_bytes as u64, (call.request_bytes + call.request_data) as u64);
        for length in [least.wrapping_sub(1), most + 1, 1 << 32, u64::MAX] {
            let (status, _) = rig.raw(call.number, CallArgs { rsi: length, ..args });
            assert_eq!(status, Status::BAD_LENGTH, "{} with {length}", call.name);
        }
    }
    assert_eq!((rig.ram.reads.get(), rig.ram.writes), (0, 0));
}

#[test]
fn addresses_must_be_aligned() {
    let mut rig = Rig::new();
    for (call, args) in every_call() {
        for offset in 1..8 {
            let request = CallArgs { rdi: REQUEST + offset, ..args };
            let reply = CallArgs { rdx: REPLY + offset, ..args };
            assert_eq!(rig.raw(call.number, request).0, Status::BAD_ALIGNMENT, "{}", call.name);
            assert_eq!(rig.raw(call.number, reply).0, Status::BAD_ALIGNMENT, "{}", call.name);
        }
    }
    assert_eq!((rig.ram.reads.get(), rig.ram.writes), (0, 0));
}

#[test]
fn addresses_must_be_ram_from_the_first_byte_to_the_last() {
    let end = fake::RAM_BYTES as u64;
    // Beyond the end, straddling it, in the hole, straddling it on both sides, wrapping around.
    for at in [end, end - 8, 1 << 40, 0x1_0000, 0xfff8, 0x1_0ff8, u64::MAX - 7] {
        let mut rig = Rig::new();
        for (call, args) in every_call() {
            if call.request_bytes > 8 {
                let status = rig.raw(call.number, CallArgs { rdi: at, ..args }).0;
                assert_eq!(status, Status::BAD_REQUEST_ADDRESS, "{} at {at:#x}", call.name);
            }
            if call.reply_bytes > 8 {
                let status = rig.raw(call.number, CallArgs { rdx: at, ..args }).0;
                assert_eq!(status, Status::BAD_REPLY_ADDRESS, "{} at {at:#x}", call.name);
            }
        }
        assert_eq!(rig.ram.writes, 0, "{at:#x}");
        assert_eq!(rig.tpm.started, 0, "{at:#x}");
    }
}

#[test]
fn variable_replies_are_checked_too() {
    let mut rig = Rig::new();
    rig.ram.write(Gpa::new(REQUEST), RandomRequest { length: 64, reserved: 0 }.as_bytes()).unwrap();
    let args = CallArgs { rdi: REQUEST, rsi: 8, rdx: REPLY, rcx: 64 };
    assert_eq!(rig.raw(Random::NUMBER, CallArgs { rcx: 63, ..args }), (Status::REPLY_TOO_SMALL, 0));
    assert_eq!(rig.raw(Random::NUMBER, CallArgs { rdx: 0xfff8, ..args }), (Status::BAD_REPLY_ADDRESS, 0));
    assert_eq!(rig.raw(Random::NUMBER, args), (Status::OK, 64));
}

#[test]
fn a_fixed_reply_needs_its_room_before_anything_happens() {
    let mut rig = Rig::new();
    for (call, args) in every_call().filter(|(call, _)| call.reply_bytes > 0) {
        let room = call.reply_bytes as u64 - 1;
        assert_eq!(
            rig.raw(call.number, CallArgs { rcx: room, ..args }).0,
            Status::REPLY_TOO_SMALL,
            "{}",
            call.name
        );
    }
    assert_eq!(rig.ram.reads.get(), 0);
}

#[test]
fn a_request_without_bytes_needs_no_address() {
    let args = CallArgs { rdi: u64::MAX - 7, rsi: 0, rdx: REPLY, rcx: 64 };
    assert_eq!(Rig::new().raw(Version::NUMBER, args), (Status::OK, 64));
}

#[test]
fn random_gives_what_was_asked_for_within_its_limits() {
    let mut rig = Rig::new();
    let request = |length: u32, reserved: u32| RandomRequest { length, reserved }.as_bytes().to_vec();
    let (first, second) = (rig.bytes::<Random>(&request(32, 0)), rig.bytes::<Random>(&request(32, 0)));
    assert_eq!((first.0, first.1.len()), (Status::OK, 32));
    assert_ne!(first.1, second.1);
    assert_eq!(rig.bytes::<Random>(&request(1024, 0)).1.len(), 1024);
    assert_eq!(rig.refused::<Random>(&request(0, 0)), Status::BAD_ARGUMENT);
    assert_eq!(rig.refused::<Random>(&request(1025, 0)), Status::BAD_ARGUMENT);
    assert_eq!(rig.refused::<Random>(&request(32, 1)), Status::RESERVED_NOT_ZERO);
    rig.tpm.has_entropy = false;
    assert_eq!(rig.refused::<Random>(&request(32, 0)), Status::NO_ENTROPY);
}

#[test]
fn the_event_log_comes_in_windows() {
    let mut rig = Rig::new();
    let log = rig.tpm.log;
    let mut window =
        |offset: u32, length: u32| rig.bytes::<EventLog>(EventLogRequest { offset, length }.as_bytes());
    let total = u32::try_from(log.len()).unwrap();
    for (offset, length, want) in [(0, 10, &log[..10]), (10, 1000, &log[10..]), (total, 5, &[]), (0, 0, &[])]
    {
        let (status, reply) = window(offset, length);
        let (head, bytes) = EventLogReply::read_from_prefix(&reply).unwrap();
        assert_eq!((status, head.total, bytes), (Status::OK, total, want), "{length} at {offset}");
    }
    for (offset, length) in [(total + 1, 0), (u32::MAX, 1), (0, 16 * 1024 + 1), (0, u32::MAX)] {
        assert_eq!(window(offset, length), (Status::BAD_ARGUMENT, Vec::new()), "{length} at {offset}");
    }
}

#[test]
fn the_attestation_key_is_told() {
    let mut rig = Rig::new();
    assert_eq!(rig.bytes::<AkPublic>(&[]), (Status::OK, b"the public part of a key".to_vec()));
}

#[test]
fn without_a_dynamic_launch_nothing_is_sealed_or_quoted() {
    for facts in
        [LaunchFacts::UNMEASURED, LaunchFacts::empty(), LaunchFacts::AMD_SKINIT | LaunchFacts::UNMEASURED]
    {
        let mut rig = Rig::with(ServiceConfig { facts, ..config() });
        for (call, args) in every_call() {
            let needs_launch = call
                .group
                .intersects(CallGroup::SEAL | CallGroup::QUOTE | CallGroup::HOST_QUOTE | CallGroup::ENROL);
            let status = rig.raw(call.number, args).0;
            assert_eq!(status == Status::NOT_LAUNCHED, needs_launch, "{} with {facts:?}", call.name);
        }
        assert!(rig.service.root.is_none());
    }
}

#[test]
fn after_scrubbing_nothing_is_sealed() {
    let mut rig = Rig::new();
    rig.service.scrub();
    assert_eq!(rig.refused::<Seal>(&[0; 16]), Status::NOT_LAUNCHED);
    assert_eq!(rig.refused::<Unseal>(&[0; 16 + 56 + TAG_BYTES]), Status::NOT_LAUNCHED);
}

#[test]
#[cfg_attr(miri, ignore = "minutes of it; the other tests run the same code")]
fn nothing_of_a_call_stays_in_the_buffers() {
    let mut rig = Rig::new();
    let secret = [0xee; 4096];
    let request = [
        dolmen_abi::SealRequest { policy: 1, label_length: 0, data_length: 4096, reserved: 0 }.as_bytes(),
        &secret,
    ];
    assert_eq!(rig.bytes::<Seal>(&request.concat()).0, Status::OK);
    assert!(rig.service.scratch.request_mut(dolmen_abi::MAX_REQUEST).unwrap().iter().all(|byte| *byte == 0));
    assert!(rig.service.scratch.reply(dolmen_abi::MAX_REPLY).unwrap().iter().all(|byte| *byte == 0));
}

#[test]
fn memory_is_copied_in_once_and_out_once() {
    let mut rig = Rig::new();
    rig.ram.write(Gpa::new(REQUEST), RandomRequest { length: 64, reserved: 0 }.as_bytes()).unwrap();
    let before = (rig.ram.reads.get(), rig.ram.writes);
    let args = CallArgs { rdi: REQUEST, rsi: 8, rdx: REPLY, rcx: 64 };
    assert_eq!(rig.raw(Random::NUMBER, args).0, Status::OK);
    assert_eq!((rig.ram.reads.get() - before.0, rig.ram.writes - before.1), (1, 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(400)))]

    #[test]
    fn no_script_of_calls_panics(script in proptest::collection::vec(any::<u8>(), 0..1500)) {
        fake::run_script(&script);
    }

    #[test]
    fn no_arguments_panic_and_replies_stay_in_their_room(
        pick in 0usize..CALLS.len(),
        rdi in prop_oneof![Just(REQUEST), any::<u64>()], rsi in prop_oneof![0u64..2000, any::<u64>()],
        rdx in prop_oneof![Just(REPLY), any::<u64>()], rcx in prop_oneof![0u64..2000, any::<u64>()],
        request in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        let mut rig = Rig::new();
        rig.ram.write(Gpa::new(REQUEST), &request).unwrap();
        let (status, length) = rig.raw(CALLS[pick].number, CallArgs { rdi, rsi, rdx, rcx });
        prop_assert!(length <= rcx);
        prop_assert!(status.name().is_some());
    }
}
