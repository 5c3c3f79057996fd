use super::*;

const DATA: u16 = 0;
const IER: u16 = 1;
const IIR: u16 = 2;
const LCR: u16 = 3;
const MCR: u16 = 4;
const LSR: u16 = 5;
const MSR: u16 = 6;

/// A port as Linux has it after start-up: FIFOs on with trigger level 8, interrupts gated through.
fn started() -> Uart {
    let mut uart = Uart::default();
    for (register, value) in [(IIR, 0x87), (LCR, 0x03), (MCR, 0x0b)] {
        uart.write(register, value);
    }
    uart
}

fn set(uart: &mut Uart, register: u16, value: u8) {
    uart.write(register, value);
}

/// Everything that leaves on a line that takes `most` bytes.
fn sent(uart: &mut Uart, most: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    uart.send(|byte| {
        let room = bytes.len() < most;
        if room {
            bytes.push(byte);
        }
        room
    });
    bytes
}

#[test]
fn linux_autoconfig_takes_it_for_a_16550a() {
    let mut uart = Uart::default();
    set(&mut uart, IER, 0x00);
    assert_eq!(uart.read(IER) & 0x0f, 0);
    set(&mut uart, IER, 0xff);
    assert_eq!(uart.read(IER), 0x0f, "no sleep mode, no XScale bits");
    set(&mut uart, IER, 0x00);
    set(&mut uart, MCR, 0x1a);
    assert_eq!(uart.read(MSR) & 0xf0, 0x90, "loopback test: OUT2 and RTS come back as DCD and CTS");
    set(&mut uart, MCR, 0x08);
    set(&mut uart, IIR, 0x01);
    assert_eq!(uart.read(IIR) >> 6, 3, "FIFOs work");
    set(&mut uart, IIR, 0x21);
    assert_eq!(uart.read(IIR) & 0x20, 0, "no 64-byte FIFO: not a 16750");
}

#[test]
fn the_thre_test_of_linux_sees_the_interrupt_come_back() {
    let mut uart = started();
    set(&mut uart, IER, 0x02);
    assert_eq!(uart.read(IIR), 0xc2);
    set(&mut uart, IER, 0x00);
    set(&mut uart, IER, 0x02);
    assert_eq!(uart.read(IIR), 0xc2);
    assert_eq!(uart.read(IIR), 0xc1, "reading it acknowledged it");
}

#[test]
fn each_byte_written_is_sent_and_asks_for_the_next() {
    let mut uart = started();
    set(&mut uart, IER, 0x02);
    assert_eq!(uart.read(IIR), 0xc2);
    for byte in [b'x', b'y'] {
        set(&mut uart, DATA, byte);
        assert!(uart.is_sending() && !uart.interrupt(), "the line drops, so that its rise is an edge");
        assert_eq!(sent(&mut uart, 1), [byte]);
        assert!(uart.interrupt() && !uart.is_sending());
    }
    assert_eq!(uart.read(LSR), 0x60);
}

#[test]
fn a_line_that_takes_nothing_holds_the_transmitter_back_and_loses_nothing() {
    let mut uart = started();
    set(&mut uart, IER, 0x02);
    let _acknowledged = uart.read(IIR);
    (0..16).for_each(|byte| set(&mut uart, DATA, byte));
    assert_eq!(sent(&mut uart, 0), []);
    assert_eq!((uart.read(LSR), uart.read(IIR), uart.interrupt()), (0, 0xc1, false));
    assert_eq!(sent(&mut uart, 5), [0, 1, 2, 3, 4]);
    assert_eq!((uart.read(LSR), uart.interrupt()), (0, false), "some wait still");
    assert_eq!(sent(&mut uart, 99), (5..16).collect::<Vec<_>>());
    assert_eq!((uart.read(LSR), uart.read(IIR)), (0x60, 0xc2));
}

#[test]
fn what_is_written_to_a_full_transmitter_is_lost() {
    for (fifo, kept) in [(0x00, 1), (0x01, 16)] {
        let mut uart = Uart::default();
        set(&mut uart, IIR, fifo);
        (0..20).for_each(|byte| set(&mut uart, DATA, byte));
        assert_eq!(sent(&mut uart, 99).len(), kept);
    }
}

#[test]
fn asking_for_the_transmitters_interrupt_while_it_is_full_brings_it_when_it_is_empty() {
    let mut uart = started();
    set(&mut uart, DATA, b'x');
    set(&mut uart, IER, 0x02);
    assert!(!uart.interrupt());
    assert_eq!(sent(&mut uart, 1), [b'x']);
    assert!(uart.interrupt());
}

