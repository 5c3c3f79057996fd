//! A value that is wiped when dropped, prints as nothing, and has one door.

use core::fmt;
use zeroize::Zeroize;

/// Holds a secret. It is wiped when dropped; what a move leaves behind lies in memory that the stop path
/// scrubs as a whole.
pub struct Secret<T: Zeroize>(T);

impl<T: Zeroize> Secret<T> {
    /// Takes `value` in.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The one way to the bytes; `grep expose` finds every use.
    pub const fn expose(&self) -> &T {
        &self.0
    }

    /// The one way to change them.
    pub const fn expose_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_print() {
        assert_eq!(format!("{:?}", Secret::new([7u8; 32])), "<secret>");
    }
}
