//! The canonical manifest: what `dolmen.toml` compiles to, what PCR 18 measures, what the core obeys.
//!
//! One [`Header`], then `guest_count` times [`GuestConfig`]. Fixed sizes, little-endian, unused bytes zero,
//! so that one configuration has exactly one encoding. [`Manifest::parse`] is the only reader: its input is
//! what a hostile loader staged, measured but not to be believed.

use core::fmt;

use dolmen_abi::CallGroup;
use sha2::{Digest, Sha384};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

mod check;

pub use check::Problem;

/// Most guests in one manifest.
pub const MAX_GUESTS: usize = 32;
/// Most components of one guest.
pub const MAX_GUEST_COMPONENTS: usize = 8;
/// Most components of all guests together: what a hand-off carries.
pub const MAX_COMPONENTS: usize = 96;
/// Longest kernel command line, in bytes, without a terminator.
pub const MAX_CMDLINE: usize = 2048;
/// Longest guest name, in bytes.
pub const MAX_NAME: usize = 32;
/// Most virtual processors of one guest that this version runs.
pub const MAX_VCPUS: u32 = 1;
/// Guest RAM comes in multiples of this many bytes.
pub const MEMORY_STEP: u64 = 0x20_0000;
/// Most guest RAM, in bytes.
pub const MAX_MEMORY: u64 = 1 << 40;

/// First bytes of a canonical manifest.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Header {
    /// [`Header::MAGIC`].
    pub magic: [u8; 8],
    /// [`Header::VERSION`].
    pub version: u32,
    /// Guests that follow: 1 to [`MAX_GUESTS`].
    pub guest_count: u32,
}

impl Header {
    /// Marks a canonical manifest.
    pub const MAGIC: [u8; 8] = *b"DOLMANIF";
    /// Format version.
    pub const VERSION: u32 = 1;
}

/// One file of a guest, as the loader stages it: the manifest's n-th component is the hand-off's n-th.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ComponentConfig {
    /// One of the `ComponentConfig::*` kinds; 0 ends the list.
    pub kind: u32,
    /// Must be zero.
    pub reserved: u32,
}

impl ComponentConfig {
    /// Kernel image; measured. Every guest has exactly one, first.
    pub const KERNEL: u32 = 1;
    /// Initial RAM disk; measured. At most one.
    pub const INITRD: u32 = 2;
    /// Boot module; measured.
    pub const MODULE: u32 = 3;
    /// Unmeasured data: read-only, hostile input to the guest.
    pub const DATA: u32 = 4;

    /// Whether the component is part of the guest's identity.
    pub const fn is_measured(&self) -> bool {
        matches!(self.kind, Self::KERNEL | Self::INITRD | Self::MODULE)
    }
}

/// The whole configuration of one guest.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GuestConfig {
    /// ASCII name, zero-padded; unique; `[a-z0-9-]`, not empty.
    pub name: [u8; MAX_NAME],
    /// RAM in bytes; a multiple of [`MEMORY_STEP`].
    pub memory: u64,
    /// One of the `GuestConfig::FORMAT_*`.
    pub format: u32,
    /// Virtual processors: 1 to [`MAX_VCPUS`].
    pub vcpus: u32,
    /// Physical serial port behind the guest's 16550: 1 = COM1 (shared with the log), 2 = COM2; 0 = none.
    pub console: u32,
    /// Bit n: hypercall group n is allowed (`dolmen_abi::CallGroup`).
    pub hypercalls: u32,
    /// What happens when the guest stops by itself: one of the `GuestConfig::ON_*`.
    pub on_reboot: u32,
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
    assert!(size_of::<Header>() == 16);
    assert!(size_of::<GuestConfig>() == 2184);
    assert!(core::mem::offset_of!(GuestConfig, components) == 72);
    assert!(core::mem::offset_of!(GuestConfig, cmdline) == 136);
};

impl GuestConfig {
    /// Linux bzImage, 64-bit boot protocol.
    pub const FORMAT_LINUX: u32 = 1;
    /// ELF with a PVH note.
    pub const FORMAT_PVH: u32 = 2;
    /// Multiboot 1 ELF32.
    pub const FORMAT_MULTIBOOT: u32 = 3;
    /// A guest that reboots resets the whole machine (through the scrubbing way out).
    pub const ON_REBOOT_RESET: u32 = 0;
    /// A guest that reboots stops the machine.
    pub const ON_REBOOT_STOP: u32 = 1;

    /// The name, without padding.
    pub fn name(&self) -> &str {
        core::str::from_utf8(&self.name).unwrap_or_default().trim_end_matches('\0')
    }

    /// The components in use.
    pub fn components(&self) -> &[ComponentConfig] {
        let used = usize::try_from(self.component_count).unwrap_or(MAX_GUEST_COMPONENTS);
        self.components.get(..used).unwrap_or(&self.components)
    }

    /// The command line, without padding.
    pub fn cmdline(&self) -> &[u8] {
        let used = usize::try_from(self.cmdline_length).unwrap_or(MAX_CMDLINE);
        self.cmdline.get(..used).unwrap_or(&self.cmdline)
    }

