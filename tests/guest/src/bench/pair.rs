//! Two processors of one guest: how long an interrupt takes from one to the other, which sleeps.

use super::{RUNS, tell};
use crate::{apic, cpu, say, smp};

/// Ticks that the sender sleeps after it has sent: more than the receiver needs.
const REST: u32 = 200_000;

pub(super) fn measure() {
    if let Err(why) = smp::start_all() {
        say!("FAIL the other processor: {why}");
    }
    let mut ticks = [0u64; RUNS];
    for slot in &mut ticks {
        // Both asleep first, so that the receiver really halts.
        rest();
        let (before, start) = (smp::woken(), cpu::read_tsc());
        apic::send_to(1, smp::CALL as u32);
        rest();
        if smp::woken() == before {
            say!("FAIL the interrupt did not come");
        }
        *slot = smp::woken().saturating_sub(start);
    }
    tell("ipi-to-sleeper", &mut ticks);
}

fn rest() {
    apic::start_timer(REST);
    cpu::wait_for_interrupt();
}
