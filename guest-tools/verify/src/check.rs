//! The checks, in the order in which a reader would ask.

use dolmen_abi::evidence::Evidence;
use dolmen_abi::{LaunchFacts, REPORT_DATA_BYTES};
use dolmen_drtm::digest::Algorithm;
use dolmen_drtm::replay::EventLog;
use dolmen_tpm::attest::{QuoteAttest, is_signed_by};
use dolmen_tpm::crypto::sha256;
use dolmen_tpm::policy::{SELECT_17_18, launch_policy};

use crate::binding::extra_data;
use crate::key::AttestationKey;
use crate::log::check_events;
use crate::policy::{EnrolledKey, Policy};
use crate::report::{Check, Outcome, Report, Verdict};

/// What the relying party demands to be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Exactly these 64 bytes of report data.
    ReportData([u8; REPORT_DATA_BYTES]),
    /// Anything: for looking at old evidence. Says nothing of when it was made.
    Anything,
}

impl Expected {
    /// A nonce of up to 64 bytes, padded with zeroes. `None` if it is empty or too long.
    #[must_use]
    pub fn nonce(nonce: &[u8]) -> Option<Self> {
        let mut data = [0; REPORT_DATA_BYTES];
        data.get_mut(..nonce.len())?.copy_from_slice(nonce);
        (!nonce.is_empty()).then_some(Self::ReportData(data))
    }
}

/// Checks evidence against a policy. `bytes` may be anything.
#[must_use]
pub fn check(bytes: &[u8], policy: &Policy, expected: &Expected) -> Report {
    let mut judge = Judge { policy, checks: Vec::new(), is_enrolled: false };
    let evidence = match Evidence::decode(bytes) {
        Ok(evidence) => evidence,
        Err(error) => {
            judge.fail("format", format!("the file is no evidence: {error}"));
            return judge.report(None, None);
        }
    };
    judge.pass("format", "the file is evidence in its one canonical encoding");
    let key = judge.key(&evidence);
    let quote = judge.quote(&evidence, key.as_ref());
    judge.registers(&evidence, quote.as_ref());
    judge.binding(&evidence, quote.as_ref(), expected);
    judge.facts(evidence.binding.facts);
    judge.guest(&evidence);
    judge.counters(key.as_ref(), quote.as_ref());
    let guest = evidence.binding.name_text().map(str::to_owned);
    judge.report(guest, key.map(|key| hex::encode(key.name())))
}

struct Judge<'p> {
    policy: &'p Policy,
    checks: Vec<Check>,
    is_enrolled: bool,
}

