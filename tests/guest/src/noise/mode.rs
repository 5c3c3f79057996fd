//! Each instruction that exits, in each mode there is, plain and in a single step: it must do there what it does on
//! the bare machine.

use super::legacy::{self, Last, Mode};
use super::random::Random;
use crate::{apic, call, cpu, fault, say};

const GP: u32 = 13;
const UD: u32 = 6;
const DB: u32 = 1;
const BP: u32 = 3;
const TF: u32 = 1 << 8;
const IOPL_3: u32 = 3 << 12;
/// The value that registers hold before.
const BEFORE: u32 = 0x1234_5678;
/// A port whose register only keeps what is written, and the I/O APIC, whose first register is its version.
const PORT: u32 = 0x3ff;
const IO_APIC: u32 = 0xfec0_0000;
const PAUSE: &[u8] = &[0xf3, 0x90];

/// Who may use an instruction, and what it must leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Nothing but a step forward, for everybody.
    Done,
    /// This in EAX, for everybody.
    Eax(u32),
    /// The same, for the kernel only; others get #GP.
    Kernel(Option<u32>),
    /// A fault, for everybody.
    Fault(u32),
    /// #UD for the kernel, #UD or #GP for others: processors differ in which they look at first.
    NotThere,
}

/// One instruction: its bytes, EAX, ECX and EDX before, and what must come of it.
type Probe = (&'static [u8], [u32; 3], Outcome);

/// Every mode with every instruction, in an order that the seed shuffles.
pub(super) fn exits(random: &mut Random) -> u64 {
    apic::reset();
    legacy::prepare();
    let probes = probes();
    let mut tries = 0;
    for _ in 0..random.times(2_000) {
        let mode = random.pick(&Mode::ALL);
        let probe = random.pick(&probes);
        // Some emulators lose the step at PAUSE, which gives their own processor away.
        let is_stepped = random.one_in(2) && probe.0 != PAUSE;
        if !attempt(mode, probe, is_stepped) {
            return tries;
        }
        tries += 1;
    }
    for mode in Mode::ALL {
        strings(mode);
        memory(mode);
        halt(mode);
        tries += 3;
    }
    tries
}

/// The instructions, and what the same machine says to 64-bit code.
fn probes() -> [Probe; 26] {
    let signature = cpu::cpuid(0x4000_0000, 0).eax;
    let apic_base = cpu::read_msr(0x1b).unwrap_or(0) as u32;
    [
        (&[0x0f, 0xa2], [0x4000_0000, 0, 0], Outcome::Eax(signature)),
        (&[0x66, 0x0f, 0xa2], [0x4000_0000, 0, 0], Outcome::Eax(signature)),
        (&[0x0f, 0x32], [0, 0x1b, 0], Outcome::Kernel(Some(apic_base))),
        (&[0x0f, 0x32], [0, 0xc001_0114, 0], Outcome::Fault(GP)),
        (&[0x0f, 0x30], [0, 0xc001_0114, 0], Outcome::Fault(GP)),
        (&[0x0f, 0x30], [1 << 31, 0xc000_0080, 0], Outcome::Fault(GP)),
        (&[0x0f, 0x20, 0xe0], [0, 0, 0], Outcome::Kernel(None)),
        (&[0x0f, 0x22, 0xe0], [1 << 31, 0, 0], Outcome::Fault(GP)),
        (&[0x0f, 0x22, 0xc0], [0x8000_0000, 0, 0], Outcome::Fault(GP)),
        (&[0x0f, 0x33], [0, 0, 0], Outcome::Fault(GP)),
        (call::instruction(), [0x444c_0001, 0, 0], Outcome::Done),
        (call::foreign_instruction(), [0x444c_0001, 0, 0], Outcome::NotThere),
        (&[0x0f, 0x31], [0, 0, 0], Outcome::Done),
        (PAUSE, [0, 0, 0], Outcome::Done),
        (&[0x0f, 0x08], [BEFORE, 0, 0], Outcome::Kernel(Some(BEFORE))),
        (&[0x0f, 0x09], [BEFORE, 0, 0], Outcome::Kernel(Some(BEFORE))),
        (&[0x0f, 0x06], [BEFORE, 0, 0], Outcome::Kernel(Some(BEFORE))),
        (&[0x0f, 0xaa], [0, 0, 0], Outcome::NotThere),
        (&[0x0f, 0x01, 0xc8], [0, 0, 0], Outcome::NotThere),
        (&[0x0f, 0x01, 0xc9], [0, 0, 0], Outcome::NotThere),
        (&[0x0f, 0x01, 0xd1], [1, 0, 0], Outcome::NotThere),
        (&[0x0f, 0x01, 0xd8], [0, 0, 0], Outcome::NotThere),
        (&[0x0f, 0x01, 0xdc], [0, 0, 0], Outcome::NotThere),
        (&[0x0f, 0x01, 0xdd], [0, 0, 0], Outcome::NotThere),
        (&[0x0f, 0x01, 0xde], [0, 0, 0], Outcome::NotThere),
        (&[0x0f, 0x01, 0xdf], [0, 0, 0], Outcome::NotThere),
    ]
}

/// One instruction in one mode; whether it did what it must.
fn attempt(mode: Mode, probe: Probe, is_stepped: bool) -> bool {
    let (code, [eax, ecx, edx], outcome) = probe;
    legacy::write_code(code);
    let mut state = mode.state();
    (state.eax, state.ecx, state.edx) = (eax, ecx, edx);
    state.eflags |= if is_stepped { TF } else { 0 };
    let last = legacy::run(&state, legacy::tables());
    // INT3 moves on by its own length.
    let (end, behind) = if is_stepped { (DB, 0) } else { (BP, 1) };
    let passed = last.vector == end && last.eip == state.eip + code.len() as u32 + behind;
    let failed = |vector| last.vector == vector && last.eip == state.eip;
    let is_right = match outcome {
        Outcome::Done => passed,
        Outcome::Eax(value) => passed && last.eax == value,
        Outcome::Kernel(_) if mode.is_user() => failed(GP),
        Outcome::Kernel(value) => passed && value.is_none_or(|value| last.eax == value),
        Outcome::Fault(vector) => failed(vector),
        Outcome::NotThere => failed(UD) || failed(GP) && mode.is_user(),
    };
    if !is_right {
        complain("an exit does something else in an older mode", mode, code, &last);
    }
    is_right
}

fn complain(why: &str, mode: Mode, code: &[u8], last: &Last) {
    say!("{mode:?} {code:x?} {last:x?}");
    super::fail(why);
}

/// INS and OUTS, three at a time, upwards; at CPL 3 by the grace of IOPL or of the map of ports.
fn strings(mode: Mode) {
    for code in [&[0xf3, 0x6c], &[0xf3, 0x6e]] {
        legacy::write_code(code);
        let mut state = mode.state();
        (state.ecx, state.edx) = (3, PORT);
        let buffer = if mode.is_16_bit() { 0x4000 } else { legacy::LOW as u32 + 0x4000 };
        (state.edi, state.esi) = (buffer, buffer);
        if mode == Mode::Unreal {
            // 16-bit addresses: the paragraph makes them reach.
            (state.ds, state.es) = (legacy::PARAGRAPH, legacy::PARAGRAPH);
        }
        state.eflags |= if mode == Mode::User32 { IOPL_3 } else { 0 };
        let last = legacy::run(&state, legacy::tables());
        let (moved, kept) = if code[1] == 0x6c { (last.edi, last.esi) } else { (last.esi, last.edi) };
        let is_done = last.vector == BP && last.ecx == 0 && moved == state.edi + 3 && kept == state.esi;
        if !is_done {
            complain("a string of a port goes wrong in an older mode", mode, code, &last);
        }
    }
}

/// A read of the I/O APIC where segments reach it, by 32-bit addresses.
fn memory(mode: Mode) {
    if !mode.is_flat() {
        return;
    }
    // mov eax, [edi]
    let code: &[u8] = if mode.is_16_bit() { &[0x66, 0x67, 0x8b, 0x07] } else { &[0x8b, 0x07] };
    legacy::write_code(code);
    let mut state = mode.state();
    cpu::write32(IO_APIC.into(), 1);
    (state.edi, state.eax) = (IO_APIC + 0x10, BEFORE);
    let last = legacy::run(&state, legacy::tables());
    if last.vector != BP || last.eax != cpu::read32(u64::from(IO_APIC) + 0x10) {
        complain("device memory reads otherwise in an older mode", mode, code, &last);
    }
}

/// HLT with the timer on its way; at CPL 3 it is a fault.
fn halt(mode: Mode) {
    // sti; hlt; int3
    legacy::write_code(&[0xfb, 0xf4]);
    let state = mode.state();
    let before = fault::ticks();
    if !mode.is_user() {
        apic::start_timer(3_000_000);
    }
    let last = legacy::run(&state, legacy::tables());
    let is_right = if mode.is_user() {
        last.vector == GP
    } else {
        last.vector == u32::from(fault::TIMER) && last.eip == state.eip + 2 && fault::ticks() == before + 1
    };
    if !is_right {
        complain("HLT does not end as it should in an older mode", mode, &[0xfb, 0xf4], &last);
    }
}
