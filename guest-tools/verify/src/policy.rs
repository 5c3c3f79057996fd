//! The relying party's policy: a TOML file (`docs/verify.md`, "Policy").

mod complaint;
mod load;
mod read;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use dolmen_abi::{LaunchFacts, REGISTER_BYTES};
use dolmen_tpm::policy::launch_policy;

use crate::reference::Release;

pub use complaint::PolicyError;
pub use load::{FIELDS, MAX_POLICY};

/// What a relying party accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Accepted values of PCR 17 in the SHA-256 bank: launch image and core.
    pub code: Vec<AcceptedCode>,
    /// Accepted values of PCR 18 in the SHA-256 bank: manifest and guests.
    pub configuration: Configuration,
    /// Digests by component, to name what differs.
    pub components: Components,
    /// Builds whose reference values were read from files.
    pub releases: Vec<Release>,
    /// Accepted guests by name.
    pub guests: BTreeMap<String, AcceptedGuest>,
    /// Enrolled keys, each once.
    pub keys: Vec<EnrolledKey>,
    /// Whether a key that nobody enrolled is enough. For trials only.
    pub allow_unenrolled: bool,
    /// Most dynamic launches since the TPM was reset; each adds one to its restart count.
    pub max_launches: Option<u32>,
    /// The TPM.
    pub tpm: TpmRules,
    /// Launch facts.
    pub facts: FactRules,
}

/// An accepted PCR 17, and the policy of keys that only this launch can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptedCode {
    pcr17: [u8; 32],
    key_policy: [u8; 32],
}

impl AcceptedCode {
    /// Accepts this value of PCR 17.
    #[must_use]
    pub fn new(pcr17: [u8; 32]) -> Self {
        Self { pcr17, key_policy: launch_policy(&pcr17) }
    }

    /// The value of PCR 17.
    #[must_use]
    pub const fn pcr17(&self) -> &[u8; 32] {
        &self.pcr17
    }

    /// The policy that an attestation key of this launch has.
    #[must_use]
    pub const fn key_policy(&self) -> &[u8; 32] {
        &self.key_policy
    }
}

/// Which values of PCR 18 are accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Any: then only the identity of the guest that sends evidence is known, not its neighbours.
    pub is_any: bool,
    /// These values.
    pub values: Vec<[u8; 32]>,
    /// A manifest of one of these digests, if the digest of everything that follows it is among `parts`.
    pub manifests: Vec<[u8; 32]>,
    /// Digests of guests' components and command lines.
    pub parts: Vec<[u8; 32]>,
}

/// SHA-256 digests of components that the policy knows of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Components {
    /// Launch images: the part that the processor measures.
    pub launch_images: Vec<[u8; 32]>,
    /// Cores.
    pub cores: Vec<[u8; 32]>,
    /// Manifests.
    pub manifests: Vec<[u8; 32]>,
}

/// A guest that is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedGuest {
    /// Its identities.
    pub g0: Vec<[u8; REGISTER_BYTES]>,
    /// Values that registers G1 to G7 must have, one of each list; others may have any.
    pub registers: BTreeMap<usize, Vec<[u8; REGISTER_BYTES]>>,
}

/// A key that belongs to a known TPM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrolledKey {
    /// Its Name.
    pub name: [u8; 34],
    /// The TPM's reset count at enrolment.
    pub reset_count: u32,
    /// Its restart count at enrolment.
    pub restart_count: u32,
    /// What says so: the file of an enrolment record; nothing for an entry of the policy itself.
    pub record: Option<String>,
}

/// What the TPM must say of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TpmRules {
    /// Least (reset count, restart count), compared as a pair: a reset sets the restart count to zero.
    pub min_counts: Option<(u32, u32)>,
    /// Whether its clock must be one that never ran backwards.
    pub safe_clock: bool,
    /// Accepted firmware versions, in the maker's own form; all if empty.
    pub firmware: Vec<u64>,
}

/// Which launch facts must and may be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FactRules {
    /// Facts without which evidence is refused.
    pub require: LaunchFacts,
    /// Facts that may be there besides.
    pub allow: LaunchFacts,
}

impl Default for FactRules {
    fn default() -> Self {
        Self {
            require: LaunchFacts::AMD_SKINIT.union(LaunchFacts::IOMMU_SHIELDED),
            allow: LaunchFacts::BANKS_CAPPED
                .union(LaunchFacts::SMM_NOT_ISOLATED)
                .union(LaunchFacts::OVERWRITE_REQUESTED)
                .union(LaunchFacts::MEMORY_ENCRYPTED)
                .union(LaunchFacts::PROCESSORS_PARKED),
        }
    }
}
