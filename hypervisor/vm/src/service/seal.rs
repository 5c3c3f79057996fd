//! Guest sealing: no TPM round trip, one fresh key per blob.
//!
//! key = HKDF-SHA-256(ikm = root, salt = the blob's 32 random bytes, info = "dolmen-seal" ‖ version ‖
//! SHA-384(policy) ‖ SHA-384(label) ‖ the registers that the policy selects, in order ‖ the manifest if it is
//! selected), then AES-256-GCM with the header as associated data. The nonce is zero: no key is ever used twice.
//! The root comes from the TPM and only to this measured hypervisor, so a blob is bound to it without a word.

use aes_gcm::aead::{AeadInOut, KeyInit, inout::InOutBuf};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use dolmen_abi::{Blob, BlobHeader, MAX_SECRET, Registers, SealPolicy, Status, TAG_BYTES};
use hkdf::Hkdf;
use sha2::{Digest, Sha256, Sha384};
use zerocopy::IntoBytes;
use zeroize::{Zeroize, Zeroizing};

use super::secret::Secret;

const TAG: &[u8] = b"dolmen-seal";

/// What blobs are bound to here and now, so far as their policy selects it.
pub(super) struct Here<'a> {
    /// The hypervisor: every blob is bound to it.
    pub(super) root: &'a Secret<[u8; 32]>,
    /// The manifest and the files of all its guests.
    pub(super) manifest: &'a [u8; 32],
    /// G0 to G7.
    pub(super) registers: &'a Registers,
}

impl<'a> Here<'a> {
    /// Nothing can be bound without a dynamic launch, and so without a root.
    pub(super) fn new(
        root: Option<&'a Secret<[u8; 32]>>,
        manifest: &'a [u8; 32],
        registers: &'a Registers,
    ) -> Result<Self, Status> {
        let root = root.ok_or(Status::NOT_LAUNCHED)?;
        Ok(Self { root, manifest, registers })
    }
}

/// Seals `data` into `out`, which must have room for exactly the blob.
pub(super) fn seal(
    here: &Here<'_>,
    policy: SealPolicy,
    label: &[u8],
    data: &[u8],
    salt: [u8; 32],
    out: &mut [u8],
) -> Result<(), Status> {
    if data.len() > MAX_SECRET {
        return Err(Status::BAD_LENGTH);
    }
    let header = BlobHeader {
        magic: BlobHeader::MAGIC,
        version: policy.blob_version(),
        policy: policy.bits(),
        length: u32::try_from(data.len()).map_err(|_| Status::BAD_LENGTH)?,
        reserved: 0,
        salt,
    };
    let (head, body) = out.split_at_mut_checked(size_of::<BlobHeader>()).ok_or(Status::REPLY_TOO_SMALL)?;
    let (sealed, tag) = body.split_at_mut_checked(data.len()).ok_or(Status::REPLY_TOO_SMALL)?;
    if tag.len() != TAG_BYTES {
        return Err(Status::REPLY_TOO_SMALL);
    }
    head.copy_from_slice(header.as_bytes());
    let buffer = InOutBuf::new(data, sealed).map_err(|_| Status::BAD_LENGTH)?;
    let made = cipher(here, policy, label, &salt)?
        .encrypt_inout_detached(&Nonce::default(), header.as_bytes(), buffer)
        .map_err(|_| Status::BAD_LENGTH)?;
    tag.copy_from_slice(&made);
    Ok(())
}

/// Opens `blob` into `out`, which must have room for exactly what it holds; wiped if it does not open.
pub(super) fn unseal(here: &Here<'_>, label: &[u8], blob: &Blob<'_>, out: &mut [u8]) -> Result<(), Status> {
    let buffer = InOutBuf::new(blob.sealed, &mut *out).map_err(|_| Status::REPLY_TOO_SMALL)?;
    let opened = cipher(here, blob.policy, label, &blob.header.salt)?.decrypt_inout_detached(
        &Nonce::default(),
        blob.header.as_bytes(),
        buffer,
        &Tag::from(*blob.tag),
    );
    opened.map_err(|_| {
        out.zeroize();
        Status::REFUSED
    })
}

fn cipher(here: &Here<'_>, policy: SealPolicy, label: &[u8], salt: &[u8; 32]) -> Result<Aes256Gcm, Status> {
    let version = policy.blob_version().to_le_bytes();
    let policy_digest = Sha384::digest(policy.bits().to_le_bytes());
    let label_digest = Sha384::digest(label);
    let register = |index: usize, value| if policy.selects(index) { value } else { [].as_slice() };
    let manifest = if policy.contains(SealPolicy::MANIFEST) { here.manifest } else { [].as_slice() };
    let [g0, g1, g2, g3, g4, g5, g6, g7] = here.registers;
    let info: [&[u8]; 13] = [
        TAG,
        &version,
        &policy_digest,
        &label_digest,
        register(0, g0),
        register(1, g1),
        register(2, g2),
        register(3, g3),
        register(4, g4),
        register(5, g5),
        register(6, g6),
        register(7, g7),
        manifest,
    ];
    let (mut prk, hkdf) = Hkdf::<Sha256>::extract(Some(salt), here.root.expose());
    prk.as_mut_slice().zeroize();
    let mut key = Zeroizing::new([0; 32]);
    hkdf.expand_multi_info(&info, key.as_mut_slice()).map_err(|_| Status::BAD_ARGUMENT)?;
    Aes256Gcm::new_from_slice(key.as_slice()).map_err(|_| Status::BAD_ARGUMENT)
}
