//! What one stage leaves in memory for the next: loader → launch image → core.
//!
//! [`Handoff`] is written by the untrusted loader and is hostile input: the launch image copies it once
//! and believes nothing of it. [`CoreHandoff`] is written by the launch image into shielded memory.
//! All integers are little-endian, all addresses host-physical, all lengths in bytes.

use crate::digest::MAX_DIGEST;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Size of the secure loader block, in bytes (APM vol. 2, 15.27.2).
pub const SLB_SIZE: u64 = 0x1_0000;
/// Offset of the loader's [`Handoff`] in the secure loader block: its last page, never measured.
pub const HANDOFF_OFFSET: u64 = 0xf000;
/// Where the launch image is linked: it maps its own 64 KiB here, wherever they lie physically. The address has
/// other indices into each level of the page tables, so that one page can be the three lower tables at once.
pub const LAUNCH_VA: u64 = 0xffff_ffff_80a2_0000;
/// Where the core is linked: byte `n` of the region is mapped at `CORE_VA + n`.
pub const CORE_VA: u64 = 0xffff_ffff_c000_0000;
/// Alignment of the region and of the guest pool, in bytes.
pub const REGION_ALIGN: u64 = 0x20_0000;
/// Most guest components a loader may stage: three for each of 32 guests.
pub const MAX_COMPONENTS: usize = 96;
/// Most processors that the hypervisor runs on; the rest of a larger machine stays parked.
pub const MAX_CPUS: usize = 32;
/// Most memory ranges a loader may describe, after merging neighbours of one kind.
pub const MAX_RANGES: usize = 64;

/// A run of bytes in physical memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Extent {
    /// First byte.
    pub base: u64,
    /// Length in bytes; 0 means absent.
    pub length: u64,
}

impl Extent {
    /// Whether the two have a byte in common; one that wraps is taken as reaching the end of memory.
    #[must_use]
    pub const fn meets(self, other: Self) -> bool {
        self.length != 0
            && other.length != 0
            && self.base <= other.base.saturating_add(other.length.wrapping_sub(1))
            && other.base <= self.base.saturating_add(self.length.wrapping_sub(1))
    }
}

/// One range of the firmware's memory map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MemoryRange {
    /// First byte.
    pub base: u64,
    /// Length in bytes.
    pub length: u64,
    /// [`MemoryRange::RAM`], or anything else for memory that is not free RAM.
    pub kind: u64,
}

impl MemoryRange {
    /// Free RAM, or RAM that the loader itself holds.
    pub const RAM: u64 = 1;
    /// Anything else: firmware, ACPI, MMIO.
    pub const RESERVED: u64 = 2;
}

/// Loader → launch image, at [`HANDOFF_OFFSET`] of the secure loader block.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Handoff {
    /// [`Handoff::MAGIC`].
    pub magic: [u8; 8],
    /// [`Handoff::VERSION`].
    pub version: u32,
    /// Entries used in `components`.
    pub component_count: u32,
    /// Entries used in `memory`.
    pub memory_count: u32,
    /// Entries used in `apic_ids`.
    pub cpu_count: u32,
    /// Processors that firmware names beyond those of `apic_ids`.
    pub cpus_left_out: u32,
    /// Must be zero.
    pub reserved: u32,
    /// The core's file, as staged.
    pub core: Extent,
    /// The canonical manifest, as staged.
    pub manifest: Extent,
    /// RAM for the core and all that must be shielded; aligned to [`REGION_ALIGN`], below 4 GiB.
    pub region: Extent,
    /// RAM for guests; aligned to [`REGION_ALIGN`].
    pub guest_pool: Extent,
    /// ACPI root pointer as firmware told it, or 0.
    pub rsdp: u64,
    /// Local APIC IDs of the processors that firmware calls usable, the boot processor's among them.
    pub apic_ids: [u32; MAX_CPUS],
    /// Guest components in manifest order.
    pub components: [Extent; MAX_COMPONENTS],
    /// The firmware's memory map.
    pub memory: [MemoryRange; MAX_RANGES],
}

impl Handoff {
    /// Marks a hand-off.
    pub const MAGIC: [u8; 8] = *b"DOLMENHO";
    /// Layout version.
    pub const VERSION: u32 = 2;
}

const _: () = assert!(size_of::<Handoff>() <= 0x1000, "the hand-off fits the last page of the block");

