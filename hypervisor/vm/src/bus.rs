//! How interrupts travel between a guest's processors and from its devices to them.
//!
//! Senders hold no lock: a message is matched against the addressing that each vCPU has published, and is
//! posted into the [`Mailbox`] of each vCPU that it addresses. What comes back is the set of vCPUs that may
//! sleep or run elsewhere and have to be told. The owner of a mailbox takes the mail in before each entry to
//! the guest and before it blocks. (SDM vol. 3A, chapter 11; APM vol. 2, chapter 16.)

mod mailbox;
mod message;
mod set;

use core::sync::atomic::{AtomicUsize, Ordering};

pub(crate) use mailbox::x2apic_logical;
pub use mailbox::{Addressing, Mailbox, Posted};
pub use message::{Delivery, Destination, Message};
pub use set::VcpuSet;

/// Most vCPUs of a guest.
pub const MAX_VCPUS: usize = 8;

/// The mailboxes of one guest's vCPUs; a vCPU's index is its APIC ID too.
#[derive(Debug)]
pub struct Bus {
    mailboxes: [Mailbox; MAX_VCPUS],
    count: usize,
    /// Where the search for the receiver of the next lowest-priority message starts.
    turn: AtomicUsize,
}

impl Bus {
    /// A bus of `vcpus` vCPUs, at least one and at most [`MAX_VCPUS`], with empty mailboxes.
    pub fn new(vcpus: usize) -> Self {
        Self {
            mailboxes: [const { Mailbox::new() }; MAX_VCPUS],
            count: vcpus.clamp(1, MAX_VCPUS),
            turn: AtomicUsize::new(0),
        }
    }

    /// How many vCPUs there are.
    pub const fn count(&self) -> usize {
        self.count
    }

    /// The mailbox of vCPU `index`.
    pub fn mailbox(&self, index: usize) -> Option<&Mailbox> {
        self.mailboxes.get(..self.count)?.get(index)
    }

    /// Sends `message` from vCPU `sender`, or from a device. Answers whom to wake: each vCPU whose mailbox
    /// was empty before, but never the sender, which collects its mail before it goes on. Whoever finds a
    /// mailbox empty wakes its owner, so nobody else need.
    pub fn send(&self, message: Message, sender: Option<usize>) -> VcpuSet {
        let mut addressed = self.addressed(message.destination, sender);
        if message.delivery == Delivery::LowestPriority {
            addressed = self.most_willing(addressed);
        }
        let mut woken = VcpuSet::EMPTY;
        for (index, mailbox) in addressed.iter().filter_map(|index| Some((index, self.mailbox(index)?))) {
            if Self::post(mailbox, message) && sender != Some(index) {
                woken = woken.with(index);
            }
        }
        woken
    }

    /// Empties every mailbox, for a guest that starts anew. None of its vCPUs may run meanwhile.
    pub fn reset(&self) {
        for mailbox in &self.mailboxes {
            mailbox.reset();
        }
        self.turn.store(0, Ordering::Relaxed);
    }

    /// A [`Wires`] for devices.
    pub const fn wires(&self) -> Wires<'_> {
        Wires { bus: self, woken: VcpuSet::EMPTY }
    }

    fn addressed(&self, destination: Destination, sender: Option<usize>) -> VcpuSet {
        let mut set = VcpuSet::EMPTY;
        for (index, mailbox) in self.mailboxes.iter().take(self.count).enumerate() {
            let is_addressed = match destination {
                Destination::All => true,
                Destination::Physical(id) => id == u32::MAX || usize::try_from(id) == Ok(index),
                Destination::Logical(wanted) => mailbox.addressing().matches(index, wanted),
                Destination::Sender => sender == Some(index),
                Destination::Others => sender != Some(index),
            };
            if is_addressed {
                set = set.with(index);
            }
        }
        set
    }

    /// The one of `set` that takes interrupts and has the lowest task priority; of several, each in turn.
    fn most_willing(&self, set: VcpuSet) -> VcpuSet {
        let takes = |index: usize| {
            let addressing = self.mailbox(index)?.addressing();
            addressing.takes_interrupts().then_some((addressing.priority_class(), index))
        };
        // Relaxed: a hint for fairness, which orders nothing.
        let turn = self.turn.load(Ordering::Relaxed);
        let rotated =
            (0..self.count).map(|step| turn.wrapping_add(step).checked_rem(self.count).unwrap_or(0));
        let best =
            rotated.filter(|index| set.contains(*index)).filter_map(takes).min_by_key(|(class, _)| *class);
        best.map_or(VcpuSet::EMPTY, |(_, index)| {
            self.turn.store(index.wrapping_add(1), Ordering::Relaxed);
            VcpuSet::EMPTY.with(index)
        })
    }

    /// Whether the mailbox was empty before and has mail now.
    fn post(mailbox: &Mailbox, message: Message) -> bool {
        match message.delivery {
            Delivery::Fixed | Delivery::LowestPriority => {
                mailbox.addressing().takes_interrupts()
                    && mailbox.post_vector(message.vector, message.level_triggered)
            }
            Delivery::Nmi => mailbox.addressing().is_on() && mailbox.post_nmi(),
            Delivery::Init => mailbox.post_init(),
            Delivery::StartUp => mailbox.post_start_up(message.vector),
            Delivery::Unsupported => false,
        }
    }
}

/// How devices send during one access: collects whom to wake.
#[must_use]
#[derive(Debug)]
pub struct Wires<'a> {
    bus: &'a Bus,
    woken: VcpuSet,
}

impl Wires<'_> {
    /// Sends a device's message.
    pub fn send(&mut self, message: Message) {
        self.woken = self.woken.union(self.bus.send(message, None));
    }

    /// Whom to wake for all that was sent. A device's messages wake the vCPU that made the access too,
    /// which costs nothing, as it is awake.
    pub const fn woken(self) -> VcpuSet {
        self.woken
    }
}

#[cfg(test)]
mod tests;
