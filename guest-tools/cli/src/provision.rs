//! `dolmen provision`: the TPM's owner makes the sealing root, in an ordinary system and before a launch
//! (`docs/provisioning.md`).

use std::path::{Path, PathBuf};

use clap::Args;
use dolmen_tpm::keys::Provisioned;
use dolmen_tpm::provision::{HANDLES, Order, Outcome, ProvisionError, provision};
use rustix::rand::{GetRandomFlags, getrandom};
use serde_json::json;
use zeroize::Zeroizing;

use crate::command;
use crate::failure::Failure;
use crate::output::Product;
use crate::reference::{self, MAX_REFERENCE};
use crate::tpm::{self, Tpm};

/// Longest file with a value: in hexadecimal it has two digits for each byte.
const MAX_VALUE_FILE: usize = 256;

/// What is made, and where.
#[derive(Debug, Args)]
pub(crate) struct Provision {
    /// Reference values of the image that will be launched, as `cargo xtask image` writes them
    #[arg(long, value_name = "FILE")]
    reference: PathBuf,
    /// Persistent handle that is free, 0x81000000 to 0x817fffff
    #[arg(long, value_parser = handle)]
    handle: u32,
    /// File with the owner hierarchy's authorisation value, without the newline at its end; `-` is standard input. Leave
    /// it out if the hierarchy has none
    #[arg(long, value_name = "FILE")]
    owner_value: Option<PathBuf>,
    /// The value in that file is in hexadecimal
    #[arg(long, requires = "owner_value")]
    hex: bool,
    /// The TPM: a device, or the socket of a software TPM
    #[arg(long, value_name = "PATH", default_value = tpm::DEVICE)]
    tpm: PathBuf,
}

fn handle(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0x").or(text.strip_prefix("0X"));
    let number = digits.map_or_else(|| text.parse(), |digits| u32::from_str_radix(digits, 16));
    number
        .ok()
        .filter(|handle| HANDLES.contains(handle))
        .ok_or_else(|| "not one of 0x81000000 to 0x817fffff".to_owned())
}

/// Makes the key, or finds it made.
pub(crate) fn run(options: &Provision) -> Result<Product, Failure> {
    let stdin = Path::new("-");
    if options.reference == stdin && options.owner_value.as_deref() == Some(stdin) {
        return Err(Failure::plain(
            &"standard input is either the reference values or the owner's value: give one of them as a file",
        ));
    }
    let pcr17 = reference::pcr17(&command::read(&options.reference, MAX_REFERENCE)?)?;
    let value = match &options.owner_value {
        Some(file) => owner_value(&command::read(file, MAX_VALUE_FILE)?, options.hex)?,
        None => Zeroizing::new(Vec::new()),
    };
    let mut tpm = Tpm::open(&options.tpm)?;
    let order = Order { pcr17, handle: options.handle, value: &value, entropy: entropy()? };
    match provision(&mut tpm, &order) {
        Ok(outcome) => Ok(report(&outcome, &pcr17)),
        Err(error) => Err(failure(&error, tpm.trouble())),
    }
}

/// The bytes of a file that are the value.
fn owner_value(file: &[u8], is_hex: bool) -> Result<Zeroizing<Vec<u8>>, Failure> {
    if !is_hex {
        return Ok(Zeroizing::new(file.strip_suffix(b"\n").unwrap_or(file).to_vec()));
    }
    // No word of what is wrong with it: that would show a part of it.
    let value = hex::decode(file.trim_ascii());
    value.map(Zeroizing::new).map_err(|_| Failure::plain(&"the owner's value is not hexadecimal"))
}

/// Randomness of the system, for the salt of the session.
fn entropy() -> Result<[u8; 32], Failure> {
    let mut bytes = [0; 32];
    match getrandom(&mut bytes, GetRandomFlags::empty()) {
        Ok(32) => Ok(bytes),
        Ok(_) => Err(Failure::plain(&"the system gives no random bytes")),
        Err(error) => Err(Failure::plain(&format!("the system gives no random bytes: {error}"))),
    }
}