/// Head of the core's file: a flat image, linked at [`CORE_VA`], loaded at the base of the region.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CoreHeader {
    /// [`CoreHeader::MAGIC`].
    pub magic: [u8; 8],
    /// [`CoreHeader::VERSION`].
    pub version: u32,
    /// Entry point, as an offset from the start of the file.
    pub entry: u32,
    /// Bytes of the file, this header included.
    pub file_length: u64,
    /// Bytes from the base of the region that the core occupies: the file, then zeroes; page-aligned.
    pub memory_length: u64,
}

impl CoreHeader {
    /// Marks a core.
    pub const MAGIC: [u8; 8] = *b"DOLMCORE";
    /// Layout version.
    pub const VERSION: u32 = 1;
}

/// Most IOMMUs that are shielded; a machine with more is refused.
pub const MAX_IOMMUS: usize = 8;
/// Most PCR banks told apart; a TPM with more active ones is refused.
pub const MAX_BANKS: usize = 8;

/// One AMD-Vi unit as the launch image left it: translating, every device refused.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IommuUnit {
    /// Base of its registers.
    pub registers: u64,
    /// Bytes of its register window.
    pub register_bytes: u64,
    /// Device table, inside the region.
    pub device_table: u64,
    /// Command buffer, inside the region.
    pub command_buffer: u64,
    /// Event log, inside the region.
    pub event_log: u64,
    /// Completion store: one page inside the region.
    pub completion: u64,
}

/// One active PCR bank.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Bank {
    /// TPM_ALG_ID.
    pub algorithm: u16,
    /// Bytes of a digest.
    pub digest_size: u16,
    /// 1: extended with real digests; 0: an algorithm Dolmen lacks, capped with the documented constant.
    pub measured: u32,
}

/// Launch image → core, in shielded memory; its physical address is the core's first argument (RDI).
///
/// At the core's entry: 64-bit mode; CPL 0; IF = 0; GIF = 0; the first 512 GiB mapped one to one, not
/// executable; the region mapped at [`CORE_VA`]; the stack is the launch image's, to be left at once.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CoreHandoff {
    /// [`CoreHandoff::MAGIC`].
    pub magic: [u8; 8],
    /// [`CoreHandoff::VERSION`].
    pub version: u32,
    /// Entries used in `components`.
    pub component_count: u32,
    /// Entries used in `memory`.
    pub memory_count: u32,
    /// Entries used in `iommus`.
    pub iommu_count: u32,
    /// Entries used in `banks`.
    pub bank_count: u32,
    /// Launch-fact bits (`dolmen_abi::LaunchFacts`).
    pub facts: u32,
    /// Entries used in `apic_ids`.
    pub cpu_count: u32,
    /// As the loader said.
    pub cpus_left_out: u32,
    /// The secure loader block.
    pub slb: Extent,
    /// The region; its first `core.length` bytes are the core.
    pub region: Extent,
    /// The core as loaded: `base` = region base, `length` = `CoreHeader::memory_length`.
    pub core: Extent,
    /// The shielded copy of the manifest.
    pub manifest: Extent,
    /// The TCG event log so far.
    pub event_log: Extent,
    /// Bytes that the log may grow to, from `event_log.base`.
    pub event_log_capacity: u64,
    /// The part of the region that nobody uses yet, page-aligned. It ends below the IOMMU's tables, which
    /// lie at the region's end.
    pub free: Extent,
    /// RAM for guests, checked to be RAM outside everything else.
    pub guest_pool: Extent,
    /// ACPI root pointer as firmware told it, or 0: hostile.
    pub rsdp: u64,
    /// Time-stamp counter when the launch image began, after shield, after measure, and at the hand-over.
    pub tsc: [u64; 4],
    /// Bank list of the TPM.
    pub banks: [Bank; MAX_BANKS],
    /// What PCR 17 holds in each bank of the list, as predicted and as read back.
    pub pcr17: [[u8; MAX_DIGEST]; MAX_BANKS],
    /// What PCR 18 holds in each bank of the list, as predicted and as read back.
    pub pcr18: [[u8; MAX_DIGEST]; MAX_BANKS],
    /// IOMMUs.
    pub iommus: [IommuUnit; MAX_IOMMUS],
    /// Local APIC IDs of the processors, as the loader said: hostile.
    pub apic_ids: [u32; MAX_CPUS],
    /// Guest components in manifest order: checked to be RAM, not yet hashed.
    pub components: [Extent; MAX_COMPONENTS],
    /// The firmware's memory map: hostile.
    pub memory: [MemoryRange; MAX_RANGES],
}

impl CoreHandoff {
    /// Marks a core hand-off.
    pub const MAGIC: [u8; 8] = *b"DOLMCOHO";
    /// Layout version.
    pub const VERSION: u32 = 2;
}
