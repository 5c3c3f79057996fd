//! Port instructions: IN, OUT, and INS and OUTS through guest memory.

use dolmen_arch::Gpr;
use dolmen_arch::bits::{low_bytes, low32};
use dolmen_arch::instruction::{Instruction, StringPort};
use dolmen_arch::register::Rflags;
use dolmen_memory::{Access, AccessError, GuestMemory, Gva, read_virtual, write_virtual};

use super::{Host, Running, Step};
use crate::backend::Backend;
use crate::board::Tsc;
use crate::exit::{Direction, Event, PortAccess, Vector};
use crate::vcpu::Turn;

/// Most repetitions of one string instruction before the guest is entered again and may be interrupted.
const MOST_AT_ONCE: u64 = 256;

impl<B: Backend, M: GuestMemory, H: Host> Running<'_, B, M, H> {
    pub(super) fn access_port(&mut self, access: PortAccess) -> Step {
        if access.string {
            return self.access_string(access);
        }
        // Ports are told with the length of their instruction by every processor.
        let Some(length) = self.vcpu.backend.instruction_length() else {
            self.vcpu.backend.flush();
            return Ok(());
        };
        let (bytes, now) = (access.width.bytes(), self.host.now());
        let effect = match access.direction {
            Direction::In => {
                let value = self.read_port(access.port, bytes, now);
                self.vcpu.backend.gprs().write_part(Gpr::Rax, bytes, u64::from(value));
                Ok(())
            }
            Direction::Out => {
                let value = low32(low_bytes(self.vcpu.backend.gprs().rax, bytes));
                self.write_port(access.port, bytes, value, now)
            }
        };
        self.vcpu.backend.skip_instruction(length);
        effect
    }

    fn read_port(&mut self, port: u16, bytes: u8, now: Tsc) -> u32 {
        let mut wires = self.guest.bus().wires();
        let value = self.guest.board().port_read(port, bytes, now, &mut wires);
        self.wake_others(wires.woken());
        value
    }

    fn write_port(&mut self, port: u16, bytes: u8, value: u32, now: Tsc) -> Step {
        let mut wires = self.guest.bus().wires();
        let effect = self.guest.board().port_write(port, bytes, value, now, &mut wires);
        self.wake_others(wires.woken());
        self.take_effect(effect)
    }

    /// INS or OUTS, a bounded number of repetitions at a time: RCX, RSI and RDI show how far it got, and the
    /// guest repeats the instruction until RCX is 0, as it would after an interrupt on the bare machine.
    fn access_string(&mut self, access: PortAccess) -> Step {
        let Some((Instruction::StringPort(form), length)) = self.instruction() else {
            self.vcpu.backend.flush();
            return Ok(());
        };
        let mut left =
            if form.repeat { low_bytes(self.vcpu.backend.gprs().rcx, form.address_bytes) } else { 1 };
        for _ in 0..MOST_AT_ONCE {
            if left == 0 {
                break;
            }
            match self.transfer(access, form) {
                Ok(()) => {}
                Err(Trouble::Fault(error)) => {
                    self.raise(error);
                    return Ok(());
                }
                Err(Trouble::Segment(event)) => {
                    self.vcpu.backend.inject(event);
                    return Ok(());
                }
                Err(Trouble::End(turn)) => return Err(turn),
            }
            left = left.wrapping_sub(1);
            if form.repeat {
                self.set_address_register(Gpr::Rcx, form, left);
            }
        }
        if left == 0 {
            self.vcpu.backend.skip_instruction(length);
        }
        Ok(())
    }

    /// One repetition: all of it, or nothing.
    fn transfer(&mut self, access: PortAccess, form: StringPort) -> Result<(), Trouble> {
        let bytes = access.width.bytes();
        let pointer = if form.input { Gpr::Rdi } else { Gpr::Rsi };
        let offset = low_bytes(self.vcpu.backend.gprs().read(pointer), form.address_bytes);
        let at = self.linear(form.segment, offset, bytes).map_err(Trouble::Segment)?;
        let (cpl, now) = (self.vcpu.backend.privilege(), self.host.now());
        let mut buffer = [0u8; 4];
        let slot = buffer.get_mut(..usize::from(bytes)).unwrap_or_default();
        if form.input {
            // The page is checked before the port is read, whose value would otherwise be lost.
            self.read_all(at, Access::Write(cpl), slot)?;
            let value = self.read_port(access.port, bytes, now).to_le_bytes();
            let paging = self.vcpu.backend.paging();
            let value = value.get(..usize::from(bytes)).unwrap_or_default();
            write_virtual(self.memory, &paging, at, cpl, value)?;
        } else {
            self.read_all(at, Access::Read(cpl), slot)?;
            self.write_port(access.port, bytes, u32::from_le_bytes(buffer), now).map_err(Trouble::End)?;
        }
        let step = u64::from(bytes);
        let is_down = self.rflags().contains(Rflags::DF);
        let next = if is_down { offset.wrapping_sub(step) } else { offset.wrapping_add(step) };
        self.set_address_register(pointer, form, next);
        Ok(())
    }

    /// Reads all of `into`, or says why the first byte that cannot be read cannot.
    fn read_all(&self, at: Gva, access: Access, into: &mut [u8]) -> Result<(), AccessError> {
        let paging = self.vcpu.backend.paging();
        let read = read_virtual(self.memory, &paging, at, access, into)?;
        if read == into.len() {
            return Ok(());
        }
        let rest = Gva::new(at.get().wrapping_add(u64::try_from(read).unwrap_or(0)));
        read_virtual(self.memory, &paging, rest, access, &mut [0])?;
        Err(AccessError::OutsideRam)
    }

    /// RCX, RSI and RDI change in the instruction's address size.
    fn set_address_register(&mut self, register: Gpr, form: StringPort, value: u64) {
        self.vcpu.backend.gprs().write_part(register, form.address_bytes, value);
    }

    /// Gives the guest the fault that its own access to memory is. String instructions on device memory are
    /// not emulated; they fault as an address that is no memory.
    fn raise(&mut self, error: AccessError) {
        match error {
            AccessError::PageFault(fault) => self.reflect(Vector::PF, fault.error_code, fault.address.get()),
            AccessError::NotCanonical | AccessError::OutsideRam => {
                self.vcpu.backend.inject(Event::GENERAL_PROTECTION);
            }
        }
    }
}

/// Why a repetition did not happen.
enum Trouble {
    Fault(AccessError),
    Segment(Event),
    End(Turn),
}

impl From<AccessError> for Trouble {
    fn from(error: AccessError) -> Self {
        Self::Fault(error)
    }
}
