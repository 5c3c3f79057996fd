//! What the hypervisor says of its own launch, and what a manifest may allow a guest.

use bitflags::bitflags;

bitflags! {
    /// How the machine was launched: part of every quote's binding, so signed with it.
    ///
    /// Exactly one of [`Self::AMD_SKINIT`], [`Self::INTEL_SENTER`] and [`Self::UNMEASURED`] is set.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct LaunchFacts: u32 {
        /// Launched by AMD SKINIT, and PCR 17 was what it had to be.
        const AMD_SKINIT = 1 << 0;
        /// Launched by Intel GETSEC[SENTER], and PCR 17 was what it had to be.
        const INTEL_SENTER = 1 << 1;
        /// Not launched dynamically: nothing is sealed, nothing is quoted.
        const UNMEASURED = 1 << 2;
        /// Every IOMMU refused all DMA before anything was measured.
        const IOMMU_SHIELDED = 1 << 3;
        /// The IOMMU's own fetches were not denied while its tables were built: a race is left.
        const SHIELD_RACE = 1 << 4;
        /// An active PCR bank of an algorithm that Dolmen lacks was capped, not measured.
        const BANKS_CAPPED = 1 << 5;
        /// System management mode is not isolated: it stays in the trusted base.
        const SMM_NOT_ISOLATED = 1 << 6;
        /// A debug build: it may leak what a release protects.
        const DEBUG = 1 << 7;
        /// Firmware was asked to overwrite memory after an unclean reset.
        const OVERWRITE_REQUESTED = 1 << 8;
        /// Memory encryption is on.
        const MEMORY_ENCRYPTED = 1 << 9;
        /// Other processors stay parked: the machine runs on one.
        const PROCESSORS_PARKED = 1 << 10;
        /// The processor has no random number generator: who listens on the TPM's bus might guess the session's salt.
        const NO_PROCESSOR_RANDOM = 1 << 11;
        const _ = !0; // facts of newer hypervisors: kept as they are
    }
}

impl LaunchFacts {
    /// How the launch was made.
    const KIND: Self = Self::AMD_SKINIT.union(Self::INTEL_SENTER).union(Self::UNMEASURED);
    /// Every fact with its name and meaning, for documentation and verifiers.
    pub const ALL: &'static [(Self, &'static str, &'static str)] = &[
        (Self::AMD_SKINIT, "AMD_SKINIT", "launched by AMD SKINIT, and PCR 17 was what it had to be"),
        (
            Self::INTEL_SENTER,
            "INTEL_SENTER",
            "launched by Intel GETSEC[SENTER], and PCR 17 was what it had to be",
        ),
        (Self::UNMEASURED, "UNMEASURED", "not launched dynamically: nothing is sealed, nothing is quoted"),
        (Self::IOMMU_SHIELDED, "IOMMU_SHIELDED", "every IOMMU refused all DMA before anything was measured"),
        (
            Self::SHIELD_RACE,
            "SHIELD_RACE",
            "the IOMMU's own fetches were not denied while its tables were built: a race is left",
        ),
        (
            Self::BANKS_CAPPED,
            "BANKS_CAPPED",
            "an active PCR bank of an algorithm that Dolmen lacks was capped, not measured",
        ),
        (
            Self::SMM_NOT_ISOLATED,
            "SMM_NOT_ISOLATED",
            "system management mode is not isolated: it stays in the trusted base",
        ),
        (Self::DEBUG, "DEBUG", "a debug build: it may leak what a release protects"),
        (
            Self::OVERWRITE_REQUESTED,
            "OVERWRITE_REQUESTED",
            "firmware was asked to overwrite memory after an unclean reset",
        ),
        (Self::MEMORY_ENCRYPTED, "MEMORY_ENCRYPTED", "memory encryption is on"),
        (
            Self::PROCESSORS_PARKED,
            "PROCESSORS_PARKED",
            "other processors stay parked: the machine runs on one",
        ),
        (
            Self::NO_PROCESSOR_RANDOM,
            "NO_PROCESSOR_RANDOM",
            "the processor has no random number generator: who listens on the TPM's bus might guess the session's salt",
        ),
    ];

    /// Whether exactly one kind of launch is claimed.
    pub const fn is_consistent(self) -> bool {
        self.intersection(Self::KIND).bits().count_ones() == 1
    }

    /// Whether the processor launched the hypervisor dynamically: the condition for sealing and quoting.
    pub const fn is_launched(self) -> bool {
        self.is_consistent() && !self.contains(Self::UNMEASURED)
    }
}

