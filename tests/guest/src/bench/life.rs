//! A guest that starts another one, which leaves at once: what a whole life costs.

use dolmen_guest::abi::GuestState;
use dolmen_guest::{Client, GuestList, vmmcall::Direct};

use super::tell;
use crate::{apic, cpu, resident, say};

/// Lives of the other guest.
const LIVES: usize = 9;
/// The other guest.
const NAME: &str = "leaves";
/// Ticks between two looks: a thousandth of what is measured.
const PAUSE: u32 = 20_000;
/// Looks before the other guest is given up.
const PATIENCE: u32 = 1_000_000;

pub(super) fn measure() {
    let mut hypervisor = resident::client();
    let mut ticks = [0u64; LIVES];
    for (lives, slot) in (1..).zip(&mut ticks) {
        let start = cpu::read_tsc();
        if hypervisor.start_guest(NAME).is_err() {
            say!("FAIL it does not start");
            return;
        }
        if !(0..PATIENCE).any(|_| has_lived(&mut hypervisor, lives)) {
            say!("FAIL it does not end");
            return;
        }
        *slot = cpu::read_tsc() - start;
    }
    tell("life", &mut ticks);
}

/// Whether the other guest's life of this number is over. Sleeps a moment first: somebody else may need the processor.
fn has_lived(hypervisor: &mut Client<Direct>, lives: u32) -> bool {
    apic::start_timer(PAUSE);
    cpu::wait_for_interrupt();
    let mut buffer = [0; GuestList::BYTES];
    let Ok(list) = hypervisor.guests(&mut buffer) else { return false };
    list.guests()
        .any(|guest| guest.name() == NAME && guest.starts == lives && guest.state() == GuestState::STOPPED)
}
