use super::*;
use crate::bus::{Bus, VcpuSet};
use crate::device::local_apic::Request;
use crate::local::{LocalDevices, MsrAnswer};
use crate::pvclock;
use crate::testing::Ram;
use proptest::prelude::*;

const CONFIG: BoardConfig = BoardConfig {
    tsc_khz: 1_000_000,
    ram_bytes: 0x800_0000,
    wall_clock_ns: 1_709_210_096_000_000_000,
    created_at: 0,
    second_uart: true,
};

const COM1: u16 = SerialPort::Com1.port();
const COM2: u16 = SerialPort::Com2.port();
const DONE: MsrAnswer = MsrAnswer::Done(Request::None);
const MSR_APIC_BASE: u32 = 0x1b;
const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// A board with the processors around it.
struct Machine {
    board: Board,
    bus: Bus,
    processors: Vec<LocalDevices>,
    ram: Ram,
    woken: VcpuSet,
}

impl Machine {
    fn new(vcpus: usize) -> Self {
        Self {
            board: Board::new(CONFIG),
            bus: Bus::new(vcpus),
            processors: (0..vcpus).map(|index| LocalDevices::new(index, &CONFIG)).collect(),
            ram: Ram::new(4096),
            woken: VcpuSet::EMPTY,
        }
    }

    /// One on which Linux has set up x2APIC mode, pin 4 of the I/O APIC and the console.
    fn running(vcpus: usize) -> Self {
        let mut machine = Self::new(vcpus);
        assert!(matches!(machine.msr_write(0, MSR_APIC_BASE, 0xfee0_0d00, 0), DONE));
        assert!(matches!(machine.msr_write(0, 0x830, 0xc_069a, 0), MsrAnswer::Done(_)));
        for vcpu in 0..vcpus {
            assert_eq!(machine.msr_write(vcpu, MSR_APIC_BASE, 0xfee0_0d00, 0), DONE);
            assert_eq!(machine.msr_write(vcpu, 0x80f, 0x1ff, 0), DONE);
        }
        machine.woken = VcpuSet::EMPTY;
        machine.route(4, 0x24);
        for (register, value) in [(2, 0x81), (3, 0x03), (4, 0x0b), (1, 0x05)] {
            assert_eq!(machine.port_write(COM1 + register, 1, value, 0), Effect::None);
        }
        machine
    }

    /// Writes the redirection entry of `pin`.
    fn route(&mut self, pin: u64, entry: u64) {
        for (index, value) in [(0x11 + 2 * pin, entry >> 32), (0x10 + 2 * pin, entry & 0xffff_ffff)] {
            assert_eq!(self.mmio_write(IO_APIC_BASE, 4, index), Some(Effect::None));
            assert_eq!(self.mmio_write(IO_APIC_BASE + 0x10, 4, value), Some(Effect::None));
        }
    }

    fn port_read(&mut self, port: u16, size: u8, now: Tsc) -> u32 {
        let mut wires = self.bus.wires();
        let value = self.board.port_read(port, size, now, &mut wires);
        self.woken = self.woken.union(wires.woken());
        value
    }

    fn port_write(&mut self, port: u16, size: u8, value: u32, now: Tsc) -> Effect {
        let mut wires = self.bus.wires();
        let effect = self.board.port_write(port, size, value, now, &mut wires);
        self.woken = self.woken.union(wires.woken());
        effect
    }

    fn mmio_write(&mut self, at: u64, size: u8, value: u64) -> Option<Effect> {
        let mut wires = self.bus.wires();
        let effect = self.board.mmio_write(Gpa::new(at), size, value, &mut wires);
        self.woken = self.woken.union(wires.woken());
        effect
    }

    fn msr_write(&mut self, vcpu: usize, msr: u32, value: u64, now: Tsc) -> MsrAnswer {
        let answer = self.processors[vcpu].msr_write(msr, value, now, &mut self.ram);
        if let MsrAnswer::Done(request) = answer {
            self.serve(vcpu, request);
        }
        let _collected = self.processors[vcpu].collect(self.bus.mailbox(vcpu).unwrap());
        answer
    }

    fn serve(&mut self, vcpu: usize, request: Request) {
        match request {
            Request::None => {}
            Request::Send(message) => {
                let woken = self.bus.send(message, Some(vcpu));
                self.woken = self.woken.union(woken);
            }
            Request::EndOfInterrupt(vector) => {
                let mut wires = self.bus.wires();
                self.board.end_of_interrupt(vector, &mut wires);
                self.woken = self.woken.union(wires.woken());
            }
        }
    }

