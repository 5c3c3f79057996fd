//! Guest kernels of every format: an error, or copies that stay in the image and in RAM and do not overlap.
#![no_main]

use dolmen_memory::Gpa;
use dolmen_vm::image::{Boot, File, Format, check};
use dolmen_vm::layout::RamLayout;

const RAM: u64 = 0x800_0000;

libfuzzer_sys::fuzz_target!(|input: (u64, &[u8])| {
    let (length, image) = input;
    let files = [File { component: 1, length, text: b"one" }];
    let boot = Boot {
        ram: RamLayout::new(RAM),
        kernel: 0,
        files: &files,
        cmdline: b"quiet",
        rsdp: Gpa::new(0xe_0000),
    };
    for format in [Format::Linux, Format::Pvh, Format::Multiboot] {
        let Ok(plan) = check(format, image, &boot) else { continue };
        let mut end = 0;
        let mut copies = plan.copies().to_vec();
        copies.sort_by_key(|copy| copy.to.get());
        for copy in copies {
            let source = if copy.component == 0 { image.len() as u64 } else { length };
            assert!(copy.offset.checked_add(copy.length).unwrap() <= source);
            assert!(copy.to.get() >= end.max(0x10_0000));
            end = copy.to.get().checked_add(copy.length).unwrap();
            assert!(end <= RAM);
        }
    }
});
