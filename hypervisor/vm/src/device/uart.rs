//! A 16550A serial port: the guest's console.
//!
//! The transmitter is infinitely fast: a byte written leaves at once, so the holding register is always empty.
//! The receiver has the sixteen bytes of the original. Received bytes below the trigger level raise the
//! time-out interrupt at once, which a real part does four characters later. Registers as in the National
//! Semiconductor PC16550D data sheet, section 8.

use bitflags::bitflags;

const FIFO_BYTES: usize = 16;

bitflags! {
    /// Interrupt enable register.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Ier: u8 {
        const RECEIVED = 1 << 0;
        const TRANSMITTER_EMPTY = 1 << 1;
        const LINE_STATUS = 1 << 2;
        const MODEM_STATUS = 1 << 3;
    }

    /// Line status register.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Lsr: u8 {
        const DATA_READY = 1 << 0;
        const OVERRUN = 1 << 1;
        const HOLDING_EMPTY = 1 << 5;
        const TRANSMITTER_EMPTY = 1 << 6;
    }

    /// Modem control register.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Mcr: u8 {
        const DTR = 1 << 0;
        const RTS = 1 << 1;
        const OUT1 = 1 << 2;
        /// Gates the interrupt line on a PC.
        const OUT2 = 1 << 3;
        const LOOPBACK = 1 << 4;
    }

    /// Modem status register, without the change bits below.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Msr: u8 {
        const CTS = 1 << 4;
        const DSR = 1 << 5;
        const RI = 1 << 6;
        const DCD = 1 << 7;
    }
}

/// Divisor latch access bit of the line control register.
const LCR_DLAB: u8 = 1 << 7;
/// FIFO control register: FIFOs on.
const FCR_ENABLE: u8 = 1 << 0;
/// FIFO control register: empty the receiver's FIFO.
const FCR_CLEAR_RECEIVER: u8 = 1 << 1;

const IIR_NONE: u8 = 0x01;
const IIR_MODEM_STATUS: u8 = 0x00;
const IIR_TRANSMITTER_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_LINE_STATUS: u8 = 0x06;
const IIR_TIMEOUT: u8 = 0x0c;
/// Both bits are set while the FIFOs are on.
const IIR_FIFOS: u8 = 0xc0;

/// What a register write did beyond the port.
#[must_use]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// A byte left on the line.
    pub sent: Option<u8>,
    /// The interrupt line was low for a moment, so that its level after the write, if high, is a new edge.
    pub line_dropped: bool,
}

/// One 16550A.
#[derive(Debug)]
pub struct Uart {
    fifo: [u8; FIFO_BYTES],
    first: usize,
    held: usize,
    ier: Ier,
    lcr: u8,
    mcr: Mcr,
    /// Changes of the modem lines since the last read: bits 3:0 of the modem status register.
    modem_changes: u8,
    modem_lines: Msr,
    scratch: u8,
    divisor: [u8; 2],
    fifos_on: bool,
    trigger: usize,
    overrun: bool,
    /// The transmitter ran empty and nobody has been told yet.
    empty_untold: bool,
}

impl Default for Uart {
    fn default() -> Self {
        Self {
            fifo: [0; FIFO_BYTES],
            first: 0,
            held: 0,
            ier: Ier::empty(),
            lcr: 0,
            mcr: Mcr::empty(),
            modem_changes: 0,
            modem_lines: Self::CONNECTED,
            scratch: 0,
            divisor: [12, 0],
            fifos_on: false,
            trigger: 1,
            overrun: false,
            empty_untold: false,
        }
    }
}

impl Uart {
    /// Lines of a peer that is there and ready.
    const CONNECTED: Msr = Msr::CTS.union(Msr::DSR).union(Msr::DCD);

    /// Reads register `offset` (0 to 7).
    pub fn read(&mut self, offset: u16) -> u8 {
        match offset & 7 {
            0 if self.dlab() => self.divisor[0],
            1 if self.dlab() => self.divisor[1],
            0 => self.take(),
            1 => self.ier.bits(),
            2 => self.read_iir(),
            3 => self.lcr,
            4 => self.mcr.bits(),
            5 => self.read_lsr(),
            6 => core::mem::take(&mut self.modem_changes) | self.modem_lines.bits(),
            _ => self.scratch,
        }
    }

    /// Writes register `offset` (0 to 7).
    pub fn write(&mut self, offset: u16, value: u8) -> Written {
        match offset & 7 {
            0 if self.dlab() => self.divisor[0] = value,
            1 if self.dlab() => self.divisor[1] = value,
            0 => return self.transmit(value),
            1 => self.write_ier(Ier::from_bits_truncate(value)), // the part has no other bits
            2 => self.write_fcr(value),
            3 => self.lcr = value,
            4 => self.write_mcr(Mcr::from_bits_truncate(value)),
            5 | 6 => {} // factory test only
            _ => self.scratch = value,
        }
        Written::default()
    }

    /// A byte arrives on the line; `false`, and nothing changed, if there is no room for it.
    pub fn receive(&mut self, byte: u8) -> bool {
        if self.room() == 0 {
            return false;
        }
        self.put(byte)
    }

