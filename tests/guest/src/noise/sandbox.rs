//! Runs any instructions with any registers, at CPL 0 or 3, in 16-, 32- or 64-bit code, and comes back.
//!
//! Back leads a fault, the timer, `int 80h`, or the end of a number of single steps. Every gate switches to a
//! stack of its own, so it does not matter what the code did to RSP. At CPL 3 the code reaches its own pages
//! only; at CPL 0 it can do whatever it likes, and the guest may not come back.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::{cpu, fault};

/// Where the code lies; the page behind it is not there.
pub(super) const CODE: u64 = 0x100_0000;
/// RAM for whatever the code does: 2 MiB, and nothing behind.
pub(super) const DATA: u64 = 0x120_0000;
/// Small pages around the code: the table that says where they are.
pub(super) const SMALL: u64 = 0x1c0_0000;
const DIRECTORY: u64 = SMALL + 0x1000;
const POINTERS: u64 = SMALL + 0x2000;
/// The root of the tables that the sandbox uses.
pub(super) const ROOT: u64 = SMALL + 0x3000;
/// The RAM that the test's manifest gives this guest ends here.
pub(super) const RAM_END: u64 = 64 << 20;
pub(super) const STACKS: u64 = 0x160_0000;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const LARGE: u64 = 0x80;

/// What the code starts with, in the order that the assembly below pops it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// R15 to R8, RBP, RDI, RSI, RDX, RCX, RBX, RAX.
    pub(super) registers: [u64; 15],
    pub(super) rip: u64,
    pub(super) cs: u64,
    pub(super) rflags: u64,
    pub(super) rsp: u64,
    pub(super) ss: u64,
}

/// Places in [`State::registers`].
pub(super) const R11: usize = 4;
pub(super) const RDI: usize = 9;
pub(super) const RSI: usize = 10;
pub(super) const RDX: usize = 11;
pub(super) const RCX: usize = 12;
pub(super) const RAX: usize = 14;

/// Code and stack segments: mode and privilege.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Kernel64,
    Kernel32,
    Kernel16,
    User64,
    User32,
    User16,
}

impl Mode {
    const fn selectors(self) -> (u64, u64) {
        match self {
            Self::Kernel64 => (0x08, 0x10),
            Self::Kernel32 => (0x38, 0x10),
            Self::Kernel16 => (0x48, 0x58),
            Self::User64 => (0x23, 0x1b),
            Self::User32 => (0x43, 0x1b),
            Self::User16 => (0x53, 0x63),
        }
    }

    /// The base of the segments, which is not 0 in 16-bit code.
    const fn base(self) -> u64 {
        match self {
            Self::Kernel16 | Self::User16 => CODE,
            Self::Kernel64 | Self::Kernel32 | Self::User64 | Self::User32 => 0,
        }
    }

    /// The state that runs `at` in this mode.
    pub(super) fn state(self, at: u64) -> State {
        let (cs, ss) = self.selectors();
        let (rip, rsp) = (at - self.base(), DATA + 0x10_0000);
        let rsp = if self.base() == 0 { rsp } else { 0x8000 };
        State { rip, cs, ss, rsp, rflags: 0x202, ..State::default() }
    }
}

static IS_INSIDE: AtomicBool = AtomicBool::new(false);
static STEPS_LEFT: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);

global_asm!(
    r#"
.section .text.sandbox, "ax"
__sandbox_enter:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [rip + __sandbox_rsp], rsp
    mov ax, ds
    mov [rip + __sandbox_ds], ax
    mov rsp, rdi
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rbp
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rbx
    pop rax
    iretq
.global __sandbox_back
__sandbox_back:
    mov rsp, [rip + __sandbox_rsp]
    mov ax, [rip + __sandbox_ds]
    mov ds, ax
    mov es, ax
    xor eax, eax
    mov fs, ax
    mov gs, ax
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

__sandbox_nowhere:
    ud2

# What the gates lead to while the sandbox is used: all registers are kept for whoever compares them.
.balign 16
__sandbox_stubs:
.set vector, 0
.rept 256
    .balign 16
    .if vector != 8 && vector != 10 && vector != 11 && vector != 12 && vector != 13 && vector != 14 && vector != 17 && vector != 21 && vector != 29 && vector != 30
    push 0
    .endif
    push vector
    jmp 2f
    .set vector, vector + 1
.endr
2:
    push rax
    push rbx
    push rcx
    push rdx
    push rsi
    push rdi
    push rbp
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    cld
    mov rdi, rsp
    call {on_event}
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rbp
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rbx
    pop rax
    add rsp, 16
    iretq
.section .bss
.balign 8
__sandbox_rsp: .skip 8
__sandbox_ds: .skip 8
"#,
    on_event = sym on_event,
);

