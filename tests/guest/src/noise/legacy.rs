//! Leaves long mode, runs any instructions in an older mode, and comes back: real mode with and without its limits,
//! 16- and 32-bit protected mode with and without paging, virtual-8086 mode, and tasks of the hardware's own.
//!
//! Whatever ends the code comes through a gate, or through a task's start, and is noted; then the way leads back to
//! long mode. The code may do what it likes to registers, not to the descriptors that the way back needs.

use core::arch::global_asm;

use super::sandbox::{self, Shared};
use crate::cpu;

/// Memory below 1 MiB that is this module's: 64 KiB, the base of all 16-bit segments.
pub(super) const LOW: u64 = 0x1_0000;
/// The paragraph of [`LOW`].
pub(super) const PARAGRAPH: u32 = 0x1000;
/// Where code lies, counted from [`LOW`].
pub(super) const CODE: u32 = 0x200;
/// Top of the stack, counted from [`LOW`].
const STACK: u32 = 0x9000;
/// What ended the code, and what it starts with, as the assembly below has them.
const LAST: u64 = LOW + 0x3000;
const STATE: u64 = LOW + 0x3800;
/// Words of each.
const LAST_WORDS: usize = 19;
const STATE_WORDS: usize = 24;
/// Where the stubs of real mode go.
const STUBS: u64 = LOW + 0x1000;
/// Page tables: 4 MiB pages; a table of pointers and four of 2 MiB pages. Everything stands at its own address.
pub(super) const DIRECTORY: u64 = 0x1e0_0000;
pub(super) const POINTERS: u64 = DIRECTORY + 0x1000;
const DIRECTORIES: u64 = DIRECTORY + 0x2000;

/// The vector that stands for the start of the task in [`OTHER_TASK`].
pub(super) const ARRIVED: u32 = 0x100;
/// Selectors beside those of the sandbox.
pub(super) const TASK: u32 = 0x70;
pub(super) const OTHER_TASK: u32 = 0x78;
pub(super) const OLD_TASK: u32 = 0x80;
pub(super) const LOCAL_TABLE: u32 = 0x88;
pub(super) const CALL_GATE: u32 = 0x90;
pub(super) const TASK_GATE: u32 = 0x98;
const DESCRIPTORS: usize = 24;

/// What code starts with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct State {
    pub(super) cr0: u32,
    pub(super) cr3: u32,
    pub(super) cr4: u32,
    /// 0: protected mode; 1: real mode; 2: real mode with the limits of protected mode.
    pub(super) real: u32,
    pub(super) task: u32,
    /// Limit in the low half; the base follows, 2 bytes off a word's boundary.
    idt: [u32; 2],
    pub(super) gs: u32,
    pub(super) fs: u32,
    pub(super) ds: u32,
    pub(super) es: u32,
    pub(super) edi: u32,
    pub(super) esi: u32,
    pub(super) ebp: u32,
    unused: u32,
    pub(super) ebx: u32,
    pub(super) edx: u32,
    pub(super) ecx: u32,
    pub(super) eax: u32,
    pub(super) eip: u32,
    pub(super) cs: u32,
    pub(super) eflags: u32,
    pub(super) esp: u32,
    pub(super) ss: u32,
}

/// What ended the code, and with which registers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Last {
    pub(super) edi: u32,
    pub(super) esi: u32,
    pub(super) ebp: u32,
    stub_esp: u32,
    pub(super) ebx: u32,
    pub(super) edx: u32,
    pub(super) ecx: u32,
    pub(super) eax: u32,
    pub(super) vector: u32,
    pub(super) error: u32,
    pub(super) eip: u32,
    pub(super) cs: u32,
    pub(super) eflags: u32,
    /// Of code at another privilege level, or in virtual-8086 mode, with its segments.
    beyond: [u32; 6],
}

/// Where code runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Real,
    Unreal,
    Protected16,
    Protected32,
    Paged32,
    PagedPae,
    User32,
    Virtual86,
    Virtual86Paged,
}

impl Mode {
    pub(super) const ALL: [Self; 9] = [
        Self::Real,
        Self::Unreal,
        Self::Protected16,
        Self::Protected32,
        Self::Paged32,
        Self::PagedPae,
        Self::User32,
        Self::Virtual86,
        Self::Virtual86Paged,
    ];

