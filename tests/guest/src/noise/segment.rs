//! Descriptors, selectors, frames and entry registers that mean nothing, or something else: in long mode.
//!
//! What may hang the guest is kept out: its stacks for interrupts stay what they are.

use dolmen_arch::msr;

use super::random::Random;
use super::sandbox::{self, CODE, DATA, Mode, RAX, RCX, RDX, RSI, State};
use crate::cpu;

/// Tables of descriptors made of anything: one for GDTR, whose first half is the sandbox's, one for LDTR.
const GLOBAL: u64 = DATA + 0x18_0000;
const LOCAL: u64 = DATA + 0x18_1000;
/// A task state segment in which every stack is a good one.
const TASK: u64 = DATA + 0x18_2000;
/// Selectors: the table of local descriptors, the task state segment.
const LOCAL_TABLE: u64 = 0x80;
const TASK_SEGMENT: u64 = 0x90;
/// Descriptors in [`GLOBAL`].
const DESCRIPTORS: u64 = 64;
/// Where the far pointer lies that code at RSI takes.
const POINTER: u64 = DATA + 0x18_3000;

/// Instructions that load or look at descriptors. Selectors stand in AX, far pointers at RSI.
const CODES: &[&[u8]] = &[
    &[0x8e, 0xd8],             // MOV DS
    &[0x8e, 0xc0],             // MOV ES
    &[0x8e, 0xd0],             // MOV SS
    &[0x8e, 0xe0],             // MOV FS
    &[0x8e, 0xe8],             // MOV GS
    &[0x0f, 0x00, 0xd0],       // LLDT
    &[0x0f, 0x00, 0xd8],       // LTR
    &[0x0f, 0x00, 0xe0],       // VERR
    &[0x0f, 0x00, 0xe8],       // VERW
    &[0x0f, 0x00, 0xc0],       // SLDT
    &[0x0f, 0x00, 0xc8],       // STR
    &[0x0f, 0x02, 0xd8],       // LAR
    &[0x0f, 0x03, 0xd8],       // LSL
    &[0xff, 0x2e],             // far JMP
    &[0xff, 0x1e],             // far CALL
    &[0x48, 0xff, 0x2e],       // far JMP, 64-bit
    &[0x48, 0xff, 0x1e],       // far CALL, 64-bit
    &[0x0f, 0xb2, 0x26],       // LSS
    &[0x0f, 0xb4, 0x26],       // LFS
    &[0x0f, 0x01, 0xf8],       // SWAPGS
    &[0x8e, 0xd0, 0x0f, 0xa2], // MOV SS and an exit in its shadow
    &[0x8e, 0xd8, 0x8b, 0x06], // MOV DS and a use of it
    &[0x8e, 0xd8, 0x6e],       // MOV DS and OUTS from it
    &[0x8e, 0xc0, 0x6c],       // MOV ES and INS to it
    &[0xcb],                   // RETF
    &[0x48, 0xcb],             // RETFQ
    &[0xcf],                   // IRETD
    &[0x48, 0xcf],             // IRETQ
];

/// Selectors and descriptors of any kind, used in every size of code.
pub(super) fn descriptors(random: &mut Random) -> u64 {
    const TRIES: u64 = 8_000;
    let tries = random.times(TRIES);
    sandbox::map_devices(false);
    super::storm::start_ticking();
    for _ in 0..tries {
        fill(random);
        load();
        let code = random.pick(CODES);
        sandbox::write_code(CODE, code);
        let mode = random.pick(&[
            Mode::Kernel64,
            Mode::Kernel64,
            Mode::Kernel32,
            Mode::Kernel16,
            Mode::User64,
            Mode::User32,
        ]);
        let mut state = mode.state(CODE);
        state.registers[RAX] = selector(random);
        state.registers[RSI] = POINTER;
        (state.registers[RCX], state.registers[RDX]) = (random.below(4), 0x80);
        frame(random, &mut state);
        sandbox::run(&state, 2);
        sandbox::load_tables();
    }
    super::storm::stop_ticking();
    sandbox::map_devices(true);
    tries
}

