//! The canonical manifest: what `dolmen.toml` compiles to, what PCR 18 measures, what the core obeys.
//!
//! One [`Header`], a [`SealingRoot`] if the version says so, then `guest_count` times [`GuestConfig`]. Fixed sizes,
//! little-endian, unused bytes zero, so that one configuration has exactly one encoding. [`Manifest::parse`] is the
//! only reader: its input is what a hostile loader staged, measured but not to be believed.

use core::fmt;

use dolmen_abi::CallGroup;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

mod check;
mod config;
mod identity;
mod root;

pub use check::Problem;
pub use config::{Answer, ComponentConfig, Console, EventName, GuestConfig};
pub use identity::{ComponentDigest, measure_guest};
pub use root::SealingRoot;

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
/// Longest text beside a module, in bytes, without a terminator.
pub const MAX_TEXT: usize = 120;
/// Most virtual processors of one guest.
pub const MAX_VCPUS: u32 = 8;
/// Most virtual processors of all guests together.
pub const MAX_TOTAL_VCPUS: u32 = 64;
/// Physical processors that an affinity can name.
pub const MAX_CPUS: u32 = 32;
/// Largest weight of a guest.
pub const MAX_WEIGHT: u32 = 1000;
/// Most restarts after crashes that can be asked for.
pub const MAX_RESTARTS: u32 = 1000;
/// Serial ports of a guest.
pub const MAX_UARTS: usize = 2;
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
    /// [`Header::VERSION`] or [`Header::VERSION_WITH_ROOT`].
    pub version: u32,
    /// Guests that follow: 1 to [`MAX_GUESTS`].
    pub guest_count: u32,
}

impl Header {
    /// Marks a canonical manifest.
    pub const MAGIC: [u8; 8] = *b"DOLMANIF";
    /// Version of a manifest without a [`SealingRoot`].
    pub const VERSION: u32 = 2;
    /// Version of one in which a [`SealingRoot`] follows the header.
    pub const VERSION_WITH_ROOT: u32 = 3;
}

/// Bytes before the first guest of a manifest with a sealing root.
const WITH_ROOT: usize = size_of::<Header>().saturating_add(size_of::<SealingRoot>());

/// Why bytes are not a canonical manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManifestError {
    /// Shorter than what the version begins with, or other than the guest count says.
    Length {
        /// Bytes that version and guest count ask for.
        want: usize,
        /// Bytes that are there.
        have: usize,
    },
    /// Does not begin like a manifest.
    Magic([u8; 8]),
    /// A version that this hypervisor does not know.
    Version(u32),
    /// The sealing root is at a handle where no owner can have a key.
    RootHandle(u32),
    /// The sealing root's Name does not begin with SHA-256's number.
    RootName,
    /// A reserved field of the sealing root is not zero.
    RootNotZero,
    /// No guest, or more than [`MAX_GUESTS`].
    GuestCount(u32),
    /// More components than [`MAX_COMPONENTS`] in all.
    ComponentTotal(usize),
    /// More virtual processors than [`MAX_TOTAL_VCPUS`] in all.
    VcpuTotal(u32),
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
            Self::Version(version) => write!(
                f,
                "manifest version {version}, known are {} and {}",
                Header::VERSION,
                Header::VERSION_WITH_ROOT
            ),
            Self::RootHandle(handle) => {
                write!(
                    f,
                    "sealing root of the manifest: {handle:#x} is no persistent handle of an owner's key"
                )
            }
            Self::RootName => f.write_str("sealing root of the manifest: its Name is not one by SHA-256"),
            Self::RootNotZero => f.write_str("sealing root of the manifest: a reserved field is not zero"),
            Self::GuestCount(count) => {
                write!(f, "{count} guests in the manifest, 1 to {MAX_GUESTS} are possible")
            }
            Self::ComponentTotal(count) => {
                write!(f, "{count} components in all, {MAX_COMPONENTS} are possible")
            }
            Self::VcpuTotal(count) => {
                write!(f, "{count} virtual processors in all, {MAX_TOTAL_VCPUS} are possible")
            }
            Self::Guest { index, problem } => write!(f, "guest {index} of the manifest: {problem}"),
        }
    }
}

/// A manifest that has been checked from the first byte to the last.
#[derive(Clone, Copy, Debug)]
pub struct Manifest<'a> {
    sealing_root: Option<SealingRoot>,
    guests: &'a [u8],
}

impl<'a> Manifest<'a> {
    /// Checks `bytes`, a private copy, as a canonical manifest.
    ///
    /// # Errors
    /// [`ManifestError`] names the first thing that is wrong.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ManifestError> {
        let wrong_length = |want| ManifestError::Length { want, have: bytes.len() };
        let (header, rest) =
            Header::read_from_prefix(bytes).map_err(|_| wrong_length(size_of::<Header>()))?;
        if header.magic != Header::MAGIC {
            return Err(ManifestError::Magic(header.magic));
        }
        let (sealing_root, guests) = match header.version {
            Header::VERSION => (None, rest),
            Header::VERSION_WITH_ROOT => {
                let (root, guests) =
                    SealingRoot::read_from_prefix(rest).map_err(|_| wrong_length(WITH_ROOT))?;
                root.check()?;
                (Some(root), guests)
            }
            other => return Err(ManifestError::Version(other)),
        };
        let bad_count = ManifestError::GuestCount(header.guest_count);
        let count = usize::try_from(header.guest_count).map_err(|_| bad_count)?;
        if count == 0 || count > MAX_GUESTS {
            return Err(bad_count);
        }
        let want = count.saturating_mul(size_of::<GuestConfig>());
        if guests.len() != want {
            let head = bytes.len().saturating_sub(guests.len());
            return Err(wrong_length(want.saturating_add(head)));
        }
        let manifest = Self { sealing_root, guests };
        manifest.check()?;
        Ok(manifest)
    }

    /// The key that must serve as sealing root, if the machine's owner provisioned one.
    pub const fn sealing_root(&self) -> Option<SealingRoot> {
        self.sealing_root
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

    /// RAM of all guests together, in bytes.
    pub fn memory_total(&self) -> u64 {
        self.guests().map(|guest| guest.memory).fold(0, u64::saturating_add)
    }

    /// Virtual processors of all guests together.
    pub fn vcpu_total(&self) -> u32 {
        self.guests().map(|guest| guest.vcpus).fold(0, u32::saturating_add)
    }

    fn check(&self) -> Result<(), ManifestError> {
        let is_manager =
            |guest: &GuestConfig| !guest.starts_on_demand() && guest.hypercalls().contains(CallGroup::MANAGE);
        let is_managed = self.guests().any(|guest| is_manager(&guest));
        for (index, guest) in self.guests().enumerate() {
            let wrong = |problem| ManifestError::Guest { index, problem };
            check::guest(&guest).map_err(wrong)?;
            if guest.starts_on_demand() && !is_managed {
                return Err(wrong(Problem::NobodyStartsIt));
            }
            for other in self.guests().take(index) {
                check::pair(&guest, &other).map_err(wrong)?;
            }
        }
        match (self.component_total(), self.vcpu_total()) {
            (total, _) if total > MAX_COMPONENTS => Err(ManifestError::ComponentTotal(total)),
            (_, total) if total > MAX_TOTAL_VCPUS => Err(ManifestError::VcpuTotal(total)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
