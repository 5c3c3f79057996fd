//! Hardware tasks, the map of ports, and virtual-8086 mode with any flags: what only modes before long mode have.

use super::legacy::{self, Last, Mode, State, Tables};
use super::random::Random;
use crate::{apic, say};

const DB: u32 = 1;
const BP: u32 = 3;
const GP: u32 = 13;
const TF: u32 = 1 << 8;
const NESTED: u32 = 1 << 14;
const BUSY: u64 = 2 << 40;
/// A vector whose gate leads to the other task.
const SOFTWARE: u8 = 0x42;
/// The flat address of the code.
const AT: u32 = legacy::LOW as u32 + legacy::CODE;
/// Where the other task's code lies behind it.
const BEHIND: usize = 16;
const MODES: [Mode; 3] = [Mode::Protected32, Mode::Paged32, Mode::PagedPae];

/// Ways from one task to another: code, length of the instruction, whether its gate is one of a task.
const WAYS: &[&[u8]] = &[
    &[0xea, 0, 0, 0, 0, legacy::OTHER_TASK as u8, 0],
    &[0x9a, 0, 0, 0, 0, legacy::OTHER_TASK as u8, 0],
    &[0xea, 0, 0, 0, 0, legacy::TASK_GATE as u8, 0],
    &[0x9a, 0, 0, 0, 0, legacy::TASK_GATE as u8, 0],
    &[0xcd, SOFTWARE],
];

/// Every way to another task, and back.
pub(super) fn switches(random: &mut Random) -> u64 {
    const ROUNDS: u64 = 200;
    apic::reset();
    legacy::prepare();
    let rounds = random.times(ROUNDS);
    for _ in 0..rounds {
        let mode = random.pick(&MODES);
        for way in WAYS {
            go(mode, way, random.next() as u32);
        }
        exception(mode);
        come_back(mode);
        nested_return(mode);
        old_task(mode);
    }
    rounds * (WAYS.len() as u64 + 4)
}

fn complain(what: &str, last: &Last) {
    say!("{what}: {last:x?}");
    super::fail("a task switch goes wrong");
}

/// The tables, with a gate of the other task at [`SOFTWARE`] and at #UD.
fn tables(state: &State) -> &'static mut Tables {
    let tables = legacy::tables();
    let gate = u64::from(legacy::OTHER_TASK) << 16 | 0xe5 << 40;
    (tables.idt[usize::from(SOFTWARE)], tables.idt[6]) = (gate, gate);
    tables.other.word[legacy::TASK_CR3] = state.cr3;
    tables.task.word[legacy::TASK_CR3] = state.cr3;
    tables
}

/// There: the old task's state must be what it was.
fn go(mode: Mode, way: &[u8], mark: u32) {
    legacy::write_code(way);
    let mut state = mode.state();
    state.esi = mark;
    let tables = tables(&state);
    let last = legacy::run(&state, tables);
    let saved = &tables.task.word;
    let is_saved = saved[legacy::TASK_EIP] == AT + way.len() as u32 && saved[16] == mark;
    if last.vector != legacy::ARRIVED || !is_saved {
        complain("there", &last);
    }
}

/// An exception whose gate is a task's.
fn exception(mode: Mode) {
    legacy::write_code(&[0x0f, 0x0b]);
    let state = mode.state();
    let tables = tables(&state);
    let last = legacy::run(&state, tables);
    if last.vector != legacy::ARRIVED || tables.task.word[legacy::TASK_EIP] != AT {
        complain("by an exception", &last);
    }
}

/// There by a call, an exit there, and back by IRET.
fn come_back(mode: Mode) {
    let mut code = [0xcc; BEHIND + 3];
    code[..7].copy_from_slice(WAYS[1]);
    code[BEHIND..].copy_from_slice(&[0x0f, 0xa2, 0xcf]);
    legacy::write_code(&code);
    let mut state = mode.state();
    state.eax = 0x0600_0d1e;
    let tables = tables(&state);
    tables.other.word[legacy::TASK_EIP] = AT + BEHIND as u32;
    let last = legacy::run(&state, tables);
    if last.vector != BP || last.eip != AT + 8 || last.eax != state.eax {
        complain("and back", &last);
    }
}

