//! Model-specific and control registers.

use core::arch::asm;

use dolmen_arch::msr;
use dolmen_arch::register::{Cr0, Cr4, Efer};

use crate::apic::{self, Register};
use crate::fault::GP;
use crate::{Test, Verdict, attempt, check, cpu};

pub(crate) const TESTS: &[Test] = &[
    ("switched_msrs_belong_to_the_guest", switched_msrs),
    ("pat_is_the_guests_and_checked", pat),
    ("efer_hides_svm_and_refuses_it", efer),
    ("unknown_msrs_fault_on_read_and_write", unknown_msrs),
    ("mtrrs_and_the_oldest_performance_counters_stand_still", fixed_registers),
    ("the_tsc_register_reads_the_counter", tsc),
    ("reserved_cr3_bits_fault_and_the_guest_lives", bad_cr3),
    ("reserved_cr4_bits_fault_and_the_guest_lives", bad_cr4),
    ("impossible_cr0_values_fault", bad_cr0),
    ("cr0_and_cr4_changes_take_effect", good_control),
    ("upper_debug_register_bits_do_not_end_the_guest", bad_debug),
    ("cr8_is_the_task_priority", cr8),
];

fn switched_msrs() -> Verdict {
    for register in [msr::LSTAR, msr::CSTAR, msr::KERNEL_GS_BASE, msr::FS_BASE, msr::SYSENTER_EIP] {
        let old = cpu::read_msr(register).map_err(|_| "read faults")?;
        cpu::write_msr(register, 0x1234_5678).map_err(|_| "write faults")?;
        // An exit in between must not lose it.
        cpu::cpuid(0, 0);
        let new = cpu::read_msr(register).map_err(|_| "read faults")?;
        cpu::write_msr(register, old).map_err(|_| "write faults")?;
        check(new == 0x1234_5678, "value lost over an exit")?;
    }
    Ok(())
}

fn pat() -> Verdict {
    let old = cpu::read_msr(msr::PAT).map_err(|_| "read faults")?;
    check(msr::is_valid_pat(old), "starts with an impossible value")?;
    cpu::write_msr(msr::PAT, 0x0606_0606_0606_0606).map_err(|_| "write faults")?;
    check(cpu::read_msr(msr::PAT) == Ok(0x0606_0606_0606_0606), "value lost")?;
    let bad = cpu::write_msr(msr::PAT, 0x0202_0202_0202_0202);
    check(bad.is_err_and(|fault| fault.is(GP)), "an impossible type is taken")?;
    cpu::write_msr(msr::PAT, old).map_err(|_| "write faults")
}

fn efer() -> Verdict {
    let now = cpu::read_msr(msr::EFER).map_err(|_| "read faults")?;
    let flags = Efer::from_bits_retain(now);
    check(!flags.contains(Efer::SVME), "SVME shows")?;
    check(flags.contains(Efer::LME | Efer::LMA), "long mode does not show")?;
    let refused = |value| cpu::write_msr(msr::EFER, value).is_err_and(|fault| fault.is(GP));
    check(refused(now | Efer::SVME.bits()), "SVME is taken")?;
    check(refused(now & !Efer::LME.bits()), "LME can be cleared while paging")?;
    check(refused(now | 1 << 63), "reserved bits are taken")?;
    cpu::write_msr(msr::EFER, now & !1).map_err(|_| "SCE cannot be cleared")?;
    check(cpu::read_msr(msr::EFER) == Ok(now & !1), "SCE stays")?;
    cpu::write_msr(msr::EFER, now).map_err(|_| "SCE cannot be set")
}

fn unknown_msrs() -> Verdict {
    for register in [
        msr::VM_CR,
        msr::VM_HSAVE_PA,
        msr::SMM_CTL,
        msr::IGNNE,
        msr::FEATURE_CONTROL,
        msr::SPEC_CTRL,
        0x200, // a variable MTRR
        msr::DEBUG_CTL,
        0x570, // Intel PT
        0x1234_5678,
        0xffff_ffff,
    ] {
        check(cpu::read_msr(register).is_err_and(|fault| fault.is(GP)), "a read is answered")?;
        check(cpu::write_msr(register, 0).is_err_and(|fault| fault.is(GP)), "a write is taken")?;
    }
    Ok(())
}

