//! Tests of the Multiboot parsers against structures written out by hand.

use super::*;
use proptest::prelude::*;
use std::string::ToString;
use std::vec::Vec;

struct Fake(Vec<u8>);

impl Physical for Fake {
    fn read(&self, address: u64, bytes: &mut [u8]) {
        for (n, byte) in bytes.iter_mut().enumerate() {
            let at = usize::try_from(address).unwrap_or(usize::MAX).saturating_add(n);
            *byte = self.0.get(at).copied().unwrap_or(0xff);
        }
    }
}

impl Fake {
    fn put(&mut self, at: usize, words: &[u32]) {
        for (n, word) in words.iter().enumerate() {
            self.0[at + n * 4..at + n * 4 + 4].copy_from_slice(&word.to_le_bytes());
        }
    }
}

fn multiboot_1(modules: u32) -> Fake {
    let mut fake = Fake(vec![0; 0x1000]);
    fake.put(0x100, &[0x4c, 0, 0, 0, 0x200, modules, 0x300, 0, 0, 0, 0, 48, 0xa00]);
    fake.0[0x200..0x21e].copy_from_slice(b"loader region_mib=64 attack=x\0");
    for n in 0..modules {
        fake.put(0x300 + n as usize * 16, &[0x10_0000 + n * 0x1000, 0x10_0000 + n * 0x1000 + 0x123, 0, 0]);
    }
    fake.put(0xa00, &[20, 0, 0, 0x9_fc00, 0, 1]);
    fake.put(0xa18, &[20, 0xfffc_0000, 0, 0x4_0000, 0, 2]);
    fake
}

#[test]
fn multiboot_1_gives_modules_map_and_options() {
    let mut map = MemoryMap::new();
    let boot = parse(&multiboot_1(4), MAGIC_1, 0x100, &mut map).unwrap();
    assert_eq!(boot.staged.core(), Extent { base: 0x10_1000, length: 0x123 });
    assert_eq!(boot.staged.components(), [Extent { base: 0x10_3000, length: 0x123 }]);
    assert_eq!(
        (boot.option("region_mib"), boot.option("attack"), boot.option("x")),
        (Some("64"), Some("x"), None)
    );
    let runs: Vec<_> = map.runs().iter().map(|r| (r.base, r.end, r.kind)).collect();
    assert_eq!(runs, [(0, 0x9_fc00, Kind::Free), (0xfffc_0000, 0x1_0000_0000, Kind::Reserved)]);
}

#[test]
fn multiboot_2_gives_the_same() {
    let mut fake = Fake(vec![0; 0x1000]);
    fake.put(0x100, &[0x200, 0, 1, 24]);
    fake.0[0x110..0x11f].copy_from_slice(b"region_mib=16 x");
    let mut at = 0x120;
    for n in 0..3 {
        fake.put(at, &[3, 17, 0x20_0000 + n * 0x1000, 0x20_0000 + n * 0x1000 + 1]);
        at += 24;
    }
    fake.put(at, &[6, 16 + 24, 24, 0, 0, 1, 0x1000_0000, 0, 1, 0]);
    fake.put(at + 40, &[0, 8]);
    let mut map = MemoryMap::new();
    let boot = parse(&fake, MAGIC_2, 0x100, &mut map).unwrap();
    assert_eq!(boot.staged.manifest(), Extent { base: 0x20_2000, length: 1 });
    assert_eq!(boot.option("region_mib"), Some("16"));
    assert_eq!((map.runs()[0].base, map.runs()[0].end), (1 << 32, (1 << 32) + 0x1000_0000));
}

#[test]
fn what_is_missing_is_said() {
    let parse = |fake: &Fake, magic| parse(fake, magic, 0x100, &mut MemoryMap::new()).unwrap_err();
    assert_eq!(parse(&multiboot_1(3), 0), MultibootError::Magic(0));
    for (count, missing) in [(0, "no launch image;"), (1, "no core;"), (2, "no manifest;")] {
        let refusal = parse(&multiboot_1(count.try_into().unwrap()), MAGIC_1);
        assert_eq!(refusal, MultibootError::TooFewModules(count));
        assert!(refusal.to_string().contains(missing), "{refusal}");
    }
    assert_eq!(parse(&multiboot_1(100), MAGIC_1), MultibootError::TooManyModules);
    let mut fake = multiboot_1(3);
    fake.put(0x100, &[0x0c]);
    assert_eq!(parse(&fake, MAGIC_1), MultibootError::NoMemoryMap);
    let mut fake = multiboot_1(3);
    fake.put(0x300, &[0x2000, 0x1000]);
    assert_eq!(parse(&fake, MAGIC_1), MultibootError::Malformed("module list"));
}

#[test]
fn a_tag_of_length_zero_cannot_loop_forever() {
    let mut fake = Fake(vec![0; 0x1000]);
    fake.put(0x100, &[0x200, 0, 9, 0]);
    let error = parse(&fake, MAGIC_2, 0x100, &mut MemoryMap::new()).unwrap_err();
    assert_eq!(error, MultibootError::Malformed("information"));
}

#[test]
fn a_tag_may_not_reach_out_of_the_information() {
    let mut fake = Fake(vec![0; 0x1000]);
    fake.put(0x100, &[0x20, 0, 6, 0xffff_fff0, 24, 0]);
    let error = parse(&fake, MAGIC_2, 0x100, &mut MemoryMap::new()).unwrap_err();
    assert_eq!(error, MultibootError::Malformed("information"));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(
        bytes in proptest::collection::vec(any::<u8>(), 0..2048),
        info in 0..2048u32,
        second in any::<bool>(),
    ) {
        let magic = if second { MAGIC_2 } else { MAGIC_1 };
        if let Ok(boot) = parse(&Fake(bytes), magic, info, &mut MemoryMap::new()) {
            prop_assert!(boot.staged.files().len() <= MAX_FILES);
        }
    }
}
