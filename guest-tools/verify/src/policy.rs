//! The relying party's policy: a TOML file.

use std::collections::BTreeMap;

use dolmen_abi::{LaunchFacts, REGISTER_BYTES};
use serde::Deserialize;

/// Why a policy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Not TOML, or not with these keys.
    #[error("{0}")]
    Syntax(#[from] toml::de::Error),
    /// A value that is not so many bytes in hex.
    #[error("{key}: expected {bytes} bytes in hex, found \"{found}\"")]
    Hex {
        /// Where.
        key: String,
        /// How many bytes it should be.
        bytes: usize,
        /// What it is.
        found: String,
    },
    /// A launch fact that does not exist.
    #[error("facts: there is no launch fact \"{0}\"; see docs/abi.md")]
    NoSuchFact(String),
    /// A launch fact that is always refused.
    #[error("facts: {0} is always refused and cannot be allowed")]
    Forbidden(&'static str),
    /// A register that a guest cannot extend.
    #[error("guests.{guest}.registers: there is no register \"{found}\"; expected g1 to g7")]
    NoSuchRegister {
        /// Which guest.
        guest: String,
        /// The name.
        found: String,
    },
    /// A policy that accepts nobody.
    #[error("guests: expected at least one guest")]
    NoGuest,
}

/// What a relying party accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Reference value of PCR 17 in the SHA-256 bank: launch image and core.
    pub pcr17: [u8; 32],
    /// Reference value of PCR 18 in the SHA-256 bank: manifest and guests.
    pub pcr18: [u8; 32],
    /// Accepted guests by name.
    pub guests: BTreeMap<String, AcceptedGuest>,
    /// Enrolled keys.
    pub keys: Vec<EnrolledKey>,
    /// Whether a key that nobody enrolled is enough. For trials only.
    pub allow_unenrolled: bool,
    /// Most dynamic launches since the TPM was reset; each adds one to its restart count.
    pub max_launches: Option<u32>,
    /// Launch facts.
    pub facts: FactRules,
}

/// A guest that is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedGuest {
    /// Its identity.
    pub g0: [u8; REGISTER_BYTES],
    /// Values that registers G1 to G7 must have; others may have any.
    pub registers: BTreeMap<usize, [u8; REGISTER_BYTES]>,
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    pcr17: String,
    pcr18: String,
    #[serde(default)]
    allow_unenrolled: bool,
    max_launches: Option<u32>,
    guests: BTreeMap<String, FileGuest>,
    #[serde(default)]
    keys: Vec<FileKey>,
    facts: Option<FileFacts>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileGuest {
    g0: String,
    #[serde(default)]
    registers: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileKey {
    name: String,
    #[serde(default)]
    reset_count: u32,
    #[serde(default)]
    restart_count: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileFacts {
    require: Option<Vec<String>>,
    allow: Option<Vec<String>>,
}

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// [`PolicyError`] names the key and what was expected there.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let file: File = toml::from_str(text)?;
        if file.guests.is_empty() {
            return Err(PolicyError::NoGuest);
        }
        let guests = file.guests.into_iter().map(|(name, guest)| Ok((name.clone(), guest.read(&name)?)));
        let keys = file.keys.iter().map(|key| {
            let name = bytes("keys.name", &key.name)?;
            Ok(EnrolledKey { name, reset_count: key.reset_count, restart_count: key.restart_count })
        });
        Ok(Self {
            pcr17: bytes("pcr17", &file.pcr17)?,
            pcr18: bytes("pcr18", &file.pcr18)?,
            guests: guests.collect::<Result<_, PolicyError>>()?,
            keys: keys.collect::<Result<_, PolicyError>>()?,
            allow_unenrolled: file.allow_unenrolled,
            max_launches: file.max_launches,
            facts: file.facts.map_or_else(|| Ok(FactRules::default()), |facts| facts.read())?,
        })
    }
}

