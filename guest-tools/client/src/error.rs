//! Why a call brought nothing.

use core::fmt;

use dolmen_abi::Status;

/// Why a call brought nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error<E> {
    /// The hypervisor was not reached, or waiting for it was given up.
    Transport(E),
    /// The hypervisor refused.
    Refused(Status),
    /// The TPM refused with this response code; 0 if it did not answer.
    Tpm(u32),
    /// An argument cannot be sent, or a result does not fit the room for it.
    Length,
    /// The reply is not what the specification says.
    Reply,
}

impl<E: fmt::Display> fmt::Display for Error<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(error) => error.fmt(f),
            Self::Refused(status) => match status.meaning() {
                Some(meaning) => write!(f, "refused by the hypervisor ({status}): {meaning}"),
                None => write!(f, "refused by the hypervisor ({status}, unknown to this program)"),
            },
            Self::Tpm(0) => f.write_str("the TPM did not answer"),
            Self::Tpm(code) => write!(f, "the TPM refused with response code {code:#x}"),
            Self::Length => f.write_str("too long for the call, or for the room given for the result"),
            Self::Reply => f.write_str("the hypervisor's reply is malformed"),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> core::error::Error for Error<E> {}
