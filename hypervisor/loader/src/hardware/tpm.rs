//! The TPM at its fixed address, at locality 0: is it there, is it started.
#![expect(unsafe_code, reason = "the TPM's registers are in memory space")]
// UNSAFETY: the registers lie at an address that the platform fixes; reads where no TPM is give ones.

use crate::check;
use core::ptr;
use dolmen_machine::cpu::read_tsc;
#[cfg(feature = "hostile")]
use dolmen_tpm::TransportError;
use dolmen_tpm::tis::{Locality, Tis, TisIo, TisReg};
use dolmen_tpm::{TpmError, command};

/// Ticks of the time-stamp counter for which a microsecond counts: no processor is faster, so waits last at
/// least as long as asked.
const TICKS_PER_MICROSECOND: u64 = 8_000;

/// The registers, with the time-stamp counter as clock.
#[derive(Debug, Default)]
pub struct Registers {
    since: u64,
    ticks: u64,
}

impl Registers {
    fn at(locality: Locality, register: TisReg) -> usize {
        #[expect(clippy::as_conversions, reason = "addresses are 64 bits wide on x86-64")]
        let page = locality.page() as usize;
        page.wrapping_add(register.offset().into())
    }
}

impl TisIo for Registers {
    fn read8(&mut self, locality: Locality, register: TisReg) -> u8 {
        let at = ptr::with_exposed_provenance::<u8>(Self::at(locality, register));
        // SAFETY: mapped one to one; a register of the TPM or nothing.
        unsafe { at.read_volatile() }
    }

    fn read32(&mut self, locality: Locality, register: TisReg) -> u32 {
        let at = ptr::with_exposed_provenance::<u32>(Self::at(locality, register));
        // SAFETY: as above; 32-bit registers are aligned.
        unsafe { at.read_volatile() }
    }

    fn write8(&mut self, locality: Locality, register: TisReg, value: u8) {
        let at = ptr::with_exposed_provenance_mut::<u8>(Self::at(locality, register));
        // SAFETY: as above; the registers change the TPM only.
        unsafe { at.write_volatile(value) };
    }

    fn restart_deadline(&mut self, microseconds: u32) {
        self.since = read_tsc();
        self.ticks = u64::from(microseconds).saturating_mul(TICKS_PER_MICROSECOND);
    }

    fn expired(&mut self) -> bool {
        read_tsc().wrapping_sub(self.since) > self.ticks
    }
}

/// Looks at what answers at the TPM's address. TPM_STS tells the family only to an active locality, so a
/// FIFO is claimed for the look.
#[must_use]
pub fn probe() -> check::Tpm {
    let mut registers = Registers::default();
    let access = registers.read8(Locality::Zero, TisReg::Access);
    let interface = registers.read32(Locality::Zero, TisReg::InterfaceId);
    let guess = check::Tpm::identify(access, check::Tpm::STATUS_FAMILY_2, interface);
    if guess != check::Tpm::Fifo {
        return guess;
    }
    let mut tis = Tis::new(registers, Locality::Zero);
    if tis.claim().is_err() {
        return check::Tpm::Absent;
    }
    let status = tis.io_mut().read32(Locality::Zero, TisReg::Status);
    // A TPM that does not let go shows that again, and with its reason, when it is started.
    tis.relinquish().unwrap_or_default();
    check::Tpm::identify(access, status, interface)
}

/// Starts the TPM if firmware has not, and lets go of locality 0. A dynamic launch into a TPM that was not
/// started would measure into PCR 0.
///
/// # Errors
/// The TPM does not answer, or refuses.
pub fn start() -> Result<(), TpmError> {
    let mut tis = Tis::new(Registers::default(), Locality::Zero);
    tis.claim().map_err(TpmError::from)?;
    let started = command::start(&mut tis);
    let released = tis.relinquish().map_err(TpmError::from);
    started.and(released)
}

/// Makes locality 0 active and keeps it.
///
/// # Errors
/// The TPM grants nothing.
#[cfg(feature = "hostile")]
pub fn hold_locality() -> Result<(), TransportError> {
    Tis::new(Registers::default(), Locality::Zero).claim()
}
