//! The virtual machine's board: everything of a guest's machine that is neither processor nor RAM.
//!
//! The exit loop hands ports, device memory and the board's model-specific registers over and obeys the
//! answer. Pure: time comes in as the guest's time-stamp counter, bytes for the console go out as an
//! [`Effect`], nothing is allocated and nothing the guest does can fail here in a way the loop must handle.

use dolmen_memory::{Gpa, GuestMemory};

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

/// The board of one guest.
#[derive(Debug)]
pub struct Board {
    config: BoardConfig,
}

impl Board {
    /// A board as it is after power-on.
    pub fn new(config: BoardConfig) -> Self {
        Self { config }
    }

    /// Answers IN of `size` (1, 2 or 4) bytes. A port nobody claims reads all ones.
    pub fn port_read(&mut self, _port: u16, _size: u8, _now: Tsc) -> u32 {
        u32::MAX
    }

    /// Does OUT of `size` (1, 2 or 4) bytes. A write to a port nobody claims is dropped.
    pub fn port_write(&mut self, _port: u16, _size: u8, _value: u32, _now: Tsc) -> Effect {
        Effect::None
    }

    /// Reads device memory; `None` where no device is.
    pub fn mmio_read(&mut self, _gpa: Gpa, _size: u8, _now: Tsc) -> Option<u64> {
        None
    }

    /// Writes device memory; `None` where no device is.
    pub fn mmio_write(&mut self, _gpa: Gpa, _size: u8, _value: u64, _now: Tsc) -> Option<Effect> {
        None
    }

    /// Answers RDMSR.
    pub fn msr_read(&mut self, _msr: u32, _now: Tsc) -> MsrAnswer {
        MsrAnswer::Unclaimed
    }

    /// Does WRMSR; `memory` is where the paravirtual clock's structures go.
    pub fn msr_write(
        &mut self,
        _msr: u32,
        _value: u64,
        _now: Tsc,
        _memory: &mut impl GuestMemory,
    ) -> MsrAnswer {
        MsrAnswer::Unclaimed
    }

    /// A byte for the guest's console; `false` if there was no room and the byte is lost.
    pub fn console_in(&mut self, _byte: u8) -> bool {
        false
    }

    /// How many bytes [`Self::console_in`] would take now.
    pub fn console_room(&self) -> usize {
        0
    }

    /// When [`Self::advance`] must be called at the latest; `None` if no timer runs.
    pub fn next_deadline(&self) -> Option<Tsc> {
        None
    }

    /// Lets timers that are due at `now` fire.
    pub fn advance(&mut self, _now: Tsc) {}

    /// The interrupt that the local APIC wants delivered now, if the guest takes one.
    pub fn pending_vector(&self) -> Option<u8> {
        None
    }

    /// The processor took `vector`, which [`Self::pending_vector`] gave.
    pub fn acknowledge(&mut self, _vector: u8) {}

    /// Whether an NMI waits; the caller delivers it and says so by [`Self::acknowledge_nmi`].
    pub fn pending_nmi(&self) -> bool {
        false
    }

    /// The processor took the waiting NMI.
    pub fn acknowledge_nmi(&mut self) {}

    /// CR8: bits 7:4 of the task priority. A back end with a virtual TPR loads it before it enters the guest.
    pub fn cr8(&self) -> u8 {
        0
    }

    /// The guest's CR8 changed, without an exit or by one.
    pub fn set_cr8(&mut self, _value: u8) {}

    /// What the board was made for.
    pub const fn config(&self) -> &BoardConfig {
        &self.config
    }
}