    /// The hypercalls that the guest may use.
    pub const fn hypercalls(&self) -> CallGroup {
        CallGroup::from_bits_truncate(self.hypercalls)
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

/// Why bytes are not a canonical manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManifestError {
    /// Shorter than a header, or other than the guest count says.
    Length {
        /// Bytes that the guest count asks for.
        want: usize,
        /// Bytes that are there.
        have: usize,
    },
    /// Does not begin like a manifest.
    Magic([u8; 8]),
    /// A version that this hypervisor does not know.
    Version(u32),
    /// No guest, or more than [`MAX_GUESTS`].
    GuestCount(u32),
    /// More components than [`MAX_COMPONENTS`] in all.
    ComponentTotal(usize),
    /// Something is wrong with one guest.
    Guest {
        /// Which one, counted from 0.
        index: usize,
        /// What.
        problem: Problem,
    },
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { want, have } => write!(f, "manifest of {have} bytes where {want} are needed"),
            Self::Magic(magic) => write!(f, "not a canonical manifest: begins with {magic:02x?}"),
            Self::Version(version) => write!(f, "manifest version {version}, known is {}", Header::VERSION),
            Self::GuestCount(count) => {
                write!(f, "{count} guests in the manifest, 1 to {MAX_GUESTS} are possible")
            }
            Self::ComponentTotal(count) => {
                write!(f, "{count} components in all, {MAX_COMPONENTS} are possible")
            }
            Self::Guest { index, problem } => write!(f, "guest {index} of the manifest: {problem}"),
        }
    }
}

/// A manifest that has been checked from the first byte to the last.
#[derive(Clone, Copy, Debug)]
pub struct Manifest<'a> {
    guests: &'a [u8],
}

impl<'a> Manifest<'a> {
    /// Checks `bytes`, a private copy, as a canonical manifest.
    ///
    /// # Errors
    /// [`ManifestError`] names the first thing that is wrong.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ManifestError> {
        let too_short = ManifestError::Length { want: size_of::<Header>(), have: bytes.len() };
        let (header, guests) = Header::read_from_prefix(bytes).map_err(|_| too_short)?;
        if header.magic != Header::MAGIC {
            return Err(ManifestError::Magic(header.magic));
        }
        if header.version != Header::VERSION {
            return Err(ManifestError::Version(header.version));
        }
        let bad_count = ManifestError::GuestCount(header.guest_count);
        let count = usize::try_from(header.guest_count).map_err(|_| bad_count)?;
        if count == 0 || count > MAX_GUESTS {
            return Err(bad_count);
        }
        let want = count.saturating_mul(size_of::<GuestConfig>());
        if guests.len() != want {
            let want = want.saturating_add(size_of::<Header>());
            return Err(ManifestError::Length { want, have: bytes.len() });
        }
        let manifest = Self { guests };
        manifest.check()?;
        Ok(manifest)
    }

    /// The guests in order.
    pub fn guests(&self) -> impl ExactSizeIterator<Item = GuestConfig> + use<'a> {
        // Whole chunks only, and any bytes are a configuration: nothing is lost by the fallback.
        self.guests
            .chunks_exact(size_of::<GuestConfig>())
            .map(|chunk| GuestConfig::read_from_bytes(chunk).unwrap_or_else(|_| GuestConfig::new_zeroed()))
    }

    /// Components of all guests: as many as the hand-off must have.
    pub fn component_total(&self) -> usize {
        self.guests().map(|guest| guest.components().len()).fold(0, usize::saturating_add)
    }

    fn check(&self) -> Result<(), ManifestError> {
        for (index, guest) in self.guests().enumerate() {
            let wrong = |problem| ManifestError::Guest { index, problem };
            check::guest(&guest).map_err(wrong)?;
            for other in self.guests().take(index) {
                check::pair(&guest, &other).map_err(wrong)?;
            }
        }
        match self.component_total() {
            total if total > MAX_COMPONENTS => Err(ManifestError::ComponentTotal(total)),
            _ => Ok(()),
        }
    }
}

/// One component's part in a guest's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComponentDigest {
    /// One of the measured [`ComponentConfig`] kinds.
    pub kind: u32,
    /// Bytes of the component.
    pub length: u64,
    /// SHA-384 of its bytes.
    pub sha384: [u8; 48],
}

impl ComponentDigest {
    /// The digest of a component whose bytes lie at hand.
    pub fn of(kind: u32, bytes: &[u8]) -> Self {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Self { kind, length, sha384: Sha384::digest(bytes).into() }
    }
}

/// A guest's identity, G0 = SHA-384("dolmen-guest-1" ‖ configuration ‖ for each measured component in order:
/// kind, length, SHA-384 of its bytes).
///
/// Nothing if `digests` are not those of the configuration's measured components, in its order.
pub fn measure_guest(config: &GuestConfig, digests: &[ComponentDigest]) -> Option<[u8; 48]> {
    let measured = config.components().iter().filter(|component| component.is_measured());
    if !measured.map(|component| component.kind).eq(digests.iter().map(|digest| digest.kind)) {
        return None;
    }
    let mut hash = Sha384::new();
    hash.update(b"dolmen-guest-1");
    hash.update(config.as_bytes());
    for digest in digests {
        hash.update(digest.kind.to_le_bytes());
        hash.update(digest.length.to_le_bytes());
        hash.update(digest.sha384);
    }
    Some(hash.finalize().into())
}

#[cfg(test)]
mod tests;
