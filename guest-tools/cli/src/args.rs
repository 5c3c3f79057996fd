//! What can be asked for.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{ArgGroup, Args, CommandFactory, Parser, Subcommand};
use dolmen_abi::{AkId, EkId, HOST_PCRS, MAX_HOST_NONCE, REPORT_DATA_BYTES, SealPolicy};

use crate::provision::Provision;

/// What a measured hypervisor offers its guest: sealed secrets, quotes, registers, random numbers; and, if the
/// manifest allows it, the other guests.
///
/// Exit status: 0 done, 1 failed, 2 wrong usage, 3 a sealed blob does not open here, 4 it is of a newer version.
#[derive(Debug, Parser)]
#[command(name = "dolmen", version, max_term_width = 100)]
pub(crate) struct Arguments {
    /// The driver's device
    #[arg(long, global = true, value_name = "PATH", default_value = dolmen_guest::linux::DEVICE)]
    pub(crate) device: PathBuf,
    /// Answer in JSON; binary results become base64
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Answer in a frame (name, length, CRC-32, base64 lines), for a serial console
    #[arg(long, global = true)]
    pub(crate) frame: bool,
    /// Write the result to this file (mode 0600) instead of standard output
    #[arg(short, long, global = true, value_name = "FILE", conflicts_with = "frame")]
    pub(crate) output: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) action: Action,
}

impl Arguments {
    /// Reads the arguments of a program; the first is its name.
    pub(crate) fn read(line: impl IntoIterator<Item: Into<OsString> + Clone>) -> Result<Self, clap::Error> {
        let arguments = Self::try_parse_from(line)?;
        match arguments.meaningless() {
            Some(why) => Err(Self::command().error(ErrorKind::ArgumentConflict, why)),
            None => Ok(arguments),
        }
    }

