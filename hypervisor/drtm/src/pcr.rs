//! PCR arithmetic: what the processor and the extends leave in PCR 17 and 18.
//!
//! In every bank with hash H, of which 0 has as many bytes as a digest (APM vol. 2, 15.27.6; TPM 2.0 library,
//! part 1, "DRTM"):
//!
//! - the launch: PCR 17 = H(0 ‖ H(SLB[0, length))), PCR 18 = 0;
//! - an extend: PCR = H(PCR ‖ digest).

use crate::bank::{BankSet, DigestSet};
use crate::digest::{Algorithm, Digest};

/// `pcr` after an extend with `event`.
#[must_use]
pub fn extend(pcr: &Digest, event: &Digest) -> Digest {
    pcr.algorithm().hash(&[pcr.bytes(), event.bytes()])
}

/// PCR 17 as the processor leaves it in the bank of `algorithm`.
#[must_use]
pub fn launched(algorithm: Algorithm, measured: &[u8]) -> Digest {
    extend(&Digest::zero(algorithm), &algorithm.hash(&[measured]))
}

/// What PCR 17 and 18 must hold, in every bank, as events go by.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// PCR 17.
    pub code: DigestSet,
    /// PCR 18.
    pub configuration: DigestSet,
}

impl Expected {
    /// After the processor has measured a launch image of which `slb` are the digests.
    #[must_use]
    pub fn launched(banks: &BankSet, slb: &DigestSet) -> Self {
        let zero = DigestSet::zero(banks);
        Self { code: zero.extended(slb), configuration: zero }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_launch_has_the_value_known_from_failed_handshakes() {
        let pcr = launched(Algorithm::Sha256, b"");
        assert!(hex::encode(pcr.bytes()).starts_with("1c9ecec9"));
        assert!(hex::encode(pcr.bytes()).ends_with("7112"));
    }

    #[test]
    fn the_expected_values_of_all_banks_agree_with_the_formula_of_one() {
        let banks = BankSet::select(Algorithm::ALL.map(|a| (a.id(), 0xff_ffff)).into_iter()).unwrap();
        let expected = Expected::launched(&banks, &DigestSet::of(&banks, b"image"));
        for algorithm in Algorithm::ALL {
            assert_eq!(expected.code.get(algorithm), Some(launched(algorithm, b"image").bytes()));
            assert_eq!(expected.configuration.get(algorithm), Some(Digest::zero(algorithm).bytes()));
        }
    }
}
