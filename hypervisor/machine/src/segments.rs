//! The hypervisor's own GDT, TSS and IDT.
#![expect(unsafe_code, reason = "loading descriptor tables changes what every later instruction means")]
// UNSAFETY: the tables are statics, written once before they are loaded.

use core::arch::asm;
use core::cell::UnsafeCell;

use dolmen_arch::msr::GS_BASE;

use crate::cpus;

/// Selector of the 64-bit code segment.
pub(crate) const CODE_SELECTOR: u16 = 0x08;
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

/// What each processor has of its own: its descriptor table names its task-state segment, which names its stacks.
pub(crate) struct Tables {
    gdt: [u64; 5],
    tss: Tss,
}

impl Tables {
    pub(crate) const EMPTY: Self = Self {
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
    };
}

/// The interrupt table, which all processors share.
struct Handlers(UnsafeCell<[Gate; 256]>);

// SAFETY: written only by `fill_handlers`, which runs once on the boot processor before any processor loads it;
// afterwards only processors read it.
unsafe impl Sync for Handlers {}

static HANDLERS: Handlers = Handlers(UnsafeCell::new([Gate { low: 0, high: 0 }; 256]));

/// Tops of the stacks that a processor takes by itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FaultStacks {
    /// Double faults and machine checks.
    pub(crate) fatal: u64,
    /// Non-maskable interrupts.
    pub(crate) nmi: u64,
    /// #SX.
    pub(crate) security: u64,
}

impl FaultStacks {
    /// Those of the boot processor, which lie in the core's image.
    pub(crate) fn boot() -> Self {
        Self {
            fatal: to_u64((&raw const __ist1_top).addr()),
            nmi: to_u64((&raw const __ist2_top).addr()),
            security: to_u64((&raw const __ist3_top).addr()),
        }
    }
}

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

/// Fills the interrupt table.
///
/// # Safety
/// Called once, on the boot processor, before any processor loads its segments.
pub(crate) unsafe fn fill_handlers() {
    // SAFETY: called once and before all readers, by the caller's promise, so this is the only reference.
    let handlers = unsafe { &mut *HANDLERS.0.get() };
    let stubs = to_u64((&raw const __interrupt_stubs).addr());
    for (vector, slot) in (0u64..).zip(handlers.iter_mut()) {
        *slot = gate(stubs.wrapping_add(vector.wrapping_mul(STUB_BYTES)), stack_of(vector));
    }
}

/// Loads this processor's segments and the interrupt handlers.
///
/// # Safety
/// Called once on each processor, with interrupts off and GIF clear, after [`fill_handlers`]; GS base leads to this
/// processor's block; the stacks are mapped, and used for nothing else.
pub(crate) unsafe fn load(stacks: FaultStacks) {
    let block = cpus::block(cpus::this());
    // SAFETY: called once on the processor whose block it is, by the caller's promise, and nobody else asks for a
    // reference, so this is the only one.
    let tables = unsafe { &mut *block.tables() };
    tables.tss.ist = [stacks.fatal, stacks.nmi, stacks.security, 0, 0, 0, 0];
    tables.gdt = gdt(to_u64((&raw const tables.tss).addr()));
    let gdt = TablePointer { limit: 5 * 8 - 1, base: to_u64((&raw const tables.gdt).addr()) };
    let idt = TablePointer { limit: 256 * 16 - 1, base: to_u64(HANDLERS.0.get().addr()) };
    let [b0, b1, b2, b3, b4, b5, b6, b7] = block.address().to_le_bytes();
    // SAFETY: the tables are static and complete; the selectors name their own entries; the far return goes to the
    // next instruction. Loading GS may clear its base, which the write of GS_BASE gives back.
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
            "wrmsr",
            "ltr {tss:x}",
            gdt = in(reg) &raw const gdt,
            idt = in(reg) &raw const idt,
            code = in(reg) u64::from(CODE_SELECTOR),
            data = in(reg) u32::from(DATA_SELECTOR),
            zero = in(reg) 0u32,
            tss = in(reg) TSS_SELECTOR,
            scratch = out(reg) _,
            in("ecx") GS_BASE,
            in("eax") u32::from_le_bytes([b0, b1, b2, b3]),
            in("edx") u32::from_le_bytes([b4, b5, b6, b7]),
        );
    }
}

/// This processor's segments and tables as [`load`] has made them: what must be there again when a guest has run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostSegments {
    pub(crate) code: u16,
    pub(crate) data: u16,
    pub(crate) task: u16,
    pub(crate) task_base: u64,
    pub(crate) gdt_base: u64,
    pub(crate) idt_base: u64,
    /// GS base.
    pub(crate) block: u64,
}

/// Those of a processor on which [`load`] has run.
pub(crate) fn host(cpu: cpus::CpuId) -> HostSegments {
    let block = cpus::block(cpu);
    let tables = to_u64(block.tables().addr());
    HostSegments {
        code: CODE_SELECTOR,
        data: DATA_SELECTOR,
        task: TSS_SELECTOR,
        task_base: tables.wrapping_add(to_u64(core::mem::offset_of!(Tables, tss))),
        gdt_base: tables.wrapping_add(to_u64(core::mem::offset_of!(Tables, gdt))),
        idt_base: to_u64(HANDLERS.0.get().addr()),
        block: block.address(),
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
