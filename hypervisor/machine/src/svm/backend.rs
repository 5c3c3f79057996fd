//! [`Backend`] for SVM.

use core::fmt::{Result as FmtResult, Write};

use dolmen_arch::instruction::InstructionLength;
use dolmen_arch::register::{Cr0, Cr4, Efer, Rflags};
use dolmen_arch::segment::{Attributes, Segment, SegmentName};
use dolmen_arch::svm::{self, Clean, SvmFeatures};
use dolmen_arch::{Event, Gprs, Vector, VmExit};
use dolmen_vm::backend::{Backend, Readiness, Register, StartMode, StartState};

use super::vcpu::Svm;

/// Last byte of a task state segment without a map of ports.
const TSS_LIMIT: u32 = 0x67;

impl Backend for Svm {
    fn start(&mut self, state: &StartState) {
        self.forget();
        self.reset_extended();
        self.gprs = state.gprs;
        let vmcb = self.vmcb.get_mut();
        vmcb.reset_processor();
        let save = vmcb.save_mut(Clean::all());
        let (code, cr0) = match state.mode {
            StartMode::Flat32 => (Attributes::CODE32, Cr0::PE.union(Cr0::ET)),
            StartMode::Long64 { tables } => {
                save.cr3 = tables.get();
                save.cr4 = Cr4::PAE.bits();
                save.efer |= (Efer::LME | Efer::LMA).bits();
                (Attributes::CODE64, Cr0::PE.union(Cr0::ET).union(Cr0::PG))
            }
        };
        let data = Segment::flat(state.data_selector, Attributes::DATA32);
        save.cr0 = cr0.bits();
        save.cs = Segment::flat(state.code_selector, code);
        (save.ss, save.ds, save.es) = (data, data, data);
        // Multiboot (3.2) wants these two flat as well, PVH a task state segment of exactly this size.
        (save.fs, save.gs) = (data, data);
        save.tr.limit = TSS_LIMIT;
        (save.gdtr.base, save.gdtr.limit) = (state.gdt_base.get(), u32::from(state.gdt_limit));
        save.rip = state.entry;
        self.flush_translations();
    }

    fn reset(&mut self) {
        self.forget();
        self.reset_extended();
        self.gprs = Gprs::default();
        self.vmcb.get_mut().reset_processor();
    }

    fn init(&mut self) {
        const KEPT: u64 = Cr0::CD.union(Cr0::NW).bits();
        self.forget();
        self.gprs = Gprs::default();
        self.extended.clear_addresses();
        let vmcb = self.vmcb.get_mut();
        let (cr0, pat) = (vmcb.save().cr0, vmcb.save().pat);
        vmcb.reset_processor();
        let save = vmcb.save_mut(Clean::all());
        save.cr0 = save.cr0 & !KEPT | cr0 & KEPT;
        save.pat = pat;
        self.flush_translations();
    }

    fn start_up(&mut self, vector: u8) {
        let vmcb = self.vmcb.get_mut();
        let save = vmcb.save_mut(Clean::SEG);
        (save.cs.selector, save.cs.base) = (u16::from(vector) << 8, u64::from(vector) << 12);
        save.rip = 0;
    }

    #[inline(always)]
    fn run(&mut self) -> VmExit {
        self.enter()
    }

    #[inline(always)]
    fn gprs(&mut self) -> &mut Gprs {
        &mut self.gprs
    }

    #[inline(always)]
    fn read(&self, register: Register) -> u64 {
        let save = self.vmcb.get().save();
        match register {
            Register::Rip => save.rip,
            Register::Rflags => save.rflags,
            Register::Cr0 => save.cr0,
            Register::Cr2 => save.cr2,
            Register::Cr3 => save.cr3,
            Register::Cr4 => save.cr4,
            Register::Efer => Efer::from_bits_retain(save.efer).difference(Efer::SVME).bits(),
            Register::Pat => save.pat,
            Register::TscAux => self.extended.tsc_aux(),
            Register::Xcr0 => self.extended.read_xcr0(),
        }
    }

