//! What the TPM tells of its authorisations, before anything is tried that they would stop half way.
//!
//! It is not protected: who forges it on the bus makes us refuse what would work, or try what the TPM then refuses itself.
//! Specification: TPM 2.0 library, part 2, 8.6 (TPMA_PERMANENT).

use crate::codec::DecodeError;
use crate::command::read_property;
use crate::constant::property;
use crate::response::TpmError;
use crate::transport::Transport;

const OWNER_AUTH_SET: u32 = 1 << 0;
const ENDORSEMENT_AUTH_SET: u32 = 1 << 1;
const LOCKOUT_AUTH_SET: u32 = 1 << 2;
const IN_LOCKOUT: u32 = 1 << 9;

/// TPMA_PERMANENT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permanent(pub u32);

impl Permanent {
    /// Asks the TPM.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn read(tpm: &mut impl Transport) -> Result<Self, TpmError> {
        let told = read_property(tpm, property::PERMANENT)?;
        told.map(Self).ok_or(TpmError::Decode(DecodeError::Value(property::PERMANENT)))
    }

    /// The owner hierarchy has an authorisation value.
    #[must_use]
    pub const fn has_owner_value(self) -> bool {
        self.0 & OWNER_AUTH_SET != 0
    }

    /// The endorsement hierarchy has one.
    #[must_use]
    pub const fn has_endorsement_value(self) -> bool {
        self.0 & ENDORSEMENT_AUTH_SET != 0
    }

    /// The lockout has one: whoever ends a lockout needs it.
    #[must_use]
    pub const fn has_lockout_value(self) -> bool {
        self.0 & LOCKOUT_AUTH_SET != 0
    }

    /// Too many authorisations failed: those that are protected against guessing are refused.
    #[must_use]
    pub const fn is_in_lockout(self) -> bool {
        self.0 & IN_LOCKOUT != 0
    }

    /// How a lockout ends.
    #[must_use]
    pub const fn lockout_remedy(self) -> &'static str {
        if self.has_lockout_value() {
            "wait until it recovers, or let whoever has the lockout authorisation value run tpm2_dictionarylockout -c -p VALUE"
        } else {
            "wait until it recovers, or run tpm2_dictionarylockout -c"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fact_has_its_bit() {
        let facts = |bits| {
            let one = Permanent(bits);
            [one.has_owner_value(), one.has_endorsement_value(), one.has_lockout_value(), one.is_in_lockout()]
        };
        assert_eq!(facts(0xffff_fdf8), [false; 4]);
        for (index, bits) in [1, 2, 4, 0x200].into_iter().enumerate() {
            assert_eq!(facts(bits), core::array::from_fn(|at| at == index), "{bits:#x}");
        }
        assert_ne!(Permanent(0x204).lockout_remedy(), Permanent(0x200).lockout_remedy());
    }
}
