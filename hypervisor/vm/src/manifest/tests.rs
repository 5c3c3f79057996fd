use super::*;
use proptest::prelude::*;
use sha2::{Digest, Sha384};

const RECORD: usize = 3176;

fn named(name: &str) -> GuestConfig {
    let mut guest = GuestConfig::new_zeroed();
    guest.name[..name.len()].copy_from_slice(name.as_bytes());
    guest.memory = 64 * MEMORY_STEP;
    guest.format = GuestConfig::FORMAT_LINUX;
    guest.vcpus = 1;
    guest.weight = 100;
    guest.on_reboot = Answer::Restart.to_wire();
    guest.on_crash = Answer::Stop.to_wire();
    guest.on_power_off = Answer::Stop.to_wire();
    guest.hypercalls = CallGroup::all().bits();
    guest.component_count = 2;
    guest.components[0].kind = ComponentConfig::KERNEL;
    guest.components[1].kind = ComponentConfig::INITRD;
    guest.cmdline_length = 7;
    guest.cmdline[..7].copy_from_slice(b"quiet a");
    guest
}

fn encoded(guests: &[GuestConfig]) -> Vec<u8> {
    encoded_with(Header::VERSION, &[], guests)
}

fn encoded_with(version: u32, root: &[u8], guests: &[GuestConfig]) -> Vec<u8> {
    let guest_count = u32::try_from(guests.len()).unwrap();
    let header = Header { magic: Header::MAGIC, version, guest_count };
    let mut bytes = [header.as_bytes(), root].concat();
    bytes.extend(guests.iter().flat_map(|guest| guest.as_bytes()));
    bytes
}

fn root() -> SealingRoot {
    let mut name = [0x5a; SealingRoot::NAME_BYTES];
    name[..2].copy_from_slice(&SealingRoot::NAME_ALGORITHM);
    SealingRoot { handle: 0x8100_0100, name, reserved: [0; 2] }
}

fn rooted(root: SealingRoot) -> Vec<u8> {
    encoded_with(Header::VERSION_WITH_ROOT, root.as_bytes(), &[named("first")])
}

#[test]
fn a_manifest_reads_back_as_written() {
    let guests = [named("first"), GuestConfig { consoles: [2, 3], ..named("second-2") }];
    let bytes = encoded(&guests);
    let manifest = Manifest::parse(&bytes).unwrap();
    assert!(manifest.guests().eq(guests));
    assert_eq!(manifest.component_total(), 4);
    assert_eq!(manifest.guests().next().unwrap().name(), "first");
    assert_eq!(manifest.guests().next().unwrap().cmdline(), b"quiet a");
}

#[test]
fn an_odd_address_is_no_trouble() {
    let mut bytes = vec![0];
    bytes.extend(encoded(&[named("first")]));
    assert!(Manifest::parse(&bytes[1..]).is_ok());
}

#[test]
fn the_frame_of_a_manifest_is_checked() {
    let good = encoded(&[named("first")]);
    let patched = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let longer = [good.as_slice(), &[0]].concat();
    for (bytes, want) in [
        (Vec::new(), ManifestError::Length { want: 16, have: 0 }),
        (good[..15].to_vec(), ManifestError::Length { want: 16, have: 15 }),
        (good[..good.len() - 1].to_vec(), ManifestError::Length { want: good.len(), have: good.len() - 1 }),
        (longer, ManifestError::Length { want: good.len(), have: good.len() + 1 }),
        (patched(0, b'X'), ManifestError::Magic(*b"XOLMANIF")),
        (patched(8, 1), ManifestError::Version(1)),
        (patched(8, 4), ManifestError::Version(4)),
        (patched(12, 0), ManifestError::GuestCount(0)),
        (patched(12, 33), ManifestError::GuestCount(33)),
        (patched(15, 0xff), ManifestError::GuestCount(0xff00_0001)),
        (patched(12, 2), ManifestError::Length { want: 16 + 2 * RECORD, have: good.len() }),
    ] {
        assert_eq!(Manifest::parse(&bytes).err(), Some(want));
    }
}

#[test]
fn a_sealing_root_stands_between_header_and_guests() {
    let bytes = rooted(root());
    let manifest = Manifest::parse(&bytes).unwrap();
    assert_eq!(manifest.sealing_root(), Some(root()));
    assert!(manifest.guests().eq([named("first")]));
    assert_eq!(bytes[16..22], [0, 1, 0, 0x81, 0, 0x0b]);
    assert_eq!(bytes.len(), 16 + 40 + RECORD);
}

