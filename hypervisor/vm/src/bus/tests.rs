use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn fixed(destination: Destination) -> Message {
    Message { delivery: Delivery::Fixed, vector: 0x40, level_triggered: false, destination }
}

fn set(indices: &[usize]) -> VcpuSet {
    indices.iter().fold(VcpuSet::EMPTY, |set, index| set.with(*index))
}

/// A bus of `count` vCPUs in x2APIC mode, enabled.
fn x2apic(count: usize) -> Bus {
    let bus = Bus::new(count);
    for index in 0..count {
        bus.mailbox(index).unwrap().publish(Addressing::x2apic().enabled());
    }
    bus
}

#[test]
fn each_destination_addresses_whom_it_names() {
    for (destination, sender, want) in [
        (Destination::Physical(2), Some(0), set(&[2])),
        (Destination::Physical(9), Some(0), set(&[])),
        (Destination::Physical(u32::MAX), None, set(&[0, 1, 2, 3])),
        (Destination::Logical(0b1010), Some(0), set(&[1, 3])),
        (Destination::Logical(0x0001_000f), Some(0), set(&[])),
        (Destination::Logical(u32::MAX), None, set(&[0, 1, 2, 3])),
        (Destination::All, None, set(&[0, 1, 2, 3])),
        (Destination::Others, Some(1), set(&[0, 2, 3])),
        (Destination::Others, None, set(&[0, 1, 2, 3])),
    ] {
        let bus = x2apic(4);
        assert_eq!(bus.send(fixed(destination), sender), want, "{destination:x?} from {sender:?}");
    }
}

#[test]
fn the_sender_gets_its_own_but_is_not_woken() {
    for destination in [Destination::All, Destination::Sender, Destination::Physical(1)] {
        let bus = x2apic(2);
        assert!(!bus.send(fixed(destination), Some(1)).contains(1), "{destination:?}");
        assert_eq!(bus.mailbox(1).unwrap().take().unwrap().edge, [0, 1, 0, 0], "{destination:?}");
    }
}

#[test]
fn xapic_addresses_are_flat_or_in_clusters() {
    let (flat, clusters) = (Addressing::xapic(0b0000_1000, false), Addressing::xapic(0x24, true));
    for (wanted, in_flat, in_clusters) in [
        (0x08, true, false),
        (0x04, false, false),
        (0xff, true, true),
        (0x24, false, true),
        (0x2c, true, true),
        (0x34, false, false),
    ] {
        assert_eq!(flat.matches(3, wanted), in_flat, "{wanted:#x} in the flat model");
        assert_eq!(clusters.matches(3, wanted), in_clusters, "{wanted:#x} in the cluster model");
    }
    assert!(!Addressing::OFF.matches(3, 0xff));
}

#[test]
fn lowest_priority_goes_to_the_least_busy_and_to_each_in_turn() {
    let bus = x2apic(3);
    let message = Message { delivery: Delivery::LowestPriority, ..fixed(Destination::Logical(0b111)) };
    let targets = [(); 4].map(|()| bus.send(message, None));
    for mailbox in &bus.mailboxes {
        let _posted = mailbox.take();
    }
    assert_eq!(targets, [set(&[0]), set(&[1]), set(&[2]), set(&[])], "the fourth finds mail waiting");
    bus.mailbox(1).unwrap().publish(Addressing::x2apic().enabled().with_priority(0x2f));
    bus.mailbox(2).unwrap().publish(Addressing::x2apic().enabled().with_priority(0x10));
    bus.mailbox(0).unwrap().publish(Addressing::x2apic());
    assert_eq!(bus.send(message, None), set(&[2]), "the first is not enabled");
}

#[test]
fn who_is_not_enabled_takes_no_vector_but_an_nmi() {
    let bus = Bus::new(2);
    assert_eq!(bus.send(fixed(Destination::All), None), set(&[]));
    assert_eq!(bus.send(Message { delivery: Delivery::Nmi, ..fixed(Destination::All) }, None), set(&[0, 1]));
    assert_eq!(
        bus.send(Message { delivery: Delivery::Unsupported, ..fixed(Destination::All) }, None),
        set(&[])
    );
}

