//! What the exit loop needs from a vendor's processor extension.
//!
//! Twin implementations live in `machine`; the tests' fake is a third. Reading and writing cost nothing but
//! memory accesses, except where a method says otherwise.

use dolmen_arch::instruction::InstructionLength;
use dolmen_arch::segment::{Segment, SegmentName};
use dolmen_arch::{Event, Gprs, VmExit};
use dolmen_memory::{Gpa, Paging};

/// A register of the guest's processor that is not general-purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "a register's name says it")]
pub enum Register {
    Rip,
    Rflags,
    Cr0,
    Cr2,
    Cr3,
    Cr4,
    /// As the guest sees it: without the bit that the hypervisor itself needs.
    Efer,
    Pat,
    TscAux,
    /// Extended control register 0; takes effect at once.
    Xcr0,
}

/// What the guest can take at the next entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// An interrupt.
    Ready,
    /// Nothing yet: the next instruction stands in the shadow of STI or of a load of SS.
    Shadowed,
    /// No interrupt: RFLAGS.IF is clear.
    Masked,
    /// Nothing more: an event is already on its way.
    Busy,
}

/// How a guest's first processor starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartMode {
    /// 32-bit protected mode, flat, unpaged: PVH and Multiboot.
    Flat32,
    /// 64-bit mode, paged by the tables at this address: Linux.
    Long64 {
        /// For CR3.
        tables: Gpa,
    },
}

/// The first state of a guest's processor; whatever is not named is as after reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartState {
    /// Mode.
    pub mode: StartMode,
    /// First instruction.
    pub entry: u64,
    /// General-purpose registers.
    pub gprs: Gprs,
    /// Selector in CS.
    pub code_selector: u16,
    /// Selector in SS, DS and ES.
    pub data_selector: u16,
    /// Global descriptor table, for the guest's own reloads.
    pub gdt_base: Gpa,
    /// Its limit; 0 for none.
    pub gdt_limit: u16,
}

/// One virtual processor.
pub trait Backend {
    /// Puts the processor into its first state.
    fn start(&mut self, state: &StartState);

    /// Puts the processor into the state after power-on. As [`Self::start`], only while it does not run.
    fn reset(&mut self);

    /// Puts the processor into the state after INIT (APM vol. 2, table 14-1).
    fn init(&mut self);

    /// Lets a processor in the state after INIT start in real mode at page `vector` (APM vol. 2, 14.1.1).
    fn start_up(&mut self, vector: u8);

    /// Enters the guest; comes back with the decoded reason.
    fn run(&mut self) -> VmExit;

    /// The general-purpose registers.
    fn gprs(&mut self) -> &mut Gprs;

    /// Reads a register.
    fn read(&self, register: Register) -> u64;

    /// Writes a register, with a value that the processor accepts: the caller has checked it.
    fn write(&mut self, register: Register, value: u64);

    /// One segment register.
    fn segment(&self, name: SegmentName) -> Segment;

    /// The current privilege level.
    fn privilege(&self) -> u8;

    /// The length of the exiting instruction, where the processor tells it.
    fn instruction_length(&self) -> Option<InstructionLength>;

    /// Steps over the exiting instruction; ends an interrupt shadow, and delivers the debug exception where the
    /// guest single-steps.
    fn skip_instruction(&mut self, length: InstructionLength);

    /// The event whose delivery the last exit cut short.
    fn interrupted_event(&self) -> Option<Event>;

    /// What the guest can take now.
    fn readiness(&self) -> Readiness;

    /// Whether the guest takes a non-maskable interrupt now: none is being handled, nothing else is on its way.
    fn accepts_nmi(&self) -> bool;

    /// Delivers `event` at the next entry.
    fn inject(&mut self, event: Event);

    /// Asks for [`VmExit::InterruptWindow`] or [`VmExit::Stepped`] as soon as the guest can take an
    /// interrupt; holds until that exit comes.
    fn request_interrupt_window(&mut self);

    /// Drops every cached translation of this guest before the next entry.
    fn flush(&mut self);

    /// Writes the processor's state, for the fatal path only.
    ///
    /// # Errors
    /// Those of the writer.
    fn dump(&self, log: &mut dyn core::fmt::Write) -> core::fmt::Result;

    /// What decides the guest's address translation.
    fn paging(&self) -> Paging {
        Paging {
            cr0: self.read(Register::Cr0),
            cr3: self.read(Register::Cr3),
            cr4: self.read(Register::Cr4),
            efer: self.read(Register::Efer),
            rflags: self.read(Register::Rflags),
        }
    }
}
