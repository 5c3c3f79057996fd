//! Why something did not work, and what becomes of that.

use core::fmt;

use dolmen_abi::Status;
use dolmen_guest::Error;

/// Why something did not work: cause and remedy in words, and by its kind whether to try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Trying again would not help.
    Fatal(String),
    /// It may work later; after so many seconds, if somebody said so.
    Later(String, Option<u64>),
    /// The verifier no longer takes the token: another session is needed.
    Session(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fatal(text) | Self::Later(text, _) | Self::Session(text) => f.write_str(text),
        }
    }
}

impl<E: fmt::Display> From<Error<E>> for Failure {
    fn from(error: Error<E>) -> Self {
        match error {
            Error::Refused(Status::NOT_PERMITTED) => Self::Fatal(format!(
                "{error} Hint: allow this guest `host-quote`, `enrol` and `log` with `hypercalls` in the manifest"
            )),
            Error::Refused(Status::NO_SUCH_CALL) => {
                Self::Fatal(format!("{error} Hint: the hypervisor is older than this program"))
            }
            Error::Refused(Status::NO_CERTIFICATE) => {
                Self::Fatal(format!("{error} Hint: try the other kind of endorsement key (`--ek`)"))
            }
            Error::Refused(Status::NOT_LAUNCHED) => Self::Fatal(format!(
                "{error} Hint: boot the machine so that the processor launches Dolmen (SKINIT); see its console"
            )),
            // A TPM may be in lockout, or stand still, for a while.
            Error::Tpm(_) => Self::Later(error.to_string(), None),
            Error::Refused(_) | Error::Transport(_) | Error::Length | Error::Reply => {
                Self::Fatal(error.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_manifest_must_allow_is_named() {
        let failure = Failure::from(Error::<String>::Refused(Status::NOT_PERMITTED));
        assert!(matches!(&failure, Failure::Fatal(text) if text.contains("`host-quote`, `enrol` and `log`")));
        assert!(matches!(Failure::from(Error::<String>::Tpm(0x921)), Failure::Later(..)));
    }
}
