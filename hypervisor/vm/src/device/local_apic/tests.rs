use super::*;
use crate::bus::Bus;
use proptest::prelude::*;

const TPR: u8 = 0x08;
const EOI: u8 = 0x0b;
const SVR: u8 = 0x0f;
const ESR: u8 = 0x28;
const ICR: u8 = 0x30;
const LVT_TIMER: u8 = 0x32;
const LVT_ERROR: u8 = 0x37;
const INITIAL: u8 = 0x38;
const CURRENT: u8 = 0x39;
const DIVIDE: u8 = 0x3e;
const SELF_IPI: u8 = 0x3f;

/// A boot processor's APIC, switched on the way Linux does it.
fn x2apic() -> LocalApic {
    let mut apic = LocalApic::new(0, true, 100);
    apic.set_base_register(0xfee0_0d00).unwrap();
    assert_eq!(apic.write_msr(Register(SVR), 0x1ff, 0), Ok(Request::None));
    apic
}

fn write(apic: &mut LocalApic, register: u8, value: u64) -> Request {
    apic.write_msr(Register(register), value, 0).unwrap()
}

/// Sends it to the first vCPU of a bus and lets the APIC collect its mail, as far as it takes any.
fn send(apic: &mut LocalApic, delivery: Delivery, vector: u8, level_triggered: bool) -> Collected {
    let bus = Bus::new(1);
    let mailbox = bus.mailbox(0).unwrap();
    mailbox.publish(apic.addressing());
    let _woken = bus.send(Message { delivery, vector, level_triggered, destination: Destination::All }, None);
    apic.collect(mailbox)
}

fn deliver(apic: &mut LocalApic, vector: u8, level_triggered: bool) {
    assert_eq!(send(apic, Delivery::Fixed, vector, level_triggered), Collected::default());
}

#[test]
fn it_comes_up_as_the_manual_says() {
    let mut apic = LocalApic::new(0, true, 100);
    assert_eq!(apic.base_register(), 0xfee0_0900);
    for (offset, value) in [
        (0x20, 0),
        (0x30, 0x0005_0014),
        (0x80, 0),
        (0xe0, 0xffff_ffff),
        (0xf0, 0xff),
        (0x320, 0x1_0000),
        (0x350, 0x1_0000),
        (0x370, 0x1_0000),
    ] {
        assert_eq!(apic.read_page(offset, 4, 0), value, "{offset:#x}");
    }
}

#[test]
fn modes_change_only_along_the_arrows_of_the_manual() {
    let (off, x, x2, bad) = (0xfee0_0000, 0xfee0_0800, 0xfee0_0c00, 0xfee0_0400);
    for (path, last) in [
        (&[x][..], Ok(())),
        (&[x2], Ok(())),
        (&[off], Ok(())),
        (&[off, x], Ok(())),
        (&[off, x2], Err(Refused)),
        (&[x2, x], Err(Refused)),
        (&[x2, off, x, x2], Ok(())),
        (&[bad], Err(Refused)),
        (&[x | 1], Err(Refused)),
        (&[x | 1 << 52], Err(Refused)),
    ] {
        let mut apic = LocalApic::new(3, false, 100);
        let results: Vec<_> = path.iter().map(|value| apic.set_base_register(*value)).collect();
        assert_eq!(results.last(), Some(&last), "{path:x?}");
    }
}

#[test]
fn x2apic_mode_gives_the_whole_id_and_a_derived_logical_one() {
    let mut apic = LocalApic::new(0x23, false, 100);
    assert_eq!(apic.read_msr(Register(2), 0), Err(Refused));
    apic.set_base_register(0xfee0_0c00).unwrap();
    assert_eq!(apic.read_msr(Register(0x02), 0), Ok(0x23));
    assert_eq!(apic.read_msr(Register(0x0d), 0), Ok(0x0002_0008));
    assert_eq!(apic.page(), None);
}

#[test]
fn urgent_interrupts_nest_and_others_wait() {
    let mut apic = x2apic();
    deliver(&mut apic, 0x41, false);
    apic.acknowledge(apic.pending_vector().unwrap());
    deliver(&mut apic, 0x4f, false);
    assert_eq!(apic.pending_vector(), None, "same class");
    deliver(&mut apic, 0x51, false);
    assert_eq!(apic.pending_vector(), Some(0x51));
    apic.acknowledge(0x51);
    assert_eq!(apic.read_msr(Register(0x0a), 0), Ok(0x50));
    assert_eq!(write(&mut apic, EOI, 0), Request::None);
    assert_eq!(apic.pending_vector(), None);
    assert_eq!(write(&mut apic, EOI, 0), Request::None);
    assert_eq!(apic.pending_vector(), Some(0x4f));
}

