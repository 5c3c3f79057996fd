//! What the loader tells: PVH's start information.

use crate::cpu;

/// First word of PVH's start information.
const MAGIC: u32 = 0x336e_c578;
/// Where it holds the address of the command line.
const COMMAND_LINE: u64 = 24;

/// The command line, as far as it fits.
pub(crate) fn command_line(start: u64, into: &mut [u8]) -> &[u8] {
    if cpu::read32(start) != MAGIC {
        return &[];
    }
    let at = u64::from(cpu::read32(start + COMMAND_LINE));
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