/// Null, of this table or that, with any privilege; mostly those that exist.
fn selector(random: &mut Random) -> u64 {
    match random.below(8) {
        0 => random.below(4),
        1 => random.next() & 0xffff,
        2 => LOCAL_TABLE,
        3 => TASK_SEGMENT,
        _ => random.below(DESCRIPTORS) << 3 | random.below(8),
    }
}

/// A descriptor that is one of something, with a bit or two wrong.
fn descriptor(random: &mut Random) -> u64 {
    // Data, data that grows down, code, conforming code, each for kernel or user; call, interrupt and task gates.
    let kinds = [0x92u64, 0x96, 0x93, 0x9a, 0x9e, 0xf2, 0xf6, 0xfa, 0xfe, 0x8c, 0xec, 0x8e, 0x85, 0x82];
    let kind = random.pick(&kinds);
    let is_gate = kind & 0x10 == 0 && kind & 0xf > 3 && kind & 0xf != 9 && kind & 0xf != 11;
    let mut it = if is_gate {
        let target = random.pick(&[0x08u64, 0x23, 0x38, 0x10, 0, LOCAL_TABLE]);
        CODE & 0xffff | target << 16 | kind << 40 | (CODE >> 16) << 48
    } else {
        let (some, few) = (random.next() & 0xffff_ffff, random.below(0x10_0000));
        let base = random.pick(&[0, 0, CODE, DATA, 0xffff_f000, some]);
        let limit = random.pick(&[0xfffff, 0, 0xfff, 1, few]);
        let flags = random.pick(&[0xcu64, 0xa, 0x8, 0x4, 0x0, 0xe]);
        // Both at once, 64-bit and 32-bit, is a state that no entry accepts: it has a test of its own.
        let flags = if kind & 8 != 0 && flags & 6 == 6 { flags & !4 } else { flags };
        limit & 0xffff
            | (base & 0xff_ffff) << 16
            | kind << 40
            | (limit >> 16) << 48
            | flags << 52
            | (base >> 24) << 56
    };
    if random.one_in(4) {
        // Type, privilege, presence.
        it ^= 1 << (40 + random.below(8));
    }
    it
}

/// The sandbox's own descriptors, and after them anything; no code that is 64-bit and 32-bit at once.
fn fill(random: &mut Random) {
    for index in 0..DESCRIPTORS {
        let own = sandbox::descriptor(index as usize);
        let value = if index < 14 { own } else { descriptor(random) };
        sandbox::write64(GLOBAL + index * 8, possible(value));
        sandbox::write64(LOCAL + index * 8, possible(descriptor(random)));
        sandbox::write64(TASK + index * 8, 0);
    }
    for stack in 0..13 {
        sandbox::write32(TASK + 4 + stack * 8, (sandbox::STACKS + 0x1_0000) as u32);
    }
    sandbox::write32(TASK + 100, 104 << 16);
    table(LOCAL_TABLE, LOCAL, 0x82, random.pick(&[0xffff, 0x1ff, 7, 0]));
    table(TASK_SEGMENT, TASK, 0x89, 0x1ff);
    let some = random.next();
    let offset = random.pick(&[CODE, CODE + 8, 0, 1 << 63, some]);
    let is_short = random.one_in(2);
    let at = if is_short { 4 } else { 8 };
    sandbox::write64(POINTER, offset);
    sandbox::write64(POINTER + at, selector(random));
}

/// Code with both bits loses one.
const fn possible(value: u64) -> u64 {
    if value >> 53 & 3 == 3 && value >> 43 & 3 == 3 { value & !(1 << 54) } else { value }
}

