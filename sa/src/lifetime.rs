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

/// When an association was first added, wherever that was: in nanoseconds on the local clock,
/// possibly before its origin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Birth(i64);

/// What an association has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) bytes: u64,
    pub(crate) packets: u64,
}

/// Limits in packets and bytes, read once for a run of packets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget(Usage);

impl Budget {
    /// Usage with one more packet; `None` if that would exceed a limit, or one is used up.
    #[inline]
    pub(crate) fn charge(self, usage: Usage, bytes: u32) -> Option<Usage> {
        let charged = usage.plus(1, u64::from(bytes))?;
        let Self(limit) = self;
        (charged.packets <= limit.packets
            && charged.bytes <= limit.bytes
            && usage.bytes < limit.bytes)
            .then_some(charged)
    }
}

impl Usage {
    #[inline]
    fn plus(self, packets: u64, bytes: u64) -> Option<Self> {
        Some(Self {
            bytes: self.bytes.checked_add(bytes)?,
            packets: self.packets.checked_add(packets)?,
        })
    }
}

impl Birth {
    pub(crate) fn new(now: Timestamp, age: Duration) -> Self {
        Self(signed(now.as_nanos()).saturating_sub(signed(nanos(age))))
    }

    pub(crate) fn age(self, now: Timestamp) -> Duration {
        let age = signed(now.as_nanos()).saturating_sub(self.0);
        Duration::from_nanos(u64::try_from(age).unwrap_or(0))
    }

    /// The moment at which the association reaches an age, in nanoseconds; 0 if that was
    /// before the clock's origin.
    fn reaches(self, age: Duration) -> u64 {
        u64::try_from(self.0.saturating_add(signed(nanos(age)))).unwrap_or(0)
    }
}

/// Saturates after 292 years.
fn signed(nanos: u64) -> i64 {
    i64::try_from(nanos).unwrap_or(i64::MAX)
}

/// Saturates after 584 years.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl LiveLifetime {
    /// Replaces the limits.
    pub(crate) fn set(&self, lifetime: &Lifetime, born: Birth) {
        self.soft.set(&lifetime.soft, born);
        self.hard.set(&lifetime.hard, born);
    }
}

/// The nearest of the limits that are still ahead; `u64::MAX` is none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nearest {
    /// The first limit reached is at this many packets, or this many bytes.
    pub(crate) usage: Usage,
    /// The first is reached at this moment at the earliest, in nanoseconds.
    pub(crate) time: u64,
}

impl LiveLifetime {
    /// The nearest of the limits; the soft ones count only if they are not `passed`.
    pub(crate) fn nearest(&self, passed: bool, used: Timestamp) -> Nearest {
        let hard = self.hard.ahead(used);
        if passed {
            return hard;
        }
        let soft = self.soft.ahead(used);
        Nearest {
            usage: Usage {
                bytes: soft.usage.bytes.min(hard.usage.bytes),
                packets: soft.usage.packets.min(hard.usage.packets),
            },
            time: soft.time.min(hard.time),
        }
    }
}

impl LiveLimits {
    fn ahead(&self, used: Timestamp) -> Nearest {
        let Budget(usage) = self.budget();
        let idle = self.idle.load(Ordering::Relaxed);
        let idle_at = used.as_nanos().saturating_add(idle);
        Nearest {
            usage,
            time: self.deadline.load(Ordering::Relaxed).min(idle_at),
        }
    }

    fn set(&self, limits: &Limits, born: Birth) {
        let store = |word: &AtomicU64, value| word.store(value, Ordering::Relaxed);
        store(&self.bytes, limits.bytes.unwrap_or(u64::MAX));
        store(&self.packets, limits.packets.unwrap_or(u64::MAX));
        let deadline = limits.time.map_or(u64::MAX, |time| born.reaches(time));
        store(&self.deadline, deadline);
        store(&self.idle, limits.idle.map_or(u64::MAX, nanos));
    }

    /// The limits in packets and bytes at this moment.
    #[inline]
    pub(crate) fn budget(&self) -> Budget {
        Budget(Usage {
            bytes: self.bytes.load(Ordering::Relaxed),
            packets: self.packets.load(Ordering::Relaxed),
        })
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
