//! The local APIC of one virtual processor: xAPIC by memory, x2APIC by MSR (SDM vol. 3A, chapter 11).
//!
//! It has the timer and the error entry of the local vector table wired up; the other entries exist as
//! registers, as no source drives them. What reaches beyond one processor (interrupts to others, end of
//! interrupt for the I/O APIC) comes out as a [`Request`] for the board to route.

mod register;
mod timer;
mod vector_set;

use crate::board::Tsc;
use crate::layout::LOCAL_APIC_BASE;
use timer::{ApicTimer, TimerMode};
use vector_set::VectorSet;

pub use register::Register;

/// How an interrupt message is to be delivered (SDM vol. 3A, figure 11-12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// To each processor addressed.
    Fixed,
    /// To one of the processors addressed.
    LowestPriority,
    /// As a non-maskable interrupt.
    Nmi,
    /// Resets the processor.
    Init,
    /// Starts a processor that waits after INIT.
    StartUp,
    /// System management or external interrupt, or a reserved code: nothing here takes these.
    Unsupported,
}

impl Delivery {
    /// Decodes bits 10:8 of an interrupt command or a redirection entry.
    pub const fn of(word: u32) -> Self {
        match (word >> 8) & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            _ => Self::Unsupported,
        }
    }
}

/// Whom an interrupt message addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The processor with this APIC ID; `u32::MAX` means all.
    Physical(u32),
    /// Processors by their logical destination register; `u32::MAX` means all.
    Logical(u32),
    /// The sender.
    Sender,
    /// All processors.
    All,
    /// All but the sender.
    Others,
}

impl Destination {
    /// The destination of a message with eight address bits, in which 0xff means all.
    pub fn of_byte(byte: u8, logical: bool) -> Self {
        match (logical, byte) {
            (false, 0xff) => Self::All,
            (false, id) => Self::Physical(u32::from(id)),
            (true, set) => Self::Logical(u32::from(set)),
        }
    }
}

/// An interrupt message on its way to local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// How.
    pub delivery: Delivery,
    /// Which vector.
    pub vector: u8,
    /// Whether the end of interrupt must be told to the I/O APICs.
    pub level_triggered: bool,
    /// Whom.
    pub destination: Destination,
}

/// What an access to a local APIC asks of the rest of the board.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Nothing.
    None,
    /// Deliver a message.
    Send(Message),
    /// Tell the I/O APICs that a level-triggered interrupt has ended.
    EndOfInterrupt(u8),
}

/// The access is one that raises #GP(0) on the MSR interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// What the APIC base register selects (SDM vol. 3A, table 11-5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Disabled,
    XApic,
    X2Apic,
}

const BASE_BOOT_PROCESSOR: u64 = 1 << 8;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLE: u64 = 1 << 11;
/// Address bits 51:12; what a physical address can have at most (APM vol. 2, 16.3.1).
const BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const LVT_MASKED: u32 = 1 << 16;
const SPURIOUS_ENABLE: u32 = 1 << 8;

const ERROR_SEND_ILLEGAL: u32 = 1 << 5;
const ERROR_RECEIVE_ILLEGAL: u32 = 1 << 6;
const ERROR_ILLEGAL_REGISTER: u32 = 1 << 7;
/// Vectors below are the processor's own.
const FIRST_LEGAL_VECTOR: u8 = 16;

/// One local APIC.
#[derive(Debug)]
pub struct LocalApic {
    id: u32,
    boot_processor: bool,
    mode: Mode,
    base: u64,
    task_priority: u8,
    logical: u32,
    format: u32,
    spurious: u32,
    requested: VectorSet,
    in_service: VectorSet,
    level: VectorSet,
    command: u64,
    /// Timer, thermal, performance, LINT0, LINT1, error.
    lvt: [u32; 6],
    errors_shown: u32,
    errors_new: u32,
    timer: ApicTimer,
    shortest_period: u64,
    nmi_pending: bool,
}

impl LocalApic {
    const LVT_TIMER: usize = 0;
    const LVT_ERROR: usize = 5;

    /// The local APIC of processor `id` as after power-on: xAPIC mode, software-disabled. Periodic timers
    /// are not shorter than `shortest_period` ticks of the time-stamp counter.
    pub const fn new(id: u32, boot_processor: bool, shortest_period: u64) -> Self {
        Self {
            id,
            boot_processor,
            mode: Mode::XApic,
            base: LOCAL_APIC_BASE,
            task_priority: 0,
            logical: 0,
            format: u32::MAX,
            spurious: 0xff,
            requested: VectorSet::EMPTY,
            in_service: VectorSet::EMPTY,
            level: VectorSet::EMPTY,
            command: 0,
            lvt: [LVT_MASKED; 6],
            errors_shown: 0,
            errors_new: 0,
            timer: ApicTimer::new(shortest_period),
            shortest_period,
            nmi_pending: false,
        }
    }

