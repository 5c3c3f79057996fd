//! What a guest with the `manage` group sees of the others, and names them by.
#![expect(
    missing_debug_implementations,
    reason = "of helper types that zerocopy derives through a macro; every structure here derives it"
)]

use core::fmt;

use zerocopy::FromZeros;

use crate::layout::wire;
use crate::{NAME_BYTES, REGISTER_BYTES};

/// Most guests that ListGuests tells of: as many as a manifest has.
pub const MAX_GUESTS: usize = 32;
/// Counters in [`GuestInfo::exits`].
pub const EXIT_SLOTS: usize = 16;

/// What each counter of [`GuestInfo::exits`] counts, with its meaning; the rest are zero.
pub const EXIT_KINDS: [(&str, &str); 11] = [
    ("host", "a physical interrupt, NMI, SMI or INIT: for the hypervisor, not for the guest"),
    ("window", "the moment came to deliver an interrupt"),
    ("cpuid", "CPUID"),
    ("msr", "RDMSR or WRMSR"),
    ("port", "a port instruction"),
    ("halt", "HLT"),
    ("hypercall", "a hypercall"),
    ("device", "access to device memory"),
    ("control", "a control register or XSETBV"),
    ("fault", "an exception or a refused instruction"),
    ("other", "everything else"),
];

const _: () = assert!(EXIT_KINDS.len() <= EXIT_SLOTS);

