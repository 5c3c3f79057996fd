//! What the virtual processors of one guest share, used by reference from every processor of the host.
//!
//! Locks are per guest; nobody holds one while the guest runs. Order: board, then whatever the host locks
//! (scheduler), of which console and TPM desk are leaves.

use core::sync::atomic::{AtomicU64, Ordering};

use dolmen_arch::VmExit;
use spin::{Mutex, MutexGuard};

use crate::board::{Board, BoardConfig};
use crate::bus::{Bus, MAX_VCPUS as VCPU_SLOTS};
use crate::manifest::MAX_VCPUS;

/// One guest, but for its memory and its processors.
#[derive(Debug)]
pub struct Guest {
    board: Mutex<Board>,
    bus: Bus,
    sleepers: Sleepers,
    vcpus: u32,
    counters: [Counters; VCPU_SLOTS],
}

const _: () = assert!(MAX_VCPUS <= 8);

/// Bit n: virtual processor n can be woken by nothing but another one. Above these bits: how often one woke up.
#[derive(Debug)]
struct Sleepers(AtomicU64);

impl Sleepers {
    /// One wake-up more.
    const WAKE_UP: u64 = 1 << 32;

    fn fall_asleep(&self, index: usize) {
        self.0.fetch_or(bit(index), Ordering::SeqCst);
    }

    /// Each changes its own bit alone, so what it finds of that stands.
    fn wake_up(&self, index: usize) {
        if self.now() & bit(index) != 0 {
            self.0.fetch_add(Self::WAKE_UP.wrapping_sub(bit(index)), Ordering::SeqCst);
        }
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// Forgets all.
    fn reset(&self) {
        self.0.store(0, Ordering::SeqCst);
    }
}

impl Guest {
    /// A guest of `vcpus` virtual processors, as it is after power-on.
    pub fn new(config: BoardConfig, vcpus: u32) -> Self {
        Self {
            board: Mutex::new(Board::new(config)),
            bus: Bus::new(usize::try_from(vcpus).unwrap_or(VCPU_SLOTS)),
            sleepers: Sleepers(AtomicU64::new(0)),
            vcpus,
            counters: [const { Counters::new() }; VCPU_SLOTS],
        }
    }

    /// Makes it as it is after power-on, but for its counters. None of its processors may run meanwhile.
    pub fn reset(&self, config: BoardConfig) {
        *self.board.lock() = Board::new(config);
        self.bus.reset();
        self.sleepers.reset();
    }

    /// The board, locked.
    pub fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock()
    }

    /// How interrupts travel.
    pub const fn bus(&self) -> &Bus {
        &self.bus
    }

    /// How many virtual processors it has.
    pub const fn vcpus(&self) -> u32 {
        self.vcpus
    }

    /// What virtual processor `index` has exited for so far.
    pub fn counters(&self, index: usize) -> Option<&Counters> {
        self.counters.get(index)
    }

    /// Notes that virtual processor `index` sleeps so that only another one can wake it; whether all do, for ever.
    ///
    /// Each wakes up before it takes its mail. So if nobody woke up while the mailboxes were seen empty, all have slept
    /// all the while, and nobody has sent anything.
    pub(crate) fn fall_asleep(&self, index: usize) -> bool {
        self.sleepers.fall_asleep(index);
        let all = 1u64.checked_shl(self.vcpus).unwrap_or(0).wrapping_sub(1);
        let before = self.sleepers.now();
        let has_mail = |index| self.bus.mailbox(index).is_some_and(|mailbox| !mailbox.is_empty());
        before & all == all && !(0..self.bus.count()).any(has_mail) && self.sleepers.now() == before
    }

    /// Notes that virtual processor `index` runs.
    pub(crate) fn wake_up(&self, index: usize) {
        self.sleepers.wake_up(index);
    }
}

fn bit(index: usize) -> u64 {
    u32::try_from(index).ok().and_then(|index| 1u64.checked_shl(index)).unwrap_or(0)
}

/// What an exit is counted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum ExitKind {
    /// A physical interrupt, NMI, SMI or INIT.
    Host,
    /// The moment came to deliver an interrupt.
    Window,
    /// CPUID.
    Cpuid,
    /// RDMSR or WRMSR.
    Msr,
    /// A port instruction.
    Port,
    /// HLT.
    Halt,
    /// A hypercall.
    Hypercall,
    /// Access to device memory.
    Device,
    /// A control register or XSETBV.
    Control,
    /// An exception or a refused instruction.
    Fault,
    /// Everything else.
    Other,
}

impl ExitKind {
    /// All kinds, in the order of their counters.
    pub const ALL: [Self; 11] = [
        Self::Host,
        Self::Window,
        Self::Cpuid,
        Self::Msr,
        Self::Port,
        Self::Halt,
        Self::Hypercall,
        Self::Device,
        Self::Control,
        Self::Fault,
        Self::Other,
    ];