    /// The processor's APIC ID.
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// Where the register page is, while it is in memory.
    pub fn page(&self) -> Option<u64> {
        (self.mode == Mode::XApic).then_some(self.base)
    }

    /// Whether the processor has switched to x2APIC mode.
    pub fn is_x2apic(&self) -> bool {
        self.mode == Mode::X2Apic
    }

    /// The APIC base register.
    pub const fn base_register(&self) -> u64 {
        let mode = match self.mode {
            Mode::Disabled => 0,
            Mode::XApic => BASE_ENABLE,
            Mode::X2Apic => BASE_ENABLE | BASE_X2APIC,
        };
        self.base | mode | if self.boot_processor { BASE_BOOT_PROCESSOR } else { 0 }
    }

    /// Writes the APIC base register. The boot processor bit stays what it is.
    ///
    /// # Errors
    /// [`Refused`] for reserved bits and for the changes of mode that SDM vol. 3A, 11.12.5 forbids.
    pub fn set_base_register(&mut self, value: u64) -> Result<(), Refused> {
        if value & !(BASE_ADDRESS | BASE_ENABLE | BASE_X2APIC | BASE_BOOT_PROCESSOR) != 0 {
            return Err(Refused);
        }
        let next = match (value & BASE_ENABLE != 0, value & BASE_X2APIC != 0) {
            (false, false) => Mode::Disabled,
            (true, false) => Mode::XApic,
            (true, true) => Mode::X2Apic,
            (false, true) => return Err(Refused),
        };
        match (self.mode, next) {
            (Mode::X2Apic, Mode::XApic) | (Mode::Disabled, Mode::X2Apic) => return Err(Refused),
            (Mode::XApic | Mode::X2Apic, Mode::Disabled) => {
                *self = Self::new(self.id, self.boot_processor, self.shortest_period);
            }
            (Mode::XApic, Mode::X2Apic) => {
                self.logical = self.x2apic_logical();
                self.command &= 0xffff_ffff;
            }
            (Mode::Disabled, _) | (Mode::XApic, Mode::XApic) | (Mode::X2Apic, Mode::X2Apic) => {}
        }
        self.mode = next;
        self.base = value & BASE_ADDRESS;
        Ok(())
    }

    /// CR8: the class of the task priority.
    pub const fn cr8(&self) -> u8 {
        self.task_priority >> 4
    }

    /// Sets CR8; the sub-class is cleared, unless nothing changes.
    pub fn set_cr8(&mut self, class: u8) {
        if class & 0xf != self.cr8() {
            self.task_priority = class << 4;
        }
    }

    /// The interrupt that is to be delivered now.
    pub fn pending_vector(&self) -> Option<u8> {
        let vector = self.requested.highest()?;
        (self.mode != Mode::Disabled && vector >> 4 > self.processor_priority() >> 4).then_some(vector)
    }

    /// The processor took `vector`.
    pub fn acknowledge(&mut self, vector: u8) {
        if self.requested.set(vector, false) {
            self.in_service.set(vector, true);
        }
    }

    /// Whether a non-maskable interrupt waits.
    pub const fn pending_nmi(&self) -> bool {
        self.nmi_pending
    }

    /// The processor took the non-maskable interrupt.
    pub const fn acknowledge_nmi(&mut self) {
        self.nmi_pending = false;
    }

    /// When [`Self::advance`] has something to do.
    pub fn next_deadline(&self) -> Option<Tsc> {
        self.timer.ends().filter(|_| self.lvt[Self::LVT_TIMER] & LVT_MASKED == 0)
    }

    /// Lets the timer fire if it is due.
    pub fn advance(&mut self, now: Tsc) {
        if self.timer.expire(now) {
            self.raise(self.lvt[Self::LVT_TIMER]);
        }
    }

    /// The TSC deadline register.
    pub fn deadline(&self) -> Tsc {
        self.timer.deadline()
    }

    /// Arms the TSC deadline; one that has passed fires at once.
    pub fn set_deadline(&mut self, deadline: Tsc, now: Tsc) {
        self.timer.set_deadline(deadline);
        self.advance(now);
    }

