//! A lock of one word, for critical sections of a few hundred nanoseconds.

use core::hint;
use core::sync::atomic::{AtomicU32, Ordering};
use std::thread;

/// Excludes writers from each other. It guards no value: the words that it protects are
/// atomics, read and written with relaxed ordering while it is held.
///
/// Taking it is one locked instruction, giving it back a plain store.
#[derive(Debug, Default)]
pub(crate) struct SpinLock(AtomicU32);

/// Gives the lock back when dropped.
#[derive(Debug)]
pub(crate) struct Held<'a>(&'a AtomicU32);

impl SpinLock {
    #[inline]
    pub(crate) fn acquire(&self) -> Held<'_> {
        while self.0.swap(1, Ordering::Acquire) != 0 {
            self.wait();
        }
        Held(&self.0)
    }

    /// Returns when the lock looks free.
    #[cold]
    fn wait(&self) {
        let mut spins = 0_u32;
        while self.0.load(Ordering::Relaxed) != 0 {
            if spins < SPINS_BEFORE_YIELD {
                spins += 1;
                hint::spin_loop();
            } else {
                // The holder may have been descheduled.
                thread::yield_now();
            }
        }
    }
}

const SPINS_BEFORE_YIELD: u32 = 100;

impl Drop for Held<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicU64;

    #[test]
    fn additions_under_the_lock_are_not_lost() {
        let lock = SpinLock::default();
        let sum = AtomicU64::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        let _held = lock.acquire();
                        let before = sum.load(Ordering::Relaxed);
                        // Lets the others try.
                        thread::yield_now();
                        sum.store(before + 1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4_000);
    }
}
