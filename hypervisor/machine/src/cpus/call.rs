//! Calls from one processor to others: to look up, to drop translations, to stand still for good.
//!
//! A call is an interrupt that only makes the other processor look: what is wanted stands in memory, so none is ever
//! lost. It is seen when a guest exits, when a wait ends, and by whoever waits in [`relax`] for something else.
#![expect(unsafe_code, reason = "CR3 is reloaded")]
// UNSAFETY: CR3 gets the value that it has.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{CpuId, CpuSet, all, block, this};
use crate::{apic, cpu};

/// How many times translations had to be dropped so far.
static FLUSHES: AtomicU64 = AtomicU64::new(0);
/// Who is on the way out, plus one; 0 for nobody.
static LEAVER: AtomicU32 = AtomicU32::new(0);
/// Who stands still for good.
static PARKED: AtomicU32 = AtomicU32::new(0);
/// Ticks that another processor gets for its answer: one second.
static PATIENCE: AtomicU64 = AtomicU64::new(0);

/// Says how fast the time-stamp counter is.
pub(crate) fn set_patience(ticks: u64) {
    PATIENCE.store(ticks, Ordering::Relaxed);
}

/// Makes `cpu` look: its guest exits, its wait ends. Nothing happens on a processor that does not work.
pub fn kick(cpu: CpuId) {
    if cpu != this() && all().contains(cpu) {
        apic::send_call(super::apic_id(cpu));
    }
}

/// A number that grows whenever guests' translations must be dropped: a virtual processor that was last entered
/// under another one flushes.
#[must_use]
pub fn flush_generation() -> u64 {
    FLUSHES.load(Ordering::Acquire)
}

/// These processors did not answer within a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silent(pub CpuSet);

/// Drops translations on all processors, the host's own at once and those of guests before each is entered again.
/// On return no guest runs on a translation from before the call. Nobody calls this who holds a lock for which
/// others wait in any other way than [`relax`].
///
/// # Errors
/// [`Silent`]: the caller must not reuse the memory.
pub fn flush_everywhere() -> Result<(), Silent> {
    let generation = FLUSHES.fetch_add(1, Ordering::AcqRel).wrapping_add(1);
    serve();
    let is_behind = |cpu: &CpuId| block(*cpu).flushed.load(Ordering::Acquire) < generation;
    let behind = || others().into_iter().filter(is_behind).collect::<CpuSet>();
    behind().into_iter().for_each(kick);
    wait_until(|| behind().is_empty());
    let silent = behind();
    if silent.is_empty() { Ok(()) } else { Err(Silent(silent)) }
}

/// A turn of a wait for another processor: does what others want of this one meanwhile.
pub fn relax() {
    core::hint::spin_loop();
    serve();
}

/// Does what was asked of this processor.
pub(crate) fn serve() {
    if is_left_by_another() {
        park();
    }
    let generation = FLUSHES.load(Ordering::Acquire);
    let own = block(this());
    if own.flushed.load(Ordering::Relaxed) < generation {
        // SAFETY: the tables that are in force stay so; no entry is global, so this drops every translation.
        unsafe { cpu::write_cr3(cpu::read_cr3()) };
        own.flushed.store(generation, Ordering::Release);
    }
}

/// Whose the way out is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WayOut {
    /// This processor's, from now on.
    Ours,
    /// This processor's, which failed on it.
    OursAgain,
    /// Another one's.
    Another,
}

/// Claims the way out. One processor gets it.
#[must_use]
pub fn claim_way_out() -> WayOut {
    let own = mark(this());
    match LEAVER.compare_exchange(0, own, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => WayOut::Ours,
        Err(leaver) if leaver == own => WayOut::OursAgain,
        Err(_) => WayOut::Another,
    }
}

/// Makes all other processors stand still for good: by a call, then by a non-maskable interrupt. Answers those that
/// do not. The way out is this processor's.
pub fn park_others() -> CpuSet {
    let missing = || others().difference(CpuSet::from_bits(PARKED.load(Ordering::Acquire)));
    for send in [apic::send_call, apic::send_nmi] {
        missing().into_iter().for_each(|cpu| send(super::apic_id(cpu)));
        wait_until(|| missing().is_empty());
    }
    missing()
}

/// Stands still for good. Uses no memory afterwards, stack included.
pub fn park() -> ! {
    PARKED.fetch_or(CpuSet::only(this()).bits(), Ordering::AcqRel);
    cpu::halt_for_ever()
}

/// Whether another processor is on the way out.
pub(crate) fn is_left_by_another() -> bool {
    let leaver = LEAVER.load(Ordering::Acquire);
    leaver != 0 && leaver != mark(this())
}

fn others() -> CpuSet {
    all().difference(CpuSet::only(this()))
}

fn mark(cpu: CpuId) -> u32 {
    u32::try_from(cpu.index()).unwrap_or(0).wrapping_add(1)
}

/// Waits for `is_done`, a second at most; serves others meanwhile. Whether it is done.
pub(super) fn wait_until(is_done: impl Fn() -> bool) -> bool {
    let since = cpu::read_tsc();
    let patience = PATIENCE.load(Ordering::Relaxed);
    while !is_done() {
        if cpu::read_tsc().wrapping_sub(since) >= patience {
            return is_done();
        }
        relax();
    }
    true
}