#[test]
fn only_the_first_to_send_wakes() {
    let bus = x2apic(2);
    assert_eq!(bus.send(fixed(Destination::Others), Some(0)), set(&[1]));
    assert_eq!(bus.send(fixed(Destination::Others), Some(0)), set(&[]));
    assert!(bus.mailbox(1).unwrap().take().is_some());
    assert_eq!(bus.mailbox(1).unwrap().take(), None);
    assert_eq!(bus.send(fixed(Destination::Others), Some(0)), set(&[1]));
}

#[test]
fn an_init_voids_the_start_up_before_it_and_not_the_one_behind() {
    let bus = Bus::new(2);
    let send =
        |delivery, vector| bus.send(Message { delivery, vector, ..fixed(Destination::Physical(1)) }, Some(0));
    let take = || bus.mailbox(1).unwrap().take().map(|posted| (posted.init, posted.start_up));
    assert_eq!(send(Delivery::Init, 0), set(&[1]));
    assert_eq!((send(Delivery::StartUp, 0x9a), send(Delivery::StartUp, 0x77)), (set(&[]), set(&[])));
    assert_eq!(take(), Some((true, Some(0x9a))), "the first start-up counts");
    assert_eq!(send(Delivery::StartUp, 0x9a), set(&[1]));
    assert_eq!(send(Delivery::Init, 0), set(&[]));
    assert_eq!(take(), Some((true, None)));
}

#[test]
fn a_new_start_finds_empty_mailboxes() {
    let bus = x2apic(2);
    assert_eq!(bus.send(fixed(Destination::All), None), set(&[0, 1]));
    bus.reset();
    assert_eq!(bus.mailbox(0).unwrap().take(), None);
    assert_eq!(bus.mailbox(1).unwrap().addressing(), Addressing::RESET);
}

/// Threads post every vector many times over while the owner collects: each post is seen by a collection that
/// ends after it, and nothing is seen that nobody posted.
#[test]
fn no_posted_vector_is_lost_or_invented_between_threads() {
    const SENDERS: u8 = 3;
    let rounds = if cfg!(miri) { 3 } else { 2_000 };
    let bus = x2apic(1);
    let mailbox = bus.mailbox(0).unwrap();
    // Each sender has vectors of its own and posts the next only when the last has been seen.
    let seen: Vec<AtomicUsize> = (0..256).map(|_| AtomicUsize::new(0)).collect();
    let left = AtomicUsize::new(usize::from(SENDERS));
    std::thread::scope(|scope| {
        for sender in 0..SENDERS {
            let (bus, seen, left) = (&bus, &seen, &left);
            scope.spawn(move || {
                for round in 0..rounds {
                    for vector in (16 + sender..250).step_by(17) {
                        let level_triggered = vector & 1 != 0;
                        let message = Message { vector, level_triggered, ..fixed(Destination::Physical(0)) };
                        let _woken = bus.send(message, None);
                        while seen[usize::from(vector)].load(Ordering::Acquire) <= round {
                            std::thread::yield_now();
                        }
                    }
                }
                left.fetch_sub(1, Ordering::AcqRel);
            });
        }
        while left.load(Ordering::Acquire) > 0 {
            let Some(posted) = mailbox.take() else {
                std::thread::yield_now();
                continue;
            };
            for vector in 0..=255u8 {
                let bit = |words: [u64; 4]| words[usize::from(vector >> 6)] >> (vector & 63) & 1 != 0;
                let (edge, level) = (bit(posted.edge), bit(posted.level));
                let is_odd = vector & 1 != 0;
                assert!(!(edge && is_odd || level && !is_odd), "{vector:#x}");
                if edge || level {
                    seen[usize::from(vector)].fetch_add(1, Ordering::AcqRel);
                }
            }
        }
    });
    for sender in 0..SENDERS {
        for vector in (16 + sender..250).step_by(17) {
            assert_eq!(seen[usize::from(vector)].load(Ordering::Relaxed), rounds, "{vector:#x}");
        }
    }
}

