//! 16550 serial ports, polled.

use crate::port;

/// A physical 16550, programmed for 115,200 baud, 8 data bits, no parity.
#[derive(Debug)]
pub struct Serial {
    base: u16,
}

/// Turns of the wait for room in the transmitter: more than a 16-byte FIFO at 115,200 baud needs.
/// A port that never has room is not there; output to it is dropped.
const TURNS: u32 = 200_000;

/// Bytes of the transmitter's FIFO.
const FIFO_BYTES: usize = 16;

const DATA: u16 = 0;
const INTERRUPT_ENABLE: u16 = 1;
const FIFO_CONTROL: u16 = 2;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;
const SCRATCH: u16 = 7;

const DLAB: u8 = 0x80;
const EIGHT_BITS: u8 = 0x03;
/// With the trigger level at 14 bytes: some ports take no more than that many before they are read.
const FIFO_ENABLE_AND_CLEAR: u8 = 0xc7;
const DTR_RTS: u8 = 0x03;
const DATA_READY: u8 = 0x01;
const TRANSMITTER_EMPTY: u8 = 0x20;

impl Serial {
    /// The port at 3F8h.
    pub const COM1: u16 = 0x3f8;
    /// The port at 2F8h.
    pub const COM2: u16 = 0x2f8;

    /// The port at `base`, as somebody left it: for output where nothing is lost by a missing port.
    #[must_use]
    pub const fn at(base: u16) -> Self {
        Self { base }
    }

    /// Programs the port at `base`, or answers `None` where no 16550 is.
    #[must_use]
    pub fn open(base: u16) -> Option<Self> {
        let serial = Self { base };
        serial.write(SCRATCH, 0x5a);
        if serial.read(SCRATCH) != 0x5a {
            return None;
        }
        serial.write(INTERRUPT_ENABLE, 0);
        serial.write(LINE_CONTROL, DLAB);
        serial.write(DATA, 1);
        serial.write(INTERRUPT_ENABLE, 0);
        serial.write(LINE_CONTROL, EIGHT_BITS);
        serial.write(FIFO_CONTROL, FIFO_ENABLE_AND_CLEAR);
        serial.write(MODEM_CONTROL, DTR_RTS);
        Some(serial)
    }

    /// Sends bytes for as long as `next` has some and the port takes them, at most `most`, without waiting. A
    /// transmitter that is empty has room for its whole FIFO.
    pub fn send_burst(&self, most: usize, mut next: impl FnMut() -> Option<u8>) {
        let mut sent = 0usize;
        while sent < most && self.is_empty() {
            for _ in 0..FIFO_BYTES {
                let Some(byte) = next() else { return };
                self.write(DATA, byte);
                sent = sent.saturating_add(1);
            }
        }
    }

    /// Sends one byte; it is lost if there is no room for it.
    pub fn put(&self, byte: u8) {
        self.write(DATA, byte);
    }

    /// Whether the transmitter has nothing to send. A missing port has not.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.read(LINE_STATUS) & TRANSMITTER_EMPTY != 0
    }

    /// Sends one byte as soon as there is room, and gives up on a port that never has.
    pub fn send(&self, byte: u8) {
        for _ in 0..TURNS {
            if self.read(LINE_STATUS) & TRANSMITTER_EMPTY != 0 {
                self.write(DATA, byte);
                return;
            }
        }
    }

    /// Sends text, a line feed as carriage return and line feed.
    pub fn send_text(&self, text: &str) {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.send(b'\r');
            }
            self.send(byte);
        }
    }

    /// Whether a byte was received.
    #[must_use]
    pub fn has_received(&self) -> bool {
        let status = self.read(LINE_STATUS);
        // FFh is what a missing port reads as, not a status.
        status != 0xff && status & DATA_READY != 0
    }

    /// A received byte, if there is one.
    #[must_use]
    pub fn receive(&self) -> Option<u8> {
        self.has_received().then(|| self.read(DATA))
    }

    fn read(&self, register: u16) -> u8 {
        port::read8(self.base.wrapping_add(register))
    }

    fn write(&self, register: u16, value: u8) {
        port::write8(self.base.wrapping_add(register), value);
    }
}
