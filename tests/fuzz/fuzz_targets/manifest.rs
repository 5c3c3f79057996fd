//! The canonical manifest, as the core reads it.
#![no_main]

use dolmen_vm::manifest::{Manifest, SealingRoot};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(manifest) = Manifest::parse(bytes) else { return };
    if let Some(root) = manifest.sealing_root() {
        assert!(SealingRoot::HANDLES.contains(&root.handle));
    }
    for guest in manifest.guests() {
        assert!(!guest.name().is_empty());
        assert!(guest.components().len() <= dolmen_vm::manifest::MAX_GUEST_COMPONENTS);
        assert!(guest.cmdline().len() <= dolmen_vm::manifest::MAX_CMDLINE);
    }
});
