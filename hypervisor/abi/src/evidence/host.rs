//! Evidence about the host: a quote over a nonce as it is, by a key of its own, for relying parties and third-party
//! tools that know nothing of guests.
//!
//! Deterministic CBOR like evidence about a guest, but another format under another name: neither decodes as the other.

use minicbor::decode::Decoder;
use minicbor::encode::{Encoder, Write};

use super::document::{self, Document, Stop, key, part};
use super::{EvidenceError, MAX_EVENT_LOG};
use crate::{HOST_PCRS, HostQuoteReply};

/// Value of key 0: what this is, and in which version.
pub const FORMAT: &str = "dolmen-host-evidence-1";
/// No evidence about a host is longer.
pub const MAX_HOST_EVIDENCE: usize = MAX_EVENT_LOG.saturating_add(2560);

/// Bytes of a register.
const VALUE: usize = 32;

/// What a relying party gets about a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostEvidence<'a> {
    /// The quote (`TPMS_ATTEST`).
    pub attest: &'a [u8],
    /// Its signature (`TPMT_SIGNATURE`).
    pub signature: &'a [u8],
    /// The key that is said to have signed (`TPM2B_PUBLIC`).
    pub ak_public: &'a [u8],
    /// The launch's event log (TCG crypto-agile).
    pub event_log: &'a [u8],
    /// Registers of the SHA-256 bank that were quoted, bit n for PCR n.
    pub pcrs: u32,
    /// Their values, one after the other, the lowest register's first.
    pub values: &'a [u8],
}

impl<'a> HostEvidence<'a> {
    /// The values among those of a reply that were quoted, into `out`; how many bytes.
    pub fn quoted_values(reply: &HostQuoteReply, pcrs: u32, out: &mut [u8; HOST_PCRS * VALUE]) -> usize {
        let (slots, _) = out.as_chunks_mut::<VALUE>();
        let quoted = (0u32..).zip(&reply.values).filter(|(pcr, _)| pcrs.wrapping_shr(*pcr) & 1 != 0);
        let mut length: usize = 0;
        for (slot, (_, value)) in slots.iter_mut().zip(quoted) {
            *slot = *value;
            length = length.saturating_add(VALUE);
        }
        length
    }

    /// The value of a register, if it was quoted.
    pub fn value(&self, pcr: u32) -> Option<&'a [u8; VALUE]> {
        if self.pcrs.checked_shr(pcr)? & 1 == 0 {
            return None;
        }
        let before = self.pcrs & 1u32.checked_shl(pcr)?.saturating_sub(1);
        let (values, _) = self.values.as_chunks::<VALUE>();
        values.get(usize::try_from(before.count_ones()).ok()?)
    }

    /// Reads evidence about a host; nothing in `bytes` is trusted.
    ///
    /// # Errors
    /// [`EvidenceError`] says what is wrong with them.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, EvidenceError> {
        document::decode(bytes)
    }

    /// Writes the evidence to the start of `out`; the length used comes back.
    ///
    /// # Errors
    /// [`EvidenceError`] if a part has an impossible length, or `out` is too small
    /// ([`MAX_HOST_EVIDENCE`] always suffices).
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, EvidenceError> {
        document::encode(self, out)
    }
}

impl<'a> Document<'a> for HostEvidence<'a> {
    const MAX_BYTES: usize = MAX_HOST_EVIDENCE;
    const FORMAT: &'static str = FORMAT;
    const KEYS: u64 = 7;

    fn quote(&self) -> [&'a [u8]; 4] {
        [self.attest, self.signature, self.ak_public, self.event_log]
    }

    fn check_rest(&self) -> Result<(), EvidenceError> {
        let is_possible = self.pcrs != 0 && self.pcrs >> HOST_PCRS == 0;
        let count = usize::try_from(self.pcrs.count_ones()).unwrap_or(usize::MAX);
        if is_possible && self.values.len() == count.saturating_mul(VALUE) {
            Ok(())
        } else {
            Err(EvidenceError::Shape)
        }
    }

    fn read_rest(quote: [&'a [u8]; 4], d: &mut Decoder<'a>) -> Result<Self, Stop> {
        let [attest, signature, ak_public, event_log] = quote;
        key(d, 5)?;
        let pcrs = d.u32()?;
        let values = part(d, 6)?;
        Ok(Self { attest, signature, ak_public, event_log, pcrs, values })
    }

    fn write_rest<W: Write>(&self, e: &mut Encoder<W>) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.u8(5)?.u32(self.pcrs)?;
        e.u8(6)?.bytes(self.values)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::Evidence;

    const WHOLE: HostEvidence<'static> = HostEvidence {
        attest: &[1; 145],
        signature: &[2; 262],
        ak_public: &[3; 312],
        event_log: &[4; 400],
        pcrs: 1 << 17 | 1 << 18 | 1,
        values: &[5; 96],
    };

    fn encoded(evidence: &HostEvidence<'_>) -> Result<Vec<u8>, EvidenceError> {
        let mut out = vec![0; MAX_HOST_EVIDENCE];
        let length = evidence.encode(&mut out)?;
        out.truncate(length);
        Ok(out)
    }

    #[test]
    fn what_was_written_is_read_and_nothing_shorter_longer_or_changed_in_form() {
        let bytes = encoded(&WHOLE).unwrap();
        assert_eq!(HostEvidence::decode(&bytes), Ok(WHOLE));
        for length in 0..bytes.len() {
            assert!(HostEvidence::decode(&bytes[..length]).is_err(), "{length}");
        }
        assert_eq!(HostEvidence::decode(&[&bytes[..], &[0]].concat()), Err(EvidenceError::NotCanonical));
    }

    #[test]
    fn it_is_never_taken_for_evidence_about_a_guest() {
        assert!(Evidence::decode(&encoded(&WHOLE).unwrap()).is_err());
    }

    #[test]
    fn there_is_a_value_for_each_register_and_no_other() {
        for wrong in [
            HostEvidence { pcrs: 0, values: &[], ..WHOLE },
            HostEvidence { pcrs: 1 << 24, values: &[5; 32], ..WHOLE },
            HostEvidence { values: &[5; 64], ..WHOLE },
        ] {
            assert_eq!(encoded(&wrong), Err(EvidenceError::Shape));
        }
        let values: Vec<u8> = [[1; 32], [2; 32], [3; 32]].concat();
        let evidence = HostEvidence { values: &values, ..WHOLE };
        assert_eq!((evidence.value(0), evidence.value(17)), (Some(&[1; 32]), Some(&[2; 32])));
        assert_eq!((evidence.value(18), evidence.value(1), evidence.value(40)), (Some(&[3; 32]), None, None));
    }
}
