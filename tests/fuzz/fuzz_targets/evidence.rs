//! Evidence: one piece has one encoding.
#![no_main]

use dolmen_abi::evidence::{Evidence, MAX_EVIDENCE};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(evidence) = Evidence::decode(bytes) else { return };
    let mut again = vec![0; MAX_EVIDENCE];
    let length = evidence.encode(&mut again).expect("what was decoded can be encoded");
    assert_eq!(&again[..length], bytes);
});
