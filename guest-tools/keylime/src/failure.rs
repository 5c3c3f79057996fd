//! Why something did not work, and what becomes of that.

use core::fmt;

use dolmen_abi::Status;
use dolmen_guest::Error;
use dolmen_guest::linux::DeviceError;

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

/// What can go wrong on the way to the hypervisor.
pub(crate) trait Hindrance: fmt::Display {
    /// Whether it may be gone later by itself.
    fn is_passing(&self) -> bool;
}

impl Hindrance for DeviceError {
    fn is_passing(&self) -> bool {
        Self::is_passing(self)
    }
}

/// Nothing is in the way of a hypervisor within the process.
#[cfg(test)]
impl Hindrance for core::convert::Infallible {
    fn is_passing(&self) -> bool {
        match *self {}
    }
}

impl<E: Hindrance> From<Error<E>> for Failure {
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
            // It may work for longer than the driver waits, and for other guests; the next call gets the answer.
            Error::Transport(cause) if cause.is_passing() => Self::Later(cause.to_string(), None),
            Error::Refused(_) | Error::Transport(_) | Error::Length | Error::Reply => {
                Self::Fatal(error.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::convert::Infallible;
    use std::io;
    use std::path::PathBuf;

    #[test]
    fn what_the_manifest_must_allow_is_named() {
        let failure = Failure::from(Error::<Infallible>::Refused(Status::NOT_PERMITTED));
        assert!(matches!(&failure, Failure::Fatal(text) if text.contains("`host-quote`, `enrol` and `log`")));
        assert!(matches!(Failure::from(Error::<Infallible>::Tpm(0x921)), Failure::Later(..)));
    }

    #[test]
    fn a_hypervisor_that_others_keep_busy_is_asked_again() {
        let busy = Error::Transport(DeviceError::Patience(Status::BUSY));
        assert!(matches!(Failure::from(busy), Failure::Later(_, None)));
        // ETIMEDOUT, EINTR, ENOMEM; and ENOTTY.
        let from = |number: i32| {
            let cause = io::Error::from_raw_os_error(number);
            Failure::from(Error::Transport(DeviceError::Call { path: PathBuf::new(), cause }))
        };
        for number in [110, 4, 12] {
            assert!(matches!(from(number), Failure::Later(_, None)), "{number}");
        }
        assert!(matches!(from(25), Failure::Fatal(_)));
    }
}
