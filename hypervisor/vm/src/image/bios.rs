//! What a Multiboot guest finds of a BIOS: its data, and calls that are answered.
//!
//! "The operating system should be able to make BIOS calls and such after being loaded" (Multiboot specification
//! 0.6.96, 3.2). There is no BIOS, so a call says that there is no such function, as one does that is older
//! than its caller, where a jump into zeroes would end the guest. Kernels look for the end of conventional memory in the
//! data area.

use dolmen_memory::{Gpa, GuestMemory, OutsideRam};

use crate::board::SerialPort;
use crate::layout::{CONVENTIONAL_END, FIRMWARE_CALLS};

/// Vectors of real mode.
const VECTORS: usize = 256;
/// Interrupt that answers how many KiB of conventional memory there are.
const MEMORY_SIZE: usize = 0x12;
/// Segment of the code.
const SEGMENT: u16 = 0xf000;
/// Answers that there is no such function.
const REFUSE: [u8; 11] = [
    0x55, 0x89, 0xe5, // push bp; mov bp, sp
    0x80, 0x4e, 0x06, 0x01, // or byte [bp + 6], 1: carry, in the flags that IRET restores
    0x5d, // pop bp
    0xb4, 0x86, // mov ah, 86h
    0xcf, // iret
];
/// Where the code for [`MEMORY_SIZE`] lies.
const TELL_MEMORY: u64 = FIRMWARE_CALLS.saturating_add(0x10);

/// Words of the data area: the first serial port, the segment of the extended data area, KiB of conventional memory.
mod at {
    pub(super) const SERIAL_PORT: u64 = 0x400;
    pub(super) const EXTENDED_DATA: u64 = 0x40e;
    pub(super) const MEMORY_SIZE: u64 = 0x413;
}

/// Writes vectors, code and data.
pub(super) fn write(memory: &mut impl GuestMemory) -> Result<(), OutsideRam> {
    let word = |value: u64| u16::try_from(value).map(u16::to_le_bytes).map_err(|_| OutsideRam);
    let size = word(CONVENTIONAL_END / 1024)?;
    memory.write(Gpa::new(FIRMWARE_CALLS), &REFUSE)?;
    let [low, high] = size;
    memory.write(Gpa::new(TELL_MEMORY), &[0xb8, low, high, 0xcf])?; // mov ax, KiB; iret
    let mut vectors = [[0; 4]; VECTORS];
    for (number, vector) in vectors.iter_mut().enumerate() {
        let code = if number == MEMORY_SIZE { TELL_MEMORY } else { FIRMWARE_CALLS };
        let ([offset_low, offset_high], [segment_low, segment_high]) =
            (word(code & 0xffff)?, SEGMENT.to_le_bytes());
        *vector = [offset_low, offset_high, segment_low, segment_high];
    }
    memory.write(Gpa::new(0), vectors.as_flattened())?;
    memory.write(Gpa::new(at::SERIAL_PORT), &SerialPort::Com1.port().to_le_bytes())?;
    memory.write(Gpa::new(at::EXTENDED_DATA), &word(CONVENTIONAL_END / 16)?)?;
    memory.write(Gpa::new(at::MEMORY_SIZE), &size)?;
    // The extended data area begins with its own size in KiB.
    memory.write(Gpa::new(CONVENTIONAL_END), &[1])
}
