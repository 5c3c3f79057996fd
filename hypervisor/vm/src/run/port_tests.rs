use dolmen_arch::segment::{Attributes, Segment};
use dolmen_memory::{Gpa, GuestMemory};

use super::fake::{RAM, Scene, identity_tables};
use crate::backend::{Backend, Register};
use crate::exit::{Direction, Event, PortAccess, Vector, VmExit, Width};
use crate::policy::StopReason;

const GP: Event = Event::GENERAL_PROTECTION;

fn port(port: u16, width: Width, direction: Direction, string: bool) -> VmExit {
    VmExit::Port(PortAccess { port, width, direction, string })
}

#[test]
fn ports_reach_the_board_and_the_console_the_host() {
    let mut scene = Scene::new(&[0xee]);
    scene.vcpu.backend.length = Some(1);
    scene.vcpu.backend.gprs.rax = u64::from(b'!') | 0xffff_ff00;
    scene.exits(&[port(0x3f8, Width::Byte, Direction::Out, false)]);
    assert_eq!(scene.world.console, b"!");
    assert_eq!(scene.vcpu.backend.skipped, [1]);
}

#[test]
fn a_byte_waits_in_the_port_while_the_host_has_no_room() {
    let mut scene = Scene::new(&[0xee]);
    scene.world.console_is_full = true;
    scene.vcpu.backend.length = Some(1);
    scene.vcpu.backend.gprs.rax = u64::from(b'!');
    scene.exits(&[port(0x3f8, Width::Byte, Direction::Out, false)]);
    let mut wires = scene.guest.bus().wires();
    assert_eq!(scene.guest.board().port_read(0x3fd, 1, 0, &mut wires), 0, "the transmitter is not empty");
    assert_eq!(scene.world.console, b"");
    let (board, line) = (&mut scene.guest.board(), &mut scene.world.console);
    let take = |byte| {
        line.push(byte);
        true
    };
    board.send_console(crate::board::SerialPort::Com1, take, &mut wires);
    assert_eq!(board.port_read(0x3fd, 1, 0, &mut wires), 0x60);
    assert!(wires.woken().is_empty());
    assert_eq!(scene.world.console, b"!");
}

#[test]
fn a_port_nobody_has_reads_ones_in_the_width_of_the_access() {
    for (width, want) in [
        (Width::Byte, 0x1111_2222_3333_44ff),
        (Width::Word, 0x1111_2222_3333_ffff),
        (Width::Double, 0xffff_ffff),
    ] {
        let mut scene = Scene::new(&[0xed]);
        scene.vcpu.backend.length = Some(1);
        scene.vcpu.backend.gprs.rax = 0x1111_2222_3333_4444;
        scene.exits(&[port(0x5f0, width, Direction::In, false)]);
        assert_eq!(scene.vcpu.backend.gprs.rax, want, "{width:?}");
    }
}

#[test]
fn reset_and_power_off_stop_the_guest() {
    for (number, value, want) in [(0xcf9, 6, StopReason::Reset), (0x600, 0x34, StopReason::PowerOff)] {
        let mut scene = Scene::new(&[0xee]);
        scene.vcpu.backend.length = Some(1);
        scene.vcpu.backend.gprs.rax = value;
        assert_eq!(scene.exits(&[port(number, Width::Byte, Direction::Out, false)]), want);
    }
}

#[test]
fn strings_go_through_guest_memory_in_bounded_pieces() {
    let mut scene = Scene::new(&[0xf3, 0x6c]);
    scene.vcpu.backend.gprs.rcx = 300;
    scene.vcpu.backend.gprs.rdi = 0x4000;
    let exit = port(0x5f0, Width::Byte, Direction::In, true);
    scene.exits(&[exit]);
    assert_eq!((scene.vcpu.backend.gprs.rcx, scene.vcpu.backend.gprs.rdi), (44, 0x4100));
    assert!(scene.vcpu.backend.skipped.is_empty(), "the guest repeats the rest");
    scene.exits(&[exit]);
    assert_eq!((scene.vcpu.backend.gprs.rcx, scene.vcpu.backend.gprs.rdi), (0, 0x412c));
    assert_eq!(scene.vcpu.backend.skipped, [2]);
    assert!(scene.ram.bytes(0x4000, 300).iter().all(|byte| *byte == 0xff));
    assert_eq!(scene.ram.bytes(0x412c, 1), [0]);
}

