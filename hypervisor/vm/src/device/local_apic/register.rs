//! The registers of a local APIC, reached by memory (xAPIC) or by MSR (x2APIC).

use super::{
    ERROR_ILLEGAL_REGISTER, ERROR_SEND_ILLEGAL, FIRST_LEGAL_VECTOR, LVT_MASKED, LocalApic, Mode, Refused,
    Request, SPURIOUS_ENABLE, TimerMode,
};
use crate::board::Tsc;

/// Index of a register: its offset in memory divided by 16, or its MSR number less 0x800
/// (SDM vol. 3A, table 11-6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register(pub u8);

impl Register {
    const ID: u8 = 0x02;
    const VERSION: u8 = 0x03;
    const TASK_PRIORITY: u8 = 0x08;
    const ARBITRATION_PRIORITY: u8 = 0x09;
    const PROCESSOR_PRIORITY: u8 = 0x0a;
    const END_OF_INTERRUPT: u8 = 0x0b;
    const REMOTE_READ: u8 = 0x0c;
    const LOGICAL_DESTINATION: u8 = 0x0d;
    const DESTINATION_FORMAT: u8 = 0x0e;
    const SPURIOUS: u8 = 0x0f;
    const IN_SERVICE: u8 = 0x10;
    const TRIGGER_MODE: u8 = 0x18;
    const REQUEST: u8 = 0x20;
    const ERROR_STATUS: u8 = 0x28;
    const COMMAND: u8 = 0x30;
    const COMMAND_HIGH: u8 = 0x31;
    const LVT_TIMER: u8 = 0x32;
    const LVT_ERROR: u8 = 0x37;
    const INITIAL_COUNT: u8 = 0x38;
    const CURRENT_COUNT: u8 = 0x39;
    const DIVIDE: u8 = 0x3e;
    const SELF_IPI: u8 = 0x3f;

    /// The register behind MSR `msr`, 0x800 to 0x8ff.
    pub const fn of_msr(msr: u32) -> Self {
        Self(msr.to_le_bytes()[0])
    }

    /// Whether a write of it can change how senders find this processor.
    const fn decides_addressing(self) -> bool {
        matches!(
            self.0,
            Self::TASK_PRIORITY | Self::LOGICAL_DESTINATION | Self::DESTINATION_FORMAT | Self::SPURIOUS
        )
    }

    const fn is_lvt(self) -> bool {
        self.0 >= Self::LVT_TIMER && self.0 <= Self::LVT_ERROR
    }

    /// Bits of a register that software may set; the rest is reserved or read-only.
    const fn writable_bits(self) -> u32 {
        match self.0 {
            Self::TASK_PRIORITY => 0xff,
            Self::SPURIOUS => 0x1ff,
            Self::LVT_TIMER => 0x0007_00ff,
            0x33 | 0x34 => 0x0001_07ff,
            0x35 | 0x36 => 0x0001_a7ff,
            Self::LVT_ERROR => 0x0001_00ff,
            Self::COMMAND => 0x000c_dfff,
            Self::INITIAL_COUNT | Self::COMMAND_HIGH => u32::MAX,
            Self::DIVIDE => 0b1011,
            Self::SELF_IPI => 0xff,
            Self::LOGICAL_DESTINATION => 0xff00_0000,
            Self::DESTINATION_FORMAT => 0xf000_0000,
            _ => 0,
        }
    }
}

/// Version 0x14 (integrated), six entries in the local vector table, end of interrupt always broadcast.
const VERSION: u32 = 0x0005_0014;

impl LocalApic {
    /// Reads `size` bytes at `offset` of the register page. What is no register reads zero.
    pub fn read_page(&mut self, offset: u64, size: u8, now: Tsc) -> u64 {
        let within = offset & 0xf;
        let (Ok(index), true) = (u8::try_from(offset >> 4), within < 4 && size <= 4) else { return 0 };
        let value = match self.read(Register(index), now) {
            Some(value) => value,
            None => {
                self.report(ERROR_ILLEGAL_REGISTER);
                0
            }
        };
        u64::from(value) >> (within << 3)
    }

    /// Writes `size` bytes at `offset` of the register page. Only whole registers can be written.
    pub fn write_page(&mut self, offset: u64, size: u8, value: u64, now: Tsc) -> Request {
        let (Ok(index), Ok(value)) = (u8::try_from(offset >> 4), u32::try_from(value & 0xffff_ffff)) else {
            return Request::None;
        };
        self.is_published &= !Register(index).decides_addressing();
        if size != 4 || offset & 0xf != 0 {
            return Request::None;
        }
        match Register(index) {
            Register(Register::COMMAND_HIGH) => {
                self.command = (self.command & 0xffff_ffff) | (u64::from(value) << 32);
                Request::None
            }
            Register(Register::LOGICAL_DESTINATION) => {
                self.logical = value & 0xff00_0000;
                Request::None
            }
            Register(Register::DESTINATION_FORMAT) => {
                self.format = value | 0x0fff_ffff;
                Request::None
            }
            Register(Register::COMMAND) => {
                self.command = (self.command & !0xffff_ffff) | u64::from(value & 0x000c_cfff);
                self.send()
            }
            register => match self.write(register, value & register.writable_bits(), now) {
                Some(request) => request,
                None => {
                    self.report(ERROR_ILLEGAL_REGISTER);
                    Request::None
                }
            },
        }
    }