    /// What is asked of the result of a command that has none. All commands share these options, so the parser takes
    /// them.
    fn meaningless(&self) -> Option<&'static str> {
        let elsewhere = self.frame || self.output.is_some();
        if matches!(self.action, Action::Top { .. }) && elsewhere {
            return Some(
                "`top` shows one table after the other on standard output, not in a file or a frame",
            );
        }
        if matches!(self.action, Action::Receive { .. }) && (elsewhere || self.json) {
            return Some("`receive` puts what comes into its FILE and has no other result to write");
        }
        None
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Show how the machine was launched and what this guest may do
    Status,
    /// Get random bytes from the hypervisor; hexadecimal on a terminal
    Random {
        /// How many
        #[arg(value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
        bytes: u32,
    },
    /// Show the guest's registers G0 to G7
    Registers,
    /// Extend one of G1 to G7
    Extend(Extend),
    /// Seal a file (at most 16 KiB) to this hypervisor and, unless told otherwise, this guest
    Seal {
        /// What the secret is for; the same label is needed to open it
        #[arg(long, default_value = "", value_parser = label)]
        label: String,
        /// What it is bound to, besides this hypervisor: `guest` (or `g0`; unless the list says who else),
        /// `manifest` (instead: any guest of this manifest; or both), `any-guest` (neither: keeps it from other
        /// hypervisors only), registers such as `g1,g4`
        #[arg(long, value_name = "LIST", default_value = "guest", value_parser = policy)]
        policy: SealPolicy,
        /// The secret; `-` is standard input
        file: PathBuf,
    },
    /// Open what was sealed
    Unseal {
        /// The label it was sealed under
        #[arg(long, default_value = "", value_parser = label)]
        label: String,
        /// The sealed blob; `-` is standard input
        file: PathBuf,
    },
    /// Get evidence for a relying party: a hardware quote that binds this guest
    Quote(Quote),
    /// Get evidence about the host: a hardware quote over a nonce as it is, for tools that know nothing of guests
    HostQuote(HostQuote),
    /// Ask to have a key enrolled: writes a request for `dolmen-verify enrol begin`
    Enrol {
        /// Which attestation key: `ecdsa` and `rsa` bind guests, `host-ecdsa` and `host-rsa` speak of the host
        #[arg(long, default_value = "ecdsa", value_parser = attestation_key)]
        key: AkId,
        /// By which endorsement key of the TPM: `rsa` or `ecc`
        #[arg(long, default_value = "rsa", value_parser = endorsement_key)]
        ek: EkId,
    },
    /// Answer a challenge of `dolmen-verify enrol begin`: writes evidence for `dolmen-verify enrol finish`
    Answer {
        /// File with the challenge; `-` is standard input
        file: PathBuf,
    },
    /// Get the event log of the launch (TCG crypto-agile format)
    Log,
    /// Get an attestation key's public part (TPM2B_PUBLIC)
    Ak {
        /// Which: `ecdsa` and `rsa` bind guests, `host-ecdsa` and `host-rsa` speak of the host
        #[arg(long, default_value = "ecdsa", value_parser = attestation_key)]
        key: AkId,
    },
    /// List all guests of the machine: state, last stop, processors, memory
    Ps,
    /// Start a guest that does not run, and wait until it does
    Start(Target),
    /// Stop a guest, wipe its memory, and wait until that is done
    Stop(Target),
    /// Stop a guest and start it again, and wait until it runs
    Reset(Target),
    /// Watch all guests: processor time and exits, per second; `q` ends it
    Top {
        /// Seconds between two tables
        #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=3600))]
        interval: u32,
        /// End after so many tables; 0 for never
        #[arg(long, value_name = "TABLES", default_value_t = 0)]
        count: u32,
    },
    /// Make the sealing root in a TPM whose owner hierarchy has an authorisation value; prints the manifest's table
    ///
    /// For the machine's own system, before Dolmen is launched there, and by the TPM's owner: no part of a guest.
    Provision(Provision),
    /// Receive one frame on standard input and write its content to a file
    Receive {
        /// Where the content goes (mode 0600); it is replaced whole or not at all
        file: PathBuf,
        /// Give up after so many seconds without a byte
        #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
        timeout: u32,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Target {
    /// The guest's name, as the manifest has it
    pub(crate) name: String,
    /// Give up waiting after so many seconds; what was asked for still happens
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) timeout: u32,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true))]
pub(crate) struct Extend {
    /// Which register
    #[arg(value_parser = clap::value_parser!(u32).range(1..=7))]
    pub(crate) index: u32,
    /// Extend the SHA-384 of this text
    #[arg(long, group = "what", value_name = "TEXT")]
    pub(crate) data: Option<String>,
    /// Extend the SHA-384 of this file; `-` is standard input
    #[arg(long, group = "what")]
    pub(crate) file: Option<PathBuf>,
    /// Extend this SHA-384 digest
    #[arg(long, group = "what", value_name = "HEX", value_parser = exact::<48>)]
    pub(crate) digest: Option<[u8; 48]>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("bound").required(true))]
pub(crate) struct Quote {
    /// The relying party's nonce, up to 64 bytes; padded with zeroes
    #[arg(long, group = "bound", value_name = "HEX", value_parser = nonce)]
    pub(crate) nonce: Option<[u8; REPORT_DATA_BYTES]>,
    /// All 64 bytes of report data
    #[arg(long, group = "bound", value_name = "HEX", value_parser = exact::<REPORT_DATA_BYTES>)]
    pub(crate) report_data: Option<[u8; REPORT_DATA_BYTES]>,
    /// Which key signs: `ecdsa` or `rsa`
    #[arg(long, default_value = "ecdsa", value_parser = guest_key)]
    pub(crate) key: AkId,
}

#[derive(Debug, Args)]
pub(crate) struct HostQuote {
    /// The relying party's nonce, 1 to 64 bytes, which the TPM signs as it is
    #[arg(long, value_name = "HEX", value_parser = raw_nonce)]
    pub(crate) nonce: Nonce,
    /// Which key signs: `ecdsa` or `rsa`
    #[arg(long, default_value = "ecdsa", value_parser = host_key)]
    pub(crate) key: AkId,
    /// Registers of the SHA-256 bank, such as `0-7,17,18`, or `all`
    #[arg(long, value_name = "LIST", default_value = "17,18", value_parser = registers)]
    pub(crate) pcrs: u32,
}

/// A nonce of any length that a quote about the host takes.
#[derive(Clone, Debug)]
pub(crate) struct Nonce(pub(crate) Vec<u8>);