unsafe extern "C" {
    static __sandbox_stubs: u8;
    static __sandbox_back: u8;
    static __sandbox_nowhere: u8;
    static __guest_root: u8;
    fn __sandbox_enter(state: *const State);
}

/// What the stubs push.
#[repr(C)]
struct Frame {
    registers: [u64; 15],
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// Registers at the end, for comparison.
static LAST: Shared<State> = Shared(core::cell::UnsafeCell::new(State {
    registers: [0; 15],
    rip: 0,
    cs: 0,
    rflags: 0,
    rsp: 0,
    ss: 0,
}));

#[repr(C, packed(4))]
struct Tss {
    reserved0: u32,
    rsp: [u64; 3],
    reserved1: u64,
    ist: [u64; 7],
    reserved2: [u16; 5],
    io_map: u16,
}

struct Tables {
    gdt: [u64; 14],
    tss: Tss,
    idt: [[u64; 2]; 256],
}

pub(super) struct Shared<T>(pub(super) core::cell::UnsafeCell<T>);
// SAFETY: one processor; `prepare` writes the tables before anything reads them, and handlers write what the
// code that they interrupted does not look at before it is back.
unsafe impl<T> Sync for Shared<T> {}

static TABLES: Shared<Tables> = Shared(core::cell::UnsafeCell::new(Tables {
    gdt: [0; 14],
    tss: Tss { reserved0: 0, rsp: [0; 3], reserved1: 0, ist: [0; 7], reserved2: [0; 5], io_map: 104 },
    idt: [[0; 2]; 256],
}));

#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}

/// Makes tables, segments and gates for the sandbox; they stay.
pub(super) fn prepare() {
    build_tables();
    // SAFETY: called once, before the sandbox is entered.
    let tables = unsafe { &mut *TABLES.0.get() };
    let tss = (&raw const tables.tss).addr() as u64;
    let code16 = |access: u64| 0xffff | CODE << 16 | access << 40;
    tables.gdt = [
        0,
        0x00af_9b00_0000_ffff, // 08h: 64-bit code
        0x00cf_9300_0000_ffff, // 10h: data
        0x00cf_f300_0000_ffff, // 18h: user data
        0x00af_fb00_0000_ffff, // 20h: user 64-bit code
        0x67 | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss & 0xff00_0000) << 32, // 28h
        tss >> 32,
        0x00cf_9b00_0000_ffff, // 38h: 32-bit code
        0x00cf_fb00_0000_ffff, // 40h: user 32-bit code
        code16(0x9b),          // 48h
        code16(0xfb),          // 50h
        code16(0x93),          // 58h: data beside 16-bit code
        code16(0xf3),          // 60h
        0x00ef_9b00_0000_ffff, // 68h: code that is 64-bit and 32-bit at once
    ];
    tables.tss.rsp = [STACKS + 0x8000; 3];
    tables.tss.ist = [STACKS + 0x1_0000; 7];
    tables.tss.ist[1] = STACKS + 0x1_8000;
    let stubs = (&raw const __sandbox_stubs).addr() as u64;
    for (vector, gate) in (0u64..).zip(tables.idt.iter_mut()) {
        let handler = stubs + vector * 16;
        let kind = if vector == 0x80 { 0xee00 } else { 0x8e00 };
        let stack = if vector == 2 { 2 } else { 1 };
        gate[0] = handler & 0xffff | 0x08 << 16 | stack << 32 | kind << 32 | (handler & 0xffff_0000) << 32;
        gate[1] = handler >> 32;
    }
    load_tables();
    // SYSCALL leads the sandbox nowhere, not to its own code at CPL 0.
    cpu::write_msr(dolmen_arch::msr::STAR, 0x0013_0008 << 32).unwrap_or(());
    for entry in [dolmen_arch::msr::LSTAR, dolmen_arch::msr::CSTAR] {
        cpu::write_msr(entry, (&raw const __sandbox_nowhere).addr() as u64).unwrap_or(());
    }
}

