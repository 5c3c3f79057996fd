//! The registers: the log tells their values, the quote proves them, the policy accepts them.
//!
//! A quote has one digest over both registers. The log's replayed values hash to it, or the log is refused; values
//! that do are the quoted ones, or somebody found a collision of SHA-256. So each register, and each event behind
//! it, is judged by itself.

use dolmen_abi::evidence::Evidence;
use dolmen_drtm::bank::{PCR_CODE, PCR_CONFIGURATION};
use dolmen_drtm::digest::Algorithm;
use dolmen_drtm::replay::EventLog;
use dolmen_tpm::attest::QuoteAttest;
use dolmen_tpm::crypto::sha256;

use crate::check::{Judge, one_of};
use crate::log::{check_events, is_as_written};
use crate::policy::Configuration;
use crate::reference::Release;
use crate::same::same;

/// A log that replays to what was quoted.
struct Launch<'a> {
    log: EventLog<'a>,
    pcr17: [u8; 32],
    pcr18: [u8; 32],
}

impl Launch<'_> {
    /// Digests of the events of `pcr`, in order.
    fn digests(&self, pcr: u8) -> impl Iterator<Item = &[u8]> {
        let events = self.log.events().filter(move |event| event.pcr == u32::from(pcr));
        events.filter_map(|event| event.digest(Algorithm::Sha256))
    }

    /// What is wrong with the event at `index` of `pcr`, if `known` has values and this is none of them.
    fn foreign(&self, pcr: u8, index: usize, known: &[[u8; 32]], what: &str) -> Option<String> {
        let digest = self.digests(pcr).nth(index)?;
        let is_known = known.is_empty() || known.iter().any(|own| same(own, digest));
        (!is_known).then(|| format!("the {what} (sha256 {}) is another one", hex::encode(digest)))
    }

    fn value(&self, pcr: u8) -> &[u8; 32] {
        if pcr == PCR_CODE { &self.pcr17 } else { &self.pcr18 }
    }
}