fn raw_nonce(text: &str) -> Result<Nonce, String> {
    let bytes = hex::decode(text).map_err(|error| format!("not hexadecimal: {error}"))?;
    if (1..=MAX_HOST_NONCE).contains(&bytes.len()) {
        Ok(Nonce(bytes))
    } else {
        Err(format!("{} bytes where 1 to {MAX_HOST_NONCE} are needed", bytes.len()))
    }
}

fn attestation_key(text: &str) -> Result<AkId, String> {
    let words: Vec<&str> = AkId::ALL.iter().map(|entry| entry.1).collect();
    AkId::from_word(text).ok_or_else(|| format!("not one of {}", words.join(", ")))
}

fn endorsement_key(text: &str) -> Result<EkId, String> {
    EkId::from_word(text).ok_or_else(|| "not one of rsa, ecc".to_owned())
}

fn guest_key(text: &str) -> Result<AkId, String> {
    AkId::from_word(text).filter(|key| !key.is_host()).ok_or_else(|| "not one of ecdsa, rsa".to_owned())
}

fn host_key(text: &str) -> Result<AkId, String> {
    guest_key(text)?;
    attestation_key(&format!("host-{text}"))
}

fn registers(text: &str) -> Result<u32, String> {
    let number = |text: &str| {
        let pcr =
            text.trim().parse().ok().filter(|pcr| usize::try_from(*pcr).is_ok_and(|pcr| pcr < HOST_PCRS));
        pcr.ok_or_else(|| format!("`{text}` is not one of 0 to 23"))
    };
    if text == "all" {
        return Ok(0x00ff_ffff);
    }
    text.split(',').try_fold(0, |pcrs, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("`{part}` runs backwards"));
        }
        Ok((first..=last).fold(pcrs, |pcrs, pcr| pcrs | 1u32.wrapping_shl(pcr)))
    })
}

fn exact<const N: usize>(text: &str) -> Result<[u8; N], String> {
    let bytes = hex::decode(text).map_err(|error| format!("not hexadecimal: {error}"))?;
    let length = bytes.len();
    bytes.try_into().map_err(|_| format!("{length} bytes where {N} are needed"))
}

fn nonce(text: &str) -> Result<[u8; REPORT_DATA_BYTES], String> {
    let bytes = hex::decode(text).map_err(|error| format!("not hexadecimal: {error}"))?;
    if bytes.is_empty() {
        return Err("a nonce of no bytes proves nothing".to_owned());
    }
    let mut padded = [0; REPORT_DATA_BYTES];
    let room = padded.get_mut(..bytes.len()).ok_or(format!("{} bytes where 64 fit", bytes.len()))?;
    room.copy_from_slice(&bytes);
    Ok(padded)
}

fn label(text: &str) -> Result<String, String> {
    if text.len() <= dolmen_abi::MAX_LABEL {
        Ok(text.to_owned())
    } else {
        Err(format!("{} bytes where {} fit", text.len(), dolmen_abi::MAX_LABEL))
    }
}

/// A list of what a secret is bound to. One that does not say who may open it means this guest alone.
fn policy(text: &str) -> Result<SealPolicy, String> {
    let named = text
        .split(',')
        .try_fold(SealPolicy::empty(), |named, word| policy_word(word.trim()).map(|bit| named | bit))?;
    let wide = SealPolicy::MANIFEST | SealPolicy::ANY_GUEST;
    let policy = if named.intersects(wide) { named } else { named | SealPolicy::G0 };
    SealPolicy::checked(policy.bits()).ok_or_else(|| {
        "`any-guest` binds to no guest and to no manifest: leave it out, or `guest` and `manifest`".to_owned()
    })
}

