//! TCG event logs: what was parsed can be replayed, in bounded work.
#![no_main]

use dolmen_drtm::digest::Algorithm;
use dolmen_drtm::replay::EventLog;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(log) = EventLog::parse(bytes) else { return };
    assert!(log.events().count() <= bytes.len() / 12);
    for algorithm in Algorithm::ALL {
        let _ = (log.replay(algorithm, 17), log.replay(algorithm, 18));
    }
});
