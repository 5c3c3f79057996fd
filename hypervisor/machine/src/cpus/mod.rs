//! The processors: which one this is, and what each has for itself.
//!
//! Every processor has a [`Block`]; its GS base leads there from the first instruction of the core on that
//! processor, and the world switch brings it back, since the host's control block has it.
#![expect(unsafe_code, reason = "the block is found through a segment base")]
// UNSAFETY: the blocks are statics, reached by `&` only; the one part that is not atomic is written by one
// processor before the other one, or anybody, looks.

mod call;
mod likeness;
mod start;
mod trampoline;

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

pub use dolmen_arch::{CpuId, CpuSet, MAX_CPUS};

use crate::segments::{Tables, to_u64};

pub use call::{
    Silent, WayOut, claim_way_out, flush_everywhere, flush_generation, kick, park, park_others, relax,
};
pub(crate) use call::{is_left_by_another, serve};
pub use start::{StartError, StartSlot, StartedCpu};

/// What one processor has for itself.
#[repr(C)]
pub(crate) struct Block {
    /// Its number. First, because [`this`] reads it there.
    index: AtomicU32,
    apic_id: AtomicU32,
    /// Up to which flush it has dropped its translations.
    flushed: AtomicU64,
    /// Interrupts that it has taken.
    interrupts: AtomicU64,
    tables: UnsafeCell<Tables>,
}

// SAFETY: all but the tables is atomic; `tables` says who may use those.
unsafe impl Sync for Block {}

impl Block {
    const fn new() -> Self {
        Self {
            index: AtomicU32::new(0),
            apic_id: AtomicU32::new(0),
            flushed: AtomicU64::new(0),
            interrupts: AtomicU64::new(0),
            tables: UnsafeCell::new(Tables::EMPTY),
        }
    }

    /// Its descriptor tables: filled once, by [`crate::segments::load`] on their own processor.
    pub(crate) const fn tables(&self) -> *mut Tables {
        self.tables.get()
    }

    /// Counts an interrupt that it takes.
    pub(crate) fn count_interrupt(&self) {
        self.interrupts.fetch_add(1, Ordering::Relaxed);
    }

    /// How many interrupts it has taken.
    pub(crate) fn interrupts(&self) -> u64 {
        self.interrupts.load(Ordering::Relaxed)
    }

    /// Its address, for GS.
    pub(crate) fn address(&self) -> u64 {
        to_u64((&raw const *self).expose_provenance())
    }
}

/// All blocks; zeroes until a processor is started, but for the first one's, which zeroes describe.
pub(crate) static BLOCKS: [Block; MAX_CPUS] = [const { Block::new() }; MAX_CPUS];

/// Processors that work: the first ones.
static COUNT: AtomicU32 = AtomicU32::new(1);

/// The processor that executes this.
#[must_use]
pub fn this() -> CpuId {
    usize::try_from(own_number()).ok().and_then(CpuId::new).unwrap_or(CpuId::FIRST)
}

/// The number in this processor's block.
#[inline(always)]
pub(crate) fn own_number() -> u32 {
    let number: u32;
    // SAFETY: GS base is the address of a block on every processor that executes the core.
    unsafe { asm!("mov {:e}, gs:[0]", out(reg) number, options(nostack, preserves_flags, readonly)) };
    number
}

/// How many processors work.
#[must_use]
pub fn count() -> usize {
    usize::try_from(COUNT.load(Ordering::Acquire)).unwrap_or(1)
}

/// The processors that work.
#[must_use]
pub fn all() -> CpuSet {
    CpuSet::first(count())
}

/// The local APIC ID of a processor that works.
#[must_use]
pub fn apic_id(cpu: CpuId) -> u32 {
    block(cpu).apic_id.load(Ordering::Relaxed)
}

pub(crate) fn block(cpu: CpuId) -> &'static Block {
    const { assert!(BLOCKS.len() == MAX_CPUS, "a block for each processor there can be") };
    let [first, ..] = &BLOCKS;
    BLOCKS.get(cpu.index()).unwrap_or(first)
}
