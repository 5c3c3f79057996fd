//! Parks the other processors: `SKINIT` wants each of them in the INIT state (APM vol. 2, 15.27.8).
#![expect(unsafe_code, reason = "the local APIC has registers")]
// UNSAFETY: the APIC page is where IA32_APIC_BASE says, mapped one to one; its x2APIC registers are used
// only in that mode.

use super::processor::{apic_base, read_msr, write_msr};
use core::fmt;
use core::ptr;
use dolmen_machine::cpu::read_tsc;

const APIC_ENABLED: u64 = 1 << 11;
const X2APIC: u64 = 1 << 10;
const BASE_MASK: u64 = 0x000f_ffff_ffff_f000;
/// Interrupt command register, low half, and its x2APIC form (APM vol. 2, 16.5).
const ICR: usize = 0x300;
const X2APIC_ICR: u32 = 0x830;
/// INIT, level asserted, edge triggered, to all but self.
const INIT_TO_OTHERS: u32 = 0x000c_4500;
const DELIVERY_PENDING: u32 = 1 << 12;
/// Ticks to wait for the delivery: seconds on any processor.
const PATIENCE: u64 = 10_000_000_000;
/// Ticks that the others get to reach the INIT state after the delivery: far more than the 1000 cycles that
/// the manual names.
const SETTLE: u64 = 1_000_000;

/// Why the other processors could not be parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParkError {
    /// The local APIC is switched off.
    ApicDisabled,
    /// The interrupt was never delivered.
    Undelivered,
}

impl fmt::Display for ParkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ApicDisabled => {
                "the local APIC is switched off, so other processors cannot be parked; enable it in the firmware's \
                 set-up"
            }
            Self::Undelivered => "the INIT to the other processors was never delivered; restart the machine",
        })
    }
}

/// Sends INIT to all other processors and waits until they have it.
///
/// # Errors
/// The local APIC cannot send it.
pub fn park_others() -> Result<(), ParkError> {
    let base = apic_base();
    if base & APIC_ENABLED == 0 {
        return Err(ParkError::ApicDisabled);
    }
    if base & X2APIC != 0 {
        // SAFETY: the register exists in x2APIC mode, where sends complete without a status bit. INIT takes
        // the other processors off whatever they did, which the loader does not depend on.
        unsafe { write_msr(X2APIC_ICR, INIT_TO_OTHERS, 0) };
        // SAFETY: as above; the read orders what follows after the send.
        let _sent = unsafe { read_msr(X2APIC_ICR) };
    } else {
        send_by_page(base & BASE_MASK)?;
    }
    let since = read_tsc();
    while read_tsc().wrapping_sub(since) < SETTLE {}
    Ok(())
}

fn send_by_page(page: u64) -> Result<(), ParkError> {
    #[expect(clippy::as_conversions, reason = "addresses are 64 bits wide on x86-64")]
    let icr = ptr::with_exposed_provenance_mut::<u32>((page as usize).wrapping_add(ICR));
    // SAFETY: the APIC page is mapped one to one and the offset is aligned; effect as above.
    unsafe { icr.write_volatile(INIT_TO_OTHERS) };
    let since = read_tsc();
    loop {
        // SAFETY: as above; reading the register has no side effect.
        let status = unsafe { icr.read_volatile() };
        if status & DELIVERY_PENDING == 0 {
            return Ok(());
        }
        if read_tsc().wrapping_sub(since) > PATIENCE {
            return Err(ParkError::Undelivered);
        }
    }
}
