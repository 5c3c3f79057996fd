//! Storms: more of everything than anybody needs.

use super::Kind;
use super::random::Random;
use super::sandbox::{self, CODE, Mode};
use crate::{apic, cpu, fault};

/// Ticks between interrupts of the timer while something else makes noise.
const TICK: u32 = 400_000;

/// Lets the timer interrupt again and again.
pub(super) fn start_ticking() {
    apic::enable();
    apic::start_periodic(TICK);
}

/// Ends it.
pub(super) fn stop_ticking() {
    apic::start_timer(0);
    cpu::interrupts_window();
}

/// One storm after another.
pub(super) fn everything(random: &mut Random) -> u64 {
    let kinds: [Kind; 7] = [
        ("exits", exits),
        ("pauses", pauses),
        ("timers", timers),
        ("to itself", to_itself),
        ("nmis", nmis),
        ("priorities", priorities),
        ("halts", halts),
    ];
    let mut tries = 0;
    for (name, kind) in kinds {
        crate::say!("noise storm of {name}");
        tries += kind(random);
    }
    tries
}

fn exits(random: &mut Random) -> u64 {
    let tries = random.times(50_000);
    for _ in 0..tries {
        cpu::cpuid(random.value() as u32, random.value() as u32);
    }
    tries
}

fn pauses(random: &mut Random) -> u64 {
    let tries = random.times(200_000);
    for _ in 0..tries {
        core::hint::spin_loop();
    }
    tries
}

/// The shortest period that can be asked for, with interrupts on.
fn timers(random: &mut Random) -> u64 {
    let tries = random.times(2_000);
    apic::start_periodic(1);
    sandbox::write_code(CODE, &[0xeb, 0xfe]);
    for _ in 0..tries {
        // Ends by the timer.
        sandbox::run(&Mode::Kernel64.state(CODE), 0);
        cpu::interrupts_window();
    }
    stop_ticking();
    tries
}

/// Interrupts to itself, with interrupts off and on, more than can be kept.
fn to_itself(random: &mut Random) -> u64 {
    let tries = random.times(20_000);
    for round in 0..tries {
        let vector = 0x20 + random.below(0xd0) as u32;
        apic::send_self(if vector == 0x80 { 0x81 } else { vector });
        if round % 64 == 0 {
            // As many as there are vectors may be waiting.
            for _ in 0..256 {
                cpu::interrupts_window();
            }
        }
    }
    for _ in 0..512 {
        cpu::interrupts_window();
    }
    tries
}

fn nmis(random: &mut Random) -> u64 {
    let before = fault::nmis();
    for _ in 0..random.times(5_000) {
        apic::send_nmi_to_self();
    }
    fault::nmis() - before
}

fn priorities(random: &mut Random) -> u64 {
    let tries = random.times(20_000);
    for _ in 0..tries {
        let priority = random.below(16);
        // SAFETY: raises or lowers the priority; it is 0 again below.
        unsafe { core::arch::asm!("mov cr8, {0}", in(reg) priority) };
        apic::write(apic::Register::TASK_PRIORITY, random.byte().into());
        if random.one_in(8) {
            apic::send_self(0x20 + 0x10 * random.below(6) as u32);
            cpu::interrupts_window();
        }
    }
    // SAFETY: lowers the priority.
    unsafe { core::arch::asm!("mov cr8, {0}", in(reg) 0u64) };
    for _ in 0..64 {
        cpu::interrupts_window();
    }
    tries
}

/// HLT with an interrupt on its way at every distance.
fn halts(random: &mut Random) -> u64 {
    let tries = random.times(300);
    for _ in 0..tries {
        apic::start_timer(1 + random.below(2_000) as u32);
        cpu::wait_for_interrupt();
    }
    tries
}
