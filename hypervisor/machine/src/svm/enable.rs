//! Turning SVM on.
#![expect(unsafe_code, reason = "EFER and the SVM registers are MSRs")]
// UNSAFETY: each MSR is one that CPUID's SVM bit promises; values are checked before they are written.

use dolmen_arch::msr;
use dolmen_arch::register::Efer;
use dolmen_arch::svm::permission::{IO_MAP_BYTES, MSR_MAP_BYTES, MsrAccess, msr_bit};
use dolmen_arch::svm::{Asids, SvmCapabilities, SvmFeatures};
use dolmen_memory::{Hfn, Hpa, Npt};
use dolmen_vm::policy::DIRECT_MSRS;

use super::frame::VmcbFrame;
use super::processor::SvmCpu;
use super::switch;
use super::vcpu::Svm;
use crate::cpu::ThisCpu;
use crate::cpus::StartSlot;
use crate::extended::{Extended, Features};
use crate::extension::{Extension, ExtensionError};
use crate::interrupt::Gate;
use crate::permission;
use crate::region::Region;
use crate::register as msr_access;

/// Why SVM cannot be used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SvmError {
    /// CPUID does not report SVM.
    Absent,
    /// Firmware switched SVM off and locked it (VM_CR.SVMDIS).
    Disabled,
    /// CPUID does not report nested paging.
    NoNestedPaging,
    /// Fewer than two address-space identifiers: none is left for a guest.
    NoAsid,
    /// A processor lacks something that the first one has.
    Unlike,
    /// The region has no frame left.
    OutOfFrames,
}

/// What the processors share: one for the machine.
#[derive(Debug)]
pub struct SvmHost {
    capabilities: SvmCapabilities,
    extended: Features,
    io_map: Hpa,
    msr_map: Hfn,
}

/// Memory of one processor's own.
#[derive(Debug)]
pub struct CpuFrames {
    save: Hfn,
    host: VmcbFrame,
}

const VM_CR_SVMDIS: u64 = 1 << 4;

static STARTING: StartSlot<SvmHost> = StartSlot::new();

impl Extension for SvmHost {
    type Cpu = SvmCpu;
    type Vcpu = Svm;
    type Frames = CpuFrames;
    type Tables = Npt;

    const GATE: Gate = Gate::Global;

    fn starting() -> &'static StartSlot<Self> {
        &STARTING
    }

    /// Permission maps that deny everything but the registers which the processor switches itself.
    ///
    /// # Errors
    /// [`SvmError`] for what this processor lacks.
    fn new(region: &mut Region) -> Result<Self, ExtensionError> {
        let capabilities = SvmCapabilities::detect(&ThisCpu).ok_or(SvmError::Absent)?;
        if !capabilities.features.contains(SvmFeatures::NESTED_PAGING) {
            return Err(SvmError::NoNestedPaging.into());
        }
        let io_map = permission::denied(region, IO_MAP_BYTES).ok_or(SvmError::OutOfFrames)?.base();
        let msr_map = permission::denied(region, MSR_MAP_BYTES).ok_or(SvmError::OutOfFrames)?;
        allow_switched_msrs(region, msr_map);
        Ok(Self { capabilities, extended: Features::detect(), io_map, msr_map })
    }

    /// Memory for [`Self::enable`] on one processor.
    ///
    /// # Errors
    /// [`SvmError::OutOfFrames`].
    fn frames(&self, region: &mut Region) -> Result<CpuFrames, ExtensionError> {
        let save = region.allocate().ok_or(SvmError::OutOfFrames)?;
        let host = VmcbFrame::allocate(region).ok_or(SvmError::OutOfFrames)?;
        Ok(CpuFrames { save, host })
    }

    /// Turns SVM on, on this processor.
    ///
    /// # Errors
    /// [`SvmError`] for what this processor lacks, though the first one has it.
    ///
    /// # Safety
    /// Runs once on each processor, at CPL 0 with IF = 0, after the host's FS, GS, TR and LDTR are final.
    /// Interrupts stay off (GIF = 0) from now on except in the windows of `cpu`.
    unsafe fn enable(&self, frames: CpuFrames) -> Result<SvmCpu, ExtensionError> {
        let CpuFrames { save, mut host } = frames;
        let here = SvmCapabilities::detect(&ThisCpu).ok_or(SvmError::Absent)?;
        if !here.features.contains(self.capabilities.features) {
            return Err(SvmError::Unlike.into());
        }
        let asids = Asids::new(here.asids).ok_or(SvmError::NoAsid)?;
        // SAFETY: VM_CR exists where CPUID reports SVM.
        if unsafe { msr_access::read(msr::VM_CR) } & VM_CR_SVMDIS != 0 {
            return Err(SvmError::Disabled.into());
        }
        // SAFETY: EFER exists on every x86-64 processor.
        let efer = Efer::from_bits_retain(unsafe { msr_access::read(msr::EFER) });
        // SAFETY: SVM is there and not disabled, so SVME may be set; no other bit changes.
        unsafe { msr_access::write(msr::EFER, efer.union(Efer::SVME).bits()) };
        // SAFETY: the frame is ours, page-aligned and used for nothing else.
        unsafe { msr_access::write(msr::VM_HSAVE_PA, save.base().get()) };
        // SAFETY: SVME was just set. GIF = 0 is what the caller keeps.
        unsafe { core::arch::asm!("clgi", options(nostack, nomem, preserves_flags)) };
        // SAFETY: SVME was just set.
        unsafe { switch::save_host(&mut host) };
        self.extended.prepare();
        Ok(SvmCpu::new(host, asids))
    }

    /// Makes a virtual processor whose nested tables are rooted at `root`. It is in the state after reset; its
    /// time-stamp counter reads `tsc_offset` more than the processor's.
    ///
    /// # Errors
    /// [`SvmError::OutOfFrames`].
    fn vcpu(&self, region: &mut Region, root: Hfn, tsc_offset: u64) -> Result<Svm, ExtensionError> {
        let mut frame = VmcbFrame::allocate(region).ok_or(SvmError::OutOfFrames)?;
        let vmcb = frame.get_mut();
        vmcb.control.set_permission_maps(self.io_map, self.msr_map.base());
        vmcb.control.set_nested_root(root.base());
        vmcb.control.set_tsc_offset(tsc_offset);
        vmcb.control.virtualise_interrupt_masking();
        Ok(Svm::new(frame, self.capabilities.features, Extended::new(self.extended)))
    }
}

fn allow_switched_msrs(region: &mut Region, map: Hfn) {
    for register in DIRECT_MSRS {
        for access in [MsrAccess::Read, MsrAccess::Write] {
            if let Some(bit) = msr_bit(register, access) {
                permission::allow(region, map, bit.byte, bit.mask);
            }
        }
    }
}
