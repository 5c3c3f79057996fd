//! What the core needs of a vendor's virtualisation extension.
//!
//! `SvmHost` and `VmxHost` offer it. Which of them is meant is decided once, by [`Vendor`]; everything that guests run
//! through is then code for that vendor alone.
//!
//! [`Vendor`]: dolmen_arch::cpuid::Vendor
#![expect(unsafe_code, reason = "turning an extension on is the processor's matter")]
// UNSAFETY: one declaration; the implementations say why they are sound.

use core::fmt;

use dolmen_memory::{EntryFormat, Hfn};
use dolmen_vm::backend::Backend;

use crate::cpus::StartSlot;
use crate::interrupt::Gate;
use crate::region::Region;
use crate::svm::SvmError;
use crate::vmx::VmxError;

/// Why this machine's processors cannot run guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtensionError {
    /// AMD's extension.
    Svm(SvmError),
    /// Intel's.
    Vmx(VmxError),
}

impl From<SvmError> for ExtensionError {
    fn from(error: SvmError) -> Self {
        Self::Svm(error)
    }
}

impl From<VmxError> for ExtensionError {
    fn from(error: VmxError) -> Self {
        Self::Vmx(error)
    }
}

impl fmt::Display for ExtensionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Svm(error) => write!(f, "SVM: {error:?}"),
            Self::Vmx(error) => write!(f, "VMX: {error}"),
        }
    }
}

/// An extension: what the processors share, one for the machine.
pub trait Extension: Sized + Sync + 'static {
    /// A processor on which it is on.
    type Cpu: HostCpu<Vcpu = Self::Vcpu>;
    /// A virtual processor.
    type Vcpu: Backend + Send;
    /// Memory of one processor's own.
    type Frames: Send;
    /// The format of nested tables.
    type Tables: EntryFormat + Send + Sync;

    /// How physical interrupts are held off.
    const GATE: Gate;

    /// What is passed to a processor that starts.
    fn starting() -> &'static StartSlot<Self>;

    /// Finds out what this processor has.
    ///
    /// # Errors
    /// What it lacks.
    fn new(region: &mut Region) -> Result<Self, ExtensionError>;

    /// Memory for [`Self::enable`] on one processor.
    ///
    /// # Errors
    /// The region is used up.
    fn frames(&self, region: &mut Region) -> Result<Self::Frames, ExtensionError>;

    /// Turns the extension on, on this processor.
    ///
    /// # Errors
    /// What this processor lacks, though the first one has it.
    ///
    /// # Safety
    /// Runs once on each processor, at CPL 0 with IF = 0, after the host's segments and tables are final. Interrupts
    /// stay off, by whatever [`Self::GATE`] names, except in the windows of `interrupt`.
    unsafe fn enable(&self, frames: Self::Frames) -> Result<Self::Cpu, ExtensionError>;

    /// Makes a virtual processor whose nested tables are rooted at `root`. It is in the state after reset; its
    /// time-stamp counter reads `tsc_offset` more than the processor's.
    ///
    /// # Errors
    /// The region, or what tells virtual processors apart, is used up.
    fn vcpu(&self, region: &mut Region, root: Hfn, tsc_offset: u64) -> Result<Self::Vcpu, ExtensionError>;
}

/// A processor on which the extension is on. It loads a virtual processor before that runs here, and saves it before it
/// may run elsewhere.
pub trait HostCpu {
    /// What it runs.
    type Vcpu;

    /// Lets `vcpu` run on this processor, which holds none.
    fn load(&mut self, vcpu: &mut Self::Vcpu);

    /// Takes `vcpu` off this processor.
    fn save(&mut self, vcpu: &mut Self::Vcpu);
}
