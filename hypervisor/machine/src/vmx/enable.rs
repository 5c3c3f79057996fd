//! Turning VMX on.
#![expect(unsafe_code, reason = "CR4, VMXON and the VMX registers")]
// UNSAFETY: each MSR is one that CPUID's VMX bit promises; values are checked before they are written.

use core::arch::asm;
use core::fmt;
use core::sync::atomic::{AtomicU16, Ordering};

use dolmen_arch::msr;
use dolmen_arch::register::{Cr0, Cr4};
use dolmen_arch::vmx::field::guest;
use dolmen_arch::vmx::permission::{MSR_MAP_BYTES, MsrAccess, msr_bit};
use dolmen_arch::vmx::{self, Capabilities, Controls, Fields, Lack, MsrSource, feature_control, intercept};
use dolmen_memory::{Ept, Hfn};
use dolmen_vm::policy::DIRECT_MSRS;

use super::frame::VmcsFrame;
use super::processor::{self, VmxCpu};
use super::vcpu::Vmx;
use crate::cpu::{self, ThisCpu};
use crate::cpus::StartSlot;
use crate::extended::{Extended, Features};
use crate::extension::{Extension, ExtensionError};
use crate::interrupt::Gate;
use crate::permission;
use crate::region::Region;
use crate::register;

/// Why VMX cannot be used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmxError {
    /// Something is missing.
    Lacks(Lack),
    /// VMXON failed, or the processor does not take invalidations.
    Refused,
    /// A processor lacks something that the first one has.
    Unlike,
    /// More virtual processors than there are identifiers.
    NoVpid,
    /// The region has no frame left.
    OutOfFrames,
}

impl From<Lack> for VmxError {
    fn from(lack: Lack) -> Self {
        Self::Lacks(lack)
    }
}

impl From<Lack> for ExtensionError {
    fn from(lack: Lack) -> Self {
        Self::Vmx(lack.into())
    }
}

impl fmt::Display for VmxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lack = match self {
            Self::Lacks(lack) => lack,
            Self::Refused => return f.write_str("VMXON failed"),
            Self::Unlike => return f.write_str("a processor lacks something that the first one has"),
            Self::NoVpid => return f.write_str("more virtual processors than identifiers"),
            Self::OutOfFrames => return f.write_str("no memory is left"),
        };
        match lack {
            Lack::Vmx => f.write_str("the processor has no VMX (VT-x)"),
            Lack::Enabled => {
                f.write_str("firmware has switched VMX off and locked it; enable VT-x in its set-up")
            }
            Lack::TrueControls => f.write_str("the processor has no capability registers of true controls"),
            Lack::SecondaryControls => f.write_str("the processor has no secondary controls"),
            Lack::Ept => f.write_str("the processor has no extended page tables (EPT)"),
            Lack::UnrestrictedGuest => f.write_str("the processor has no unrestricted guest"),
            Lack::Vpid => f.write_str("the processor has no VPID"),
            Lack::EptParts => f.write_str("EPT without four levels, write-back, 2 MiB pages or INVEPT"),
            Lack::VpidParts => f.write_str("VPID without INVVPID"),
            Lack::Control(register, bits) => {
                write!(f, "the processor lacks controls {bits:#x} of capability register {register:#x}")
            }
        }
    }
}

/// The capability registers of the processor this runs on.
struct OwnRegisters;

impl MsrSource for OwnRegisters {
    fn msr(&self, msr: u32) -> u64 {
        // SAFETY: `Capabilities::detect` asks for registers that CPUID's VMX bit or an earlier register promises.
        unsafe { register::read(msr) }
    }
}

/// What the processors share: one for the machine.
#[derive(Debug)]
pub struct VmxHost {
    capabilities: Capabilities,
    controls: Controls,
    extended: Features,
    msr_map: Hfn,
    /// The last identifier that was handed out; 0 is the host's.
    last_vpid: AtomicU16,
}

/// Memory of one processor's own.
#[derive(Debug)]
pub struct CpuFrames {
    vmxon: Hfn,
}

static STARTING: StartSlot<VmxHost> = StartSlot::new();

impl Extension for VmxHost {
    type Cpu = VmxCpu;
    type Vcpu = Vmx;
    type Frames = CpuFrames;
    type Tables = Ept;

    const GATE: Gate = Gate::Flag;

