//! Why the command failed, in words that name the cause and what to do.

use core::fmt;
use std::process::ExitCode;

use dolmen_abi::Status;
use dolmen_guest::Error;

/// TPM_RC_LOCKOUT.
const LOCKOUT: u32 = 0x921;

/// TPM_RC_BAD_AUTH, of the first session: a value where the empty one was given.
const BAD_AUTH: u32 = 0x9a2;

/// Why the command failed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    text: String,
    code: u8,
}

impl Failure {
    /// A failure that its own words explain.
    pub(crate) fn plain(text: &impl ToString) -> Self {
        Self { text: text.to_string(), code: 1 }
    }

    /// A failure with a file.
    pub(crate) fn file(what: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::plain(&format!("cannot {what} {}: {error}", path.display()))
    }

    /// The same with more to it.
    pub(crate) fn because(mut self, more: &str) -> Self {
        self.text.push_str(more);
        self
    }

    /// The exit status that says so.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<E: fmt::Display> From<Error<E>> for Failure {
    fn from(error: Error<E>) -> Self {
        let remedy = match &error {
            Error::Refused(status) => remedy(*status),
            Error::Tpm(LOCKOUT) => Some(
                "the TPM is in lockout after failed authorisations: wait, or let whoever has its lockout authorisation run `tpm2_dictionarylockout -c`",
            ),
            Error::Tpm(BAD_AUTH) => Some(
                "the TPM's endorsement hierarchy got an authorisation value since the launch: let its owner clear it with `tpm2_changeauth -c endorsement`",
            ),
            Error::Tpm(_) => Some("ask again; if it stays so, the machine's TPM needs a look"),
            Error::Reply => Some("driver and hypervisor do not fit together: are they of one version?"),
            Error::Transport(_) | Error::Length => None,
        };
        let code = match error {
            Error::Refused(Status::REFUSED) => 3,
            Error::Refused(Status::NEWER_BLOB) => 4,
            Error::Refused(_) | Error::Tpm(_) | Error::Reply | Error::Transport(_) | Error::Length => 1,
        };
        let text = match remedy {
            Some(remedy) => format!("{error} Hint: {remedy}"),
            None => error.to_string(),
        };
        Self { text, code }
    }
}

/// What to do about a status.
fn remedy(status: Status) -> Option<&'static str> {
    Some(match status {
        Status::NOT_PERMITTED => "allow it with `hypercalls` in this guest's part of the manifest",
        Status::NOT_LAUNCHED => {
            "boot the machine so that the processor launches Dolmen (SKINIT); see its console"
        }
        Status::NO_SUCH_CALL => "the hypervisor is older than this command",
        Status::BAD_BLOB => "give a whole file as `dolmen seal` wrote it",
        Status::BAD_FLAGS => {
            "the hypervisor is older than this command, and does not know this policy or key"
        }
        Status::REFUSED => "check the label, and what the secret is bound to",
        Status::NEWER_BLOB => {
            "it was sealed under a newer Dolmen, and opens only there: launch that one, or find the right file"
        }
        Status::NO_CERTIFICATE => {
            "try the other kind of endorsement key (`--ek`); without a certificate nobody vouches for this TPM"
        }
        Status::NO_SUCH_GUEST => "`dolmen ps` lists the guests",
        Status::WRONG_STATE => {
            "`dolmen ps` tells what the guest does: start what is stopped, stop or reset what runs"
        }
        Status::CHANGED_FILE => {
            "something changed its files in memory; launch the machine anew, and find out what did"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_that_does_not_open_has_an_exit_status_of_its_own() {
        let refused = Failure::from(Error::<String>::Refused(Status::REFUSED));
        assert_eq!((refused.code, Failure::from(Error::<String>::Length).code), (3, 1));
        assert!(refused.to_string().contains("Hint: check the label"), "{refused}");
        let newer = Failure::from(Error::<String>::Refused(Status::NEWER_BLOB));
        assert_eq!(newer.code, 4);
        assert!(newer.to_string().contains("newer Dolmen"), "{newer}");
    }

    #[test]
    fn what_the_tpms_owner_must_do_is_said() {
        for (code, want) in [(0x921, "in lockout"), (0x9a2, "tpm2_changeauth -c endorsement")] {
            let failure = Failure::from(Error::<String>::Tpm(code));
            assert!(failure.to_string().contains(want), "{failure}");
        }
    }

    #[test]
    fn an_unknown_status_is_still_told() {
        let failure = Failure::from(Error::<String>::Refused(Status(4711)));
        assert!(failure.to_string().contains("4711"), "{failure}");
    }
}
