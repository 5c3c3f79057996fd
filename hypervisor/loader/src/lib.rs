//! The untrusted loader: what runs before the dynamic launch.
//!
//! It finds the boot files, checks that the machine can do a dynamic launch, places everything in RAM,
//! parks the other processors and executes `SKINIT`. Nothing that runs afterwards believes a word of it: a
//! wrong loader can only make the launch fail or the measurement differ.
//!
//! Two programs share all of this: `dolmen-loader-uefi`, a UEFI application, and `dolmen-loader-multiboot`,
//! for GRUB and for `qemu -kernel`. Decisions live in modules without unsafe code that run under
//! `cargo test`; [`hardware`] touches the machine; [`launch`] is the way that both programs end in.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "tests may overflow loudly")
)]

pub mod check;
pub mod config;
pub mod console;
pub mod cpus;
pub mod hardware;
#[cfg(feature = "hostile")]
pub mod hostile;
pub mod image;
pub mod launch;
pub mod map;
pub mod multiboot;
pub mod plan;
pub mod rsdp;
pub mod staged;
