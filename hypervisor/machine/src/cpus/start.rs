//! Starts the processors that the loader has parked (APM vol. 2, 15.27.8).
//!
//! They wait in the INIT state since before the launch. A start-up interrupt wakes one at a time, with GIF clear and
//! the bits of VM_CR set that SKINIT set on the boot processor; it then becomes like the boot processor: same tables
//! and modes, same memory types, same APIC mode, same time. Whatever does not, stops the launch.
#![expect(unsafe_code, reason = "a processor begins to execute")]
// UNSAFETY: processors start one by one; what is passed to one is in place before its start-up interrupt.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use dolmen_drtm::handoff::MAX_CPUS as LISTED;
use dolmen_drtm::start_page;
use dolmen_memory::Hpa;

use super::likeness::Likeness;
use super::trampoline::{StartPage, Way};
use super::{COUNT, CpuId, MAX_CPUS, block, call, relax};
use crate::clock::Clock;
use crate::extension::Extension;
use crate::interrupt::Window;
use crate::own::Machine;
use crate::paging::{PagingError, STACK_BYTES};
use crate::segments::{self, FaultStacks, to_u64};
use crate::{apic, cpu};

const _: () = assert!(LISTED == MAX_CPUS);

/// Why not every processor works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// No page of the first MiB is RAM that can be used.
    NoStartPage,
    /// The region is used up.
    OutOfFrames,
    /// The boot processor's registers that route addresses cannot be read.
    NoRegisters,
    /// The local APIC, in its mode, cannot send to this APIC ID.
    Unreachable(u32),
    /// The processor with this APIC ID did not come up in time.
    Silent(u32),
    /// Its registers route addresses in another way than the boot processor's.
    Unlike(u32),
    /// It cannot run guests as the boot processor can.
    Extension(u32),
    /// Its time-stamp counter is off by so many ticks.
    Time(u32, i64),
}

impl From<PagingError> for StartError {
    fn from(error: PagingError) -> Self {
        match error {
            PagingError::OutOfFrames | PagingError::TooManyDevices => Self::OutOfFrames,
        }
    }
}

/// What a processor that was started works with; never leaves it.
#[derive(Debug)]
pub struct StartedCpu<E: Extension> {
    /// The extension is on here.
    pub cpu: E::Cpu,
    /// Interrupts can be let in here.
    pub window: Window,
}

/// What the boot processor passes to the one that it starts.
struct Parcel<E: Extension> {
    extension: &'static E,
    frames: E::Frames,
    stacks: FaultStacks,
    likeness: Likeness,
    apic_base: u64,
    main: fn(StartedCpu<E>) -> !,
}

/// Where it lies meanwhile.
pub struct StartSlot<E: Extension>(UnsafeCell<Option<Parcel<E>>>);

impl<E: Extension> StartSlot<E> {
    /// Nobody starts.
    pub(crate) const fn new() -> Self {
        Self(UnsafeCell::new(None))
    }
}

impl<E: Extension> core::fmt::Debug for StartSlot<E> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("StartSlot").finish_non_exhaustive()
    }
}

// SAFETY: one processor starts at a time; the boot processor fills the slot before the start-up interrupt, the one
// that starts empties it, and the boot processor waits for that before it looks again.
unsafe impl<E: Extension> Sync for StartSlot<E> {}

/// How far the processor is that starts.
static STATE: AtomicU32 = AtomicU32::new(WAITING);
const WAITING: u32 = 0;
const ARRIVED: u32 = 1;
const TIMED: u32 = 2;
const READY: u32 = 3;
const UNLIKE: u32 = 4;
const NO_EXTENSION: u32 = 5;

/// A question for the time, and the answer: its number, and what the counter read.
static ASKED: AtomicU64 = AtomicU64::new(0);
static ANSWERED: AtomicU64 = AtomicU64::new(0);
static ANSWER: AtomicU64 = AtomicU64::new(0);
/// Questions; the one with the quickest answer counts.
const QUESTIONS: u64 = 32;
const ACCEPTED: u64 = u64::MAX;
const REFUSED: u64 = u64::MAX - 1;

