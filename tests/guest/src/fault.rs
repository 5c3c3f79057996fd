//! Interrupts and exceptions of the guest, and instructions that are expected to fault.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering};

/// An exception that an instruction raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Vector.
    pub(crate) vector: u64,
    /// Error code, or 0.
    pub(crate) error: u64,
    /// CR2.
    pub(crate) address: u64,
}

impl Fault {
    /// A fault of this vector with error code 0.
    pub(crate) fn is(self, vector: u64) -> bool {
        self.vector == vector && self.error == 0
    }
}

/// Vectors.
pub(crate) const DB: u64 = 1;
/// #UD.
pub(crate) const UD: u64 = 6;
/// #GP.
pub(crate) const GP: u64 = 13;
/// #PF.
pub(crate) const PF: u64 = 14;

/// What the entry stubs push.
#[repr(C)]
struct Frame {
    registers: [u64; 9],
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// Where to go on after an expected fault; 0 if none is expected.
pub(crate) static RECOVER: AtomicU64 = AtomicU64::new(0);
static VECTOR: AtomicU64 = AtomicU64::new(0);
static ERROR: AtomicU64 = AtomicU64::new(0);
static ADDRESS: AtomicU64 = AtomicU64::new(0);
/// RIP that the last interrupt interrupted.
static INTERRUPTED: AtomicU64 = AtomicU64::new(0);
/// Interrupts seen, by use.
static TICKS: AtomicU64 = AtomicU64::new(0);
static NMIS: AtomicU64 = AtomicU64::new(0);
static NMI_DEPTH: AtomicU64 = AtomicU64::new(0);
static NMIS_NESTED: AtomicU64 = AtomicU64::new(0);
static NMI_SENDS_ANOTHER: AtomicU64 = AtomicU64::new(0);
static STEPS: AtomicU64 = AtomicU64::new(0);

/// Vector of the local APIC timer and of interrupts that the guest sends itself.
pub(crate) const TIMER: u8 = 0x40;
/// Vector by which user mode comes back.
const BACK: u64 = 0x80;
const NMI: u64 = 2;
const SPURIOUS: u64 = 0xff;

global_asm!(
    r#"
.section .text.interrupt, "ax"
.balign 16
.global __guest_stubs
__guest_stubs:
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
    push rcx
    push rdx
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    cld
    mov rdi, rsp
    call {handler}
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rax
    add rsp, 16
    iretq

# Goes to user mode at RDI with RAX = RSI; comes back through vector 80h or a fault.
.global __guest_user
__guest_user:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [rip + __guest_kernel_rsp], rsp
    mov rax, rsi
    mov rcx, rsp
    sub rcx, 4096
    push 0x1b
    push rcx
    push 0x2
    push 0x23
    push rdi
    iretq
.global __guest_user_back
__guest_user_back:
    mov rsp, [rip + __guest_kernel_rsp]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
.section .bss
.balign 8
__guest_kernel_rsp: .skip 8
"#,
    handler = sym on_interrupt,
);

unsafe extern "C" {
    static __guest_stubs: u8;
    static __guest_user_back: u8;
    fn __guest_user(code: u64, rax: u64) -> u64;
}

static IDT: Idt = Idt(core::cell::UnsafeCell::new([[0; 2]; 256]));

struct Idt(core::cell::UnsafeCell<[[u64; 2]; 256]>);
// SAFETY: written once by `install`, before interrupts are possible and other processors run.
unsafe impl Sync for Idt {}

#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}

/// Loads the interrupt table.
pub(crate) fn install() {
    let stubs = (&raw const __guest_stubs).addr() as u64;
    // SAFETY: called once, before anything can interrupt.
    let table = unsafe { &mut *IDT.0.get() };
    for (vector, gate) in (0u64..).zip(table.iter_mut()) {
        let handler = stubs + vector * 16;
        // Interrupt gates; user mode may use the one that it comes back by.
        let kind = if vector == BACK { 0xee00 } else { 0x8e00 };
        gate[0] = handler & 0xffff | 0x08 << 16 | kind << 32 | (handler & 0xffff_0000) << 32;
        gate[1] = handler >> 32;
    }
    load();
}

/// Lets this processor use the interrupt table.
pub(crate) fn load() {
    let pointer = TablePointer { limit: 256 * 16 - 1, base: IDT.0.get().addr() as u64 };
    // SAFETY: the table is complete and static.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(nostack, readonly)) };
}

extern "C" fn on_interrupt(frame: &mut Frame) {
    match frame.vector {
        NMI | DB => count(frame.vector, frame.rip),
        BACK => come_back(frame),
        0..32 => on_fault(frame),
        _ => count(frame.vector, frame.rip),
    }
}

/// Counts an interrupt that came at `rip`, and ends it.
pub(crate) fn count(vector: u64, rip: u64) {
    match vector {
        NMI => on_nmi(),
        DB => {
            STEPS.fetch_add(1, Ordering::Relaxed);
        }
        SPURIOUS => {}
        crate::smp::CALL | crate::smp::TIME => {
            crate::smp::called(vector);
            crate::apic::end_of_interrupt();
        }
        _ => {
            crate::smp::timer_fired();
            INTERRUPTED.store(rip, Ordering::Relaxed);
            TICKS.fetch_add(1, Ordering::Relaxed);
            crate::apic::end_of_interrupt();
        }
    }
}

/// Counts; the first of a pair sends the second, which must wait until the first is done.
fn on_nmi() {
    NMIS.fetch_add(1, Ordering::Relaxed);
    if NMI_DEPTH.fetch_add(1, Ordering::Relaxed) > 0 {
        NMIS_NESTED.fetch_add(1, Ordering::Relaxed);
    }
    if NMI_SENDS_ANOTHER.swap(0, Ordering::Relaxed) != 0 {
        crate::apic::send_nmi_to_self();
        crate::cpu::cpuid(0, 0);
    }
    NMI_DEPTH.fetch_sub(1, Ordering::Relaxed);
}

/// Lets the next NMI's handler send another; answers how many were ever taken inside of another.
pub(crate) fn pair_nmis() -> u64 {
    NMI_SENDS_ANOTHER.store(1, Ordering::Relaxed);
    nested_nmis()
}

/// NMIs that were taken while another was being handled.
pub(crate) fn nested_nmis() -> u64 {
    NMIS_NESTED.load(Ordering::Relaxed)
}

fn on_fault(frame: &mut Frame) {
    let recover = expected(frame.vector, frame.error, frame.rip);
    if frame.cs & 3 == 3 {
        come_back(frame);
    } else {
        frame.rip = recover;
    }
}

/// Notes a fault that was expected and answers where to go on; one that was not ends the guest.
pub(crate) fn expected(vector: u64, error: u64, rip: u64) -> u64 {
    let recover = RECOVER.swap(0, Ordering::Relaxed);
    if recover == 0 {
        crate::say!("FAIL unexpected exception {vector} error {error:#x} at {rip:#x}");
        crate::cpu::reset();
    }
    VECTOR.store(vector, Ordering::Relaxed);
    ERROR.store(error, Ordering::Relaxed);
    ADDRESS.store(crate::cpu::read_cr2(), Ordering::Relaxed);
    recover
}

/// Leaves user mode: the interrupted code is never gone on with.
fn come_back(frame: &mut Frame) {
    frame.rip = (&raw const __guest_user_back).addr() as u64;
    frame.cs = 0x08;
    frame.ss = 0x10;
    frame.rflags = 2;
}

/// Says where an instruction that may fault is gone on from; 0 again: no fault is expected.
pub(crate) fn expect_fault(recover: u64) {
    VECTOR.store(u64::MAX, Ordering::Relaxed);
    RECOVER.store(recover, Ordering::Relaxed);
}

/// The fault since [`expect_fault`], if there was one.
pub(crate) fn taken() -> Option<Fault> {
    RECOVER.store(0, Ordering::Relaxed);
    let vector = VECTOR.load(Ordering::Relaxed);
    (vector != u64::MAX).then(|| Fault {
        vector,
        error: ERROR.load(Ordering::Relaxed),
        address: ADDRESS.load(Ordering::Relaxed),
    })
}

/// Runs `code` at CPL 3 with `rax`; answers RAX when it comes back by `int 80h`, or its fault.
pub(crate) fn in_user_mode(code: u64, rax: u64) -> Result<u64, Fault> {
    expect_fault(1);
    // SAFETY: the page tables let user mode run the guest's own code; every way back leads through the
    // interrupt table to `__guest_user_back`, which restores this stack.
    let answer = unsafe { __guest_user(code, rax) };
    taken().map_or(Ok(answer), Err)
}

/// Interrupts taken so far.
pub(crate) fn ticks() -> u64 {
    TICKS.load(Ordering::Relaxed)
}

/// NMIs taken so far.
pub(crate) fn nmis() -> u64 {
    NMIS.load(Ordering::Relaxed)
}

/// Debug exceptions taken so far.
pub(crate) fn steps() -> u64 {
    STEPS.load(Ordering::Relaxed)
}

/// RIP that the last interrupt interrupted.
pub(crate) fn interrupted_at() -> u64 {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Runs one or more instructions that may fault, as `asm!` would, and answers the fault that ended them.
///
/// They must leave the stack alone; what they were to write is undefined after a fault.
#[macro_export]
macro_rules! attempt {
    ($code:expr $(, $($operands:tt)*)?) => {{
        $crate::fault::expect_fault(0);
        // SAFETY: a fault goes on at the label behind the instructions; whatever they do is done to this
        // test guest only, which is the point.
        unsafe {
            core::arch::asm!(
                "lea {recover}, [rip + 77f]",
                "mov [rip + {slot}], {recover}",
                $code,
                "77:",
                recover = out(reg) _,
                slot = sym $crate::fault::RECOVER,
                $($($operands)*)?
            );
        }
        $crate::fault::taken()
    }};
}
