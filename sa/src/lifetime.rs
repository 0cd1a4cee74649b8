//! Lifetimes while they run: limits that can be replaced, and what has been used up.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use crate::ident::Timestamp;
use crate::params::{Lifetime, Limits};

/// The limits of one association in the form that the packet path compares against.
#[derive(Debug, Default)]
pub(crate) struct LiveLifetime {
    pub(crate) soft: LiveLimits,
    pub(crate) hard: LiveLimits,
}

/// `u64::MAX` is unlimited.
#[derive(Debug, Default)]
pub(crate) struct LiveLimits {
    bytes: AtomicU64,
    packets: AtomicU64,
    /// The moment at which the time limit is reached, in nanoseconds.
    deadline: AtomicU64,
    /// Nanoseconds.
    idle: AtomicU64,
}

/// What an association has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) bytes: u64,
    pub(crate) packets: u64,
}

impl LiveLifetime {
    /// Replaces the limits of an association that was `aged` at `added`.
    pub(crate) fn set(&self, lifetime: &Lifetime, added: Timestamp, aged: Duration) {
        self.soft.set(&lifetime.soft, added, aged);
        self.hard.set(&lifetime.hard, added, aged);
    }
}

impl LiveLimits {
    fn set(&self, limits: &Limits, added: Timestamp, aged: Duration) {
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let deadline = limits.time.map_or(u64::MAX, |time| {
            added
                .as_nanos()
                .saturating_add(nanos(time.saturating_sub(aged)))
        });
        let store = |word: &AtomicU64, value| word.store(value, Ordering::Relaxed);
        store(&self.bytes, limits.bytes.unwrap_or(u64::MAX));
        store(&self.packets, limits.packets.unwrap_or(u64::MAX));
        store(&self.deadline, deadline);
        store(&self.idle, limits.idle.map_or(u64::MAX, nanos));
    }

    /// Usage with one more packet, `None` if that would exceed a limit.
    pub(crate) fn charge(&self, usage: Usage, bytes: u32) -> Option<Usage> {
        let charged = Usage {
            bytes: usage.bytes.checked_add(u64::from(bytes))?,
            packets: usage.packets.checked_add(1)?,
        };
        (charged.packets <= self.packets.load(Ordering::Relaxed)
            && charged.bytes <= self.bytes.load(Ordering::Relaxed))
        .then_some(charged)
    }

    /// Whether the byte or the packet limit is used up.
    pub(crate) fn is_used_up(&self, usage: Usage) -> bool {
        usage.packets >= self.packets.load(Ordering::Relaxed)
            || usage.bytes >= self.bytes.load(Ordering::Relaxed)
    }

    /// Whether the time or the idle limit is reached.
    pub(crate) fn is_over(&self, now: Timestamp, used: Timestamp) -> bool {
        let deadline = self.deadline.load(Ordering::Relaxed);
        let idle = self.idle.load(Ordering::Relaxed);
        (now.as_nanos() >= deadline && deadline != u64::MAX)
            || (now.as_nanos().saturating_sub(used.as_nanos()) >= idle && idle != u64::MAX)
    }
}