    /// Whether code runs at CPL 3.
    pub(super) const fn is_user(self) -> bool {
        matches!(self, Self::User32 | Self::Virtual86 | Self::Virtual86Paged)
    }

    /// Whether code is 16-bit.
    pub(super) const fn is_16_bit(self) -> bool {
        !matches!(self, Self::Protected32 | Self::Paged32 | Self::PagedPae | Self::User32)
    }

    /// Whether data segments reach all of the first 4 GiB.
    pub(super) const fn is_flat(self) -> bool {
        matches!(self, Self::Unreal | Self::Protected32 | Self::Paged32 | Self::PagedPae | Self::User32)
    }

    /// The state that runs code at [`CODE`] in this mode.
    pub(super) fn state(self) -> State {
        let mut state = State { cr0: 0x11, cr4: 0x600, task: TASK, eflags: 2, ..State::default() };
        let low = LOW as u32;
        (state.eip, state.esp) = if self.is_16_bit() { (CODE, STACK) } else { (low + CODE, low + STACK) };
        let (code, data) = match self {
            Self::Real | Self::Unreal | Self::Virtual86 | Self::Virtual86Paged => (PARAGRAPH, PARAGRAPH),
            Self::Protected16 => (0x48, 0x58),
            Self::Protected32 | Self::Paged32 | Self::PagedPae => (0x38, 0x10),
            Self::User32 => (0x43, 0x1b),
        };
        (state.cs, state.ss, state.ds, state.es) = (code, data, data, data);
        match self {
            Self::Real => state.real = 1,
            Self::Unreal => (state.real, state.ds, state.es) = (2, 0, 0),
            Self::Paged32 | Self::Virtual86Paged => {
                (state.cr0, state.cr3, state.cr4) = (0x8001_0011, DIRECTORY as u32, 0x610);
            }
            Self::PagedPae => (state.cr0, state.cr3, state.cr4) = (0x8001_0011, POINTERS as u32, 0x620),
            Self::Protected16 | Self::Protected32 | Self::User32 | Self::Virtual86 => {}
        }
        if matches!(self, Self::Virtual86 | Self::Virtual86Paged) {
            state.eflags |= 1 << 17;
        }
        state
    }
}

/// A task state segment of 104 bytes with a map of ports behind.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Task {
    pub(super) word: [u32; 26],
    /// A set bit forbids a port; the last byte belongs to no port.
    pub(super) ports: [u8; 0x204],
}

/// Places in [`Task::word`].
pub(super) const TASK_CR3: usize = 7;
pub(super) const TASK_EIP: usize = 8;
pub(super) const TASK_EFLAGS: usize = 9;
pub(super) const TASK_ESP: usize = 14;
pub(super) const TASK_ES: usize = 18;

/// What the older modes use beside the code: descriptors, gates, tasks.
pub(super) struct Tables {
    pub(super) gdt: [u64; DESCRIPTORS],
    pub(super) idt: [u64; 256],
    pub(super) task: Task,
    pub(super) other: Task,
}

const NO_TASK: Task = Task { word: [0; 26], ports: [0; 0x204] };
static TABLES: Shared<Tables> = Shared(core::cell::UnsafeCell::new(Tables {
    gdt: [0; DESCRIPTORS],
    idt: [0; 256],
    task: NO_TASK,
    other: NO_TASK,
}));

