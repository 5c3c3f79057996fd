//! The exit loop: enter the guest, decide about its exit, apply the decision.
//!
//! Pure: the processor is a [`Backend`], the machine a [`Board`], everything outside the guest a [`Host`].
//! Whatever the guest does ends in its going on, in a fault to it, or in a [`StopReason`].

use dolmen_arch::instruction::{self, CodeSize, Instruction, InstructionLength};
use dolmen_arch::register::{Cr4, Efer, Rflags};
use dolmen_arch::segment::{Attributes, Segment, SegmentName};
use dolmen_memory::{Access, GuestMemory, Gva, read_virtual};

use crate::backend::{Backend, Readiness, Register};
use crate::board::{Board, Effect, Tsc};
use crate::cpuid::{CpuidState, GuestCpuid};
use crate::exit::{Event, Vector};
use crate::policy::{self, Action, StopReason};
use crate::service::{CallArgs, CallResult};

mod control;
mod device;
mod msr;
mod port;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod port_tests;
#[cfg(test)]
mod register_tests;
#[cfg(test)]
mod tests;

/// What lies outside the guest.
pub trait Host {
    /// The guest's time-stamp counter.
    fn now(&self) -> Tsc;
    /// Bounds the guest's next turn and the next wait: an interrupt must come at `at`, and may come earlier.
    fn set_deadline(&mut self, at: Option<Tsc>);
    /// Lets the host take the interrupts that wait for it.
    fn take_interrupts(&mut self);
    /// Waits until a deadline or anything else that may be news for the guest.
    fn wait(&mut self);
    /// Goes on with whatever is done besides the guest.
    fn work(&mut self);
    /// Sends a byte of the guest's console.
    fn console_out(&mut self, byte: u8);
    /// A byte for the guest's console, if there is one.
    fn console_in(&mut self) -> Option<u8>;
    /// Serves a hypercall.
    fn call(
        &mut self,
        number: u32,
        args: CallArgs,
        privileged: bool,
        memory: &mut impl GuestMemory,
    ) -> CallResult;
}

/// A guest that runs: its processor, RAM and board, with the host around it.
#[derive(Debug)]
pub struct Guest<'a, B, M, H> {
    backend: &'a mut B,
    memory: &'a mut M,
    board: &'a mut Board,
    host: &'a mut H,
    cpuid: &'a GuestCpuid,
    /// CR4 bits that belong to features the guest is told of.
    cr4_mask: Cr4,
    /// What the host was told last; `None` if it must be told anew.
    deadline: Option<Option<Tsc>>,
}

/// What a step of the loop leads to.
type Step = Result<(), StopReason>;

impl<'a, B: Backend, M: GuestMemory, H: Host> Guest<'a, B, M, H> {
    /// A guest whose processor has its first state.
    pub fn new(
        backend: &'a mut B,
        memory: &'a mut M,
        board: &'a mut Board,
        host: &'a mut H,
        cpuid: &'a GuestCpuid,
    ) -> Self {
        let cr4_mask = control::cr4_mask(cpuid);
        Self { backend, memory, board, host, cpuid, cr4_mask, deadline: None }
    }

    /// Runs the guest until it stops.
    pub fn run(&mut self) -> StopReason {
        loop {
            if let Err(reason) = self.turn() {
                return reason;
            }
        }
    }

    /// One entry and exit.
    fn turn(&mut self) -> Step {
        self.offer_events();
        let exit = self.backend.run();
        let interrupted = self.backend.interrupted_event();
        let action = policy::decide(exit);
        if let (Some(_), Action::EmulateDevice(gpa)) = (interrupted, action) {
            return Err(StopReason::TablesOutsideRam(gpa));
        }
        self.apply(action)?;
        if let Some(event) = interrupted
            && self.backend.readiness() != Readiness::Busy
            && !is_repeated_by_itself(event)
        {
            self.backend.inject(event);
        }
        Ok(())
    }

    fn apply(&mut self, action: Action) -> Step {
        match action {
            Action::Resume => {}
            Action::ServeHost => self.serve_host(),
            Action::AnswerCpuid { leaf, subleaf } => self.answer_cpuid(leaf, subleaf),
            Action::ReadMsr(index, rule) => self.read_msr(index, rule),
            Action::WriteMsr(index, rule, value) => self.write_msr(index, rule, value),
            Action::AccessPort(access) => return self.access_port(access),
            Action::Wait => return self.wait(),
            Action::WriteControl(register) => self.write_control(register),
            Action::ReadControl(register) => self.read_control(register),
            Action::WriteXcr { index, value } => self.write_xcr(index, value),
            Action::ServeCall => self.serve_call(),
            Action::StepOver => {
                self.step_over(|found| matches!(found, Instruction::Invd | Instruction::Wbinvd))
            }
            Action::Inject(event) => self.backend.inject(event),
            Action::Reflect { vector, error_code, address } => self.reflect(vector, error_code, address),
            Action::EmulateDevice(gpa) => return self.emulate_device(gpa),
            Action::ExplainInvalidState => return self.explain_invalid_state(),
            Action::Stop(reason) => return Err(reason),
        }
        Ok(())
    }