impl Machine {
    /// Starts the processors of the hand-off's list, but for this one; each goes on with `main`. After
    /// [`Machine::enable`].
    ///
    /// # Errors
    /// [`StartError`]: some may work then, and are parked on the way out.
    pub fn start_cpus<E: Extension>(
        &mut self,
        extension: &'static E,
        clock: Clock,
        main: fn(StartedCpu<E>) -> !,
    ) -> Result<(), StartError> {
        let boot = apic::identity();
        block(CpuId::FIRST).apic_id.store(boot, Ordering::Relaxed);
        call::set_patience(clock.tsc_khz.saturating_mul(1000));
        let likeness = Likeness::read().ok_or(StartError::NoRegisters)?;
        let ids = self.handoff().apic_ids;
        let listed = usize::try_from(self.handoff().cpu_count).unwrap_or(0);
        let others = || ids.iter().take(listed).copied().filter(|id| *id != boot).take(MAX_CPUS - 1);
        if others().next().is_none() {
            return Ok(());
        }
        let at = self.find_start_page(&likeness).ok_or(StartError::NoStartPage)?;
        self.space.map_start_page(Hpa::new(at.into()))?;
        // SAFETY: RAM by the processor's registers, of the first MiB, where no extent of the hand-off may lie.
        let page = unsafe { StartPage::new(at, self.window) };
        let mut result = Ok(());
        for (index, apic_id) in (1..).zip(others()) {
            let Some(cpu) = CpuId::new(index) else { break };
            result = self.start_one((cpu, apic_id), (extension, main), &likeness, &page);
            if result.is_err() {
                break;
            }
        }
        page.wipe();
        self.space.unmap_start_page();
        result?;
        call::flush_everywhere()
            .map_err(|silent| StartError::Silent(silent.0.lowest().map_or(boot, super::apic_id)))
    }

    /// A page of the first MiB that the firmware's map calls RAM and the processor's registers too.
    fn find_start_page(&self, likeness: &Likeness) -> Option<u32> {
        let handoff = self.handoff();
        let ranges = usize::try_from(handoff.memory_count).ok()?;
        let memory = handoff.memory.get(..ranges)?;
        let [first, second, ..] = likeness.fixed;
        start_page::find(memory, |page| likeness.map.start_page(page, [first, second]).is_ok())
    }