/// IRET with NT set goes to whom the link names.
fn nested_return(mode: Mode) {
    legacy::write_code(&[0xcf]);
    let mut state = mode.state();
    state.eflags |= NESTED;
    let tables = tables(&state);
    tables.task.word[0] = legacy::OTHER_TASK;
    tables.gdt[legacy::OTHER_TASK as usize / 8] |= BUSY;
    let last = legacy::run(&state, tables);
    if last.vector != legacy::ARRIVED {
        complain("by IRET", &last);
    }
}

/// A task of the 16-bit kind, which begins at an INT3.
fn old_task(mode: Mode) {
    legacy::write_code(&[0xea, 0, 0, 0, 0, legacy::OLD_TASK as u8, 0]);
    let state = mode.state();
    let tables = tables(&state);
    let word = &mut tables.other.word;
    word[..26].fill(0);
    word[3] = (legacy::CODE + 8) << 16;
    (word[4], word[6], word[8], word[9], word[10]) = (2, 0x8000 << 16, 0x10 << 16, 0x48 | 0x58 << 16, 0x10);
    let last = legacy::run(&state, tables);
    if last.vector != BP || last.cs & 0xffff != 0x48 {
        complain("of the 16-bit kind", &last);
    }
}

/// Tasks of which one thing or another is garbage: the guest may not outlive it.
pub(super) fn garbage(random: &mut Random) -> u64 {
    const TRIES: u64 = 3_000;
    apic::reset();
    legacy::prepare();
    let tries = random.times(TRIES);
    for _ in 0..tries {
        let mode = random.pick(&MODES);
        legacy::write_code(random.pick(WAYS));
        let state = mode.state();
        let tables = tables(&state);
        for _ in 0..1 + random.below(2) {
            spoil(random, tables);
        }
        legacy::run(&state, tables);
    }
    tries
}

/// Something that the switch looks at gets a value that means nothing, or too much.
fn spoil(random: &mut Random, tables: &mut Tables) {
    let value = random.value();
    let descriptor = random.pick(&[legacy::TASK, legacy::OTHER_TASK, legacy::TASK_GATE, legacy::LOCAL_TABLE]);
    match random.below(8) {
        0 => tables.gdt[descriptor as usize / 8] ^= 1 << random.below(64),
        // Its type, or its limit.
        1 => tables.gdt[descriptor as usize / 8] ^= random.below(16) << 40,
        2 => tables.gdt[descriptor as usize / 8] &= !0x98,
        3 => tables.other.word[legacy::TASK_EFLAGS] = value as u32 & !TF,
        4 => tables.other.word[legacy::TASK_ES + random.below(7) as usize] = random.below(0x100) as u32,
        5 => tables.other.word[legacy::TASK_CR3] = value as u32,
        6 => tables.task.word[0] = value as u32,
        _ => tables.other.word[random.below(26) as usize] = value as u32,
    }
}