    /// Fires timers that are due and gives the guest what it can take, or asks to be told when it can.
    fn offer_events(&mut self) {
        self.board.advance(self.host.now());
        self.bound_turn();
        let readiness = self.backend.readiness();
        if self.board.pending_nmi() && self.backend.accepts_nmi() {
            self.board.acknowledge_nmi();
            self.backend.inject(Event::Nmi);
            return;
        }
        let Some(vector) = self.board.pending_vector() else { return };
        match readiness {
            Readiness::Ready => {
                self.board.acknowledge(vector);
                self.backend.inject(Event::Interrupt(vector));
            }
            Readiness::Shadowed | Readiness::Masked | Readiness::Busy => {
                self.backend.request_interrupt_window();
            }
        }
    }

    fn bound_turn(&mut self) {
        let deadline = self.board.next_deadline();
        if self.deadline != Some(deadline) {
            self.deadline = Some(deadline);
            self.host.set_deadline(deadline);
        }
    }

    fn serve_host(&mut self) {
        self.host.take_interrupts();
        self.host.work();
        self.take_console_input();
        // What interrupted may have been the deadline itself, which has passed or still stands.
        self.deadline = None;
    }

    fn take_console_input(&mut self) {
        while self.board.console_room() > 0 {
            let Some(byte) = self.host.console_in() else { break };
            if !self.board.console_in(byte) {
                break;
            }
        }
    }

    /// HLT: steps over it, then waits for what wakes the processor.
    fn wait(&mut self) -> Step {
        let Some(length) = self.length(|found| found == Instruction::Hlt) else { return Ok(()) };
        self.backend.skip_instruction(length);
        loop {
            self.board.advance(self.host.now());
            if self.board.pending_nmi() {
                return Ok(());
            }
            if self.backend.readiness() == Readiness::Masked {
                return Err(StopReason::HaltedForEver);
            }
            if self.board.pending_vector().is_some() {
                return Ok(());
            }
            self.bound_turn();
            self.host.wait();
            self.host.work();
            self.take_console_input();
            self.deadline = None;
        }
    }

    fn answer_cpuid(&mut self, leaf: u32, subleaf: u32) {
        let Some(length) = self.length(|found| found == Instruction::Cpuid) else { return };
        let state =
            CpuidState { cr4: self.backend.read(Register::Cr4), xcr0: self.backend.read(Register::Xcr0) };
        let answer = self.cpuid.answer(leaf, subleaf, state);
        let gprs = self.backend.gprs();
        gprs.rax = u64::from(answer.eax);
        gprs.rbx = u64::from(answer.ebx);
        gprs.rcx = u64::from(answer.ecx);
        gprs.rdx = u64::from(answer.edx);
        self.backend.skip_instruction(length);
    }

    /// Hypercalls are for the kernel in 64-bit mode; the service answers everybody else with a status.
    fn serve_call(&mut self) {
        let Some(length) = self.length(|found| found == Instruction::Vmmcall) else { return };
        let privileged = self.backend.privilege() == 0 && self.code_size() == CodeSize::Bits64;
        let gprs = *self.backend.gprs();
        let args = CallArgs { rdi: gprs.rdi, rsi: gprs.rsi, rdx: gprs.rdx, rcx: gprs.rcx };
        let number = dolmen_arch::bits::low32(gprs.rax);
        let result = self.host.call(number, args, privileged, self.memory);
        let gprs = self.backend.gprs();
        gprs.rax = result.status;
        gprs.rdx = result.reply_len;
        self.backend.skip_instruction(length);
    }

    fn reflect(&mut self, vector: Vector, error_code: u32, address: u64) {
        if vector == Vector::PF {
            self.backend.write(Register::Cr2, address);
        }
        self.backend.inject(Event::Exception { vector, error_code });
    }

    /// Does what a device's register asked for.
    fn take_effect(&mut self, effect: Effect) -> Step {
        match effect {
            Effect::None => Ok(()),
            Effect::ConsoleOut(byte) => {
                self.host.console_out(byte);
                Ok(())
            }
            Effect::Reset => Err(StopReason::Reset),
            Effect::PowerOff => Err(StopReason::PowerOff),
        }
    }