#[test]
fn a_manifest_without_a_sealing_root_is_the_old_version_and_has_none() {
    let bytes = encoded(&[named("first")]);
    assert_eq!(bytes[8..12], [2, 0, 0, 0]);
    assert_eq!(Manifest::parse(&bytes).unwrap().sealing_root(), None);
    // Neither can pass for the other: letters of a guest's name are no handle, and a root is no guest.
    let (mut old, mut new) = (bytes, rooted(root()));
    (old[8], new[8]) = (3, 2);
    let name = u32::from_le_bytes(*b"firs");
    assert_eq!(Manifest::parse(&old).err(), Some(ManifestError::RootHandle(name)));
    assert_eq!(
        Manifest::parse(&new).err(),
        Some(ManifestError::Length { want: 16 + RECORD, have: 56 + RECORD })
    );
}

#[test]
fn every_field_of_a_sealing_root_is_checked() {
    type Spoil = fn(&mut SealingRoot);
    let cases: &[(Spoil, Option<ManifestError>)] = &[
        (|r| r.handle = 0x8100_0000, None),
        (|r| r.handle = 0x817f_ffff, None),
        (|r| r.handle = 0, Some(ManifestError::RootHandle(0))),
        (|r| r.handle = 0x80ff_ffff, Some(ManifestError::RootHandle(0x80ff_ffff))),
        (|r| r.handle = 0x8180_0000, Some(ManifestError::RootHandle(0x8180_0000))),
        (|r| r.name[0] = 1, Some(ManifestError::RootName)),
        (|r| r.name[1] = 0x0c, Some(ManifestError::RootName)),
        (|r| r.name[33] = 0, None),
        (|r| r.reserved[0] = 1, Some(ManifestError::RootNotZero)),
        (|r| r.reserved[1] = 1, Some(ManifestError::RootNotZero)),
    ];
    for (spoil, want) in cases {
        let mut root = root();
        spoil(&mut root);
        assert_eq!(Manifest::parse(&rooted(root)).err(), *want, "{root:x?}");
    }
}

