//! The local APIC of one virtual processor: xAPIC by memory, x2APIC by MSR (SDM vol. 3A, chapter 11).
//!
//! It has the timer and the error entry of the local vector table wired up; the other entries exist as
//! registers, as no source drives them. It knows of no other processor: what reaches beyond comes out as a
//! [`Request`], what others send comes in through the [`Mailbox`].

mod register;
mod timer;
mod vector_set;

use crate::board::Tsc;
use crate::bus::{self, Addressing, Delivery, Destination, Mailbox, Message, Posted};
use crate::layout::LOCAL_APIC_BASE;
use timer::{ApicTimer, TimerMode};
use vector_set::VectorSet;

pub use register::Register;

/// What an access to a local APIC asks of the rest of the machine.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Nothing.
    None,
    /// Send a message over the bus.
    Send(Message),
    /// Tell the I/O APIC that a level-triggered interrupt has ended.
    EndOfInterrupt(u8),
}

/// What the mail means to the processor itself, beyond its local APIC.
#[must_use]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// The processor goes back to its state after INIT. All but the boot processor wait for a start-up then;
    /// that one starts at the reset vector, where a guest has nothing but a reset of its machine.
    pub init: bool,
    /// It starts in real mode at this page. After `init`, if both came.
    pub start_up: Option<u8>,
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
const COMMAND_ASSERT: u32 = 1 << 14;
const COMMAND_LEVEL: u32 = 1 << 15;