/// A descriptor of 16 bytes for a table or a task.
fn table(selector: u64, base: u64, kind: u64, limit: u64) {
    let low = limit & 0xffff | (base & 0xff_ffff) << 16 | kind << 40 | (base >> 24 & 0xff) << 56;
    sandbox::write64(GLOBAL + selector, low);
    sandbox::write64(GLOBAL + selector + 8, 0);
}

/// GDTR and LDTR as the code finds them.
fn load() {
    sandbox::load_global(GLOBAL, DESCRIPTORS as u16 * 8 - 1);
    // SAFETY: the descriptor is one of a table of local descriptors, present.
    unsafe { core::arch::asm!("lldt {0:x}", in(reg) LOCAL_TABLE) };
}

/// What RETF and IRET take, at the stack pointer: an offset, a selector, flags, a stack.
fn frame(random: &mut Random, state: &mut State) {
    if random.one_in(8) {
        // A stack that is not there, or is nowhere.
        state.rsp = random.pick(&[0, 1 << 63, 0xdead_0000, u64::MAX - 3, DATA + 0x20_0000 - 8]);
        return;
    }
    let step = random.pick(&[2, 4, 8]);
    let base = if state.rsp < 0x1_0000 { CODE } else { 0 };
    let at = if base == 0 { state.rsp } else { return };
    let flags = random.next() & 0x003f_7cd5 | 0x100;
    // VM in long mode means nothing on the bare machine; some emulators believe it.
    let flags = if random.one_in(16) { flags | 1 << 17 } else { flags };
    let some = random.next();
    let target = random.pick(&[CODE, CODE + 8, 0, 1 << 47, some]);
    for (index, value) in (0u64..).zip([target, selector(random), flags, DATA + 0x10_0000, selector(random)])
    {
        sandbox::write64(at + index * step, value);
    }
}

/// SYSCALL, SYSENTER and their returns, with registers that lead anywhere.
pub(super) fn entries(random: &mut Random) -> u64 {
    const TRIES: u64 = 8_000;
    const CODES: &[&[u8]] =
        &[&[0x0f, 0x05], &[0x0f, 0x34], &[0x0f, 0x07], &[0x48, 0x0f, 0x07], &[0x0f, 0x35]];
    let registers = [
        msr::STAR,
        msr::LSTAR,
        msr::CSTAR,
        msr::SFMASK,
        msr::SYSENTER_CS,
        msr::SYSENTER_ESP,
        msr::SYSENTER_EIP,
    ];
    let old = registers.map(|register| cpu::read_msr(register).unwrap_or(0));
    let tries = random.times(TRIES);
    sandbox::map_devices(false);
    super::storm::start_ticking();
    for _ in 0..tries {
        for register in registers {
            let some = random.value();
            let value = match register {
                msr::STAR => {
                    random.below(0x100) << 48 | random.below(0x100) << 32 | random.next() & 0xffff_ffff
                }
                msr::SFMASK => some & !0x100,
                msr::SYSENTER_CS => selector(random),
                _ => random.pick(&[CODE, CODE + 8, 0, 1 << 47, 1 << 63, DATA + 0x20_0000, some]),
            };
            cpu::write_msr(register, value).unwrap_or(());
        }
        sandbox::write_code(CODE, random.pick(CODES));
        let mode = random.pick(&[Mode::User64, Mode::User32, Mode::User16, Mode::Kernel64, Mode::Kernel32]);
        let mut state = mode.state(CODE);
        let some = random.value();
        state.registers[RCX] = random.pick(&[CODE + 8, 1 << 47, some]);
        state.registers[RDX] = random.pick(&[CODE + 8, some]);
        // R11: the flags that SYSRET loads.
        state.registers[sandbox::R11] = random.next() & 0x003f_7cd5 | 0x102;
        sandbox::run(&state, 2);
    }
    super::storm::stop_ticking();
    for (register, value) in registers.into_iter().zip(old) {
        cpu::write_msr(register, value).unwrap_or(());
    }
    sandbox::load_tables();
    sandbox::map_devices(true);
    tries
}