    /// RDMSR of the x2APIC register `register`.
    ///
    /// # Errors
    /// [`Refused`] if the processor is not in x2APIC mode or the register cannot be read.
    #[inline]
    pub fn read_msr(&mut self, register: Register, now: Tsc) -> Result<u64, Refused> {
        if self.mode != Mode::X2Apic {
            return Err(Refused);
        }
        match register.0 {
            Register::COMMAND => Ok(self.command),
            Register::COMMAND_HIGH
            | Register::DESTINATION_FORMAT
            | Register::ARBITRATION_PRIORITY
            | Register::REMOTE_READ => Err(Refused),
            _ => self.read(register, now).map(u64::from).ok_or(Refused),
        }
    }

    /// WRMSR of the x2APIC register `register`.
    ///
    /// # Errors
    /// [`Refused`] if the processor is not in x2APIC mode, the register cannot be written, or a reserved bit
    /// is set.
    #[inline]
    pub fn write_msr(&mut self, register: Register, value: u64, now: Tsc) -> Result<Request, Refused> {
        self.is_published &= !register.decides_addressing();
        if self.mode != Mode::X2Apic {
            return Err(Refused);
        }
        let reserved = !u64::from(register.writable_bits());
        match register.0 {
            Register::COMMAND if value & reserved & 0xffff_ffff == 0 => {
                self.command = value & !(1 << 12);
                Ok(self.send())
            }
            Register::SELF_IPI if value & reserved == 0 => Ok(self.send_to_self(value.to_le_bytes()[0])),
            Register::COMMAND
            | Register::COMMAND_HIGH
            | Register::LOGICAL_DESTINATION
            | Register::DESTINATION_FORMAT
            | Register::ID => Err(Refused),
            _ if value & reserved != 0 => Err(Refused),
            _ => {
                let value = u32::try_from(value).map_err(|_| Refused)?;
                self.write(register, value, now).ok_or(Refused)
            }
        }
    }

    fn send_to_self(&mut self, vector: u8) -> Request {
        if vector < FIRST_LEGAL_VECTOR {
            self.report(ERROR_SEND_ILLEGAL);
        } else {
            self.accept(vector);
        }
        Request::None
    }

    /// Reads a register; `None` if there is none to read.
    fn read(&mut self, register: Register, now: Tsc) -> Option<u32> {
        self.advance(now);
        let word = register.0 & 7;
        Some(match register.0 {
            Register::ID if self.mode == Mode::X2Apic => self.id,
            Register::ID => self.id << 24,
            Register::VERSION => VERSION,
            Register::TASK_PRIORITY => u32::from(self.task_priority),
            Register::ARBITRATION_PRIORITY | Register::REMOTE_READ => 0,
            Register::PROCESSOR_PRIORITY => u32::from(self.processor_priority()),
            Register::LOGICAL_DESTINATION => self.logical,
            Register::DESTINATION_FORMAT => self.format,
            Register::SPURIOUS => self.spurious,
            Register::IN_SERVICE..Register::TRIGGER_MODE => self.in_service.word(word),
            Register::TRIGGER_MODE..Register::REQUEST => self.level.word(word),
            Register::REQUEST..Register::ERROR_STATUS => self.requested.word(word),
            Register::ERROR_STATUS => self.errors_shown,
            Register::COMMAND => u32::try_from(self.command & 0xffff_ffff).unwrap_or_default(),
            Register::COMMAND_HIGH => u32::try_from(self.command >> 32).unwrap_or_default(),
            Register::INITIAL_COUNT => self.timer.initial(),
            Register::CURRENT_COUNT => self.timer.current(now),
            Register::DIVIDE => self.timer.divide(),
            _ if register.is_lvt() => self.lvt.get(Self::lvt_index(register)).copied().unwrap_or_default(),
            _ => return None,
        })
    }

    /// Writes a register that both interfaces have; `None` if there is none to write.
    #[inline]
    fn write(&mut self, register: Register, value: u32, now: Tsc) -> Option<Request> {
        self.advance(now);
        match register.0 {
            Register::TASK_PRIORITY => self.task_priority = value.to_le_bytes()[0],
            Register::END_OF_INTERRUPT => return Some(self.end_of_interrupt()),
            Register::SPURIOUS => self.write_spurious(value),
            Register::ERROR_STATUS => self.errors_shown = core::mem::take(&mut self.errors_new),
            Register::INITIAL_COUNT => self.timer.set_initial(value, now),
            Register::DIVIDE => self.timer.set_divide(value, now),
            Register::ID
            | Register::VERSION
            | Register::PROCESSOR_PRIORITY
            | Register::IN_SERVICE..Register::ERROR_STATUS
            | Register::CURRENT_COUNT
                if self.mode == Mode::XApic => {}
            _ if register.is_lvt() => self.write_lvt(register, value),
            _ => return None,
        }
        Some(Request::None)
    }

    fn write_spurious(&mut self, value: u32) {
        self.spurious = value;
        if value & SPURIOUS_ENABLE == 0 {
            for entry in &mut self.lvt {
                *entry |= LVT_MASKED;
            }
        }
    }

    fn write_lvt(&mut self, register: Register, value: u32) {
        let forced = if self.spurious & SPURIOUS_ENABLE == 0 { LVT_MASKED } else { 0 };
        if let Some(entry) = self.lvt.get_mut(Self::lvt_index(register)) {
            *entry = value | forced;
        }
        if register.0 == Register::LVT_TIMER {
            self.timer.set_mode(TimerMode::of(value));
        }
    }

    fn lvt_index(register: Register) -> usize {
        usize::from(register.0.wrapping_sub(Register::LVT_TIMER))
    }
}
