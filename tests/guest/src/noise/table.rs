//! Page tables rewritten while they are used.

use super::random::Random;
use super::sandbox::{self, CODE, DATA, Mode, RCX, RDI, RDX, ROOT, RSI};

/// Tables for a range of their own, behind slot 1 of the root.
const POINTERS: u64 = 0x180_0000;
const DIRECTORY: u64 = POINTERS + 0x1000;
const LEAVES: u64 = POINTERS + 0x2000;
const RANGE: u64 = 1 << 39;
const TRIES: u64 = 20_000;

/// Tables that are not there, refer to themselves or have reserved bits, and leaves of RAM.
pub(super) fn leaves(random: &mut Random) -> u64 {
    let table = |random: &mut Random| {
        let reserved = if random.one_in(4) { random.next() & 0x000f_ff00_0000_0000 } else { 0 };
        let present = u64::from(!random.one_in(4));
        random.pick(&[POINTERS, DIRECTORY, LEAVES, ROOT]) | flags(random) | reserved | present
    };
    let leaf = |random: &mut Random| random.pick(&[DATA, CODE]) | flags(random) | 1;
    // Leaves end up as tables, too: what other noise has left there must not lead out of RAM.
    (DATA..DATA + 0x1000).step_by(8).for_each(|at| sandbox::write64(at, 0));
    rewrite(random, leaf, table, &CODES[..4])
}

/// Tables and leaves anywhere: the guest may be stopped for it.
pub(super) fn outside(random: &mut Random) -> u64 {
    let leaf = |random: &mut Random| {
        let page =
            random.pick(&[DATA, CODE, LEAVES, 0x4_0000_0000, 0xd000_0000, 0xfed4_0000, 0xff_ffff_f000]);
        page | flags(random) | 1
    };
    rewrite(random, leaf, |random| random.next() & 0xff_ffff_ff7f | 1, &CODES)
}

/// Accessed, dirty, user, cached or not, large, executable: whatever. Not present is somebody else's matter.
const fn flags(random: &mut Random) -> u64 {
    random.next() & 0x8000_0000_0000_0f7e
}

/// mov eax, \[rdi\]; rep outsb; invlpg \[rdi\]; mov cr3, cr3 and mov eax, \[rdi\]; rep insb; jmp rdi.
const CODES: [&[u8]; 6] = [
    &[0x8b, 0x07],
    &[0xf3, 0x6e],
    &[0x0f, 0x01, 0x3f],
    &[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, 0x8b, 0x07],
    &[0xf3, 0x6c],
    &[0xff, 0xe7],
];

fn rewrite(
    random: &mut Random,
    leaf: impl Fn(&mut Random) -> u64,
    table: impl Fn(&mut Random) -> u64,
    codes: &[&[u8]],
) -> u64 {
    super::storm::start_ticking();
    let tries = random.times(TRIES);
    for _ in 0..tries {
        sandbox::write64(ROOT + 8, POINTERS | 7);
        sandbox::write64(POINTERS, DIRECTORY | 7);
        sandbox::write64(DIRECTORY, LEAVES | 7);
        sandbox::write64(LEAVES, DATA | 7);
        sandbox::write64(LEAVES + 8, leaf(random));
        match random.below(8) {
            0 => sandbox::write64(ROOT + 8, table(random)),
            1 => sandbox::write64(POINTERS, table(random)),
            2 => sandbox::write64(DIRECTORY, table(random)),
            3 => sandbox::write64(LEAVES, leaf(random)),
            _ => {}
        }
        let code = random.pick(codes);
        use_it(random, code);
    }
    sandbox::write64(ROOT + 8, 0);
    super::storm::stop_ticking();
    tries
}

/// Reads, runs or transfers through the range.
fn use_it(random: &mut Random, code: &[u8]) {
    sandbox::write_code(CODE, code);
    // CPUID at the end of the first page, for whoever jumps there.
    sandbox::write64(DATA + 0xff8, 0xcca2_0fa2_0fa2_0fa2);
    let mut state = random.pick(&[Mode::Kernel64, Mode::User64]).state(CODE);
    let at = RANGE + random.pick(&[0, 0xffd, 0xffe, 0xff8, 0x1000]);
    (state.registers[RDI], state.registers[RSI]) = (at, at);
    state.registers[RCX] = random.below(20);
    state.registers[RDX] = 0x80;
    sandbox::run(&state, 1 + random.below(4));
}