global_asm!(
    r#"
.section .text.legacy, "ax"
.code64
# RDI: a pointer for LGDT.
__legacy_enter:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [rip + __legacy_rsp], rsp
    mov rax, cr0
    mov [rip + __legacy_cr0], rax
    mov rax, cr3
    mov [rip + __legacy_cr3], rax
    mov rax, cr4
    mov [rip + __legacy_cr4], rax
    lgdt [rdi]
    push 0x38
    lea rax, [rip + 2f]
    push rax
    retfq
.code32
2:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esp, offset __legacy_stack_top
    mov ebx, 0x13800
    mov eax, cr0
    and eax, 0x7fffffff         # out of long mode
    mov cr0, eax
    mov ecx, 0xc0000080
    rdmsr
    and eax, 0xfffffeff
    wrmsr
    mov eax, [ebx + 8]
    mov cr4, eax
    mov eax, [ebx + 4]
    mov cr3, eax
    lidt [ebx + 20]
    mov eax, [ebx]
    mov cr0, eax
    jmp 3f
3:
    mov eax, [ebx + 16]
    test eax, eax
    jz 4f
    ltr ax
4:
    mov eax, [ebx + 12]
    test eax, eax
    jnz 8f
    test dword ptr [ebx + 84], 0x20000
    jnz 6f
    test byte ptr [ebx + 80], 3
    jnz 5f
    mov ss, [ebx + 92]          # the same privilege: the frame goes onto the code's own stack
    mov esp, [ebx + 88]
    push dword ptr [ebx + 84]
    push dword ptr [ebx + 80]
    push dword ptr [ebx + 76]
    mov gs, [ebx + 28]
    mov fs, [ebx + 32]
    mov es, [ebx + 40]
    mov edi, [ebx + 44]
    mov esi, [ebx + 48]
    mov ebp, [ebx + 52]
    mov edx, [ebx + 64]
    mov ecx, [ebx + 68]
    mov eax, [ebx + 72]
    push dword ptr [ebx + 60]
    mov ds, [ebx + 36]
    pop ebx
    iretd
5:
    push dword ptr [ebx + 92]
    push dword ptr [ebx + 88]
    push dword ptr [ebx + 84]
    push dword ptr [ebx + 80]
    push dword ptr [ebx + 76]
    mov gs, [ebx + 28]
    mov fs, [ebx + 32]
    mov es, [ebx + 40]
    mov edi, [ebx + 44]
    mov esi, [ebx + 48]
    mov ebp, [ebx + 52]
    mov edx, [ebx + 64]
    mov ecx, [ebx + 68]
    mov eax, [ebx + 72]
    push dword ptr [ebx + 60]
    mov ds, [ebx + 36]
    pop ebx
    iretd
6:
    push dword ptr [ebx + 28]   # virtual-8086 mode: segments come from the frame
    push dword ptr [ebx + 32]
    push dword ptr [ebx + 36]
    push dword ptr [ebx + 40]
    push dword ptr [ebx + 92]
    push dword ptr [ebx + 88]
    push dword ptr [ebx + 84]
    push dword ptr [ebx + 80]
    push dword ptr [ebx + 76]
    mov edi, [ebx + 44]
    mov esi, [ebx + 48]
    mov ebp, [ebx + 52]
    mov edx, [ebx + 64]
    mov ecx, [ebx + 68]
    mov eax, [ebx + 72]
    mov ebx, [ebx + 60]
    iretd
8:
    mov ecx, 0x58               # limits as real mode has them
    cmp eax, 2
    jne 9f
    mov ecx, 0x10               # or everything
9:
    mov ds, ecx
    mov es, ecx
    mov fs, ecx
    mov gs, ecx
    mov ecx, 0x58
    mov ss, ecx
    .byte 0xea
    .long __legacy_to_real - __legacy_blob + 0x1000
    .word 0x48

# What gates of protected mode lead to.
.balign 16
__legacy_gates:
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
    pushad
    mov eax, 0x10
    mov ds, eax
    mov ecx, ss
    lar ecx, ecx
    mov ebx, esp
    test ecx, 0x400000
    jnz 3f
    movzx ebx, bx               # a stack of 64 KiB
3:
    mov edi, 0x13000
    xor ecx, ecx
4:
    mov eax, ss:[ebx + ecx * 4]
    mov [edi + ecx * 4], eax
    inc ecx
    cmp ecx, 19
    jb 4b
__legacy_return:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esp, offset __legacy_stack_top
    push 2
    popfd
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov eax, cr0
    and eax, 0x7fffffff
    or eax, 1
    mov cr0, eax
    mov eax, [__legacy_cr4]
    mov cr4, eax
    mov eax, [__legacy_cr3]
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, [__legacy_cr0]
    mov cr0, eax
    .byte 0xea
    .long __legacy_back
    .word 8

# Where the other task begins when nobody says otherwise.
__legacy_arrived:
    mov eax, 0x10
    mov ds, eax
    mov dword ptr [0x13020], 0x100
    jmp __legacy_return

.code64
__legacy_back:
    mov rsp, [rip + __legacy_rsp]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

# Goes to 1000h in the low 64 KiB: what the table of real mode leads to, then the ways in and out.
.code16
.balign 16
__legacy_blob:
.set vector, 0
.rept 256
    .balign 16
    .byte 0x2e, 0xc7, 0x06      # mov word ptr cs:[3020h], vector
    .word 0x3020
    .word vector
    jmp 2f
    .set vector, vector + 1
.endr
2:
    cli
    mov dword ptr cs:[0x301c], eax
    mov dword ptr cs:[0x3018], ecx
    mov dword ptr cs:[0x3014], edx
    mov dword ptr cs:[0x3010], ebx
    mov dword ptr cs:[0x3008], ebp
    mov dword ptr cs:[0x3004], esi
    mov dword ptr cs:[0x3000], edi
    xor eax, eax
    mov dword ptr cs:[0x3024], eax
    pop ax
    mov dword ptr cs:[0x3028], eax
    pop ax
    mov dword ptr cs:[0x302c], eax
    pop ax
    mov dword ptr cs:[0x3030], eax
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xea
    .long __legacy_return
    .word 0x38
__legacy_to_real:
    mov eax, cr0
    and al, 0xfe
    mov cr0, eax
    .byte 0xea
    .word 3f - __legacy_blob + 0x1000
    .word 0x1000
3:
    mov ax, word ptr cs:[0x385c]
    mov ss, ax
    mov esp, dword ptr cs:[0x3858]
    push word ptr cs:[0x3854]
    push word ptr cs:[0x3850]
    push word ptr cs:[0x384c]
    mov ax, word ptr cs:[0x381c]
    mov gs, ax
    mov ax, word ptr cs:[0x3820]
    mov fs, ax
    mov ax, word ptr cs:[0x3824]
    mov ds, ax
    mov ax, word ptr cs:[0x3828]
    mov es, ax
    mov edi, dword ptr cs:[0x382c]
    mov esi, dword ptr cs:[0x3830]
    mov ebp, dword ptr cs:[0x3834]
    mov ebx, dword ptr cs:[0x383c]
    mov edx, dword ptr cs:[0x3840]
    mov ecx, dword ptr cs:[0x3844]
    mov eax, dword ptr cs:[0x3848]
    iret
__legacy_blob_end:
.code64
.section .bss
.balign 16
__legacy_rsp: .skip 8
__legacy_cr0: .skip 8
__legacy_cr3: .skip 8
__legacy_cr4: .skip 8
.skip 0x1000
__legacy_stack_top:
"#
);

