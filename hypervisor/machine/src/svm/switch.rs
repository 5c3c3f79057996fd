//! The world switch.
#![expect(unsafe_code, reason = "registers change hands in assembly")]
// UNSAFETY: one naked function; every register that the ABI wants preserved is pushed and popped.

use core::arch::naked_asm;
use core::mem::offset_of;

use dolmen_arch::Gprs;
use dolmen_memory::Hpa;

use super::frame::VmcbFrame;

/// Loads all general-purpose registers but RAX, RSP and RDI from the [`Gprs`] that RDI points to.
macro_rules! load_gprs {
    () => {
        concat!(
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

/// Enters the guest of `guest` with `gprs` and comes back at its next exit. RAX and RSP travel in the VMCB.
/// `host` is the frame of this processor's own that keeps the host's half of what VMLOAD loads.
pub(super) fn enter(gprs: &mut Gprs, guest: &mut VmcbFrame, host: Hpa) {
    let (guest, host) = (guest.physical().get(), host.get());
    // SAFETY: `host` comes from this processor's `SvmCpu`, which the caller has compared with `this`, made by
    // `SvmHost::enable`, so SVME is set, VM_HSAVE_PA names a frame of our own, GIF is 0, and VMSAVE filled
    // `host` on this processor, which nobody writes since. The guest's frame is a whole page that we borrow
    // mutably. The guest reaches only memory that its nested tables map: never ours.
    unsafe { world_switch(gprs, guest, host) };
}

/// Fills `host` with this processor's FS, GS, TR, LDTR and system-call registers.
///
/// # Safety
/// EFER.SVME is set.
pub(super) unsafe fn save_host(host: &mut VmcbFrame) {
    let at = host.physical().get();
    // SAFETY: VMSAVE takes its address in RAX and writes only to that frame, which is borrowed mutably; SVME
    // is on, by the caller's promise.
    unsafe { core::arch::asm!("vmsave rax", in("rax") at, options(nostack, preserves_flags)) };
}

/// 1. Save the host's callee-saved registers and the three arguments.
/// 2. Load the guest's VMLOAD set and general-purpose registers; IF = 1, so that interrupts end its turn.
///    IF is set early: its shadow must not reach into the guest.
/// 3. VMRUN. The processor comes back with the host's RAX, RSP, RIP and RFLAGS (DF = 0), and GIF = 0
///    (APM vol. 2, 15.6).
/// 4. IF = 0; save the guest's VMLOAD set and registers, load the host's VMLOAD set.
///
/// # Safety
/// EFER.SVME is set, VM_HSAVE_PA is valid, GIF = 0; `gprs` may be read and written; the two addresses are
/// frames that hold VMCBs nobody looks at meanwhile, `host`'s filled by VMSAVE.
#[unsafe(naked)]
unsafe extern "sysv64" fn world_switch(gprs: *mut Gprs, guest: u64, host: u64) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdx",
        "push rdi",
        "sti",
        "mov rax, rsi",
        "vmload rax",
        load_gprs!(),
        "mov rdi, [rdi + {rdi}]",
        "vmrun rax",
        "cli",
        "vmsave rax",
        "push rdi",
        "mov rdi, [rsp + 8]",
        store_gprs!(),
        "pop qword ptr [rdi + {rdi}]",
        "mov rax, [rsp + 8]",
        "vmload rax",
        "add rsp, 16",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
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
}
