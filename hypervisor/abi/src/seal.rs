//! Sealed blobs as they look outside, and what they can be bound to.
#![expect(
    missing_debug_implementations,
    reason = "of helper types that zerocopy derives through a macro; every structure here derives it"
)]

use bitflags::bitflags;
use zerocopy::FromBytes;

use crate::layout::wire;
use crate::{REGISTER_COUNT, Status};

/// Most bytes that one blob seals.
pub const MAX_SECRET: usize = 16 * 1024;
/// Longest label in bytes.
pub const MAX_LABEL: usize = 128;
/// Bytes of the authentication tag at the end of a blob.
pub const TAG_BYTES: usize = 16;
/// Bytes that a blob has more than the secret in it.
pub const SEALED_OVERHEAD: usize = size_of::<BlobHeader>().saturating_add(TAG_BYTES);

bitflags! {
    /// What a blob is bound to beside the hypervisor's measurement, which every blob is bound to and which therefore has
    /// no bit. One policy has one encoding: these bits go into the blob's header and into its key as they are.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SealPolicy: u32 {
        /// The guest's identity: its name, image and whole configuration.
        const G0 = 1 << 0;
        /// Register 1.
        const G1 = 1 << 1;
        /// Register 2.
        const G2 = 1 << 2;
        /// Register 3.
        const G3 = 1 << 3;
        /// Register 4.
        const G4 = 1 << 4;
        /// Register 5.
        const G5 = 1 << 5;
        /// Register 6.
        const G6 = 1 << 6;
        /// Register 7.
        const G7 = 1 << 7;
        /// The manifest and the files of all its guests; without G0: any guest of this manifest.
        const MANIFEST = 1 << 8;
        /// Says that neither G0 nor the manifest is bound, so that nobody leaves them out by mistake.
        const ANY_GUEST = 1 << 9;
    }
}

impl SealPolicy {
    /// Every bit with its word and its meaning.
    pub const ALL: &'static [(Self, &'static str, &'static str)] = &[
        (Self::G0, "g0", "this guest: its name, image and whole configuration"),
        (Self::G1, "g1", "the value of G1"),
        (Self::G2, "g2", "the value of G2"),
        (Self::G3, "g3", "the value of G3"),
        (Self::G4, "g4", "the value of G4"),
        (Self::G5, "g5", "the value of G5"),
        (Self::G6, "g6", "the value of G6"),
        (Self::G7, "g7", "the value of G7"),
        (
            Self::MANIFEST,
            "manifest",
            "this manifest and the files of all its guests; without g0, any guest of it may open the blob",
        ),
        (
            Self::ANY_GUEST,
            "any-guest",
            "neither g0 nor manifest: any guest that this hypervisor runs may open the blob, under any manifest",
        ),
    ];

    /// The policy with exactly these bits, if it is one: no unknown bit, and it says who may open the blob.
    pub const fn checked(bits: u32) -> Option<Self> {
        match Self::from_bits(bits) {
            Some(policy) if policy.says_who() => Some(policy),
            Some(_) | None => None,
        }
    }

    /// Whether it names a guest, the manifest or both; or, and then alone, that neither is bound.
    const fn says_who(self) -> bool {
        self.intersects(Self::G0.union(Self::MANIFEST)) != self.contains(Self::ANY_GUEST)
    }

    /// Whether the value of register `index` is bound.
    pub const fn selects(self, index: usize) -> bool {
        index < REGISTER_COUNT && self.bits() & (1 << index) != 0
    }

    /// Version of the blobs with this policy: the first that could say it, so that a blob has one form only.
    pub const fn blob_version(self) -> u32 {
        let is_first = self.contains(Self::G0) && !self.contains(Self::MANIFEST);
        if is_first { 1 } else { 2 }
    }
}

impl Default for SealPolicy {
    fn default() -> Self {
        Self::G0
    }
}

wire! {
    /// Start of a sealed blob; as many bytes of ciphertext as `length` says and the tag follow.
    ///
    /// The header is authenticated with the secret: a blob with any bit changed does not open.
    pub struct BlobHeader {
        /// `DOLMSEAL`.
        pub magic: [u8; 8],
        /// 1 if the policy has G0 and no bit above 7, else 2.
        pub version: u32,
        /// What the blob is bound to (SealPolicy bits).
        pub policy: u32,
        /// Bytes sealed.
        pub length: u32,
        /// Zero.
        pub reserved: u32,
        /// Random, new for each blob: its key is derived with it.
        pub salt: [u8; 32],
    }
}

impl BlobHeader {
    /// Marks a sealed blob.
    pub const MAGIC: [u8; 8] = *b"DOLMSEAL";
    /// Newest version of the format. Magic and version stand at the start in every version that ever comes.
    pub const NEWEST: u32 = 2;
}

/// A sealed blob, taken apart. Nothing in it is authenticated before it opens.
#[derive(Clone, Copy, Debug)]
pub struct Blob<'a> {
    /// Its header.
    pub header: BlobHeader,
    /// What it says that it is bound to.
    pub policy: SealPolicy,
    /// The ciphertext, as long as what was sealed.
    pub sealed: &'a [u8],
    /// The authentication tag.
    pub tag: &'a [u8; TAG_BYTES],
}

