use super::*;

#[cfg(not(miri))] // the reference decoder's own code does not pass
mod reference;

fn part(gpr: Gpr) -> Part {
    Part { gpr, is_high_byte: false }
}

#[test]
fn the_accesses_of_real_kernels_decode() {
    let load = |gpr, bytes| Operation::Load { to: part(gpr), bytes, is_signed: false };
    let stored = |gpr| Operation::Store(Operand::Register(part(gpr)));
    for (bytes, operation, size, length) in [
        // mov eax, [rax]; mov [rdi - 0xa00000], esi; mov eax, [rip + 0x12345678]
        (&[0x8b, 0x00][..], load(Gpr::Rax, 4), 4, 2),
        (&[0x89, 0xb7, 0x00, 0x00, 0x60, 0xff], stored(Gpr::Rsi), 4, 6),
        (&[0x8b, 0x05, 0x78, 0x56, 0x34, 0x12], load(Gpr::Rax, 4), 4, 6),
        // mov dword [0xfee000b0], 0
        (
            &[0xc7, 0x04, 0x25, 0xb0, 0x00, 0xe0, 0xfe, 0, 0, 0, 0],
            Operation::Store(Operand::Immediate(0)),
            4,
            11,
        ),
        // xchg [rdi], esi; movzx r9d, byte [r10]; or dword [rax], 0x100; test byte [rdi + 1], 0x10
        (&[0x87, 0x37], Operation::Exchange(part(Gpr::Rsi)), 4, 2),
        (&[0x45, 0x0f, 0xb6, 0x0a], load(Gpr::R9, 4), 1, 4),
        (
            &[0x81, 0x08, 0x00, 0x01, 0x00, 0x00],
            Operation::Modify(Arithmetic::Or, Operand::Immediate(0x100)),
            4,
            6,
        ),
        (&[0xf6, 0x47, 0x01, 0x10], Operation::Test(Arithmetic::And, Operand::Immediate(0x10)), 1, 4),
        // mov [rax], ch
        (
            &[0x88, 0x28],
            Operation::Store(Operand::Register(Part { gpr: Gpr::Rcx, is_high_byte: true })),
            1,
            2,
        ),
    ] {
        let access = decode(bytes, CodeSize::Bits64).unwrap();
        assert_eq!(
            (access.operation, access.bytes, access.length.get()),
            (operation, size, length),
            "{bytes:x?}"
        );
    }
}

#[test]
fn every_cut_asks_for_more_and_never_guesses() {
    let bytes = [0x66, 0x45, 0x81, 0x8c, 0x24, 1, 2, 3, 4, 5, 6];
    assert_eq!(decode(&bytes, CodeSize::Bits64).unwrap().length.get(), 11);
    for cut in 0..bytes.len() {
        assert_eq!(decode(&bytes[..cut], CodeSize::Bits64), Err(DecodeError::Truncated), "{cut}");
    }
}

#[test]
fn what_is_not_a_plain_memory_access_is_refused() {
    for bytes in [
        &[0x8b, 0xc0][..],         // register to register
        &[0xf3, 0xa5],             // rep movsd
        &[0xf0, 0x8b, 0x00],       // lock mov
        &[0xf0, 0x85, 0x00],       // lock test
        &[0x0f, 0x6f, 0x00],       // movq mm0, [rax]
        &[0xff, 0x00],             // inc
        &[0xf7, 0x10],             // not
        &[0xc7, 0x08, 0, 0, 0, 0], // no such form
        &[0x0f, 0xb0, 0x08],       // cmpxchg
    ] {
        assert_eq!(decode(bytes, CodeSize::Bits64), Err(DecodeError::Other), "{bytes:x?}");
    }
}