impl Judge<'_> {
    /// Log and registers.
    pub(crate) fn registers(&mut self, evidence: &Evidence<'_>, quote: Option<&QuoteAttest<'_>>) {
        let Some(quote) = quote else {
            self.skip("log", "there is no quote");
            self.skip("pcrs", "there is no quote");
            return;
        };
        match self.log(evidence.event_log, quote.pcr_digest) {
            Some(launch) => self.pcrs(&launch),
            None => self.skip("pcrs", "no log tells which values the quoted digest is of"),
        }
    }

    /// The log; gives the launch if it replays to what was quoted.
    fn log<'e>(&mut self, bytes: &'e [u8], quoted: &[u8]) -> Option<Launch<'e>> {
        let log = match EventLog::parse(bytes) {
            Ok(log) => log,
            Err(error) => {
                let text = "the event log is not as Dolmen writes it";
                self.fail("log", format!("{text} ({error:?}): damaged, padded or foreign"));
                return None;
            }
        };
        let Some((pcr17, pcr18)) = replay(&log) else {
            self.fail("log", "the event log has no SHA-256 digests, which the quote is made of");
            return None;
        };
        if !same(&sha256(&[&pcr17, &pcr18]), quoted) {
            self.fail(
                "log",
                "the event log does not replay to the quoted registers: it tells of something else",
            );
            return None;
        }
        let launch = Launch { log, pcr17, pcr18 };
        match self.wording(bytes, &launch) {
            Ok(text) => self.pass("log", text),
            Err(text) => self.fail("log", text),
        }
        Some(launch)
    }

    /// Whether the log, which replays, is also worded as it must be; a sentence either way.
    fn wording(&self, bytes: &[u8], launch: &Launch<'_>) -> Result<String, String> {
        check_events(&launch.log)
            .map_err(|problem| format!("the event log replays, but is none of Dolmen: {problem}"))?;
        if !is_as_written(bytes, &launch.log) {
            return Err(
                "the event log replays, but its header or the order of its digests is not as Dolmen writes \
                        them: altered or foreign"
                    .to_owned(),
            );
        }
        let mut is_known = true;
        for pcr in [PCR_CODE, PCR_CONFIGURATION] {
            let mut releases = self.releases_with(pcr, launch.value(pcr)).peekable();
            if releases.peek().is_none() {
                is_known = false;
            } else if !releases.any(|release| release.tells_the_same(&launch.log, pcr)) {
                return Err(format!(
                    "the event log replays, but what it calls the events of PCR {pcr}, or their digests of other banks, \
                     are not the release's: altered"
                ));
            }
        }
        let tail = if is_known {
            "and is word for word that of a release"
        } else {
            "(nothing signs its labels and its digests of other banks: they are remarks)"
        };
        Ok(format!("the event log replays to the quoted registers {tail}"))
    }

    fn releases_with<'s>(&'s self, pcr: u8, value: &'s [u8; 32]) -> impl Iterator<Item = &'s Release> {
        self.policy.releases.iter().filter(move |release| {
            let own = if pcr == PCR_CODE { Some(release.pcr17()) } else { release.pcr18() };
            own.is_some_and(|own| same(&own, value))
        })
    }

    /// The registers' values.
    fn pcrs(&mut self, launch: &Launch<'_>) {
        let problem = self.code_problem(launch).or_else(|| self.configuration_problem(launch));
        if let Some(text) = problem {
            self.fail("pcrs", text);
        } else if self.policy.configuration.is_any {
            self.pass("pcrs", "PCR 17 (launch image, core) has a reference value; any PCR 18 is accepted");
        } else {
            self.pass(
                "pcrs",
                "PCR 17 (launch image, core) and PCR 18 (manifest, guests) have reference values",
            );
        }
        if self.policy.configuration.is_any {
            let text = "any manifest is accepted: which guests run beside this one is not known";
            self.say("configuration", crate::report::Outcome::Note, text);
        }
    }

    fn code_problem(&self, launch: &Launch<'_>) -> Option<String> {
        let accepted = &self.policy.code;
        if accepted.iter().any(|code| same(code.pcr17(), &launch.pcr17)) {
            let is_other = self.code.is_some_and(|code| !same(code.pcr17(), &launch.pcr17));
            return is_other.then(|| {
                let quoted = hex::encode(launch.pcr17);
                format!("PCR 17 is {quoted}, accepted, but not the one that the key's policy names: no TPM signs that")
            });
        }
        let known = &self.policy.components;
        let which = launch.foreign(PCR_CODE, 0, &known.launch_images, "launch image");
        let which = which.or_else(|| launch.foreign(PCR_CODE, 1, &known.cores, "core"));
        let which = which.unwrap_or_else(|| "another launch image or core runs".to_owned());
        let values: Vec<[u8; 32]> = accepted.iter().map(|code| *code.pcr17()).collect();
        Some(format!("PCR 17 is {}, not {}: {which}", hex::encode(launch.pcr17), one_of(&values)))
    }

    fn configuration_problem(&self, launch: &Launch<'_>) -> Option<String> {
        let Configuration { is_any, values, manifests, parts } = &self.policy.configuration;
        if *is_any || values.iter().any(|value| same(value, &launch.pcr18)) {
            return None;
        }
        let told = format!("PCR 18 is {}, not {}", hex::encode(launch.pcr18), one_of(values));
        let manifest = launch.foreign(PCR_CONFIGURATION, 0, &self.policy.components.manifests, "manifest");
        if manifests.is_empty() {
            let which = manifest.unwrap_or_else(|| "another manifest or guest image was loaded".to_owned());
            return Some(format!("{told}: {which}"));
        }
        let mut digests = launch.digests(PCR_CONFIGURATION);
        let is_listed = |list: &[[u8; 32]], digest: &[u8]| list.iter().any(|own| same(own, digest));
        if !digests.next().is_some_and(|digest| is_listed(manifests, digest)) {
            let which =
                manifest.unwrap_or_else(|| "the manifest is not accepted with single components".to_owned());
            return Some(format!("{told}: {which}"));
        }
        let foreign = digests.enumerate().find(|(_, digest)| !is_listed(parts, digest));
        foreign.map(|(index, digest)| {
            let part = index.saturating_add(1);
            format!("{told}: part {part} of the guests (sha256 {}) is another one", hex::encode(digest))
        })
    }
}

/// PCR 17 and 18 of the SHA-256 bank, as the log replays.
pub(crate) fn replay(log: &EventLog<'_>) -> Option<([u8; 32], [u8; 32])> {
    let value = |pcr| log.replay(Algorithm::Sha256, pcr).ok()?.bytes().try_into().ok();
    Some((value(PCR_CODE)?, value(PCR_CONFIGURATION)?))
}
