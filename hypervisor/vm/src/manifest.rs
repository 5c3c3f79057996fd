//! The canonical manifest: what `dolmen.toml` compiles to, what PCR 18 measures, what the core obeys.
//!
//! One [`Header`], then `guest_count` times [`GuestConfig`]. Fixed sizes, little-endian, unused bytes zero,
//! so that one configuration has exactly one encoding.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most guests in one manifest.
pub const MAX_GUESTS: usize = 32;
/// Most components of one guest.
pub const MAX_GUEST_COMPONENTS: usize = 8;
/// Longest kernel command line, in bytes, without a terminator.
pub const MAX_CMDLINE: usize = 2048;
/// Longest guest name, in bytes.
pub const MAX_NAME: usize = 32;

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
    /// Kernel image; measured.
    pub const KERNEL: u32 = 1;
    /// Initial RAM disk; measured.
    pub const INITRD: u32 = 2;
    /// Boot module; measured.
    pub const MODULE: u32 = 3;
    /// Unmeasured data: read-only, hostile input to the guest.
    pub const DATA: u32 = 4;
}

/// The whole configuration of one guest.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GuestConfig {
    /// ASCII name, zero-padded; unique; `[a-z0-9-]`, not empty.
    pub name: [u8; MAX_NAME],
    /// RAM in bytes; a multiple of 2 MiB.
    pub memory: u64,
    /// One of the `GuestConfig::FORMAT_*`.
    pub format: u32,
    /// Virtual processors.
    pub vcpus: u32,
    /// Physical serial port behind the guest's 16550: 1 = COM1 (shared with the log), 2 = COM2.
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
}