bitflags! {
    /// Groups of calls that a guest's manifest allows, one bit each. [`crate::Version`] is in none: always allowed.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct CallGroup: u32 {
        /// Random numbers.
        const RANDOM = 1 << 0;
        /// Read and extend the guest's registers.
        const REGISTERS = 1 << 1;
        /// Seal and unseal.
        const SEAL = 1 << 2;
        /// Hardware quotes and the attestation key's public part.
        const QUOTE = 1 << 3;
        /// The launch's event log.
        const LOG = 1 << 4;
        /// See, start, stop and reset other guests.
        const MANAGE = 1 << 5;
        /// Quotes about the host, over a nonce as it is and registers of the caller's choice; proof of their key's possession.
        const HOST_QUOTE = 1 << 6;
        /// Endorsement keys, their certificates, and credentials for attestation keys.
        const ENROL = 1 << 7;
    }
}

impl CallGroup {
    /// Every group with the name that manifests use, and its meaning.
    pub const ALL: &'static [(Self, &'static str, &'static str)] = &[
        (Self::RANDOM, "random", "random numbers"),
        (Self::REGISTERS, "registers", "read and extend the guest's registers"),
        (Self::SEAL, "seal", "seal and unseal"),
        (Self::QUOTE, "quote", "hardware quotes and the attestation key's public part"),
        (Self::LOG, "log", "the launch's event log"),
        (Self::MANAGE, "manage", "see all guests; start, stop and reset them"),
        (
            Self::HOST_QUOTE,
            "host-quote",
            "quotes about the host and proof of possession of their key, over a nonce as it is",
        ),
        (Self::ENROL, "enrol", "endorsement keys, their certificates, and credentials for attestation keys"),
    ];

    /// The group that manifests call `name`.
    pub fn from_manifest_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|entry| entry.1 == name).map(|entry| entry.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_name_every_bit_once() {
        let facts = LaunchFacts::ALL.iter().fold(0, |seen, (bit, name, _)| {
            assert_eq!(seen & bit.bits(), 0, "{name}");
            seen | bit.bits()
        });
        assert_eq!(facts, (1 << 12) - 1);
        let groups = CallGroup::ALL.iter().fold(CallGroup::empty(), |seen, entry| seen | entry.0);
        assert_eq!(groups, CallGroup::all());
    }

    #[test]
    fn facts_that_claim_two_launches_or_none_launch_nothing() {
        let shielded = LaunchFacts::IOMMU_SHIELDED;
        for (facts, launched) in [
            (LaunchFacts::AMD_SKINIT | shielded, true),
            (LaunchFacts::INTEL_SENTER, true),
            (shielded, false),
            (LaunchFacts::UNMEASURED, false),
            (LaunchFacts::AMD_SKINIT | LaunchFacts::UNMEASURED, false),
            (LaunchFacts::AMD_SKINIT | LaunchFacts::INTEL_SENTER, false),
        ] {
            assert_eq!(facts.is_launched(), launched, "{facts:?}");
        }
    }

    #[test]
    fn facts_of_a_newer_hypervisor_survive() {
        assert_eq!(LaunchFacts::from_bits_retain(0x8000_0001).bits(), 0x8000_0001);
    }
}