#[test]
fn the_task_priority_holds_back_its_class_and_below() {
    let mut apic = x2apic();
    deliver(&mut apic, 0x61, false);
    for (task_priority, pending) in [(0x5f, Some(0x61)), (0x60, None), (0x6f, None), (0xff, None)] {
        assert_eq!(write(&mut apic, TPR, task_priority), Request::None);
        assert_eq!(apic.pending_vector(), pending, "{task_priority:#x}");
    }
    apic.set_cr8(5);
    assert_eq!((apic.pending_vector(), apic.cr8()), (Some(0x61), 5));
}

#[test]
fn cr8_keeps_the_sub_class_when_it_does_not_change() {
    let mut apic = x2apic();
    assert_eq!(write(&mut apic, TPR, 0x5a), Request::None);
    apic.set_cr8(5);
    assert_eq!(apic.read_msr(Register(TPR), 0), Ok(0x5a));
    apic.set_cr8(6);
    assert_eq!(apic.read_msr(Register(TPR), 0), Ok(0x60));
}

#[test]
fn the_end_of_a_level_interrupt_is_told_to_the_io_apic() {
    let mut apic = x2apic();
    deliver(&mut apic, 0x61, true);
    apic.acknowledge(0x61);
    assert_eq!(write(&mut apic, EOI, 0), Request::EndOfInterrupt(0x61));
    deliver(&mut apic, 0x61, false);
    apic.acknowledge(0x61);
    assert_eq!(write(&mut apic, EOI, 0), Request::None);
}

#[test]
fn a_software_disabled_apic_takes_no_interrupt_but_an_nmi() {
    let mut apic = x2apic();
    assert_eq!(write(&mut apic, LVT_TIMER, 0xec), Request::None);
    assert_eq!(write(&mut apic, SVR, 0xff), Request::None);
    assert_eq!(apic.read_msr(Register(LVT_TIMER), 0), Ok(0x1_00ec), "entries are masked");
    assert_eq!(write(&mut apic, LVT_TIMER, 0xec), Request::None);
    assert_eq!(apic.read_msr(Register(LVT_TIMER), 0), Ok(0x1_00ec), "and stay so");
    deliver(&mut apic, 0x61, false);
    assert_eq!(send(&mut apic, Delivery::Nmi, 0, false), Collected::default());
    assert_eq!((apic.pending_vector(), apic.pending_nmi()), (None, true));
}

#[test]
fn the_deadline_timer_fires_when_the_time_comes() {
    let mut apic = x2apic();
    assert_eq!(write(&mut apic, LVT_TIMER, 0x4_00ec), Request::None);
    apic.set_deadline(1000, 10);
    assert_eq!((apic.next_deadline(), apic.deadline()), (Some(1000), 1000));
    apic.advance(999);
    assert_eq!(apic.pending_vector(), None);
    apic.advance(1000);
    assert_eq!((apic.pending_vector(), apic.deadline(), apic.next_deadline()), (Some(0xec), 0, None));
}

#[test]
fn a_deadline_in_the_past_fires_at_once() {
    let mut apic = x2apic();
    assert_eq!(write(&mut apic, LVT_TIMER, 0x4_00ec), Request::None);
    apic.set_deadline(5, 10);
    assert_eq!(apic.pending_vector(), Some(0xec));
}

#[test]
fn a_masked_timer_counts_but_wakes_nobody() {
    let mut apic = x2apic();
    assert_eq!(write(&mut apic, LVT_TIMER, 0x1_00ec), Request::None);
    assert_eq!(write(&mut apic, DIVIDE, 0b1011), Request::None);
    assert_eq!(write(&mut apic, INITIAL, 1000), Request::None);
    assert_eq!(apic.next_deadline(), None);
    assert_eq!(apic.read_msr(Register(CURRENT), 400), Ok(600));
    assert_eq!(apic.write_msr(Register(LVT_TIMER), 0xec, 2000), Ok(Request::None));
    apic.advance(2000);
    assert_eq!(apic.pending_vector(), None, "it ended while masked");
}

#[test]
fn commands_name_their_destination_in_both_modes() {
    let mut apic = x2apic();
    for (value, destination) in [
        (0x0000_0005_0000_00fb_u64, Destination::Physical(5)),
        (0x0001_0002_0000_08fb, Destination::Logical(0x0001_0002)),
        (0x0000_0000_0008_00fb, Destination::All),
        (0x0000_0000_000c_00fb, Destination::Others),
    ] {
        let want = Message { delivery: Delivery::Fixed, vector: 0xfb, level_triggered: false, destination };
        assert_eq!(write(&mut apic, ICR, value), Request::Send(want));
    }
    let mut apic = LocalApic::new(0, true, 100);
    assert_eq!(apic.write_page(0xf0, 4, 0x1ff, 0), Request::None);
    assert_eq!(apic.write_page(0x310, 4, 0x0500_0000, 0), Request::None);
    let want = Message {
        delivery: Delivery::StartUp,
        vector: 0x9a,
        level_triggered: false,
        destination: Destination::Physical(5),
    };
    assert_eq!(apic.write_page(0x300, 4, 0x069a, 0), Request::Send(want));
    assert_eq!(apic.read_page(0x310, 4, 0), 0x0500_0000);
}

