//! How a guest finds Dolmen: CPUID leaves from 4000_0000h.
//!
//! | leaf | EAX | EBX | ECX | EDX |
//! |---|---|---|---|---|
//! | [`LEAF_SIGNATURE`] | highest leaf of this range | signature | signature | signature |
//! | [`LEAF_FEATURES`] | [`crate::ABI_VERSION`] | allowed [`crate::CallGroup`] bits | [`crate::LaunchFacts`] | 0 |
//!
//! A second range at [`KVM_LEAF_SIGNATURE`] offers KVM's paravirtual clock to distribution kernels.

/// Leaf with the signature.
pub const LEAF_SIGNATURE: u32 = 0x4000_0000;
/// Leaf with version, allowed calls and launch facts.
pub const LEAF_FEATURES: u32 = 0x4000_0001;
/// Highest leaf of Dolmen's own range.
pub const LEAF_LAST: u32 = LEAF_FEATURES;
/// What EBX, ECX and EDX of [`LEAF_SIGNATURE`] spell.
pub const SIGNATURE: [u8; 12] = *b"DolmenDolmen";

/// First leaf of the KVM-compatible range.
pub const KVM_LEAF_SIGNATURE: u32 = 0x4000_0100;
/// KVM's feature leaf.
pub const KVM_LEAF_FEATURES: u32 = 0x4000_0101;
/// KVM's signature.
pub const KVM_SIGNATURE: [u8; 12] = *b"KVMKVMKVM\0\0\0";

/// EBX, ECX, EDX of a signature leaf.
pub const fn signature_registers(signature: [u8; 12]) -> [u32; 3] {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = signature;
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]), u32::from_le_bytes([i, j, k, l])]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_reads_back_from_the_registers() {
        let [b, c, d] = signature_registers(SIGNATURE);
        let text: Vec<u8> = [b, c, d].iter().flat_map(|r| r.to_le_bytes()).collect();
        assert_eq!(text, b"DolmenDolmen");
    }
}