    fn starting() -> &'static StartSlot<Self> {
        &STARTING
    }

    /// A bitmap that denies everything but the registers which stay with the guest.
    fn new(region: &mut Region) -> Result<Self, ExtensionError> {
        let capabilities = Capabilities::detect(&ThisCpu, &OwnRegisters)?;
        let controls = Controls::guest(&capabilities)?;
        let msr_map = permission::denied(region, MSR_MAP_BYTES).ok_or(VmxError::OutOfFrames)?;
        allow_switched_msrs(region, msr_map);
        let last_vpid = AtomicU16::new(0);
        Ok(Self { capabilities, controls, extended: Features::detect(), msr_map, last_vpid })
    }

    fn frames(&self, region: &mut Region) -> Result<CpuFrames, ExtensionError> {
        let vmxon = region.allocate().ok_or(VmxError::OutOfFrames)?;
        region.write(vmxon, 0, self.capabilities.revision.into());
        Ok(CpuFrames { vmxon })
    }

    unsafe fn enable(&self, frames: CpuFrames) -> Result<VmxCpu, ExtensionError> {
        let here = Capabilities::detect(&ThisCpu, &OwnRegisters)?;
        if here != self.capabilities {
            return Err(VmxError::Unlike.into());
        }
        open_feature_control();
        end_trace();
        let cr0 = here.host_cr0(Cr0::from_bits_retain(cpu::read_cr0()));
        // SAFETY: paging and protection are on and stay so; NE only says how x87 errors are told.
        unsafe { cpu::write_cr0(cr0.bits()) };
        let cr4 = here.host_cr4(Cr4::from_bits_retain(cpu::read_cr4()));
        // SAFETY: the processor reports which bits it has; VMXE is what its VMX bit promises.
        unsafe { cpu::write_cr4(cr4.bits()) };
        // SAFETY: the frame is ours, begins with the revision and is used for nothing else; CR0, CR4 and
        // IA32_FEATURE_CONTROL are as VMXON wants them.
        if !unsafe { vmxon(frames.vmxon) } || !processor::invalidate_all() {
            return Err(VmxError::Refused.into());
        }
        self.extended.prepare();
        Ok(VmxCpu::new())
    }

    fn vcpu(&self, region: &mut Region, root: Hfn, tsc_offset: u64) -> Result<Vmx, ExtensionError> {
        let mut vmcs =
            VmcsFrame::allocate(region, self.capabilities.revision).ok_or(VmxError::OutOfFrames)?;
        let vpid = self.last_vpid.load(Ordering::Relaxed).checked_add(1).ok_or(VmxError::NoVpid)?;
        self.last_vpid.store(vpid, Ordering::Relaxed);
        let pointer = processor::ept_pointer(root);
        vmcs.write(guest::VPID, vpid);
        vmcs.write(guest::EPT_POINTER, pointer);
        vmcs.write(guest::MSR_BITMAPS, self.msr_map.base().get());
        vmcs.write(guest::TSC_OFFSET, tsc_offset);
        vmcs.write(guest::PIN_CONTROLS, self.controls.pin.bits());
        vmcs.write(guest::PRIMARY_CONTROLS, self.controls.primary.bits());
        vmcs.write(guest::SECONDARY_CONTROLS, self.controls.secondary.bits());
        vmcs.write(guest::EXIT_CONTROLS, self.controls.exit.bits());
        vmcs.write(guest::ENTRY_CONTROLS, self.controls.entry.bits());
        vmcs.write(guest::EXCEPTIONS, intercept::EXCEPTIONS);
        Ok(Vmx::new(vmcs, (vpid, pointer), self.capabilities, Extended::new(self.extended)))
    }
}

/// Allows VMXON where firmware has left that open, and closes the register.
fn open_feature_control() {
    use feature_control::{LOCKED, VMX_OUTSIDE_SMX};
    // SAFETY: CPUID reports VMX, and with it this register.
    let now = unsafe { register::read(msr::FEATURE_CONTROL) };
    if now & LOCKED == 0 {
        // SAFETY: not locked, so it may be written; what it enables is what we use.
        unsafe { register::write(msr::FEATURE_CONTROL, now | LOCKED | VMX_OUTSIDE_SMX) };
    }
}

/// Ends a trace that firmware or a loader began (SDM vol. 3C, 33.2.7.2): it would go on in root operation, and write
/// where they chose. Before VMXON, behind which some processors refuse the register.
fn end_trace() {
    if vmx::has_trace(&ThisCpu) {
        // SAFETY: the processor has the register; zero switches off and is always allowed.
        unsafe { register::write(msr::TRACE_CONTROL, 0) };
    }
}

/// # Safety
/// As VMXON demands (SDM vol. 3C, 31.3): CR0 and CR4 fit, VMX is allowed and not on yet; `frame` begins with the
/// revision and belongs to this processor from now on.
unsafe fn vmxon(frame: Hfn) -> bool {
    let at = frame.base().get();
    let failed: u8;
    // SAFETY: by the caller's promise.
    unsafe {
        asm!("vmxon [{at}]", "setna {failed}", at = in(reg) &raw const at, failed = out(reg_byte) failed,
             options(nostack));
    }
    failed == 0
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
