//! The configuration of one guest: its fixed layout, and what its numbers mean.

use core::fmt;

use dolmen_abi::CallGroup;
use dolmen_arch::CpuSet;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{MAX_CMDLINE, MAX_GUEST_COMPONENTS, MAX_NAME, MAX_TEXT, MAX_UARTS};
use crate::image::Format;

/// One file of a guest, as the loader stages it: the manifest's n-th component is the hand-off's n-th.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ComponentConfig {
    /// One of the `ComponentConfig::*` kinds; 0 ends the list.
    pub kind: u32,
    /// Bytes used in `text`.
    pub text_length: u32,
    /// What the boot protocol hands over beside a module: its own command line, zero-padded.
    pub text: [u8; MAX_TEXT],
}

impl ComponentConfig {
    /// Kernel image; measured. Every guest has exactly one, first.
    pub const KERNEL: u32 = 1;
    /// Initial RAM disk; measured. At most one, second.
    pub const INITRD: u32 = 2;
    /// Boot module; measured.
    pub const MODULE: u32 = 3;
    /// Unmeasured data: read-only, hostile input to the guest.
    pub const DATA: u32 = 4;

    /// An unused entry.
    pub const NONE: Self = Self::new(0);

    /// A component without text.
    pub const fn new(kind: u32) -> Self {
        Self { kind, text_length: 0, text: [0; MAX_TEXT] }
    }

    /// Whether the component is part of the guest's identity.
    pub const fn is_measured(&self) -> bool {
        matches!(self.kind, Self::KERNEL | Self::INITRD | Self::MODULE)
    }

    /// The text, without padding.
    pub fn text(&self) -> &[u8] {
        used(&self.text, self.text_length)
    }
}

/// The whole configuration of one guest.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GuestConfig {
    /// ASCII name, zero-padded; unique; `[a-z0-9-]`, not empty.
    pub name: [u8; MAX_NAME],
    /// RAM in bytes; a multiple of [`MEMORY_STEP`](super::MEMORY_STEP).
    pub memory: u64,
    /// Bit n: physical CPU n may run the guest; 0 = every CPU may.
    pub affinity: u64,
    /// One of the `GuestConfig::FORMAT_*`.
    pub format: u32,
    /// Virtual processors: 1 to [`MAX_VCPUS`](super::MAX_VCPUS).
    pub vcpus: u32,
    /// Share of a contended CPU: 1 to [`MAX_WEIGHT`](super::MAX_WEIGHT).
    pub weight: u32,
    /// When the guest starts: one of the `GuestConfig::START_*`.
    pub start: u32,
    /// What follows when the guest resets itself: an [`Answer`].
    pub on_reboot: u32,
    /// What follows when it can run no further: an [`Answer`].
    pub on_crash: u32,
    /// What follows when it switches itself off: an [`Answer`].
    pub on_power_off: u32,
    /// Restarts after a crash before it stays stopped; 0 unless `on_crash` restarts.
    pub restart_limit: u32,
    /// What is behind each 16550: a [`Console`]. The first is always there, the second unless its entry is 0.
    pub consoles: [u32; MAX_UARTS],
    /// Bit n: hypercall group n is allowed (`dolmen_abi::CallGroup`).
    pub hypercalls: u32,
    /// Entries used in `components`.
    pub component_count: u32,
    /// Bytes used in `cmdline`.
    pub cmdline_length: u32,
    /// Must be zero.
    pub reserved: u32,
    /// Components in measuring order.
    pub components: [ComponentConfig; MAX_GUEST_COMPONENTS],
    /// Command line, zero-padded.
    pub cmdline: [u8; MAX_CMDLINE],
}

const _: () = {
    assert!(size_of::<ComponentConfig>() == 128);
    assert!(size_of::<GuestConfig>() == 3176);
    assert!(core::mem::offset_of!(GuestConfig, consoles) == 80);
    assert!(core::mem::offset_of!(GuestConfig, components) == 104);
    assert!(core::mem::offset_of!(GuestConfig, cmdline) == 1128);
};

/// What follows when a guest stops by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It starts again from its measured image.
    Restart,
    /// It stays stopped; the others go on.
    Stop,
    /// The whole machine stops, secrets scrubbed first.
    HaltMachine,
    /// The whole machine is reset, secrets scrubbed first.
    ResetMachine,
}

impl Answer {
    /// Every answer with its number and its name in `dolmen.toml`.
    pub const ALL: [(Self, u32, &'static str); 4] = [
        (Self::Restart, 1, "restart"),
        (Self::Stop, 2, "stop"),
        (Self::HaltMachine, 3, "halt-machine"),
        (Self::ResetMachine, 4, "reset-machine"),
    ];

    /// The answer of this number.
    pub fn from_wire(number: u32) -> Option<Self> {
        Self::ALL.iter().find(|entry| entry.1 == number).map(|entry| entry.0)
    }

    /// The answer's number.
    pub const fn to_wire(self) -> u32 {
        match self {
            Self::Restart => 1,
            Self::Stop => 2,
            Self::HaltMachine => 3,
            Self::ResetMachine => 4,
        }
    }
}

/// What is behind a guest's 16550.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// Nothing: what the guest sends is dropped.
    None,
    /// The physical port COM1, which the hypervisor's log uses too.
    Com1,
    /// The physical port COM2.
    Com2,
    /// The console that all guests share, on COM1.
    Multiplexed,
}