/// The guest's own memory is for the kernel only; the pages around the code are small.
fn build_tables() {
    let entry = |table: u64, index: u64, value: u64| write64(table + index * 8, value);
    let old = (&raw const __guest_root).addr() as u64;
    let pointers = read64(old) & !0xfff;
    let directory = read64(pointers) & !0xfff;
    for index in 0..512 {
        entry(DIRECTORY, index, read64(directory + index * 8) & !USER);
        entry(POINTERS, index, read64(pointers + index * 8) & !USER);
        entry(ROOT, index, 0);
        entry(SMALL, index, 0);
    }
    let all = PRESENT | WRITABLE | USER;
    entry(SMALL, 0, CODE | all);
    for page in 4..16 {
        entry(SMALL, page, (DATA + page * 0x1000) | all);
    }
    entry(DIRECTORY, CODE >> 21, SMALL | all);
    entry(DIRECTORY, DATA >> 21, DATA | all | LARGE);
    entry(DIRECTORY, (DATA >> 21) + 1, 0);
    entry(POINTERS, 0, DIRECTORY | all);
    entry(ROOT, 0, POINTERS | all);
}

/// Leaves the guest's RAM mapped and nothing else, or maps devices and holes again. Processors differ in what
/// IRET at CPL 3 may read: some read its frame as the kernel would, wherever the stack pointer points.
pub(super) fn map_devices(wanted: bool) {
    let old = (&raw const __guest_root).addr() as u64;
    let pointers = read64(old) & !0xfff;
    let directory = read64(pointers) & !0xfff;
    let kept = |value: u64| if wanted { value & !USER } else { 0 };
    for index in 1..4 {
        write64(POINTERS + index * 8, kept(read64(pointers + index * 8)));
    }
    for index in RAM_END >> 21..512 {
        write64(DIRECTORY + index * 8, kept(read64(directory + index * 8)));
    }
    load_tables();
}

/// Loads segments, gates and page tables of the sandbox, whatever was there before.
pub(super) fn load_tables() {
    // SAFETY: nobody else has a reference: `prepare` is done with its own.
    let tables = unsafe { &mut *TABLES.0.get() };
    // A TSS that is in use cannot be loaded, so its descriptor says that it is not.
    tables.gdt[5] &= !(2 << 40);
    let (gdt, idt) = ((&raw const tables.gdt).addr(), (&raw const tables.idt).addr());
    let gdt = TablePointer { limit: 14 * 8 - 1, base: gdt as u64 };
    let idt = TablePointer { limit: 256 * 16 - 1, base: idt as u64 };
    // After reset the local table begins at address 0: no descriptors of anybody's making.
    // SAFETY: the tables are complete and static; the new segments are those that are in use.
    unsafe {
        asm!(
            "lgdt [{gdt}]", "lidt [{idt}]", "mov cr3, {root}", "ltr {tss:x}", "lldt {none:x}",
            gdt = in(reg) &raw const gdt, idt = in(reg) &raw const idt, root = in(reg) ROOT,
            tss = in(reg) 0x28u32, none = in(reg) 0u32,
        );
    }
}

/// Whether an event of this vector finds a gate.
pub(super) fn set_gate_present(vector: usize, is_present: bool) {
    // SAFETY: nobody else has a reference: `prepare` is done with its own.
    let tables = unsafe { &mut *TABLES.0.get() };
    if let Some(gate) = tables.idt.get_mut(vector) {
        gate[0] = gate[0] & !(1 << 47) | u64::from(is_present) << 47;
    }
}

