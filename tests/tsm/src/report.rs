//! Reads a report by a library of other people, which knows nothing of Dolmen.
//!
//! `tsm-report PROVIDER REPORT-DATA FILE [FOLDER]`: 64 bytes of report data in hexadecimal, the report goes to the file. With a
//! folder, the keys behind the report, of which that library knows nothing, go there, each in a file of its own.
#![forbid(unsafe_code)]

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use configfs_tsm::create_quote_with_providers;
use dolmen_abi::evidence::keys::ReportKeys;

/// Where the kernel has its reports.
const REPORTS: &str = "/sys/kernel/config/tsm/report";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.as_slice() {
        [provider, data, file, rest @ ..] if rest.len() < 2 => {
            match report(provider, data, file, rest.first()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("tsm-report: {error}");
                    ExitCode::FAILURE
                }
            }
        }
        _ => {
            eprintln!("tsm-report PROVIDER REPORT-DATA FILE [FOLDER]");
            ExitCode::FAILURE
        }
    }
}

fn report(provider: &str, data: &str, file: &str, folder: Option<&String>) -> Result<(), Box<dyn Error>> {
    let report = create_quote_with_providers(bytes(data)?, vec![provider])?;
    std::fs::write(file, report)?;
    folder.map_or(Ok(()), |folder| keys(Path::new(folder)))
}

/// Takes the keys of the one report that there is.
fn keys(folder: &Path) -> Result<(), Box<dyn Error>> {
    let mut reports = std::fs::read_dir(REPORTS)?;
    let report = reports.next().ok_or("no report")??.path();
    if reports.next().is_some() {
        return Err("more than one report".into());
    }
    let blob = std::fs::read(report.join("auxblob"))?;
    let keys = ReportKeys::decode(&blob)?;
    std::fs::create_dir_all(folder)?;
    let parts = [
        ("ak", Some(keys.ak_public)),
        ("ek", keys.ek_public),
        ("certificate", keys.ek_certificate),
        ("chain", keys.ek_chain),
    ];
    for (name, part) in parts {
        if let Some(part) = part {
            std::fs::write(folder.join(name), part)?;
        }
    }
    Ok(())
}

fn bytes(hex: &str) -> Result<[u8; 64], Box<dyn Error>> {
    let mut bytes = Vec::new();
    for at in (0..hex.len()).step_by(2) {
        bytes.push(u8::from_str_radix(hex.get(at..at + 2).ok_or("an odd number of digits")?, 16)?);
    }
    bytes.try_into().map_err(|_| "report data of another length than 64 bytes".into())
}
