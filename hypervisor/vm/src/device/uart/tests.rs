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
        let _written = uart.write(register, value);
    }
    uart
}

fn set(uart: &mut Uart, register: u16, value: u8) {
    assert_eq!(uart.write(register, value).sent, None);
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
    assert!(!uart.interrupt());
    assert_eq!(uart.write(DATA, b'x'), Written { sent: Some(b'x'), line_dropped: true });
    assert!(uart.interrupt());
    assert_eq!(uart.write(DATA, b'y'), Written { sent: Some(b'y'), line_dropped: true });
    assert_eq!(uart.read(LSR), 0x60);
}

#[test]
fn a_waiting_byte_keeps_the_line_up_while_another_is_sent() {
    let mut uart = started();
    set(&mut uart, IER, 0x03);
    assert!(uart.receive(b'r'));
    assert_eq!(uart.write(DATA, b'x'), Written { sent: Some(b'x'), line_dropped: false });
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
