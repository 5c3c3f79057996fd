//! HLT, interrupts and their shadow.

use core::arch::asm;

use crate::fault;
use crate::{Test, Verdict, apic, check, cpu};

pub(crate) const TESTS: &[Test] = &[
    ("an_interrupt_to_oneself_arrives", self_interrupt),
    ("a_masked_interrupt_waits", masked_interrupt),
    ("priorities_hold_interrupts_back", priorities),
    ("halt_wakes_up_by_the_timer", halt),
    ("no_wakeup_is_lost_between_sti_and_hlt", shadow),
    ("sti_covers_one_instruction", sti_shadow),
    ("the_timer_interrupts_a_loop", busy_loop),
    ("an_nmi_arrives_once", nmi),
    ("an_nmi_waits_for_the_end_of_another", paired_nmis),
];

fn self_interrupt() -> Verdict {
    let before = fault::ticks();
    apic::send_self(u32::from(fault::TIMER));
    cpu::interrupts_window();
    check(fault::ticks() == before + 1, "it did not, or more than once")
}

fn masked_interrupt() -> Verdict {
    let before = fault::ticks();
    cpu::interrupts_off();
    apic::send_self(u32::from(fault::TIMER));
    cpu::cpuid(0, 0);
    check(fault::ticks() == before, "delivered with IF clear")?;
    cpu::interrupts_window();
    check(fault::ticks() == before + 1, "lost")
}

fn priorities() -> Verdict {
    let before = fault::ticks();
    // SAFETY: raises the task priority above the vector's class.
    unsafe { asm!("mov cr8, {}", in(reg) 4u64) };
    apic::send_self(u32::from(fault::TIMER));
    cpu::interrupts_window();
    let held = fault::ticks() == before;
    // SAFETY: lowers it again.
    unsafe { asm!("mov cr8, {}", in(reg) 0u64) };
    cpu::interrupts_window();
    check(held, "delivered below the task priority")?;
    check(fault::ticks() == before + 1, "lost when the priority fell")
}

fn halt() -> Verdict {
    for ticks in [1_000_000, 10_000_000, 100_000] {
        let before = fault::ticks();
        apic::start_timer(ticks);
        cpu::wait_for_interrupt();
        check(fault::ticks() == before + 1, "woke without its interrupt")?;
    }
    Ok(())
}

fn shadow() -> Verdict {
    for round in 0..2000u32 {
        let before = fault::ticks();
        // Short and different each time, so that the interrupt comes before, in and after the pair.
        apic::start_timer(1 + round % 997 * 211);
        let after = cpu::wait_for_interrupt();
        check(fault::ticks() == before + 1, "woke without its interrupt")?;
        check(fault::interrupted_at() == after, "the interrupt came between STI and HLT")?;
    }
    Ok(())
}

fn sti_shadow() -> Verdict {
    for _ in 0..50 {
        cpu::interrupts_off();
        apic::send_self(u32::from(fault::TIMER));
        let expected: u64;
        // SAFETY: the interrupt is due after the first NOP.
        unsafe {
            asm!("lea {}, [rip + 2f]", "sti", "nop", "2:", "nop", "nop", "cli", out(reg) expected,
                 options(nostack));
        }
        check(fault::interrupted_at() == expected, "delivered at another instruction")?;
    }
    Ok(())
}

fn busy_loop() -> Verdict {
    let before = fault::ticks();
    apic::start_timer(1_000_000);
    // SAFETY: lets interrupts in.
    unsafe { asm!("sti", options(nostack)) };
    let start = cpu::read_tsc();
    while fault::ticks() == before && cpu::read_tsc() - start < 20_000_000_000 {
        core::hint::spin_loop();
    }
    cpu::interrupts_off();
    check(fault::ticks() == before + 1, "it never came")
}

fn nmi() -> Verdict {
    let before = fault::nmis();
    apic::send_nmi_to_self();
    cpu::cpuid(0, 0);
    check(fault::nmis() == before + 1, "it did not, or more than once")
}

fn paired_nmis() -> Verdict {
    let (before, nested) = (fault::nmis(), fault::pair_nmis());
    apic::send_nmi_to_self();
    let start = cpu::read_tsc();
    while fault::nmis() < before + 2 && cpu::read_tsc() - start < 2_000_000_000 {
        cpu::cpuid(0, 0);
    }
    check(fault::nested_nmis() == nested, "the second came inside of the first")?;
    check(fault::nmis() == before + 2, "one is missing, or one too many")
}