impl Console {
    /// Every console with its number and its name in `dolmen.toml`.
    pub const ALL: [(Self, u32, &'static str); 4] = [
        (Self::None, 0, "none"),
        (Self::Com1, 1, "com1"),
        (Self::Com2, 2, "com2"),
        (Self::Multiplexed, 3, "multiplexed"),
    ];

    /// The console of this number.
    pub fn from_wire(number: u32) -> Option<Self> {
        Self::ALL.iter().find(|entry| entry.1 == number).map(|entry| entry.0)
    }

    /// The console's number.
    pub const fn to_wire(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Com1 => 1,
            Self::Com2 => 2,
            Self::Multiplexed => 3,
        }
    }
}

impl GuestConfig {
    /// Linux bzImage, 64-bit boot protocol.
    pub const FORMAT_LINUX: u32 = 1;
    /// ELF with a PVH note.
    pub const FORMAT_PVH: u32 = 2;
    /// Multiboot 1.
    pub const FORMAT_MULTIBOOT: u32 = 3;
    /// Starts when the machine does.
    pub const START_BOOT: u32 = 0;
    /// Starts when a guest that may manage others says so.
    pub const START_ON_DEMAND: u32 = 1;

    /// The name, without padding.
    pub fn name(&self) -> &str {
        core::str::from_utf8(&self.name).unwrap_or_default().trim_end_matches('\0')
    }

    /// The image format; nothing if the number is unknown, which a checked manifest's never is.
    pub const fn format(&self) -> Option<Format> {
        match self.format {
            Self::FORMAT_LINUX => Some(Format::Linux),
            Self::FORMAT_PVH => Some(Format::Pvh),
            Self::FORMAT_MULTIBOOT => Some(Format::Multiboot),
            _ => None,
        }
    }

    /// The components in use.
    pub fn components(&self) -> &[ComponentConfig] {
        used(&self.components, self.component_count)
    }

    /// The command line, without padding.
    pub fn cmdline(&self) -> &[u8] {
        used(&self.cmdline, self.cmdline_length)
    }

    /// The hypercalls that the guest may use.
    pub const fn hypercalls(&self) -> CallGroup {
        CallGroup::from_bits_truncate(self.hypercalls)
    }

    /// The physical processors that may run the guest.
    pub fn affinity(&self) -> CpuSet {
        match u32::try_from(self.affinity) {
            Ok(0) | Err(_) => CpuSet::ALL,
            Ok(cpus) => CpuSet::from_bits(cpus),
        }
    }

    /// Whether the guest waits for somebody to start it.
    pub const fn starts_on_demand(&self) -> bool {
        self.start != Self::START_BOOT
    }

    /// What follows when the guest resets itself. An unknown number, which a checked manifest never has, halts.
    pub fn on_reboot(&self) -> Answer {
        Answer::from_wire(self.on_reboot).unwrap_or(Answer::HaltMachine)
    }

    /// What follows when the guest can run no further.
    pub fn on_crash(&self) -> Answer {
        Answer::from_wire(self.on_crash).unwrap_or(Answer::HaltMachine)
    }

    /// What follows when the guest switches itself off.
    pub fn on_power_off(&self) -> Answer {
        Answer::from_wire(self.on_power_off).unwrap_or(Answer::HaltMachine)
    }

    /// What is behind each of the guest's serial ports.
    pub fn consoles(&self) -> [Console; MAX_UARTS] {
        self.consoles.map(|number| Console::from_wire(number).unwrap_or(Console::None))
    }

    /// Whether the guest has a second 16550.
    pub fn has_second_uart(&self) -> bool {
        let [_, second] = self.consoles();
        second != Console::None
    }

    /// What the event log calls component `index`: `kernel`, `initrd`, `module0`, …; nothing if it is not measured.
    pub fn component_event(&self, index: usize) -> Option<EventName<'_>> {
        let components = self.components();
        let what = match components.get(index)?.kind {
            ComponentConfig::KERNEL => EventPart::Kernel,
            ComponentConfig::INITRD => EventPart::Initrd,
            ComponentConfig::MODULE => {
                let before = components.iter().take(index).filter(|c| c.kind == ComponentConfig::MODULE);
                EventPart::Module(before.count())
            }
            _ => return None,
        };
        Some(EventName { guest: self.name(), what })
    }

    /// What the event log calls the command line; it is measured last.
    pub fn cmdline_event(&self) -> EventName<'_> {
        EventName { guest: self.name(), what: EventPart::Cmdline }
    }
}

/// The used part of an array; all of it if the count is beyond it.
fn used<T>(all: &[T], count: u32) -> &[T] {
    usize::try_from(count).ok().and_then(|count| all.get(..count)).unwrap_or(all)
}

/// Event data of one measurement of a guest: `guest/<name>/<part>`. Write it with [`fmt::Display`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventName<'a> {
    guest: &'a str,
    what: EventPart,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EventPart {
    Kernel,
    Initrd,
    Module(usize),
    Cmdline,
}

impl fmt::Display for EventName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.what {
            EventPart::Kernel => write!(f, "guest/{}/kernel", self.guest),
            EventPart::Initrd => write!(f, "guest/{}/initrd", self.guest),
            EventPart::Module(n) => write!(f, "guest/{}/module{n}", self.guest),
            EventPart::Cmdline => write!(f, "guest/{}/cmdline", self.guest),
        }
    }
}
