//! Hypercalls: no request, address, length or order of calls makes the service panic or write too much, and no forged
//! blob opens.
#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| {
    dolmen_vm::service::fake::run_script(script);
    dolmen_vm::service::fake::open_forged(script);
});