#[test]
fn an_interrupt_to_the_sender_stays_there() {
    for (register, value) in [(SELF_IPI, 0x77), (ICR, 0x0004_0077), (ICR, 0x0000_0000_0000_0077)] {
        let mut apic = x2apic();
        assert_eq!(write(&mut apic, register, value), Request::None);
        assert_eq!(apic.pending_vector(), Some(0x77), "{value:#x}");
    }
    let mut apic = x2apic();
    assert_eq!(write(&mut apic, SELF_IPI, 0x77), Request::None);
    assert_eq!(apic.read_msr(Register(SELF_IPI), 0), Err(Refused));
    assert_eq!(apic.read_msr(Register(ICR), 0), Ok(0), "the command register is another");
}

#[test]
fn only_vectors_can_be_sent_to_oneself_by_the_shorthand() {
    let mut apic = x2apic();
    for command in [0x0004_0400, 0x0004_0500, 0x0004_0600, 0x0004_0200] {
        assert_eq!(write(&mut apic, ICR, command), Request::None, "{command:#x}");
    }
    assert!(!apic.pending_nmi());
}

#[test]
fn init_level_de_assert_is_nothing() {
    let mut apic = x2apic();
    assert_eq!(write(&mut apic, ICR, 0x0000_0001_0000_8500), Request::None);
    assert!(matches!(write(&mut apic, ICR, 0x0000_0001_0000_c500), Request::Send(_)));
    assert!(matches!(write(&mut apic, ICR, 0x0000_0001_0000_0500), Request::Send(_)));
}

/// An application processor's APIC in x2APIC mode, started.
fn started() -> LocalApic {
    let mut apic = LocalApic::new(5, false, 100);
    apic.set_base_register(0xfee0_0c00).unwrap();
    assert_eq!(apic.write_msr(Register(SVR), 0x1ff, 0), Ok(Request::None));
    assert_eq!(send(&mut apic, Delivery::StartUp, 0x9a, false), STARTED);
    apic
}

const STARTED: Collected = Collected { init: false, start_up: Some(0x9a) };

#[test]
fn init_resets_all_but_the_mode() {
    let mut apic = started();
    assert_eq!(write(&mut apic, LVT_TIMER, 0xec), Request::None);
    assert_eq!(write(&mut apic, INITIAL, 1000), Request::None);
    deliver(&mut apic, 0x41, false);
    assert_eq!(send(&mut apic, Delivery::Init, 0, false), Collected { init: true, start_up: None });
    assert_eq!((apic.pending_vector(), apic.next_deadline(), apic.awaits_start_up()), (None, None, true));
    assert!(apic.is_x2apic());
    assert_eq!(apic.read_msr(Register(SVR), 0), Ok(0xff));
    assert_eq!(apic.read_msr(Register(0x0d), 0), Ok(0x20), "the logical ID stays");
}

#[test]
fn who_waits_for_a_start_up_takes_nothing_else_and_who_runs_takes_none() {
    let mut apic = LocalApic::new(5, false, 100);
    assert!(apic.awaits_start_up());
    assert_eq!(send(&mut apic, Delivery::Nmi, 0, false), Collected::default());
    assert!(!apic.pending_nmi());
    assert_eq!(send(&mut apic, Delivery::StartUp, 0x9a, false), STARTED);
    assert!(!apic.awaits_start_up());
    assert_eq!(send(&mut apic, Delivery::StartUp, 0x9b, false), Collected::default());
    assert_eq!(send(&mut apic, Delivery::Init, 0, false), Collected { init: true, start_up: None });
    assert_eq!(send(&mut apic, Delivery::StartUp, 0x9a, false), STARTED);
}

#[test]
fn the_boot_processor_does_not_wait_after_init() {
    let mut apic = x2apic();
    assert_eq!(send(&mut apic, Delivery::Init, 0, false), Collected { init: true, start_up: None });
    assert!(!apic.awaits_start_up());
}

#[test]
fn a_level_interrupt_keeps_its_end_though_an_edge_joins_it() {
    let mut apic = x2apic();
    deliver(&mut apic, 0x61, true);
    deliver(&mut apic, 0x61, false);
    apic.acknowledge(0x61);
    assert_eq!(write(&mut apic, EOI, 0), Request::EndOfInterrupt(0x61));
}

