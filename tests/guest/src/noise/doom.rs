//! Double faults that a guest outlives, and every way to its end that a guest can find.

use core::arch::asm;

use super::legacy::{self, Mode as OldMode};
use super::random::Random;
use super::sandbox::{self, CODE, Mode, RDI};
use crate::{apic, attempt, cpu, fault, say};

/// Where no memory and no device is; beyond the guest's RAM.
const HOLE: u64 = 0xd000_0000;
const BEYOND: u64 = 0x4_0000_0000;
const DF: u64 = 8;
const NP: u64 = 11;

/// An exception whose gate is not there: its code, its vector, what is delivered in its place.
const MISSING: &[(&[u8], u64, u64)] = &[
    (&[0x0f, 0x0b], 6, NP),        // #UD is benign: the missing gate is a fault of its own
    (&[0xcd, 0x42], 0x42, NP),     // so is a software interrupt
    (&[0xf7, 0xf1], 0, DF),        // #DE is contributory, as #NP is
    (&[0x0f, 0x22, 0xe0], 13, DF), // #GP by an exit: MOV to CR4
    (&[0x0f, 0x32], 13, DF),       // and by RDMSR
    (&[0x8b, 0x07], 14, DF),       // #PF
    (&[0x0f, 0x01, 0xd8], 6, NP),  // #UD by an exit: VMRUN
];

/// Exceptions of the guest's own and of the hypervisor's, with their gates missing.
pub(super) fn double_faults(random: &mut Random) -> u64 {
    const TRIES: u64 = 400;
    let tries = random.times(TRIES);
    for _ in 0..tries {
        let (code, vector, expected) = random.pick(MISSING);
        sandbox::write_code(CODE, code);
        let mut state = random.pick(&[Mode::Kernel64, Mode::Kernel32]).state(CODE);
        state.registers[RDI] = CODE + 0x1000;
        state.registers[sandbox::RAX] = 1 << 31;
        state.registers[sandbox::RCX] = if vector == 0 { 0 } else { 0xc001_0114 };
        sandbox::set_gate_present(vector as usize, false);
        let end = sandbox::run(&state, 0);
        sandbox::set_gate_present(vector as usize, true);
        if end != expected || sandbox::last().rip != CODE {
            say!("{code:x?}: ended by {end} at {:#x}", sandbox::last().rip);
            super::fail("a missing gate leads elsewhere");
        }
    }
    tries
}

/// A way to the guest's end.
type Way = (&'static str, fn());

/// All ways; a seed chooses one.
const WAYS: &[Way] = &[
    ("an exception without a table", no_table),
    ("an exit's fault without a table", exit_without_table),
    ("a timer interrupt without a table", timer_without_table),
    ("an NMI without a table", nmi_without_table),
    ("a table in a hole", table_in_a_hole),
    ("no descriptors", no_descriptors),
    ("descriptors in a hole", descriptors_in_a_hole),
    ("a stack that is not there", || stack(0x7000_0000_0000)),
    ("a stack nowhere", || stack(1 << 63)),
    ("a stack in a hole", || stack(HOLE + 0x1000)),
    ("page tables in a hole", || tables(HOLE)),
    ("page tables beyond RAM", || tables(BEYOND)),
    ("page tables in the APIC", || tables(0xfee0_0000)),
    ("real mode without a table", || old_mode(OldMode::Real)),
    ("protected mode without a table", || old_mode(OldMode::Protected32)),
    ("virtual-8086 mode without a table", || old_mode(OldMode::Virtual86)),
    ("older page tables in a hole", old_tables),
    ("a double fault's task that is not there", missing_task),
    ("a task in a hole", task_in_a_hole),
    ("INIT to itself", init),
    ("a wait for nothing", wait),
];

/// The way that the seed chooses.
pub(super) fn end(random: &mut Random) -> u64 {
    let (name, way) = WAYS[random.seed() as usize % WAYS.len()];
    say!("noise: doom by {name}");
    way();
    1
}

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

fn load_gates(limit: u16, base: u64) {
    let pointer = Pointer { limit, base };
    // SAFETY: the guest's end is what is wanted.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer) };
}

fn load_descriptors(limit: u16, base: u64) {
    let pointer = Pointer { limit, base };
    // SAFETY: the guest's end is what is wanted.
    unsafe { asm!("lgdt [{}]", in(reg) &raw const pointer) };
}

fn no_table() {
    load_gates(0, 0);
    // SAFETY: there is no way back.
    unsafe { asm!("int3") };
}

fn exit_without_table() {
    load_gates(15, 0);
    // SAFETY: there is no way back.
    unsafe { asm!("wrmsr", in("ecx") 0xc001_0114u32, in("eax") 0, in("edx") 0) };
}

fn timer_without_table() {
    apic::start_timer(1_000_000);
    load_gates(0, 0);
    // SAFETY: there is no way back.
    unsafe { asm!("2:", "sti", "hlt", "jmp 2b") };
}

fn nmi_without_table() {
    load_gates(0, 0);
    apic::send_nmi_to_self();
    // SAFETY: there is no way back.
    unsafe { asm!("2:", "pause", "jmp 2b") };
}

fn table_in_a_hole() {
    load_gates(0xfff, HOLE);
    // SAFETY: there is no way back.
    unsafe { asm!("ud2") };
}

fn no_descriptors() {
    load_descriptors(0, 0);
    // SAFETY: there is no way back: no gate's code segment is there.
    unsafe { asm!("ud2") };
}

fn descriptors_in_a_hole() {
    load_descriptors(0xfff, HOLE);
    // SAFETY: there is no way back.
    unsafe { asm!("mov ds, {0:x}", "ud2", in(reg) 0x10u32) };
}

fn stack(at: u64) {
    fault::load();
    // SAFETY: there is no way back.
    unsafe { asm!("mov rsp, {}", "ud2", in(reg) at) };
}

fn tables(at: u64) {
    // SAFETY: there is no way back.
    unsafe { asm!("mov cr3, {}", "mov rax, [rax]", in(reg) at) };
}

fn old_mode(mode: OldMode) {
    legacy::prepare();
    legacy::write_code(&[0x0f, 0x0b]);
    legacy::run_without_gates(&mode.state(), legacy::tables());
}

fn old_tables() {
    legacy::prepare();
    legacy::write_code(&[0x0f, 0xa2]);
    let mut state = OldMode::PagedPae.state();
    state.cr3 = HOLE as u32;
    legacy::run(&state, legacy::tables());
}

fn missing_task() {
    legacy::prepare();
    legacy::write_code(&[0x0f, 0x0b]);
    let tables = legacy::tables();
    tables.idt = [0; 256];
    tables.idt[8] = u64::from(legacy::OTHER_TASK) << 16 | 0xe5 << 40;
    tables.gdt[legacy::OTHER_TASK as usize / 8] &= !(1 << 47);
    legacy::run(&OldMode::Protected32.state(), tables);
}

fn task_in_a_hole() {
    legacy::prepare();
    legacy::write_code(&[0xea, 0, 0, 0, 0, legacy::OTHER_TASK as u8, 0]);
    let tables = legacy::tables();
    tables.gdt[legacy::OTHER_TASK as usize / 8] =
        0x67 | (HOLE & 0xff_ffff) << 16 | 0x89 << 40 | (HOLE >> 24) << 56;
    legacy::run(&OldMode::Protected32.state(), tables);
}

fn init() {
    attempt!("wrmsr", in("ecx") 0x830, in("eax") 0x4500, in("edx") 0);
    cpu::cpuid(0, 0);
}

fn wait() {
    // SAFETY: there is no way back.
    unsafe { asm!("cli", "hlt") };
}
