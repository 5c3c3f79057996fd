//! The virtual machine's board: what a guest's processors share of its machine, but for RAM. What each has
//! for itself is in [`crate::local`].
//!
//! The exit loop hands ports and device memory over and obeys the answer; interrupts go out through
//! [`Wires`]. Pure: time comes in as the guest's time-stamp counter, bytes for the console go out as an
//! [`Effect`], nothing is allocated and nothing the guest does can fail here in a way the loop must handle.

mod port;

use dolmen_memory::Gpa;

pub use port::PortDevice;

use crate::bus::Wires;
use crate::device::cmos::Cmos;
use crate::device::io_apic::IoApic;
use crate::device::pci::{self, Pci};
use crate::device::power::Power;
use crate::device::timer::{self, Timer};
use crate::device::uart::Uart;
use crate::layout::IO_APIC_BASE;
use crate::pvclock::{Clock, Epoch};

/// A value of the guest's time-stamp counter: the host's plus the guest's offset.
pub type Tsc = u64;

/// What the board is made for.
#[derive(Clone, Copy, Debug)]
pub struct BoardConfig {
    /// Rate of the guest's time-stamp counter, in kHz.
    pub tsc_khz: u32,
    /// RAM of the guest, in bytes; [`crate::layout::RamLayout`] says where it lies.
    pub ram_bytes: u64,
    /// Wall clock at `created_at`, in nanoseconds since 1970-01-01 UTC.
    pub wall_clock_ns: u64,
    /// The guest's time-stamp counter when the wall clock was read.
    pub created_at: Tsc,
    /// Whether [`SerialPort::Com2`] is there.
    pub second_uart: bool,
}

impl BoardConfig {
    /// The guest's time.
    pub fn clock(&self) -> Clock {
        let epoch = Epoch { wall_clock_ns: self.wall_clock_ns, created_at: self.created_at };
        Clock::new(self.tsc_khz, epoch)
    }
}

/// What a write asks the exit loop to do beyond the board.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// A UART has bytes to send: call [`Board::send_console`].
    ConsoleOut(SerialPort),
    /// The interval timer was programmed: call [`Board::tick`] when this time comes.
    TickAt(Option<Tsc>),
    /// The guest resets its machine.
    Reset,
    /// The guest switches its machine off.
    PowerOff,
}

/// One of the guest's serial ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SerialPort {
    /// The console.
    Com1,
    /// The second one, which not every guest has.
    Com2,
}

impl SerialPort {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Com1, Self::Com2];

    /// Its first port, of [`UART_PORTS`].
    pub const fn port(self) -> u16 {
        match self {
            Self::Com1 => 0x3f8,
            Self::Com2 => 0x2f8,
        }
    }

    /// Its pin of the I/O APIC.
    pub const fn pin(self) -> u8 {
        match self {
            Self::Com1 => 4,
            Self::Com2 => 3,
        }
    }

    /// Its place in lists of both.
    pub const fn index(self) -> usize {
        match self {
            Self::Com1 => 0,
            Self::Com2 => 1,
        }
    }
}

/// Ports of one UART.
pub const UART_PORTS: u16 = 8;

const PAGE: u64 = 0x1000;
const NS_PER_S: u64 = 1_000_000_000;

/// The board of one guest.
#[derive(Debug)]
pub struct Board {
    config: BoardConfig,
    io_apic: IoApic,
    /// By [`SerialPort::index`].
    uarts: [Uart; 2],
    cmos: Cmos,
    power: Power,
    timer: Timer,
    pci: Pci,
    clock: Clock,
}

impl Board {
    /// A board as it is after power-on.
    pub fn new(config: BoardConfig) -> Self {
        Self {
            io_apic: IoApic::default(),
            uarts: Default::default(),
            cmos: Cmos::default(),
            power: Power::default(),
            timer: Timer::new(config.tsc_khz),
            pci: Pci::default(),
            clock: config.clock(),
            config,
        }
    }

    /// Answers IN of `size` (1, 2 or 4) bytes. A port nobody claims reads all ones.
    pub fn port_read(&mut self, port: u16, size: u8, now: Tsc, wires: &mut Wires<'_>) -> u32 {
        match (port, size) {
            (_, 1) => u32::from(self.read_byte(port, now, wires)),
            (pci::ADDRESS, 4) => self.pci.address(),
            _ => {
                let mut bytes = [0; 4];
                for (offset, byte) in (0..u16::from(size)).zip(&mut bytes) {
                    *byte = self.read_byte(port.wrapping_add(offset), now, wires);
                }
                u32::from_le_bytes(bytes)
            }
        }
    }

    /// Does OUT of `size` (1, 2 or 4) bytes. A write to a port nobody claims is dropped.
    pub fn port_write(&mut self, port: u16, size: u8, value: u32, now: Tsc, wires: &mut Wires<'_>) -> Effect {
        match (port, size) {
            (_, 1) => self.write_byte(port, value.to_le_bytes()[0], now, wires),
            (pci::ADDRESS, 4) => {
                self.pci.set_address(value);
                Effect::None
            }
            _ => {
                let mut effect = Effect::None;
                for (offset, byte) in (0..u16::from(size)).zip(value.to_le_bytes()) {
                    let of_byte = self.write_byte(port.wrapping_add(offset), byte, now, wires);
                    if of_byte != Effect::None {
                        effect = of_byte;
                    }
                }
                effect
            }
        }
    }

    /// Reads `size` (1, 2, 4 or 8) bytes of device memory; `None` where no device is.
    pub fn mmio_read(&mut self, gpa: Gpa, _size: u8) -> Option<u64> {
        Some(u64::from(self.io_apic.read(offset_in(IO_APIC_BASE, gpa)?)))
    }