fn fixed_registers() -> Verdict {
    check(cpu::read_msr(msr::MTRR_CAP) == Ok(0), "there are MTRRs")?;
    check(cpu::write_msr(msr::MTRR_DEF_TYPE, 0).is_ok(), "a write faults")?;
    check(cpu::read_msr(msr::MTRR_DEF_TYPE) == Ok(0x806), "memory is not write-back")?;
    for register in msr::PERF_LEGACY_FIRST..=msr::PERF_LEGACY_LAST {
        check(cpu::read_msr(register) == Ok(0), "not zero")?;
        check(cpu::write_msr(register, 0x0043_0076).is_ok(), "a write faults")?;
        check(cpu::read_msr(register) == Ok(0), "a value stays")?;
    }
    Ok(())
}

fn tsc() -> Verdict {
    let before = cpu::read_tsc();
    let register = cpu::read_msr(msr::TSC).map_err(|_| "read faults")?;
    let after = cpu::read_tsc();
    check(before <= register && register <= after, "not between two RDTSC")
}

fn bad_cr3() -> Verdict {
    let old = cpu::read_cr3();
    let fault = attempt!("mov cr3, {value}", value = in(reg) old | 1 << 60);
    check(fault.is_some_and(|fault| fault.is(GP)), "not #GP")?;
    check(cpu::read_cr3() == old, "CR3 changed")
}

fn bad_cr4() -> Verdict {
    let old = cpu::read_cr4();
    for bit in [13, 14, 23, 31, 40] {
        let fault = attempt!("mov cr4, {value}", value = in(reg) old | 1 << bit);
        check(fault.is_some_and(|fault| fault.is(GP)), "a reserved bit is not #GP")?;
    }
    let fault = attempt!("mov cr4, {value}", value = in(reg) old & !Cr4::PAE.bits());
    check(fault.is_some_and(|fault| fault.is(GP)), "PAE can be cleared in long mode")?;
    check(cpu::read_cr4() == old, "CR4 changed")
}

fn bad_cr0() -> Verdict {
    let old = cpu::read_cr0();
    for value in [old | Cr0::NW.bits(), old & !Cr0::PE.bits(), old & !Cr0::PG.bits()] {
        let fault = attempt!("mov cr0, {value}", value = in(reg) value);
        check(fault.is_some_and(|fault| fault.is(GP)), "an impossible value is not #GP")?;
    }
    check(cpu::read_cr0() == old, "CR0 changed")
}

fn good_control() -> Verdict {
    let (cr0, cr4) = (cpu::read_cr0(), cpu::read_cr4());
    let set = |cr0: u64| attempt!("mov cr0, {value}", value = in(reg) cr0);
    check(set(cr0 & !Cr0::WP.bits()).is_none(), "WP cannot be cleared")?;
    check(cpu::read_cr0() == cr0 & !Cr0::WP.bits(), "WP stays")?;
    check(set(cr0).is_none() && cpu::read_cr0() == cr0, "WP cannot be set")?;
    check(attempt!("lmsw {value:x}", value = in(reg) cr0 as u16 | 0xa).is_none(), "LMSW faults")?;
    check(cpu::read_cr0() & 0xa == 0xa, "LMSW sets nothing")?;
    check(attempt!("clts").is_none(), "CLTS faults")?;
    check(set(cr0).is_none(), "CR0 cannot be restored")?;
    check(
        attempt!("mov cr4, {value}", value = in(reg) cr4 ^ Cr4::PGE.bits()).is_none(),
        "PGE cannot be changed",
    )?;
    check(cpu::read_cr4() == cr4 ^ Cr4::PGE.bits(), "PGE stays")?;
    check(attempt!("mov cr4, {value}", value = in(reg) cr4).is_none(), "CR4 cannot be restored")
}

fn bad_debug() -> Verdict {
    // The bare machine faults; some processors take the value and refuse it later.
    attempt!("mov dr7, {value}", value = in(reg) 0x400u64 | 1 << 40);
    cpu::cpuid(0, 0);
    check(attempt!("mov dr7, {value}", value = in(reg) 0x400u64).is_none(), "a good value faults")
}

fn cr8() -> Verdict {
    // SAFETY: raises the priority, which is lowered again below.
    unsafe { asm!("mov cr8, {}", in(reg) 5u64) };
    let priority = apic::read(Register::TASK_PRIORITY);
    let value: u64;
    // SAFETY: reading has no side effect.
    unsafe { asm!("mov {}, cr8", out(reg) value) };
    // SAFETY: lowers the priority.
    unsafe { asm!("mov cr8, {}", in(reg) 0u64) };
    check(value == 5, "reads another value")?;
    check(priority == 0x50, "the APIC shows another priority")?;
    let fault = attempt!("mov cr8, {value}", value = in(reg) 0x10u64);
    check(fault.is_some_and(|fault| fault.is(GP)), "reserved bits are taken")
}
