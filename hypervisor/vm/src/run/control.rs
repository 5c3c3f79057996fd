//! Control registers: what the processor would check, checked here where an exit comes first.

use dolmen_arch::Gpr;
use dolmen_arch::bits::{low8, low16};
use dolmen_arch::instruction::{CodeSize, Instruction};
use dolmen_arch::register::{Cr0, Cr4, Efer};
use dolmen_memory::GuestMemory;

use super::{Host, Running, Step};
use crate::backend::{Backend, Register};
use crate::cpuid::{CpuidState, GuestCpuid};
use crate::exit::{ControlRegister, Event};
use crate::policy::StopReason;
use crate::vcpu::Turn;

/// CR4 bits that need no CPUID bit on a 64-bit processor.
const CR4_ALWAYS: Cr4 = Cr4::VME
    .union(Cr4::PVI)
    .union(Cr4::TSD)
    .union(Cr4::DE)
    .union(Cr4::PSE)
    .union(Cr4::PAE)
    .union(Cr4::PGE)
    .union(Cr4::PCE)
    .union(Cr4::OSFXSR)
    .union(Cr4::OSXMMEXCPT);

/// CR4 bits that change how addresses are translated.
const CR4_PAGING: Cr4 =
    Cr4::PSE.union(Cr4::PAE).union(Cr4::PGE).union(Cr4::PCIDE).union(Cr4::SMEP).union(Cr4::SMAP);

/// What LMSW can change: PE (set only), MP, EM, TS.
const LMSW: u64 = 0xf;

/// The CR4 bits whose features `cpuid` shows.
pub(crate) fn cr4_mask(cpuid: &GuestCpuid) -> Cr4 {
    let state = CpuidState { cr4: 0, xcr0: 1 };
    let (one, seven) = (cpuid.answer(1, 0, state), cpuid.answer(7, 0, state));
    [
        (one.edx, 7, Cr4::MCE),
        (one.ecx, 17, Cr4::PCIDE),
        (one.ecx, 26, Cr4::OSXSAVE),
        (seven.ebx, 0, Cr4::FSGSBASE),
        (seven.ebx, 7, Cr4::SMEP),
        (seven.ebx, 20, Cr4::SMAP),
        (seven.ecx, 2, Cr4::UMIP),
    ]
    .into_iter()
    .filter(|(word, bit, _)| word >> bit & 1 != 0)
    .fold(CR4_ALWAYS, |mask, (_, _, flag)| mask.union(flag))
}

