//! Instructions of every form on device memory, most of which nobody emulates.

use super::random::Random;
use super::sandbox::{self, CODE, Mode, RDI};

/// Addresses of devices that are there, of devices that are hidden, of nothing.
pub(super) const PLACES: &[u64] = &[
    0xfee0_0000,
    0xfee0_0080,
    0xfee0_00f0,
    0xfee0_0380,
    0xfee0_0ffc,
    0xfec0_0000,
    0xfec0_0010,
    0xfed4_0000,
    0xfed8_0000,
    0xfed0_0000,
    0xd000_0000,
    0xffff_fff8,
    0x0400_0000,
    0x03ff_fffe,
];

/// Any opcode with memory at RDI.
pub(super) fn every_form(random: &mut Random) -> u64 {
    const TRIES: u64 = 2_000;
    super::storm::start_ticking();
    let tries = random.times(TRIES);
    for _ in 0..tries {
        let mut code = [0u8; 15];
        code.fill_with(|| random.byte());
        let mut length = 0;
        while random.one_in(2) && length < 4 {
            code[length] = random.pick(&[0x66, 0xf0, 0xf2, 0xf3, 0x48, 0x44]);
            length += 1;
        }
        if random.one_in(2) {
            code[length] = 0x0f;
            length += 1;
        }
        // The opcode is anything; its operand is where RDI points.
        code[length + 1] = random.byte() & 0x38 | 7;
        sandbox::write_code(CODE, &code);
        let mut state = Mode::Kernel64.state(CODE);
        state.registers[RDI] = random.pick(PLACES);
        sandbox::run(&state, 1);
    }
    super::storm::stop_ticking();
    tries
}
