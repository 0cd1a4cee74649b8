//! Overwriting what a batch leaves behind.

use core::arch::asm;

/// Words and bytes, for which zero is a value.
pub(super) trait Plain {}

impl Plain for u8 {}
impl Plain for u32 {}
impl Plain for u64 {}
impl Plain for u128 {}
impl<T: Plain, const N: usize> Plain for [T; N] {}

/// Overwrites with zeroes, in the widest stores that there are, which the compiler must not leave
/// out. (`zeroize` stores word by word, which takes long for what belongs to a whole batch.)
#[inline]
pub(super) fn wipe<T: Plain>(value: &mut T) {
    let value = &raw mut *value;
    // SAFETY: zero is a value of the type. The empty block reads, as far as the compiler knows,
    // what the pointer points to.
    unsafe {
        value.write_bytes(0, 1);
        asm!("/* {} */", in(reg) value, options(nostack, preserves_flags, readonly));
    }
}

/// Overwrites what calls before this one have left on the stack, as far as they went less deep:
/// vectors for which there were not enough registers, with key material among them.
#[inline(never)]
pub(super) fn burn_stack() {
    let mut area = [0_u128; 256];
    wipe(&mut area);
}
