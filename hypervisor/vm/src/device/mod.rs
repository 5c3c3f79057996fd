//! The devices of a guest's board. Each is a state machine: no I/O, no time of its own, no memory.

mod calendar;
pub mod cmos;
pub mod io_apic;
pub mod local_apic;
pub mod pci;
pub mod power;
pub mod timer;
pub mod uart;
