use super::*;
use crate::backend::StartMode;
use crate::testing::Ram;
use proptest::prelude::*;

const RAM_BYTES: u64 = 0x200_0000;
const RSDP: Gpa = Gpa::new(0xe_0000);

fn boot<'a>(files: &'a [File<'a>], cmdline: &'a [u8]) -> Boot<'a> {
    Boot { ram: RamLayout::new(RAM_BYTES), kernel: 7, files, cmdline, rsdp: RSDP }
}

fn ram() -> Ram {
    Ram::new(RAM_BYTES as usize)
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

fn words(image: &mut [u8], at: usize, words: &[u32]) {
    for (n, word) in words.iter().enumerate() {
        put(image, at + 4 * n, &word.to_le_bytes());
    }
}

/// A bzImage with one setup sector and 4 KiB of kernel, preferred at 16 MiB.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0xaa; 0x400 + 0x1000 + 0x80];
    image[..0x400].fill(0);
    put(&mut image, 0x1f1, &[1]);
    put(&mut image, 0x1f4, &(0x1000u32 / 16).to_le_bytes());
    put(&mut image, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(&mut image, 0x202, b"HdrS\x0f\x02");
    put(&mut image, 0x211, &[0x81]);
    words(&mut image, 0x22c, &[0x7fff_ffff, 0x20_0000]);
    put(&mut image, 0x234, &[1, 0x15, 0x3f, 0]);
    words(&mut image, 0x238, &[2047]);
    words(&mut image, 0x258, &[0x100_0000, 0, 0x3000]);
    image
}

/// An ELF file of 64 bits with a note and a segment of 0x100 bytes at 2 MiB that takes a page.
fn pvh_elf() -> Vec<u8> {
    let mut image = vec![0; 0x300];
    put(&mut image, 0, b"\x7fELF\x02\x01\x01");
    put(&mut image, 16, &[2, 0, 62, 0, 1, 0, 0, 0]);
    put(&mut image, 32, &64u64.to_le_bytes());
    put(&mut image, 52, &[64, 0, 56, 0, 2, 0]);
    words(&mut image, 64, &[4, 0, 0x100, 0, 0, 0, 0, 0, 48, 0, 48, 0]);
    words(&mut image, 120, &[1, 5, 0x200, 0, 0, 0, 0x20_0000, 0, 0x100, 0, 0x1000, 0]);
    put(&mut image, 0x100, b"\x04\0\0\0\x02\0\0\0\x06\0\0\0Xen\0hi\0\0");
    put(&mut image, 0x114, b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0\x10\0\x20\0\0\0\0\0");
    image
}

/// An ELF file of 32 bits with a Multiboot header and a segment at 4 MiB.
fn multiboot_elf() -> Vec<u8> {
    let mut image = vec![0; 0x300];
    put(&mut image, 0, b"\x7fELF\x01\x01\x01");
    put(&mut image, 16, &[2, 0, 3, 0, 1, 0, 0, 0]);
    words(&mut image, 24, &[0x40_0010, 52]);
    put(&mut image, 40, &[52, 0, 32, 0, 1, 0]);
    words(&mut image, 52, &[1, 0x100, 0, 0x40_0000, 0x200, 0x2000, 5, 0]);
    words(&mut image, 0x100, &[0x1bad_b002, 0, 0u32.wrapping_sub(0x1bad_b002)]);
    image
}

/// A flat file whose Multiboot header says where it goes.
fn multiboot_flat() -> Vec<u8> {
    let mut image = vec![0; 0x300];
    let flags = 0x1_0003u32;
    words(&mut image, 0x40, &[0x1bad_b002, flags, 0u32.wrapping_sub(0x1bad_b002 + flags)]);
    words(&mut image, 0x4c, &[0x10_0040, 0x10_0000, 0x10_0280, 0x10_4000, 0x10_0100]);
    image
}

#[test]
fn a_bzimage_starts_at_its_64_bit_entry_with_the_zero_page_in_rsi() {
    let mut ram = ram();
    let plan = load(Format::Linux, &bzimage()[..], &boot(&[], b"console=ttyS0"), &mut ram).unwrap();
    let kernel = Copy { component: 7, offset: 0x400, to: Gpa::new(0x100_0000), length: 0x1000 };
    assert_eq!(plan.copies(), [kernel]);
    assert_eq!(plan.start.entry, 0x100_0200);
    assert_eq!(plan.start.mode, StartMode::Long64 { tables: Gpa::new(0x8000) });
    assert_eq!((plan.start.code_selector, plan.start.data_selector), (0x10, 0x18));
    let zero_page = plan.start.gprs.rsi as usize;
    assert_eq!(ram.bytes(zero_page + 0x202, 4), b"HdrS");
    assert_eq!((ram.u64(zero_page + 0x70), ram.bytes(zero_page + 0x210, 1)), (0xe_0000, &[0xff][..]));
    let cmdline = ram.u32(zero_page + 0x228) as usize;
    assert_eq!(ram.bytes(cmdline, 14), b"console=ttyS0\0");
    assert_eq!(ram.bytes(zero_page + 0x1ef, 1), [0], "the sentinel says that the rest was cleared");
}

#[test]
fn the_reset_vector_of_every_guest_resets() {
    for (format, image) in
        [(Format::Linux, bzimage()), (Format::Pvh, pvh_elf()), (Format::Multiboot, multiboot_elf())]
    {
        let mut ram = ram();
        load(format, &image[..], &boot(&[], b""), &mut ram).unwrap();
        assert_eq!(ram.bytes(0xf_fff0, 6), [0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee]);
    }
}

#[test]
fn a_multiboot_guest_that_calls_a_bios_is_told_that_there_is_none() {
    let mut ram = ram();
    load(Format::Multiboot, &multiboot_elf()[..], &boot(&[], b""), &mut ram).unwrap();
    for number in 0..256 {
        let vector = ram.u32(4 * number);
        let code = ((vector >> 16) * 16 + (vector & 0xffff)) as usize;
        if number == 0x12 {
            assert_eq!(ram.bytes(code, 4), [0xb8, 0x7f, 0x02, 0xcf], "639 KiB");
        } else {
            assert_eq!(ram.bytes(code + 3, 4), [0x80, 0x4e, 0x06, 0x01], "carry in the flags of {number:#x}");
            assert_eq!(ram.bytes(code + 10, 1), [0xcf], "interrupt {number:#x} returns");
        }
    }
    assert_eq!((ram.u32(0x40e) & 0xffff, ram.u32(0x413) & 0xffff), (0x9fc0, 639));
    assert_eq!((ram.bytes(0x400, 2), ram.bytes(0x9_fc00, 1)), (&[0xf8, 0x03][..], &[1][..]));
}

#[test]
fn no_format_but_multiboot_promises_a_bios() {
    for (format, image) in [(Format::Linux, bzimage()), (Format::Pvh, pvh_elf())] {
        let mut ram = ram();
        load(format, &image[..], &boot(&[], b""), &mut ram).unwrap();
        assert_eq!(ram.bytes(0, 0x500), [0; 0x500]);
    }
}

#[test]
fn the_zero_page_maps_memory_without_the_legacy_hole() {
    let mut ram = ram();
    let plan = load(Format::Linux, &bzimage()[..], &boot(&[], b""), &mut ram).unwrap();
    let zero_page = plan.start.gprs.rsi as usize;
    assert_eq!(ram.bytes(zero_page + 0x1e8, 1), [5]);
    let entries: Vec<_> = (0..5)
        .map(|n| zero_page + 0x2d0 + 20 * n)
        .map(|at| (ram.u64(at), ram.u64(at + 8), ram.u32(at + 16)))
        .collect();
    assert_eq!(
        entries,
        [
            (0, 0x9_fc00, 1),
            (0x9_fc00, 0x6_0400, 2),
            (0x10_0000, 0x1f0_0000, 1),
            (0xfec0_0000, 0x1000, 2),
            (0xfee0_0000, 0x1000, 2),
        ]
    );
}

#[test]
fn the_page_tables_map_the_low_4_gib_to_themselves() {
    let mut ram = ram();
    load(Format::Linux, &bzimage()[..], &boot(&[], b""), &mut ram).unwrap();
    for address in [0u64, 0x100_0200, 0x7fff_ffff, 0xffff_ffff] {
        let third = ram.u64(0x8000) & !0xfff;
        let second = ram.u64((third + (address >> 30) * 8) as usize) & !0xfff;
        let entry = ram.u64((second + (address >> 21 & 0x1ff) * 8) as usize);
        assert_eq!(entry, address & !0x1f_ffff | 0x83, "{address:#x}");
    }
}

#[test]
fn initial_ram_disks_lie_in_one_piece_at_the_top() {
    let files =
        [File { component: 1, length: 0x1001, text: b"" }, File { component: 2, length: 0x20, text: b"" }];
    let mut ram = ram();
    let plan = load(Format::Linux, &bzimage()[..], &boot(&files, b""), &mut ram).unwrap();
    let start = 0x1ff_e000;
    assert_eq!(
        plan.copies()[1..],
        [
            Copy { component: 1, offset: 0, to: Gpa::new(start), length: 0x1001 },
            Copy { component: 2, offset: 0, to: Gpa::new(start + 0x1004), length: 0x20 },
        ]
    );
    let zero_page = plan.start.gprs.rsi as usize;
    assert_eq!((ram.u32(zero_page + 0x218), ram.u32(zero_page + 0x21c)), (start as u32, 0x1024));
}

#[test]
fn linux_images_that_lie_are_refused_by_name() {
    let cases: [(usize, &[u8], ImageError); 11] = [
        (0x1fe, &[0, 0], ImageError::NotThisFormat(Format::Linux)),
        (0x202, b"HdrX", ImageError::NotThisFormat(Format::Linux)),
        (0x206, &[0x0b, 0x02], ImageError::OldProtocol(0x020b)),
        (0x211, &[0], ImageError::No64BitEntry),
        (0x236, &[0x3e, 0], ImageError::No64BitEntry),
        (0x1f4, &[0xff; 4], ImageError::Truncated),
        (0x1f4, &[0; 4], ImageError::Truncated),
        (0x1f1, &[0xff], ImageError::Truncated),
        (0x230, &[3, 0, 0, 0], ImageError::SegmentSizes),
        (0x258, &[0xff; 8], ImageError::OutsideRam { start: u64::MAX, length: 0x3000 }),
        (0x260, &[0, 0, 0, 0x7f], ImageError::OutsideRam { start: 0x100_0000, length: 0x7f00_0000 }),
    ];
    for (at, bytes, error) in cases {
        let mut image = bzimage();
        put(&mut image, at, bytes);
        assert_eq!(check(Format::Linux, &image[..], &boot(&[], b"")).unwrap_err(), error, "{at:#x}");
    }
    assert_eq!(
        check(Format::Linux, &bzimage()[..0x200], &boot(&[], b"")).unwrap_err(),
        ImageError::NotThisFormat(Format::Linux)
    );
}

#[test]
fn a_command_line_that_the_kernel_would_cut_is_refused() {
    let long = [b'x'; 2048];
    let error = check(Format::Linux, &bzimage()[..], &boot(&[], &long)).unwrap_err();
    assert_eq!(error, ImageError::CmdlineTooLong { length: 2048, limit: 2047 });
}

#[test]
fn an_absurd_initial_ram_disk_has_no_room() {
    for length in [RAM_BYTES, u64::MAX - 3, u64::MAX] {
        let files = [File { component: 1, length, text: b"" }];
        let error = check(Format::Linux, &bzimage()[..], &boot(&files, b"")).unwrap_err();
        assert!(matches!(error, ImageError::NoRoom(_)), "{length:#x} {error:?}");
    }
}

#[test]
fn a_pvh_kernel_starts_in_flat_mode_with_the_start_info_in_rbx() {
    let files = [File { component: 1, length: 0x1001, text: b"" }];
    let mut ram = ram();
    let plan = load(Format::Pvh, &pvh_elf()[..], &boot(&files, b"a b"), &mut ram).unwrap();
    assert_eq!((plan.start.mode, plan.start.entry), (StartMode::Flat32, 0x20_0010));
    assert_eq!(
        plan.copies(),
        [
            Copy { component: 7, offset: 0x200, to: Gpa::new(0x20_0000), length: 0x100 },
            Copy { component: 1, offset: 0, to: Gpa::new(0x1ff_e000), length: 0x1001 },
        ]
    );
    let info = plan.start.gprs.rbx as usize;
    assert_eq!((ram.u32(info), ram.u32(info + 4), ram.u32(info + 12)), (0x336e_c578, 1, 1));
    let [modules, cmdline, rsdp, map] = [16, 24, 32, 40].map(|at| ram.u64(info + at) as usize);
    assert_eq!((ram.u64(modules), ram.u64(modules + 8)), (0x1ff_e000, 0x1001));
    assert_eq!((ram.bytes(cmdline, 4), rsdp), (&b"a b\0"[..], 0xe_0000));
    assert_eq!((ram.u64(map), ram.u64(map + 8), ram.u32(map + 16), ram.u32(info + 48)), (0, 0x9_fc00, 1, 5));
}

#[test]
fn pvh_images_that_lie_are_refused_by_name() {
    let cases: [(usize, &[u8], ImageError); 11] = [
        (0, b"\x7fELG", ImageError::NotThisFormat(Format::Pvh)),
        (4, &[3], ImageError::WrongElf),
        (18, &[3, 0], ImageError::WrongElf),
        (54, &[57, 0], ImageError::WrongElf),
        (56, &[0xff, 0xff], ImageError::TooManySegments(0xffff)),
        (32, &[0xff; 8], ImageError::Truncated),
        (0x11c, &[5, 0], ImageError::NoEntryNote),
        (0x118, &[0xff; 4], ImageError::Truncated),
        (0x124, &[0, 0, 0x30, 0], ImageError::EntryOutside(0x30_0000)),
        (120 + 32, &[0, 0x20], ImageError::SegmentSizes),
        (120 + 24, &[0, 0, 0, 0], ImageError::OutsideRam { start: 0, length: 0x1000 }),
    ];
    for (at, bytes, error) in cases {
        let mut image = pvh_elf();
        put(&mut image, at, bytes);
        assert_eq!(check(Format::Pvh, &image[..], &boot(&[], b"")).unwrap_err(), error, "{at:#x}");
    }
}

#[test]
fn segments_that_overlap_are_refused() {
    let mut image = pvh_elf();
    put(&mut image, 56, &[3, 0]);
    words(&mut image, 176, &[1, 5, 0x100, 0, 0, 0, 0x20_0fff, 0, 0, 0, 0x1000, 0]);
    let error = check(Format::Pvh, &image[..], &boot(&[], b"")).unwrap_err();
    assert_eq!(error, ImageError::Overlap { start: 0x20_0fff });
}

#[test]
fn a_multiboot_kernel_gets_magic_and_information() {
    let files = [File { component: 1, length: 0x1001, text: b"" }];
    let mut ram = ram();
    let plan = load(Format::Multiboot, &multiboot_elf()[..], &boot(&files, b"a b"), &mut ram).unwrap();
    assert_eq!((plan.start.mode, plan.start.entry), (StartMode::Flat32, 0x40_0010));
    assert_eq!(plan.start.gprs.rax, 0x2bad_b002);
    assert_eq!(
        plan.copies()[0],
        Copy { component: 7, offset: 0x100, to: Gpa::new(0x40_0000), length: 0x200 }
    );
    let info = plan.start.gprs.rbx as usize;
    let field = |at: usize| ram.u32(info + at) as usize;
    assert_eq!((field(0), field(4), field(8)), (0x24d, 639, 0x1f0_0000 / 1024));
    assert_eq!(ram.bytes(field(16), 4), b"a b\0");
    assert_eq!((field(20), ram.u32(field(24)), ram.u32(field(24) + 4)), (1, 0x1ff_e000, 0x1ff_f001));
    assert_eq!(ram.bytes(ram.u32(field(24) + 8) as usize, 1), [0], "an empty string");
    assert_eq!((field(44), ram.u32(field(48)), ram.u64(field(48) + 12)), (5 * 24, 20, 0x9_fc00));
    assert_eq!(ram.bytes(field(64), 7), b"Dolmen\0");
}

#[test]
fn a_multiboot_kernel_may_say_itself_where_it_goes() {
    let plan = check(Format::Multiboot, &multiboot_flat()[..], &boot(&[], b"")).unwrap();
    assert_eq!(plan.start.entry, 0x10_0100);
    assert_eq!(plan.copies(), [Copy { component: 7, offset: 0, to: Gpa::new(0x10_0000), length: 0x280 }]);
}

#[test]
fn multiboot_images_that_lie_are_refused_by_name() {
    let cases: [(usize, u32, ImageError); 7] = [
        (0x48, 0, ImageError::NotThisFormat(Format::Multiboot)),
        (0x4c, 0xf_0000, ImageError::LoadAddresses),
        (0x4c, 0x20_0000, ImageError::LoadAddresses),
        (0x54, 0x10_0400, ImageError::Truncated),
        (0x58, 0x10_0100, ImageError::LoadAddresses),
        (0x5c, 0x20_0000, ImageError::EntryOutside(0x20_0000)),
        (0x5c, 0xf_ffff, ImageError::EntryOutside(0xf_ffff)),
    ];
    for (at, value, error) in cases {
        let mut image = multiboot_flat();
        words(&mut image, at, &[value]);
        assert_eq!(check(Format::Multiboot, &image[..], &boot(&[], b"")).unwrap_err(), error, "{at:#x}");
    }
    let mut video = multiboot_elf();
    words(&mut video, 0x104, &[4, 0u32.wrapping_sub(0x1bad_b002 + 4)]);
    let error = check(Format::Multiboot, &video[..], &boot(&[], b"")).unwrap_err();
    assert_eq!(error, ImageError::UnsupportedFlags(4));
}

#[test]
fn a_multiboot_kernel_linked_high_starts_where_its_entry_was_loaded() {
    let mut image = multiboot_elf();
    words(&mut image, 24, &[0xc040_0010]);
    words(&mut image, 60, &[0xc040_0000, 0x40_0000]);
    let plan = check(Format::Multiboot, &image[..], &boot(&[], b"")).unwrap();
    assert_eq!((plan.start.entry, plan.copies()[0].to), (0x40_0010, Gpa::new(0x40_0000)));
}

#[test]
fn every_module_has_the_text_of_its_own() {
    let module = |component, text| File { component, length: 0x1001, text };
    let longest = [b'x'; 120];
    let files = [module(1, b"one -a"), module(2, b""), module(3, &longest)];
    let mut ram = ram();
    let plan = load(Format::Multiboot, &multiboot_elf()[..], &boot(&files, b""), &mut ram).unwrap();
    let list = ram.u32(plan.start.gprs.rbx as usize + 24) as usize;
    for (n, file) in files.iter().enumerate() {
        let at = ram.u32(list + 16 * n + 8) as usize;
        assert_eq!(ram.bytes(at, file.text.len() + 1), [file.text, &[0]].concat());
        assert_eq!((ram.u32(list + 16 * n) % 0x1000, ram.u32(list + 16 * n + 12)), (0, 0));
    }
    let mut ram = self::ram();
    let plan = load(Format::Pvh, &pvh_elf()[..], &boot(&files, b""), &mut ram).unwrap();
    let list = ram.u64(plan.start.gprs.rbx as usize + 16) as usize;
    let at = |n: usize| ram.u64(list + 32 * n + 16) as usize;
    assert_eq!(
        (ram.bytes(at(0), 7), at(1), ram.bytes(at(2), 121)),
        (&b"one -a\0"[..], 0, &[&longest[..], &[0]].concat()[..])
    );
    let long = [b'x'; 121];
    let error = check(Format::Pvh, &pvh_elf()[..], &boot(&[module(1, &long)], b"")).unwrap_err();
    assert_eq!(error, ImageError::TextTooLong(121));
}

#[test]
fn an_entry_note_may_be_of_eight_bytes_and_at_a_multiple_of_eight() {
    let mut image = pvh_elf();
    put(&mut image, 64 + 48, &[8]);
    image[0x100..0x130].fill(0);
    put(&mut image, 0x100, b"\x04\0\0\0\x04\0\0\0\x06\0\0\0Xen\0yes!\0\0\0\0");
    put(&mut image, 0x118, b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0\x10\0\x20\0\0\0\0\0");
    assert_eq!(check(Format::Pvh, &image[..], &boot(&[], b"")).unwrap().start.entry, 0x20_0010);
    image[0x12c] = 1;
    assert_eq!(
        check(Format::Pvh, &image[..], &boot(&[], b"")).unwrap_err(),
        ImageError::EntryOutside(0x1_0020_0010)
    );
}

#[test]
fn the_last_paragraph_of_a_kernel_may_be_cut_short_but_no_more() {
    let image = bzimage();
    let length =
        |end: usize| check(Format::Linux, &image[..end], &boot(&[], b"")).map(|plan| plan.copies()[0].length);
    assert_eq!(length(0x13f1), Ok(0xff1));
    assert_eq!(length(0x13f0), Err(ImageError::Truncated));
}

#[test]
fn a_kernel_that_cannot_move_is_loaded_exactly_where_it_wants_to_be() {
    let mut image = bzimage();
    put(&mut image, 0x258, &0x100_1000u32.to_le_bytes());
    let at = |image: &[u8]| check(Format::Linux, image, &boot(&[], b"")).unwrap().copies()[0].to;
    assert_eq!(at(&image), Gpa::new(0x120_0000), "a relocatable one at its alignment");
    image[0x234] = 0;
    assert_eq!(at(&image), Gpa::new(0x100_1000));
}

#[test]
fn a_guest_with_almost_no_ram_is_refused() {
    let boot = Boot { ram: RamLayout::new(0x4000), ..boot(&[], b"") };
    assert!(check(Format::Pvh, &pvh_elf()[..], &boot).is_err());
}

/// What holds of every plan, however the image lies.
fn is_sound(plan: &Plan, image: &[u8], files: &[File<'_>]) -> bool {
    let in_ram = plan.copies().iter().all(|copy| {
        copy.to.get() >= 0x10_0000
            && copy.to.get().checked_add(copy.length).is_some_and(|end| end <= RAM_BYTES)
    });
    let in_source = plan.copies().iter().all(|copy| {
        let available = files
            .iter()
            .find(|file| file.component == copy.component)
            .map_or(image.len() as u64, |file| file.length);
        copy.offset.checked_add(copy.length).is_some_and(|end| end <= available)
    });
    let apart = plan.copies().iter().enumerate().all(|(n, a)| {
        plan.copies()[..n]
            .iter()
            .all(|b| a.to.get() + a.length <= b.to.get() || b.to.get() + b.length <= a.to.get())
    });
    in_ram && in_source && apart
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 20 } else { 2000 }))]
    /// Any few bytes of a good image changed: an error, or a plan that is sound.
    #[test]
    fn no_change_of_an_image_makes_an_unsound_plan(
        which in 0usize..4,
        changes in prop::collection::vec((0usize..0x300, any::<u8>()), 0..12),
        cut in 0usize..0x3000,
        length in prop::sample::select(vec![0u64, 1, 0x1000, 0x1f0_0000, u64::MAX]),
    ) {
        let (format, mut image) = [
            (Format::Linux, bzimage()),
            (Format::Pvh, pvh_elf()),
            (Format::Multiboot, multiboot_elf()),
            (Format::Multiboot, multiboot_flat()),
        ][which].clone();
        for (at, value) in changes {
            image[at] = value;
        }
        image.truncate(cut.max(1));
        let files = [File { component: 1, length, text: b"" }, File { component: 2, length: 5, text: b"" }];
        if let Ok(plan) = check(format, &image[..], &boot(&files, b"x")) {
            prop_assert!(is_sound(&plan, &image, &files), "{plan:?}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes too long in the interpreter")]
    fn noise_is_never_more_than_an_error(image in prop::collection::vec(any::<u8>(), 0..600)) {
        for format in [Format::Linux, Format::Pvh, Format::Multiboot] {
            prop_assert!(check(format, &image[..], &boot(&[], b"")).is_err());
        }
    }
}
