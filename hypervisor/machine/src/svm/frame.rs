//! A control block in a frame of its own.
#![expect(unsafe_code, reason = "a control block is reached by pointer, because the processor writes it too")]
// UNSAFETY: the frame comes fresh from the region and is never given back, so the owner is its only user.

use core::ptr::NonNull;

use dolmen_arch::svm::Vmcb;
use dolmen_memory::Hpa;

use crate::region::{Region, to_usize};

/// Owner of one VMCB. The processor reads and writes the frame only while [`super::switch::enter`] runs, to
/// which the owner lends itself mutably, so no reference is alive then.
#[derive(Debug)]
pub(super) struct VmcbFrame {
    at: NonNull<Vmcb>,
    physical: Hpa,
}

// SAFETY: the owner is the frame's only user, wherever it is; the processor's own copy of a VMCB that moves is
// dropped by clearing its clean bits (APM vol. 2, 15.15.1).
unsafe impl Send for VmcbFrame {}

impl VmcbFrame {
    /// A VMCB of zeroes, or `None` when the region is used up.
    pub(super) fn allocate(region: &mut Region) -> Option<Self> {
        let physical = region.allocate()?.base();
        let virtual_address = to_usize(region.virtual_of(physical));
        let at = NonNull::new(core::ptr::with_exposed_provenance_mut::<Vmcb>(virtual_address))?;
        Some(Self { at, physical })
    }

    /// Where the processor finds it.
    pub(super) const fn physical(&self) -> Hpa {
        self.physical
    }

    /// The control block.
    pub(super) const fn get(&self) -> &Vmcb {
        // SAFETY: the frame is page-aligned, mapped for good and zeroed at allocation, zero being a valid
        // `Vmcb`; nobody else has it, and the processor writes it only under `&mut self`.
        unsafe { self.at.as_ref() }
    }

    /// The control block, to be changed.
    pub(super) const fn get_mut(&mut self) -> &mut Vmcb {
        // SAFETY: as for `get`; `&mut self` makes this the only reference.
        unsafe { self.at.as_mut() }
    }
}
