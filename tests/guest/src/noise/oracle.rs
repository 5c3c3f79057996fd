//! Instructions on device memory against the same instructions on RAM.
//!
//! Where no device is, memory reads all ones and keeps nothing. So an instruction on a hole must leave the
//! same registers and flags as on RAM that holds all ones.

use super::random::Random;
use super::sandbox::{self, CODE, DATA, Mode, RDI, State};
use crate::say;

/// Opcodes with a ModRM byte that are emulated, and the bytes of an immediate behind: 0, 1, or by operand size.
const FORMS: &[(&[u8], u8)] = &[
    (&[0x88], 0),
    (&[0x89], 0),
    (&[0x8a], 0),
    (&[0x8b], 0),
    (&[0x86], 0),
    (&[0x87], 0),
    (&[0x84], 0),
    (&[0x85], 0),
    (&[0x00], 0),
    (&[0x09], 0),
    (&[0x11], 0),
    (&[0x19], 0),
    (&[0x21], 0),
    (&[0x29], 0),
    (&[0x30], 0),
    (&[0x39], 0),
    (&[0x03], 0),
    (&[0x0b], 0),
    (&[0x13], 0),
    (&[0x1b], 0),
    (&[0x23], 0),
    (&[0x2a], 0),
    (&[0x33], 0),
    (&[0x3b], 0),
    (&[0x80], 1),
    (&[0x81], 4),
    (&[0x83], 1),
    (&[0xc6], 1),
    (&[0xc7], 4),
    (&[0xf6], 1),
    (&[0xf7], 4),
    (&[0x0f, 0xb6], 0),
    (&[0x0f, 0xb7], 0),
    (&[0x0f, 0xbe], 0),
    (&[0x0f, 0xbf], 0),
];
/// Where no device is.
const HOLE: u64 = 0xd000_0000;
/// Flags that arithmetic sets, without AF, which it leaves undefined for some.
const FLAGS: u64 = 0x8c5;
const TRIES: u64 = 6_000;

/// Compares; a difference is printed and counts as a failure by its FAIL.
pub(super) fn compare(random: &mut Random) -> u64 {
    let tries = random.times(TRIES);
    for _ in 0..tries {
        let (code, length) = form(random);
        let mode = random.pick(&[Mode::Kernel64, Mode::Kernel64, Mode::Kernel32]);
        let mut state = mode.state(CODE);
        for register in &mut state.registers {
            *register = random.value();
        }
        state.rflags |= random.next() & FLAGS;
        sandbox::write_code(CODE, &code[..length]);
        let offset = random.below(0xff0);
        sandbox::write64(DATA + offset, u64::MAX);
        let in_ram = at(&state, DATA + offset);
        let in_hole = at(&state, HOLE + offset);
        if in_ram != in_hole {
            say!("{:x?} {mode:?} {state:x?} ram {in_ram:x?} hole {in_hole:x?}", &code[..length]);
            super::fail("an instruction does something else on device memory than on RAM");
            break;
        }
    }
    tries
}

fn form(random: &mut Random) -> ([u8; 15], usize) {
    let mut code = [0; 15];
    code.fill_with(|| random.byte());
    let mut length = 0;
    for prefix in [0x66, 0x3e] {
        if random.one_in(3) {
            code[length] = prefix;
            length += 1;
        }
    }
    if random.one_in(2) {
        code[length] = 0x40 | random.pick(&[0, 4, 8, 12, 2, 6, 10, 14]);
        length += 1;
    }
    let (opcode, immediate) = random.pick(FORMS);
    for byte in opcode {
        code[length] = *byte;
        length += 1;
    }
    // Of C6, C7, F6 and F7 the first operation; and no other operand in RDI, which is not the same in both runs.
    let operation = if opcode[0] >= 0xc0 { 0 } else { random.below(7) as u8 };
    code[length] = operation << 3 | 7;
    (code, length + 1 + usize::from(immediate))
}

/// One step with RDI at `place`; RDI and what does not belong to the instruction are blanked.
fn at(state: &State, place: u64) -> (u64, State) {
    let mut state = *state;
    state.registers[RDI] = place;
    let end = sandbox::run(&state, 1);
    let mut last = sandbox::last();
    if last.registers[RDI] == place {
        last.registers[RDI] = 0;
    }
    last.rflags &= FLAGS;
    (end, last)
}
