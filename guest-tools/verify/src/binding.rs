//! From a binding to the 32 bytes that the TPM signed (`docs/evidence.md`, "Extra data of the quote").

use dolmen_abi::evidence::Evidence;
use dolmen_abi::{Binding, LEAF_PREFIX, NODE_PREFIX, QUOTE_TAG, merkle};
use dolmen_tpm::crypto::sha256;
use zerocopy::IntoBytes;

/// The leaf of one request.
#[must_use]
pub fn leaf(binding: &Binding) -> [u8; 32] {
    sha256(&[&[LEAF_PREFIX], &QUOTE_TAG, binding.as_bytes()])
}

/// The extra data that the quote must have for this evidence's binding. `None` if the path does not fit the
/// leaf's place, which decoded evidence never has.
#[must_use]
pub fn extra_data(evidence: &Evidence<'_>) -> Option<[u8; 32]> {
    let node = |left: &[u8; 32], right: &[u8; 32]| sha256(&[&[NODE_PREFIX], left, right]);
    merkle::root(leaf(&evidence.binding), evidence.index, evidence.count, evidence.path.siblings(), node)
}
