//! Hypercalls, from the kernel and from user mode, and what else user mode may not do.

use core::arch::global_asm;

use dolmen_abi::Status;

use crate::call::{call, is_intel};
use crate::fault::{self, GP, UD};
use crate::{Test, Verdict, check};

pub(crate) const TESTS: &[Test] = &[
    ("a_hypercall_answers", hypercall),
    ("an_unknown_hypercall_answers_as_kvm_does", unknown_hypercall),
    ("a_hypercall_from_user_mode_is_refused", user_hypercall),
    ("svm_instructions_are_no_way_out_of_user_mode", user_svm),
    ("user_mode_cannot_reach_ports_or_halt", user_privileged),
    ("cpuid_answers_user_mode", user_cpuid),
];

/// Number of the call that tells the version.
const VERSION: u64 = dolmen_abi::NUMBER_BASE as u64;

global_asm!(
    r#"
.section .text
code_vmmcall:
    xor edi, edi
    xor esi, esi
    xor edx, edx
    xor ecx, ecx
    vmmcall
    int 0x80
code_vmcall:
    xor edi, edi
    xor esi, esi
    xor edx, edx
    xor ecx, ecx
    vmcall
    int 0x80
code_skinit:
    skinit eax
    int 0x80
code_vmrun:
    vmrun rax
    int 0x80
code_out:
    mov dx, 0x3ff
    out dx, al
    int 0x80
code_hlt:
    hlt
    int 0x80
code_cpuid:
    xor eax, eax
    push rbx
    cpuid
    pop rbx
    int 0x80
"#
);

unsafe extern "C" {
    static code_vmmcall: u8;
    static code_vmcall: u8;
    static code_skinit: u8;
    static code_vmrun: u8;
    static code_out: u8;
    static code_hlt: u8;
    static code_cpuid: u8;
}

fn hypercall() -> Verdict {
    let mut reply = [0u64; 64];
    let at = (&raw mut reply).addr() as u64;
    for number in VERSION..VERSION + 4 {
        let (status, length) = call(number, [0, 0, at, 512]);
        if status == u64::from(Status::OK.0) {
            return check(length > 0 && reply.iter().any(|word| *word != 0), "an empty answer");
        }
    }
    Err("no call succeeds")
}

fn unknown_hypercall() -> Verdict {
    for number in [0, 1, 5, 11, VERSION | 0xfff, 0xffff_ffff] {
        let (status, length) = call(number, [0, 0, 77, 0]);
        check(status == Status::NO_SUCH_CALL.to_rax(), "another status")?;
        check(length == 77, "RDX changed")?;
    }
    Ok(())
}

fn user_hypercall() -> Verdict {
    let code = if is_intel() { &raw const code_vmcall } else { &raw const code_vmmcall };
    for number in [VERSION + 1, VERSION | 0xfff, 1] {
        let answer = fault::in_user_mode(code.addr() as u64, number);
        let status = answer.map_err(|_| "faults")?;
        let refused = [Status::NOT_PRIVILEGED.to_rax(), Status::NO_SUCH_CALL.to_rax()];
        check(refused.contains(&status), "not refused")?;
    }
    Ok(())
}

fn user_svm() -> Verdict {
    for code in [&raw const code_skinit, &raw const code_vmrun] {
        let answer = fault::in_user_mode(code.addr() as u64, 0x10_0000);
        check(answer.is_err_and(|fault| fault.is(UD) || fault.is(GP)), "no fault")?;
    }
    Ok(())
}

fn user_privileged() -> Verdict {
    for code in [&raw const code_out, &raw const code_hlt] {
        let answer = fault::in_user_mode(code.addr() as u64, 0);
        check(answer.is_err_and(|fault| fault.is(GP)), "no #GP")?;
    }
    Ok(())
}

fn user_cpuid() -> Verdict {
    let answer = fault::in_user_mode((&raw const code_cpuid).addr() as u64, 0);
    check(answer.is_ok_and(|highest| highest >= 1), "faults, or no leaves")
}