#[test]
fn a_waiting_byte_keeps_the_line_up_while_another_is_sent() {
    let mut uart = started();
    set(&mut uart, IER, 0x03);
    assert!(uart.receive(b'r'));
    set(&mut uart, DATA, b'x');
    assert!(uart.interrupt());
}

#[test]
fn received_bytes_interrupt_at_the_trigger_level_and_below_it_as_a_time_out() {
    let mut uart = started();
    set(&mut uart, IER, 0x01);
    for n in 0..7 {
        assert!(uart.receive(n));
        assert_eq!(uart.read(IIR), 0xcc, "{n}");
    }
    assert!(uart.receive(7));
    assert_eq!(uart.read(IIR), 0xc4);
    for n in 0..8 {
        assert_eq!(uart.read(LSR) & 1, 1);
        assert_eq!(uart.read(DATA), n);
    }
    assert_eq!((uart.read(LSR) & 1, uart.interrupt()), (0, false));
}

#[test]
fn a_full_receiver_refuses_and_loses_nothing() {
    let mut uart = started();
    for n in 0..16 {
        assert_eq!(uart.room(), usize::from(16 - n));
        assert!(uart.receive(n));
    }
    assert!(!uart.receive(99));
    assert_eq!(uart.read(LSR) & 2, 0);
    assert_eq!((0..16).map(|_| uart.read(DATA)).collect::<Vec<_>>(), (0..16).collect::<Vec<_>>());
}

#[test]
fn without_fifos_one_byte_is_held() {
    let mut uart = Uart::default();
    assert!(uart.receive(1));
    assert!(!uart.receive(2));
    assert_eq!(uart.read(DATA), 1);
    assert_eq!(uart.room(), 1);
}

#[test]
fn loopback_returns_bytes_and_overruns_like_the_part() {
    let mut uart = started();
    set(&mut uart, MCR, 0x1b);
    for n in 0..16 {
        set(&mut uart, DATA, n);
    }
    assert_eq!(uart.read(LSR) & 3, 1);
    set(&mut uart, DATA, 16);
    assert_eq!(uart.read(LSR) & 3, 3);
    assert_eq!(uart.read(LSR) & 3, 1, "reading it cleared the overrun");
    assert_eq!(uart.read(DATA), 0);
    assert_eq!((uart.room(), uart.interrupt()), (0, false), "the outside is disconnected");
}

#[test]
fn causes_are_told_in_the_order_of_the_data_sheet() {
    let mut uart = started();
    set(&mut uart, MCR, 0x1b);
    for n in 0..17 {
        set(&mut uart, DATA, n);
    }
    set(&mut uart, MCR, 0x10); // the lines fall ...
    set(&mut uart, MCR, 0x0b); // ... and the peer's come back
    set(&mut uart, IER, 0x0f);
    assert_eq!(uart.read(IIR), 0xc6);
    let _overrun = uart.read(LSR);
    assert_eq!(uart.read(IIR), 0xc4);
    set(&mut uart, IIR, 0x83);
    assert_eq!(uart.read(IIR), 0xc2);
    assert_eq!(uart.read(IIR), 0xc0);
    assert_eq!(uart.read(MSR), 0xbb);
    assert_eq!(uart.read(IIR), 0xc1);
}

#[test]
fn a_change_of_the_modem_lines_is_told_once() {
    let mut uart = started();
    set(&mut uart, IER, 0x08);
    set(&mut uart, MCR, 0x1c); // loopback with OUT1 and OUT2: RI rises, CTS and DSR fall
    assert_eq!(uart.read(MSR), 0xc3);
    assert_eq!(uart.read(MSR), 0xc0);
    set(&mut uart, MCR, 0x18);
    assert_eq!(uart.read(MSR), 0x84, "the trailing edge of the ring indicator");
}

#[test]
fn the_divisor_hides_behind_its_access_bit() {
    let mut uart = started();
    set(&mut uart, LCR, 0x83);
    set(&mut uart, DATA, 0x0c);
    set(&mut uart, IER, 0x01);
    assert_eq!((uart.read(DATA), uart.read(IER)), (0x0c, 0x01));
    set(&mut uart, LCR, 0x03);
    assert_eq!(uart.read(IER), 0x00);
}

#[test]
fn out2_gates_the_interrupt_line() {
    let mut uart = started();
    set(&mut uart, MCR, 0x03);
    set(&mut uart, IER, 0x01);
    assert!(uart.receive(1));
    assert!(!uart.interrupt());
    set(&mut uart, MCR, 0x0b);
    assert!(uart.interrupt());
}
