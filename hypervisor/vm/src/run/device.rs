//! Accesses to device memory.

use dolmen_arch::bits::low_bytes;
use dolmen_arch::instruction::DecodeError;
use dolmen_memory::{Gpa, GuestMemory};

use super::{Host, Running, Step};
use crate::backend::{Backend, Register};
use crate::board::{Board, Effect, Tsc};
use crate::decode::{DeviceWord, decode};
use crate::policy::StopReason;
use crate::vcpu::Turn;

impl<B: Backend, M: GuestMemory, H: Host> Running<'_, B, M, H> {
    /// Does the instruction that touched `gpa`. Where no device is, memory reads all ones and keeps nothing.
    pub(super) fn emulate_device(&mut self, gpa: Gpa) -> Step {
        let (bytes, count) = self.fetch();
        let access = match decode(bytes.get(..count).unwrap_or_default(), self.code_size()) {
            Ok(access) => access,
            // The processor fetched it whole, so its translation changed meanwhile.
            Err(DecodeError::Truncated) => {
                self.vcpu.backend.flush();
                return Ok(());
            }
            Err(DecodeError::Other) => {
                return Err(Turn::Stopped(StopReason::UnknownInstruction { gpa, bytes }));
            }
        };
        let rflags = self.vcpu.backend.read(Register::Rflags);
        let (now, effect) = (self.host.now(), Effect::None);
        let mut board = self.guest.board();
        let mut word = Word { board: &mut board, gpa, bytes: access.bytes, now, effect };
        let after = access.perform(self.vcpu.backend.gprs(), rflags, &mut word);
        let effect = word.effect;
        drop(board);
        if after != rflags {
            self.vcpu.backend.write(Register::Rflags, after);
        }
        self.vcpu.backend.skip_instruction(access.length);
        self.take_effect(effect)
    }
}

/// The board's memory at one address.
struct Word<'a> {
    board: &'a mut Board,
    gpa: Gpa,
    bytes: u8,
    now: Tsc,
    effect: Effect,
}

impl DeviceWord for Word<'_> {
    fn read(&mut self) -> u64 {
        self.board.mmio_read(self.gpa, self.bytes, self.now).unwrap_or(u64::MAX)
    }

    fn write(&mut self, value: u64) {
        let value = low_bytes(value, self.bytes);
        self.effect = self.board.mmio_write(self.gpa, self.bytes, value, self.now).unwrap_or(Effect::None);
    }
}
