//! The loader as a Multiboot kernel: for GRUB (`multiboot` and `multiboot2`) and for `qemu -kernel`.
//!
//! Modules: launch image, core, manifest, then the guests' components in the manifest's order. Words of the
//! command line: `region_mib=<number>`; in test builds `attack=<name>` (see `dolmen_loader::hostile`).
//!
//! The file is a 64-bit ELF. QEMU takes no 64-bit ELF as a Multiboot kernel, so the header carries load
//! addresses (flag 16), and `layout.ld` keeps file and memory in step: both QEMU and GRUB then load the file
//! that Cargo builds by those addresses, and GRUB's `multiboot2` loads it as the ELF that it is.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod start;

#[cfg(all(target_os = "none", not(test)))]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    dolmen_loader::console::stop(format_args!("a fault of the loader itself: {info}; report this"))
}

/// Elsewhere than on bare metal there is nothing to start.
#[cfg(not(target_os = "none"))]
fn main() {}
