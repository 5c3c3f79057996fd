//! The UEFI loader's configuration file.
#![no_main]

use dolmen_loader::config::Config;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(configuration) = Config::parse(bytes) {
        assert!(configuration.components().len() <= dolmen_drtm::handoff::MAX_COMPONENTS);
    }
});