const ERROR_SEND_ILLEGAL: u32 = 1 << 5;
const ERROR_RECEIVE_ILLEGAL: u32 = 1 << 6;
const ERROR_ILLEGAL_REGISTER: u32 = 1 << 7;
/// Vectors below are the processor's own.
const FIRST_LEGAL_VECTOR: u8 = 16;
const ILLEGAL_VECTORS: u64 = (1 << FIRST_LEGAL_VECTOR) - 1;

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
    /// After power-on, of all but the boot processor, and after INIT.
    awaits_start_up: bool,
    /// Senders know how this processor can be addressed: no register has been written since they were told.
    is_published: bool,
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
            awaits_start_up: !boot_processor,
            is_published: false,
        }
    }

    /// Whether [`Self::collect`] has anything to do.
    #[inline]
    pub fn has_mail(&self, mailbox: &Mailbox) -> bool {
        !self.is_published || !mailbox.is_empty()
    }

    /// Takes in what others have sent, and says how this processor can be addressed if that has changed.
    ///
    /// To be called before each entry to the guest: nobody can tell then that a change of addressing is
    /// published here, not by the access that made it.
    pub fn collect(&mut self, mailbox: &Mailbox) -> Collected {
        self.publish(mailbox);
        let Some(posted) = mailbox.take() else { return Collected::default() };
        if posted.init {
            self.init();
            self.publish(mailbox);
        } else {
            self.accept_posted(&posted);
        }
        let start_up = posted.start_up.filter(|_| self.awaits_start_up);
        self.awaits_start_up &= start_up.is_none();
        Collected { init: posted.init, start_up }
    }

    /// Whether the processor does nothing until a start-up comes.
    pub const fn awaits_start_up(&self) -> bool {
        self.awaits_start_up
    }

    fn publish(&mut self, mailbox: &Mailbox) {
        if !self.is_published {
            mailbox.publish(self.addressing());
            self.is_published = true;
        }
    }

    fn addressing(&self) -> Addressing {
        let addressing = match self.mode {
            Mode::Disabled => return Addressing::OFF,
            Mode::XApic => Addressing::xapic(self.logical.to_be_bytes()[0], self.format >> 28 != 0xf),
            Mode::X2Apic => Addressing::x2apic(),
        };
        let enabled = self.spurious & SPURIOUS_ENABLE != 0;
        (if enabled { addressing.enabled() } else { addressing }).with_priority(self.task_priority)
    }

    /// What INIT does: all registers as after power-on, but for the APIC base register (SDM vol. 3A, 11.4.7.3
    /// and 11.12.5.1). What is pending is gone, and what else came with the INIT falls to an APIC that is
    /// software-disabled.
    fn init(&mut self) {
        let (mode, base) = (self.mode, self.base);
        *self = Self::new(self.id, self.boot_processor, self.shortest_period);
        (self.mode, self.base) = (mode, base);
        if mode == Mode::X2Apic {
            self.logical = bus::x2apic_logical(self.id);
        }
    }

    /// Takes in posted vectors; the senders have seen to it that this APIC takes any. A processor that waits
    /// for its start-up takes no non-maskable interrupt.
    fn accept_posted(&mut self, posted: &Posted) {
        if self.mode == Mode::Disabled {
            return;
        }
        self.nmi_pending |= posted.nmi && !self.awaits_start_up;
        for (index, (edge, level)) in (0u8..).zip(posted.edge.into_iter().zip(posted.level)) {
            let (mut edge, mut level) = (edge, level);
            if index == 0 && (edge | level) & ILLEGAL_VECTORS != 0 {
                self.report(ERROR_RECEIVE_ILLEGAL);
                edge &= !ILLEGAL_VECTORS;
                level &= !ILLEGAL_VECTORS;
            }
            if edge | level != 0 {
                // A level-triggered request that still waits stays one, so that its end is told.
                let edge_only = edge & !level & !self.requested.quarter(index);
                self.level.remove_quarter(index, edge_only);
                self.level.add_quarter(index, level);
                self.requested.add_quarter(index, edge | level);
            }
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
        self.is_published = false;
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
                let awaits_start_up = self.awaits_start_up;
                *self = Self::new(self.id, self.boot_processor, self.shortest_period);
                self.awaits_start_up = awaits_start_up;
            }
            (Mode::XApic, Mode::X2Apic) => {
                self.logical = bus::x2apic_logical(self.id);
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
            self.is_published = false;
            self.task_priority = class << 4;
        }
    }

    /// The interrupt that is to be delivered now.
    #[inline]
    pub fn pending_vector(&self) -> Option<u8> {
        let vector = self.requested.highest()?;
        (self.mode != Mode::Disabled && vector >> 4 > self.processor_priority() >> 4).then_some(vector)
    }

    /// The processor took `vector`.
    #[inline]
    pub fn acknowledge(&mut self, vector: u8) {
        if self.requested.set(vector, false) {
            self.in_service.set(vector, true);
        }
    }

    /// Whether any interrupt waits, however urgent what the processor does now is.
    #[inline]
    pub const fn has_request(&self) -> bool {
        self.nmi_pending || !self.requested.is_empty()
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
    #[inline]
    pub fn next_deadline(&self) -> Option<Tsc> {
        self.timer.ends().filter(|_| self.lvt[Self::LVT_TIMER] & LVT_MASKED == 0)
    }

    /// Lets the timer fire if it is due.
    #[inline]
    pub fn advance(&mut self, now: Tsc) {
        if self.timer.ends().is_some_and(|ends| ends <= now) {
            self.fire(now);
        }
    }

    #[inline(never)]
    fn fire(&mut self, now: Tsc) {
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

    /// Takes in an edge-triggered vector of this processor's own.
    fn accept(&mut self, vector: u8) {
        if self.mode == Mode::Disabled || self.spurious & SPURIOUS_ENABLE == 0 {
            return;
        }
        if vector < FIRST_LEGAL_VECTOR {
            self.report(ERROR_RECEIVE_ILLEGAL);
            return;
        }
        self.requested.set(vector, true);
        self.level.set(vector, false);
    }

    /// Raises the interrupt of a local vector table entry.
    fn raise(&mut self, entry: u32) {
        if entry & LVT_MASKED == 0 {
            self.accept(entry.to_le_bytes()[0]);
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
    #[inline]
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

    /// Does what the interrupt command register asks for. An interrupt to the sender itself stays here.
    fn send(&mut self) -> Request {
        let low = u32::try_from(self.command & 0xffff_ffff).unwrap_or_default();
        let message = self.command_message();
        let is_vector = matches!(message.delivery, Delivery::Fixed | Delivery::LowestPriority);
        if is_vector && message.vector < FIRST_LEGAL_VECTOR {
            self.report(ERROR_SEND_ILLEGAL);
            return Request::None;
        }
        // Newer processors know no INIT level de-assert: it was to synchronise arbitration (SDM vol. 3A, 11.6.1).
        if message.delivery == Delivery::Init && low & (COMMAND_LEVEL | COMMAND_ASSERT) == COMMAND_LEVEL {
            return Request::None;
        }
        match message.destination {
            // Only vectors can be sent by the self shorthand (SDM vol. 3A, table 11-3).
            Destination::Sender if is_vector => self.accept(message.vector),
            Destination::Sender => {}
            Destination::Physical(id) if is_vector && id == self.id => self.accept(message.vector),
            Destination::Physical(_) | Destination::Logical(_) | Destination::All | Destination::Others => {
                return Request::Send(message);
            }
        }
        Request::None
    }
}

#[cfg(test)]
mod tests;
