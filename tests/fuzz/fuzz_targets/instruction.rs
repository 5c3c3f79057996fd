//! Guest instructions that exited.
#![no_main]

use dolmen_arch::instruction::{CodeSize, decode};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for size in [CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64] {
        if let Ok((_, length)) = decode(bytes, size) {
            assert!(length.get() <= bytes.len() as u64);
        }
    }
});
