//! The world switch.
#![expect(unsafe_code, reason = "registers change hands in assembly")]
// UNSAFETY: two naked functions that are one; every register that the ABI wants preserved is pushed and popped.

use core::arch::{asm, naked_asm};
use core::mem::offset_of;

use dolmen_arch::Gprs;

use super::frame::{HOST_RSP, VmcsFrame};
use crate::cpus;
use crate::segments::to_u64;

/// How an entry ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entered {
    /// In the guest, and out of it again by an exit; or refused for its state, which is told as an exit.
    Exited,
    /// The instruction itself failed (SDM vol. 3C, 31.2): nothing happened.
    Failed,
}

/// Loads all general-purpose registers but RSP and RDI from the [`Gprs`] that RDI points to.
macro_rules! load_gprs {
    () => {
        concat!(
            "mov rax, [rdi + {rax}]\n",
            "mov rcx, [rdi + {rcx}]\n",
            "mov rdx, [rdi + {rdx}]\n",
            "mov rbx, [rdi + {rbx}]\n",
            "mov rbp, [rdi + {rbp}]\n",
            "mov rsi, [rdi + {rsi}]\n",
            "mov r8, [rdi + {r8}]\n",
            "mov r9, [rdi + {r9}]\n",
            "mov r10, [rdi + {r10}]\n",
            "mov r11, [rdi + {r11}]\n",
            "mov r12, [rdi + {r12}]\n",
            "mov r13, [rdi + {r13}]\n",
            "mov r14, [rdi + {r14}]\n",
            "mov r15, [rdi + {r15}]\n",
        )
    };
}

/// Stores them.
macro_rules! store_gprs {
    () => {
        concat!(
            "mov [rdi + {rax}], rax\n",
            "mov [rdi + {rcx}], rcx\n",
            "mov [rdi + {rdx}], rdx\n",
            "mov [rdi + {rbx}], rbx\n",
            "mov [rdi + {rbp}], rbp\n",
            "mov [rdi + {rsi}], rsi\n",
            "mov [rdi + {r8}], r8\n",
            "mov [rdi + {r9}], r9\n",
            "mov [rdi + {r10}], r10\n",
            "mov [rdi + {r11}], r11\n",
            "mov [rdi + {r12}], r12\n",
            "mov [rdi + {r13}], r13\n",
            "mov [rdi + {r14}], r14\n",
            "mov [rdi + {r15}], r15\n",
        )
    };
}

macro_rules! with_offsets {
    ($($template:expr),+ $(; $($name:ident = $kind:ident $operand:expr),+)?) => {
        naked_asm!(
            $($template,)+
            $($($name = $kind $operand,)+)?
            rax = const offset_of!(Gprs, rax),
            rcx = const offset_of!(Gprs, rcx),
            rdx = const offset_of!(Gprs, rdx),
            rbx = const offset_of!(Gprs, rbx),
            rbp = const offset_of!(Gprs, rbp),
            rsi = const offset_of!(Gprs, rsi),
            rdi = const offset_of!(Gprs, rdi),
            r8 = const offset_of!(Gprs, r8),
            r9 = const offset_of!(Gprs, r9),
            r10 = const offset_of!(Gprs, r10),
            r11 = const offset_of!(Gprs, r11),
            r12 = const offset_of!(Gprs, r12),
            r13 = const offset_of!(Gprs, r13),
            r14 = const offset_of!(Gprs, r14),
            r15 = const offset_of!(Gprs, r15),
        )
    };
}

/// Enters the guest of `guest`, which is current here, with `gprs`, and comes back at its next exit. RSP travels in
/// the control structure.
pub(super) fn enter(gprs: &mut Gprs, guest: &mut VmcsFrame) -> Entered {
    let is_launched = u64::from(guest.is_launched);
    // SAFETY: `guest` is current on this processor, which the caller has compared with `this`; its host fields are
    // those of this processor, set when it was loaded, and its nested tables map only the guest's memory: never ours.
    let failed = unsafe { world_switch(gprs, is_launched) };
    if failed == 0 {
        guest.is_launched = true;
        Entered::Exited
    } else {
        Entered::Failed
    }
}

/// Where exits come back to: for the host's RIP.
pub(super) fn exit_address() -> u64 {
    #[expect(clippy::as_conversions, reason = "a function's address has no other way into a field")]
    to_u64(world_switch_back as *const () as usize)
}

/// Lets the host's handlers take the interrupts that wait; whether there were any.
pub(super) fn take_interrupts() -> bool {
    let block = cpus::block(cpus::this());
    let before = block.interrupts();
    // SAFETY: a virtual processor is entered after a `Window` was made, so every vector has a handler that returns.
    // Handlers may write memory, hence no `nomem`.
    unsafe { asm!("sti", "nop", "nop", "cli", options(nostack)) };
    block.interrupts() != before
}

/// Lets the host's handler take the NMI that an exit has swallowed; its return ends the blocking of further ones.
pub(super) fn take_nmi() {
    // SAFETY: the interrupt table has a handler for vector 2, on a stack of its own, that returns.
    unsafe { asm!("int 2", options(nostack)) };
}

/// 1. Save the host's callee-saved registers and the first argument, and let exits find them: host RSP.
/// 2. Load the guest's general-purpose registers; VMRESUME after the first VMLAUNCH.
/// 3. What comes after them is reached only if they fail: clean up, answer 1. Loading changes no flag.
///
/// # Safety
/// VMX is on; the current control structure's host fields are this processor's, its RIP [`world_switch_back`]; `gprs`
/// may be read and written.
#[unsafe(naked)]
unsafe extern "sysv64" fn world_switch(gprs: *mut Gprs, is_launched: u64) -> u64 {
    with_offsets!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "mov eax, {host_rsp}",
        "vmwrite rax, rsp",
        "test rsi, rsi",
        load_gprs!(),
        "mov rdi, [rdi + {rdi}]",
        "jnz 2f",
        "vmlaunch",
        "jmp 3f",
        "2:",
        "vmresume",
        "3:",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "mov eax, 1",
        "cld",
        "ret";
        host_rsp = const HOST_RSP
    )
}

/// Where the processor comes back from the guest, on the stack that [`world_switch`] left: saves the guest's registers,
/// and answers 0 to that function's caller.
///
/// # Safety
/// Only the processor comes here.
#[unsafe(naked)]
unsafe extern "sysv64" fn world_switch_back() -> u64 {
    with_offsets!(
        "push rdi",
        "mov rdi, [rsp + 8]",
        store_gprs!(),
        "pop qword ptr [rdi + {rdi}]",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "xor eax, eax",
        "cld",
        "ret"
    )
}