impl<'a> Blob<'a> {
    /// Takes `bytes` apart, from the first to the last.
    ///
    /// # Errors
    /// [`Status::NEWER_BLOB`] if the version is above [`BlobHeader::NEWEST`], whatever follows it;
    /// [`Status::BAD_BLOB`] if this is no whole blob.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Status> {
        let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(Status::BAD_BLOB)?;
        let (version, _) = rest.split_first_chunk::<4>().ok_or(Status::BAD_BLOB)?;
        if *magic != BlobHeader::MAGIC {
            return Err(Status::BAD_BLOB);
        }
        if u32::from_le_bytes(*version) > BlobHeader::NEWEST {
            return Err(Status::NEWER_BLOB);
        }
        let (header, body) = BlobHeader::read_from_prefix(bytes).map_err(|_| Status::BAD_BLOB)?;
        let policy = SealPolicy::checked(header.policy).ok_or(Status::BAD_BLOB)?;
        let (sealed, tag) = body.split_last_chunk::<TAG_BYTES>().ok_or(Status::BAD_BLOB)?;
        let is_sound = header.version == policy.blob_version()
            && header.reserved == 0
            && usize::try_from(header.length).is_ok_and(|length| length == sealed.len())
            && sealed.len() <= MAX_SECRET;
        if is_sound { Ok(Self { header, policy, sealed, tag }) } else { Err(Status::BAD_BLOB) }
    }
}

const _: () = {
    assert!(size_of::<BlobHeader>() == 56);
    assert!(core::mem::offset_of!(BlobHeader, version) == 8);
    assert!(core::mem::offset_of!(BlobHeader, salt) == 24);
    assert!(SEALED_OVERHEAD == 72);
};

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    #[test]
    fn a_policy_says_who_in_one_way_and_has_no_unknown_bit() {
        for (bits, want) in [
            (0, None),
            (1, Some(SealPolicy::G0)),
            (2, None),
            (0x81, Some(SealPolicy::G0 | SealPolicy::G7)),
            (0x100, Some(SealPolicy::MANIFEST)),
            (0x101, Some(SealPolicy::MANIFEST | SealPolicy::G0)),
            (0x200, Some(SealPolicy::ANY_GUEST)),
            (0x202, Some(SealPolicy::ANY_GUEST | SealPolicy::G1)),
            (0x201, None),
            (0x300, None),
            (0x401, None),
            (0x8000_0001, None),
        ] {
            assert_eq!(SealPolicy::checked(bits), want, "{bits:#x}");
        }
        let every = (0..=0xffff).filter(|bits| SealPolicy::checked(*bits).is_some()).count();
        assert_eq!(every, 1 << 9, "each choice of nine values has one encoding");
    }

    #[test]
    fn a_policy_selects_the_registers_of_its_bits() {
        let policy = SealPolicy::G0 | SealPolicy::G3 | SealPolicy::MANIFEST;
        let selected: Vec<usize> = (0..40).filter(|i| policy.selects(*i)).collect();
        assert_eq!(selected, [0, 3]);
    }

    #[test]
    fn the_table_names_every_bit_once() {
        let named = SealPolicy::ALL.iter().fold(SealPolicy::empty(), |seen, (bit, word, _)| {
            assert!(!seen.intersects(*bit), "{word}");
            seen | *bit
        });
        assert_eq!(named, SealPolicy::all());
    }

    fn blob(version: u32, policy: u32) -> Vec<u8> {
        let header =
            BlobHeader { magic: BlobHeader::MAGIC, version, policy, length: 3, reserved: 0, salt: [7; 32] };
        [header.as_bytes(), &[1; 3 + TAG_BYTES]].concat()
    }

    #[test]
    fn a_blob_has_the_version_of_its_policy() {
        for (version, policy, want) in [
            (1, 0x01, Ok(())),
            (1, 0xff, Ok(())),
            (2, 0x01, Err(Status::BAD_BLOB)),
            (1, 0x100, Err(Status::BAD_BLOB)),
            (1, 0x101, Err(Status::BAD_BLOB)),
            (2, 0x101, Ok(())),
            (2, 0x200, Ok(())),
            (2, 0x02, Err(Status::BAD_BLOB)),
            (2, 0x400, Err(Status::BAD_BLOB)),
            (0, 0x01, Err(Status::BAD_BLOB)),
        ] {
            let bytes = blob(version, policy);
            assert_eq!(Blob::read(&bytes).map(|_| ()), want, "version {version}, policy {policy:#x}");
        }
    }

    #[test]
    fn a_newer_version_is_told_by_its_name_whatever_else_it_has() {
        for version in [3, 4, 0x100, 0x0100_0000, u32::MAX] {
            let future = blob(version, 0xdead_beef);
            for length in 12..=future.len() {
                assert_eq!(
                    Blob::read(&future[..length]).err(),
                    Some(Status::NEWER_BLOB),
                    "{version} {length}"
                );
            }
            for length in 0..12 {
                assert_eq!(Blob::read(&future[..length]).err(), Some(Status::BAD_BLOB), "{version} {length}");
            }
            let other = [b"DOLMSEAX", &future[8..]].concat();
            assert_eq!(Blob::read(&other).err(), Some(Status::BAD_BLOB), "not a blob at all");
        }
    }

    #[test]
    fn a_blob_is_whole_or_none() {
        let whole = blob(2, 0x100);
        let read = Blob::read(&whole).unwrap();
        assert_eq!((read.sealed, *read.tag, read.policy), (&[1; 3][..], [1; 16], SealPolicy::MANIFEST));
        for length in 0..whole.len() {
            assert_eq!(Blob::read(&whole[..length]).err(), Some(Status::BAD_BLOB), "{length}");
        }
        assert_eq!(Blob::read(&[whole.as_slice(), &[0]].concat()).err(), Some(Status::BAD_BLOB));
    }
}
