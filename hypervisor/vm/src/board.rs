//! The virtual machine's board: everything of a guest's machine that is neither processor nor RAM.
//!
//! The exit loop hands ports, device memory and the board's model-specific registers over and obeys the
//! answer. Pure: time comes in as the guest's time-stamp counter, bytes for the console go out as an
//! [`Effect`], nothing is allocated and nothing the guest does can fail here in a way the loop must handle.

use dolmen_memory::{Gpa, GuestMemory};

use crate::device::cmos::{self, Cmos};
use crate::device::io_apic::IoApic;
use crate::device::local_apic::{LocalApic, Message, Refused, Register, Request};
use crate::device::pci::{self, Pci};
use crate::device::power::Power;
use crate::device::uart::Uart;
use crate::layout::IO_APIC_BASE;
use crate::pvclock::{self, BadAddress, Epoch, PvClock, Scale};

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
}

/// What a write asks the exit loop to do beyond the board.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// The guest's console sends this byte.
    ConsoleOut(u8),
    /// The guest resets its machine.
    Reset,
    /// The guest switches its machine off.
    PowerOff,
}

/// Answer to RDMSR or WRMSR.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrAnswer {
    /// RDMSR gives this value.
    Value(u64),
    /// WRMSR is done.
    Done,
    /// The access is wrong: #GP(0).
    Fault,
    /// Not a register of the board.
    Unclaimed,
}

/// First port of the console's UART, its interrupt, and how many ports it has.
pub const UART_PORT: u16 = 0x3f8;
/// The console's pin of the I/O APIC.
pub const UART_PIN: u8 = 4;
const UART_LAST_PORT: u16 = UART_PORT.wrapping_add(7);

const MSR_TSC: u32 = 0x10;
const MSR_APIC_BASE: u32 = 0x1b;
const MSR_TSC_DEADLINE: u32 = 0x6e0;
const MSR_X2APIC_FIRST: u32 = 0x800;
const MSR_X2APIC_LAST: u32 = 0x8ff;

const PAGE: u64 = 0x1000;
const NS_PER_S: u64 = 1_000_000_000;

/// The board of one guest.
#[derive(Debug)]
pub struct Board {
    config: BoardConfig,
    apic: LocalApic,
    io_apic: IoApic,
    uart: Uart,
    cmos: Cmos,
    power: Power,
    pci: Pci,
    clock: PvClock,
}

impl Board {
    /// A board as it is after power-on.
    pub fn new(config: BoardConfig) -> Self {
        let epoch = Epoch { wall_clock_ns: config.wall_clock_ns, created_at: config.created_at };
        // No periodic timer ticks faster than every 10 microseconds.
        let shortest_period = u64::from(config.tsc_khz / 100);
        Self {
            apic: LocalApic::new(0, true, shortest_period),
            io_apic: IoApic::default(),
            uart: Uart::default(),
            cmos: Cmos::default(),
            power: Power::default(),
            pci: Pci::default(),
            clock: PvClock::new(Scale::new(config.tsc_khz), epoch),
            config,
        }
    }

    /// Answers IN of `size` (1, 2 or 4) bytes. A port nobody claims reads all ones.
    pub fn port_read(&mut self, port: u16, size: u8, now: Tsc) -> u32 {
        match (port, size) {
            (_, 1) => u32::from(self.read_byte(port, now)),
            (pci::ADDRESS, 4) => self.pci.address(),
            _ => {
                let mut bytes = [0; 4];
                for (offset, byte) in (0..u16::from(size)).zip(&mut bytes) {
                    *byte = self.read_byte(port.wrapping_add(offset), now);
                }
                u32::from_le_bytes(bytes)
            }
        }
    }

    /// Does OUT of `size` (1, 2 or 4) bytes. A write to a port nobody claims is dropped.
    pub fn port_write(&mut self, port: u16, size: u8, value: u32, now: Tsc) -> Effect {
        match (port, size) {
            (_, 1) => self.write_byte(port, value.to_le_bytes()[0], now),
            (pci::ADDRESS, 4) => {
                self.pci.set_address(value);
                Effect::None
            }
            _ => {
                let mut effect = Effect::None;
                for (offset, byte) in (0..u16::from(size)).zip(value.to_le_bytes()) {
                    let of_byte = self.write_byte(port.wrapping_add(offset), byte, now);
                    if of_byte != Effect::None {
                        effect = of_byte;
                    }
                }
                effect
            }
        }
    }

