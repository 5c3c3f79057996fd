//! The parts of evidence as files for unmodified tpm2-tools.
//!
//! Serves people who trust other programs than this one: `tpm2_checkquote`, `tpm2_eventlog` and `openssl` then
//! look at the same bytes.

use dolmen_abi::evidence::host::HostEvidence;
use dolmen_abi::evidence::{Evidence, EvidenceError};
use dolmen_drtm::replay::{EventLog, ReplayError};
use dolmen_tpm::attest::{QuoteAttest, parse_ecdsa, parse_rsassa};
use dolmen_tpm::codec::DecodeError;
use dolmen_tpm::crypto::sha256;
use dolmen_tpm::policy::QUOTED;

use crate::binding::extra_data;
use crate::key::{AttestationKey, KeyProblem};
use crate::registers::replay;

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
    if let Ok(host) = HostEvidence::decode(bytes) {
        return export_host(&host);
    }
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
        ("quote.der", signature_for_openssl(evidence.signature)),
        ("ak.pem", key.verifier.pem().into_bytes()),
        ("pcrs", serialize_pcrs(QUOTED, &[pcr17, pcr18])),
        ("eventlog", evidence.event_log.to_vec()),
        ("extra-data", format!("{extra_data}\n").into_bytes()),
    ];
    Ok(Export { files, extra_data })
}

/// The files of evidence about a host.
fn export_host(evidence: &HostEvidence<'_>) -> Result<Export, ExportError> {
    let key = AttestationKey::parse(evidence.ak_public)?;
    let quote = QuoteAttest::parse(evidence.attest).map_err(ExportError::Quote)?;
    if sha256(&[evidence.values]) != quote.pcr_digest {
        return Err(ExportError::Unknown);
    }
    let extra_data = hex::encode(quote.extra_data);
    let (values, _) = evidence.values.as_chunks::<32>();
    let files = vec![
        ("quote.msg", evidence.attest.to_vec()),
        ("quote.sig", evidence.signature.to_vec()),
        ("quote.der", signature_for_openssl(evidence.signature)),
        ("ak.pub", evidence.ak_public.to_vec()),
        ("ak.pem", key.verifier.pem().into_bytes()),
        ("pcrs", serialize_pcrs(evidence.pcrs, values)),
        ("values", evidence.values.to_vec()),
        ("eventlog", evidence.event_log.to_vec()),
        ("extra-data", format!("{extra_data}\n").into_bytes()),
    ];
    Ok(Export { files, extra_data })
}

/// A `TPMT_SIGNATURE` as openssl takes it: an RSA number as it is, r and s of ECDSA in DER. Empty if it is neither.
fn signature_for_openssl(signature: &[u8]) -> Vec<u8> {
    if let Ok(number) = parse_rsassa(signature) {
        return number.to_vec();
    }
    let Ok((r, s)) = parse_ecdsa(signature) else { return Vec::new() };
    let body = [der_integer(&r), der_integer(&s)].concat();
    // Two numbers of 32 bytes need less than 128 bytes, so one byte says how many.
    [&[0x30, u8::try_from(body.len()).unwrap_or(0)][..], &body].concat()
}

/// An unsigned number of up to 32 bytes in DER (X.690, 8.3): no zeroes in front but the one that keeps it positive.
fn der_integer(number: &[u8; 32]) -> Vec<u8> {
    let start = number.iter().position(|byte| *byte != 0).unwrap_or(31);
    let digits = number.get(start..).unwrap_or_default();
    let sign: &[u8] = if digits.first().is_some_and(|byte| *byte >= 0x80) { &[0] } else { &[] };
    let length = u8::try_from(digits.len().saturating_add(sign.len())).unwrap_or(0);
    [&[2, length][..], sign, digits].concat()
}

/// What `tpm2_quote -o` writes and `tpm2_checkquote -f` reads: a selection list and digest lists, as those tools
/// have them in memory, little-endian.
fn serialize_pcrs(pcrs: u32, values: &[[u8; 32]]) -> Vec<u8> {
    let mut out = Vec::new();
    let word = |count: usize| u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes();
    out.extend(1u32.to_le_bytes());
    let mut selection = [0; 8 * SELECTIONS];
    let [a, b, c, _] = pcrs.to_le_bytes();
    let first = [&SHA256.to_le_bytes()[..], &[3, a, b, c]].concat();
    for (to, from) in selection.iter_mut().zip(first) {
        *to = from;
    }
    out.extend(selection);
    let lists = values.chunks(DIGESTS);
    out.extend(word(lists.len()));
    for list in lists {
        out.extend(word(list.len()));
        let mut room = [0; DIGESTS * (2 + DIGEST_ROOM)];
        for (slot, digest) in room.chunks_mut(2 + DIGEST_ROOM).zip(list) {
            let filled = [&32u16.to_le_bytes()[..], digest].concat();
            slot.iter_mut().zip(filled).for_each(|(to, from)| *to = from);
        }
        out.extend(room);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_serialized_registers_have_the_size_that_the_tools_expect() {
        assert_eq!(serialize_pcrs(0x00ff_ffff, &[[1; 32]; 24]).len(), 132 + 4 + 3 * 532);
        assert_eq!(serialize_pcrs(QUOTED, &[[1; 32], [2; 32]]).len(), 668);
    }
}
