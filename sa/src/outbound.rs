//! Sending: sequence numbers and lifetimes are reserved for a run of packets at once.

use core::fmt;
use core::sync::atomic::Ordering;

use crate::event::Events;
use crate::ident::Timestamp;
use crate::lease::{Lease, LeaseError};
use crate::lifetime::Usage;
use crate::state::{Flags, PacketState, PerDirection};

/// What [`Sa::reserve`](crate::Sa::reserve) granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a reserved number is used up, whether a packet is sent with it or not"]
pub struct Reservation {
    /// The number of the first packet; those of the others follow it one by one. Of no
    /// meaning if `count` is 0.
    pub first: u64,
    /// How many packets were granted a number, from the first one on.
    pub count: u32,
    /// Why the packet after those, and all later ones, were not.
    pub refused: Option<OutboundRefusal>,
    /// What the key manager should know.
    pub events: Events,
}

/// Why an association sends no further packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutboundRefusal {
    /// A hard limit is reached.
    Expired,
    /// All sequence numbers are used; the counter does not cycle.
    SequenceExhausted,
    /// All leased sequence numbers are used.
    LeaseExhausted,
    /// The association was deleted.
    Deleted,
    /// The association is inbound; it sends nothing.
    Inbound,
}

impl fmt::Display for OutboundRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "a hard lifetime limit is reached; replace the association",
            Self::SequenceExhausted => "all sequence numbers are used; replace the association",
            Self::LeaseExhausted => "all leased sequence numbers are used; renew the lease",
            Self::Deleted => "the association was deleted",
            Self::Inbound => "the association is inbound and sends nothing",
        })
    }
}

impl core::error::Error for OutboundRefusal {}

impl PacketState {
    /// As [`reserve`](Self::reserve), up to the horizon.
    #[inline]
    pub(crate) fn reserve_run(&self, now: Timestamp, count: u32, bytes: u64) -> Option<u64> {
        let _held = self.lock.acquire();
        let before = self.sequence.load(Ordering::Relaxed);
        // RFC 4303 section 3.3.3: a number must not cycle. A run that would go past the last one
        // is looked at packet by packet.
        let last = before.checked_add(count.into())?;
        let before_usage = self.usage();
        let usage = Usage {
            bytes: before_usage.bytes.saturating_add(bytes),
            packets: before_usage.packets.wrapping_add(count.into()),
        };
        let horizon = &self.horizon;
        if last > horizon.sequence.load(Ordering::Relaxed)
            || usage.bytes >= horizon.bytes.load(Ordering::Relaxed)
            || now.as_nanos() >= horizon.time.load(Ordering::Relaxed)
        {
            return None;
        }
        self.sequence.store(last, Ordering::Relaxed);
        self.use_up(usage, now);
        Some(before + 1)
    }

    pub(crate) fn reserve(
        &self,
        now: Timestamp,
        lengths: impl Iterator<Item = u32>,
    ) -> Reservation {
        let mut lengths = lengths.fuse();
        let _held = self.lock.acquire();
        let mut events = self.expire_held(now);
        let first = self.sequence.load(Ordering::Relaxed).wrapping_add(1);
        let mut stop = self.stop.load(Ordering::Relaxed);
        let mut last = first.wrapping_sub(1);
        let budget = self.lifetime.hard.budget();
        let mut usage = self.usage();
        let mut refused = None;
        for length in &mut lengths {
            if last >= stop {
                match self.next_stop(last, &mut events) {
                    Ok(next) => stop = next,
                    Err(refusal) => {
                        refused = Some(refusal);
                        break;
                    }
                }
            }
            match budget.charge(usage, length) {
                Some(charged) => usage = charged,
                None => {
                    events |= self.raise(Flags::DEAD, Events::HARD_EXPIRE);
                    refused = Some(OutboundRefusal::Expired);
                    break;
                }
            }
            last += 1;
        }
        let count = last.wrapping_sub(first).wrapping_add(1) as u32;
        if count > 0 {
            self.sequence.store(last, Ordering::Relaxed);
            self.use_up(usage, now);
            events |= self.settle(usage);
        }
        self.look_ahead();
        if refused.is_some() {
            self.count_refused(1 + lengths.count() as u64);
        }
        Reservation {
            first,
            count,
            refused,
            events,
        }
    }

    /// Puts a lease in force.
    pub(crate) fn set_lease(&self, lease: Lease) -> Result<(), LeaseError> {
        let PerDirection::Outbound(bounds) = &self.per_direction else {
            return Err(LeaseError::Inbound);
        };
        let _held = self.lock.acquire();
        let used = self.sequence.load(Ordering::Relaxed);
        let last = bounds.set_lease(lease, used)?;
        self.sequence.store(last, Ordering::Relaxed);
        self.ask_again();
        self.clear(Flags::LEASE_LOW);
        Ok(())
    }

    /// The last number that may be used after `last` before asking again.
    #[cold]
    fn next_stop(&self, last: u64, events: &mut Events) -> Result<u64, OutboundRefusal> {
        let PerDirection::Outbound(bounds) = &self.per_direction else {
            return Err(OutboundRefusal::Inbound);
        };
        let flags = self.flags();
        if flags.contains(Flags::DELETED) {
            return Err(OutboundRefusal::Deleted);
        }
        if flags.contains(Flags::DEAD) && !flags.contains(Flags::OVERFLOW) {
            return Err(OutboundRefusal::Expired);
        }
        match bounds.stop_after(last) {
            Ok(stop) => {
                if stop.passed.contains(Events::SEQUENCE_HIGH) {
                    *events |= self.raise(Flags::SEQUENCE_HIGH, Events::SEQUENCE_HIGH);
                }
                if stop.passed.contains(Events::LEASE_LOW) {
                    *events |= self.raise(Flags::LEASE_LOW, Events::LEASE_LOW);
                }
                self.stop.store(stop.next, Ordering::Relaxed);
                Ok(stop.next)
            }
            Err(refusal) => {
                if refusal == OutboundRefusal::SequenceExhausted {
                    *events |= self.raise(Flags::DEAD | Flags::OVERFLOW, Events::SEQUENCE_OVERFLOW);
                }
                Err(refusal)
            }
        }
    }
}
