//! The exit loop: enter the guest, decide about its exit, apply the decision.
//!
//! Pure: the processor is a [`Backend`], what the guest's processors share a [`Guest`], everything outside the
//! guest a [`Host`]. Whatever the guest does ends in its going on, in a fault to it, or in the end of the
//! turn: see [`Turn`].

use dolmen_abi::Status;
use dolmen_arch::instruction::{CodeSize, Instruction};
use dolmen_arch::register::{Efer, Rflags};
use dolmen_arch::segment::{Attributes, Segment, SegmentName};
use dolmen_memory::{GuestMemory, Gva};

use crate::backend::{Backend, Readiness, Register};
use crate::board::{Effect, SerialPort, Tsc};
use crate::bus::{Mailbox, VcpuSet};
use crate::cpuid::{CpuidState, GuestCpuid};
use crate::device::local_apic::{Collected, Request};
use crate::exit::{Event, Vector};
use crate::guest::{Counters, ExitKind, Guest};
use crate::policy::{self, Action, StopReason};
use crate::service::{CallArgs, CallResult};
use crate::vcpu::{Activity, Turn, Vcpu};

mod access;
mod code;
mod control;
mod device;
mod msr;
mod port;

pub(crate) use access::KnownAccesses;
pub(crate) use code::CodePages;
pub(crate) use control::cr4_mask;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod haste_tests;
#[cfg(test)]
mod port_tests;
#[cfg(test)]
mod register_tests;
#[cfg(test)]
mod smp_tests;
#[cfg(test)]
mod tests;

/// What lies outside the guest.
pub trait Host {
    /// The guest's time-stamp counter.
    fn now(&self) -> Tsc;
    /// Bounds the guest's next stretch: an interrupt must come at `at`, and may come earlier.
    fn set_deadline(&mut self, at: Option<Tsc>);
    /// Takes the interrupts that wait for the host; whether the virtual processor may go on.
    fn take_interrupts(&mut self) -> bool;
    /// There is mail for these virtual processors of the guest, which may wait or run elsewhere.
    fn wake(&mut self, whom: VcpuSet);
    /// Takes a byte that a serial port of the guest sends; whether there was room for it. If not, the host
    /// calls [`crate::board::Board::send_console`] when there is room again.
    fn console_out(&mut self, port: SerialPort, byte: u8) -> bool;
    /// Serves a hypercall.
    fn call(
        &mut self,
        number: u32,
        args: CallArgs,
        privileged: bool,
        memory: &mut impl GuestMemory,
    ) -> CallResult;
}

/// A virtual processor in its turn, with what is around it.
struct Running<'a, B, M, H> {
    vcpu: &'a mut Vcpu<B>,
    guest: &'a Guest,
    mailbox: &'a Mailbox,
    counters: &'a Counters,
    memory: &'a mut M,
    host: &'a mut H,
    /// What the host was told last; `None` if it must be told anew.
    deadline: Option<Option<Tsc>>,
    /// Something may have become due since the local devices were asked last: time has passed, one of their
    /// registers was touched, or something waits that the guest could not take.
    attends: bool,
}

/// What a step of the loop leads to: the next one, or the end of the turn.
type Step = Result<(), Turn>;

/// Runs `vcpu` until its turn ends.
pub(crate) fn turn<B: Backend>(
    vcpu: &mut Vcpu<B>,
    guest: &Guest,
    memory: &mut impl GuestMemory,
    host: &mut impl Host,
) -> Turn {
    let (Some(mailbox), Some(counters)) = (guest.bus().mailbox(vcpu.index()), guest.counters(vcpu.index()))
    else {
        // A defect of ours: no guest has such a processor.
        return Turn::Stopped(StopReason::UnexpectedExit(u64::MAX));
    };
    let mut running = Running { vcpu, guest, mailbox, counters, memory, host, deadline: None, attends: true };
    loop {
        if let Err(turn) = running.step() {
            return turn;
        }
    }
}