impl Judge<'_> {
    fn say(&mut self, id: &'static str, outcome: Outcome, text: impl Into<String>) {
        self.checks.push(Check { id, outcome, text: text.into() });
    }

    fn pass(&mut self, id: &'static str, text: impl Into<String>) {
        self.say(id, Outcome::Pass, text);
    }

    fn fail(&mut self, id: &'static str, text: impl Into<String>) {
        self.say(id, Outcome::Fail, text);
    }

    fn skip(&mut self, id: &'static str, because: &str) {
        self.say(id, Outcome::Skipped, format!("not checked: {because}"));
    }

    /// Passes or fails by `holds`.
    fn judge(&mut self, id: &'static str, holds: bool, good: impl Into<String>, bad: impl Into<String>) {
        if holds { self.pass(id, good) } else { self.fail(id, bad) }
    }

    fn report(self, guest: Option<String>, key: Option<String>) -> Report {
        let has_failed =
            self.checks.iter().any(|check| matches!(check.outcome, Outcome::Fail | Outcome::Skipped));
        let verdict = match (has_failed, self.is_enrolled) {
            (true, _) => Verdict::Refused,
            (false, true) => Verdict::Trusted,
            (false, false) => Verdict::Unenrolled,
        };
        let accepted = match verdict {
            Verdict::Trusted => true,
            Verdict::Unenrolled => self.policy.allow_unenrolled,
            Verdict::Refused => false,
        };
        Report { verdict, accepted, guest, key, checks: self.checks }
    }

    /// The key: inside a TPM, and usable by the reference hypervisor only.
    fn key<'e>(&mut self, evidence: &Evidence<'e>) -> Option<AttestationKey<'e>> {
        let key = match AttestationKey::parse(evidence.ak_public) {
            Ok(key) => key,
            Err(problem) => {
                self.fail("key", format!("the attestation key is none of Dolmen: {problem}"));
                self.skip("key-policy", "there is no key");
                self.skip("enrolled", "there is no key");
                return None;
            }
        };
        match key.check_attributes() {
            Ok(()) => self.pass(
                "key",
                "the key was made inside a TPM, cannot leave it and signs only what the TPM made",
            ),
            Err(problem) => self.fail("key", format!("the attestation key is none of Dolmen: {problem}")),
        }
        self.judge(
            "key-policy",
            key.policy == launch_policy(&self.policy.pcr17),
            "only the reference hypervisor, at locality 2, can use the key",
            "the key's policy is not that of the reference PCR 17: other software than the reference hypervisor can use it",
        );
        self.enrolment(&key);
        Some(key)
    }

    fn enrolment(&mut self, key: &AttestationKey<'_>) {
        let name = hex::encode(key.name());
        self.is_enrolled = self.enrolled(key).is_some();
        if self.is_enrolled {
            self.pass("enrolled", format!("the key is enrolled as that of a known TPM (Name {name})"));
        } else if self.policy.keys.is_empty() {
            self.say(
                "enrolled",
                Outcome::Note,
                format!("UNENROLLED: nobody has proved that a TPM holds this key (Name {name})"),
            );
        } else {
            self.fail(
                "enrolled",
                format!("the key (Name {name}) is none of the {} enrolled ones", self.policy.keys.len()),
            );
        }
    }

    fn enrolled(&self, key: &AttestationKey<'_>) -> Option<EnrolledKey> {
        self.policy.keys.iter().find(|enrolled| enrolled.name == key.name()).cloned()
    }

    /// The quote: made by a TPM, signed by that key, over exactly the two registers.
    fn quote<'e>(
        &mut self,
        evidence: &Evidence<'e>,
        key: Option<&AttestationKey<'_>>,
    ) -> Option<QuoteAttest<'e>> {
        match key {
            Some(key) => self.judge(
                "signature",
                is_signed_by(&key.point, evidence.attest, evidence.signature),
                "the quote is signed by the key (ECDSA P-256, SHA-256)",
                "the signature over the quote is not by the key: quote, signature or key was exchanged",
            ),
            None => self.skip("signature", "there is no key"),
        }
        let quote = match QuoteAttest::parse(evidence.attest) {
            Ok(quote) => quote,
            Err(error) => {
                self.fail("quote", format!("what was signed is no quote made by a TPM ({error:?})"));
                return None;
            }
        };
        let is_signer = key.is_some_and(|key| quote.qualified_signer == key.qualified_name());
        self.judge(
            "quote",
            is_signer,
            "a TPM made the quote, with the key as a primary of its endorsement hierarchy",
            "the quote names another signer than the key as a primary of the endorsement hierarchy",
        );
        self.judge(
            "selection",
            quote.selection.marshals_to(&SELECT_17_18),
            "it quotes exactly PCR 17 and 18 of the SHA-256 bank",
            "it does not quote exactly PCR 17 and 18 of the SHA-256 bank: other registers or banks prove nothing",
        );
        Some(quote)
    }

    /// The registers: the log replays to the quoted digest, which is that of the reference values.
    fn registers(&mut self, evidence: &Evidence<'_>, quote: Option<&QuoteAttest<'_>>) {
        let Some(quote) = quote else {
            self.skip("log", "there is no quote");
            self.skip("pcrs", "there is no quote");
            return;
        };
        let replayed = self.log(evidence.event_log, quote.pcr_digest);
        let reference = (self.policy.pcr17, self.policy.pcr18);
        if quote.pcr_digest == sha256(&[&reference.0, &reference.1]) {
            self.pass(
                "pcrs",
                "PCR 17 (launch image, core) and PCR 18 (manifest, guests) have their reference values",
            );
            return;
        }
        let text = match replayed {
            Some((pcr17, _)) if pcr17 != reference.0 => format!(
                "PCR 17 is {}, not the reference {}: another launch image or core runs",
                hex::encode(pcr17),
                hex::encode(reference.0)
            ),
            Some((_, pcr18)) => format!(
                "PCR 18 is {}, not the reference {}: another manifest or guest image was loaded",
                hex::encode(pcr18),
                hex::encode(reference.1)
            ),
            None => {
                "the quoted digest is not that of the reference PCR 17 and 18: something else runs".to_owned()
            }
        };
        self.fail("pcrs", text);
    }

    /// The log; gives PCR 17 and 18 if it replays to what was quoted.
    fn log(&mut self, bytes: &[u8], quoted: &[u8]) -> Option<([u8; 32], [u8; 32])> {
        let log = match EventLog::parse(bytes) {
            Ok(log) => log,
            Err(error) => {
                self.fail(
                    "log",
                    format!(
                        "the event log is not as Dolmen writes it ({error:?}): damaged, padded or foreign"
                    ),
                );
                return None;
            }
        };
        let Some(values) = replay(&log) else {
            self.fail("log", "the event log has no SHA-256 digests, which the quote is made of");
            return None;
        };
        if sha256(&[&values.0, &values.1]) != quoted {
            self.fail(
                "log",
                "the event log does not replay to the quoted registers: it tells of something else",
            );
            return None;
        }
        match check_events(&log) {
            Ok(()) => self.pass("log", "the event log replays to the quoted registers"),
            Err(problem) => {
                self.fail("log", format!("the event log replays, but is none of Dolmen: {problem}"))
            }
        }
        Some(values)
    }

    /// The binding: what was signed leads to it, and it has what was demanded.
    fn binding(&mut self, evidence: &Evidence<'_>, quote: Option<&QuoteAttest<'_>>, expected: &Expected) {
        match quote {
            Some(quote) => self.judge(
                "binding",
                extra_data(evidence).is_some_and(|root| root == quote.extra_data) && evidence.binding.reserved == 0,
                "the quote was made for this binding (its Merkle root is the signed extra data)",
                "the quote was not made for this binding: name, facts, registers or report data were exchanged",
            ),
            None => self.skip("binding", "there is no quote"),
        }
        match expected {
            Expected::ReportData(data) => self.judge(
                "report-data",
                evidence.binding.report_data == *data,
                "the report data is the one demanded, so the evidence was made for this request",
                "the report data is not the one demanded: old evidence, or made for somebody else",
            ),
            Expected::Anything => {
                self.say("report-data", Outcome::Note, "no nonce was demanded: the evidence may be old");
            }
        }
    }

    /// The launch facts.
    fn facts(&mut self, bits: u32) {
        let facts = LaunchFacts::from_bits_retain(bits);
        let rules = self.policy.facts;
        let never = LaunchFacts::DEBUG.union(LaunchFacts::UNMEASURED);
        let refused = facts.difference(rules.require.union(rules.allow)).union(facts.intersection(never));
        let missing = rules.require.difference(facts);
        if !facts.is_launched() {
            self.fail(
                "facts",
                format!("the hypervisor does not say that it was launched dynamically ({})", names(facts)),
            );
        } else if !refused.is_empty() {
            self.fail("facts", format!("the launch has facts that are not allowed: {}", names(refused)));
        } else if !missing.is_empty() {
            self.fail("facts", format!("the launch lacks facts that are required: {}", names(missing)));
        } else {
            self.pass("facts", format!("the launch was as required: {}", names(facts)));
        }
        if facts.contains(LaunchFacts::SMM_NOT_ISOLATED) {
            self.say(
                "smm",
                Outcome::Note,
                "system management mode is not isolated: the firmware's SMM code stays trusted",
            );
        }
    }

    /// The guest: name, identity and pinned registers.
    fn guest(&mut self, evidence: &Evidence<'_>) {
        let binding = &evidence.binding;
        let Some(name) = binding.name_text() else {
            self.fail("guest", "the guest's name is not printable");
            return;
        };
        let Some(accepted) = self.policy.guests.get(name).cloned() else {
            self.fail("guest", format!("the policy has no guest \"{name}\""));
            return;
        };
        let [g0, ..] = &binding.registers;
        self.judge(
            "guest",
            *g0 == accepted.g0,
            format!("guest \"{name}\" has its reference identity G0"),
            format!(
                "guest \"{name}\" has G0 {}, not the reference {}: another image or configuration",
                hex::encode(g0),
                hex::encode(accepted.g0)
            ),
        );
        for (index, value) in &accepted.registers {
            let actual = binding.registers.get(*index);
            self.judge(
                "registers",
                actual == Some(value),
                format!("register G{index} has its reference value"),
                format!(
                    "register G{index} is {}, not its reference value",
                    actual.map_or_else(String::new, hex::encode)
                ),
            );
        }
    }

    /// The TPM's counters against those of the enrolment: they never run backwards.
    fn counters(&mut self, key: Option<&AttestationKey<'_>>, quote: Option<&QuoteAttest<'_>>) {
        let (Some(key), Some(quote)) = (key, quote) else {
            self.skip("counters", "there is no quote");
            return;
        };
        let (resets, restarts) = (quote.reset_count, quote.restart_count);
        if let Some(baseline) = self.enrolled(key) {
            let before = (baseline.reset_count, baseline.restart_count);
            self.judge(
                "counters",
                (resets, restarts) >= before,
                format!("the TPM counts {resets} resets and {restarts} launches since; at enrolment {} and {}", before.0, before.1),
                format!(
                    "the TPM counts {resets} resets and {restarts} launches since, fewer than at enrolment ({} and {}): \
                     old evidence, or the TPM was cleared",
                    before.0, before.1
                ),
            );
        }
        if let Some(most) = self.policy.max_launches {
            self.judge(
                "launches",
                restarts <= most,
                format!("there were {restarts} dynamic launches since the TPM was reset, at most {most} are allowed"),
                format!("there were {restarts} dynamic launches since the TPM was reset, more than {most}: something else was launched too"),
            );
        }
    }
}

/// PCR 17 and 18 of the SHA-256 bank, as the log replays.
pub(crate) fn replay(log: &EventLog<'_>) -> Option<([u8; 32], [u8; 32])> {
    let value = |pcr| log.replay(Algorithm::Sha256, pcr).ok()?.bytes().try_into().ok();
    Some((value(17)?, value(18)?))
}

/// Facts by name; unknown ones as bits.
pub(crate) fn names(facts: LaunchFacts) -> String {
    let known = LaunchFacts::ALL.iter().filter(|(bit, ..)| facts.contains(*bit));
    let mut words: Vec<String> = known.map(|(_, name, _)| (*name).to_owned()).collect();
    let all = LaunchFacts::ALL.iter().fold(LaunchFacts::empty(), |sum, (bit, ..)| sum.union(*bit));
    let unknown = facts.difference(all);
    if !unknown.is_empty() {
        words.push(format!("unknown bits {:#x}", unknown.bits()));
    }
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}