    /// Whether a message from `sender` (an APIC ID) to `destination` is for this processor.
    pub fn is_addressed(&self, destination: Destination, sender: Option<u32>) -> bool {
        match destination {
            Destination::All | Destination::Physical(u32::MAX) => true,
            Destination::Physical(id) => id == self.id,
            Destination::Logical(set) => self.is_in_logical(set),
            Destination::Sender => sender == Some(self.id),
            Destination::Others => sender != Some(self.id),
        }
    }

    /// Takes in a message that addresses this processor. INIT and start-up are the board's business.
    pub fn deliver(&mut self, message: Message) {
        match message.delivery {
            Delivery::Fixed | Delivery::LowestPriority => {
                self.accept(message.vector, message.level_triggered)
            }
            Delivery::Nmi => self.nmi_pending |= self.mode != Mode::Disabled,
            Delivery::Init | Delivery::StartUp | Delivery::Unsupported => {}
        }
    }

    fn accept(&mut self, vector: u8, level_triggered: bool) {
        if self.mode == Mode::Disabled || self.spurious & SPURIOUS_ENABLE == 0 {
            return;
        }
        if vector < FIRST_LEGAL_VECTOR {
            self.report(ERROR_RECEIVE_ILLEGAL);
            return;
        }
        self.requested.set(vector, true);
        self.level.set(vector, level_triggered);
    }

    /// Raises the interrupt of a local vector table entry.
    fn raise(&mut self, entry: u32) {
        if entry & LVT_MASKED == 0 {
            self.accept(entry.to_le_bytes()[0], false);
        }
    }

    /// Notes an error; a new one raises the error interrupt, whose own errors raise nothing.
    fn report(&mut self, error: u32) {
        let is_new = self.errors_new & error == 0;
        self.errors_new |= error;
        if is_new && self.lvt[Self::LVT_ERROR].to_le_bytes()[0] >= FIRST_LEGAL_VECTOR {
            self.raise(self.lvt[Self::LVT_ERROR]);
        }
    }

    /// Ends the most urgent interrupt in service.
    fn end_of_interrupt(&mut self) -> Request {
        let Some(vector) = self.in_service.highest() else { return Request::None };
        self.in_service.set(vector, false);
        if self.level.contains(vector) { Request::EndOfInterrupt(vector) } else { Request::None }
    }

    /// PPR (SDM vol. 3A, 11.8.3.1).
    fn processor_priority(&self) -> u8 {
        let serving = self.in_service.highest().unwrap_or_default();
        if self.task_priority >> 4 >= serving >> 4 { self.task_priority } else { serving & 0xf0 }
    }

    /// Logical destinations (SDM vol. 3A, 11.6.2.2 and 11.12.10.1).
    fn is_in_logical(&self, set: u32) -> bool {
        if self.mode == Mode::X2Apic {
            return set == u32::MAX || (set >> 16 == self.logical >> 16 && set & self.logical & 0xffff != 0);
        }
        let own = self.logical >> 24;
        let flat = self.format >> 28 == 0xf;
        if flat { own & set != 0 } else { own >> 4 == set >> 4 && own & set & 0xf != 0 }
    }

    const fn x2apic_logical(&self) -> u32 {
        ((self.id >> 4) << 16) | (1 << (self.id & 0xf))
    }

    /// The message that the interrupt command register asks for.
    fn command_message(&self) -> Message {
        let low = u32::try_from(self.command & 0xffff_ffff).unwrap_or_default();
        let high = u32::try_from(self.command >> 32).unwrap_or_default();
        let is_logical = low & (1 << 11) != 0;
        let destination = match (low >> 18) & 3 {
            1 => Destination::Sender,
            2 => Destination::All,
            3 => Destination::Others,
            _ if self.mode == Mode::XApic => Destination::of_byte(high.to_be_bytes()[0], is_logical),
            _ if is_logical => Destination::Logical(high),
            _ => Destination::Physical(high),
        };
        let [vector, ..] = low.to_le_bytes();
        Message { delivery: Delivery::of(low), vector, level_triggered: false, destination }
    }

    /// Sends what the interrupt command register holds.
    fn send(&mut self) -> Request {
        let message = self.command_message();
        if matches!(message.delivery, Delivery::Fixed | Delivery::LowestPriority)
            && message.vector < FIRST_LEGAL_VECTOR
        {
            self.report(ERROR_SEND_ILLEGAL);
            return Request::None;
        }
        Request::Send(message)
    }
}

#[cfg(test)]
mod tests;
