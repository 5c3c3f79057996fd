//! The keys behind evidence, as a report by configfs-tsm brings them in its auxiliary blob.
//!
//! CBOR like evidence, but open: a reader passes over keys of the map that it does not know. Nothing in it proves itself;
//! who enrols checks the certificates, and the attestation key by a credential.

use minicbor::decode::Decoder;

use super::EvidenceError;

/// Value of key 0: what this is, and in which version.
pub const FORMAT: &str = "dolmen-keys-1";
/// None is longer.
pub const MAX_KEYS: usize = 32 * 1024;

/// An attestation key and what vouches for it, as far as the guest may know it and the TPM has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReportKeys<'a> {
    /// The attestation key (`TPM2B_PUBLIC`).
    pub ak_public: &'a [u8],
    /// An endorsement key of its TPM (`TPM2B_PUBLIC`).
    pub ek_public: Option<&'a [u8]>,
    /// That key's certificate as the TPM's maker stored it (DER, perhaps with padding after it).
    pub ek_certificate: Option<&'a [u8]>,
    /// Certificates behind that one, one after the other (DER).
    pub ek_chain: Option<&'a [u8]>,
}

impl<'a> ReportKeys<'a> {
    /// Reads the keys; nothing in `bytes` is trusted.
    ///
    /// # Errors
    /// [`EvidenceError`] says what is wrong with them.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, EvidenceError> {
        if bytes.len() > MAX_KEYS {
            return Err(EvidenceError::NotCanonical);
        }
        let mut d = Decoder::new(bytes);
        let keys = read(&mut d).map_err(|_| EvidenceError::NotCanonical)?.ok_or(EvidenceError::Format)?;
        if d.position() != bytes.len() || keys.ak_public.is_empty() {
            return Err(EvidenceError::NotCanonical);
        }
        Ok(keys)
    }
}

/// `None` if it is something else than keys of this version. Its keys come in order, each once.
fn read<'a>(d: &mut Decoder<'a>) -> Result<Option<ReportKeys<'a>>, minicbor::decode::Error> {
    let wrong = || minicbor::decode::Error::message("not a map with its keys in order");
    let entries = d.map()?.ok_or_else(wrong)?;
    if d.u64()? != 0 || d.str()? != FORMAT {
        return Ok(None);
    }
    let (mut keys, mut last) = (ReportKeys::default(), 0);
    for _ in 1..entries {
        let key = d.u64()?;
        if key <= last {
            return Err(wrong());
        }
        last = key;
        match key {
            1 => keys.ak_public = d.bytes()?,
            2 => keys.ek_public = Some(d.bytes()?),
            3 => keys.ek_certificate = Some(d.bytes()?),
            4 => keys.ek_chain = Some(d.bytes()?),
            _ => d.skip()?,
        }
    }
    Ok(Some(keys))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A map of so many entries.
    fn blob(entries: u8, rest: &[u8]) -> Vec<u8> {
        [&[0xa0 | entries, 0x00, 0x6d][..], FORMAT.as_bytes(), rest].concat()
    }

    #[test]
    fn every_part_that_is_there_is_found() {
        let ak = ReportKeys { ak_public: b"ak", ..ReportKeys::default() };
        assert_eq!(ReportKeys::decode(&blob(2, b"\x01\x42ak")), Ok(ak));
        let whole = blob(5, b"\x01\x42ak\x02\x42ek\x03\x44cert\x04\x45chain");
        let want = ReportKeys {
            ek_public: Some(b"ek"),
            ek_certificate: Some(b"cert"),
            ek_chain: Some(b"chain"),
            ..ak
        };
        assert_eq!(ReportKeys::decode(&whole), Ok(want));
    }

    #[test]
    fn what_a_later_version_adds_is_passed_over() {
        let ak = ReportKeys { ak_public: b"ak", ..ReportKeys::default() };
        assert_eq!(ReportKeys::decode(&blob(3, b"\x01\x42ak\x09\x82\x01\x61x")), Ok(ak));
    }

    #[test]
    fn anything_else_is_refused() {
        let whole = blob(3, b"\x01\x42ak\x02\x42ek");
        for length in 0..whole.len() {
            assert!(ReportKeys::decode(&whole[..length]).is_err(), "{length}");
        }
        let mut other = whole.clone();
        *other.get_mut(15).unwrap() = b'2';
        assert_eq!(ReportKeys::decode(&other), Err(EvidenceError::Format));
        for bad in [
            [&whole[..], &[0]].concat(),
            blob(3, b"\x02\x42ek\x01\x42ak"),
            blob(3, b"\x01\x42ak\x01\x42ak"),
            blob(2, b"\x02\x42ek"),
            blob(2, b"\x01\x40"),
            blob(2, b"\x01\x62ak"),
        ] {
            assert_eq!(ReportKeys::decode(&bad), Err(EvidenceError::NotCanonical), "{bad:02x?}");
        }
        assert_eq!(ReportKeys::decode(&vec![0; MAX_KEYS + 1]), Err(EvidenceError::NotCanonical));
    }
}
