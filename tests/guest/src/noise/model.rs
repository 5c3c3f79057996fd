//! Model-specific registers: every one of three ranges, read and written.

use core::ops::Range;

use dolmen_arch::msr;

use super::random::Random;
use crate::cpu;

const RANGES: [Range<u32>; 3] = [0..0x2001, 0xc000_0000..0xc000_2001, 0xc001_0000..0xc001_2001];
/// The APIC's command register, whose messages are noise of their own, and registers that would pull the rug
/// from under the guest if they took a value: the base of the APIC and its deadline are put back after.
const X2APIC_COMMAND: u32 = 0x830;
const APIC_BASE: u32 = 0x1b;

/// Reads each register, writes 0, all ones, what was read, single bits and something random.
pub(super) fn registers(random: &mut Random) -> u64 {
    let mut tries = 0;
    for register in RANGES.into_iter().flatten().step_by(random.stride()) {
        let old = cpu::read_msr(register);
        tries += 1;
        if register == X2APIC_COMMAND || register == msr::EFER {
            continue;
        }
        let mut taken = 0u32;
        for value in [0, u64::MAX, old.unwrap_or(1), 1 << random.below(64), random.next()] {
            taken += u32::from(cpu::write_msr(register, value).is_ok());
            tries += 1;
        }
        if taken > 0 {
            for bit in 0..64 {
                // Whether it is taken is the hypervisor's matter; that the guest goes on is ours.
                cpu::write_msr(register, 1 << bit).unwrap_or(());
                tries += 1;
            }
        }
        restore(register, old.unwrap_or(0));
    }
    tries
}

fn restore(register: u32, old: u64) {
    if register == APIC_BASE || (0x800..0x900).contains(&register) {
        crate::apic::reset();
    }
    cpu::write_msr(register, old).unwrap_or(());
}
