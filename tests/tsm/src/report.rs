//! Reads a report by a library of other people, which knows nothing of Dolmen.
//!
//! `tsm-report PROVIDER REPORT-DATA FILE`: 64 bytes of report data in hexadecimal, the report goes to the file.
#![forbid(unsafe_code)]

use std::error::Error;
use std::process::ExitCode;

use configfs_tsm::create_quote_with_providers;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.as_slice() {
        [provider, data, file] => match report(provider, data, file) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("tsm-report: {error}");
                ExitCode::FAILURE
            }
        },
        _ => {
            eprintln!("tsm-report PROVIDER REPORT-DATA FILE");
            ExitCode::FAILURE
        }
    }
}

fn report(provider: &str, data: &str, file: &str) -> Result<(), Box<dyn Error>> {
    let report = create_quote_with_providers(bytes(data)?, vec![provider])?;
    std::fs::write(file, report)?;
    Ok(())
}

fn bytes(hex: &str) -> Result<[u8; 64], Box<dyn Error>> {
    let mut bytes = Vec::new();
    for at in (0..hex.len()).step_by(2) {
        bytes.push(u8::from_str_radix(hex.get(at..at + 2).ok_or("an odd number of digits")?, 16)?);
    }
    bytes.try_into().map_err(|_| "report data of another length than 64 bytes".into())
}
