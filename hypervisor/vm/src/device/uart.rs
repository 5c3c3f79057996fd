//! A 16550A serial port: the guest's console.
//!
//! Transmitter and receiver have the sixteen bytes of the original each. The line takes bytes as fast as the
//! host does; while it takes none, the transmitter is not empty and says so, and software that heeds this
//! loses nothing. Received bytes below the trigger level raise the time-out interrupt at once, which a real
//! part does four characters later. Registers as in the National Semiconductor PC16550D data sheet, section 8.

mod fifo;

use bitflags::bitflags;

use fifo::{FIFO_BYTES, Fifo};

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

/// One 16550A.
#[derive(Debug)]
pub struct Uart {
    received: Fifo,
    sending: Fifo,
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
            received: Fifo::EMPTY,
            sending: Fifo::EMPTY,
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
            0 => self.received.take().unwrap_or_default(),
            1 => self.ier.bits(),
            2 => self.read_iir(),
            3 => self.lcr,
            4 => self.mcr.bits(),
            5 => self.read_lsr(),
            6 => core::mem::take(&mut self.modem_changes) | self.modem_lines.bits(),
            _ => self.scratch,
        }
    }

    /// Writes register `offset` (0 to 7). What is to be sent waits for [`Self::send`].
    pub fn write(&mut self, offset: u16, value: u8) {
        match offset & 7 {
            0 if self.dlab() => self.divisor[0] = value,
            1 if self.dlab() => self.divisor[1] = value,
            0 => self.transmit(value),
            1 => self.write_ier(Ier::from_bits_truncate(value)), // the part has no other bits
            2 => self.write_fcr(value),
            3 => self.lcr = value,
            4 => self.write_mcr(Mcr::from_bits_truncate(value)),
            5 | 6 => {} // factory test only
            _ => self.scratch = value,
        }
    }

    /// Whether bytes wait to be sent.
    pub const fn is_sending(&self) -> bool {
        !self.sending.is_empty()
    }

    /// Hands what waits to be sent to `line`, until that refuses a byte.
    pub fn send(&mut self, mut line: impl FnMut(u8) -> bool) {
        while self.sending.first().is_some_and(&mut line) {
            let _sent = self.sending.take();
            self.empty_untold |= self.sending.is_empty();
        }
    }

    /// A byte arrives on the line; `false`, and nothing changed, if there is no room for it.
    pub fn receive(&mut self, byte: u8) -> bool {
        if self.room() == 0 {
            return false;
        }
        self.received.put(byte, self.capacity())
    }

    /// How many bytes [`Self::receive`] would take now. In loopback mode the line is disconnected.
    pub fn room(&self) -> usize {
        if self.mcr.contains(Mcr::LOOPBACK) {
            return 0;
        }
        self.capacity().saturating_sub(self.received.held())
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
        } else if self.ier.contains(Ier::RECEIVED) && self.received.held() >= self.trigger {
            IIR_RECEIVED
        } else if self.ier.contains(Ier::RECEIVED) && !self.received.is_empty() {
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
        let mut lsr = Lsr::empty();
        lsr.set(Lsr::HOLDING_EMPTY | Lsr::TRANSMITTER_EMPTY, self.sending.is_empty());
        lsr.set(Lsr::DATA_READY, !self.received.is_empty());
        lsr.set(Lsr::OVERRUN, core::mem::take(&mut self.overrun));
        lsr.bits()
    }

    fn write_ier(&mut self, ier: Ier) {
        // Switching the interrupt on while the holding register is empty asks for one at once.
        if ier.difference(self.ier).contains(Ier::TRANSMITTER_EMPTY) && self.sending.is_empty() {
            self.empty_untold = true;
        }
        self.ier = ier;
    }

    fn write_fcr(&mut self, value: u8) {
        let on = value & FCR_ENABLE != 0;
        if on != self.fifos_on || (on && value & FCR_CLEAR_RECEIVER != 0) {
            self.received = Fifo::EMPTY;
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

    /// What is written to a full transmitter is lost, as in the part.
    fn transmit(&mut self, byte: u8) {
        self.empty_untold = false;
        if !self.mcr.contains(Mcr::LOOPBACK) {
            let _taken = self.sending.put(byte, self.capacity());
            return;
        }
        self.empty_untold = self.sending.is_empty();
        if !self.received.put(byte, self.capacity()) {
            self.overrun = true;
        }
    }
}

#[cfg(test)]
mod tests;