#[test]
fn a_string_out_reads_down_when_told_so_and_stops_with_the_machine() {
    let mut scene = Scene::new(&[0xf3, 0x6e]);
    scene.ram.write(Gpa::new(0x4000), b"cba").unwrap();
    scene.vcpu.backend.gprs.rcx = 3;
    scene.vcpu.backend.gprs.rsi = 0x4002;
    scene.vcpu.backend.write(Register::Rflags, 0x602);
    scene.exits(&[port(0x3f8, Width::Byte, Direction::Out, true)]);
    assert_eq!(scene.world.console, b"abc");
    let mut scene = Scene::new(&[0x6e]);
    scene.ram.write(Gpa::new(0x4000), &[6]).unwrap();
    scene.vcpu.backend.gprs.rsi = 0x4000;
    assert_eq!(scene.exits(&[port(0xcf9, Width::Byte, Direction::Out, true)]), StopReason::Reset);
}

#[test]
fn strings_fault_where_the_processor_would() {
    let cases: [(u8, u64, bool, Event); 4] = [
        (0, RAM as u64, false, GP),      // not RAM
        (0, 0x8000_0000_0000, true, GP), // not canonical
        (0, 0x20_0000, true, Event::Exception { vector: Vector::PF, error_code: 2 }),
        (3, 0x20_0000, true, Event::Exception { vector: Vector::PF, error_code: 6 }),
    ];
    for (cpl, rdi, paged, want) in cases {
        let mut scene = Scene::new(&[0xf3, 0x6c]);
        if paged {
            identity_tables(&mut scene);
        }
        scene.vcpu.backend.cpl = cpl;
        (scene.vcpu.backend.gprs.rcx, scene.vcpu.backend.gprs.rdi) = (1, rdi);
        scene.exits(&[port(0x5f0, Width::Byte, Direction::In, true)]);
        assert_eq!(scene.vcpu.backend.delivered, [want], "{rdi:#x}");
        assert_eq!(scene.vcpu.backend.gprs.rcx, 1, "nothing was done");
        if want != GP {
            assert_eq!(scene.vcpu.backend.read(Register::Cr2), rdi);
        }
    }
}

#[test]
fn outside_64_bit_mode_segment_limits_hold() {
    for (limit, attributes, offset, faults) in [
        (0xfff, Attributes::DATA32, 0xfff, false),
        (0xfff, Attributes::DATA32, 0x1000, true),
        (0xfff, Attributes::DATA32.union(Attributes::from_bits_retain(4)), 0xfff, true),
        (0xfff, Attributes::DATA32.union(Attributes::from_bits_retain(4)), 0x1000, false),
    ] {
        let mut scene = Scene::new(&[0x6c]);
        scene.vcpu.backend.write(Register::Efer, 0);
        scene.vcpu.backend.segments[1] = Segment::flat(8, Attributes::CODE32);
        scene.vcpu.backend.segments[0] =
            Segment { selector: 0x10, attributes: attributes.bits(), limit, base: 0x4000 };
        scene.vcpu.backend.gprs.rdi = offset;
        scene.exits(&[port(0x5f0, Width::Byte, Direction::In, true)]);
        assert_eq!(scene.vcpu.backend.delivered == [GP], faults, "{limit:#x} {offset:#x}");
        assert_eq!(scene.ram.bytes(0x4000 + offset as usize, 1) == [0xff], !faults);
    }
}