    /// Reads `size` (1, 2, 4 or 8) bytes of device memory; `None` where no device is.
    pub fn mmio_read(&mut self, gpa: Gpa, size: u8, now: Tsc) -> Option<u64> {
        let at = gpa.get();
        if let Some(offset) = Self::offset_in(self.apic.page(), at) {
            return Some(self.apic.read_page(offset, size, now));
        }
        let offset = Self::offset_in(Some(IO_APIC_BASE), at)?;
        Some(u64::from(self.io_apic.read(offset)))
    }

    /// Writes `size` (1, 2, 4 or 8) bytes of device memory; `None` where no device is.
    pub fn mmio_write(&mut self, gpa: Gpa, size: u8, value: u64, now: Tsc) -> Option<Effect> {
        let at = gpa.get();
        if let Some(offset) = Self::offset_in(self.apic.page(), at) {
            let request = self.apic.write_page(offset, size, value, now);
            self.route(request);
            return Some(Effect::None);
        }
        let offset = Self::offset_in(Some(IO_APIC_BASE), at)?;
        let word = u32::try_from(value & 0xffff_ffff).unwrap_or_default();
        let apic = &mut self.apic;
        self.io_apic.write(offset, word, |message| Self::deliver(apic, message, false));
        Some(Effect::None)
    }

    /// Answers RDMSR.
    pub fn msr_read(&mut self, msr: u32, now: Tsc) -> MsrAnswer {
        match msr {
            MSR_TSC => MsrAnswer::Value(now),
            MSR_APIC_BASE => MsrAnswer::Value(self.apic.base_register()),
            MSR_TSC_DEADLINE => {
                self.apic.advance(now);
                MsrAnswer::Value(self.apic.deadline())
            }
            MSR_X2APIC_FIRST..=MSR_X2APIC_LAST => match self.apic.read_msr(Register::of_msr(msr), now) {
                Ok(value) => MsrAnswer::Value(value),
                Err(Refused) => MsrAnswer::Fault,
            },
            pvclock::MSR_WALL_CLOCK => MsrAnswer::Value(self.clock.wall_clock_register()),
            pvclock::MSR_SYSTEM_TIME => MsrAnswer::Value(self.clock.system_time_register()),
            _ => MsrAnswer::Unclaimed,
        }
    }

    /// Does WRMSR; `memory` is where the paravirtual clock's structures go. The time-stamp counter cannot be
    /// set: a write to it is dropped.
    pub fn msr_write(&mut self, msr: u32, value: u64, now: Tsc, memory: &mut impl GuestMemory) -> MsrAnswer {
        let done = match msr {
            MSR_TSC => true,
            MSR_APIC_BASE => self.apic.set_base_register(value).is_ok(),
            MSR_TSC_DEADLINE => {
                self.apic.set_deadline(value, now);
                true
            }
            MSR_X2APIC_FIRST..=MSR_X2APIC_LAST => {
                match self.apic.write_msr(Register::of_msr(msr), value, now) {
                    Ok(request) => {
                        self.route(request);
                        true
                    }
                    Err(Refused) => false,
                }
            }
            pvclock::MSR_WALL_CLOCK => self.clock.write_wall_clock(value, memory) != Err(BadAddress),
            pvclock::MSR_SYSTEM_TIME => self.clock.write_system_time(value, now, memory) != Err(BadAddress),
            _ => return MsrAnswer::Unclaimed,
        };
        if done { MsrAnswer::Done } else { MsrAnswer::Fault }
    }

    /// A byte for the guest's console; `false`, and nothing changed, if there was no room for it.
    pub fn console_in(&mut self, byte: u8) -> bool {
        let taken = self.uart.receive(byte);
        self.update_uart_pin();
        taken
    }

    /// How many bytes [`Self::console_in`] would take now.
    pub fn console_room(&self) -> usize {
        self.uart.room()
    }