unsafe extern "C" {
    static __legacy_gates: u8;
    static __legacy_arrived: u8;
    static __legacy_blob: u8;
    static __legacy_blob_end: u8;
    fn __legacy_enter(gdt: *const [u16; 5]);
}

/// Descriptors, gates and tasks in good order, whatever a run before left of them.
pub(super) fn tables() -> &'static mut Tables {
    // SAFETY: one processor uses this module, and each caller is done with the last answer.
    let tables = unsafe { &mut *TABLES.0.get() };
    let task = |task: &Task| {
        let at = core::ptr::from_ref(task).addr() as u64;
        (size_of::<Task>() as u64 - 1) | (at & 0xff_ffff) << 16 | 0x89 << 40 | (at >> 24) << 56
    };
    let code16 = |access: u64| 0xffff | LOW << 16 | access << 40;
    let (own, other) = (task(&tables.task), task(&tables.other));
    tables.gdt = [0; DESCRIPTORS];
    let descriptors = [
        (0x08, 0x00af_9b00_0000_ffff),
        (0x10, 0x00cf_9300_0000_ffff),
        (0x18, 0x00cf_f300_0000_ffff),
        (0x38, 0x00cf_9b00_0000_ffff),
        (0x40, 0x00cf_fb00_0000_ffff),
        (0x48, code16(0x9b)),
        (0x50, code16(0xfb)),
        (0x58, code16(0x93)),
        (0x60, code16(0xf3)),
        (TASK, own),
        (OTHER_TASK, other),
        (OLD_TASK, other & !(0x0f << 40) | 1 << 40),
        (LOCAL_TABLE, 0xffff | LOW << 16 | 0x82 << 40),
        (CALL_GATE, (LOW + u64::from(CODE)) & 0xffff | 0x38 << 16 | 0xec << 40 | (LOW & 0xffff_0000) << 32),
        (TASK_GATE, u64::from(OTHER_TASK) << 16 | 0xe5 << 40),
    ];
    for (selector, descriptor) in descriptors {
        tables.gdt[selector as usize / 8] = descriptor;
    }
    let gates = (&raw const __legacy_gates).addr() as u64;
    for (vector, gate) in (0u64..).zip(tables.idt.iter_mut()) {
        let handler = gates + vector * 16;
        *gate = handler & 0xffff | 0x38 << 16 | 0xee << 40 | (handler >> 16) << 48;
    }
    for task in [&mut tables.task, &mut tables.other] {
        *task = NO_TASK;
        (task.word[1], task.word[2]) = ((sandbox::STACKS + 0x1_c000) as u32, 0x10);
        task.word[TASK_CR3] = DIRECTORY as u32;
        (task.word[TASK_EIP], task.word[TASK_EFLAGS]) = ((&raw const __legacy_arrived).addr() as u32, 2);
        task.word[TASK_ESP] = (sandbox::STACKS + 0x1_e000) as u32;
        // ES, CS, SS, DS, FS, GS, LDTR.
        task.word[TASK_ES..TASK_ES + 7].copy_from_slice(&[0x10, 0x38, 0x10, 0x10, 0, 0, 0]);
        task.word[25] = 104 << 16;
        task.ports[0x203] = 0xff;
    }
    tables
}

