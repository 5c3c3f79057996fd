//! A control structure in a frame of its own.
#![expect(unsafe_code, reason = "VMCLEAR, VMPTRLD, VMREAD and VMWRITE")]
// UNSAFETY: the frame comes fresh from the region and is never given back, so the owner is its only user; the fields
// are reached by instructions, and only while the structure is current.

use core::arch::asm;

use dolmen_arch::vmx::field::{Access, Field, Width, host};
use dolmen_arch::vmx::{Fields, Image};
use dolmen_memory::Hpa;

use crate::region::Region;

/// Owner of one VMCS: current on the processor that holds the owner between [`Self::load`] and [`Self::save`], and an
/// image in memory otherwise.
#[derive(Debug)]
pub(super) struct VmcsFrame {
    physical: Hpa,
    image: Image,
    is_current: bool,
    /// VMLAUNCH is behind it, so VMRESUME is what enters.
    pub(super) is_launched: bool,
    /// The processor did not take a field, a pointer or an instruction: nothing is to be entered with this.
    pub(super) is_broken: bool,
}

/// What an instruction of VMX says of itself (SDM vol. 3C, 31.2).
const fn succeeded(failed: u8) -> bool {
    failed == 0
}

impl VmcsFrame {
    /// A structure of zeroes for processors of this revision, or `None` when the region is used up.
    pub(super) fn allocate(region: &mut Region, revision: u32) -> Option<Self> {
        let frame = region.allocate()?;
        region.write(frame, 0, revision.into());
        let physical = frame.base();
        Some(Self { physical, image: Image::ZEROES, is_current: false, is_launched: false, is_broken: false })
    }

    /// What tells it from all others.
    pub(super) const fn physical(&self) -> Hpa {
        self.physical
    }

    /// Makes it current on this processor, which has VMX on, with what the image holds. `host` sets the host's fields.
    pub(super) fn load(&mut self, host: impl FnOnce(&mut HostFields)) {
        // VMCLEAR first: it initialises what the processor keeps besides, and the state "clear" is what VMLAUNCH wants.
        self.is_broken = !(clear(self.physical) && make_current(self.physical));
        self.is_launched = false;
        self.is_current = true;
        let mut fields = HostFields { is_broken: self.is_broken };
        host(&mut fields);
        for (encoding, value) in self.image.iter() {
            fields.is_broken |= !write(encoding, value);
        }
        self.is_broken = fields.is_broken;
    }

    /// Takes all that it holds into memory; another processor may load it.
    pub(super) fn save(&mut self) {
        if !self.is_current {
            return;
        }
        self.image.fill(read);
        self.is_current = false;
        self.is_broken |= !clear(self.physical);
    }

    /// A field that only the processor writes, of the last exit.
    pub(super) fn exit<W: Width, A: Access>(&self, field: Field<W, A>) -> W::Value {
        W::narrow(if self.is_current { read(field.encoding()) } else { 0 })
    }
}

impl Fields for VmcsFrame {
    fn read_raw(&self, encoding: u32) -> u64 {
        if self.is_current { read(encoding) } else { self.image.read_raw(encoding) }
    }

    fn write_raw(&mut self, encoding: u32, value: u64) {
        if self.is_current {
            self.is_broken |= !write(encoding, value);
        } else {
            self.image.write_raw(encoding, value);
        }
    }
}

/// The host's fields of the structure that is being loaded.
#[derive(Debug)]
pub(super) struct HostFields {
    is_broken: bool,
}

impl HostFields {
    /// Sets one.
    pub(super) fn set<W: Width>(&mut self, field: Field<W>, value: W::Value) {
        self.is_broken |= !write(field.encoding(), W::widen(value));
    }
}

/// The encoding of the host's stack pointer, which the world switch writes itself.
pub(super) const HOST_RSP: u32 = host::RSP.encoding();

fn clear(structure: Hpa) -> bool {
    let at = structure.get();
    let failed: u8;
    // SAFETY: VMX is on where a structure is loaded or saved; the operand names a frame that holds nothing but this
    // structure, to which the processor may write back what it has cached.
    unsafe {
        asm!("vmclear [{at}]", "setna {failed}", at = in(reg) &raw const at, failed = out(reg_byte) failed,
             options(nostack));
    }
    succeeded(failed)
}

fn make_current(structure: Hpa) -> bool {
    let at = structure.get();
    let failed: u8;
    // SAFETY: as in `clear`; the frame begins with the processor's revision.
    unsafe {
        asm!("vmptrld [{at}]", "setna {failed}", at = in(reg) &raw const at, failed = out(reg_byte) failed,
             options(nostack));
    }
    succeeded(failed)
}

/// A field of the current structure; 0 for one that the processor does not have.
fn read(encoding: u32) -> u64 {
    let value: u64;
    // SAFETY: VMX is on where a structure is current; the instruction writes its operand and flags.
    unsafe {
        asm!("vmread {value}, {field}", "jnbe 2f", "xor {value:e}, {value:e}", "2:",
             field = in(reg) u64::from(encoding), value = out(reg) value, options(nostack, nomem));
    }
    value
}

/// Sets a field of the current structure; whether the processor has it.
fn write(encoding: u32, value: u64) -> bool {
    let failed: u8;
    // SAFETY: as in `read`; what a field means is the matter of the entry, which the processor checks. The host's
    // fields are set by `processor` alone.
    unsafe {
        asm!("vmwrite {field}, {value}", "setna {failed}", field = in(reg) u64::from(encoding), value = in(reg) value,
             failed = out(reg_byte) failed, options(nostack));
    }
    succeeded(failed)
}
