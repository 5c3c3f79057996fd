//! Single steps, interrupt shadows and breakpoints across exits.

use core::arch::asm;

use super::random::Random;
use super::sandbox::{self, CODE, DATA, Mode, RAX, RCX, RDI, RDX, RSI, State};
use crate::{apic, attempt, call, cpu, fault, say};

const DB: u64 = 1;
const BP: u64 = 3;
const TF: u64 = 1 << 8;
/// DR6: a single step; an access to a debug register. DR7: such accesses are detected.
const STEP: u64 = 1 << 14;
const DETECTED: u64 = 1 << 13;
const DETECT: u64 = 1 << 13;
const DR7_IDLE: u64 = 0x400;
/// The I/O APIC's index register.
const DEVICE: u64 = 0xfec0_0000;
/// STI; MOV SS, CX.
const STI: u8 = 0xfb;
const MOV_SS: [u8; 2] = [0x8e, 0xd1];

/// Instructions that exit and are done by the hypervisor, with RAX, RCX, RDX and RDI as [`state`] sets them.
fn exits() -> [&'static [u8]; 10] {
    [
        &[0x0f, 0xa2],             // CPUID
        &[0x66, 0x48, 0x0f, 0xa2], // the same with prefixes
        call::instruction(),
        &[0x0f, 0x09],             // WBINVD
        &[0xec],                   // IN
        &[0x66, 0xef],             // OUT
        &[0x6e],                   // OUTS
        &[0x8b, 0x07],             // device memory, read
        &[0x88, 0x07],             // and written
        &[0x44, 0x0f, 0x20, 0xc3], // MOV from CR8
    ]
}

/// The registers that make each of [`exits`] harmless.
fn state() -> State {
    let mut state = Mode::Kernel64.state(CODE);
    state.rflags = 2;
    (state.registers[RAX], state.registers[RCX], state.registers[RDX]) = (0, 0x10, 0x3ff);
    (state.registers[RDI], state.registers[RSI]) = (DEVICE, DATA);
    state
}

/// The three kinds.
pub(super) fn everything(random: &mut Random) -> u64 {
    const ROUNDS: u64 = 40;
    let (exits, rounds) = (exits(), random.times(ROUNDS));
    for _ in 0..rounds {
        for code in exits {
            single_step(code);
            shadow_of_sti(code);
            shadow_of_stack(code);
        }
        chains(random, &exits);
        detection();
        breakpoints(random, &exits);
    }
    rounds * (exits.len() as u64 * 3 + 3)
}

fn complain(why: &'static str, code: &[u8], end: u64) {
    say!("{code:x?}: ended by {end} at {:#x}", sandbox::last().rip);
    super::fail(why);
}

fn debug_status() -> u64 {
    let status: u64;
    // SAFETY: reading has no side effect where accesses are not detected.
    unsafe { asm!("mov {}, dr6", out(reg) status, options(nostack, nomem)) };
    status
}

fn clear_debug() {
    // SAFETY: no breakpoint is set, and the status is that of reset.
    unsafe { asm!("mov dr7, {}", "mov dr6, {}", in(reg) DR7_IDLE, in(reg) 0xffff_0ff0u64) };
}

/// One step ends right behind the instruction, and DR6 says why.
fn single_step(code: &[u8]) {
    sandbox::write_code(CODE, code);
    clear_debug();
    let end = sandbox::run(&state(), 1);
    if end != DB || sandbox::last().rip != CODE + code.len() as u64 || debug_status() & STEP == 0 {
        complain("a single step over an exit goes wrong", code, end);
    }
}

/// An interrupt that waits comes behind the instruction that STI covers, whether that exits or not.
fn shadow_of_sti(exit: &[u8]) {
    let mut code = [0x90; 8];
    code[0] = STI;
    code[1..=exit.len()].copy_from_slice(exit);
    sandbox::write_code(CODE, &code);
    apic::send_self(u32::from(fault::TIMER));
    let end = sandbox::run(&state(), 0);
    if end != u64::from(fault::TIMER) || sandbox::last().rip != CODE + 1 + exit.len() as u64 {
        complain("the shadow of STI does not cover an exit", &code, end);
    }
}

