//! Instructions that exit and go on: CPUID with prefixes, caches, counters.

use core::arch::asm;

use dolmen_abi::cpuid as own;

use crate::fault::{GP, UD};
use crate::{Test, Verdict, attempt, check, cpu};

pub(crate) const TESTS: &[Test] = &[
    ("cpuid_shows_the_hypervisor", cpuid_shows_the_hypervisor),
    ("cpuid_with_prefixes_is_stepped_over_whole", cpuid_with_prefixes),
    ("cpuid_clears_the_upper_halves", cpuid_clears_the_upper_halves),
    ("leaves_beyond_the_last_are_zero_or_the_last", leaves_beyond_the_last),
    ("wbinvd_passes", wbinvd_passes),
    ("rdpmc_is_refused", rdpmc_is_refused),
    ("monitor_and_mwait_are_absent", monitor_and_mwait),
    ("xsetbv_takes_what_cpuid_shows_and_no_more", xsetbv),
    ("single_step_of_the_guest_works", single_step),
    ("breakpoints_and_software_interrupts_are_delivered", breakpoints),
];

fn cpuid_shows_the_hypervisor() -> Verdict {
    check(cpu::cpuid(1, 0).ecx >> 31 == 1, "no hypervisor bit")?;
    let leaf = cpu::cpuid(own::LEAF_SIGNATURE, 0);
    let found = [leaf.ebx, leaf.ecx, leaf.edx];
    check(found == own::signature_registers(own::SIGNATURE), "another signature")?;
    let kvm = cpu::cpuid(own::KVM_LEAF_SIGNATURE, 0);
    let found = [kvm.ebx, kvm.ecx, kvm.edx];
    check(found == own::signature_registers(own::KVM_SIGNATURE), "no clock interface")
}

fn cpuid_with_prefixes() -> Verdict {
    let (count, highest): (u64, u64);
    // SAFETY: CPUID writes RAX, RBX, RCX and RDX; RBX is kept.
    unsafe {
        asm!(
            "mov {kept}, rbx",
            "xor eax, eax",
            "xor ecx, ecx",
            ".byte 0x66, 0x2e, 0x48, 0x0f, 0xa2",
            "mov {count}, 1",
            "mov rbx, {kept}",
            kept = out(reg) _,
            count = out(reg) count,
            out("rax") highest,
            out("rcx") _,
            out("rdx") _,
            options(nostack)
        );
    }
    check(count == 1 && highest >= 1, "went on at the wrong place")
}

fn cpuid_clears_the_upper_halves() -> Verdict {
    let (rax, rcx, rdx): (u64, u64, u64);
    // SAFETY: as above.
    unsafe {
        asm!(
            "mov {kept}, rbx",
            "cpuid",
            "mov rbx, {kept}",
            kept = out(reg) _,
            inout("rax") 0xffff_ffff_0000_0001u64 => rax,
            inout("rcx") u64::MAX << 32 => rcx,
            inout("rdx") u64::MAX => rdx,
            options(nostack)
        );
    }
    check((rax | rcx | rdx) >> 32 == 0, "upper halves survive")
}

fn leaves_beyond_the_last() -> Verdict {
    for leaf in [0x4000_0002, 0x4000_00ff, 0x8fff_ffff, 0xc000_0000] {
        let answer = cpu::cpuid(leaf, 0);
        check(answer.eax | answer.ebx | answer.ecx | answer.edx == 0, "a leaf nobody described")?;
    }
    Ok(())
}

fn wbinvd_passes() -> Verdict {
    check(attempt!("wbinvd").is_none(), "faults")
}

fn rdpmc_is_refused() -> Verdict {
    let fault = attempt!("rdpmc", in("ecx") 0, out("eax") _, out("edx") _);
    check(fault.is_some_and(|fault| fault.is(GP)), "not #GP")
}

fn monitor_and_mwait() -> Verdict {
    let monitor = attempt!("monitor", in("rax") &raw const FLAG, in("ecx") 0, in("edx") 0);
    check(monitor.is_some_and(|fault| fault.is(UD)), "monitor is not #UD")?;
    let mwait = attempt!("mwait", in("eax") 0, in("ecx") 0);
    check(mwait.is_some_and(|fault| fault.is(UD)), "mwait is not #UD")
}

static FLAG: u64 = 0;

fn xsetbv() -> Verdict {
    const OSXSAVE: u64 = 1 << 18;
    if cpu::cpuid(1, 0).ecx & 1 << 26 == 0 {
        return Ok(());
    }
    let cr4 = cpu::read_cr4() | OSXSAVE;
    check(attempt!("mov cr4, {value}", value = in(reg) cr4).is_none(), "CR4.OSXSAVE is refused")?;
    check(cpu::cpuid(1, 0).ecx & 1 << 27 != 0, "CPUID does not follow CR4")?;
    let offered = cpu::cpuid(0xd, 0).eax;
    let set = |value: u32| attempt!("xsetbv", in("ecx") 0, in("eax") value, in("edx") 0);
    check(set(offered).is_none(), "what CPUID offers is refused")?;
    check(cpu::cpuid(0xd, 0).ebx >= 512 + 64, "the area's size does not follow XCR0")?;
    check(set(0).is_some_and(|fault| fault.is(GP)), "XCR0 without x87")?;
    check(set(5).is_some_and(|fault| fault.is(GP)), "AVX without SSE")?;
    check(set(3).is_none(), "SSE is refused")
}

fn single_step() -> Verdict {
    let before = crate::fault::steps();
    // SAFETY: pushes and pops RFLAGS; the handler of #DB counts and returns.
    unsafe {
        asm!(
            "pushfq",
            "or qword ptr [rsp], 0x100",
            "popfq",
            "nop",
            "mov {kept}, rbx",
            "cpuid",
            "mov rbx, {kept}",
            "pushfq",
            "and qword ptr [rsp], 0xfffffffffffffeff",
            "popfq",
            kept = out(reg) _,
            out("rax") _,
            out("rcx") _,
            out("rdx") _,
        );
    }
    check(crate::fault::steps() >= before + 4, "steps are missing")
}

fn breakpoints() -> Verdict {
    let breakpoint = attempt!("int3");
    check(breakpoint.is_some_and(|fault| fault.is(3)), "int3 is not #BP")?;
    let before = crate::fault::ticks();
    // SAFETY: the vector has a handler.
    unsafe { asm!("int 0x50") };
    check(crate::fault::ticks() == before + 1, "int n is lost")
}