    /// Sends to a line that takes `most` bytes.
    fn send(&mut self, port: SerialPort, most: usize) -> Vec<u8> {
        let (mut wires, mut sent) = (self.bus.wires(), Vec::new());
        let line = |byte| {
            let room = sent.len() < most;
            sent.extend(room.then_some(byte));
            room
        };
        self.board.send_console(port, line, &mut wires);
        self.woken = self.woken.union(wires.woken());
        sent
    }

    fn console_in(&mut self, byte: u8) -> bool {
        self.port_in(SerialPort::Com1, byte)
    }

    fn port_in(&mut self, port: SerialPort, byte: u8) -> bool {
        let mut wires = self.bus.wires();
        let taken = self.board.console_in(port, byte, &mut wires);
        self.woken = self.woken.union(wires.woken());
        taken
    }

    fn pending(&mut self, vcpu: usize) -> Option<u8> {
        let _collected = self.processors[vcpu].collect(self.bus.mailbox(vcpu).unwrap());
        self.processors[vcpu].pending_vector()
    }

    /// Takes the pending interrupt and ends it.
    fn take(&mut self, vcpu: usize) -> Option<u8> {
        let vector = self.pending(vcpu)?;
        self.processors[vcpu].acknowledge(vector);
        assert!(matches!(self.msr_write(vcpu, 0x80b, 0, 0), MsrAnswer::Done(_)));
        Some(vector)
    }
}

#[test]
fn a_byte_from_the_console_interrupts_and_is_read() {
    let mut machine = Machine::running(2);
    assert!(machine.console_in(b'a'));
    assert_eq!(machine.woken, VcpuSet::EMPTY.with(0));
    assert_eq!((machine.take(1), machine.take(0)), (None, Some(0x24)));
    assert_eq!(machine.port_read(COM1 + 2, 1, 0), 0xcc);
    assert_eq!(machine.port_read(COM1, 1, 0), u32::from(b'a'));
    assert_eq!((machine.pending(0), machine.board.console_room(SerialPort::Com1)), (None, 16));
}

#[test]
fn each_byte_sent_brings_a_new_interrupt_while_the_guest_wants_them() {
    let mut machine = Machine::running(1);
    assert_eq!(machine.port_write(COM1 + 1, 1, 0x02, 0), Effect::None);
    assert_eq!(machine.take(0), Some(0x24));
    assert_eq!(machine.port_write(COM1, 1, u32::from(b'x'), 0), Effect::ConsoleOut(SerialPort::Com1));
    assert_eq!(machine.send(SerialPort::Com1, 0), [], "the line takes nothing");
    assert_eq!((machine.port_read(COM1 + 5, 1, 0), machine.take(0)), (0, None));
    assert_eq!(machine.send(SerialPort::Com1, 1), [b'x']);
    assert_eq!(machine.take(0), Some(0x24), "although it never read the cause");
    assert_eq!(machine.port_read(COM1 + 2, 1, 0), 0xc2);
    assert_eq!(machine.pending(0), None);
}

#[test]
fn the_second_port_has_ports_and_a_pin_of_its_own() {
    let mut machine = Machine::running(1);
    machine.route(3, 0x23);
    for (register, value) in [(2, 0x81), (4, 0x0b), (1, 0x01)] {
        assert_eq!(machine.port_write(COM2 + register, 1, value, 0), Effect::None);
    }
    assert!(machine.port_in(SerialPort::Com2, b'z'));
    assert_eq!(machine.take(0), Some(0x23));
    assert_eq!((machine.port_read(COM2, 1, 0), machine.port_read(COM1 + 5, 1, 0)), (u32::from(b'z'), 0x60));
    assert_eq!(machine.port_write(COM2, 1, u32::from(b'y'), 0), Effect::ConsoleOut(SerialPort::Com2));
    assert_eq!((machine.send(SerialPort::Com1, 9), machine.send(SerialPort::Com2, 9)), (vec![], vec![b'y']));
}

#[test]
fn a_guest_without_a_second_port_finds_nothing_there() {
    let mut machine = Machine::running(1);
    machine.board = Board::new(BoardConfig { second_uart: false, ..CONFIG });
    assert_eq!(machine.port_write(COM2 + 7, 1, 0x5a, 0), Effect::None);
    assert_eq!((machine.port_read(COM2 + 7, 1, 0), machine.board.console_room(SerialPort::Com2)), (0xff, 0));
    assert_eq!(machine.port_write(COM2, 1, 0x5a, 0), Effect::None);
    assert!(!machine.port_in(SerialPort::Com2, b'z'));
}

