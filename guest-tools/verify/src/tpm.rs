//! What the TPM says of itself in the quote: its counters, its clock, its firmware.

use dolmen_tpm::attest::QuoteAttest;

use crate::check::Judge;

impl Judge<'_> {
    /// The TPM's counters against those of the enrolment and of the policy, and what else the policy wants of it.
    pub(crate) fn tpm(&mut self, quote: Option<&QuoteAttest<'_>>) {
        let Some(quote) = quote else {
            self.skip("counters", "there is no quote");
            return;
        };
        let counts = (quote.reset_count, quote.restart_count);
        if let Some(key) = self.enrolled {
            let before = (key.reset_count, key.restart_count);
            self.counted("counters", counts, before, "at enrolment", "old evidence, or the TPM was cleared");
        }
        if let Some(least) = self.policy.tpm.min_counts {
            self.counted("min-counters", counts, least, "the policy's least", "old evidence");
        }
        self.launches(quote.restart_count);
        self.clock(quote);
        self.firmware(quote.firmware_version);
    }

    fn counted(&mut self, id: &'static str, counts: (u32, u32), least: (u32, u32), whose: &str, what: &str) {
        let now = format!("the TPM counts {} resets and {} launches since", counts.0, counts.1);
        self.judge(
            id,
            counts >= least,
            format!("{now}; {whose} {} and {}", least.0, least.1),
            format!("{now}, fewer than {whose} ({} and {}): {what}", least.0, least.1),
        );
    }

    fn launches(&mut self, restarts: u32) {
        if let Some(most) = self.policy.max_launches {
            self.judge(
                "launches",
                restarts <= most,
                format!("there were {restarts} dynamic launches since the TPM was reset, at most {most} are allowed"),
                format!("there were {restarts} dynamic launches since the TPM was reset, more than {most}: something else was launched too"),
            );
        }
    }

    fn clock(&mut self, quote: &QuoteAttest<'_>) {
        if self.policy.tpm.safe_clock {
            self.judge(
                "clock",
                quote.safe,
                "the TPM's clock never ran backwards",
                "the TPM's clock may have run backwards: its power was cut without notice",
            );
        }
    }

    fn firmware(&mut self, version: u64) {
        let accepted = &self.policy.tpm.firmware;
        if !accepted.is_empty() {
            self.judge(
                "firmware",
                accepted.contains(&version),
                format!("the TPM's firmware {version:#018x} is an accepted one"),
                format!("the TPM's firmware {version:#018x} is none of the {} accepted ones", accepted.len()),
            );
        }
    }
}