impl FileGuest {
    fn read(&self, guest: &str) -> Result<AcceptedGuest, PolicyError> {
        let mut registers = BTreeMap::new();
        for (name, value) in &self.registers {
            let index = (1..8).find(|index| *name == format!("g{index}"));
            let index = index.ok_or_else(|| PolicyError::NoSuchRegister {
                guest: guest.to_owned(),
                found: name.clone(),
            })?;
            registers.insert(index, bytes(&format!("guests.{guest}.registers.{name}"), value)?);
        }
        Ok(AcceptedGuest { g0: bytes(&format!("guests.{guest}.g0"), &self.g0)?, registers })
    }
}

impl FileFacts {
    fn read(&self) -> Result<FactRules, PolicyError> {
        let mut rules = FactRules::default();
        if let Some(names) = &self.require {
            rules.require = facts(names)?;
        }
        if let Some(names) = &self.allow {
            rules.allow = facts(names)?;
        }
        for (bit, name) in [(LaunchFacts::DEBUG, "DEBUG"), (LaunchFacts::UNMEASURED, "UNMEASURED")] {
            if rules.require.union(rules.allow).contains(bit) {
                return Err(PolicyError::Forbidden(name));
            }
        }
        Ok(rules)
    }
}

fn facts(names: &[String]) -> Result<LaunchFacts, PolicyError> {
    names.iter().try_fold(LaunchFacts::empty(), |sum, name| {
        let entry = LaunchFacts::ALL.iter().find(|(_, known, _)| known == name);
        entry.map(|(bit, ..)| sum.union(*bit)).ok_or_else(|| PolicyError::NoSuchFact(name.clone()))
    })
}

fn bytes<const N: usize>(key: &str, text: &str) -> Result<[u8; N], PolicyError> {
    let mut value = [0; N];
    hex::decode_to_slice(text, &mut value).map_err(|_| PolicyError::Hex {
        key: key.to_owned(),
        bytes: N,
        found: text.to_owned(),
    })?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(extra: &str) -> String {
        let (pcr, g) = ("11".repeat(32), "22".repeat(48));
        format!("pcr17 = \"{pcr}\"\npcr18 = \"{pcr}\"\n{extra}\n[guests.demo]\ng0 = \"{g}\"\n")
    }

    #[test]
    fn the_smallest_policy_has_safe_defaults() {
        let policy = Policy::parse(&text("")).unwrap();
        assert_eq!(policy.pcr17, [0x11; 32]);
        assert_eq!(policy.guests.get("demo").unwrap().g0, [0x22; 48]);
        assert!(!policy.allow_unenrolled && policy.keys.is_empty());
        assert!(policy.facts.require.contains(LaunchFacts::IOMMU_SHIELDED));
        assert!(!policy.facts.allow.contains(LaunchFacts::SHIELD_RACE));
    }

    #[test]
    fn an_error_names_the_key_and_what_was_expected() {
        for (extra, want) in [
            ("[[keys]]\nname = \"000b\"", "keys.name: expected 34 bytes in hex, found \"000b\""),
            ("[facts]\nallow = [\"NOPE\"]", "facts: there is no launch fact \"NOPE\"; see docs/abi.md"),
            ("[facts]\nallow = [\"DEBUG\"]", "facts: DEBUG is always refused and cannot be allowed"),
            (
                "[facts]\nrequire = [\"UNMEASURED\"]",
                "facts: UNMEASURED is always refused and cannot be allowed",
            ),
        ] {
            assert_eq!(Policy::parse(&text(extra)).unwrap_err().to_string(), want);
        }
        assert!(matches!(Policy::parse(&text("pcr19 = \"\"")), Err(PolicyError::Syntax(_))));
        let register = text("").replace("[guests.demo]", "[guests.demo]\nregisters.g0 = \"00\"");
        assert!(matches!(Policy::parse(&register), Err(PolicyError::NoSuchRegister { .. })));
    }
}