/// Ports by the map's leave, for 32-bit user code and in virtual-8086 mode.
pub(super) fn ports(random: &mut Random) -> u64 {
    const TRIES: u64 = 1_500;
    legacy::prepare();
    let tries = random.times(TRIES);
    for _ in 0..tries {
        let mode = random.pick(&[Mode::User32, Mode::Virtual86, Mode::Virtual86Paged]);
        let port = random.pick(&[0x60u32, 0x80, 0x3fd, 0x3ff, 0x402, 0xffb]);
        let bytes = random.pick(&[1u32, 2, 4]);
        let code: &[u8] = match (bytes, mode.is_16_bit()) {
            (1, _) => &[0xec],
            (2, true) | (4, false) => &[0xed],
            _ => &[0x66, 0xed],
        };
        legacy::write_code(code);
        let mut state = mode.state();
        (state.edx, state.eax) = (port, 0);
        state.eflags |= random.pick(&[0, TF]);
        let tables = legacy::tables();
        let forbidden =
            random.pick(&[None, Some(port - 1), Some(port), Some(port + bytes - 1), Some(port + bytes)]);
        if let Some(bit) = forbidden {
            tables.task.ports[bit as usize / 8] |= 1 << (bit % 8);
        }
        let has_map = !random.one_in(4);
        if !has_map {
            tables.task.word[25] = random.pick(&[0xffff, 104 + 0x204, 104 + 0x1ff]) << 16;
        }
        let is_forbidden = forbidden.is_some_and(|bit| (port..port + bytes).contains(&bit));
        let last = legacy::run(&state, tables);
        let end = if state.eflags & TF == 0 { BP } else { DB };
        // Without a map all ports are forbidden; a map that ends early forbids those behind its end.
        let is_right = if is_forbidden || !has_map { last.vector == GP } else { last.vector == end };
        if !is_right {
            say!("{mode:?} port {port:x} bytes {bytes} forbidden {forbidden:x?} map {has_map}: {last:x?}");
            super::fail("the map of ports is not obeyed");
            return tries;
        }
    }
    tries
}

/// Instructions that virtual-8086 mode treats in its own way, or that exit from it.
const CODES: &[&[u8]] = &[
    &[0xfa],
    &[0xfb],
    &[0x9c],
    &[0x9d],
    &[0x66, 0x9c],
    &[0x66, 0x9d],
    &[0xcd, 0x21],
    &[0xcd, 0x80],
    &[0xcd, 0x02],
    &[0xcc],
    &[0xce],
    &[0xcf],
    &[0x66, 0xcf],
    &[0xf1],
    &[0xf4],
    &[0xec],
    &[0xed],
    &[0xee],
    &[0xe4, 0x60],
    &[0x6c],
    &[0xf3, 0x6d],
    &[0xf3, 0x6e],
    &[0x0f, 0xa2],
    &[0x0f, 0x30],
    &[0x0f, 0x32],
    &[0x0f, 0x01, 0xd9],
    &[0x0f, 0x01, 0xc1],
    &[0x0f, 0x01, 0xd8],
    &[0x0f, 0x01, 0xf0],
    &[0x0f, 0x01, 0x15],
    &[0x0f, 0x00, 0xd0],
    &[0x0f, 0x20, 0xc0],
    &[0x0f, 0x22, 0xd8],
    &[0x0f, 0x23, 0xf8],
    &[0x0f, 0x0b],
    &[0x0f, 0x34],
    &[0x0f, 0x05],
    &[0x8e, 0xd8],
    &[0x8e, 0xd0],
    &[0xea, 0x00, 0x02, 0x00, 0x10],
    &[0x9a, 0x00, 0x02, 0x00, 0x10],
];

/// Virtual-8086 mode with any flags, extensions on and off, one step at a time.
pub(super) fn virtual_8086(random: &mut Random) -> u64 {
    const TRIES: u64 = 4_000;
    apic::reset();
    legacy::prepare();
    super::storm::start_ticking();
    let tries = random.times(TRIES);
    for _ in 0..tries {
        let mode = random.pick(&[Mode::Virtual86, Mode::Virtual86Paged]);
        legacy::write_code(random.pick(CODES));
        let mut state = mode.state();
        state.eflags |= random.next() as u32 & 0x003f_7ed5 | TF;
        state.cr4 |= random.below(4) as u32;
        (state.eax, state.ebx) = (random.next() as u32, random.next() as u32);
        (state.ecx, state.edx) = (random.below(5) as u32, 0x3ff);
        (state.edi, state.esi) = (0x4000 + random.below(0x1000) as u32, 0xfffe);
        let tables = legacy::tables();
        if random.one_in(4) {
            tables.task.ports[0x3ff / 8] = random.byte();
        }
        legacy::run(&state, tables);
    }
    super::storm::stop_ticking();
    tries
}
