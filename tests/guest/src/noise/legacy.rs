//! Leaves long mode, runs any instructions in an older mode, and comes back: real mode with and without its limits,
//! 16- and 32-bit protected mode with and without paging, virtual-8086 mode, and tasks of the hardware's own.
//!
//! Whatever ends the code comes through a gate, or through a task's start, and is noted; then the way leads back to
//! long mode. The code may do what it likes to registers, not to the descriptors that the way back needs.

use super::bridge::{__legacy_arrived, __legacy_blob, __legacy_blob_end, __legacy_enter, __legacy_gates};
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
        (OLD_TASK, (other & !(0x0f << 40)) | 1 << 40),
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
        sandbox::write64(POINTERS + index * 8, (DIRECTORIES + index * 0x1000) | 1);
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
