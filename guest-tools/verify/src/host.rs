//! Evidence about a host: a quote over the nonce as it is, by the key that speaks of the host.

use dolmen_abi::evidence::host::HostEvidence;
use dolmen_tpm::attest::QuoteAttest;
use dolmen_tpm::crypto::sha256;
use dolmen_tpm::policy::selection;

use crate::check::Judge;
use crate::key::AttestationKey;
use crate::policy::Policy;
use crate::report::{Report, Subject};
use crate::same::same;

/// Checks evidence about a host against a policy, of which guests and facts do not matter here: a quote about the host
/// says nothing of them. `bytes` may be anything.
#[must_use]
pub fn check_host(bytes: &[u8], policy: &Policy, nonce: &[u8]) -> Report {
    let mut judge = Judge::new(policy, Subject::Host);
    let evidence = match HostEvidence::decode(bytes) {
        Ok(evidence) => evidence,
        Err(error) => {
            judge.fail("format", format!("the file is no evidence about a host: {error}"));
            return judge.report(None, None);
        }
    };
    judge.pass("format", "the file is evidence about a host in its one canonical encoding");
    let key = judge.key(evidence.ak_public);
    let quote = key.as_ref().and_then(|key| judge.host_quote(&evidence, key, nonce));
    match (&quote, evidence.value(17), evidence.value(18)) {
        (Some(_), Some(pcr17), Some(pcr18)) => {
            judge.registers_of(evidence.event_log, &sha256(&[pcr17, pcr18]));
        }
        (Some(_), ..) => {
            judge.fail("pcrs", "PCR 17 and 18 were not both quoted: other registers prove nothing")
        }
        (None, ..) => judge.skip("pcrs", "there is no quote"),
    }
    judge.tpm(quote.as_ref());
    judge.report(None, key.map(|key| hex::encode(key.name())))
}

impl Judge<'_> {
    /// The quote: made by a TPM, signed by that key, over the nonce and the values that come with it.
    fn host_quote<'e>(
        &mut self,
        evidence: &HostEvidence<'e>,
        key: &AttestationKey<'_>,
        nonce: &[u8],
    ) -> Option<QuoteAttest<'e>> {
        self.judge(
            "signature",
            key.verifier.accepts(evidence.attest, evidence.signature),
            format!("the quote is signed by the key ({})", key.verifier.algorithm()),
            "the signature over the quote is not by the key: quote, signature or key was exchanged",
        );
        let quote = match QuoteAttest::parse(evidence.attest) {
            Ok(quote) => quote,
            Err(error) => {
                self.fail("quote", format!("what was signed is no quote made by a TPM ({error:?})"));
                return None;
            }
        };
        self.judge(
            "quote",
            same(quote.qualified_signer, &key.qualified_name()),
            "a TPM made the quote, with the key as a primary of its endorsement hierarchy",
            "the quote names another signer than the key as a primary of the endorsement hierarchy",
        );
        self.judge(
            "selection",
            quote.selection.marshals_to(&selection(evidence.pcrs))
                && same(quote.pcr_digest, &sha256(&[evidence.values])),
            "the registers and values are those of the SHA-256 bank that were quoted",
            "the registers or values are not those that were quoted",
        );
        self.judge(
            "report-data",
            same(quote.extra_data, nonce) && !nonce.is_empty(),
            "the nonce is the one demanded, so the evidence was made for this request",
            "the nonce is not the one demanded: old evidence, or made for somebody else",
        );
        Some(quote)
    }
}
