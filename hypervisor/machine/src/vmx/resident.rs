//! Registers of a guest that no control structure switches and no host code uses: those of SYSCALL and SWAPGS, CR2, DR6.
//!
//! A guest's values stay in the processor while its virtual processor is there, as in [`crate::extended`]; they change
//! hands only when another one takes the processor. So no list of registers is walked at each entry and exit.
#![expect(unsafe_code, reason = "state is loaded by privileged instructions")]
// UNSAFETY: every x86-64 processor has these registers; the host runs without SYSCALL and SWAPGS, looks at CR2 only
// after a fault of its own, and enables no breakpoint.

use core::arch::asm;

use dolmen_arch::msr;
use dolmen_arch::register::DR6_RESET;

use crate::cpu;
use crate::register;

/// The model-specific registers, of those that guests have without an exit.
const MSRS: [u32; 5] = [msr::STAR, msr::LSTAR, msr::CSTAR, msr::SFMASK, msr::KERNEL_GS_BASE];

/// The registers of one virtual processor. While it is loaded, the processor holds them and this is out of date.
#[derive(Debug)]
pub(super) struct Resident {
    msrs: [u64; MSRS.len()],
    cr2: u64,
    dr6: u64,
    is_loaded: bool,
}

impl Resident {
    /// Reset values.
    pub(super) const RESET: Self = Self { msrs: [0; MSRS.len()], cr2: 0, dr6: DR6_RESET, is_loaded: false };

    /// Puts the values into the registers, unless they hold them still.
    pub(super) fn load(&mut self, still_there: bool) {
        self.is_loaded = true;
        if still_there {
            return;
        }
        for (number, value) in MSRS.iter().zip(self.msrs) {
            // SAFETY: the register exists, and the value was read from it, or is zero.
            unsafe { register::write(*number, value) };
        }
        load_cr2(self.cr2);
        load_dr6(self.dr6);
    }

    /// Takes the values out of the registers, which go on holding them.
    pub(super) fn save(&mut self) {
        if !self.is_loaded {
            return;
        }
        for (number, value) in MSRS.iter().zip(&mut self.msrs) {
            // SAFETY: the register exists.
            *value = unsafe { register::read(*number) };
        }
        (self.cr2, self.dr6) = (cpu::read_cr2(), read_dr6());
        self.is_loaded = false;
    }

    /// Gives everything its reset value, wherever it is.
    pub(super) fn reset(&mut self) {
        let is_loaded = self.is_loaded;
        *self = Self::RESET;
        if is_loaded {
            self.load(false);
        }
    }

    /// The address of the guest's last page fault.
    pub(super) fn cr2(&self) -> u64 {
        if self.is_loaded { cpu::read_cr2() } else { self.cr2 }
    }

    /// Sets it.
    pub(super) fn set_cr2(&mut self, value: u64) {
        self.cr2 = value;
        if self.is_loaded {
            load_cr2(value);
        }
    }

    /// Notes in DR6 why #DB is raised: of the `raised` conditions, those of breakpoints are told anew.
    pub(super) fn note_debug(&mut self, raised: u64) {
        const BREAKPOINTS: u64 = 0xf;
        const CONDITIONS: u64 = BREAKPOINTS | 1 << 13 | 1 << 14;
        let now = if self.is_loaded { read_dr6() } else { self.dr6 };
        self.dr6 = now & !BREAKPOINTS | raised & CONDITIONS;
        if self.is_loaded {
            load_dr6(self.dr6);
        }
    }
}

fn load_cr2(value: u64) {
    // SAFETY: CR2 has no effect.
    unsafe { asm!("mov cr2, {}", in(reg) value, options(nostack, nomem, preserves_flags)) };
}

fn load_dr6(value: u64) {
    // SAFETY: DR6 only tells; the value was read from it, or its upper half is zero as it must be.
    unsafe { asm!("mov dr6, {}", in(reg) value, options(nostack, nomem, preserves_flags)) };
}

fn read_dr6() -> u64 {
    let value: u64;
    // SAFETY: reading DR6 at CPL 0 has no side effect; DR7.GD is clear in the host, as every exit leaves it.
    unsafe { asm!("mov {}, dr6", out(reg) value, options(nostack, nomem, preserves_flags)) };
    value
}