    fn start_one<E: Extension>(
        &mut self,
        (cpu, apic_id): (CpuId, u32),
        (extension, main): (&'static E, fn(StartedCpu<E>) -> !),
        likeness: &Likeness,
        page: &StartPage,
    ) -> Result<(), StartError> {
        if !apic::can_reach(apic_id) {
            return Err(StartError::Unreachable(apic_id));
        }
        let offset = to_u64(cpu.index()).wrapping_sub(1).wrapping_mul(STACK_BYTES);
        let stacks = self.space.map_stacks(cpu, Hpa::new(self.stacks.get().wrapping_add(offset)))?;
        let frames = extension.frames(self.region()).map_err(|_| StartError::OutOfFrames)?;
        let (likeness, apic_base) = (*likeness, apic::base());
        let parcel = Parcel { extension, frames, stacks: stacks.faults, likeness, apic_base, main };
        // SAFETY: no processor starts at the moment, so nobody else looks.
        unsafe { E::starting().0.get().write(Some(parcel)) };
        let block = block(cpu);
        block.index.store(u32::try_from(cpu.index()).unwrap_or(0), Ordering::Relaxed);
        block.apic_id.store(apic_id, Ordering::Relaxed);
        STATE.store(WAITING, Ordering::Release);
        ANSWERED.store(0, Ordering::Relaxed);
        ASKED.store(0, Ordering::Release);
        page.fill(Way { stack: stacks.main, block: block.address(), entry: arrived::<E> });
        let wake = || {
            apic::send_start_up(apic_id, page.number());
            wait_for(apic_id, |state| state != WAITING)
        };
        // The second one is for a processor that missed the first; any other takes no notice.
        wake().or_else(|_| wake())?;
        wait_for(apic_id, |state| state >= TIMED)?;
        match STATE.load(Ordering::Acquire) {
            UNLIKE => return Err(StartError::Unlike(apic_id)),
            NO_EXTENSION => return Err(StartError::Extension(apic_id)),
            _ => {}
        }
        let verdict = compare_time(apic_id);
        ASKED.store(if verdict.is_ok() { ACCEPTED } else { REFUSED }, Ordering::Release);
        verdict?;
        wait_for(apic_id, |state| state == READY)?;
        COUNT.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }
}

/// Waits until the processor that starts is where `is_there` says.
fn wait_for(apic_id: u32, is_there: impl Fn(u32) -> bool) -> Result<(), StartError> {
    wait_until(apic_id, || is_there(STATE.load(Ordering::Acquire)))
}

/// Waits for the processor that starts, five seconds at most: milliseconds are enough, but where processors are
/// emulated on fewer that have much to do, one may stand still for more than a second.
fn wait_until(apic_id: u32, is_done: impl Fn() -> bool) -> Result<(), StartError> {
    let has_come = (0..5).any(|_| call::wait_until(&is_done));
    if has_come { Ok(()) } else { Err(StartError::Silent(apic_id)) }
}

/// Asks for the other processor's time, which must lie between ours before and after, give or take as much again.
fn compare_time(apic_id: u32) -> Result<(), StartError> {
    let mut best = (u64::MAX, 0i64);
    for question in 1..=QUESTIONS {
        let before = cpu::read_tsc_in_order();
        ASKED.store(question, Ordering::Release);
        wait_until(apic_id, || ANSWERED.load(Ordering::Acquire) == question)?;
        let after = cpu::read_tsc_in_order();
        let off = ANSWER.load(Ordering::Relaxed).wrapping_sub(before).cast_signed();
        best = best.min((after.wrapping_sub(before), off));
    }
    let (trip, off) = best;
    let trip = i64::try_from(trip).unwrap_or(i64::MAX);
    let is_alike = (trip.wrapping_neg()..=trip.saturating_mul(2)).contains(&off);
    if is_alike { Ok(()) } else { Err(StartError::Time(apic_id, off)) }
}

/// The first Rust on a processor that was started, on its own stack; GS leads to its block.
extern "C" fn arrived<E: Extension>() -> ! {
    // SAFETY: the slot was filled for this processor before it was started, and nobody else looks now.
    let parcel = unsafe { (*E::starting().0.get()).take() };
    STATE.store(ARRIVED, Ordering::Release);
    let joined = parcel.ok_or(NO_EXTENSION).and_then(|parcel| Ok((parcel.main, join(parcel)?)));
    match joined {
        Ok((main, cpu)) => main(cpu),
        Err(why) => {
            STATE.store(why, Ordering::Release);
            cpu::halt_for_ever()
        }
    }
}

/// Becomes like the boot processor.
fn join<E: Extension>(parcel: Parcel<E>) -> Result<StartedCpu<E>, u32> {
    // SAFETY: once on this processor, which came here with interrupts off and GIF clear; the boot processor has
    // filled the interrupt table and mapped the stacks.
    unsafe { segments::load(parcel.stacks) };
    // SAFETY: the boot processor's APIC is enabled; once here.
    unsafe { apic::enable_like(parcel.apic_base) };
    if !parcel.likeness.adopt() {
        return Err(UNLIKE);
    }
    // SAFETY: once here; the segments are final; GIF and IF are clear.
    let cpu = unsafe { parcel.extension.enable(parcel.frames) }.map_err(|_| NO_EXTENSION)?;
    STATE.store(TIMED, Ordering::Release);
    answer_time();
    // SAFETY: segments and APIC are set up and the extension is on.
    let window = unsafe { Window::new(E::GATE) };
    STATE.store(READY, Ordering::Release);
    Ok(StartedCpu { cpu, window })
}

/// Answers questions for the time until the boot processor is content.
fn answer_time() {
    let mut answered = 0;
    loop {
        match ASKED.load(Ordering::Acquire) {
            ACCEPTED => return,
            REFUSED => cpu::halt_for_ever(),
            question if question != answered => {
                ANSWER.store(cpu::read_tsc_in_order(), Ordering::Relaxed);
                ANSWERED.store(question, Ordering::Release);
                answered = question;
            }
            _ => relax(),
        }
    }
}
