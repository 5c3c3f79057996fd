//! The attestation keys: four of them, told apart by what they speak of and by how they sign.
//!
//! All are restricted signing primaries of the endorsement hierarchy that only this launch's PCR 17 at locality 2 can
//! use. Those that speak of guests and those that speak of the host have policies of their own, so the public part
//! says which it is: a quote over a nonce that somebody chose is never taken for one that binds a guest.

use crate::attest::{has_rsassa_form, is_signed_by};
use crate::codec::{DecodeError, EncodeError, Reader};
use crate::constant::handle;
use crate::crypto::{Point, SHA256_SIZE, sha256};
use crate::policy::{host_policy, launch_policy};
use crate::public::{Name, PublicArea, Template};

/// Which attestation key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AkKind {
    /// Binds guests; ECDSA P-256.
    GuestEcdsa,
    /// Binds guests; RSASSA-2048.
    GuestRsa,
    /// Speaks of the host, over a nonce as it is; ECDSA P-256.
    HostEcdsa,
    /// Speaks of the host, over a nonce as it is; RSASSA-2048.
    HostRsa,
}

impl AkKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::GuestEcdsa, Self::GuestRsa, Self::HostEcdsa, Self::HostRsa];

    /// Whether it speaks of the host.
    #[must_use]
    pub const fn is_host(self) -> bool {
        matches!(self, Self::HostEcdsa | Self::HostRsa)
    }

    /// Whether it is an RSA key.
    #[must_use]
    pub const fn is_rsa(self) -> bool {
        matches!(self, Self::GuestRsa | Self::HostRsa)
    }

    /// The policy that it carries in the launch with this PCR 17.
    #[must_use]
    pub fn policy(self, pcr17: &[u8; SHA256_SIZE]) -> [u8; SHA256_SIZE] {
        if self.is_host() { host_policy(pcr17) } else { launch_policy(pcr17) }
    }

    /// Its template in that launch.
    ///
    /// # Errors
    /// None: the buffer holds each template.
    pub fn template(self, pcr17: &[u8; SHA256_SIZE]) -> Result<Template, EncodeError> {
        let policy = self.policy(pcr17);
        if self.is_rsa() {
            Template::rsa_attestation_key(&policy)
        } else {
            Template::attestation_key(&policy)
        }
    }
}

/// An attestation key, loaded.
#[derive(Clone, Copy, Debug)]
pub struct AttestationKey {
    /// Which one.
    pub kind: AkKind,
    /// Its transient handle.
    pub handle: u32,
    /// TPMT_PUBLIC.
    pub public: PublicArea,
    /// Its Name.
    pub name: Name,
    /// The point of an ECDSA key.
    point: Option<Point>,
    /// The PCR 17 that its policy demands.
    pub pcr17: [u8; SHA256_SIZE],
}

impl AttestationKey {
    /// The key at `handle`, if `public` is the template of its kind for this PCR 17.
    ///
    /// # Errors
    /// [`DecodeError`] for what of it differs.
    pub fn check(
        kind: AkKind,
        handle: u32,
        public: &[u8],
        pcr17: [u8; SHA256_SIZE],
    ) -> Result<Self, DecodeError> {
        let template = kind.template(&pcr17).map_err(|_| DecodeError::Trailing)?;
        let area = template.check(public)?;
        let point = if kind.is_rsa() { None } else { Some(template.point(area.bytes())?) };
        if point.is_some_and(|point| point.to_public_key().is_none()) {
            return Err(DecodeError::Value(u32::from(crate::constant::alg::ECC)));
        }
        Ok(Self { kind, handle, public: area, name: area.name(), point, pcr17 })
    }

    /// Its qualified Name, which every attestation carries: a primary key's parent is its hierarchy
    /// (part 1, "Qualified name").
    #[must_use]
    pub fn qualified_name(&self) -> Name {
        let mut qualified = self.name;
        let digest = sha256(&[&handle::ENDORSEMENT.to_be_bytes(), &self.name]);
        for (to, from) in qualified.iter_mut().skip(2).zip(digest) {
            *to = from;
        }
        qualified
    }

    /// Whether `signature` (TPMT_SIGNATURE) over `attest` may be handed out as this key's. That of an ECDSA key is
    /// verified; of an RSA key's only the form is looked at, since who relies on it verifies it anyway and nothing
    /// here depends on it (docs/tpm.md, "Two kinds of key").
    #[must_use]
    pub fn signs(&self, attest: &[u8], signature: &[u8]) -> bool {
        match &self.point {
            Some(point) => is_signed_by(point, attest, signature),
            None => has_rsassa_form(signature),
        }
    }
}

/// The modulus at the end of an RSA key's public area, after [`Template::check`].
#[must_use]
pub fn modulus(area: &[u8]) -> Option<&[u8]> {
    let at = area.len().checked_sub(crate::public::RSA_BYTES)?;
    let mut size = Reader::new(area.get(at.checked_sub(2)?..)?);
    size.tpm2b().ok()
}
