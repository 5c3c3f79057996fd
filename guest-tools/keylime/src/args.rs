//! What can be asked for.

use std::path::PathBuf;

use clap::Parser;
use dolmen_abi::EkId;

/// Longest name of an agent that Keylime's databases hold.
const MAX_AGENT: usize = 80;

/// Keeps this machine's host attested at a Keylime verifier in push mode: registers it, proves that its attestation key
/// can be used, and sends quotes for as long as it runs. Opens no port.
///
/// Exit status: 0 done, 1 failed, 2 wrong usage.
#[derive(Debug, Parser)]
#[command(name = "dolmen-keylime", version, max_term_width = 100)]
pub(crate) struct Arguments {
    /// Keylime's registrar, at its port for TLS
    #[arg(long, value_name = "https://HOST:PORT", value_parser = server)]
    pub(crate) registrar: String,
    /// Keylime's verifier
    #[arg(long, value_name = "https://HOST:PORT", value_parser = server)]
    pub(crate) verifier: String,
    /// Certificates in PEM of who may vouch for both servers; nobody else's word is taken
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: PathBuf,
    /// What the host is called at Keylime: usually a UUID
    #[arg(long, value_name = "NAME", value_parser = agent)]
    pub(crate) agent: String,
    /// Which endorsement key of the TPM stands for it: `rsa` or `ecc`
    #[arg(long, default_value = "rsa", value_parser = endorsement_key)]
    pub(crate) ek: EkId,
    /// Least seconds between two attestations; the verifier may want more
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) interval: u64,
    /// End after one attestation that the verifier accepts for judgement
    #[arg(long)]
    once: bool,
    /// Tell what happens in JSON, one object a line
    #[arg(long)]
    pub(crate) json: bool,
    /// The driver's device
    #[arg(long, value_name = "PATH", default_value = dolmen_guest::linux::DEVICE)]
    pub(crate) device: PathBuf,
}

impl Arguments {
    /// How many attestations there shall be; no end if nothing is said.
    pub(crate) const fn count(&self) -> Option<u64> {
        if self.once { Some(1) } else { None }
    }
}

/// The start of a server's addresses: TLS or nothing, and no path.
fn server(text: &str) -> Result<String, String> {
    let rest =
        text.strip_prefix("https://").ok_or("not an address with https://: nothing is sent without TLS")?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
    if rest.is_empty() || !rest.chars().all(is_plain) {
        return Err("not https://, a host, and a port".to_owned());
    }
    Ok(format!("https://{rest}"))
}

/// A name that needs no escape in an address.
fn agent(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    if text.is_empty() || text.len() > MAX_AGENT || !text.chars().all(is_plain) || text.starts_with('.') {
        return Err(format!(
            "not 1 to {MAX_AGENT} letters, digits, `-`, `_` and `.`, with no `.` at the start"
        ));
    }
    Ok(text.to_owned())
}

fn endorsement_key(text: &str) -> Result<EkId, String> {
    EkId::from_word(text).ok_or_else(|| "not one of rsa, ecc".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_goes_out_without_tls() {
        assert_eq!(server("https://10.0.2.2:8881/").unwrap(), "https://10.0.2.2:8881");
        assert_eq!(server("https://[::1]:8881").unwrap(), "https://[::1]:8881");
        for bad in
            ["http://10.0.2.2:8890", "10.0.2.2:8881", "https://", "https://a/b", "https://u@h", "https://a?b"]
        {
            assert!(server(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_agents_name_is_no_path() {
        assert!(agent("d432fbb3-d2f1-4a97-9ef7-75bd81c00000").is_ok());
        for bad in ["", "..", "a/b", "a b", "a%20", &"x".repeat(81)] {
            assert!(agent(bad).is_err(), "{bad}");
        }
    }
}
