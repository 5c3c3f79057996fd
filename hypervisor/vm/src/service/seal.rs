//! Guest sealing: no TPM round trip, one fresh key per blob.
//!
//! key = HKDF-SHA-256(ikm = root, salt = the blob's 32 random bytes, info = "dolmen-seal" ‖ version ‖
//! SHA-384(policy) ‖ SHA-384(label) ‖ the registers that the policy selects, in order), then AES-256-GCM with
//! the header as associated data. The nonce is zero: no key is ever used twice.
//! The root comes from the TPM and only to this measured hypervisor, so a blob is bound to it without a word.

use aes_gcm::aead::{AeadInOut, KeyInit, inout::InOutBuf};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use dolmen_abi::{BlobHeader, MAX_SECRET, Registers, SealPolicy, Status, TAG_BYTES};
use hkdf::Hkdf;
use sha2::{Digest, Sha256, Sha384};
use zerocopy::{FromBytes, IntoBytes};
use zeroize::{Zeroize, Zeroizing};

use super::secret::Secret;

const TAG: &[u8] = b"dolmen-seal";
const HEADER_BYTES: usize = size_of::<BlobHeader>();

/// Seals `data` into `out`, which must have room for exactly the blob.
pub(super) fn seal(
    root: &Secret<[u8; 32]>,
    registers: &Registers,
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
        version: BlobHeader::VERSION,
        policy: policy.bits(),
        length: u32::try_from(data.len()).map_err(|_| Status::BAD_LENGTH)?,
        reserved: 0,
        salt,
    };
    let (head, body) = out.split_at_mut_checked(HEADER_BYTES).ok_or(Status::REPLY_TOO_SMALL)?;
    let (sealed, tag) = body.split_at_mut_checked(data.len()).ok_or(Status::REPLY_TOO_SMALL)?;
    if tag.len() != TAG_BYTES {
        return Err(Status::REPLY_TOO_SMALL);
    }
    head.copy_from_slice(header.as_bytes());
    let buffer = InOutBuf::new(data, sealed).map_err(|_| Status::BAD_LENGTH)?;
    let made = cipher(root, registers, policy, label, &salt)?
        .encrypt_inout_detached(&Nonce::default(), header.as_bytes(), buffer)
        .map_err(|_| Status::BAD_LENGTH)?;
    tag.copy_from_slice(&made);
    Ok(())
}

/// Checks that `blob` is one of this version, from its first byte to its last; how much it holds.
pub(super) fn inspect(blob: &[u8]) -> Result<(BlobHeader, SealPolicy, usize), Status> {
    let (header, rest) = BlobHeader::read_from_prefix(blob).map_err(|_| Status::BAD_BLOB)?;
    let length = usize::try_from(header.length).map_err(|_| Status::BAD_BLOB)?;
    let is_sound = header.magic == BlobHeader::MAGIC
        && header.version == BlobHeader::VERSION
        && header.reserved == 0
        && length <= MAX_SECRET
        && rest.len() == length.saturating_add(TAG_BYTES);
    let policy = SealPolicy::checked(header.policy).filter(|_| is_sound).ok_or(Status::BAD_BLOB)?;
    Ok((header, policy, length))
}

/// Opens `blob` into `out`, which must have room for exactly what it holds; wiped if it does not open.
pub(super) fn unseal(
    root: &Secret<[u8; 32]>,
    registers: &Registers,
    label: &[u8],
    blob: &[u8],
    out: &mut [u8],
) -> Result<(), Status> {
    let (header, policy, length) = inspect(blob)?;
    let (_, body) = blob.split_at_checked(HEADER_BYTES).ok_or(Status::BAD_BLOB)?;
    let (sealed, tag) = body.split_at_checked(length).ok_or(Status::BAD_BLOB)?;
    let tag = Tag::try_from(tag).map_err(|_| Status::BAD_BLOB)?;
    let buffer = InOutBuf::new(sealed, &mut *out).map_err(|_| Status::REPLY_TOO_SMALL)?;
    let opened = cipher(root, registers, policy, label, &header.salt)?.decrypt_inout_detached(
        &Nonce::default(),
        header.as_bytes(),
        buffer,
        &tag,
    );
    opened.map_err(|_| {
        out.zeroize();
        Status::REFUSED
    })
}

fn cipher(
    root: &Secret<[u8; 32]>,
    registers: &Registers,
    policy: SealPolicy,
    label: &[u8],
    salt: &[u8; 32],
) -> Result<Aes256Gcm, Status> {
    let version = BlobHeader::VERSION.to_le_bytes();
    let policy_digest = Sha384::digest(policy.bits().to_le_bytes());
    let label_digest = Sha384::digest(label);
    let selected = |index: usize, value| if policy.selects(index) { value } else { [].as_slice() };
    let [g0, g1, g2, g3, g4, g5, g6, g7] = registers;
    let info: [&[u8]; 12] = [
        TAG,
        &version,
        &policy_digest,
        &label_digest,
        selected(0, g0),
        selected(1, g1),
        selected(2, g2),
        selected(3, g3),
        selected(4, g4),
        selected(5, g5),
        selected(6, g6),
        selected(7, g7),
    ];
    let (mut prk, hkdf) = Hkdf::<Sha256>::extract(Some(salt), root.expose());
    prk.as_mut_slice().zeroize();
    let mut key = Zeroizing::new([0; 32]);
    hkdf.expand_multi_info(&info, key.as_mut_slice()).map_err(|_| Status::BAD_ARGUMENT)?;
    Aes256Gcm::new_from_slice(key.as_slice()).map_err(|_| Status::BAD_ARGUMENT)
}
