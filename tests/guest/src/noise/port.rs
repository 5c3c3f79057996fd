//! Ports: every one in every width, and string instructions with every kind of memory.

use super::random::Random;
use super::sandbox::{self, CODE, DATA, Mode, RCX, RDI, RDX, RSI};
use crate::attempt;

/// Whether a write of four bytes from here reaches the console, or a port that ends the guest.
fn is_left_alone(port: u16) -> bool {
    let reaches = |first: u16, last: u16| port.saturating_add(3) >= first && port <= last;
    reaches(0x3f8, 0x3ff)
        || reaches(0x600, 0x601)
        || reaches(0xcf9, 0xcf9)
        || reaches(0x92, 0x92)
        || reaches(0x64, 0x64)
}

/// Each port, read and written as byte, word and double word.
pub(super) fn every(random: &mut Random) -> u64 {
    let mut tries = 0;
    for port in (0..=u16::MAX).step_by(random.stride()) {
        let value = random.value() as u32;
        attempt!("in al, dx", in("dx") port, out("eax") _);
        attempt!("in ax, dx", in("dx") port, out("eax") _);
        attempt!("in eax, dx", in("dx") port, out("eax") _);
        tries += 3;
        if is_left_alone(port) {
            continue;
        }
        attempt!("out dx, al", in("dx") port, in("eax") value);
        attempt!("out dx, ax", in("dx") port, in("eax") value);
        attempt!("out dx, eax", in("dx") port, in("eax") value);
        tries += 3;
    }
    tries
}

/// INS and OUTS in all sizes, modes and directions, from and to RAM, pages that end, devices and nowhere.
pub(super) fn strings(random: &mut Random) -> u64 {
    let mut tries = 0;
    super::storm::start_ticking();
    for _ in 0..random.times(4_000) {
        let mode = random.pick(&[
            Mode::Kernel64,
            Mode::Kernel64,
            Mode::Kernel32,
            Mode::Kernel16,
            Mode::User64,
            Mode::User16,
        ]);
        let mut code = [0u8; 8];
        let mut length = 0;
        for prefix in [0xf3, 0x66, 0x67, random.pick(&[0xf2, 0x64, 0x65, 0x2e, 0x36, 0x26])] {
            if random.one_in(2) {
                code[length] = prefix;
                length += 1;
            }
        }
        code[length] = random.pick(&[0x6c, 0x6d, 0x6e, 0x6f]);
        sandbox::write_code(CODE, &code[..=length]);
        let mut state = mode.state(CODE);
        state.registers[RDX] = u64::from(random.pick(&[0x80u16, 0x21, 0x71, 0xcfc, 0x402, 0x3ff, 0x60]));
        state.registers[RCX] = random.pick(&[0, 1, 3, 255, 256, 257, 5000, u64::MAX]);
        state.registers[RDI] = place(random);
        state.registers[RSI] = place(random);
        state.rflags |= if random.one_in(3) { 0x400 } else { 0 };
        sandbox::run(&state, u64::from(random.one_in(2)));
        tries += 1;
    }
    super::storm::stop_ticking();
    tries
}

/// Addresses in RAM, at ends of pages and of RAM, in devices and nowhere.
fn place(random: &mut Random) -> u64 {
    let at = random.pick(&[
        DATA + 0x2000,
        DATA + 0x20_0000 - 2,
        CODE + 0xffe,
        sandbox::RAM_END,
        (sandbox::RAM_END) - 3,
        0xd000_0000,
        0xfec0_0010,
        0xfee0_0080,
        0xfed4_0000,
        0xfed8_0000,
        0xffff_fffe,
        0x7fff_ffff_fffe,
        0x8000_0000_0000,
        u64::MAX - 1,
    ]);
    at.wrapping_add(random.below(4))
}
