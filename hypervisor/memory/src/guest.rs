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
}
