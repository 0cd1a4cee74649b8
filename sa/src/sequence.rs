//! Where a sequence counter may go (RFC 4303 section 3.3.3).

use core::sync::atomic::{AtomicU64, Ordering};

use crate::event::Events;
use crate::lease::{Lease, LeaseError};
use crate::outbound::OutboundRefusal;

/// The bounds of an outbound association's sequence counter: the end of the number space and
/// the end of the lease.
///
/// The packet path compares the counter with one word, its next stop, and asks here only when
/// it has got there.
#[derive(Debug)]
pub(crate) struct SequenceBounds {
    end: u64,
    /// The last leased number; `u64::MAX` without a lease.
    lease_last: AtomicU64,
    /// At this number the lease is to be renewed; `u64::MAX` without a lease.
    lease_low: AtomicU64,
}

/// What the packet path learns at a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stop {
    /// The last number that may be used before asking again.
    pub(crate) next: u64,
    /// Which marks the counter has passed, whether reported before or not.
    pub(crate) passed: Events,
}

impl SequenceBounds {
    /// No lease: every number of the space may be used.
    pub(crate) fn unleased(esn: bool) -> Self {
        Self {
            end: end_of_space(esn),
            lease_last: AtomicU64::new(u64::MAX),
            lease_low: AtomicU64::new(u64::MAX),
        }
    }

    /// Puts a lease in force after the number `used` and returns the number to go on from:
    /// `used` if the lease continues the one before, else the one that precedes the lease.
    pub(crate) fn set_lease(&self, lease: Lease, used: u64) -> Result<u64, LeaseError> {
        if lease.first() <= used {
            return Err(LeaseError::Overlap {
                first: lease.first(),
                used,
            });
        }
        if lease.last() > self.end {
            return Err(LeaseError::BeyondEnd { last: lease.last() });
        }
        let before = lease.first() - 1;
        let continues = before == self.lease_last.load(Ordering::Relaxed);
        self.lease_last.store(lease.last(), Ordering::Relaxed);
        self.lease_low.store(lease.middle(), Ordering::Relaxed);
        Ok(if continues { used } else { before })
    }

    /// Whether `number` may be used some time.
    pub(crate) fn covers(&self, number: u64) -> bool {
        number <= self.end.min(self.lease_last.load(Ordering::Relaxed))
    }

    /// The same lease for another association.
    pub(crate) fn copy_lease(&self, from: &SequenceBounds) {
        for (to, from) in [
            (&self.lease_last, &from.lease_last),
            (&self.lease_low, &from.lease_low),
        ] {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Whether and how far the counter may go on after `last`.
    ///
    //= https://www.rfc-editor.org/rfc/rfc4303#section-3.3.3
    //# In other words, the sender MUST NOT send a packet on an SA if doing so
    //# would cause the sequence number to cycle.
    pub(crate) fn stop_after(&self, last: u64) -> Result<Stop, OutboundRefusal> {
        if last >= self.end {
            return Err(OutboundRefusal::SequenceExhausted);
        }
        let lease_last = self.lease_last.load(Ordering::Relaxed);
        if last >= lease_last {
            return Err(OutboundRefusal::LeaseExhausted);
        }
        let mut stop = Stop {
            next: self.end.min(lease_last),
            passed: Events::NONE,
        };
        let lease_low = self.lease_low.load(Ordering::Relaxed);
        let sequence_high = self.end / 8 * 7;
        for (mark, event) in [
            (sequence_high, Events::SEQUENCE_HIGH),
            (lease_low, Events::LEASE_LOW),
        ] {
            if last >= mark {
                stop.passed |= event;
            } else {
                stop.next = stop.next.min(mark);
            }
        }
        Ok(stop)
    }
}

/// The last number: 2^32 - 1, or 2^64 - 1 with extended sequence numbers.
pub(crate) const fn end_of_space(esn: bool) -> u64 {
    if esn { u64::MAX } else { u32::MAX as u64 }
}
