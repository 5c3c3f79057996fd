//! RDMSR and WRMSR.

use dolmen_arch::bits::low32;
use dolmen_arch::instruction::Instruction;
use dolmen_arch::msr::is_valid_pat;
use dolmen_arch::register::{Cr0, Efer};
use dolmen_memory::GuestMemory;

use super::{Host, Running};
use crate::backend::{Backend, Register};
use crate::exit::Event;
use crate::local::MsrAnswer;
use crate::policy::MsrRule;

/// EFER bits that a guest may set. LMA is the processor's; SVME is not there.
const EFER_WRITABLE: Efer = Efer::SCE.union(Efer::LME).union(Efer::NXE);

impl<B: Backend, M: GuestMemory, H: Host> Running<'_, B, M, H> {
    pub(super) fn read_msr(&mut self, index: u32, rule: MsrRule) {
        let Some(length) = self.length(Instruction::Rdmsr) else { return };
        let value = match rule {
            MsrRule::Efer => Some(self.vcpu.backend.read(Register::Efer)),
            MsrRule::Pat => Some(self.vcpu.backend.read(Register::Pat)),
            MsrRule::TscAux => Some(self.vcpu.backend.read(Register::TscAux)),
            MsrRule::Constant(value) | MsrRule::Fixed(value) => Some(value),
            MsrRule::Absent => None,
            MsrRule::Device => {
                let answer = self.vcpu.devices.msr_read(index, self.host.now());
                // A timer that was due may have fired.
                self.attends |= self.vcpu.devices.has_request();
                match answer {
                    MsrAnswer::Value(value) => Some(value),
                    MsrAnswer::Done(_) | MsrAnswer::Fault | MsrAnswer::Unclaimed => None,
                }
            }
        };
        let Some(value) = value else { return self.vcpu.backend.inject(Event::GENERAL_PROTECTION) };
        let gprs = self.vcpu.backend.gprs();
        gprs.rax = u64::from(low32(value));
        gprs.rdx = value >> 32;
        self.vcpu.backend.skip_instruction(length);
    }

    pub(super) fn write_msr(&mut self, index: u32, rule: MsrRule, value: u64) {
        let Some(length) = self.length(Instruction::Wrmsr) else { return };
        let done = match rule {
            MsrRule::Efer => self.write_efer(Efer::from_bits_retain(value)),
            MsrRule::Pat => {
                let valid = is_valid_pat(value);
                if valid {
                    self.vcpu.backend.write(Register::Pat, value);
                }
                valid
            }
            MsrRule::TscAux => {
                let valid = value >> 32 == 0;
                if valid {
                    self.vcpu.backend.write(Register::TscAux, value);
                }
                valid
            }
            MsrRule::Constant(constant) => value == constant,
            MsrRule::Fixed(_) => true,
            MsrRule::Absent => false,
            MsrRule::Device => {
                self.attends = true;
                match self.vcpu.devices.msr_write(index, value, self.host.now(), self.memory) {
                    MsrAnswer::Done(request) => {
                        self.serve_request(request);
                        true
                    }
                    MsrAnswer::Value(_) | MsrAnswer::Fault | MsrAnswer::Unclaimed => false,
                }
            }
        };
        if done {
            self.vcpu.backend.skip_instruction(length);
        } else {
            self.vcpu.backend.inject(Event::GENERAL_PROTECTION);
        }
    }

    /// APM vol. 2, 3.1.7 and 14.6: LME does not change while paging is on; a write of LMA is dropped.
    fn write_efer(&mut self, wanted: Efer) -> bool {
        let now = Efer::from_bits_retain(self.vcpu.backend.read(Register::Efer));
        let paged = Cr0::from_bits_retain(self.vcpu.backend.read(Register::Cr0)).contains(Cr0::PG);
        let changed = wanted.symmetric_difference(now);
        if !EFER_WRITABLE.union(Efer::LMA).contains(wanted) || paged && changed.contains(Efer::LME) {
            return false;
        }
        let value = wanted.difference(Efer::LMA).union(now.intersection(Efer::LMA));
        self.vcpu.backend.write(Register::Efer, value.bits());
        if changed.contains(Efer::NXE) {
            self.vcpu.backend.flush();
        }
        true
    }
}
