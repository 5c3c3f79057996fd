//! Why a guest stopped running, in words that fit every vendor. The definitions live beside the decoders.

pub use dolmen_arch::{ControlRegister, Direction, Event, FaultAccess, PortAccess, Vector, VmExit, Width};