/// A descriptor of the sandbox's, by its place in the table.
pub(super) fn descriptor(index: usize) -> u64 {
    // SAFETY: nobody has a reference that writes.
    let tables = unsafe { &*TABLES.0.get() };
    tables.gdt.get(index).copied().unwrap_or(0)
}

/// Loads another table of descriptors; the segments in use stay what they are.
pub(super) fn load_global(base: u64, limit: u16) {
    let pointer = TablePointer { limit, base };
    // SAFETY: no segment is loaded before the caller's code loads one.
    unsafe { asm!("lgdt [{}]", in(reg) &raw const pointer, options(nostack)) };
}

/// Runs `code` at its place. Answers the vector of what ended it.
pub(super) fn run(state: &State, steps: u64) -> u64 {
    let mut state = *state;
    if steps > 0 {
        state.rflags |= 0x100;
    }
    STEPS_LEFT.store(steps, Ordering::Relaxed);
    END.store(u64::MAX, Ordering::Relaxed);
    IS_INSIDE.store(true, Ordering::Relaxed);
    // SAFETY: every way back leads through the gates to `__sandbox_back`, which restores this stack.
    unsafe { __sandbox_enter(&raw const state) };
    END.load(Ordering::Relaxed)
}

/// The registers at the end of the last run.
pub(super) fn last() -> State {
    // SAFETY: the sandbox is not running, so nobody writes.
    unsafe { *LAST.0.get() }
}

extern "C" fn on_event(frame: &mut Frame) {
    if !IS_INSIDE.load(Ordering::Relaxed) {
        if frame.vector < 32 && frame.vector != 2 && frame.vector != 1 {
            frame.rip = fault::expected(frame.vector, frame.error, frame.rip);
            return;
        }
        // A breakpoint that noise left behind must not hit the same instruction again.
        frame.rflags |= 0x1_0000;
        return fault::count(frame.vector, frame.rip);
    }
    if frame.vector == 2 {
        return fault::count(2, frame.rip);
    }
    if frame.vector >= 32 && frame.vector != 0x80 {
        fault::count(frame.vector, frame.rip);
    }
    if frame.vector == 1 && STEPS_LEFT.fetch_sub(1, Ordering::Relaxed) > 1 {
        return;
    }
    IS_INSIDE.store(false, Ordering::Relaxed);
    END.store(frame.vector, Ordering::Relaxed);
    // The stubs push RAX first, so R15 is lowest: the order of `State`.
    let registers = frame.registers;
    let (rip, cs, rflags, rsp, ss) = (frame.rip, frame.cs, frame.rflags, frame.rsp, frame.ss);
    // SAFETY: whoever reads it waits for the sandbox to end.
    unsafe { *LAST.0.get() = State { registers, rip, cs, rflags, rsp, ss } };
    frame.rip = (&raw const __sandbox_back).addr() as u64;
    (frame.cs, frame.ss, frame.rflags) = (0x08, 0x10, 2);
    frame.rsp = STACKS + 0x8000;
}

/// Copies code to its place; the rest of it is INT3.
pub(super) fn write_code(at: u64, code: &[u8]) {
    for offset in 0..code.len() as u64 + 16 {
        let byte = code.get(offset as usize).copied().unwrap_or(0xcc);
        if at + offset < CODE + 0x1000 {
            write8(at + offset, byte);
        }
    }
}

pub(super) fn read64(at: u64) -> u64 {
    let value: u64;
    // SAFETY: the callers name memory of their own.
    unsafe { asm!("mov {}, [{}]", out(reg) value, in(reg) at, options(nostack, readonly)) };
    value
}

pub(super) fn write64(at: u64, value: u64) {
    // SAFETY: as for `read64`.
    unsafe { asm!("mov [{}], {}", in(reg) at, in(reg) value, options(nostack)) };
}

pub(super) fn write32(at: u64, value: u32) {
    cpu::write32(at, value);
}

fn write8(at: u64, value: u8) {
    // SAFETY: as for `read64`.
    unsafe { asm!("mov [{}], {}", in(reg) at, in(reg_byte) value, options(nostack)) };
}
