//! Accesses to device memory.

use dolmen_arch::bits::low_bytes;
use dolmen_arch::instruction::DecodeError;
use dolmen_memory::{Gpa, GuestMemory};

use super::{Host, Running, Step};
use crate::backend::{Backend, Register};
use crate::board::{Effect, Tsc};
use crate::bus::VcpuSet;
use crate::decode::DeviceWord;
use crate::device::local_apic::Request;
use crate::guest::Guest;
use crate::local::LocalDevices;
use crate::policy::StopReason;
use crate::vcpu::Turn;

impl<B: Backend, M: GuestMemory, H: Host> Running<'_, B, M, H> {
    /// Does the instruction that touched `gpa`. Where no device is, memory reads all ones and keeps nothing.
    pub(super) fn emulate_device(&mut self, gpa: Gpa) -> Step {
        if self.vcpu.backend.interrupted_event().is_some() {
            // No instruction touched it, but the delivery of an event.
            return Err(Turn::Stopped(StopReason::TablesOutsideRam(gpa)));
        }
        self.attends = true;
        let access = match self.device_access() {
            Ok(access) => access,
            // The processor fetched it whole, so its translation changed meanwhile.
            Err((DecodeError::Truncated, _)) => {
                self.vcpu.backend.flush();
                return Ok(());
            }
            Err((DecodeError::Other, bytes)) => {
                return Err(Turn::Stopped(StopReason::UnknownInstruction { gpa, bytes }));
            }
        };
        let rflags = self.vcpu.backend.read(Register::Rflags);
        let mut word = Word {
            devices: &mut self.vcpu.devices,
            guest: self.guest,
            gpa,
            bytes: access.bytes,
            now: self.host.now(),
            outcome: Outcome::default(),
        };
        let after = access.perform(self.vcpu.backend.gprs(), rflags, &mut word);
        let Outcome { request, effect, woken } = word.outcome;
        if after != rflags {
            self.vcpu.backend.write(Register::Rflags, after);
        }
        self.vcpu.backend.skip_instruction(access.length);
        self.serve_request(request);
        self.wake_others(woken);
        self.take_effect(effect)
    }
}

/// Device memory at one address: the processor's own, or the board's, whose lock is held for one access.
struct Word<'a> {
    devices: &'a mut LocalDevices,
    guest: &'a Guest,
    gpa: Gpa,
    bytes: u8,
    now: Tsc,
    outcome: Outcome,
}

/// What a write asks for.
struct Outcome {
    request: Request,
    effect: Effect,
    woken: VcpuSet,
}

impl Default for Outcome {
    fn default() -> Self {
        Self { request: Request::None, effect: Effect::None, woken: VcpuSet::EMPTY }
    }
}

impl DeviceWord for Word<'_> {
    fn read(&mut self) -> u64 {
        let own = self.devices.mmio_read(self.gpa, self.bytes, self.now);
        own.or_else(|| self.guest.board().mmio_read(self.gpa, self.bytes)).unwrap_or(u64::MAX)
    }

    fn write(&mut self, value: u64) {
        let value = low_bytes(value, self.bytes);
        if let Some(request) = self.devices.mmio_write(self.gpa, self.bytes, value, self.now) {
            self.outcome.request = request;
            return;
        }
        let mut wires = self.guest.bus().wires();
        let effect = self.guest.board().mmio_write(self.gpa, self.bytes, value, &mut wires);
        self.outcome.effect = effect.unwrap_or(Effect::None);
        self.outcome.woken = wires.woken();
    }
}
