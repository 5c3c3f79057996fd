//! What arithmetic instructions compute, with the flags they leave (APM vol. 1, 3.1.4).

use dolmen_arch::bits::low_bytes;

use super::Arithmetic;

const CARRY: u64 = 1 << 0;
const PARITY: u64 = 1 << 2;
const AUXILIARY: u64 = 1 << 4;
const ZERO: u64 = 1 << 6;
const SIGN: u64 = 1 << 7;
const OVERFLOW: u64 = 1 << 11;

/// The bits of RFLAGS that arithmetic sets.
pub const STATUS_FLAGS: u64 = CARRY | PARITY | AUXILIARY | ZERO | SIGN | OVERFLOW;

/// A result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Computed {
    /// The value, zero-extended.
    pub value: u64,
    /// RFLAGS with the status flags of the operation.
    pub rflags: u64,
}

/// Does `first` op `second` on operands of `bytes` (1, 2, 4 or 8). Flags that the manual leaves undefined are
/// cleared.
pub fn compute(operation: Arithmetic, first: u64, second: u64, bytes: u8, rflags: u64) -> Computed {
    let (first, second) = (low_bytes(first, bytes), low_bytes(second, bytes));
    let carry_in = rflags & CARRY;
    let sign = 1u64.wrapping_shl(u32::from(bytes).wrapping_mul(8).wrapping_sub(1));
    let wide = u128::from(first);
    let (value, carry) = match operation {
        Arithmetic::And => (first & second, false),
        Arithmetic::Or => (first | second, false),
        Arithmetic::Xor => (first ^ second, false),
        Arithmetic::Add | Arithmetic::AddWithCarry => {
            let carry_in = if operation == Arithmetic::Add { 0 } else { carry_in };
            let sum = wide.wrapping_add(u128::from(second)).wrapping_add(u128::from(carry_in));
            let value = low_bytes(first.wrapping_add(second).wrapping_add(carry_in), bytes);
            (value, sum != u128::from(value))
        }
        Arithmetic::Subtract | Arithmetic::SubtractWithBorrow => {
            let borrow = if operation == Arithmetic::Subtract { 0 } else { carry_in };
            let taken = u128::from(second).wrapping_add(u128::from(borrow));
            (low_bytes(first.wrapping_sub(second).wrapping_sub(borrow), bytes), taken > wide)
        }
    };
    let overflow = match operation {
        Arithmetic::And | Arithmetic::Or | Arithmetic::Xor => 0,
        Arithmetic::Add | Arithmetic::AddWithCarry => (first ^ value) & (second ^ value) & sign,
        Arithmetic::Subtract | Arithmetic::SubtractWithBorrow => (first ^ second) & (first ^ value) & sign,
    };
    let auxiliary = match operation {
        Arithmetic::And | Arithmetic::Or | Arithmetic::Xor => 0,
        Arithmetic::Add
        | Arithmetic::AddWithCarry
        | Arithmetic::Subtract
        | Arithmetic::SubtractWithBorrow => (first ^ second ^ value) & AUXILIARY,
    };
    let mut flags = auxiliary;
    for (is_set, flag) in [
        (carry, CARRY),
        (low_bytes(value, 1).count_ones() & 1 == 0, PARITY),
        (value == 0, ZERO),
        (value & sign != 0, SIGN),
        (overflow != 0, OVERFLOW),
    ] {
        if is_set {
            flags |= flag;
        }
    }
    Computed { value, rflags: (rflags & !STATUS_FLAGS) | flags }
}

/// The low `bytes` bytes of `value`, their sign bit copied upwards.
pub(super) const fn sign_extended(value: u64, bytes: u8) -> u64 {
    let value = low_bytes(value, bytes);
    let sign = match bytes {
        1 => 0x80,
        2 => 0x8000,
        4 => 0x8000_0000,
        _ => 0,
    };
    (value ^ sign).wrapping_sub(sign)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn flags_are_those_of_the_manual_at_the_edges() {
        use Arithmetic::{Add, AddWithCarry, And, Or, Subtract, SubtractWithBorrow, Xor};
        for (operation, first, second, bytes, rflags, value, wanted) in [
            (Add, 0xff, 0x01, 1, 0, 0x00, CARRY | ZERO | PARITY | AUXILIARY),
            (Add, 0x7fff, 0x0001, 2, 0, 0x8000, SIGN | OVERFLOW | PARITY | AUXILIARY),
            (AddWithCarry, u64::MAX, 0, 8, CARRY, 0, CARRY | ZERO | PARITY | AUXILIARY),
            (AddWithCarry, u64::MAX, u64::MAX, 8, CARRY, u64::MAX, CARRY | SIGN | PARITY | AUXILIARY),
            (Subtract, 0, 1, 4, CARRY, 0xffff_ffff, CARRY | SIGN | PARITY | AUXILIARY),
            (Subtract, 0x80, 0x01, 1, 0, 0x7f, OVERFLOW | AUXILIARY),
            (SubtractWithBorrow, 5, u64::MAX, 8, CARRY, 5, CARRY | PARITY | AUXILIARY),
            (And, 0xf0, 0x0f, 1, CARRY | OVERFLOW, 0, ZERO | PARITY),
            (Or, 0x80, 0x01, 1, 0, 0x81, SIGN | PARITY),
            (Xor, 0xffff_ffff, 0xffff_fffe, 4, 0, 1, 0),
        ] {
            let computed = compute(operation, first, second, bytes, rflags);
            assert_eq!(
                (computed.value, computed.rflags),
                (value, wanted),
                "{operation:?} {first:#x} {second:#x}"
            );
        }
    }

    #[test]
    fn other_flags_stay() {
        assert_eq!(compute(Arithmetic::And, 1, 1, 1, 0x10202).rflags, 0x10202);
    }

    proptest! {
        /// Against arithmetic of 64 bits, which the language itself checks for overflow.
        #[test]
        fn sums_and_differences_carry_and_overflow_as_the_language_says(first: u64, second: u64) {
            let sum = compute(Arithmetic::Add, first, second, 8, 0);
            let (value, carry) = first.overflowing_add(second);
            let overflow = first.cast_signed().overflowing_add(second.cast_signed()).1;
            prop_assert_eq!((sum.value, sum.rflags & CARRY != 0, sum.rflags & OVERFLOW != 0), (value, carry, overflow));
            let difference = compute(Arithmetic::Subtract, first, second, 8, 0);
            let (value, borrow) = first.overflowing_sub(second);
            let overflow = first.cast_signed().overflowing_sub(second.cast_signed()).1;
            prop_assert_eq!(
                (difference.value, difference.rflags & CARRY != 0, difference.rflags & OVERFLOW != 0),
                (value, borrow, overflow)
            );
        }
    }
}
