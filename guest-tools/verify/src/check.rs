//! The checks, in the order in which a reader would ask.

use dolmen_abi::evidence::Evidence;
use dolmen_abi::{LaunchFacts, REPORT_DATA_BYTES};
use dolmen_tpm::attest::QuoteAttest;
use dolmen_tpm::policy::{SELECT_17_18, host_policy};

use crate::binding::extra_data;
use crate::key::AttestationKey;
use crate::policy::{AcceptedCode, EnrolledKey, Policy};
use crate::report::{Check, Outcome, Report, Subject, VERDICT_FORMAT, Verdict};
use crate::same::same;

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
    let mut judge = Judge::new(policy, Subject::Guest);
    let evidence = match Evidence::decode(bytes) {
        Ok(evidence) => evidence,
        Err(error) => {
            judge.fail("format", format!("the file is no evidence: {error}"));
            return judge.report(None, None);
        }
    };
    judge.pass("format", "the file is evidence in its one canonical encoding");
    let key = judge.key(evidence.ak_public);
    let quote = judge.quote(&evidence, key.as_ref());
    judge.registers(&evidence, quote.as_ref());
    judge.binding(&evidence, quote.as_ref(), expected);
    judge.facts(evidence.binding.facts);
    judge.guest(&evidence);
    judge.tpm(quote.as_ref());
    let guest = evidence.binding.name_text().map(str::to_owned);
    judge.report(guest, key.map(|key| hex::encode(key.name())))
}

/// What was found so far.
pub(crate) struct Judge<'p> {
    pub(crate) policy: &'p Policy,
    subject: Subject,
    pub(crate) checks: Vec<Check>,
    /// The accepted PCR 17 that the key's policy names.
    pub(crate) code: Option<AcceptedCode>,
    /// The policy's entry for the key.
    pub(crate) enrolled: Option<&'p EnrolledKey>,
}

impl<'p> Judge<'p> {
    pub(crate) fn new(policy: &'p Policy, subject: Subject) -> Self {
        Self { policy, subject, checks: Vec::new(), code: None, enrolled: None }
    }

    pub(crate) fn say(&mut self, id: &'static str, outcome: Outcome, text: impl Into<String>) {
        self.checks.push(Check { id, outcome, text: text.into() });
    }

    pub(crate) fn pass(&mut self, id: &'static str, text: impl Into<String>) {
        self.say(id, Outcome::Pass, text);
    }

    pub(crate) fn fail(&mut self, id: &'static str, text: impl Into<String>) {
        self.say(id, Outcome::Fail, text);
    }

    pub(crate) fn skip(&mut self, id: &'static str, because: &str) {
        self.say(id, Outcome::Skipped, format!("not checked: {because}"));
    }

    /// Passes or fails by `holds`.
    pub(crate) fn judge(
        &mut self,
        id: &'static str,
        holds: bool,
        good: impl Into<String>,
        bad: impl Into<String>,
    ) {
        if holds { self.pass(id, good) } else { self.fail(id, bad) }
    }

    pub(crate) fn report(self, guest: Option<String>, key: Option<String>) -> Report {
        let has_failed =
            self.checks.iter().any(|check| matches!(check.outcome, Outcome::Fail | Outcome::Skipped));
        let verdict = match (has_failed, self.enrolled) {
            (true, _) => Verdict::Refused,
            (false, Some(_)) => Verdict::Trusted,
            (false, None) => Verdict::Unenrolled,
        };
        let accepted = match verdict {
            Verdict::Trusted => true,
            Verdict::Unenrolled => self.policy.allow_unenrolled,
            Verdict::Refused => false,
        };
        let enrolled_by = self.enrolled.map(|key| key.record.clone().unwrap_or_else(|| "policy".to_owned()));
        Report {
            format: VERDICT_FORMAT,
            subject: self.subject,
            verdict,
            accepted,
            guest,
            key,
            enrolled_by,
            checks: self.checks,
        }
    }

    /// The key: inside a TPM, and usable by the reference hypervisor only.
    pub(crate) fn key<'e>(&mut self, public: &'e [u8]) -> Option<AttestationKey<'e>> {
        let key = match AttestationKey::parse(public) {
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
        let is_of = |code: &&AcceptedCode| match self.subject {
            Subject::Guest => same(key.policy, code.key_policy()),
            Subject::Host => same(key.policy, &host_policy(code.pcr17())),
        };
        self.code = self.policy.code.iter().find(is_of).copied();
        self.judge(
            "key-policy",
            self.code.is_some(),
            "only an accepted hypervisor, at locality 2, can use the key",
            "the key's policy is that of no accepted PCR 17: other software than an accepted hypervisor can use it",
        );
        self.enrolment(&key);
        Some(key)
    }

    fn enrolment(&mut self, key: &AttestationKey<'_>) {
        let name = hex::encode(key.name());
        self.enrolled = self.policy.keys.iter().find(|enrolled| same(&enrolled.name, &key.name()));
        if let Some(enrolled) = self.enrolled {
            let by = enrolled.record.as_deref().unwrap_or("the policy");
            self.pass(
                "enrolled",
                format!("the key is enrolled as that of a known TPM, by {by} (Name {name})"),
            );
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

    /// The quote: made by a TPM, signed by that key, over exactly the two registers.
    fn quote<'e>(
        &mut self,
        evidence: &Evidence<'e>,
        key: Option<&AttestationKey<'_>>,
    ) -> Option<QuoteAttest<'e>> {
        match key {
            Some(key) => self.judge(
                "signature",
                key.verifier.accepts(evidence.attest, evidence.signature),
                format!("the quote is signed by the key ({})", key.verifier.algorithm()),
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
        let is_signer = key.is_some_and(|key| same(quote.qualified_signer, &key.qualified_name()));
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

    /// The binding: what was signed leads to it, and it has what was demanded.
    fn binding(&mut self, evidence: &Evidence<'_>, quote: Option<&QuoteAttest<'_>>, expected: &Expected) {
        match quote {
            Some(quote) => self.judge(
                "binding",
                extra_data(evidence).is_some_and(|root| same(&root, quote.extra_data)) && evidence.binding.reserved == 0,
                "the quote was made for this binding (its Merkle root is the signed extra data)",
                "the quote was not made for this binding: name, facts, registers or report data were exchanged",
            ),
            None => self.skip("binding", "there is no quote"),
        }
        match expected {
            Expected::ReportData(data) => self.judge(
                "report-data",
                same(&evidence.binding.report_data, data),
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
        let Some(accepted) = self.policy.guests.get(name) else {
            self.fail("guest", format!("the policy has no guest \"{name}\""));
            return;
        };
        let [g0, ..] = &binding.registers;
        self.judge(
            "guest",
            accepted.g0.iter().any(|value| same(value, g0)),
            format!("guest \"{name}\" has a reference identity G0"),
            format!(
                "guest \"{name}\" has G0 {}, not {}: another image or configuration",
                hex::encode(g0),
                one_of(&accepted.g0)
            ),
        );
        for (index, values) in &accepted.registers {
            let actual = binding.registers.get(*index).map_or(&[][..], |register| register);
            self.judge(
                "registers",
                values.iter().any(|value| same(value, actual)),
                format!("register G{index} has a reference value"),
                format!("register G{index} is {}, not {}", hex::encode(actual), one_of(values)),
            );
        }
    }
}

/// What a value should have been.
pub(crate) fn one_of<const N: usize>(values: &[[u8; N]]) -> String {
    match values {
        [value] => format!("the reference {}", hex::encode(value)),
        _ => format!("one of the {} reference values", values.len()),
    }
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
