//! The instructions that measuring needs and Rust has no safe name for: the time-stamp
//! counter and loops of known cost. The only `unsafe` of this package.
#![allow(unsafe_code)]

mod loops;

pub(crate) use loops::{LOOPS, Loop, Scratch};

use std::arch::asm;
use std::arch::x86_64::{_mm_lfence, _rdtsc};

/// Dependent additions in one turn of [`dependent_adds`].
pub(crate) const DEPENDENT_PER_TURN: u64 = 64;

/// Instructions in one turn of [`wide_adds`].
pub(crate) const WIDE_PER_TURN: u64 = 80;

/// The time-stamp counter, once everything before has finished and before anything after
/// has begun.
#[inline(always)]
pub(crate) fn ticks() -> u64 {
    // SAFETY: both instructions are part of every x86-64 CPU, touch no memory, and RDTSC is
    // permitted in user mode on every system that this program supports.
    unsafe {
        _mm_lfence();
        let now = _rdtsc();
        _mm_lfence();
        now
    }
}

/// Ticks that `turns` turns of 64 additions take when each waits for the one before: one
/// core cycle each, whatever the clock.
#[inline(never)]
pub(crate) fn dependent_adds(turns: u64) -> u64 {
    let start = ticks();
    // SAFETY: only the two named registers and the flags change; `turns` is at least 1 below.
    unsafe {
        asm!(
            ".p2align 6",
            "2:",
            ".rept 64",
            "add {sum}, 1",
            ".endr",
            "dec {turns}",
            "jnz 2b",
            sum = inout(reg) 0_u64 => _,
            turns = inout(reg) turns.max(1) => _,
            options(nomem, nostack),
        );
    }
    ticks() - start
}

/// Ticks that `turns` turns of 80 independent instructions take: as many a cycle as the core
/// can issue, so that it runs longer as soon as a sibling thread takes issue slots.
#[inline(never)]
pub(crate) fn wide_adds(turns: u64) -> u64 {
    let start = ticks();
    // SAFETY: only the named registers and the flags change; `turns` is at least 1 below.
    unsafe {
        asm!(
            ".p2align 6",
            "2:",
            ".rept 16",
            "add {a}, 1",
            "add {b}, 1",
            "add {c}, 1",
            "add {d}, 1",
            "nop",
            ".endr",
            "dec {turns}",
            "jnz 2b",
            a = inout(reg) 0_u64 => _,
            b = inout(reg) 0_u64 => _,
            c = inout(reg) 0_u64 => _,
            d = inout(reg) 0_u64 => _,
            turns = inout(reg) turns.max(1) => _,
            options(nomem, nostack),
        );
    }
    ticks() - start
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counter_never_runs_backwards() {
        let mut last = ticks();
        for _ in 0..1000 {
            let now = ticks();
            assert!(now > last);
            last = now;
        }
    }
}