    /// Writes `size` (1, 2, 4 or 8) bytes of device memory; `None` where no device is.
    pub fn mmio_write(&mut self, gpa: Gpa, _size: u8, value: u64, wires: &mut Wires<'_>) -> Option<Effect> {
        let offset = offset_in(IO_APIC_BASE, gpa)?;
        let word = u32::try_from(value & 0xffff_ffff).unwrap_or_default();
        self.io_apic.write(offset, word, |message| wires.send(message));
        Some(Effect::None)
    }

    /// Raises the interval timer's interrupt if it is due; answers when it is due next.
    pub fn tick(&mut self, now: Tsc, wires: &mut Wires<'_>) -> Option<Tsc> {
        if self.timer.tick(now) {
            self.set_pin(timer::PIN, true, wires);
            self.set_pin(timer::PIN, false, wires);
        }
        self.timer.next_tick(now)
    }

    /// A processor has ended the level-triggered interrupt `vector`.
    pub fn end_of_interrupt(&mut self, vector: u8, wires: &mut Wires<'_>) {
        self.io_apic.end_of_interrupt(vector, |message| wires.send(message));
    }

    /// A byte for a serial port of the guest; `false`, and nothing changed, if there was no room for it.
    pub fn console_in(&mut self, port: SerialPort, byte: u8, wires: &mut Wires<'_>) -> bool {
        let taken = self.uart(port).is_some_and(|uart| uart.receive(byte));
        self.update_uart_pin(port, wires);
        taken
    }

    /// How many bytes [`Self::console_in`] would take now.
    pub fn console_room(&mut self, port: SerialPort) -> usize {
        self.uart(port).map_or(0, |uart| uart.room())
    }

    /// Hands what a serial port has to send to `line`, until that refuses a byte; the guest then sees a
    /// transmitter that is not empty. To be called after [`Effect::ConsoleOut`], and again whenever a line
    /// that has refused takes bytes again.
    pub fn send_console(&mut self, port: SerialPort, line: impl FnMut(u8) -> bool, wires: &mut Wires<'_>) {
        let Some(uart) = self.uart(port) else { return };
        if uart.is_sending() {
            uart.send(line);
            self.update_uart_pin(port, wires);
        }
    }

    /// What the board was made for.
    pub const fn config(&self) -> &BoardConfig {
        &self.config
    }

    fn read_byte(&mut self, port: u16, now: Tsc, wires: &mut Wires<'_>) -> u8 {
        match PortDevice::at(port) {
            Some(PortDevice::Serial(uart)) => self.read_uart(uart, port.wrapping_sub(uart.port()), wires),
            Some(PortDevice::CmosData) => self.cmos.read(self.wall_clock_seconds(now)),
            Some(PortDevice::PciData) => self.pci.read(port.wrapping_sub(pci::DATA)),
            Some(PortDevice::Timer) => self.timer.read(port, now),
            Some(PortDevice::System) => self.power.read(port).unwrap_or(u8::MAX),
            Some(PortDevice::CmosIndex | PortDevice::PciAddress) | None => u8::MAX,
        }
    }

    fn write_byte(&mut self, port: u16, value: u8, now: Tsc, wires: &mut Wires<'_>) -> Effect {
        match PortDevice::at(port) {
            Some(PortDevice::Serial(uart)) => {
                return self.write_uart(uart, port.wrapping_sub(uart.port()), value, wires);
            }
            Some(PortDevice::CmosIndex) => self.cmos.select(value),
            Some(PortDevice::CmosData) => self.cmos.write(value, self.wall_clock_seconds(now)),
            Some(PortDevice::Timer) => {
                self.timer.write(port, value, now);
                if matches!(port, timer::COUNTERS | timer::COMMAND) {
                    return Effect::TickAt(self.timer.next_tick(now));
                }
            }
            Some(PortDevice::System) => return self.power.write(port, value).unwrap_or(Effect::None),
            Some(PortDevice::PciAddress | PortDevice::PciData) | None => {}
        }
        Effect::None
    }

    /// The UART of `port`, if the guest has it.
    fn uart(&mut self, port: SerialPort) -> Option<&mut Uart> {
        let is_there = port == SerialPort::Com1 || self.config.second_uart;
        self.uarts.get_mut(port.index()).filter(|_| is_there)
    }

    fn read_uart(&mut self, port: SerialPort, offset: u16, wires: &mut Wires<'_>) -> u8 {
        let value = self.uart(port).map_or(u8::MAX, |uart| uart.read(offset));
        self.update_uart_pin(port, wires);
        value
    }

    fn write_uart(&mut self, port: SerialPort, offset: u16, value: u8, wires: &mut Wires<'_>) -> Effect {
        let Some(uart) = self.uart(port) else { return Effect::None };
        uart.write(offset, value);
        let effect = if uart.is_sending() { Effect::ConsoleOut(port) } else { Effect::None };
        self.update_uart_pin(port, wires);
        effect
    }

    fn update_uart_pin(&mut self, port: SerialPort, wires: &mut Wires<'_>) {
        let asserted = self.uart(port).is_some_and(|uart| uart.interrupt());
        self.set_pin(port.pin(), asserted, wires);
    }

    fn set_pin(&mut self, pin: u8, asserted: bool, wires: &mut Wires<'_>) {
        self.io_apic.set_pin(pin, asserted, |message| wires.send(message));
    }

    fn wall_clock_seconds(&self, now: Tsc) -> u64 {
        self.clock.wall_clock(now) / NS_PER_S
    }
}

/// Where in the page at `base` an address is.
pub(crate) fn offset_in(base: u64, gpa: Gpa) -> Option<u64> {
    gpa.get().checked_sub(base).filter(|offset| *offset < PAGE)
}

#[cfg(test)]
mod tests;
