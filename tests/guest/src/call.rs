//! Hypercalls, by the instruction that this processor has for them.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};

use dolmen_guest::vmmcall::Instruction;

/// Intel's instruction, and AMD's.
const VMCALL: &[u8] = &[0x0f, 0x01, 0xc1];
const VMMCALL: &[u8] = &[0x0f, 0x01, 0xd9];

/// Whether the instruction is Intel's: noted, because to find out is an exit.
static IS_VMCALL: AtomicBool = AtomicBool::new(false);

/// Finds out which instruction it is; before the first call.
pub(crate) fn prepare() {
    IS_VMCALL.store(Instruction::detect() == Some(Instruction::Vmcall), Ordering::Relaxed);
}

/// Whether the processor is one of Intel's.
pub(crate) fn is_intel() -> bool {
    IS_VMCALL.load(Ordering::Relaxed)
}

/// The instruction as bytes, for code that is made.
pub(crate) fn instruction() -> &'static [u8] {
    if is_intel() { VMCALL } else { VMMCALL }
}

/// The instruction that the other maker's processors have.
pub(crate) fn foreign_instruction() -> &'static [u8] {
    if is_intel() { VMMCALL } else { VMCALL }
}

/// Makes one call; status and length of the reply. The arguments are those of RDI, RSI, RDX, RCX.
#[inline(always)]
pub(crate) fn call(number: u64, [rdi, rsi, rdx, rcx]: [u64; 4]) -> (u64, u64) {
    let (status, length);
    if is_intel() {
        // SAFETY: the service writes only where the reply points: memory that the callers keep for it.
        unsafe {
            asm!("vmcall", inout("rax") number => status, in("rdi") rdi, in("rsi") rsi,
                 inout("rdx") rdx => length, in("rcx") rcx, options(nostack));
        }
    } else {
        // SAFETY: as above.
        unsafe {
            asm!("vmmcall", inout("rax") number => status, in("rdi") rdi, in("rsi") rsi,
                 inout("rdx") rdx => length, in("rcx") rcx, options(nostack));
        }
    }
    (status, length)
}