#[test]
fn the_end_of_a_level_interrupt_comes_back_from_whichever_processor_served_it() {
    let mut machine = Machine::running(2);
    machine.route(4, 0x0100_0000_0000_8031);
    assert!(machine.console_in(b'a'));
    assert_eq!(machine.woken, VcpuSet::EMPTY.with(1));
    assert_eq!(machine.take(1), Some(0x31));
    assert_eq!(machine.take(1), Some(0x31), "the line is still up");
    assert_eq!(machine.port_read(COM1, 1, 0), u32::from(b'a'));
    assert_eq!((machine.take(1), machine.take(1)), (Some(0x31), None));
}

#[test]
fn the_deadline_timer_is_the_next_deadline_and_fires() {
    let mut machine = Machine::running(2);
    assert_eq!(machine.msr_write(1, 0x832, 0x4_00ec, 0), DONE);
    assert_eq!(machine.msr_write(1, MSR_TSC_DEADLINE, 5000, 10), DONE);
    assert_eq!(
        (machine.processors[0].next_deadline(), machine.processors[1].next_deadline()),
        (None, Some(5000))
    );
    machine.processors[1].advance(5000);
    assert_eq!((machine.pending(1), machine.processors[1].next_deadline()), (Some(0xec), None));
    assert_eq!(machine.processors[1].msr_read(MSR_TSC_DEADLINE, 5001), MsrAnswer::Value(0));
}

#[test]
fn an_interrupt_to_another_processor_arrives_there_and_an_nmi_to_all_everywhere() {
    let mut machine = Machine::running(3);
    assert!(matches!(machine.msr_write(0, 0x830, 0x0000_0002_0000_0055, 0), MsrAnswer::Done(_)));
    assert_eq!(machine.woken, VcpuSet::EMPTY.with(2));
    assert_eq!((machine.take(0), machine.take(1), machine.take(2)), (None, None, Some(0x55)));
    assert!(matches!(machine.msr_write(1, 0x830, 0x8_0400, 0), MsrAnswer::Done(_)));
    for vcpu in 0..3 {
        assert_eq!(machine.pending(vcpu), None);
        assert!(machine.processors[vcpu].pending_nmi(), "{vcpu}");
        machine.processors[vcpu].acknowledge_nmi();
    }
    assert!(matches!(machine.msr_write(1, 0x830, 0xc_0400, 0), MsrAnswer::Done(_)));
    let pending = [0, 1, 2].map(|vcpu| {
        assert_eq!(machine.pending(vcpu), None);
        machine.processors[vcpu].pending_nmi()
    });
    assert_eq!(pending, [true, false, true]);
}

#[test]
fn the_xapic_page_moves_with_its_base_and_goes_with_x2apic() {
    let mut machine = Machine::new(1);
    let version = Some(0x5_0014);
    let read = |machine: &mut Machine, at| machine.processors[0].mmio_read(Gpa::new(at), 4, 0);
    assert_eq!(read(&mut machine, 0xfee0_0030), version);
    assert_eq!(machine.msr_write(0, MSR_APIC_BASE, 0xf000_0900, 0), DONE);
    assert_eq!(read(&mut machine, 0xfee0_0030), None);
    assert_eq!(read(&mut machine, 0xf000_0030), version);
    assert_eq!(machine.msr_write(0, MSR_APIC_BASE, 0xf000_0d00, 0), DONE);
    assert_eq!(read(&mut machine, 0xf000_0030), None);
    assert_eq!(machine.processors[0].msr_read(0x803, 0), MsrAnswer::Value(0x5_0014));
}

#[test]
fn msrs_of_others_are_not_claimed_and_wrong_ones_fault() {
    let mut machine = Machine::new(1);
    assert_eq!(machine.processors[0].msr_read(0xc000_0080, 0), MsrAnswer::Unclaimed);
    assert_eq!(machine.msr_write(0, 0xc000_0080, 0, 0), MsrAnswer::Unclaimed);
    assert_eq!(machine.processors[0].msr_read(0x802, 0), MsrAnswer::Fault, "not in x2APIC mode");
    assert_eq!(machine.msr_write(0, MSR_APIC_BASE, 1, 0), MsrAnswer::Fault);
    assert_eq!(machine.msr_write(0, pvclock::MSR_SYSTEM_TIME, 0x1001, 0), MsrAnswer::Fault);
    assert_eq!(machine.msr_write(0, pvclock::MSR_SYSTEM_TIME, 0x0801, 7), DONE);
    assert_eq!(machine.processors[0].msr_read(pvclock::MSR_SYSTEM_TIME, 0), MsrAnswer::Value(0x0801));
    assert_eq!(machine.ram.u32(0x800), 2);
}

