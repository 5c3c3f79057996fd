//! INIT and start-up in every order, and a second processor that rewrites code and tables under the first.
//!
//! The other processors run a few instructions of real mode below 1 MiB; they count, so that it shows whether
//! they run. A guest with one processor sends its messages to nobody.

use super::apic::quiet_io;
use super::random::Random;
use super::sandbox::{self, CODE, Mode, RAX, RCX, RDI, RDX, ROOT, RSI};
use crate::cpu;

/// Where the others start: the page of start-up vector 8.
const PAGE: u64 = 0x8000;
const VECTOR: u64 = PAGE >> 12;
/// The word that they count in.
const COUNTER: u64 = 0x5000;
/// The code and the page table that they rewrite.
const VICTIM: u64 = 0x6000;
const LEAVES: u64 = 0x7000;
const DIRECTORY: u64 = 0x9000;
const POINTERS: u64 = 0xa000;
const RANGE: u64 = 1 << 39;
const COMMAND: u32 = 0x830;
const TRIES: u64 = 4_000;

/// xor ax, ax; mov ds, ax; again: xor byte \[7000h\], 1; xor byte \[6001h\], 90h; inc word \[5000h\]; jmp again.
/// The entry loses its present bit and gets it back; CPUID becomes RDMSR and CPUID again.
const REWRITER: [u8; 20] = [
    0x31, 0xc0, 0x8e, 0xd8, 0x80, 0x36, 0x00, 0x70, 0x01, 0x80, 0x36, 0x01, 0x60, 0x90, 0xff, 0x06, 0x00,
    0x50, 0xeb, 0xf0,
];

/// xor ax, ax; mov ds, ax; again: the page table's first entry leads to a hole, to the I/O APIC, to RAM, nowhere;
/// inc word \[5000h\]; jmp again.
const REMAPPER: [u8; 48] = [
    0x31, 0xc0, 0x8e, 0xd8, // registers
    0x66, 0xc7, 0x06, 0x00, 0x70, 0x07, 0x00, 0x00, 0xd0, // a hole
    0x66, 0xc7, 0x06, 0x00, 0x70, 0x07, 0x00, 0xc0, 0xfe, // the I/O APIC
    0x66, 0xc7, 0x06, 0x00, 0x70, 0x07, 0xb0, 0x00, 0x00, // RAM
    0x66, 0xc7, 0x06, 0x00, 0x70, 0x00, 0x00, 0x00, 0x00, // nothing
    0xff, 0x06, 0x00, 0x50, // the count
    0xeb, 0xd2, // again
    0x90, 0x90,
];
/// What goes through the page meanwhile, by RDI and RSI: reads, writes, read-modify-write, strings of a port.
const ACCESSES: &[&[u8]] = &[
    &[0x8b, 0x07],
    &[0x88, 0x07],
    &[0x89, 0x07],
    &[0x0f, 0xb6, 0x07],
    &[0x01, 0x07],
    &[0x87, 0x07],
    &[0xf3, 0x6e],
    &[0xf3, 0x6c],
    &[0x66, 0xf3, 0x6d],
];

const INIT: u64 = 5 << 8 | 1 << 14;
const DEASSERTED: u64 = 5 << 8 | 1 << 15;
const START_UP: u64 = 6 << 8 | 1 << 14;
const NMI: u64 = 4 << 8 | 1 << 14;

fn others() -> u64 {
    u64::from(cpu::cpuid(1, 0).ebx >> 16 & 0xff).saturating_sub(1)
}

fn send(to: u64, what: u64) {
    cpu::write_msr(COMMAND, to << 32 | what).unwrap_or(());
}

/// INIT, start-up in empty memory, NMI and interrupts to the others, to nobody and to all but itself; then the
/// usual order, after which the others run.
pub(super) fn messages(random: &mut Random) -> u64 {
    let tries = random.times(TRIES);
    write_others(&REWRITER);
    for _ in 0..tries {
        let to = 1 + random.below(others() + 2);
        let shorthand = if random.one_in(8) { 3 << 18 } else { 0 };
        let what = match random.below(6) {
            0 | 1 => INIT,
            2 => DEASSERTED,
            // Zeroes, which are harmless as instructions, or the counting code.
            3 => START_UP | if random.one_in(2) { VECTOR } else { 0x20 + random.below(0x40) },
            4 => NMI,
            _ => 0x20 + random.below(0xd0),
        };
        send(to, what | shorthand);
    }
    check_all_start();
    tries
}

/// The others rewrite what this processor runs, while it exits from there.
pub(super) fn races(random: &mut Random) -> u64 {
    write_others(&REWRITER);
    sandbox::write64(VICTIM, 0xcccc_cccc_cccc_a20f);
    map();
    check_all_start();
    let tries = random.times(TRIES * 5);
    for _ in 0..tries {
        let mut state = random.pick(&[Mode::Kernel64, Mode::User64]).state(RANGE);
        (state.registers[RAX], state.registers[RCX]) = (random.below(2), 0xc000_0080);
        sandbox::run(&state, 1);
    }
    stop_others();
    tries
}

/// The others change where a page leads, while this processor reads, writes and transfers there: to devices, whose
/// accesses are emulated, and to memory, through which the hypervisor walks by itself.
pub(super) fn remaps(random: &mut Random) -> u64 {
    write_others(&REMAPPER);
    map();
    check_all_start();
    let tries = random.times(TRIES * 5);
    for _ in 0..tries {
        sandbox::write_code(CODE, random.pick(ACCESSES));
        let mut state = random.pick(&[Mode::Kernel64, Mode::Kernel64, Mode::User64]).state(CODE);
        // The index of the I/O APIC, or its data behind, over the page's end for strings.
        let offset = random.pick(&[0, 0x10, 0xffc, 0xffe]);
        (state.registers[RDI], state.registers[RSI]) = (RANGE + offset, RANGE + offset);
        (state.registers[RAX], state.registers[RCX], state.registers[RDX]) =
            (random.below(2), random.below(300), 0x80);
        sandbox::run(&state, 1);
    }
    stop_others();
    quiet_io();
    tries
}

/// A range of one page, which the others know the entry of.
fn map() {
    sandbox::write64(LEAVES, VICTIM | 7);
    sandbox::write64(DIRECTORY, LEAVES | 7);
    sandbox::write64(POINTERS, DIRECTORY | 7);
    sandbox::write64(ROOT + 8, POINTERS | 7);
}

fn stop_others() {
    for other in 1..=others() {
        send(other, INIT);
    }
    sandbox::write64(ROOT + 8, 0);
}

fn write_others(code: &[u8]) {
    for (at, word) in (0u64..).zip(code.chunks(4)) {
        let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        cpu::write32(PAGE + at * 4, word);
    }
}

/// INIT, INIT gone, start-up twice, as the manual has it; then each must count.
fn check_all_start() {
    for other in 1..=others() {
        for all in 1..=others() {
            send(all, INIT);
        }
        let before = cpu::read32(COUNTER);
        send(other, DEASSERTED);
        send(other, START_UP | VECTOR);
        send(other, START_UP | VECTOR);
        let start = cpu::read_tsc();
        while cpu::read32(COUNTER) == before {
            if cpu::read_tsc() - start > 60_000_000_000 {
                crate::say!("FAIL processor {other}");
                return super::fail("a processor does not start");
            }
            core::hint::spin_loop();
        }
    }
}
