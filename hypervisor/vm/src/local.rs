//! What each processor of a guest has for itself: its local APIC with the timer, and its clock registers.
//!
//! Only the vCPU that owns it touches it, without a lock. What an access asks of others comes out as a
//! [`Request`]; what others ask of it comes in by [`LocalDevices::collect`].

use dolmen_memory::{Gpa, GuestMemory};

use crate::board::{BoardConfig, Tsc, offset_in};
use crate::bus::Mailbox;
use crate::device::local_apic::{Collected, LocalApic, Refused, Register, Request};
use crate::pvclock::{self, BadAddress, PvClock};

/// Answer to RDMSR or WRMSR.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrAnswer {
    /// RDMSR gives this value.
    Value(u64),
    /// WRMSR is done; what it asks for is left to do.
    Done(Request),
    /// The access is wrong: #GP(0).
    Fault,
    /// Not a register of these devices.
    Unclaimed,
}

const MSR_TSC: u32 = 0x10;
const MSR_APIC_BASE: u32 = 0x1b;
const MSR_TSC_DEADLINE: u32 = 0x6e0;
const MSR_X2APIC_FIRST: u32 = 0x800;
const MSR_X2APIC_LAST: u32 = 0x8ff;

/// The devices of one vCPU.
#[derive(Debug)]
pub struct LocalDevices {
    apic: LocalApic,
    clock: PvClock,
    /// When the board's interval timer is due, if this processor has programmed it: who does, drives it.
    tick: Option<Tsc>,
}

impl LocalDevices {
    /// The devices of vCPU `index` as after power-on; the first is the boot processor.
    pub fn new(index: usize, config: &BoardConfig) -> Self {
        let id = u32::try_from(index).unwrap_or(u32::MAX);
        // No periodic timer ticks faster than every 200 microseconds: one that ticks faster than its interrupt
        // can be handled would leave the guest no instruction between two of the host's.
        let shortest_period = u64::from(config.tsc_khz / 5);
        Self {
            apic: LocalApic::new(id, index == 0, shortest_period),
            clock: PvClock::new(config.clock()),
            tick: None,
        }
    }

    /// Whether [`Self::collect`] has anything to do.
    #[inline]
    pub fn has_mail(&self, mailbox: &Mailbox) -> bool {
        self.apic.has_mail(mailbox)
    }

    /// Takes in what others have sent; see [`LocalApic::collect`].
    pub fn collect(&mut self, mailbox: &Mailbox) -> Collected {
        self.apic.collect(mailbox)
    }

    /// Whether the processor does nothing until a start-up comes.
    pub const fn awaits_start_up(&self) -> bool {
        self.apic.awaits_start_up()
    }

    /// Reads `size` (1, 2, 4 or 8) bytes of the local APIC's page; `None` if `gpa` is elsewhere.
    pub fn mmio_read(&mut self, gpa: Gpa, size: u8, now: Tsc) -> Option<u64> {
        let offset = offset_in(self.apic.page()?, gpa)?;
        Some(self.apic.read_page(offset, size, now))
    }

    /// Writes `size` (1, 2, 4 or 8) bytes of the local APIC's page; `None` if `gpa` is elsewhere.
    pub fn mmio_write(&mut self, gpa: Gpa, size: u8, value: u64, now: Tsc) -> Option<Request> {
        let offset = offset_in(self.apic.page()?, gpa)?;
        Some(self.apic.write_page(offset, size, value, now))
    }

    /// Answers RDMSR.
    #[inline(always)]
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
    #[inline(always)]
    pub fn msr_write(&mut self, msr: u32, value: u64, now: Tsc, memory: &mut impl GuestMemory) -> MsrAnswer {
        let result = match msr {
            MSR_TSC => Ok(Request::None),
            MSR_APIC_BASE => self.apic.set_base_register(value).map(|()| Request::None),
            MSR_TSC_DEADLINE => {
                self.apic.set_deadline(value, now);
                Ok(Request::None)
            }
            MSR_X2APIC_FIRST..=MSR_X2APIC_LAST => self.apic.write_msr(Register::of_msr(msr), value, now),
            pvclock::MSR_WALL_CLOCK => Self::done(self.clock.write_wall_clock(value, memory)),
            pvclock::MSR_SYSTEM_TIME => Self::done(self.clock.write_system_time(value, memory)),
            _ => return MsrAnswer::Unclaimed,
        };
        result.map_or(MsrAnswer::Fault, MsrAnswer::Done)
    }

    /// When [`Self::advance`] must be called at the latest; `None` if no timer runs.
    #[inline]
    pub fn next_deadline(&self) -> Option<Tsc> {
        match (self.apic.next_deadline(), self.tick) {
            (Some(apic), Some(tick)) => Some(apic.min(tick)),
            (deadline, None) | (None, deadline) => deadline,
        }
    }

    /// When [`crate::board::Board::tick`] must be called.
    #[inline]
    pub const fn tick(&self) -> Option<Tsc> {
        self.tick
    }

    /// From now on this processor drives the board's interval timer, which is due at this time.
    pub const fn set_tick(&mut self, at: Option<Tsc>) {
        self.tick = at;
    }

    /// Lets a timer that is due at `now` fire.
    #[inline]
    pub fn advance(&mut self, now: Tsc) {
        self.apic.advance(now);
    }

    /// The interrupt that the local APIC wants delivered now, if the guest takes one.
    #[inline]
    pub fn pending_vector(&self) -> Option<u8> {
        self.apic.pending_vector()
    }

    /// Whether anything waits for delivery, whether or not the guest takes it now.
    #[inline]
    pub const fn has_request(&self) -> bool {
        self.apic.has_request()
    }

    /// The processor took `vector`, which [`Self::pending_vector`] gave.
    #[inline]
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

    fn done(written: Result<(), BadAddress>) -> Result<Request, Refused> {
        written.map(|()| Request::None).map_err(|BadAddress| Refused)
    }
}