    fn write(&mut self, register: Register, value: u64) {
        let vmcb = self.vmcb.get_mut();
        match register {
            Register::Rip => vmcb.save_mut(Clean::empty()).rip = value,
            Register::Rflags => vmcb.save_mut(Clean::empty()).rflags = value,
            Register::Cr0 => vmcb.save_mut(Clean::CRX).cr0 = value,
            Register::Cr2 => vmcb.save_mut(Clean::CR2).cr2 = value,
            Register::Cr3 => vmcb.save_mut(Clean::CRX).cr3 = value,
            Register::Cr4 => vmcb.save_mut(Clean::CRX).cr4 = value,
            // VMRUN refuses a guest without SVME, and every SVM instruction exits.
            Register::Efer => {
                vmcb.save_mut(Clean::CRX).efer = Efer::from_bits_retain(value).union(Efer::SVME).bits();
            }
            Register::Pat => vmcb.save_mut(Clean::NP).pat = value,
            Register::TscAux => self.extended.write_tsc_aux(value),
            Register::Xcr0 => self.extended.write_xcr0(value),
        }
    }

    #[inline(always)]
    fn segment(&self, name: SegmentName) -> Segment {
        self.vmcb.get().segment(name)
    }

    #[inline(always)]
    fn privilege(&self) -> u8 {
        self.vmcb.get().privilege()
    }

    #[inline(always)]
    fn instruction_length(&self) -> Option<InstructionLength> {
        svm::instruction_length(self.vmcb.get(), self.features.contains(SvmFeatures::NRIP_SAVE))
    }

    #[inline(always)]
    fn skip_instruction(&mut self, length: InstructionLength) {
        let is_stepped = self.vmcb.get_mut().skip(length);
        self.end_shadow();
        if is_stepped {
            self.inject(Event::Exception { vector: Vector::DB, error_code: 0 });
        }
    }

    #[inline(always)]
    fn interrupted_event(&self) -> Option<Event> {
        svm::pending_event(self.vmcb.get())
    }

    fn readiness(&self) -> Readiness {
        let vmcb = self.vmcb.get();
        if vmcb.control.is_injecting() {
            Readiness::Busy
        } else if !Rflags::from_bits_retain(vmcb.save().rflags).contains(Rflags::IF) {
            Readiness::Masked
        } else if Self::is_shadowed(vmcb) {
            Readiness::Shadowed
        } else {
            Readiness::Ready
        }
    }

    fn accepts_nmi(&self) -> bool {
        self.is_open_for_nmi()
    }

    fn inject(&mut self, event: Event) {
        self.end_watch();
        self.end_shadow();
        if event == Event::Nmi {
            self.begin_nmi();
        }
        self.vmcb.get_mut().control.inject(event);
    }

    fn request_interrupt_window(&mut self) {
        self.begin_watch();
    }

    fn flush(&mut self) {
        self.flush_translations();
    }

    fn dump(&self, log: &mut dyn Write) -> FmtResult {
        let vmcb = self.vmcb.get();
        let (control, save) = (&vmcb.control, vmcb.save());
        writeln!(
            log,
            "svm: exit code={:#x} info1={:#x} info2={:#x} event={:?}",
            control.exit_code().0,
            control.exit_info1(),
            control.exit_info2(),
            control.interrupted_event()
        )?;
        writeln!(
            log,
            "svm: rip={:#x} rsp={:#x} rflags={:#x} cr0={:#x} cr2={:#x} cr3={:#x} cr4={:#x} efer={:#x} cs={:#x}",
            save.rip,
            save.rsp,
            save.rflags,
            save.cr0,
            save.cr2,
            save.cr3,
            save.cr4,
            save.efer,
            save.cs.attributes
        )
    }
}
