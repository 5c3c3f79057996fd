//! Reference values of one build, as `cargo xtask measure --json` and `cargo xtask release` write them.
//!
//! Format: `docs/verify.md`, "Reference values". The file is trusted, but not to be free of mistakes: its events must
//! replay to its registers in every bank.

use std::collections::BTreeMap;

use dolmen_abi::REGISTER_BYTES;
use dolmen_drtm::Algorithm;
use dolmen_drtm::bank::{PCR_CODE, PCR_CONFIGURATION};
use dolmen_drtm::digest::Digest;
use dolmen_drtm::log::{CORE_EVENT, LAUNCH_EVENT, MANIFEST_EVENT};
use dolmen_drtm::replay::EventLog;
use serde::Deserialize;

/// What this is, and the version of the format.
pub const REFERENCE_FORMAT: &str = "dolmen-reference-values-1";
/// Banks by the names that tpm2-tools use.
pub const BANKS: [(&str, Algorithm); 4] = [
    ("sha1", Algorithm::Sha1),
    ("sha256", Algorithm::Sha256),
    ("sha384", Algorithm::Sha384),
    ("sha512", Algorithm::Sha512),
];

/// Why a file with reference values cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// Not JSON, or not of this form.
    #[error("{0}")]
    Syntax(#[from] serde_json::Error),
    /// Of another format or version.
    #[error("`format` is \"{0}\"; expected \"{REFERENCE_FORMAT}\"")]
    Format(String),
    /// A value that is no digest of its bank.
    #[error("{place}: expected {bytes} bytes in hex")]
    Hex {
        /// Where.
        place: String,
        /// How many bytes it should be.
        bytes: usize,
    },
    /// A bank that Dolmen does not have.
    #[error("{place}: there is no bank \"{bank}\"")]
    Bank {
        /// Where.
        place: String,
        /// Its name.
        bank: String,
    },
    /// The SHA-256 bank is missing: nothing could be compared.
    #[error("there is no bank \"sha256\"")]
    NoSha256,
    /// The events are not those of a launch.
    #[error(
        "`events` are not \"SKINIT\", \"core\" for PCR 17 and \"manifest\", … for PCR 18 (or nothing, and no guests)"
    )]
    Events,
    /// The events do not replay to a register.
    #[error("`events` do not replay to PCR {pcr} of bank {bank}")]
    Replay {
        /// Which register.
        pcr: u8,
        /// In which bank.
        bank: &'static str,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    #[serde(rename = "launch_bytes")]
    _launch_bytes: u64,
    banks: Vec<FileBank>,
    events: Vec<FileEvent>,
    guests: Vec<FileGuest>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileBank {
    bank: String,
    pcr17: String,
    pcr18: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileEvent {
    pcr: u8,
    event: String,
    digests: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileGuest {
    name: String,
    g0: String,
}

/// Reference values of one build: of its code alone, or of its manifest and guests too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    label: String,
    pcr17: [u8; 32],
    pcr18: Option<[u8; 32]>,
    events: Vec<Event>,
    guests: BTreeMap<String, [u8; REGISTER_BYTES]>,
}

/// One event of the launch, with its digest in every bank.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Event {
    pcr: u8,
    data: String,
    digests: Vec<(Algorithm, Vec<u8>)>,
}

impl Event {
    fn digest(&self, algorithm: Algorithm) -> Option<&[u8]> {
        self.digests.iter().find(|(own, _)| *own == algorithm).map(|(_, digest)| digest.as_slice())
    }
}

impl Release {
    /// Reads a file; `label` is what verdicts call it.
    ///
    /// # Errors
    /// [`ReferenceError`] says what is wrong and where.
    pub fn parse(bytes: &[u8], label: &str) -> Result<Self, ReferenceError> {
        let file: File = serde_json::from_slice(bytes)?;
        if file.format != REFERENCE_FORMAT {
            return Err(ReferenceError::Format(file.format));
        }
        let events = file.events.iter().map(FileEvent::read).collect::<Result<Vec<_>, _>>()?;
        let mut release = Self {
            label: label.to_owned(),
            pcr17: [0; 32],
            pcr18: None,
            events,
            guests: file.guests.iter().map(FileGuest::read).collect::<Result<_, _>>()?,
        };
        let is_whole = release.check_events()?;
        let mut has_sha256 = false;
        for bank in &file.banks {
            let (name, algorithm) = known_bank(&bank.bank, "banks")?;
            let pcr17 = release.checked(name, algorithm, PCR_CODE, Some(&bank.pcr17))?;
            let wanted = if is_whole { Some(bank.pcr18.as_deref().unwrap_or_default()) } else { None };
            if !is_whole && bank.pcr18.is_some() {
                return Err(ReferenceError::Replay { pcr: PCR_CONFIGURATION, bank: name });
            }
            let pcr18 = release.checked(name, algorithm, PCR_CONFIGURATION, wanted)?;
            if let (Algorithm::Sha256, Some(pcr17)) = (algorithm, pcr17) {
                release.pcr17 = pcr17.try_into().unwrap_or_default();
                release.pcr18 = pcr18.and_then(|value| value.try_into().ok());
                has_sha256 = true;
            }
        }
        if has_sha256 { Ok(release) } else { Err(ReferenceError::NoSha256) }
    }

    /// A register's value, which the events must replay to.
    fn checked(
        &self,
        bank: &'static str,
        algorithm: Algorithm,
        pcr: u8,
        told: Option<&str>,
    ) -> Result<Option<Vec<u8>>, ReferenceError> {
        let Some(told) = told else { return Ok(None) };
        let told = digest(told, algorithm, &format!("banks, {bank}, pcr{pcr}"))?;
        if self.replay(algorithm, pcr).as_ref() == Some(&told) {
            Ok(Some(told))
        } else {
            Err(ReferenceError::Replay { pcr, bank })
        }
    }

    /// Whether the events are those of a whole launch, not of its code alone.
    fn check_events(&self) -> Result<bool, ReferenceError> {
        let is_code = self.of(PCR_CODE).map(|event| event.data.as_bytes()).eq([LAUNCH_EVENT, CORE_EVENT]);
        let others = self.events.iter().any(|event| ![PCR_CODE, PCR_CONFIGURATION].contains(&event.pcr));
        if !is_code || others {
            return Err(ReferenceError::Events);
        }
        match self.of(PCR_CONFIGURATION).next() {
            Some(first) if first.data.as_bytes() == MANIFEST_EVENT => Ok(true),
            None if self.guests.is_empty() => Ok(false),
            Some(_) | None => Err(ReferenceError::Events),
        }
    }

    fn of(&self, pcr: u8) -> impl Iterator<Item = &Event> {
        self.events.iter().filter(move |event| event.pcr == pcr)
    }

    fn replay(&self, algorithm: Algorithm, pcr: u8) -> Option<Vec<u8>> {
        let mut value = Digest::zero(algorithm);
        for event in self.of(pcr) {
            value = algorithm.hash(&[value.bytes(), event.digest(algorithm)?]);
        }
        Some(value.bytes().to_vec())
    }

    /// What verdicts call it.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// PCR 17 of the SHA-256 bank.
    #[must_use]
    pub const fn pcr17(&self) -> [u8; 32] {
        self.pcr17
    }

    /// PCR 18 of the SHA-256 bank; nothing if the values are of the code alone.
    #[must_use]
    pub const fn pcr18(&self) -> Option<[u8; 32]> {
        self.pcr18
    }

    /// Its guests: name and identity G0.
    #[must_use]
    pub const fn guests(&self) -> &BTreeMap<String, [u8; REGISTER_BYTES]> {
        &self.guests
    }

    /// The SHA-256 digest of the event at `index` among those of `pcr`.
    pub(crate) fn digest_of(&self, pcr: u8, index: usize) -> Option<[u8; 32]> {
        self.of(pcr).nth(index)?.digest(Algorithm::Sha256)?.try_into().ok()
    }

    /// Whether the log tells of `pcr` what was released, word for word, in every bank that it has.
    pub(crate) fn tells_the_same(&self, log: &EventLog<'_>, pcr: u8) -> bool {
        let mut told = log.events().filter(|event| event.pcr == u32::from(pcr));
        let is_same = self.of(pcr).all(|own| {
            told.next().is_some_and(|event| {
                event.data == own.data.as_bytes()
                    && log.algorithms().all(|a| own.digest(a).is_some() && event.digest(a) == own.digest(a))
            })
        });
        is_same && told.next().is_none()
    }
}

impl FileEvent {
    fn read(&self) -> Result<Event, ReferenceError> {
        let place = format!("events, \"{}\"", self.event);
        let digests = self.digests.iter().map(|(bank, text)| {
            let (_, algorithm) = known_bank(bank, &place)?;
            Ok((algorithm, digest(text, algorithm, &format!("{place}, {bank}"))?))
        });
        Ok(Event {
            pcr: self.pcr,
            data: self.event.clone(),
            digests: digests.collect::<Result<_, ReferenceError>>()?,
        })
    }
}

impl FileGuest {
    fn read(&self) -> Result<(String, [u8; REGISTER_BYTES]), ReferenceError> {
        let mut g0 = [0; REGISTER_BYTES];
        hex::decode_to_slice(&self.g0, &mut g0).map_err(|_| ReferenceError::Hex {
            place: format!("guests, \"{}\", g0", self.name),
            bytes: REGISTER_BYTES,
        })?;
        Ok((self.name.clone(), g0))
    }
}

fn known_bank(name: &str, place: &str) -> Result<(&'static str, Algorithm), ReferenceError> {
    BANKS
        .into_iter()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| ReferenceError::Bank { place: place.to_owned(), bank: name.to_owned() })
}

fn digest(text: &str, algorithm: Algorithm, place: &str) -> Result<Vec<u8>, ReferenceError> {
    let bytes = algorithm.size();
    let value = hex::decode(text).ok().filter(|value| value.len() == bytes);
    value.ok_or_else(|| ReferenceError::Hex { place: place.to_owned(), bytes })
}
