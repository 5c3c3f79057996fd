//! Hypercalls: good ones, bad numbers, bad buffers, from everywhere.

use dolmen_abi::{CALLS, Call, Status, Version};

use super::random::Random;
use super::sandbox::{self, CODE, DATA, Mode, RAX, RCX, RDI, RDX, RSI};
use crate::call::{call, instruction};

const TRIES: u64 = 30_000;

/// Whether a good call is still answered.
pub(super) fn version_answers() -> bool {
    call(Version::NUMBER.into(), [0, 0, DATA, 0x200]).0 == u64::from(Status::OK.0)
}

/// Calls with random numbers and buffers, from kernel and user mode in all sizes of code.
pub(super) fn every(random: &mut Random) -> u64 {
    let mut good = 0;
    let tries = random.times(TRIES);
    for _ in 0..tries {
        let known = &CALLS[random.below(CALLS.len() as u64) as usize];
        let number = match random.below(8) {
            0 => random.value(),
            1 => 0x444c_0000 | random.below(0x1_0000),
            _ => u64::from(known.number) | if random.one_in(16) { random.next() << 32 } else { 0 },
        };
        let request = length(random, known.request_bytes, known.request_data);
        let reply = length(random, known.reply_bytes, known.reply_data);
        fill(random);
        let arguments = [place(random), request, place(random), reply];
        if random.one_in(8) {
            elsewhere(random, number, arguments);
        } else {
            good += u64::from(call(number, arguments).0 == u64::from(Status::OK.0));
        }
    }
    // A part of the noise may miss: where nothing was launched, few calls can be answered at all.
    if good == 0 && tries == TRIES {
        super::fail("not one call was good");
    }
    if !version_answers() {
        super::fail("a good call is not answered any more");
    }
    tries
}

fn length(random: &mut Random, fixed: usize, data: usize) -> u64 {
    let exact = fixed as u64 + random.below(data as u64 + 1);
    if random.one_in(4) { random.value() } else { exact }
}

/// In RAM, at its ends, over them, in devices.
fn place(random: &mut Random) -> u64 {
    if random.one_in(2) {
        return DATA + random.below(0x1_0000);
    }
    let edge = random.pick::<u64>(&[
        0,
        0xa_0000,
        sandbox::RAM_END,
        0xd000_0000,
        0xfee0_0000,
        0xfed4_0000,
        1 << 32,
        1 << 40,
        1 << 63,
    ]);
    edge.wrapping_sub(random.below(32))
}

/// Requests begin with lengths, handles and flags.
fn fill(random: &mut Random) {
    for word in 0..8 {
        sandbox::write64(DATA + word * 8, random.value());
    }
}

fn elsewhere(random: &mut Random, number: u64, arguments: [u64; 4]) {
    let modes = [Mode::Kernel32, Mode::Kernel16, Mode::User64, Mode::User32, Mode::User16];
    sandbox::write_code(CODE, instruction());
    let mut state = random.pick(&modes).state(CODE);
    let [rdi, rsi, rdx, rcx] = arguments;
    state.registers[RAX] = number;
    (state.registers[RDI], state.registers[RSI], state.registers[RDX]) = (rdi, rsi, rdx);
    state.registers[RCX] = rcx;
    sandbox::run(&state, 1);
}
