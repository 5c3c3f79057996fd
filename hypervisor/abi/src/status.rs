//! How a call ended.

use core::fmt;

/// How a call ended. Open: a value that this crate does not know still prints and compares.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(pub u32);

macro_rules! statuses {
    ($( $(#[doc = $doc:literal])+ $name:ident = $value:expr; )*) => {
        impl Status {
            $( $(#[doc = $doc])+ pub const $name: Self = Self($value); )*

            /// Every status this crate knows, with its name and meaning.
            pub const ALL: &'static [(Self, &'static str, &'static str)] =
                &[ $( (Self::$name, stringify!($name), concat!($($doc),+)), )* ];
        }
    };
}

statuses! {
    /// Done.
    OK = 0;
    /// In progress: repeat the same request. Nothing was written.
    AGAIN = 1;
    /// Not now: another request of this guest is in progress, or it asks too often. Ask again later.
    BUSY = 2;
    /// The caller is not in 64-bit mode at CPL 0.
    NOT_PRIVILEGED = 3;
    /// The guest's manifest does not allow this call.
    NOT_PERMITTED = 4;
    /// The request's length does not fit the call, or its own length fields.
    BAD_LENGTH = 5;
    /// The request or the reply does not start at a multiple of 8.
    BAD_ALIGNMENT = 6;
    /// Some byte of the request is not in the guest's own RAM.
    BAD_REQUEST_ADDRESS = 7;
    /// Some byte of the reply is not in the guest's own RAM.
    BAD_REPLY_ADDRESS = 8;
    /// The reply does not fit the room that the caller gave for it.
    REPLY_TOO_SMALL = 9;
    /// A reserved field is not zero.
    RESERVED_NOT_ZERO = 10;
    /// A flag or policy bit that no version defines, or a policy that does not say who may open the blob.
    BAD_FLAGS = 11;
    /// An index, offset or count is out of range.
    BAD_ARGUMENT = 12;
    /// G0 is the guest's identity and cannot be extended.
    READ_ONLY = 13;
    /// Not a whole sealed blob: truncated, oversized or of an unknown format.
    BAD_BLOB = 14;
    /// The blob does not open here: other guest, manifest, hypervisor, label or register values, or altered.
    REFUSED = 15;
    /// There was no dynamic launch, so there is nothing to seal to and nothing to quote.
    NOT_LAUNCHED = 16;
    /// The TPM answered with an error; the reply is a TpmFailure.
    TPM_FAILED = 17;
    /// The random generator has no seed it may use.
    NO_ENTROPY = 18;
    /// No guest has this name.
    NO_SUCH_GUEST = 19;
    /// The guest is in a state in which this cannot be done: running, or not running.
    WRONG_STATE = 20;
    /// The guest's files are no longer what was measured: it does not run again before the next launch.
    CHANGED_FILE = 21;
    /// The TPM has no certificate for this endorsement key.
    NO_CERTIFICATE = 22;
    /// A sealed blob of a newer version than this hypervisor knows.
    NEWER_BLOB = 23;
    /// No call has this number (KVM's answer to an unknown hypercall).
    NO_SUCH_CALL = (-1000_i32).cast_unsigned();
}

impl Status {
    /// The value for RAX: sign-extended, so that only [`Status::NO_SUCH_CALL`] has high bits.
    pub const fn to_rax(self) -> u64 {
        const SIGN: u64 = 0xffff_ffff_0000_0000;
        let [a, b, c, d] = self.0.to_le_bytes();
        let low = u64::from_le_bytes([a, b, c, d, 0, 0, 0, 0]);
        if self.0.cast_signed() < 0 { low | SIGN } else { low }
    }

    /// The status in RAX after a call.
    pub const fn from_rax(rax: u64) -> Self {
        let [a, b, c, d, ..] = rax.to_le_bytes();
        Self(u32::from_le_bytes([a, b, c, d]))
    }

    /// Name, if this crate knows the status.
    pub fn name(self) -> Option<&'static str> {
        Self::ALL.iter().find(|entry| entry.0 == self).map(|entry| entry.1)
    }

    /// Meaning in a sentence, if this crate knows the status.
    pub fn meaning(self) -> Option<&'static str> {
        Self::ALL.iter().find(|entry| entry.0 == self).map(|entry| entry.2.trim())
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "Status({})", self.0),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

const _: () = {
    let mut i: usize = 0;
    while i < Status::ALL.len() {
        let mut j: usize = i.saturating_add(1);
        while j < Status::ALL.len() {
            #[expect(
                clippy::indexing_slicing,
                reason = "both indices are below the length, and at build time"
            )]
            let same = Status::ALL[i].0.0 == Status::ALL[j].0.0;
            assert!(!same, "two statuses have one value");
            j = j.saturating_add(1);
        }
        i = i.saturating_add(1);
    }
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_call_answers_what_kvm_would() {
        assert_eq!(Status::NO_SUCH_CALL.to_rax() as i64, -1000);
        assert_eq!(Status::from_rax(-1000_i64 as u64), Status::NO_SUCH_CALL);
    }

    #[test]
    fn every_other_status_has_no_high_bits() {
        for (status, name, _) in Status::ALL.iter().filter(|entry| entry.0 != Status::NO_SUCH_CALL) {
            assert_eq!(status.to_rax(), u64::from(status.0), "{name}");
        }
    }

    #[test]
    fn a_status_of_a_newer_hypervisor_prints_and_compares() {
        assert_eq!(format!("{}", Status(777)), "Status(777)");
        assert_ne!(Status(777), Status::OK);
        assert_eq!(Status(777).meaning(), None);
        assert_eq!(format!("{}", Status::BUSY), "BUSY");
    }
}
