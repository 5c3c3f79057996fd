//! [`Backend`] for VMX.

use core::fmt::{Result as FmtResult, Write};

use dolmen_arch::instruction::InstructionLength;
use dolmen_arch::register::{Cr0, Cr4, DR6_SINGLE_STEP, Efer, Rflags};
use dolmen_arch::segment::{Attributes, Segment, SegmentName};
use dolmen_arch::vmx::field::{exit, guest};
use dolmen_arch::vmx::intercept::Primary;
use dolmen_arch::vmx::{self, Fields, Injection};
use dolmen_arch::{Event, Gprs, Vector, VmExit};
use dolmen_vm::backend::{Backend, Readiness, Register, StartMode, StartState};

use super::vcpu::Vmx;

/// Last byte of a task state segment without a map of ports.
const TSS_LIMIT: u32 = 0x67;

impl Backend for Vmx {
    fn start(&mut self, state: &StartState) {
        self.forget();
        self.reset_extended();
        self.gprs = state.gprs;
        self.reset_processor();
        let vmcs = &mut self.vmcs;
        let (code, cr0) = match state.mode {
            StartMode::Flat32 => (Attributes::CODE32, Cr0::PE.union(Cr0::ET)),
            StartMode::Long64 { tables } => {
                vmcs.write(guest::CR3, tables.get());
                vmx::write_cr4(vmcs, Cr4::PAE.bits());
                vmx::write_efer(vmcs, Efer::LME | Efer::LMA);
                (Attributes::CODE64, Cr0::PE.union(Cr0::ET).union(Cr0::PG))
            }
        };
        let data = Segment::flat(state.data_selector, Attributes::DATA32);
        vmx::write_cr0(vmcs, cr0);
        vmx::set_segment(vmcs, SegmentName::Cs, Segment::flat(state.code_selector, code));
        // Multiboot (3.2) wants the last two flat as well, PVH a task state segment of exactly this size.
        for name in [SegmentName::Ss, SegmentName::Ds, SegmentName::Es, SegmentName::Fs, SegmentName::Gs] {
            vmx::set_segment(vmcs, name, data);
        }
        vmcs.write(guest::TR_LIMIT, TSS_LIMIT);
        vmcs.write(guest::GDTR_BASE, state.gdt_base.get());
        vmcs.write(guest::GDTR_LIMIT, u32::from(state.gdt_limit));
        vmcs.write(guest::RIP, state.entry);
        self.flush_translations();
    }

    fn reset(&mut self) {
        self.forget();
        self.reset_extended();
        self.gprs = Gprs::default();
        self.reset_processor();
    }

    fn init(&mut self) {
        const KEPT: u64 = Cr0::CD.union(Cr0::NW).bits();
        self.forget();
        self.gprs = Gprs::default();
        self.extended.clear_addresses();
        self.resident.reset();
        let (cr0, pat) = (vmx::read_cr0(&self.vmcs), self.vmcs.read(guest::PAT));
        self.reset_processor();
        let after = Cr0::from_bits_retain(Cr0::RESET.bits() & !KEPT | cr0 & KEPT);
        vmx::write_cr0(&mut self.vmcs, after);
        self.vmcs.write(guest::PAT, pat);
        self.flush_translations();
    }

    fn start_up(&mut self, vector: u8) {
        self.vmcs.write(guest::CS_SELECTOR, u16::from(vector) << 8);
        self.vmcs.write(guest::CS_BASE, u64::from(vector) << 12);
        self.vmcs.write(guest::RIP, 0);
    }

    fn run(&mut self) -> VmExit {
        self.enter()
    }

    fn gprs(&mut self) -> &mut Gprs {
        &mut self.gprs
    }

    fn read(&self, register: Register) -> u64 {
        let vmcs = &self.vmcs;
        match register {
            Register::Rip => vmcs.read(guest::RIP),
            Register::Rflags => vmcs.read(guest::RFLAGS),
            Register::Cr0 => vmx::read_cr0(vmcs),
            Register::Cr2 => self.resident.cr2(),
            Register::Cr3 => vmcs.read(guest::CR3),
            Register::Cr4 => vmx::read_cr4(vmcs),
            Register::Efer => vmcs.read(guest::EFER),
            Register::Pat => vmcs.read(guest::PAT),
            Register::TscAux => self.extended.tsc_aux(),
            Register::Xcr0 => self.extended.read_xcr0(),
        }
    }

