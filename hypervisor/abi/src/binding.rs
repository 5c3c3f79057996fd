//! What a hardware quote says of a guest.
//!
//! The TPM signs 32 bytes of extra data: the root of a Merkle tree over the requests that waited when the
//! quote was made. A leaf is SHA-256([`LEAF_PREFIX`] ‖ [`QUOTE_TAG`] ‖ bytes of the [`Binding`]), a node is
//! SHA-256([`NODE_PREFIX`] ‖ left ‖ right); a node without a right neighbour moves up unchanged. With one
//! request the root is the leaf.
#![expect(
    missing_debug_implementations,
    reason = "of helper types that zerocopy derives through a macro; every structure here derives it"
)]

use crate::layout::wire;
use crate::{NAME_BYTES, Registers};

/// First byte of what a leaf hashes.
pub const LEAF_PREFIX: u8 = 0x00;
/// First byte of what an inner node hashes.
pub const NODE_PREFIX: u8 = 0x01;
/// What a leaf hashes before the binding: purpose and version.
pub const QUOTE_TAG: [u8; 14] = *b"dolmen-quote-1";
/// Bytes that a guest binds into a quote.
pub const REPORT_DATA_BYTES: usize = 64;
/// Most requests in one quote.
pub const MAX_WAITING: usize = 32;
/// Most siblings on the way from a leaf to the root.
pub const MAX_PATH: usize = 5;

wire! {
    /// What a hardware quote says of the guest that asked for it; these bytes are what the leaf hashes.
    pub struct Binding {
        /// The guest's name, padded with zeroes.
        pub name: [u8; NAME_BYTES],
        /// How the machine was launched (LaunchFacts bits).
        pub facts: u32,
        /// Zero.
        pub reserved: u32,
        /// G0 to G7 when the request was made.
        pub registers: Registers,
        /// What the guest wanted bound: a nonce, a key's digest.
        pub report_data: [u8; REPORT_DATA_BYTES],
    }
}

const _: () = {
    assert!(size_of::<Binding>() == 488);
    assert!(core::mem::offset_of!(Binding, registers) == 40);
    assert!(core::mem::offset_of!(Binding, report_data) == 424);
    assert!(1 << MAX_PATH == MAX_WAITING);
};

impl Binding {
    /// The guest's name as text, if it is a name: printable ASCII, then only zeroes.
    pub fn name_text(&self) -> Option<&str> {
        let length = self.name.iter().position(|byte| *byte == 0).unwrap_or(self.name.len());
        let (text, padding) = self.name.split_at_checked(length)?;
        let is_clean = text.iter().all(u8::is_ascii_graphic) && padding.iter().all(|byte| *byte == 0);
        if !is_clean || text.is_empty() {
            return None;
        }
        core::str::from_utf8(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn a_name_is_text_then_zeroes() {
        let mut binding = Binding::new_zeroed();
        assert_eq!(binding.name_text(), None);
        binding.name[..4].copy_from_slice(b"web1");
        assert_eq!(binding.name_text(), Some("web1"));
        binding.name[10] = b'x';
        assert_eq!(binding.name_text(), None);
        binding.name = [b'a'; NAME_BYTES];
        assert_eq!(binding.name_text(), Some("a".repeat(NAME_BYTES).as_str()));
        binding.name[3] = 0x1b;
        assert_eq!(binding.name_text(), None);
    }
}