    fn step_over(&mut self, expected: impl Fn(Instruction) -> bool) {
        if let Some(length) = self.length(expected) {
            self.backend.skip_instruction(length);
        }
    }

    /// The length of the exiting instruction: as the processor tells it, else from the guest's memory.
    ///
    /// `None` when memory holds another instruction than the one that exited: its bytes or their translation
    /// changed meanwhile. The guest then runs again as things are now.
    fn length(&mut self, expected: impl Fn(Instruction) -> bool) -> Option<InstructionLength> {
        if let Some(length) = self.backend.instruction_length() {
            return Some(length);
        }
        self.instruction().filter(|(found, _)| expected(*found)).map(|(_, length)| length).or_else(|| {
            self.backend.flush();
            None
        })
    }

    /// The instruction at RIP, if it is one that exits.
    fn instruction(&self) -> Option<(Instruction, InstructionLength)> {
        let (bytes, count) = self.fetch();
        instruction::decode(bytes.get(..count)?, self.code_size()).ok()
    }

    /// Up to 15 bytes at RIP, and how many could be read.
    fn fetch(&self) -> ([u8; instruction::MAX_LENGTH], usize) {
        let mut bytes = [0; instruction::MAX_LENGTH];
        let rip = self.backend.read(Register::Rip);
        let at = match self.code_size() {
            CodeSize::Bits64 => rip,
            CodeSize::Bits16 | CodeSize::Bits32 => {
                self.backend.segment(SegmentName::Cs).base.wrapping_add(rip) & 0xffff_ffff
            }
        };
        let access = Access::Fetch(self.backend.privilege());
        let count = read_virtual(self.memory, &self.backend.paging(), Gva::new(at), access, &mut bytes);
        (bytes, count.unwrap_or(0))
    }

    fn code_size(&self) -> CodeSize {
        let code = self.backend.segment(SegmentName::Cs).attributes();
        if self.is_long_mode() && code.contains(Attributes::LONG) {
            CodeSize::Bits64
        } else if code.contains(Attributes::DEFAULT) {
            CodeSize::Bits32
        } else {
            CodeSize::Bits16
        }
    }

    fn is_long_mode(&self) -> bool {
        Efer::from_bits_retain(self.backend.read(Register::Efer)).contains(Efer::LMA)
    }

    fn rflags(&self) -> Rflags {
        Rflags::from_bits_retain(self.backend.read(Register::Rflags))
    }

    /// The linear address of `offset` in a segment for an access of `bytes`, or the fault it is.
    fn linear(&self, name: SegmentName, offset: u64, bytes: u8) -> Result<Gva, Event> {
        let segment = self.backend.segment(name);
        if self.code_size() == CodeSize::Bits64 {
            let base = if matches!(name, SegmentName::Fs | SegmentName::Gs) { segment.base } else { 0 };
            return Ok(Gva::new(base.wrapping_add(offset)));
        }
        let last = offset.checked_add(u64::from(bytes)).and_then(|end| end.checked_sub(1));
        if last.is_some_and(|last| is_inside(segment, offset, last)) {
            return Ok(Gva::new(segment.base.wrapping_add(offset) & 0xffff_ffff));
        }
        Err(if name == SegmentName::Ss { Event::STACK_FAULT } else { Event::GENERAL_PROTECTION })
    }
}

/// Whether a segment outside 64-bit mode holds the bytes from `first` to `last`.
fn is_inside(segment: Segment, first: u64, last: u64) -> bool {
    /// Of a data segment: it grows down (APM vol. 2, 4.7.3).
    const EXPAND_DOWN: Attributes = Attributes::from_bits_retain(1 << 2);
    let limit = u64::from(segment.limit);
    let attributes = segment.attributes();
    if attributes.contains(EXPAND_DOWN) && !attributes.contains(Attributes::CODE) {
        let top = if attributes.contains(Attributes::DEFAULT) { 0xffff_ffff } else { 0xffff };
        first > limit && last <= top
    } else {
        last <= limit
    }
}

/// Whether the guest raises an event again by itself, since RIP still names the instruction behind it.
const fn is_repeated_by_itself(event: Event) -> bool {
    match event {
        Event::SoftwareInterrupt(_) => true,
        Event::Exception { vector, .. } => matches!(vector, Vector::BP | Vector::OF),
        Event::Interrupt(_) | Event::Nmi => false,
    }
}
