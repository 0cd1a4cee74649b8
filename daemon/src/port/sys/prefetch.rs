//! Asking for memory that another processor has written, before it is needed.

/// Asks for the cache line at an address. A hint: nothing is read, and any address will do.
#[inline(always)]
pub(in crate::port) fn prefetch_to_read(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64, and a prefetch never faults.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// As [`prefetch_to_read`], for a line that will be written: it is taken from the other
/// processor at once, instead of shared first.
#[inline(always)]
pub(in crate::port) fn prefetch_to_write(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: it never faults, and changes neither memory nor flags; where there is no such
    // instruction it does nothing.
    unsafe {
        core::arch::asm!(
            "prefetchw [{}]",
            in(reg) address,
            options(nostack, preserves_flags, readonly)
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
