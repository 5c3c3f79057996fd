//! The hypervisor.
#![no_std]
#![no_main]

mod console;
mod stop;

use dolmen_memory::Hpa;

/// The first Rust of the core; `handoff` is the physical address of the launch image's hand-off.
#[expect(unsafe_code, reason = "the one name that the entry stub in `machine` calls")]
#[unsafe(no_mangle)]
extern "C" fn core_main(handoff: u64) -> ! {
    let _ = Hpa::new(handoff);
    console::open();
    log::info!(target: "core", "running handoff={handoff:#x}");
    stop::stop(stop::Reason::Panic)
}
