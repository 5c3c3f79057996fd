//! `cargo xtask`: the one entry to building, running, testing and measuring Dolmen.

mod place;
mod process;
mod ui;

fn main() {}