/// Numbers with names: open, so that those of a newer hypervisor still print and compare.
macro_rules! numbers {
    ($(#[$meta:meta])* $type:ident { $( $(#[doc = $doc:literal])+ $name:ident = $value:literal, $text:literal; )* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $type(pub u32);

        impl $type {
            $( $(#[doc = $doc])+ pub const $name: Self = Self($value); )*

            /// Every number this crate knows, with the word for it and its meaning.
            pub const ALL: &'static [(Self, &'static str, &'static str)] =
                &[ $( (Self::$name, $text, concat!($($doc),+)), )* ];

            /// The word for it, if this crate knows the number.
            pub fn word(self) -> Option<&'static str> {
                Self::ALL.iter().find(|entry| entry.0 == self).map(|entry| entry.1)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.word() {
                    Some(word) => f.write_str(word),
                    None => write!(f, "{}({})", stringify!($type), self.0),
                }
            }
        }
    };
}

numbers! {
    /// What a guest does.
    GuestState {
        /// It was not started since the launch.
        OFF = 0, "off";
        /// Its files are compared with what was measured, and its memory is filled.
        LOADING = 1, "loading";
        /// Its processors run, or wait for interrupts.
        RUNNING = 2, "running";
        /// Its processors are being stopped, and its memory wiped.
        STOPPING = 3, "stopping";
        /// It stopped; its memory is wiped.
        STOPPED = 4, "stopped";
        /// It stopped, its memory is wiped, and it starts again by itself in a moment.
        RESTARTING = 5, "restarting";
        /// Its files are no longer what was measured: it does not run again before the next launch.
        REFUSED = 6, "refused";
    }
}

numbers! {
    /// Why a guest stopped last.
    StopCause {
        /// It never stopped.
        NONE = 0, "none";
        /// A guest that manages others stopped or reset it.
        REQUESTED = 1, "requested";
        /// It switched itself off.
        POWER_OFF = 2, "power-off";
        /// It reset itself.
        REBOOT = 3, "reboot";
        /// A triple fault.
        TRIPLE_FAULT = 4, "triple-fault";
        /// All its processors halted where nothing can wake them.
        HALTED_FOR_EVER = 5, "halted-for-ever";
        /// The processor refused its state.
        INVALID_STATE = 6, "invalid-state";
        /// Its page tables lay outside its memory.
        TABLES_OUTSIDE_RAM = 7, "tables-outside-ram";
        /// It accessed a device with an instruction that is not emulated.
        UNKNOWN_INSTRUCTION = 8, "unknown-instruction";
        /// A machine check while it ran.
        MACHINE_CHECK = 9, "machine-check";
        /// An exit that was never asked for.
        UNEXPECTED_EXIT = 10, "unexpected-exit";
        /// A file is not what was measured.
        CHANGED_FILE = 11, "changed-file";
        /// The image could not be loaded.
        NOT_LOADABLE = 12, "not-loadable";
        /// It switched hardware tasks, and the processor leaves that to software.
        TASK_SWITCH = 13, "task-switch";
    }
}

impl StopCause {
    /// Whether the guest could run no further.
    pub const fn is_crash(self) -> bool {
        !matches!(self, Self::NONE | Self::REQUESTED | Self::POWER_OFF | Self::REBOOT)
    }
}

wire! {
    /// Request of StartGuest, StopGuest and ResetGuest.
    pub struct GuestName {
        /// The guest's name, padded with zeroes.
        pub name: [u8; NAME_BYTES],
    }

    /// Reply of ListGuests; a GuestInfo for each guest follows, in manifest order.
    pub struct ListGuestsReply {
        /// Guests that follow.
        pub count: u32,
        /// The caller's place among them.
        pub caller: u32,
        /// Nanoseconds since the launch; never falls.
        pub uptime_ns: u64,
    }

    /// What ListGuests tells of one guest.
    pub struct GuestInfo {
        /// The guest's name, padded with zeroes.
        pub name: [u8; NAME_BYTES],
        /// What it does: a GuestState.
        pub state: u32,
        /// Why it stopped last: a StopCause.
        pub cause: u32,
        /// Virtual processors.
        pub vcpus: u32,
        /// Times it was started since the launch.
        pub starts: u32,
        /// Of those, restarts after a crash or a reboot of its own.
        pub restarts: u32,
        /// Zero.
        pub reserved: u32,
        /// Bytes of memory.
        pub memory: u64,
        /// Nanoseconds since it was started last, or from then to its stop.
        pub run_ns: u64,
        /// Nanoseconds that its processors have had on physical ones, all together, since the launch.
        pub cpu_ns: u64,
        /// Where the processor that stopped it last stood.
        pub last_rip: u64,
        /// Its page tables then.
        pub last_cr3: u64,
        /// What more is known of that stop: the address or code that the cause speaks of, or 0.
        pub last_detail: u64,
        /// G0.
        pub identity: [u8; REGISTER_BYTES],
        /// Exits since the launch, by kind, of all its processors.
        pub exits: [u64; EXIT_SLOTS],
    }
}

const _: () = {
    assert!(size_of::<GuestName>() == 32);
    assert!(size_of::<ListGuestsReply>() == 16);
    assert!(size_of::<GuestInfo>() == 280);
    assert!(core::mem::offset_of!(GuestInfo, memory) == 56);
    assert!(core::mem::offset_of!(GuestInfo, identity) == 104);
    assert!(core::mem::offset_of!(GuestInfo, exits) == 152);
};

impl GuestName {
    /// The request that names `name`; nothing if it is too long.
    pub fn new(name: &str) -> Option<Self> {
        let mut padded = [0; NAME_BYTES];
        padded.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        Some(Self { name: padded })
    }
}

impl Default for GuestInfo {
    fn default() -> Self {
        Self::new_zeroed()
    }
}

impl GuestInfo {
    /// The name, without padding; empty if it is not text.
    pub fn name(&self) -> &str {
        core::str::from_utf8(&self.name).unwrap_or_default().trim_end_matches('\0')
    }

    /// What it does.
    pub const fn state(&self) -> GuestState {
        GuestState(self.state)
    }

    /// Why it stopped last.
    pub const fn cause(&self) -> StopCause {
        StopCause(self.cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_a_newer_hypervisor_print_and_compare() {
        assert_eq!(format!("{} {:?}", GuestState(99), GuestState::RUNNING), "GuestState(99) running");
        assert_eq!(StopCause(1), StopCause::REQUESTED);
        assert_eq!(StopCause(99).word(), None);
    }

    #[test]
    fn words_and_numbers_are_unique() {
        for (index, (state, word, _)) in GuestState::ALL.iter().enumerate() {
            assert!(GuestState::ALL[..index].iter().all(|(s, w, _)| s != state && w != word), "{word}");
        }
        for (index, (cause, word, _)) in StopCause::ALL.iter().enumerate() {
            assert!(StopCause::ALL[..index].iter().all(|(c, w, _)| c != cause && w != word), "{word}");
        }
    }

    #[test]
    fn a_name_that_does_not_fit_is_no_request() {
        assert_eq!(GuestName::new("a").map(|request| request.name[..2].to_vec()), Some(b"a\0".to_vec()));
        assert!(GuestName::new(&"a".repeat(32)).is_some());
        assert!(GuestName::new(&"a".repeat(33)).is_none());
    }

    #[test]
    fn only_what_the_guest_cannot_survive_is_a_crash() {
        let crashes = StopCause::ALL.iter().filter(|entry| entry.0.is_crash()).count();
        assert_eq!(crashes, StopCause::ALL.len() - 4);
    }
}
