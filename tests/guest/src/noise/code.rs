//! Random instructions, alone and at each instruction that exits, in every mode.

use super::random::Random;
use super::sandbox::{self, CODE, DATA, Mode, SMALL, State};
use crate::cpu;

/// Bytes that instructions which exit, change modes or are not there begin with.
const OPCODES: &[&[u8]] = &[
    &[0x0f, 0xa2],             // CPUID
    &[0x0f, 0x30],             // WRMSR
    &[0x0f, 0x32],             // RDMSR
    &[0x0f, 0x33],             // RDPMC
    &[0x0f, 0x31],             // RDTSC
    &[0xf4],                   // HLT
    &[0xf3, 0x90],             // PAUSE
    &[0x0f, 0x01],             // SGDT to RDPRU: all of SVM, XSETBV, SWAPGS, MONITOR, INVLPG, LMSW
    &[0x0f, 0x01, 0xd8],       // VMRUN
    &[0x0f, 0x01, 0xd9],       // VMMCALL
    &[0x0f, 0x01, 0xda],       // VMLOAD
    &[0x0f, 0x01, 0xdb],       // VMSAVE
    &[0x0f, 0x01, 0xdc],       // STGI
    &[0x0f, 0x01, 0xdd],       // CLGI
    &[0x0f, 0x01, 0xde],       // SKINIT
    &[0x0f, 0x01, 0xdf],       // INVLPGA
    &[0x0f, 0x01, 0xc1],       // VMCALL
    &[0x0f, 0x01, 0xc2],       // VMLAUNCH
    &[0x0f, 0x01, 0xd1],       // XSETBV
    &[0x0f, 0x01, 0xc8],       // MONITOR
    &[0x0f, 0x01, 0xc9],       // MWAIT
    &[0x0f, 0x01, 0xfd],       // RDPRU
    &[0x0f, 0x37],             // GETSEC
    &[0x0f, 0x78],             // VMREAD
    &[0x0f, 0x79],             // VMWRITE
    &[0x0f, 0xc7],             // CMPXCHG8B, VMPTRLD, RDRAND
    &[0xf3, 0x0f, 0xc7],       // VMXON
    &[0x66, 0x0f, 0x38, 0x80], // INVEPT
    &[0x66, 0x0f, 0x38, 0x82], // INVPCID
    &[0x0f, 0x20],             // MOV from a control register
    &[0x0f, 0x22],             // MOV to a control register
    &[0x0f, 0x21],             // MOV from a debug register
    &[0x0f, 0x23],             // MOV to a debug register
    &[0x0f, 0x06],             // CLTS
    &[0x0f, 0x08],             // INVD
    &[0x0f, 0x09],             // WBINVD
    &[0x0f, 0xaa],             // RSM
    &[0x0f, 0x00],             // SLDT to VERW
    &[0x0f, 0x05],             // SYSCALL
    &[0x0f, 0x34],             // SYSENTER
    &[0x0f, 0xae],             // FXSAVE, XSAVE, fences
    &[0x0f, 0x0b],             // UD2
    &[0x0f, 0xff],             // UD0
    &[0xcc],                   // INT3
    &[0xcd],                   // INT
    &[0xce],                   // INTO
    &[0xcf],                   // IRET
    &[0xf1],                   // ICEBP
    &[0x9d],                   // POPF
    &[0xe4],                   // IN
    &[0xe6],                   // OUT
    &[0x6c],                   // INS
    &[0x6f],                   // OUTS
    &[0xea],                   // far JMP
    &[0x9a],                   // far CALL
    &[0x8e],                   // MOV to a segment register
    &[0xc5],                   // VEX
    &[0xc4],                   // VEX
    &[0x62],                   // EVEX
    &[0x8f],                   // XOP
];

const PREFIXES: [u8; 12] = [0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x48];

const USER: [Mode; 4] = [Mode::User64, Mode::User64, Mode::User32, Mode::User16];
const KERNEL: [Mode; 4] = [Mode::Kernel64, Mode::Kernel64, Mode::Kernel32, Mode::Kernel16];

const TRIES: u64 = 30_000;

/// Random instructions at CPL 3, where they reach only memory of their own.
pub(super) fn user(random: &mut Random) -> u64 {
    several(random, &USER)
}

/// Random instructions at CPL 0: whatever they do to the guest is done.
pub(super) fn kernel(random: &mut Random) -> u64 {
    several(random, &KERNEL)
}

