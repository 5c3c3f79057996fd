//! Guest RAM as the rest of the hypervisor may touch it: copied in once, copied out once.

use crate::Gpa;

/// Some byte of the range is not the guest's own RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutsideRam;

/// A guest's RAM, by guest-physical address. Either all of a range is touched, or none of it.
pub trait GuestMemory {
    /// Copies guest RAM at `at` into `into`.
    ///
    /// # Errors
    /// [`OutsideRam`] if any byte of the range is not the guest's own RAM; `into` is then unchanged.
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), OutsideRam>;

    /// Copies `from` to guest RAM at `at`.
    ///
    /// # Errors
    /// [`OutsideRam`] if any byte of the range is not the guest's own RAM; nothing is then written.
    fn write(&mut self, at: Gpa, from: &[u8]) -> Result<(), OutsideRam>;

    /// The eight bytes at `at`, lowest first: for tables and code, which are looked at again and again.
    ///
    /// # Errors
    /// [`OutsideRam`] if any of them is not the guest's own RAM.
    fn word(&self, at: Gpa) -> Result<u64, OutsideRam> {
        let mut bytes = [0; 8];
        self.read(at, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}
