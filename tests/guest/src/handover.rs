//! Tells what the loader handed over, line by line as `handover <what> <values>`; who started the guest compares.

use crate::cpu::read32;
use crate::{say, start};

/// Tells everything.
pub(crate) fn tell(at: u64) {
    let [eax, ebx, cr0, cr4, eflags, cs, ss, ds, es, fs, gs, copied] = start::entered();
    say!("handover registers eax={eax:#x} ebx={ebx:#x}");
    say!("handover control cr0={cr0:#x} cr4={cr4:#x} eflags={eflags:#x}");
    say!(
        "handover segments cs={cs:#x} ss={ss:#x} ds={ds:#x} es={es:#x} fs={fs:#x} gs={gs:#x} ok={}",
        copied == eax
    );
    if eax == start::MULTIBOOT {
        multiboot(at)
    } else {
        pvh(at)
    }
    say!("handover end");
}

fn wide(at: u64) -> u64 {
    u64::from(read32(at)) | u64::from(read32(at + 4)) << 32
}

fn show(what: &str, at: u64) {
    let mut bytes = [0; 160];
    let text = core::str::from_utf8(start::text(at, &mut bytes)).unwrap_or("?");
    say!("handover {what} at={} [{text}]", if at == 0 { "nowhere" } else { "somewhere" });
}

/// A module: where it is within a page, its length, the sum of its bytes, its text.
fn module(from: u64, length: u64, text: u64) {
    let sum = (0..length).fold(0u32, |sum, n| sum.wrapping_mul(31).wrapping_add(read32(from + n) & 0xff));
    say!("handover module offset={:#x} length={length} sum={sum:#x}", from & 0xfff);
    show("text", text);
}

/// Xen's `hvm_start_info`, version 1.
fn pvh(at: u64) {
    let (magic, version, flags, modules) = (read32(at), read32(at + 4), read32(at + 8), read32(at + 12));
    say!(
        "handover pvh magic={magic:#x} version={version} flags={flags} modules={modules} reserved={}",
        read32(at + 52)
    );
    show("cmdline", wide(at + 24));
    let list = wide(at + 16);
    for entry in (0..u64::from(modules)).map(|n| list + 32 * n) {
        module(wide(entry), wide(entry + 8), wide(entry + 16));
    }
    let map = wide(at + 40);
    for entry in (0..u64::from(read32(at + 48))).map(|n| map + 24 * n) {
        say!("handover map {:#x} {:#x} {}", wide(entry), wide(entry + 8), read32(entry + 16));
    }
    say!("handover rsdp {:#x}", wide(wide(at + 32)));
}

/// Multiboot information, specification 0.6.96, 3.3.
fn multiboot(at: u64) {
    say!("handover multiboot flags={:#x} lower={} upper={}", read32(at), read32(at + 4), read32(at + 8));
    show("cmdline", u64::from(read32(at + 16)));
    show("loader", u64::from(read32(at + 64)));
    let list = u64::from(read32(at + 24));
    for entry in (0..u64::from(read32(at + 20))).map(|n| list + 16 * n) {
        let [from, end, text] = [0, 4, 8].map(|field| u64::from(read32(entry + field)));
        module(from, end - from, text);
    }
    let (map, end) = (u64::from(read32(at + 48)), u64::from(read32(at + 48) + read32(at + 44)));
    let mut entry = map;
    while entry < end {
        say!("handover map {:#x} {:#x} {}", wide(entry + 4), wide(entry + 12), read32(entry + 20));
        entry += u64::from(read32(entry)) + 4;
    }
}