    /// The kind of one exit.
    #[inline(always)]
    pub const fn of(exit: &VmExit) -> Self {
        match exit {
            VmExit::HostInterrupt | VmExit::HostNmi | VmExit::HostSmi | VmExit::HostInit => Self::Host,
            VmExit::InterruptWindow | VmExit::Stepped | VmExit::NmiReturn => Self::Window,
            VmExit::Cpuid { .. } => Self::Cpuid,
            VmExit::ReadMsr { .. } | VmExit::WriteMsr { .. } => Self::Msr,
            VmExit::Port(_) => Self::Port,
            VmExit::Halt => Self::Halt,
            VmExit::Hypercall => Self::Hypercall,
            VmExit::NestedFault { .. } => Self::Device,
            VmExit::WriteControl(_) | VmExit::ReadControl(_) | VmExit::WriteXcr { .. } => Self::Control,
            VmExit::Exception { .. }
            | VmExit::Virtualisation
            | VmExit::HiddenFeature
            | VmExit::ReadCounter => Self::Fault,
            VmExit::Pause
            | VmExit::CacheFlush
            | VmExit::Shutdown
            | VmExit::TaskSwitch
            | VmExit::InvalidState
            | VmExit::Unknown { .. } => Self::Other,
        }
    }
}

/// Exits of one virtual processor. Only the processor that runs it counts; anybody may read.
#[derive(Debug)]
pub struct Counters([AtomicU64; ExitKind::ALL.len()]);

impl Counters {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; ExitKind::ALL.len()])
    }

    /// Exits of one kind.
    pub fn get(&self, kind: ExitKind) -> u64 {
        self.slot(kind).map_or(0, |slot| slot.load(Ordering::Relaxed))
    }

    /// One more: by its only writer, so load and store are enough.
    #[inline(always)]
    pub(crate) fn count(&self, kind: ExitKind) {
        if let Some(slot) = self.slot(kind) {
            slot.store(slot.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
    }

    #[expect(clippy::as_conversions, reason = "a fieldless enum's discriminant has no From")]
    fn slot(&self, kind: ExitKind) -> Option<&AtomicU64> {
        self.0.get(kind as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::merges;

    #[test]
    fn every_kind_has_a_counter_of_its_own() {
        let counters = Counters::new();
        for (count, kind) in (1..).zip(ExitKind::ALL) {
            (0..count).for_each(|_| counters.count(kind));
        }
        for (count, kind) in (1..).zip(ExitKind::ALL) {
            assert_eq!(counters.get(kind), count, "{kind:?}");
        }
    }

    #[test]
    fn after_a_reset_nothing_of_the_last_run_is_left_but_its_counters() {
        let first =
            BoardConfig { tsc_khz: 1, ram_bytes: 0, wall_clock_ns: 0, created_at: 0, second_uart: false };
        let config = BoardConfig { created_at: 7, ..first };
        let guest = Guest::new(first, 2);
        guest.counters(1).unwrap().count(ExitKind::Msr);
        let message = crate::bus::Message {
            destination: crate::bus::Destination::All,
            delivery: crate::bus::Delivery::Nmi,
            vector: 0,
            level_triggered: false,
        };
        assert!(!guest.bus().send(message, None).is_empty());
        guest.fall_asleep(0);
        guest.reset(config);
        assert!(!guest.fall_asleep(1), "processor 0 still sleeps");
        assert!(!guest.bus().send(message, None).is_empty(), "old mail is left");
        assert_eq!(guest.board().config().created_at, 7);
        assert_eq!(guest.counters(1).unwrap().get(ExitKind::Msr), 1);
    }

    #[test]
    fn a_guest_sleeps_for_ever_when_all_its_processors_do() {
        let config =
            BoardConfig { tsc_khz: 1, ram_bytes: 0, wall_clock_ns: 0, created_at: 0, second_uart: false };
        let guest = Guest::new(config, 2);
        assert!(!guest.fall_asleep(1));
        guest.wake_up(1);
        assert!(!guest.fall_asleep(0));
        assert!(guest.fall_asleep(1));
    }

    /// What a processor does on its way to sleep or back; each touches one word once.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        FallAsleep(usize),
        WakeUp(usize),
        Take(usize),
        Post(usize),
        LookBefore,
        LookIntoBox(usize),
        LookAfter,
    }

    /// Processor 0 asks whether all sleep for ever, while processor 1 wakes up, takes its mail, sends some to 0 and sleeps
    /// again. In every order of the steps somebody has mail, so nobody may say so.
    #[test]
    fn in_no_interleaving_does_a_guest_with_mail_sleep_for_ever() {
        use Step::{FallAsleep, LookAfter, LookBefore, LookIntoBox, Post, Take, WakeUp};
        let asks = [FallAsleep(0), LookBefore, LookIntoBox(0), LookIntoBox(1), LookAfter];
        let lives = [WakeUp(1), Take(1), Post(0), FallAsleep(1)];
        let orders = merges(&[&asks, &lives]);
        assert_eq!(orders.len(), 126);
        for order in orders {
            let (sleepers, mut mail) = (Sleepers(AtomicU64::new(0)), [false, true]);
            sleepers.fall_asleep(1);
            let (mut seen, mut before, mut after) = ([true; 2], 0, 0);
            for step in &order {
                match *step {
                    FallAsleep(index) => sleepers.fall_asleep(index),
                    WakeUp(index) => sleepers.wake_up(index),
                    Take(index) => mail[index] = false,
                    Post(index) => mail[index] = true,
                    LookBefore => before = sleepers.now(),
                    LookIntoBox(index) => seen[index] = mail[index],
                    LookAfter => after = sleepers.now(),
                }
            }
            let says_so = before & 0b11 == 0b11 && seen == [false; 2] && after == before;
            assert!(!says_so, "{order:?}");
        }
    }
}