fn failure(error: &ProvisionError, trouble: Option<&std::io::Error>) -> Failure {
    let failure = Failure::plain(error);
    match (error, trouble) {
        (_, Some(trouble)) => failure.because(&format!(" (the system says: {trouble})")),
        (ProvisionError::NoValue, None) => failure.because("; give it with --owner-value"),
        (_, None) => failure,
    }
}

/// The table of the manifest.
fn report(outcome: &Outcome, pcr17: &[u8; 32]) -> Product {
    let Outcome { root: Provisioned { handle, name }, was_there } = outcome;
    let (name, pcr17) = (hex::encode(name), hex::encode(pcr17));
    let done = if *was_there { "The very same key was there already" } else { "The key is made" };
    let text = format!(
        "# {done}, for the hypervisor with PCR 17 (SHA-256) {pcr17}\n\
         [sealing_root]\nhandle = {handle:#010x}\nname = \"{name}\"\n"
    );
    let json = json!({ "handle": handle, "name": name, "pcr17": pcr17, "was_there": was_there });
    Product::report("sealing-root", text, json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_owners_persistent_handles_are_taken() {
        for (text, want) in [
            ("0x81000000", Some(0x8100_0000)),
            ("0X817FFFFF", Some(0x817f_ffff)),
            ("2164261120", Some(0x8100_0100)),
            ("0x81800000", None),
            ("0x80ffffff", None),
            ("81000100", None),
            ("0x", None),
            ("", None),
        ] {
            assert_eq!(handle(text).ok(), want, "{text}");
        }
    }

    #[test]
    fn standard_input_is_one_thing_only() {
        let dash = || PathBuf::from("-");
        let options = Provision {
            reference: dash(),
            handle: 0x8100_0100,
            owner_value: Some(dash()),
            hex: false,
            tpm: PathBuf::from("/dev/null"),
        };
        let wrong = run(&options).map(|_| ()).unwrap_err().to_string();
        assert!(wrong.contains("either the reference values or the owner's value"), "{wrong}");
    }

    #[test]
    fn a_value_is_the_file_without_the_newline_at_its_end() {
        for (file, is_hex, want) in [
            (&b"beneath the mat\n"[..], false, &b"beneath the mat"[..]),
            (b"two\n\n", false, b"two\n"),
            (b" \xff\0", false, b" \xff\0"),
            (b"", false, b""),
            (b"00FFa5\n", true, b"\0\xff\xa5"),
        ] {
            assert_eq!(owner_value(file, is_hex).unwrap().as_slice(), want, "{file:?}");
        }
        let wrong = owner_value(b"beneath the mat", true).unwrap_err().to_string();
        assert!(!wrong.contains("mat"), "{wrong}");
    }

    #[test]
    fn what_is_printed_is_a_table_of_the_manifest() {
        let outcome =
            Outcome { root: Provisioned { handle: 0x8100_0100, name: [0x0b; 34] }, was_there: false };
        let text = report(&outcome, &[0xab; 32]).as_text(false);
        assert!(
            text.starts_with("# The key is made, for the hypervisor with PCR 17 (SHA-256) abab"),
            "{text}"
        );
        let table = format!("\n[sealing_root]\nhandle = 0x81000100\nname = \"{}\"\n", "0b".repeat(34));
        assert!(text.ends_with(&table), "{text}");
        let again = report(&Outcome { was_there: true, ..outcome }, &[0; 32]);
        assert!(again.as_text(false).starts_with("# The very same key was there already, for"));
        let json: serde_json::Value = serde_json::from_str(&again.as_text(true)).unwrap();
        assert_eq!(json["handle"], 0x8100_0100_u32);
        assert_eq!((&json["was_there"], &json["name"]), (&true.into(), &"0b".repeat(34).into()));
    }
}
