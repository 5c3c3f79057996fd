//! Whatever a TPM, or somebody on its bus, may answer.
#![no_main]

use dolmen_tpm::response;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = response::Response::password_only(bytes);
    let _ = response::decode_banks(bytes);
    let _ = response::decode_property(bytes, 0x120);
    let _ = response::decode_first_handle(bytes);
    if let Ok(random) = response::decode_random(bytes, 32) {
        assert!(random.len() <= 32);
    }
});
