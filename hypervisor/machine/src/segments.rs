//! The hypervisor's own GDT, TSS and IDT.
#![expect(unsafe_code, reason = "loading descriptor tables changes what every later instruction means")]
// UNSAFETY: the tables are statics of this module, written once before they are loaded.

use core::arch::asm;
use core::cell::UnsafeCell;

/// Selector of the 64-bit code segment.
pub const CODE_SELECTOR: u16 = 0x08;
const DATA_SELECTOR: u16 = 0x10;
const TSS_SELECTOR: u16 = 0x18;

/// Interrupt stack table slot of double faults and machine checks, of NMI, and of #SX.
const IST_FATAL: u8 = 1;
const IST_NMI: u8 = 2;
const IST_SECURITY: u8 = 3;

/// 64-bit task-state segment (APM vol. 2, 12.2.5).
#[repr(C, packed(4))]
struct Tss {
    reserved0: u32,
    rsp: [u64; 3],
    reserved1: u64,
    ist: [u64; 7],
    reserved2: u64,
    reserved3: u16,
    io_map_base: u16,
}

const _: () = assert!(size_of::<Tss>() == 104);

/// 64-bit interrupt gate (APM vol. 2, 4.8.4).
#[repr(C)]
#[derive(Clone, Copy)]
struct Gate {
    low: u64,
    high: u64,
}

#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}

struct Tables {
    gdt: [u64; 5],
    tss: Tss,
    idt: [Gate; 256],
}

/// A static that the boot processor fills before anybody reads it.
struct BootCell(UnsafeCell<Tables>);

// SAFETY: written only by `load`, which runs once on the boot processor before any other code of the
// hypervisor could look; afterwards only the processor reads it.
unsafe impl Sync for BootCell {}

static TABLES: BootCell = BootCell(UnsafeCell::new(Tables {
    gdt: [0; 5],
    tss: Tss {
        reserved0: 0,
        rsp: [0; 3],
        reserved1: 0,
        ist: [0; 7],
        reserved2: 0,
        reserved3: 0,
        io_map_base: 104,
    },
    idt: [Gate { low: 0, high: 0 }; 256],
}));

unsafe extern "C" {
    static __ist1_top: u8;
    static __ist2_top: u8;
    static __ist3_top: u8;
    static __interrupt_stubs: u8;
}

/// Bytes between the entry points of two vectors in `__interrupt_stubs`.
pub(crate) const STUB_BYTES: u64 = 16;

fn gate(handler: u64, ist: u8) -> Gate {
    const PRESENT_INTERRUPT_GATE: u64 = 0x8e00;
    Gate {
        low: handler & 0xffff
            | u64::from(CODE_SELECTOR) << 16
            | u64::from(ist) << 32
            | PRESENT_INTERRUPT_GATE << 32
            | (handler & 0xffff_0000) << 32,
        high: handler >> 32,
    }
}

fn stack_of(vector: u64) -> u8 {
    match vector {
        2 => IST_NMI,
        8 | 18 => IST_FATAL,
        30 => IST_SECURITY,
        _ => 0,
    }
}

/// Loads the hypervisor's segments and interrupt handlers on this processor.
///
/// # Safety
/// Called once, on the boot processor, with interrupts off and GIF clear.
pub unsafe fn load() {
    let tables = TABLES.0.get();
    // SAFETY: called once and alone, by the caller's promise, so this is the only reference.
    let tables = unsafe { &mut *tables };
    tables.tss.ist = [
        (&raw const __ist1_top).addr(),
        (&raw const __ist2_top).addr(),
        (&raw const __ist3_top).addr(),
        0,
        0,
        0,
        0,
    ]
    .map(to_u64);
    let tss = to_u64((&raw const tables.tss).addr());
    tables.gdt = gdt(tss);
    let stubs = to_u64((&raw const __interrupt_stubs).addr());
    for (vector, slot) in (0u64..).zip(tables.idt.iter_mut()) {
        *slot = gate(stubs.wrapping_add(vector.wrapping_mul(STUB_BYTES)), stack_of(vector));
    }
    let gdt = TablePointer { limit: 5 * 8 - 1, base: to_u64((&raw const tables.gdt).addr()) };
    let idt = TablePointer { limit: 256 * 16 - 1, base: to_u64((&raw const tables.idt).addr()) };
    // SAFETY: the tables are static and complete; the selectors name their own entries; the far return
    // goes to the next instruction.
    unsafe {
        asm!(
            "lgdt [{gdt}]",
            "lidt [{idt}]",
            "push {code}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            "mov ds, {data:e}",
            "mov es, {data:e}",
            "mov ss, {data:e}",
            "mov fs, {zero:e}",
            "mov gs, {zero:e}",
            "ltr {tss:x}",
            gdt = in(reg) &raw const gdt,
            idt = in(reg) &raw const idt,
            code = in(reg) u64::from(CODE_SELECTOR),
            data = in(reg) u32::from(DATA_SELECTOR),
            zero = in(reg) 0u32,
            tss = in(reg) TSS_SELECTOR,
            scratch = out(reg) _,
        );
    }
}

/// Null, 64-bit code, data, and the two halves of the TSS descriptor (APM vol. 2, 4.8.1–4.8.3).
fn gdt(tss: u64) -> [u64; 5] {
    const CODE: u64 = 0x00af_9b00_0000_ffff;
    const DATA: u64 = 0x00cf_9300_0000_ffff;
    const TSS_AVAILABLE: u64 = 0x89 << 40;
    let low = 103 | (tss & 0x00ff_ffff) << 16 | TSS_AVAILABLE | (tss & 0xff00_0000) << 32;
    [0, CODE, DATA, low, tss >> 32]
}

/// `usize` is 64 bits wide on every machine Dolmen runs on.
#[expect(clippy::as_conversions, reason = "usize to u64 has no From; it widens or keeps on x86-64")]
pub(crate) const fn to_u64(value: usize) -> u64 {
    value as u64
}