/// A single step does not end behind a load of SS, but behind the instruction that this covers.
fn shadow_of_stack(exit: &[u8]) {
    let mut code = [0x90; 8];
    code[..2].copy_from_slice(&MOV_SS);
    code[2..2 + exit.len()].copy_from_slice(exit);
    sandbox::write_code(CODE, &code);
    let end = sandbox::run(&state(), 1);
    if end != DB || sandbox::last().rip != CODE + 2 + exit.len() as u64 {
        complain("the shadow of a load of SS does not cover an exit", &code, end);
    }
}

/// Shadow upon shadow, with steps, pending interrupts, and what changes privilege or waits behind them.
fn chains(random: &mut Random, exits: &[&'static [u8]]) {
    let last: &[&[u8]] =
        &[&[0xf4], &[0xcc], &[0xcd, 0x80], &[0x0f, 0x05], &[0x9d], &[0x48, 0xcf], &[0x0f, 0x0b]];
    let mut code = [0x90; 16];
    let mut length = 0;
    for _ in 0..1 + random.below(3) {
        let piece: &[u8] = if random.one_in(2) { &[STI] } else { &MOV_SS };
        code[length..length + piece.len()].copy_from_slice(piece);
        length += piece.len();
    }
    let piece = if random.one_in(2) { random.pick(exits) } else { random.pick(last) };
    code[length..length + piece.len()].copy_from_slice(piece);
    sandbox::write_code(CODE, &code[..length + piece.len()]);
    apic::send_self(u32::from(fault::TIMER));
    // HLT behind another instruction than STI may sleep over the interrupt that came before.
    apic::start_periodic(200_000);
    let mut state = state();
    state.rflags |= 0x200 * random.below(2);
    let steps = random.below(4);
    let is_halt = piece == [0xf4] && !code[..length].contains(&STI);
    sandbox::run(&state, if is_halt { 1 } else { steps });
    super::storm::stop_ticking();
    for _ in 0..4 {
        cpu::interrupts_window();
    }
}

/// DR7.GD: an access to a debug register is caught before it happens, and the catching ends the detection.
fn detection() {
    for code in [&[0x0f, 0x21, 0xc0], &[0x0f, 0x23, 0xf0], &[0x0f, 0x21, 0xf8]] {
        sandbox::write_code(CODE, code);
        clear_debug();
        // SAFETY: the next access to a debug register is the code's.
        unsafe { asm!("mov dr7, {}", in(reg) DR7_IDLE | DETECT) };
        let end = sandbox::run(&State { rflags: 2, ..state() }, 0);
        let status = debug_status();
        // Some emulators do not know this bit: then the access happens, and INT3 ends the code.
        let is_whole = end == DB && sandbox::last().rip == CODE && status & DETECTED != 0;
        if !is_whole && end != BP {
            complain("an access to a debug register goes undetected", code, end);
        }
        clear_debug();
    }
}

/// Breakpoints on exits, on device memory, on ports, of every length, with and without steps.
fn breakpoints(random: &mut Random, exits: &[&'static [u8]]) {
    let old = cpu::read_cr4();
    attempt!("mov cr4, {it}", it = in(reg) old | 1 << 3);
    let exit = random.pick(exits);
    sandbox::write_code(CODE, exit);
    let places = [CODE, CODE + 1, DEVICE, DATA, 0x3ff, 0x80, random.next()];
    let (first, second) = (random.pick(&places), random.pick(&places));
    let kinds = random.next() & 0xffff_0000;
    // SAFETY: the breakpoints are on what the code does; none is left behind.
    unsafe {
        asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr7, {}", in(reg) first, in(reg) second,
             in(reg) CODE + exit.len() as u64, in(reg) kinds | DR7_IDLE | 0x3f);
    }
    let mut state = state();
    // RF, TF.
    state.rflags |= random.below(2) << 16 | random.pick(&[0, TF]);
    sandbox::run(&state, random.below(3));
    clear_debug();
    attempt!("mov cr4, {it}", it = in(reg) old);
}
