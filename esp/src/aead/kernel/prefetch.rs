//! Asking for memory before it is needed.

use core::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

/// Asks for the cache line that is `offset` bytes from the beginning of `value`. A hint: nothing
/// is read, and any address will do.
#[inline(always)]
pub(crate) fn prefetch<T: ?Sized>(value: &T, offset: usize) {
    let address = core::ptr::from_ref(value).cast::<i8>().wrapping_add(offset);
    // SAFETY: SSE is part of x86-64, and a prefetch never faults.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address) };
}

/// As [`prefetch`], but only into the second cache: for what is needed a little later.
#[inline(always)]
pub(crate) fn prefetch_soon<T: ?Sized>(value: &T, offset: usize) {
    let address = core::ptr::from_ref(value).cast::<i8>().wrapping_add(offset);
    // SAFETY: SSE is part of x86-64, and a prefetch never faults.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(address) };
}
