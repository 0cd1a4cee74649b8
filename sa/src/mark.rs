//! How far an inbound association may accept packets: up to the mark, above which a restarted
//! host would accept them again.

use core::sync::atomic::{AtomicU64, Ordering};

/// The mark of an inbound association.
///
/// The packet path compares a number with one word, its next stop, and asks here only when it
/// has got there. Everything is written under the association's lock.
#[derive(Debug)]
pub(crate) struct Marks {
    /// The highest number that may be accepted; `u64::MAX` without a mark.
    mark: AtomicU64,
    /// Above this number the mark is to be raised; `u64::MAX` without a mark.
    low: AtomicU64,
    /// The highest number refused because of the mark; 0 is none.
    wanted: AtomicU64,
}

impl Marks {
    /// Any number may be accepted.
    pub(crate) const fn unmarked() -> Self {
        Self {
            mark: AtomicU64::new(u64::MAX),
            low: AtomicU64::new(u64::MAX),
            wanted: AtomicU64::new(0),
        }
    }

    /// Sets the mark, but not below `top`, the highest number accepted.
    pub(crate) fn set(&self, mark: u64, top: u64) -> u64 {
        let mark = mark.max(top);
        self.mark.store(mark, Ordering::Relaxed);
        self.low.store(top + (mark - top) / 2, Ordering::Relaxed);
        mark
    }

    /// The last number that may be accepted without asking again, if `sequence` may be; `None`
    /// if it may not.
    pub(crate) fn stop_after(&self, sequence: u64) -> Option<u64> {
        let mark = self.mark.load(Ordering::Relaxed);
        if sequence > mark {
            let wanted = self.wanted.load(Ordering::Relaxed).max(sequence);
            self.wanted.store(wanted, Ordering::Relaxed);
            None
        } else if sequence > self.low() {
            Some(mark)
        } else {
            Some(self.low())
        }
    }

    /// See the field.
    pub(crate) fn low(&self) -> u64 {
        self.low.load(Ordering::Relaxed)
    }

    /// See the field.
    pub(crate) fn wanted(&self) -> u64 {
        self.wanted.load(Ordering::Relaxed)
    }

    /// The same mark as another incarnation of the association has.
    pub(crate) fn copy(&self, from: &Marks) {
        for (to, from) in [
            (&self.mark, &from.mark),
            (&self.low, &from.low),
            (&self.wanted, &from.wanted),
        ] {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}
