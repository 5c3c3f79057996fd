//! Interrupt and exception entry of the hypervisor itself.
//!
//! The hypervisor runs with interrupts held off, by GIF = 0 on AMD and by IF = 0 everywhere; they are taken only
//! inside the windows. External
//! interrupts do nothing but end a wait: whoever opened the window looks at the state of the world.
//! Every exception is fatal: it goes to the fatal handler that `core` registers, which scrubs and stops.
#![expect(unsafe_code, reason = "interrupt entry is assembly")]
// UNSAFETY: the stubs save and restore every register that the ABI lets a function change.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use crate::apic;
use crate::cpus;

/// Vector of the local APIC timer.
pub const TIMER_VECTOR: u8 = 0x40;
/// Vector by which another processor calls.
pub const CALL_VECTOR: u8 = 0x41;
/// Spurious-interrupt vector of the local APIC.
pub const SPURIOUS_VECTOR: u8 = 0xff;
/// #SX: an INIT that arrived while VM_CR.R_INIT was set (APM vol. 2, 15.28).
pub const SECURITY_EXCEPTION: u8 = 30;
const NMI: u64 = 2;

/// What the entry stubs push, lowest address first.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// R15 to RAX.
    pub registers: [u64; 15],
    /// Vector number.
    pub vector: u64,
    /// Error code, or 0.
    pub error: u64,
    /// Interrupted RIP.
    pub rip: u64,
    /// Interrupted CS.
    pub cs: u64,
    /// Interrupted RFLAGS.
    pub rflags: u64,
    /// Interrupted RSP.
    pub rsp: u64,
    /// Interrupted SS.
    pub ss: u64,
}

/// How physical interrupts are held off outside of windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// By the global interrupt flag, NMIs among them (APM vol. 2, 15.17).
    Global,
    /// By IF alone: an NMI comes at any time, and only makes whoever waits look around.
    Flag,
}

/// The right to let interrupts in: there is an IDT that accepts every vector, and the extension is enabled.
#[derive(Debug)]
pub struct Window(Gate);

impl Window {
    /// # Safety
    /// `segments::load` has run, the APIC is enabled, and the extension whose gate it is is on, on this processor.
    pub(crate) const unsafe fn new(gate: Gate) -> Self {
        Self(gate)
    }

    /// Takes every interrupt that is pending; they are held off again afterwards.
    pub fn take_pending(&self) {
        match self.0 {
            // SAFETY: a `Window` is only made where every vector has a handler and STGI exists. Handlers may
            // write memory, hence no `nomem`.
            Gate::Global => unsafe { asm!("stgi", "sti", "nop", "nop", "cli", "clgi", options(nostack)) },
            // SAFETY: as above.
            Gate::Flag => unsafe { asm!("sti", "nop", "nop", "cli", options(nostack)) },
        }
    }

    /// Waits for one interrupt and takes it. A timer must have been started.
    pub fn wait(&self) {
        // STI's shadow makes STI;HLT atomic: a wake-up between the two is not lost.
        match self.0 {
            // SAFETY: as above.
            Gate::Global => unsafe { asm!("stgi", "sti", "hlt", "cli", "clgi", options(nostack)) },
            // SAFETY: as above.
            Gate::Flag => unsafe { asm!("sti", "hlt", "cli", options(nostack)) },
        }
    }
}

/// Called for every exception; must not return.
pub type FatalHandler = fn(&Frame) -> !;

static FATAL: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());
static NMIS: AtomicU64 = AtomicU64::new(0);

global_asm!(
    r#"
.section .text.interrupt, "ax"
.balign 16
.global __interrupt_stubs
__interrupt_stubs:
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
    # The stubs push the vector above the error code; see Frame.
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
    call {handler}
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
"#,
    handler = sym on_interrupt,
);

/// Registers who is told of exceptions. Until then an exception halts the processor.
pub fn set_fatal_handler(handler: FatalHandler) {
    #[expect(clippy::as_conversions, reason = "a function pointer has no other way into an atomic")]
    FATAL.store(handler as *mut (), Ordering::Release);
}

/// Non-maskable interrupts seen so far.
pub fn nmi_count() -> u64 {
    NMIS.load(Ordering::Relaxed)
}

extern "C" fn on_interrupt(frame: &Frame) {
    if frame.vector >= 32 {
        cpus::block(cpus::this()).count_interrupt();
    }
    match frame.vector {
        // NMIs are not ours to use, but for the way out: counted, and the wait that they ended looks around.
        NMI => {
            NMIS.fetch_add(1, Ordering::Relaxed);
            if cpus::is_left_by_another() {
                cpus::park();
            }
        }
        0..32 => fatal(frame),
        vector if vector == u64::from(CALL_VECTOR) => {
            apic::end_of_interrupt();
            cpus::serve();
        }
        vector if vector == u64::from(SPURIOUS_VECTOR) => {}
        _ => apic::end_of_interrupt(),
    }
}

fn fatal(frame: &Frame) -> ! {
    let handler = FATAL.load(Ordering::Acquire);
    if handler.is_null() {
        crate::cpu::halt_for_ever();
    }
    // SAFETY: the only value ever stored, other than null, is a `FatalHandler`.
    let handler: FatalHandler = unsafe { core::mem::transmute(handler) };
    handler(frame)
}
