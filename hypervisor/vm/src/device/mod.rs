//! The devices of a guest's board. Each is a state machine: no I/O, no time of its own, no memory.

pub mod local_apic;
pub mod uart;