#[test]
fn every_processor_computes_the_same_time() {
    let mut machine = Machine::new(2);
    assert_eq!(machine.msr_write(0, pvclock::MSR_SYSTEM_TIME, 0x0801, 7), DONE);
    assert_eq!(machine.msr_write(1, pvclock::MSR_SYSTEM_TIME, 0x0841, 999_999), DONE);
    assert_eq!(machine.ram.bytes(0x800, 32), machine.ram.bytes(0x840, 32));
}

#[test]
fn ports_of_nobody_read_all_ones() {
    let mut machine = Machine::new(1);
    for (port, size, value) in [(0x80, 1, 0xff), (0x21, 2, 0xffff), (0x3e8, 4, u32::MAX), (0xffff, 1, 0xff)] {
        assert_eq!(machine.port_read(port, size, 0), value, "{port:#x}");
        assert_eq!(machine.port_write(port, size, 0x1234_5678, 0), Effect::None);
    }
}

#[test]
fn linux_finds_configuration_mechanism_1() {
    let mut machine = Machine::new(1);
    assert_eq!(machine.port_write(0xcfb, 1, 0x01, 0), Effect::None);
    assert_eq!(machine.port_write(0xcf8, 4, 0x8000_0000, 0), Effect::None);
    assert_eq!(machine.port_read(0xcf8, 4, 0), 0x8000_0000);
    assert_eq!(machine.port_read(0xcfc, 4, 0), 0x0008_1b36);
    assert_eq!(machine.port_read(0xcfe, 2, 0), 0x0008);
    assert_eq!(machine.port_write(0xcf8, 4, 0x8000_0008, 0), Effect::None);
    assert_eq!(machine.port_read(0xcfe, 2, 0), 0x0600);
}

#[test]
fn the_clock_chip_goes_by_the_counter() {
    let mut machine = Machine::new(1);
    assert_eq!(machine.port_write(0x70, 1, 0x00, 0), Effect::None);
    assert_eq!(machine.port_read(0x71, 1, 0), 0x56);
    assert_eq!(machine.port_read(0x71, 1, 3_000_000_000), 0x59);
}

#[test]
fn a_wide_write_resets_if_one_of_its_bytes_does() {
    let mut machine = Machine::new(1);
    assert_eq!(machine.port_write(0xcf8, 2, 0x0600, 0), Effect::Reset);
    assert_eq!(machine.port_write(0x600, 1, 0x34, 0), Effect::PowerOff);
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_panics(
        steps in prop::collection::vec((0u8..7, any::<u32>(), 0u8..4, any::<u64>()), 0..200)
    ) {
        let mut machine = Machine::running(3);
        let mut now = 0u64;
        for (what, at, size, value) in steps {
            now = now.saturating_add(value >> 40);
            let vcpu = (at >> 16) as usize % 3;
            let size = 1 << size;
            let offset = u64::from(at & 0x1ff0);
            match what {
                0 => { let _value = machine.port_read(at as u16, size, now); }
                1 => { let _effect = machine.port_write(at as u16, size, value as u32, now); }
                2 => {
                    let _value = machine.board.mmio_read(Gpa::new(IO_APIC_BASE + offset), size);
                    let _value = machine.processors[vcpu].mmio_read(Gpa::new(0xfee0_0000 + offset), size, now);
                }
                3 => { let _effect = machine.mmio_write(IO_APIC_BASE + offset, size, value); }
                4 => { let _answer = machine.msr_write(vcpu, 0x800 + (at & 0xff), value & 0xf_ffff, now); }
                5 => { let _answer = machine.processors[vcpu].msr_read(at, now); }
                _ => machine.processors[vcpu].advance(now),
            }
            let room = machine.board.console_room(SerialPort::Com1);
            prop_assert_eq!(machine.console_in(at as u8), room > 0);
            if let Some(vector) = machine.pending(vcpu) {
                machine.processors[vcpu].acknowledge(vector);
            }
        }
    }
}