    /// When [`Self::advance`] must be called at the latest; `None` if no timer runs.
    pub fn next_deadline(&self) -> Option<Tsc> {
        self.apic.next_deadline()
    }

    /// Lets timers that are due at `now` fire.
    pub fn advance(&mut self, now: Tsc) {
        self.apic.advance(now);
    }

    /// The interrupt that the local APIC wants delivered now, if the guest takes one.
    pub fn pending_vector(&self) -> Option<u8> {
        self.apic.pending_vector()
    }

    /// The processor took `vector`, which [`Self::pending_vector`] gave.
    pub fn acknowledge(&mut self, vector: u8) {
        self.apic.acknowledge(vector);
    }

    /// Whether an NMI waits; the caller delivers it and says so by [`Self::acknowledge_nmi`].
    pub fn pending_nmi(&self) -> bool {
        self.apic.pending_nmi()
    }

    /// The processor took the waiting NMI.
    pub fn acknowledge_nmi(&mut self) {
        self.apic.acknowledge_nmi();
    }

    /// CR8: bits 7:4 of the task priority. A back end with a virtual TPR loads it before it enters the guest.
    pub fn cr8(&self) -> u8 {
        self.apic.cr8()
    }

    /// The guest's CR8 changed, without an exit or by one.
    pub fn set_cr8(&mut self, value: u8) {
        self.apic.set_cr8(value);
    }

    /// What the board was made for.
    pub const fn config(&self) -> &BoardConfig {
        &self.config
    }

    fn offset_in(page: Option<u64>, at: u64) -> Option<u64> {
        at.checked_sub(page?).filter(|offset| *offset < PAGE)
    }

    fn read_byte(&mut self, port: u16, now: Tsc) -> u8 {
        match port {
            UART_PORT..=UART_LAST_PORT => {
                let value = self.uart.read(port.wrapping_sub(UART_PORT));
                self.update_uart_pin();
                value
            }
            cmos::DATA => self.cmos.read(self.wall_clock_seconds(now)),
            pci::DATA..=pci::LAST_DATA => self.pci.read(port.wrapping_sub(pci::DATA)),
            _ => self.power.read(port).unwrap_or(u8::MAX),
        }
    }

    fn write_byte(&mut self, port: u16, value: u8, now: Tsc) -> Effect {
        match port {
            UART_PORT..=UART_LAST_PORT => self.write_uart(port.wrapping_sub(UART_PORT), value),
            cmos::INDEX => {
                self.cmos.select(value);
                Effect::None
            }
            cmos::DATA => {
                self.cmos.write(value, self.wall_clock_seconds(now));
                Effect::None
            }
            _ => self.power.write(port, value).unwrap_or(Effect::None),
        }
    }

    fn write_uart(&mut self, offset: u16, value: u8) -> Effect {
        let written = self.uart.write(offset, value);
        if written.line_dropped {
            self.set_pin(UART_PIN, false);
        }
        self.update_uart_pin();
        written.sent.map_or(Effect::None, Effect::ConsoleOut)
    }

    fn update_uart_pin(&mut self) {
        self.set_pin(UART_PIN, self.uart.interrupt());
    }

    fn set_pin(&mut self, pin: u8, asserted: bool) {
        let apic = &mut self.apic;
        self.io_apic.set_pin(pin, asserted, |message| Self::deliver(apic, message, false));
    }

    /// Does what an access to the local APIC asked for.
    fn route(&mut self, request: Request) {
        match request {
            Request::None => {}
            Request::Send(message) => Self::deliver(&mut self.apic, message, true),
            Request::EndOfInterrupt(vector) => {
                let apic = &mut self.apic;
                self.io_apic.end_of_interrupt(vector, |message| Self::deliver(apic, message, false));
            }
        }
    }

    /// Hands `message` to the processors it addresses. INIT and start-up address processors that wait for
    /// them; the boot processor, the only one here, does not.
    fn deliver(apic: &mut LocalApic, message: Message, from_processor: bool) {
        if apic.is_addressed(message.destination, from_processor.then_some(apic.id())) {
            apic.deliver(message);
        }
    }

    fn wall_clock_seconds(&self, now: Tsc) -> u64 {
        self.clock.wall_clock(now) / NS_PER_S
    }
}

#[cfg(test)]
mod tests;