/// What a word of a policy selects. The hypervisor always is selected; saying so is no mistake.
fn policy_word(word: &str) -> Result<SealPolicy, String> {
    let lower = word.to_ascii_lowercase();
    match lower.as_str() {
        "hypervisor" => Ok(SealPolicy::empty()),
        "guest" => Ok(SealPolicy::G0),
        other => {
            SealPolicy::ALL.iter().find(|entry| entry.1 == other).map(|entry| entry.0).ok_or_else(|| {
                format!("`{word}` is not one of hypervisor, guest, manifest, any-guest, g0 to g7")
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, String> {
        Arguments::read(line.split(' ')).map_err(|error| error.to_string())
    }

    #[test]
    fn the_definition_of_the_arguments_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn policies_name_what_a_secret_is_bound_to() {
        use SealPolicy as P;
        for (text, want) in [
            ("g0", Some(P::G0)),
            ("guest", Some(P::G0)),
            ("hypervisor", Some(P::G0)),
            ("hypervisor,guest,g3", Some(P::G0 | P::G3)),
            ("g1", Some(P::G0 | P::G1)),
            ("G7, g2", Some(P::G0 | P::G2 | P::G7)),
            ("manifest", Some(P::MANIFEST)),
            ("manifest,g5", Some(P::MANIFEST | P::G5)),
            ("guest,Manifest", Some(P::MANIFEST | P::G0)),
            ("any-guest", Some(P::ANY_GUEST)),
            ("hypervisor,any-guest,g1", Some(P::ANY_GUEST | P::G1)),
            ("any-guest,guest", None),
            ("any-guest,manifest", None),
            ("g8", None),
            ("", None),
            ("1", None),
            ("g1,", None),
            ("pcr17", None),
        ] {
            assert_eq!(policy(text).ok(), want, "{text}");
        }
    }

    #[test]
    fn the_default_policy_is_this_guest() {
        let arguments = Arguments::try_parse_from(["dolmen", "seal", "file"]).unwrap();
        let Action::Seal { policy, .. } = arguments.action else { panic!("no seal") };
        assert_eq!(policy, SealPolicy::default());
    }

    #[test]
    fn a_wrong_policy_is_told_what_a_right_one_is() {
        let wrong = parse("dolmen seal --policy pcr17 file").unwrap_err();
        assert!(wrong.contains("not one of hypervisor, guest, manifest, any-guest, g0 to g7"), "{wrong}");
        let both = parse("dolmen seal --policy any-guest,guest file").unwrap_err();
        assert!(both.contains("binds to no guest and to no manifest"), "{both}");
    }

    #[test]
    fn registers_are_lists_and_ranges() {
        for (text, want) in [
            ("17,18", Some(0x0006_0000)),
            ("0-7, 17", Some(0x0002_00ff)),
            ("all", Some(0x00ff_ffff)),
            ("24", None),
            ("5-3", None),
            ("", None),
            ("-1", None),
        ] {
            assert_eq!(registers(text).ok(), want, "{text}");
        }
    }

    #[test]
    fn a_guests_key_is_no_key_of_the_hosts() {
        assert!(parse("dolmen quote --nonce 00 --key rsa").is_ok());
        assert!(parse("dolmen quote --nonce 00 --key host-rsa").is_err());
        assert_eq!(host_key("rsa"), Ok(AkId::HOST_RSA));
        assert!(parse("dolmen host-quote --key host-rsa --nonce 00").is_err());
        assert!(parse("dolmen host-quote").is_err());
    }

    #[test]
    fn a_nonce_is_padded_and_report_data_is_not() {
        assert_eq!(nonce("0102").unwrap()[..3], [1, 2, 0]);
        assert!(nonce("").is_err() && nonce("012").is_err() && nonce(&"00".repeat(65)).is_err());
        assert!(exact::<64>("00").is_err() && exact::<64>(&"00".repeat(64)).is_ok());
    }

    #[test]
    fn exactly_one_thing_is_extended_or_bound() {
        for line in [
            "dolmen extend 1",
            "dolmen extend 1 --data a --file b",
            "dolmen extend 0 --data a",
            "dolmen quote",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(parse("dolmen extend 7 --data a").is_ok());
        assert!(parse("dolmen quote --nonce 00 --json").is_ok());
        assert!(parse("dolmen quote --nonce 00 --frame -o x").is_err());
    }

    #[test]
    fn a_command_without_a_result_refuses_to_be_told_where_it_goes() {
        for line in ["top -o x", "top --frame", "receive x -o y", "receive x --frame", "receive x --json"] {
            let why = parse(&format!("dolmen {line}")).unwrap_err();
            let command = line.split(' ').next().unwrap();
            assert!(why.contains(&format!("`{command}`")) && why.contains("Usage:"), "{why}");
        }
        assert!(parse("dolmen top --json").is_ok() && parse("dolmen receive x").is_ok());
    }
}
