//! Lines on the first serial port, without the formatting machinery of `core`: that alone would be as large as
//! the rest of the image.

use core::sync::atomic::{AtomicU8, Ordering};

use dolmen_machine::serial::Serial;

/// What is known of the port: it is programmed once, and a missing one is not waited for.
static PORT: AtomicU8 = AtomicU8::new(UNKNOWN);
const UNKNOWN: u8 = 0;
const OPEN: u8 = 1;
const MISSING: u8 = 2;

/// A line in the making; it goes out piece by piece, and ends with [`Line::end`].
#[must_use]
pub(crate) struct Line(Option<Serial>);

impl Line {
    /// Begins a line.
    pub(crate) fn new(start: &str) -> Self {
        let port = match PORT.load(Ordering::Relaxed) {
            OPEN => Some(Serial::at(Serial::COM1)),
            MISSING => None,
            _ => Serial::open(Serial::COM1),
        };
        PORT.store(if port.is_some() { OPEN } else { MISSING }, Ordering::Relaxed);
        Self(port).text(start)
    }

    /// Adds text.
    pub(crate) fn text(self, text: &str) -> Self {
        if let Some(port) = &self.0 {
            port.send_text(text);
        }
        self
    }

    /// Adds bytes in hexadecimal.
    #[inline(never)]
    pub(crate) fn bytes(self, bytes: &[u8]) -> Self {
        if let Some(port) = &self.0 {
            for byte in bytes {
                port.send(digit(byte >> 4));
                port.send(digit(byte & 0xf));
            }
        }
        self
    }

    /// Adds a number as `0x…`, without leading zeroes.
    pub(crate) fn hex(self, value: u64) -> Self {
        let zeroes = value.leading_zeros() / 4;
        let line = self.text("0x");
        if let Some(port) = &line.0 {
            for index in (0..16u32.saturating_sub(zeroes).max(1)).rev() {
                let [low, ..] = (value >> index.wrapping_mul(4)).to_le_bytes();
                port.send(digit(low & 0xf));
            }
        }
        line
    }

    /// Adds a number in decimal.
    #[inline(never)]
    pub(crate) fn number(self, value: u64) -> Self {
        let mut digits = [0; 20];
        let mut left = value;
        let mut start = digits.len();
        for slot in digits.iter_mut().rev() {
            let [low, ..] = (left % 10).to_le_bytes();
            *slot = digit(low);
            left /= 10;
            start = start.saturating_sub(1);
            if left == 0 {
                break;
            }
        }
        if let Some(port) = &self.0 {
            digits.iter().skip(start).for_each(|digit| port.send(*digit));
        }
        self
    }

    /// Ends it.
    pub(crate) fn end(self) {
        let Self(_) = self.text("\n");
    }
}

const fn digit(value: u8) -> u8 {
    if value < 10 { b'0'.wrapping_add(value) } else { (b'a' - 10).wrapping_add(value) }
}
