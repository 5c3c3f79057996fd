//! Enrolment records, as far as a policy needs them: which key, and what its TPM counted.
//!
//! A record is a JSON object; `dolmen-verify check` reads the fields below and leaves the rest to whoever enrols.

use serde::Deserialize;

use crate::enrol::RECORD_FORMAT;
use crate::policy::EnrolledKey;

/// Why a file is no enrolment record.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    /// Not JSON, or a field is missing.
    #[error("{0}")]
    Syntax(#[from] serde_json::Error),
    /// Of another kind or version.
    #[error("`format` is \"{0}\"; expected \"{RECORD_FORMAT}\"")]
    Format(String),
    /// The key's Name is none.
    #[error("`ak_name`: expected 34 bytes in hex")]
    Name,
}

/// What every version has.
#[derive(Deserialize)]
struct Head {
    format: String,
}

#[derive(Deserialize)]
struct Record {
    ak_name: String,
    reset_count: u32,
    restart_count: u32,
}

/// Reads the record in the file `path`.
pub(crate) fn read(bytes: &[u8], path: &str) -> Result<EnrolledKey, RecordError> {
    let head: Head = serde_json::from_slice(bytes)?;
    if head.format != RECORD_FORMAT {
        return Err(RecordError::Format(head.format));
    }
    let record: Record = serde_json::from_slice(bytes)?;
    let mut name = [0; 34];
    hex::decode_to_slice(&record.ak_name, &mut name).map_err(|_| RecordError::Name)?;
    Ok(EnrolledKey {
        name,
        reset_count: record.reset_count,
        restart_count: record.restart_count,
        record: Some(path.to_owned()),
    })
}