#[test]
fn illegal_vectors_end_in_the_error_register() {
    let mut apic = x2apic();
    assert_eq!(write(&mut apic, LVT_ERROR, 0xfe), Request::None);
    assert_eq!(write(&mut apic, SELF_IPI, 0x0f), Request::None);
    assert_eq!(apic.pending_vector(), Some(0xfe));
    deliver(&mut apic, 3, false);
    assert_eq!(apic.read_msr(Register(ESR), 0), Ok(0), "shown after a write only");
    assert_eq!(write(&mut apic, ESR, 0), Request::None);
    assert_eq!(apic.read_msr(Register(ESR), 0), Ok(0x60));
    assert_eq!(write(&mut apic, ESR, 0), Request::None);
    assert_eq!(apic.read_msr(Register(ESR), 0), Ok(0));
}

#[test]
fn an_illegal_error_vector_cannot_recurse() {
    let mut apic = x2apic();
    assert_eq!(write(&mut apic, LVT_ERROR, 0x02), Request::None);
    assert_eq!(write(&mut apic, SELF_IPI, 0x0f), Request::None);
    assert_eq!(apic.pending_vector(), None);
}

#[test]
fn the_msr_interface_refuses_what_the_manual_reserves() {
    let mut apic = x2apic();
    for (register, value) in [
        (0x02, 1),
        (0x03, 0),
        (0x08, 0x100),
        (0x0a, 0),
        (0x0b, 1),
        (0x0d, 0),
        (0x0e, 0),
        (0x0f, 0x1_0000_01ff),
        (0x10, 0),
        (0x28, 1),
        (0x30, 0x8000_0000),
        (0x31, 0),
        (0x32, 0x8_0000),
        (0x39, 0),
        (0x3e, 4),
        (0x3f, 0x100),
        (0x40, 0),
        (0xff, 0),
    ] {
        assert_eq!(apic.write_msr(Register(register), value, 0), Err(Refused), "{register:#x} <- {value:#x}");
    }
    for register in [0x00, 0x09, 0x0b, 0x0c, 0x0e, 0x31, 0x3a, 0x3f, 0x40, 0xff] {
        assert_eq!(apic.read_msr(Register(register), 0), Err(Refused), "{register:#x}");
    }
}

proptest! {
    /// Whatever a guest does, an interrupt is requested, in service, or neither, and priorities hold.
    #[test]
    fn no_sequence_of_accesses_breaks_the_priorities(
        steps in prop::collection::vec((0u8..6, any::<u16>(), any::<u64>(), any::<u8>()), 0..200)
    ) {
        let mut apic = LocalApic::new(0, true, 100);
        let mut now = 0u64;
        for (what, at, value, vector) in steps {
            now = now.wrapping_add(value & 0xffff);
            match what {
                0 => { let _request = apic.write_page(u64::from(at) & 0xfff, 4, value, now); }
                1 => { let _value = apic.read_page(u64::from(at) & 0xfff, 4, now); }
                2 => { let _request = apic.write_msr(Register(vector), value, now); }
                3 => deliver(&mut apic, vector, value & 1 == 0),
                4 => { let _result = apic.set_base_register(value & 0xfff0_0d00); }
                _ => apic.advance(now),
            }
            if let Some(pending) = apic.pending_vector() {
                prop_assert!(pending >= FIRST_LEGAL_VECTOR);
                prop_assert!(pending >> 4 > apic.processor_priority() >> 4);
                apic.acknowledge(pending);
                prop_assert!(apic.in_service.contains(pending) && !apic.requested.contains(pending));
                prop_assert_eq!(apic.in_service.highest(), Some(pending));
            }
        }
    }

    /// Senders see how a processor can be addressed as soon as it is entered again, whichever access changed it.
    #[test]
    fn what_is_published_is_what_holds(
        steps in prop::collection::vec((0u8..4, any::<u16>(), any::<u64>(), any::<u8>()), 0..60)
    ) {
        let bus = Bus::new(1);
        let mailbox = bus.mailbox(0).unwrap();
        let mut apic = LocalApic::new(0, true, 100);
        for (what, at, value, number) in steps {
            match what {
                0 => { let _request = apic.write_page(u64::from(at) & 0xfff, 4, value, 0); }
                1 => { let _request = apic.write_msr(Register(number & 0x3f), value & 0x1ff, 0); }
                2 => { let _result = apic.set_base_register(value & 0xfff0_0d00); }
                _ => apic.set_cr8(number & 0xf),
            }
            if apic.has_mail(mailbox) {
                let _collected = apic.collect(mailbox);
            }
            prop_assert_eq!(mailbox.addressing(), apic.addressing());
        }
    }
}