impl<B: Backend, M: GuestMemory, H: Host> Running<'_, B, M, H> {
    pub(super) fn write_control(&mut self, register: ControlRegister) {
        let Some((instruction, length)) = self.instruction() else { return self.vcpu.backend.flush() };
        let accepted = match (register, instruction) {
            (ControlRegister::Cr0, Instruction::MovToControl { control: 0, from }) => {
                let value = self.operand(from);
                self.write_cr0(Cr0::from_bits_retain(value))
            }
            (ControlRegister::Cr0, Instruction::Lmsw(from)) => {
                let now = self.vcpu.backend.read(Register::Cr0);
                let word = u64::from(low16(self.operand(from)));
                let kept = now & (!LMSW | Cr0::PE.bits());
                self.write_cr0(Cr0::from_bits_retain(kept | word & LMSW))
            }
            (ControlRegister::Cr4, Instruction::MovToControl { control: 4, from }) => {
                let value = self.operand(from);
                self.write_cr4(Cr4::from_bits_retain(value))
            }
            (ControlRegister::Cr8, Instruction::MovToControl { control: 8, from }) => {
                let value = self.operand(from);
                let valid = value <= 0xf;
                if valid {
                    self.attends = true;
                    self.vcpu.devices.set_cr8(low8(value));
                }
                valid
            }
            // LMSW from memory, or other bytes than those that exited.
            (
                ControlRegister::Cr0 | ControlRegister::Cr3 | ControlRegister::Cr4 | ControlRegister::Cr8,
                _,
            ) => return self.vcpu.backend.inject(Event::INVALID_OPCODE),
        };
        if accepted {
            self.vcpu.backend.skip_instruction(length);
        } else {
            self.vcpu.backend.inject(Event::GENERAL_PROTECTION);
        }
    }

    pub(super) fn read_control(&mut self, register: ControlRegister) {
        let Some((Instruction::MovFromControl { to, .. }, length)) = self.instruction() else {
            return self.vcpu.backend.flush();
        };
        let value = match register {
            ControlRegister::Cr0 => self.vcpu.backend.read(Register::Cr0),
            ControlRegister::Cr3 => self.vcpu.backend.read(Register::Cr3),
            ControlRegister::Cr4 => self.vcpu.backend.read(Register::Cr4),
            ControlRegister::Cr8 => u64::from(self.vcpu.devices.cr8()),
        };
        let bytes = if self.code_size() == CodeSize::Bits64 { 8 } else { 4 };
        self.vcpu.backend.gprs().write_part(to, bytes, value);
        self.vcpu.backend.skip_instruction(length);
    }

    /// A control register move takes 32 bits outside 64-bit mode.
    fn operand(&mut self, from: Gpr) -> u64 {
        let value = self.vcpu.backend.gprs().read(from);
        if self.code_size() == CodeSize::Bits64 { value } else { value & 0xffff_ffff }
    }

    /// APM vol. 2, 3.1.1 and 14.6.
    fn write_cr0(&mut self, wanted: Cr0) -> bool {
        let wanted = wanted.union(Cr0::ET);
        let now = Cr0::from_bits_retain(self.vcpu.backend.read(Register::Cr0));
        if !wanted.is_valid() {
            return false;
        }
        let mut efer = Efer::from_bits_retain(self.vcpu.backend.read(Register::Efer));
        let cr4 = Cr4::from_bits_retain(self.vcpu.backend.read(Register::Cr4));
        let is_64_bit = self.code_size() == CodeSize::Bits64;
        match (now.contains(Cr0::PG), wanted.contains(Cr0::PG)) {
            (false, true) if efer.contains(Efer::LME) => {
                if !cr4.contains(Cr4::PAE) || self.is_long_code() {
                    return false;
                }
                efer.insert(Efer::LMA);
            }
            (true, false) => {
                if is_64_bit || cr4.contains(Cr4::PCIDE) {
                    return false;
                }
                efer.remove(Efer::LMA);
            }
            (false, _) | (true, true) => {}
        }
        self.vcpu.backend.write(Register::Cr0, wanted.bits());
        self.vcpu.backend.write(Register::Efer, efer.bits());
        if now.symmetric_difference(wanted).intersects(Cr0::PG.union(Cr0::WP).union(Cr0::PE)) {
            self.vcpu.backend.flush();
        }
        true
    }

    fn is_long_code(&self) -> bool {
        use dolmen_arch::segment::{Attributes, SegmentName};
        self.vcpu.backend.segment(SegmentName::Cs).attributes().contains(Attributes::LONG)
    }

    /// APM vol. 2, 3.1.3 and 5.5.1.
    fn write_cr4(&mut self, wanted: Cr4) -> bool {
        let now = Cr4::from_bits_retain(self.vcpu.backend.read(Register::Cr4));
        let enables_pcid = wanted.contains(Cr4::PCIDE) && !now.contains(Cr4::PCIDE);
        let tables_have_id = self.vcpu.backend.read(Register::Cr3) & 0xfff != 0;
        if !self.vcpu.cr4_mask.contains(wanted)
            || self.is_long_mode() && !wanted.contains(Cr4::PAE)
            || enables_pcid && (!self.is_long_mode() || tables_have_id)
        {
            return false;
        }
        self.vcpu.backend.write(Register::Cr4, wanted.bits());
        if now.symmetric_difference(wanted).intersects(CR4_PAGING) {
            self.vcpu.backend.flush();
        }
        true
    }

    /// APM vol. 2, 11.5.2: x87 always, AVX only with SSE, nothing that CPUID does not show.
    pub(super) fn write_xcr(&mut self, index: u32, value: u64) {
        const X87: u64 = 1;
        const SSE: u64 = 2;
        const AVX: u64 = 4;
        let Some(length) = self.length(Instruction::Xsetbv) else { return };
        let valid = index == 0
            && self.vcpu.backend.privilege() == 0
            && value & X87 != 0
            && (value & AVX == 0 || value & SSE != 0)
            && value & !self.vcpu.cpuid.xcr0_mask() == 0;
        if valid {
            self.vcpu.backend.write(Register::Xcr0, value);
            self.vcpu.backend.skip_instruction(length);
        } else {
            self.vcpu.backend.inject(Event::GENERAL_PROTECTION);
        }
    }

    /// Some processors leave the guest with "invalid state" where they should fault: on a write of reserved
    /// bits of a control register. RIP then still names that instruction. Anything else is a state that was
    /// refused at entry, after which the block holds no guest state to go on with.
    pub(super) fn explain_invalid_state(&mut self) -> Step {
        if self.vcpu.backend.interrupted_event().is_some() {
            // The event was not even begun: the state was refused at entry, and would be again.
            return Err(Turn::Stopped(StopReason::InvalidState));
        }
        match self.instruction() {
            Some((Instruction::MovToControl { .. } | Instruction::Lmsw(_), _)) => {
                self.vcpu.backend.inject(Event::GENERAL_PROTECTION);
                Ok(())
            }
            Some(_) | None => Err(Turn::Stopped(StopReason::InvalidState)),
        }
    }
}
