//! The parts of evidence as files for unmodified tpm2-tools.
//!
//! Serves people who trust other programs than this one: `tpm2_checkquote`, `tpm2_eventlog` and `openssl` then
//! look at the same bytes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dolmen_abi::evidence::{Evidence, EvidenceError};
use dolmen_drtm::replay::{EventLog, ReplayError};
use dolmen_tpm::attest::QuoteAttest;
use dolmen_tpm::codec::DecodeError;
use dolmen_tpm::crypto::{Point, sha256};

use crate::binding::extra_data;
use crate::key::{AttestationKey, KeyProblem};
use crate::registers::replay;

/// SubjectPublicKeyInfo of a P-256 key, up to its point (RFC 5480).
const SPKI_P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// Entries in the tools' selection list and digests in one of their lists.
const SELECTIONS: usize = 16;
const DIGESTS: usize = 8;
/// Room for one digest.
const DIGEST_ROOM: usize = 64;
const SHA256: u16 = 0x0b;

/// Why evidence cannot be exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// The file is no evidence.
    #[error("the file is no evidence: {0}")]
    Evidence(EvidenceError),
    /// The key cannot be written as PEM.
    #[error("the attestation key is none of Dolmen: {0}")]
    Key(#[from] KeyProblem),
    /// The quote cannot be read.
    #[error("what was signed is no quote ({0:?})")]
    Quote(DecodeError),
    /// The log cannot be read.
    #[error("the event log cannot be read ({0:?})")]
    Log(ReplayError),
    /// The log says nothing of the registers that were quoted.
    #[error("the event log does not replay to the quoted registers, so their values are not known")]
    Unknown,
}

/// Files by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Name and content of each file.
    pub files: Vec<(&'static str, Vec<u8>)>,
    /// The extra data that the binding leads to, in hex: `tpm2_checkquote -q`.
    pub extra_data: String,
}

/// The parts of evidence as files.
///
/// # Errors
/// [`ExportError`] if a part cannot be read: nothing is exported then.
pub fn export(bytes: &[u8]) -> Result<Export, ExportError> {
    let evidence = Evidence::decode(bytes).map_err(ExportError::Evidence)?;
    let key = AttestationKey::parse(evidence.ak_public)?;
    let quote = QuoteAttest::parse(evidence.attest).map_err(ExportError::Quote)?;
    let log = EventLog::parse(evidence.event_log).map_err(ExportError::Log)?;
    let (pcr17, pcr18) = replay(&log).ok_or(ExportError::Unknown)?;
    if sha256(&[&pcr17, &pcr18]) != quote.pcr_digest {
        return Err(ExportError::Unknown);
    }
    let extra_data = hex::encode(extra_data(&evidence).unwrap_or_default());
    let files = vec![
        ("quote.msg", evidence.attest.to_vec()),
        ("quote.sig", evidence.signature.to_vec()),
        ("ak.pub", evidence.ak_public.to_vec()),
        ("ak.pem", pem(&key.point).into_bytes()),
        ("pcrs", serialize_pcrs(&pcr17, &pcr18)),
        ("eventlog", evidence.event_log.to_vec()),
        ("extra-data", format!("{extra_data}\n").into_bytes()),
    ];
    Ok(Export { files, extra_data })
}

/// A public key as PEM (RFC 7468).
fn pem(point: &Point) -> String {
    let text = STANDARD.encode([&SPKI_P256[..], &point.to_sec1()].concat());
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))
}

/// What `tpm2_quote -o` writes and `tpm2_checkquote -f` reads: a selection list and digest lists, as those tools
/// have them in memory, little-endian.
fn serialize_pcrs(pcr17: &[u8; 32], pcr18: &[u8; 32]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(1u32.to_le_bytes());
    let mut selection = [0; 8 * SELECTIONS];
    let first = [&SHA256.to_le_bytes()[..], &[3, 0, 0, 0x06]].concat();
    for (to, from) in selection.iter_mut().zip(first) {
        *to = from;
    }
    out.extend(selection);
    out.extend(1u32.to_le_bytes());
    out.extend(2u32.to_le_bytes());
    for digest in [pcr17, pcr18] {
        out.extend(32u16.to_le_bytes());
        out.extend(digest);
        out.extend([0; DIGEST_ROOM - 32]);
    }
    out.extend([0; (DIGESTS - 2) * (2 + DIGEST_ROOM)]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_serialized_registers_have_the_size_that_the_tools_expect() {
        assert_eq!(serialize_pcrs(&[1; 32], &[2; 32]).len(), 668);
    }
}
