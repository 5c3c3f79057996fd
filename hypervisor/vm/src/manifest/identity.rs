//! A guest's identity: what its register G0 holds.

use sha2::{Digest, Sha384};
use zerocopy::IntoBytes;

use super::GuestConfig;

/// One component's part in a guest's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComponentDigest {
    /// One of the measured kinds of [`ComponentConfig`](super::ComponentConfig).
    pub kind: u32,
    /// Bytes of the component.
    pub length: u64,
    /// SHA-384 of its bytes.
    pub sha384: [u8; 48],
}

impl ComponentDigest {
    /// The digest of a component whose bytes lie at hand.
    pub fn of(kind: u32, bytes: &[u8]) -> Self {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Self { kind, length, sha384: Sha384::digest(bytes).into() }
    }
}

/// A guest's identity, G0 = SHA-384("dolmen-guest-1" ‖ configuration ‖ for each measured component in order:
/// kind, length, SHA-384 of its bytes).
///
/// Nothing if `digests` are not those of the configuration's measured components, in its order.
pub fn measure_guest(config: &GuestConfig, digests: &[ComponentDigest]) -> Option<[u8; 48]> {
    let measured = config.components().iter().filter(|component| component.is_measured());
    if !measured.map(|component| component.kind).eq(digests.iter().map(|digest| digest.kind)) {
        return None;
    }
    let mut hash = Sha384::new();
    hash.update(b"dolmen-guest-1");
    hash.update(config.as_bytes());
    for digest in digests {
        hash.update(digest.kind.to_le_bytes());
        hash.update(digest.length.to_le_bytes());
        hash.update(digest.sha384);
    }
    Some(hash.finalize().into())
}