impl<B: Backend, M: GuestMemory, H: Host> Running<'_, B, M, H> {
    /// One entry and exit, or the end of the turn.
    ///
    /// Nothing stands between the exit and the choice of what to do about it, so that the compiler makes one jump of
    /// the exit's code, its decoded form and its answer.
    #[inline(always)]
    fn step(&mut self) -> Step {
        if self.attends || !self.mailbox.is_empty() {
            self.attend()?;
        }
        let exit = self.vcpu.backend.run();
        let kind = ExitKind::of(&exit);
        let end = self.apply(policy::decide(exit));
        self.counters.count(kind);
        if let Some(event) = self.vcpu.backend.interrupted_event() {
            self.deliver_again(event);
        }
        end
    }

    /// Takes mail, ends the wait of a processor that halted, fires timers, and offers the guest what is pending.
    #[inline(never)]
    fn attend(&mut self) -> Step {
        if self.vcpu.activity == Activity::Running {
            self.take_mail()?;
        }
        if self.vcpu.activity != Activity::Running {
            self.wake()?;
        }
        self.offer_events();
        Ok(())
    }

    /// Delivers an event again whose delivery the exit cut short, unless the answer to the exit was another one.
    #[inline(never)]
    fn deliver_again(&mut self, event: Event) {
        if self.vcpu.backend.readiness() != Readiness::Busy && !is_repeated_by_itself(event) {
            self.vcpu.backend.inject(event);
        }
    }

    #[inline(always)]
    fn apply(&mut self, action: Action) -> Step {
        match action {
            Action::Resume => {}
            Action::ServeHost => return self.serve_host(),
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
            Action::Inject(event) => self.vcpu.backend.inject(event),
            Action::Reflect { vector, error_code, address } => self.reflect(vector, error_code, address),
            Action::EmulateDevice(gpa) => return self.emulate_device(gpa),
            Action::ExplainInvalidState => return self.explain_invalid_state(),
            Action::Stop(reason) => return Err(Turn::Stopped(reason)),
        }
        Ok(())
    }

    /// Takes in what other processors and the devices have sent. INIT to the boot processor is a reset of the
    /// machine: what would start at its reset vector, firmware, is not there.
    fn take_mail(&mut self) -> Step {
        if !self.vcpu.devices.has_mail(self.mailbox) {
            return Ok(());
        }
        let Collected { init, start_up } = self.vcpu.devices.collect(self.mailbox);
        if init {
            if self.vcpu.index() == 0 {
                return Err(Turn::Stopped(StopReason::Reset));
            }
            self.vcpu.init();
        }
        if let Some(vector) = start_up {
            self.vcpu.start_up(vector);
        }
        Ok(())
    }

    /// Does what an access to the local APIC asked for.
    fn serve_request(&mut self, request: Request) {
        match request {
            Request::None => {}
            Request::Send(message) => {
                let woken = self.guest.bus().send(message, Some(self.vcpu.index()));
                self.wake_others(woken);
            }
            Request::EndOfInterrupt(vector) => {
                let mut wires = self.guest.bus().wires();
                self.guest.board().end_of_interrupt(vector, &mut wires);
                self.wake_others(wires.woken());
            }
        }
    }

    /// Lets others know of their mail. This processor takes its own before it goes on.
    fn wake_others(&mut self, woken: VcpuSet) {
        let others = woken.without(self.vcpu.index());
        if !others.is_empty() {
            self.host.wake(others);
        }
    }

    /// Fires timers that are due and gives the guest what it can take, or asks to be told when it can.
    fn offer_events(&mut self) {
        if self.vcpu.devices.next_deadline().is_some() {
            self.vcpu.devices.advance(self.host.now());
        }
        self.bound_stretch();
        // What waits is offered again before each entry, until it is taken.
        let (nmi, vector) = (self.vcpu.devices.pending_nmi(), self.vcpu.devices.pending_vector());
        self.attends = nmi || vector.is_some();
        if self.attends {
            self.offer(nmi, vector);
        }
    }

    fn offer(&mut self, nmi: bool, vector: Option<u8>) {
        let readiness = self.vcpu.backend.readiness();
        if nmi && self.vcpu.backend.accepts_nmi() {
            self.vcpu.devices.acknowledge_nmi();
            self.vcpu.backend.inject(Event::Nmi);
            return;
        }
        let Some(vector) = vector else { return };
        match readiness {
            Readiness::Ready => {
                self.vcpu.devices.acknowledge(vector);
                self.vcpu.backend.inject(Event::Interrupt(vector));
            }
            Readiness::Shadowed | Readiness::Masked | Readiness::Busy => {
                self.vcpu.backend.request_interrupt_window();
            }
        }
    }

    fn bound_stretch(&mut self) {
        let deadline = self.vcpu.devices.next_deadline();
        if self.deadline != Some(deadline) {
            self.deadline = Some(deadline);
            self.host.set_deadline(deadline);
        }
    }

    fn serve_host(&mut self) -> Step {
        let may_go_on = self.host.take_interrupts();
        // What interrupted may have been the deadline itself, which has passed or still stands.
        self.deadline = None;
        self.attends = true;
        self.tick();
        if may_go_on { Ok(()) } else { Err(Turn::SliceOver) }
    }

    /// Raises the interval timer's interrupt, if it is due and this processor drives it. Its time is a deadline of
    /// this processor, which ends in an interrupt of the host, so that nothing need ask at every entry.
    fn tick(&mut self) {
        let Some(at) = self.vcpu.devices.tick() else { return };
        let now = self.host.now();
        if now >= at {
            let mut wires = self.guest.bus().wires();
            let next = self.guest.board().tick(now, &mut wires);
            self.wake_others(wires.woken());
            self.vcpu.devices.set_tick(next);
        }
    }

    /// HLT: steps over it, then waits for what wakes the processor.
    fn wait(&mut self) -> Step {
        let Some(length) = self.length(Instruction::Hlt) else { return Ok(()) };
        self.vcpu.backend.skip_instruction(length);
        // A single step ends the wait before it begins.
        if self.vcpu.backend.readiness() == Readiness::Busy {
            return Ok(());
        }
        self.vcpu.activity = Activity::Halted;
        self.attends = true;
        self.wake()
    }

    /// Goes on if there is something to wake for; ends the turn otherwise.
    fn wake(&mut self) -> Step {
        // Before the mail is taken: whoever finds all asleep and no mail must be right.
        self.guest.wake_up(self.vcpu.index());
        self.tick();
        self.take_mail()?;
        let devices = &mut self.vcpu.devices;
        devices.advance(self.host.now());
        let is_masked = self.vcpu.backend.readiness() == Readiness::Masked;
        match self.vcpu.activity {
            Activity::Running => return Ok(()),
            Activity::Halted if devices.pending_nmi() => {}
            Activity::Halted if !is_masked => {
                if devices.pending_vector().is_none() {
                    return Err(Turn::Halted { until: devices.next_deadline() });
                }
            }
            // Only another processor of the guest can wake it now.
            Activity::Halted | Activity::AwaitsStartUp => return Err(self.fall_asleep()),
        }
        self.vcpu.activity = Activity::Running;
        Ok(())
    }

    fn fall_asleep(&self) -> Turn {
        if self.guest.fall_asleep(self.vcpu.index()) {
            Turn::Stopped(StopReason::HaltedForEver)
        } else if self.vcpu.activity == Activity::AwaitsStartUp {
            Turn::AwaitsStartUp
        } else {
            Turn::Halted { until: None }
        }
    }

    fn answer_cpuid(&mut self, leaf: u32, subleaf: u32) {
        let Some(length) = self.length(Instruction::Cpuid) else { return };
        let state = if GuestCpuid::depends_on_state(leaf) {
            CpuidState {
                cr4: self.vcpu.backend.read(Register::Cr4),
                xcr0: self.vcpu.backend.read(Register::Xcr0),
            }
        } else {
            CpuidState::default()
        };
        let answer = self.vcpu.cpuid.answer(leaf, subleaf, state);
        let gprs = self.vcpu.backend.gprs();
        gprs.rax = u64::from(answer.eax);
        gprs.rbx = u64::from(answer.ebx);
        gprs.rcx = u64::from(answer.ecx);
        gprs.rdx = u64::from(answer.edx);
        self.vcpu.backend.skip_instruction(length);
    }

    /// Hypercalls are for the kernel in 64-bit mode; the service answers everybody else with a status.
    fn serve_call(&mut self) {
        let Some(length) = self.length(Instruction::Vmmcall) else { return };
        let number = dolmen_arch::bits::low32(self.vcpu.backend.gprs().rax);
        if dolmen_abi::is_call_number(number) {
            self.make_call(number);
        } else {
            self.vcpu.backend.gprs().rax = Status::NO_SUCH_CALL.to_rax();
        }
        self.vcpu.backend.skip_instruction(length);
    }

    #[inline(never)]
    fn make_call(&mut self, number: u32) {
        let privileged = self.vcpu.backend.privilege() == 0 && self.code_size() == CodeSize::Bits64;
        let gprs = *self.vcpu.backend.gprs();
        let args = CallArgs { rdi: gprs.rdi, rsi: gprs.rsi, rdx: gprs.rdx, rcx: gprs.rcx };
        let result = self.host.call(number, args, privileged, self.memory);
        let gprs = self.vcpu.backend.gprs();
        gprs.rax = result.status;
        gprs.rdx = result.reply_len;
    }

    fn reflect(&mut self, vector: Vector, error_code: u32, address: u64) {
        if vector == Vector::PF {
            self.vcpu.backend.write(Register::Cr2, address);
        }
        self.vcpu.backend.inject(Event::Exception { vector, error_code });
    }

    /// Does what a device's register asked for.
    fn take_effect(&mut self, effect: Effect) -> Step {
        match effect {
            Effect::None => Ok(()),
            Effect::ConsoleOut(port) => {
                let (host, mut wires) = (&mut *self.host, self.guest.bus().wires());
                self.guest.board().send_console(port, |byte| host.console_out(port, byte), &mut wires);
                self.wake_others(wires.woken());
                Ok(())
            }
            Effect::TickAt(at) => {
                self.attends = true;
                self.vcpu.devices.set_tick(at);
                Ok(())
            }
            Effect::Reset => Err(Turn::Stopped(StopReason::Reset)),
            Effect::PowerOff => Err(Turn::Stopped(StopReason::PowerOff)),
        }
    }

    fn step_over(&mut self, expected: impl Fn(Instruction) -> bool) {
        if let Some(length) = self.length_of(expected) {
            self.vcpu.backend.skip_instruction(length);
        }
    }

    fn code_size(&self) -> CodeSize {
        let code = self.vcpu.backend.segment(SegmentName::Cs).attributes();
        if self.is_long_mode() && code.contains(Attributes::LONG) {
            CodeSize::Bits64
        } else if code.contains(Attributes::DEFAULT) {
            CodeSize::Bits32
        } else {
            CodeSize::Bits16
        }
    }

    fn is_long_mode(&self) -> bool {
        Efer::from_bits_retain(self.vcpu.backend.read(Register::Efer)).contains(Efer::LMA)
    }

    fn rflags(&self) -> Rflags {
        Rflags::from_bits_retain(self.vcpu.backend.read(Register::Rflags))
    }

    /// The linear address of `offset` in a segment for an access of `bytes`, or the fault it is.
    fn linear(&self, name: SegmentName, offset: u64, bytes: u8) -> Result<Gva, Event> {
        let segment = self.vcpu.backend.segment(name);
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