#[test]
fn a_manifest_that_ends_within_its_sealing_root_is_refused() {
    let good = rooted(root());
    for length in [16, 55, 56, good.len() - 1] {
        let want = if length < 56 { 56 } else { good.len() };
        let error = Some(ManifestError::Length { want, have: length });
        assert_eq!(Manifest::parse(&good[..length]).err(), error, "{length}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "minutes of it; the other tests run the same code")]
fn every_field_of_a_guest_is_checked() {
    type Spoil = fn(&mut GuestConfig);
    let cases: &[(Spoil, Problem)] = &[
        (|g| g.name = [0; MAX_NAME], Problem::Name),
        (|g| g.name[0] = b'F', Problem::Name),
        (|g| g.name[1] = b'/', Problem::Name),
        (|g| g.name[20] = b'x', Problem::Name),
        (|g| g.memory = 0, Problem::Memory(0)),
        (|g| g.memory = MEMORY_STEP + 1, Problem::Memory(MEMORY_STEP + 1)),
        (|g| g.memory = MAX_MEMORY + MEMORY_STEP, Problem::Memory(MAX_MEMORY + MEMORY_STEP)),
        (|g| g.format = 0, Problem::Format(0)),
        (|g| g.format = 4, Problem::Format(4)),
        (|g| g.vcpus = 0, Problem::Vcpus(0)),
        (|g| g.vcpus = 9, Problem::Vcpus(9)),
        (|g| g.affinity = 1 << 32, Problem::Affinity(1 << 32)),
        (|g| g.weight = 0, Problem::Weight(0)),
        (|g| g.weight = 1001, Problem::Weight(1001)),
        (|g| g.start = 2, Problem::Start(2)),
        (|g| g.consoles[0] = 4, Problem::Console(4)),
        (|g| g.consoles[1] = 4, Problem::Console(4)),
        (|g| g.consoles = [2, 2], Problem::ConsoleTaken(Console::Com2)),
        (|g| g.consoles = [3, 3], Problem::ConsoleTaken(Console::Multiplexed)),
        (|g| g.consoles = [3, 1], Problem::ConsoleMixed),
        (|g| g.hypercalls = 0x100, Problem::Hypercalls(0x100)),
        (|g| g.on_reboot = 0, Problem::OnReboot(0)),
        (|g| g.on_reboot = 5, Problem::OnReboot(5)),
        (|g| g.on_crash = 5, Problem::OnCrash(5)),
        (|g| g.on_power_off = 5, Problem::OnPowerOff(5)),
        (|g| g.restart_limit = 1, Problem::RestartLimit(1)),
        (|g| g.on_crash = 1, Problem::RestartLimit(0)),
        (|g| (g.on_crash, g.restart_limit) = (1, 1001), Problem::RestartLimit(1001)),
        (|g| g.reserved = 1, Problem::NotZero),
        (|g| g.component_count = 0, Problem::ComponentCount(0)),
        (|g| g.component_count = 9, Problem::ComponentCount(9)),
        (|g| g.component_count = 1, Problem::NotZero),
        (|g| g.component_count = 3, Problem::Component(2)),
        (|g| g.components[0].kind = ComponentConfig::INITRD, Problem::Component(0)),
        (|g| g.components[0].kind = ComponentConfig::DATA, Problem::Component(0)),
        (|g| g.components[1].kind = ComponentConfig::KERNEL, Problem::Component(1)),
        (|g| g.components[1].kind = 5, Problem::Component(1)),
        (|g| g.components[1].text[0] = 1, Problem::NotZero),
        (|g| g.components[7].text[119] = 1, Problem::NotZero),
        (|g| g.components[7].text_length = 1, Problem::NotZero),
        (|g| g.components[1].text_length = 121, Problem::Text(1)),
        (|g| g.components[1].text_length = 1, Problem::TextWithoutPlace(1)),
        (|g| g.components[1].kind = ComponentConfig::DATA, Problem::DataForLinux),
        (|g| g.format = GuestConfig::FORMAT_MULTIBOOT, Problem::InitrdForMultiboot),
        (|g| g.cmdline_length = 2049, Problem::CmdlineLength(2049)),
        (|g| g.cmdline_length = 6, Problem::NotZero),
        (|g| g.cmdline_length = 8, Problem::Cmdline(7)),
        (|g| g.cmdline[2] = b'\n', Problem::Cmdline(2)),
        (|g| g.cmdline[2047] = 1, Problem::NotZero),
    ];
    for (spoil, problem) in cases {
        let mut second = GuestConfig { consoles: [1, 0], ..named("second") };
        spoil(&mut second);
        let bytes = encoded(&[named("first"), second]);
        let want = ManifestError::Guest { index: 1, problem: *problem };
        assert_eq!(Manifest::parse(&bytes).err(), Some(want));
    }
}

#[test]
fn data_is_last_and_never_where_a_guest_expects_a_measured_file() {
    use ComponentConfig as C;
    let refused = |format, kinds: &[u32]| {
        let mut guest = GuestConfig { format, ..named("first") };
        guest.component_count = u32::try_from(kinds.len()).unwrap();
        for (component, kind) in guest.components.iter_mut().zip(kinds) {
            *component = C::new(*kind);
        }
        let error = Manifest::parse(&encoded(&[guest])).err()?;
        if let ManifestError::Guest { problem, .. } = error { Some(problem) } else { panic!("{error}") }
    };
    for format in [GuestConfig::FORMAT_PVH, GuestConfig::FORMAT_MULTIBOOT] {
        assert_eq!(refused(format, &[C::KERNEL, C::MODULE, C::DATA, C::DATA]), None);
        assert_eq!(refused(format, &[C::KERNEL, C::DATA]), Some(Problem::DataFirst(1)));
        assert_eq!(refused(format, &[C::KERNEL, C::DATA, C::MODULE]), Some(Problem::DataFirst(1)));
        let between = [C::KERNEL, C::MODULE, C::DATA, C::MODULE];
        assert_eq!(refused(format, &between), Some(Problem::MeasuredAfterData(3)));
    }
    assert_eq!(refused(GuestConfig::FORMAT_PVH, &[C::KERNEL, C::INITRD, C::DATA]), None);
}

#[test]
fn an_initrd_is_second_and_the_only_one() {
    let mut guest = named("first");
    guest.component_count = 3;
    guest.components[2].kind = ComponentConfig::INITRD;
    for second in [ComponentConfig::INITRD, ComponentConfig::MODULE] {
        guest.components[1].kind = second;
        let want = ManifestError::Guest { index: 0, problem: Problem::Component(2) };
        assert_eq!(Manifest::parse(&encoded(&[guest])).err(), Some(want));
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes too long in the interpreter")]
fn modules_of_formats_that_have_a_place_for_it_may_carry_text() {
    for (format, kind, problem) in [
        (GuestConfig::FORMAT_LINUX, ComponentConfig::MODULE, Some(Problem::TextWithoutPlace(1))),
        (GuestConfig::FORMAT_PVH, ComponentConfig::INITRD, Some(Problem::TextWithoutPlace(1))),
        (GuestConfig::FORMAT_PVH, ComponentConfig::MODULE, None),
        (GuestConfig::FORMAT_MULTIBOOT, ComponentConfig::MODULE, None),
    ] {
        let mut guest = GuestConfig { format, ..named("first") };
        guest.components[1] = ComponentConfig { text_length: 3, ..ComponentConfig::new(kind) };
        guest.components[1].text[..3].copy_from_slice(b"a b");
        let want = problem.map(|problem| ManifestError::Guest { index: 0, problem });
        assert_eq!(Manifest::parse(&encoded(&[guest])).err(), want);
        assert_eq!(guest.components()[1].text(), b"a b");
        guest.components[1].text[1] = 0x7f;
        assert!(Manifest::parse(&encoded(&[guest])).is_err());
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes too long in the interpreter")]
fn guests_share_neither_name_nor_console_unless_it_is_multiplexed() {
    let first = GuestConfig { consoles: [2, 3], ..named("first") };
    let own_com1 = GuestConfig { consoles: [1, 0], ..named("first") };
    let problem = |problem| Some(ManifestError::Guest { index: 1, problem });
    for (first, second, want) in [
        (first, named("first"), problem(Problem::NameTaken)),
        (
            first,
            GuestConfig { consoles: [0, 2], ..named("second") },
            problem(Problem::ConsoleTaken(Console::Com2)),
        ),
        (first, GuestConfig { consoles: [1, 0], ..named("second") }, problem(Problem::ConsoleMixed)),
        (own_com1, GuestConfig { consoles: [2, 3], ..named("second") }, problem(Problem::ConsoleMixed)),
        (first, GuestConfig { consoles: [3, 0], ..named("second") }, None),
        (own_com1, GuestConfig { consoles: [2, 0], ..named("second") }, None),
    ] {
        assert_eq!(Manifest::parse(&encoded(&[first, second])).err(), want);
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes too long in the interpreter")]
fn a_guest_on_demand_needs_one_that_starts_at_boot_and_may_start_it() {
    let waiting = GuestConfig { start: GuestConfig::START_ON_DEMAND, ..named("waiting") };
    let manager = named("manager");
    let powerless = GuestConfig { hypercalls: CallGroup::SEAL.bits(), ..named("powerless") };
    let nobody = |index| Some(ManifestError::Guest { index, problem: Problem::NobodyStartsIt });
    for (guests, want) in [
        (vec![waiting], nobody(0)),
        (vec![powerless, waiting], nobody(1)),
        (vec![waiting, manager], None),
        (vec![manager, waiting], None),
    ] {
        assert_eq!(Manifest::parse(&encoded(&guests)).err(), want);
    }
}

#[test]
#[cfg_attr(miri, ignore = "minutes of it; the other tests run the same code")]
fn all_guests_together_have_no_more_components_than_a_hand_off() {
    let guests: Vec<GuestConfig> = (0..13)
        .map(|n| {
            let mut guest = named(&format!("guest-{n}"));
            guest.component_count = 8;
            guest.components[2..8].fill(ComponentConfig::new(ComponentConfig::MODULE));
            guest
        })
        .collect();
    assert!(Manifest::parse(&encoded(&guests[..12])).is_ok());
    assert_eq!(Manifest::parse(&encoded(&guests)).err(), Some(ManifestError::ComponentTotal(104)));
}

#[test]
#[cfg_attr(miri, ignore = "minutes of it; the other tests run the same code")]
fn all_guests_together_have_no_more_processors_than_are_scheduled() {
    let guests: Vec<GuestConfig> =
        (0..9).map(|n| GuestConfig { vcpus: 8, ..named(&format!("guest-{n}")) }).collect();
    let bytes = encoded(&guests[..8]);
    let manifest = Manifest::parse(&bytes).unwrap();
    assert_eq!((manifest.vcpu_total(), manifest.memory_total()), (64, 8 * 64 * MEMORY_STEP));
    assert_eq!(Manifest::parse(&encoded(&guests)).err(), Some(ManifestError::VcpuTotal(72)));
}

#[test]
fn every_number_has_one_meaning_and_every_meaning_one_number() {
    for (answer, number, _) in Answer::ALL {
        assert_eq!((Answer::from_wire(number), answer.to_wire()), (Some(answer), number));
    }
    for (console, number, _) in Console::ALL {
        assert_eq!((Console::from_wire(number), console.to_wire()), (Some(console), number));
    }
}

#[test]
fn events_name_guest_and_part() {
    let mut guest = named("web-1");
    guest.component_count = 5;
    for (n, kind) in [(2, ComponentConfig::MODULE), (3, ComponentConfig::MODULE), (4, ComponentConfig::DATA)]
    {
        guest.components[n].kind = kind;
    }
    let names: Vec<Option<String>> =
        (0..6).map(|n| guest.component_event(n).map(|event| event.to_string())).collect();
    let want =
        ["guest/web-1/kernel", "guest/web-1/initrd", "guest/web-1/module0", "guest/web-1/module1", "", ""];
    assert_eq!(names, want.map(|name| (!name.is_empty()).then(|| name.to_owned())));
    assert_eq!(guest.cmdline_event().to_string(), "guest/web-1/cmdline");
}

#[test]
fn the_identity_is_the_documented_formula() {
    let guest = named("first");
    let digests = [
        ComponentDigest::of(ComponentConfig::KERNEL, b"kernel"),
        ComponentDigest::of(ComponentConfig::INITRD, b"initrd!"),
    ];
    let mut input = b"dolmen-guest-1".to_vec();
    input.extend(guest.as_bytes());
    for (kind, bytes) in [(1u32, b"kernel".as_slice()), (2, b"initrd!")] {
        input.extend(kind.to_le_bytes());
        input.extend((bytes.len() as u64).to_le_bytes());
        input.extend(Sha384::digest(bytes));
    }
    let want: [u8; 48] = Sha384::digest(&input).into();
    assert_eq!(measure_guest(&guest, &digests), Some(want));
}

#[test]
fn the_identity_needs_the_digests_of_exactly_the_measured_components() {
    let mut guest = named("first");
    guest.component_count = 3;
    guest.components[2].kind = ComponentConfig::DATA;
    let kernel = ComponentDigest::of(ComponentConfig::KERNEL, b"kernel");
    let initrd = ComponentDigest::of(ComponentConfig::INITRD, b"initrd");
    let data = ComponentDigest::of(ComponentConfig::DATA, b"data");
    assert!(measure_guest(&guest, &[kernel, initrd]).is_some());
    for digests in [&[][..], &[kernel], &[initrd, kernel], &[kernel, initrd, data], &[kernel, initrd, initrd]]
    {
        assert_eq!(measure_guest(&guest, digests), None);
    }
}

proptest! {
    #[test]
    #[cfg_attr(miri, ignore = "takes too long in the interpreter")]
    fn any_change_of_a_manifest_is_refused_or_read_as_a_change(at in 0usize..6368, by in 1u8..) {
        let guests = [named("first"), GuestConfig { consoles: [1, 0], ..named("second") }];
        let mut bytes = encoded(&guests);
        prop_assume!(at < bytes.len());
        bytes[at] = bytes[at].wrapping_add(by);
        if let Ok(manifest) = Manifest::parse(&bytes) {
            let read: Vec<GuestConfig> = manifest.guests().collect();
            prop_assert_ne!(&read[..], &guests[..]);
            prop_assert_eq!(encoded(&read), bytes);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes too long in the interpreter")]
    fn any_change_of_a_sealing_root_is_refused_or_read_as_a_change(at in 8usize..56, by in 1u8..) {
        let mut bytes = rooted(root());
        bytes[at] = bytes[at].wrapping_add(by);
        if let Ok(manifest) = Manifest::parse(&bytes) {
            prop_assert_ne!(manifest.sealing_root(), Some(root()));
            let read = manifest.sealing_root().unwrap();
            prop_assert_eq!(rooted(read), bytes);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "minutes of it; the other tests run the same code")]
    fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..7000), frame in any::<bool>()) {
        if frame && bytes.len() >= 16 {
            bytes[..16].copy_from_slice(&encoded(&[named("a")])[..16]);
            bytes.resize(16 + RECORD, 0);
        }
        if let Ok(manifest) = Manifest::parse(&bytes) {
            prop_assert!(manifest.guests().len() >= 1);
        }
    }
}