/// What the manual says about one vCPU, in the plainest way.
#[derive(Clone, Debug)]
struct Model {
    x2apic: bool,
    clusters: bool,
    logical: u8,
    enabled: bool,
    waiting: BTreeSet<(u8, bool)>,
}

impl Model {
    fn addressing(&self) -> Addressing {
        let addressing =
            if self.x2apic { Addressing::x2apic() } else { Addressing::xapic(self.logical, self.clusters) };
        if self.enabled { addressing.enabled() } else { addressing }
    }

    fn is_addressed(&self, index: usize, sender: Option<usize>, destination: Destination) -> bool {
        let id = index as u32;
        match destination {
            Destination::All | Destination::Physical(u32::MAX) => true,
            Destination::Physical(wanted) => wanted == id,
            Destination::Sender => sender == Some(index),
            Destination::Others => sender != Some(index),
            Destination::Logical(u32::MAX) => true,
            Destination::Logical(wanted) if self.x2apic => wanted >> 16 == 0 && wanted & 1 << id != 0,
            Destination::Logical(wanted) if wanted & 0xff == 0xff => true,
            Destination::Logical(wanted) if self.clusters => {
                wanted >> 4 & 0xf == u32::from(self.logical >> 4)
                    && wanted & 0xf & u32::from(self.logical) != 0
            }
            Destination::Logical(wanted) => wanted & u32::from(self.logical) != 0,
        }
    }
}

fn destination() -> impl Strategy<Value = Destination> {
    prop_oneof![
        (0u32..6).prop_map(Destination::Physical),
        Just(Destination::Physical(u32::MAX)),
        (0u32..=0xff).prop_map(Destination::Logical),
        any::<u32>().prop_map(Destination::Logical),
        Just(Destination::Sender),
        Just(Destination::All),
        Just(Destination::Others),
    ]
}

proptest! {
    /// Whatever is sent and collected in whichever order, each vCPU gets what the manual says, once.
    #[test]
    fn the_bus_agrees_with_a_plain_model(
        vcpus in prop::collection::vec((any::<bool>(), any::<bool>(), any::<u8>(), any::<bool>()), 1..=5),
        steps in prop::collection::vec((destination(), any::<u8>(), any::<bool>(), 0usize..6, any::<bool>()), 0..60)
    ) {
        let bus = Bus::new(vcpus.len());
        let mut models: Vec<Model> = vcpus.into_iter().map(|(x2apic, clusters, logical, enabled)| {
            Model { x2apic, clusters, logical, enabled, waiting: BTreeSet::new() }
        }).collect();
        for (index, model) in models.iter().enumerate() {
            bus.mailbox(index).unwrap().publish(model.addressing());
        }
        for (destination, vector, level_triggered, sender, collects) in steps {
            let sender = Some(sender).filter(|sender| *sender < models.len());
            let mut expected = VcpuSet::EMPTY;
            for (index, model) in models.iter_mut().enumerate() {
                if model.enabled && model.is_addressed(index, sender, destination) {
                    if model.waiting.is_empty() && sender != Some(index) {
                        expected = expected.with(index);
                    }
                    model.waiting.insert((vector, level_triggered));
                }
            }
            let message = Message { vector, level_triggered, ..fixed(destination) };
            prop_assert_eq!(bus.send(message, sender), expected);
            let Some(collector) = sender.filter(|_| collects) else { continue };
            let posted = bus.mailbox(collector).unwrap().take().unwrap_or_default();
            let mut got = BTreeSet::new();
            for vector in 0..=255u8 {
                for (words, level) in [(posted.edge, false), (posted.level, true)] {
                    if words[usize::from(vector >> 6)] >> (vector & 63) & 1 != 0 {
                        got.insert((vector, level));
                    }
                }
            }
            prop_assert_eq!(got, core::mem::take(&mut models[collector].waiting));
        }
    }
}