fn several(random: &mut Random, modes: &[Mode]) -> u64 {
    let tries = random.times(TRIES);
    // Device memory has noise of its own, which few instructions outlive.
    sandbox::map_devices(false);
    super::storm::start_ticking();
    for _ in 0..tries {
        let code = instructions(random);
        // At the end of the page, some of them reach into the next one, which is not there or something else.
        let at =
            if random.one_in(3) { CODE + 0x1000 - 1 - random.below(15) } else { CODE + random.below(16) };
        second_page(random, modes == USER);
        sandbox::write_code(at, &code);
        let mode = random.pick(modes);
        let state = registers(random, mode, at);
        let steps = if state.cs & 3 == 3 { random.below(3) } else { 1 + random.below(4) };
        sandbox::run(&state, steps);
        put_back(random);
    }
    super::storm::stop_ticking();
    // Others rely on it that nothing is behind the code.
    sandbox::write64(SMALL + 8, 0);
    sandbox::map_devices(true);
    tries
}

/// 15 bytes: anything, or prefixes and an opcode before anything.
fn instructions(random: &mut Random) -> [u8; 15] {
    let mut code = [0; 15];
    code.fill_with(|| random.byte());
    if random.one_in(4) {
        return code;
    }
    let mut length = 0;
    while random.one_in(2) && length < 6 {
        code[length] = random.pick(&PREFIXES);
        length += 1;
    }
    for byte in random.pick(OPCODES) {
        code[length] = *byte;
        length += 1;
    }
    code
}

/// The page behind the code: missing, RAM, an entry with reserved bits, and for the kernel a device or a hole.
fn second_page(random: &mut Random, is_user: bool) {
    let ours = [0, 0, DATA | 7, DATA | 7 | 1 << 51];
    let devices = [0xfee0_0007, 0xd000_0007, 0xfec0_0007, 0x80_0000_0007];
    let from = if is_user || random.one_in(2) { &ours } else { &devices };
    let entry = random.pick(from);
    if sandbox::read64(SMALL + 8) != entry {
        sandbox::write64(SMALL + 8, entry);
        reload();
    }
}

/// Registers with values that mean something to some instruction.
fn registers(random: &mut Random, mode: Mode, at: u64) -> State {
    let mut state = mode.state(at);
    for register in &mut state.registers {
        *register = match random.below(8) {
            0 | 1 => DATA + random.below(0x10_0000),
            2 => CODE + 0xff8 + random.below(16),
            3 => random.pick(&[
                0x4000_0000,
                0x4000_0100,
                0x8000_0008,
                0x1b,
                0x10,
                0xc000_0080,
                0x277,
                0x444c_0001,
            ]),
            _ => random.value(),
        };
    }
    state.rflags |= random.next() & 0xcd5 & !0x200;
    state
}

/// What the code may have changed and the guest needs.
fn put_back(random: &mut Random) {
    // SAFETY: no breakpoint of the code's may stay; what it changed of the control registers is put back.
    unsafe {
        core::arch::asm!("mov dr7, {0}", in(reg) 0x400u64);
    }
    if random.one_in(16) {
        crate::noise::storm::start_ticking();
    }
}

fn reload() {
    // SAFETY: loads what is loaded, to forget translations.
    unsafe { core::arch::asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _) };
}

/// A code segment that is 64-bit and 32-bit at once. The bare machine refuses it; where an emulator does not,
/// the hypervisor finds a state that cannot be entered.
pub(super) fn impossible_segment(_: &mut Random) -> u64 {
    let state = State { cs: 0x68, ..Mode::Kernel64.state(CODE) };
    // CPUID exits. What the hypervisor looks at then may be anywhere in the page, so a move to CR3 with many
    // prefixes is everywhere: were it taken for the culprit, the entry would be refused again and again.
    for byte in 0..0xff0 {
        let code = if byte % 15 < 12 { 0x48 } else { [0x0f, 0x22, 0xd8][byte as usize % 15 - 12] };
        sandbox::write_code(CODE + byte, &[code]);
    }
    sandbox::write64(CODE, u64::from_le_bytes([0x0f, 0xa2, 0x48, 0x48, 0x48, 0x48, 0x48, 0x48]));
    sandbox::run(&state, 0);
    cpu::cpuid(0, 0);
    1
}

/// An interrupt with nowhere to push its frame, and a table of gates that is empty: the guest's end.
pub(super) fn no_stack(_: &mut Random) -> u64 {
    let nothing = [0u8; 16];
    // SAFETY: without gates every exception ends in a shutdown.
    unsafe {
        core::arch::asm!("xor esp, esp", "lidt [{0}]", "int 3", in(reg) &raw const nothing, options(noreturn));
    }
}