/// Puts in place what is in memory below 1 MiB, and page tables; they stay.
pub(super) fn prepare() {
    let from = &raw const __legacy_blob;
    let bytes = (&raw const __legacy_blob_end).addr() - from.addr();
    // SAFETY: conventional memory, which nothing else of this guest uses.
    unsafe { core::ptr::copy_nonoverlapping(from, STUBS as *mut u8, bytes) };
    for vector in 0..256 {
        cpu::write32(vector * 4, PARAGRAPH << 16 | (0x1000 + vector as u32 * 16));
    }
    for index in 0..1024u32 {
        cpu::write32(DIRECTORY + u64::from(index) * 4, index << 22 | 0x87);
    }
    for index in 0..4 {
        sandbox::write64(POINTERS + index * 8, DIRECTORIES + index * 0x1000 | 1);
    }
    for index in 0..2048 {
        sandbox::write64(DIRECTORIES + index * 8, index << 21 | 0x87);
    }
}

/// Copies code to its place, with INT3 behind it.
pub(super) fn write_code(code: &[u8]) {
    let mut bytes = [0xcc; 32];
    bytes[..code.len().min(32)].copy_from_slice(&code[..code.len().min(32)]);
    for (at, word) in (0u64..).zip(bytes.chunks(4)) {
        let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        cpu::write32(LOW + u64::from(CODE) + at * 4, word);
    }
}

/// Runs what `state` says with `tables`. Interrupts that came are counted and ended.
pub(super) fn run(state: &State, tables: &Tables) -> Last {
    let mut state = *state;
    let idt = if state.real == 0 { (0x7ff, tables.idt.as_ptr().addr() as u32) } else { (0x3ff, 0) };
    state.idt = [idt.0 | idt.1 << 16, idt.1 >> 16];
    go(&state, tables)
}

/// The same where no event finds a gate: the guest's end.
pub(super) fn run_without_gates(state: &State, tables: &Tables) -> Last {
    go(&State { idt: [0, 0], ..*state }, tables)
}

fn go(state: &State, tables: &Tables) -> Last {
    // SAFETY: the state is 24 words without padding.
    let words: [u32; STATE_WORDS] = unsafe { core::mem::transmute(*state) };
    for (at, word) in (0u64..).zip(words) {
        cpu::write32(STATE + at * 4, word);
    }
    let gdt = tables.gdt.as_ptr().addr() as u64;
    let pointer = [DESCRIPTORS as u16 * 8 - 1, gdt as u16, (gdt >> 16) as u16, (gdt >> 32) as u16, 0];
    // SAFETY: every way back leads to `__legacy_back`, which restores this stack; then the tables of long mode
    // are loaded again.
    unsafe { __legacy_enter(&raw const pointer) };
    sandbox::load_tables();
    let mut words = [0u32; LAST_WORDS];
    for (at, word) in (0u64..).zip(words.iter_mut()) {
        *word = cpu::read32(LAST + at * 4);
    }
    // SAFETY: as many words without padding, of which every value is one.
    let last: Last = unsafe { core::mem::transmute(words) };
    if (32..256).contains(&last.vector) && last.vector != 0x80 {
        crate::fault::count(last.vector.into(), last.eip.into());
    }
    last
}
