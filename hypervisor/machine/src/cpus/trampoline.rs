//! The first instructions of a processor that is started: one page of the first MiB, from real mode to the core.
//!
//! The page is a copy of the code below with parameters near its end, made for one processor at a time. That page
//! is mapped where it lies while processors start: never writable, and nowhere afterwards.
#![expect(unsafe_code, reason = "a processor starts in assembly")]
// UNSAFETY: the code uses its own page and nothing else until it is on the stack that it was given.

use core::arch::global_asm;

use dolmen_arch::bits::low32;
use dolmen_arch::msr::{EFER, GS_BASE};
use dolmen_arch::register::Efer;
use dolmen_memory::Hpa;
use zerocopy::{Immutable, IntoBytes};

use crate::cpu;
use crate::paging::CopyWindow;
use crate::segments::{CODE_SELECTOR, to_u64};

const PAGE: usize = 0x1000;
/// Where the parameters are in the page.
const PARAMETERS: usize = 0xf00;
/// HLT: what a page is filled with that nobody may start in any more.
const HALT: u8 = 0xf4;

global_asm!(
    r#"
.section .rodata.start_page, "a"
.balign 16
.code16
__start_page:
    cli
    cld
    mov ax, cs
    mov ds, ax
    lgdt [{parameters} + 0x18]
    mov eax, dword ptr [{parameters} + 0x28]
    mov cr4, eax
    mov eax, dword ptr [{parameters} + 0x24]
    mov cr3, eax
    mov ecx, {efer}
    mov eax, dword ptr [{parameters} + 0x2c]
    xor edx, edx
    wrmsr
    mov eax, dword ptr [{parameters} + 0x20]
    mov cr0, eax
    jmp fword ptr [{parameters} + 0x30]
.code64
__start_page_long:
    mov eax, 0x10
    mov ss, eax
    mov ds, eax
    mov es, eax
    lea rbx, [rip + __start_page]
    mov rsp, [rbx + {parameters} + 0x38]
    mov eax, dword ptr [rbx + {parameters} + 0x40]
    mov edx, dword ptr [rbx + {parameters} + 0x44]
    mov ecx, {gs_base}
    wrmsr
    xor ebp, ebp
    push rbp
    jmp qword ptr [rbx + {parameters} + 0x48]
__start_page_end:
"#,
    parameters = const PARAMETERS,
    efer = const EFER,
    gs_base = const GS_BASE,
);

unsafe extern "C" {
    static __start_page: u8;
    static __start_page_long: u8;
    static __start_page_end: u8;
}

/// What the code finds at [`PARAMETERS`].
#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct Parameters {
    gdt: [u64; 3],
    gdt_limit: u16,
    /// The low half of its address, and the high one.
    gdt_base: [u16; 2],
    reserved: u16,
    cr0: u32,
    cr3: u32,
    cr4: u32,
    efer: u32,
    entry_32: u32,
    selector: u16,
    reserved_2: u16,
    stack: u64,
    block: u64,
    entry: u64,
}

const _: () = assert!(size_of::<Parameters>() == 0x50 && PARAMETERS + size_of::<Parameters>() <= PAGE);

/// Where a processor goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    /// Top of its stack.
    pub(super) stack: u64,
    /// Its block.
    pub(super) block: u64,
    /// The first function; takes nothing, never returns.
    pub(super) entry: extern "C" fn() -> !,
}

/// The page in the first MiB.
#[derive(Debug)]
pub(super) struct StartPage {
    at: u32,
    window: CopyWindow,
}

impl StartPage {
    /// # Safety
    /// The page at `at`, in the first MiB, is RAM that nobody else uses.
    pub(super) const unsafe fn new(at: u32, window: CopyWindow) -> Self {
        Self { at, window }
    }

    /// Number of the page, as a start-up interrupt names it.
    pub(super) fn number(&self) -> u8 {
        let [_, low, high, _] = self.at.to_le_bytes();
        low >> 4 | high << 4
    }

    /// Fills the page for the processor that goes `way`, in the mode and by the tables of this one.
    pub(super) fn fill(&self, way: Way) {
        let start = (&raw const __start_page).addr();
        let length = (&raw const __start_page_end).addr().wrapping_sub(start);
        let long = (&raw const __start_page_long).addr().wrapping_sub(start);
        let [low, high] = [self.gdt(), self.gdt() >> 16].map(low16);
        #[expect(clippy::as_conversions, reason = "the address of a function")]
        let entry = to_u64(way.entry as usize);
        let parameters = Parameters {
            gdt: [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff],
            gdt_limit: 3 * 8 - 1,
            gdt_base: [low, high],
            reserved: 0,
            cr0: low32(cpu::read_cr0()),
            cr3: low32(cpu::read_cr3()),
            cr4: low32(cpu::read_cr4()),
            efer: low32(cpu::read_efer() & !Efer::SVME.union(Efer::LMA).bits()),
            entry_32: self.at.wrapping_add(low32(to_u64(long))),
            selector: CODE_SELECTOR,
            reserved_2: 0,
            stack: way.stack,
            block: way.block,
            entry,
        };
        // SAFETY: the code is a constant of this image, between its two labels.
        let code = unsafe { core::slice::from_raw_parts(&raw const __start_page, length) };
        // SAFETY: `new`'s caller gave us the page, and no Rust object lies there.
        unsafe { self.window.write(Hpa::new(self.at.into()), code) };
        let at = u64::from(self.at).wrapping_add(to_u64(PARAMETERS));
        // SAFETY: as above.
        unsafe { self.window.write(Hpa::new(at), parameters.as_bytes()) };
        cpu::write_back_caches();
    }

    /// Takes everything off the page: a processor that starts there now halts at once.
    pub(super) fn wipe(&self) {
        let halts = [HALT; PAGE];
        // SAFETY: as in `fill`.
        unsafe { self.window.write(Hpa::new(self.at.into()), &halts) };
        cpu::write_back_caches();
    }

    fn gdt(&self) -> u32 {
        self.at.wrapping_add(low32(to_u64(PARAMETERS)))
    }
}

/// The low half.
fn low16(value: u32) -> u16 {
    dolmen_arch::bits::low16(value.into())
}
