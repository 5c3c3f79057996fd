//! Secrets that do not print and do not outlive their owner.

use core::fmt;

use zeroize::Zeroize;

/// A secret: wiped when dropped, printed as `<secret>`.
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

    /// The one way to change the bytes.
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
