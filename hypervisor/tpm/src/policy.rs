//! Policy digests, computed by us and never by a trial session: on a TPM whose SHA-256 bank is off a trial
//! TPM2_PolicyPCR binds nothing, and an evil launch gets the same key.
//!
//! Specification: TPM 2.0 library, part 3, 23.7 (TPM2_PolicyPCR) and 23.8 (TPM2_PolicyLocality).

use crate::constant::{alg, cc, handle};
use crate::crypto::{SHA256_SIZE, sha256};
use crate::tis::Locality;

/// Registers that a quote for a guest is over: PCR 17 and 18.
pub const QUOTED: u32 = 1 << 17 | 1 << 18;
/// TPML_PCR_SELECTION: PCR 17 of the SHA-256 bank.
pub const SELECT_17: [u8; 10] = selection(1 << 17);
/// TPML_PCR_SELECTION: PCR 17 and 18 of the SHA-256 bank.
pub const SELECT_17_18: [u8; 10] = selection(QUOTED);

const _: () = assert!(alg::SHA256 == 0x0b, "the selections above name the SHA-256 bank");

/// The policy that only the launch with this PCR 17 (SHA-256 bank) can meet, and only at locality 2:
/// PolicyPCR ∧ PolicyLocality. Keys with it belong to one measured hypervisor.
#[must_use]
pub fn launch_policy(pcr17: &[u8; SHA256_SIZE]) -> [u8; SHA256_SIZE] {
    policy_locality(&policy_pcr(&[0; SHA256_SIZE], &SELECT_17, &sha256(&[pcr17])), Locality::Two)
}

/// The same two conditions in the other order: another digest, so another key, which is told from the guests' key by
/// its public part alone. For the key that signs quotes about the host.
#[must_use]
pub fn host_policy(pcr17: &[u8; SHA256_SIZE]) -> [u8; SHA256_SIZE] {
    policy_pcr(&policy_locality(&[0; SHA256_SIZE], Locality::Two), &SELECT_17, &sha256(&[pcr17]))
}

/// The policy of the TCG's endorsement keys: TPM2_PolicySecret of the endorsement hierarchy, with no policyRef
/// (part 3, 23.4).
#[must_use]
pub fn endorsement_policy() -> [u8; SHA256_SIZE] {
    let named =
        sha256(&[&[0; SHA256_SIZE], &cc::POLICY_SECRET.to_be_bytes(), &handle::ENDORSEMENT.to_be_bytes()]);
    sha256(&[&named])
}

/// TPML_PCR_SELECTION of registers of the SHA-256 bank; bit n of `pcrs` stands for PCR n.
#[must_use]
pub const fn selection(pcrs: u32) -> [u8; 10] {
    let [a, b, c, _] = pcrs.to_le_bytes();
    [0, 0, 0, 1, 0, 0x0b, 3, a, b, c]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_endorsement_policy_is_the_one_of_the_credential_profile() {
        let policy = endorsement_policy();
        assert_eq!(policy[..8], [0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8]);
        assert_eq!(policy[28..], [0x33, 0x14, 0x69, 0xaa]);
    }

    #[test]
    fn guests_and_host_have_policies_of_their_own() {
        assert_ne!(launch_policy(&[1; 32]), host_policy(&[1; 32]));
        assert_ne!(host_policy(&[1; 32]), host_policy(&[2; 32]));
    }

    #[test]
    fn a_selection_names_the_registers_in_the_order_of_bits() {
        assert_eq!(SELECT_17_18, [0, 0, 0, 1, 0, 0x0b, 3, 0, 0, 0x06]);
        assert_eq!(selection(0x00ff_ffff)[7..], [0xff; 3]);
    }
}
