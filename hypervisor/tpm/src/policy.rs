//! Policy digests, computed by us and never by a trial session: on a TPM whose SHA-256 bank is off a trial
//! TPM2_PolicyPCR binds nothing, and an evil launch gets the same key.
//!
//! Specification: TPM 2.0 library, part 3, 23.7 (TPM2_PolicyPCR) and 23.8 (TPM2_PolicyLocality).

use crate::constant::{alg, cc};
use crate::crypto::{SHA256_SIZE, sha256};
use crate::tis::Locality;

/// TPML_PCR_SELECTION: PCR 17 of the SHA-256 bank.
pub const SELECT_17: [u8; 10] = [0, 0, 0, 1, 0, 0x0b, 3, 0, 0, 0x02];
/// TPML_PCR_SELECTION: PCR 17 and 18 of the SHA-256 bank.
pub const SELECT_17_18: [u8; 10] = [0, 0, 0, 1, 0, 0x0b, 3, 0, 0, 0x06];

const _: () = assert!(alg::SHA256 == 0x0b, "the selections above name the SHA-256 bank");

/// The policy that only the launch with this PCR 17 (SHA-256 bank) can meet, and only at locality 2:
/// PolicyPCR ∧ PolicyLocality. Keys with it belong to one measured hypervisor.
#[must_use]
pub fn launch_policy(pcr17: &[u8; SHA256_SIZE]) -> [u8; SHA256_SIZE] {
    policy_locality(&policy_pcr(&[0; SHA256_SIZE], &SELECT_17, &sha256(&[pcr17])), Locality::Two)
}

/// `before` extended by TPM2_PolicyPCR over `selection`, whose values hash to `pcr_digest`.
#[must_use]
pub fn policy_pcr(before: &[u8; 32], selection: &[u8], pcr_digest: &[u8; 32]) -> [u8; SHA256_SIZE] {
    sha256(&[before, &cc::POLICY_PCR.to_be_bytes(), selection, pcr_digest])
}

/// `before` extended by TPM2_PolicyLocality for one locality.
#[must_use]
pub fn policy_locality(before: &[u8; 32], locality: Locality) -> [u8; SHA256_SIZE] {
    sha256(&[before, &cc::POLICY_LOCALITY.to_be_bytes(), &[locality.attribute()]])
}
