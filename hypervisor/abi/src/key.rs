//! The keys that a machine has in its TPM, by number.

/// An attestation key. Open: a number that this crate does not know still prints and compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AkId(pub u32);

impl AkId {
    /// Binds guests; ECDSA P-256.
    pub const GUEST_ECDSA: Self = Self(0);
    /// Binds guests; RSASSA-2048.
    pub const GUEST_RSA: Self = Self(1);
    /// Speaks of the host; ECDSA P-256.
    pub const HOST_ECDSA: Self = Self(2);
    /// Speaks of the host; RSASSA-2048.
    pub const HOST_RSA: Self = Self(3);

    /// Every key with the word that commands use, and its meaning.
    pub const ALL: &'static [(Self, &'static str, &'static str)] = &[
        (Self::GUEST_ECDSA, "ecdsa", "binds guests (Quote); ECDSA P-256 with SHA-256"),
        (Self::GUEST_RSA, "rsa", "binds guests (Quote); RSA-2048, RSASSA with SHA-256"),
        (Self::HOST_ECDSA, "host-ecdsa", "speaks of the host (HostQuote, Certify); ECDSA P-256 with SHA-256"),
        (
            Self::HOST_RSA,
            "host-rsa",
            "speaks of the host (HostQuote, Certify); RSA-2048, RSASSA with SHA-256",
        ),
    ];

    /// Whether it is one of the keys that speak of the host.
    pub const fn is_host(self) -> bool {
        matches!(self, Self::HOST_ECDSA | Self::HOST_RSA)
    }

    /// The key that commands call `word`.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|entry| entry.1 == word).map(|entry| entry.0)
    }

    /// The word that commands use, if this crate knows the key.
    pub fn word(self) -> Option<&'static str> {
        Self::ALL.iter().find(|entry| entry.0 == self).map(|entry| entry.1)
    }
}

/// An endorsement key. Open, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EkId(pub u32);

impl EkId {
    /// RSA-2048.
    pub const RSA: Self = Self(0);
    /// ECC P-256.
    pub const ECC: Self = Self(1);

    /// Every key with the word that commands use, and its meaning.
    pub const ALL: &'static [(Self, &'static str, &'static str)] = &[
        (Self::RSA, "rsa", "RSA-2048: template L-1, certificate at NV index 01C00002h"),
        (Self::ECC, "ecc", "ECC P-256: template L-2, certificate at NV index 01C0000Ah"),
    ];

    /// The key that commands call `word`.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|entry| entry.1 == word).map(|entry| entry.0)
    }

    /// The word that commands use, if this crate knows the key.
    pub fn word(self) -> Option<&'static str> {
        Self::ALL.iter().find(|entry| entry.0 == self).map(|entry| entry.1)
    }
}