    /// How many bytes [`Self::receive`] would take now. In loopback mode the line is disconnected.
    pub fn room(&self) -> usize {
        if self.mcr.contains(Mcr::LOOPBACK) {
            return 0;
        }
        self.capacity().saturating_sub(self.held)
    }

    /// Level of the interrupt line.
    pub fn interrupt(&self) -> bool {
        self.mcr.contains(Mcr::OUT2) && !self.mcr.contains(Mcr::LOOPBACK) && self.cause() != IIR_NONE
    }

    const fn dlab(&self) -> bool {
        self.lcr & LCR_DLAB != 0
    }

    const fn capacity(&self) -> usize {
        if self.fifos_on { FIFO_BYTES } else { 1 }
    }

    /// The most urgent cause of an interrupt, as the interrupt identification register codes it.
    fn cause(&self) -> u8 {
        if self.ier.contains(Ier::LINE_STATUS) && self.overrun {
            IIR_LINE_STATUS
        } else if self.ier.contains(Ier::RECEIVED) && self.held >= self.trigger {
            IIR_RECEIVED
        } else if self.ier.contains(Ier::RECEIVED) && self.held > 0 {
            IIR_TIMEOUT
        } else if self.ier.contains(Ier::TRANSMITTER_EMPTY) && self.empty_untold {
            IIR_TRANSMITTER_EMPTY
        } else if self.ier.contains(Ier::MODEM_STATUS) && self.modem_changes != 0 {
            IIR_MODEM_STATUS
        } else {
            IIR_NONE
        }
    }

    /// Reading it acknowledges the transmitter's interrupt, if that is the one it shows.
    fn read_iir(&mut self) -> u8 {
        let cause = self.cause();
        if cause == IIR_TRANSMITTER_EMPTY {
            self.empty_untold = false;
        }
        if self.fifos_on { cause | IIR_FIFOS } else { cause }
    }

    fn read_lsr(&mut self) -> u8 {
        let mut lsr = Lsr::HOLDING_EMPTY | Lsr::TRANSMITTER_EMPTY;
        lsr.set(Lsr::DATA_READY, self.held > 0);
        lsr.set(Lsr::OVERRUN, core::mem::take(&mut self.overrun));
        lsr.bits()
    }

    fn write_ier(&mut self, ier: Ier) {
        // The holding register is empty, so switching its interrupt on asks for one at once.
        if ier.difference(self.ier).contains(Ier::TRANSMITTER_EMPTY) {
            self.empty_untold = true;
        }
        self.ier = ier;
    }

    fn write_fcr(&mut self, value: u8) {
        let on = value & FCR_ENABLE != 0;
        if on != self.fifos_on || (on && value & FCR_CLEAR_RECEIVER != 0) {
            self.held = 0;
        }
        self.fifos_on = on;
        self.trigger = match (on, value >> 6) {
            (false, _) | (true, 0) => 1,
            (true, 1) => 4,
            (true, 2) => 8,
            (true, _) => 14,
        };
    }

    /// In loopback mode the four outputs appear at the four inputs.
    fn write_mcr(&mut self, mcr: Mcr) {
        self.mcr = mcr;
        let mut lines = Self::CONNECTED;
        if mcr.contains(Mcr::LOOPBACK) {
            lines = Msr::empty();
            lines.set(Msr::CTS, mcr.contains(Mcr::RTS));
            lines.set(Msr::DSR, mcr.contains(Mcr::DTR));
            lines.set(Msr::RI, mcr.contains(Mcr::OUT1));
            lines.set(Msr::DCD, mcr.contains(Mcr::OUT2));
        }
        let changed = lines.symmetric_difference(self.modem_lines);
        // The ring indicator tells of its trailing edge only.
        let told = if lines.contains(Msr::RI) { changed.difference(Msr::RI) } else { changed };
        self.modem_changes |= told.bits() >> 4;
        self.modem_lines = lines;
    }

    fn transmit(&mut self, byte: u8) -> Written {
        self.empty_untold = false;
        let line_dropped = !self.interrupt();
        self.empty_untold = true;
        if !self.mcr.contains(Mcr::LOOPBACK) {
            return Written { sent: Some(byte), line_dropped };
        }
        if !self.put(byte) {
            self.overrun = true;
        }
        Written { sent: None, line_dropped }
    }

    fn put(&mut self, byte: u8) -> bool {
        if self.held >= self.capacity() {
            return false;
        }
        let at = self.first.wrapping_add(self.held) & (FIFO_BYTES - 1);
        let Some(slot) = self.fifo.get_mut(at) else { return false };
        *slot = byte;
        self.held = self.held.saturating_add(1);
        true
    }

    fn take(&mut self) -> u8 {
        let byte = self.fifo.get(self.first).copied().unwrap_or_default();
        if self.held > 0 {
            self.held = self.held.saturating_sub(1);
            self.first = self.first.wrapping_add(1) & (FIFO_BYTES - 1);
        }
        byte
    }
}

#[cfg(test)]
mod tests {
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
}
