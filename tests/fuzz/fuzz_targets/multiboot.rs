//! What a Multiboot boot loader tells, and the places that the loader chooses in it: apart, and in RAM.
#![no_main]

use dolmen_drtm::handoff::Extent;
use dolmen_loader::map::{Kind, MemoryMap};
use dolmen_loader::multiboot::{MAGIC_1, MAGIC_2, Physical, parse};
use dolmen_loader::plan::lay_out;

struct Memory<'a>(&'a [u8]);

impl Physical for Memory<'_> {
    fn read(&self, address: u64, bytes: &mut [u8]) {
        for (byte, at) in bytes.iter_mut().zip(address..) {
            *byte = usize::try_from(at).ok().and_then(|at| self.0.get(at)).copied().unwrap_or(0);
        }
    }
}

fn is_apart(a: Extent, b: Extent) -> bool {
    a.base + a.length <= b.base || b.base + b.length <= a.base
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let memory = Memory(bytes);
    for magic in [MAGIC_1, MAGIC_2] {
        let mut map = MemoryMap::new();
        let Ok(boot) = parse(&memory, magic, 0, &mut map) else { continue };
        let before = map.clone();
        let Ok(plan) = lay_out(&mut map, &boot.staged, None, 32 << 20) else { continue };
        let places = [plan.slb, plan.region, plan.guest_pool];
        for (n, place) in places.iter().enumerate() {
            let end = place.base + place.length;
            assert!(before.stretches(Kind::is_ram).any(|(low, high)| low <= place.base && end <= high));
            assert!(places.iter().skip(n + 1).all(|other| is_apart(*place, *other)));
            assert!(boot.staged.files().iter().all(|file| file.length == 0 || is_apart(*place, *file)));
        }
    }
});
