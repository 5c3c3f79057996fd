//! What the loader tells: PVH's start information, or Multiboot's.

use crate::cpu;

/// First word of PVH's start information.
pub(crate) const PVH: u32 = 0x336e_c578;
/// What EAX holds at a Multiboot kernel's entry.
pub(crate) const MULTIBOOT: u32 = 0x2bad_b002;
/// Where PVH's start information holds the address of the command line.
const PVH_COMMAND_LINE: u64 = 24;
/// Where Multiboot's holds it.
const MULTIBOOT_COMMAND_LINE: u64 = 16;

unsafe extern "C" {
    /// EAX, EBX, CR0, CR4, EFLAGS, CS, SS, DS, ES, FS and GS at entry, then what GS could write.
    static __guest_entered: [u32; 12];
}

/// The registers at entry.
pub(crate) fn entered() -> [u32; 12] {
    // SAFETY: the entry code wrote the array before any Rust ran, and nothing does later.
    unsafe { core::ptr::addr_of!(__guest_entered).read_volatile() }
}

/// The command line, as far as it fits.
pub(crate) fn command_line(start: u64, into: &mut [u8]) -> &[u8] {
    let [eax, ..] = entered();
    let at = if eax == MULTIBOOT {
        start + MULTIBOOT_COMMAND_LINE
    } else if cpu::read32(start) == PVH {
        start + PVH_COMMAND_LINE
    } else {
        return &[];
    };
    text(u64::from(cpu::read32(at)), into)
}

/// The text at an address, up to its final zero, as far as it fits.
pub(crate) fn text(at: u64, into: &mut [u8]) -> &[u8] {
    let mut length = 0;
    while at != 0 && length < into.len() {
        let byte = cpu::read32(at + length as u64) as u8;
        if byte == 0 {
            break;
        }
        into[length] = byte;
        length += 1;
    }
    &into[..length]
}