    fn write(&mut self, register: Register, value: u64) {
        let vmcs = &mut self.vmcs;
        match register {
            Register::Rip => vmcs.write(guest::RIP, value),
            Register::Rflags => vmcs.write(guest::RFLAGS, value),
            Register::Cr0 => vmx::write_cr0(vmcs, Cr0::from_bits_retain(value)),
            Register::Cr2 => self.resident.set_cr2(value),
            Register::Cr3 => vmcs.write(guest::CR3, value),
            Register::Cr4 => vmx::write_cr4(vmcs, value),
            Register::Efer => vmx::write_efer(vmcs, Efer::from_bits_retain(value)),
            Register::Pat => vmcs.write(guest::PAT, value),
            Register::TscAux => self.extended.write_tsc_aux(value),
            Register::Xcr0 => self.extended.write_xcr0(value),
        }
    }

    fn segment(&self, name: SegmentName) -> Segment {
        vmx::segment(&self.vmcs, name)
    }

    fn privilege(&self) -> u8 {
        vmx::privilege(&self.vmcs)
    }

    fn instruction_length(&self) -> Option<InstructionLength> {
        vmx::instruction_length(&self.told)
    }

    fn skip_instruction(&mut self, length: InstructionLength) {
        let is_stepped = vmx::skip(&mut self.vmcs, length);
        self.end_shadow();
        if is_stepped {
            self.resident.note_debug(DR6_SINGLE_STEP);
            self.inject(Event::Exception { vector: Vector::DB, error_code: 0 });
        }
    }

    fn interrupted_event(&self) -> Option<Event> {
        vmx::pending_event(&self.told)
    }

    fn readiness(&self) -> Readiness {
        if self.is_injecting {
            Readiness::Busy
        } else if !Rflags::from_bits_retain(self.vmcs.read(guest::RFLAGS)).contains(Rflags::IF) {
            Readiness::Masked
        } else if self.is_shadowed() {
            Readiness::Shadowed
        } else {
            Readiness::Ready
        }
    }

    fn accepts_nmi(&self) -> bool {
        self.is_open_for_nmi()
    }

    fn inject(&mut self, event: Event) {
        self.set_window(Primary::INTERRUPT_WINDOW, false);
        self.end_shadow();
        if event == Event::Nmi {
            self.begin_nmi();
        }
        let is_again = vmx::pending_event(&self.told) == Some(event);
        let is_protected = self.vmcs.read(guest::CR0) & Cr0::PE.bits() != 0;
        // What was cut short goes on as what it was: by which kind of instruction it was raised counts.
        let injection = if is_again {
            self.told.vectoring.again()
        } else {
            Injection::encode(event, is_protected, self.told.length)
        };
        self.set_injection(injection);
    }

    fn request_interrupt_window(&mut self) {
        self.set_window(Primary::INTERRUPT_WINDOW, true);
    }

    fn flush(&mut self) {
        self.flush_translations();
    }

    fn dump(&self, log: &mut dyn Write) -> FmtResult {
        let (vmcs, told) = (&self.vmcs, &self.told);
        writeln!(
            log,
            "vmx: exit reason={:#x} qualification={:#x} address={:#x} event={:?} error={}",
            told.reason,
            told.qualification,
            told.address,
            vmx::pending_event(told),
            vmcs.exit(exit::INSTRUCTION_ERROR)
        )?;
        if let Err(refusal) = vmx::explain(vmcs, &self.capabilities) {
            writeln!(log, "vmx: entry refused: {refusal}")?;
        }
        writeln!(
            log,
            "vmx: rip={:#x} rsp={:#x} rflags={:#x} cr0={:#x} cr2={:#x} cr3={:#x} cr4={:#x} efer={:#x} cs={:#x}",
            vmcs.read(guest::RIP),
            vmcs.read(guest::RSP),
            vmcs.read(guest::RFLAGS),
            vmcs.read(guest::CR0),
            self.resident.cr2(),
            vmcs.read(guest::CR3),
            vmcs.read(guest::CR4),
            vmcs.read(guest::EFER),
            vmcs.read(guest::CS_RIGHTS)
        )
    }
}
