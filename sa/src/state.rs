//! The per-packet state of an association: what changes while packets pass.

use core::ops::BitOr;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

use crate::event::Events;
use crate::ident::{Direction, Spi, Timestamp, VmId};
use crate::lifetime::{Birth, LiveLifetime, Usage};
use crate::lock::SpinLock;
use crate::mark::Marks;
use crate::params::{Lifetime, Mode, SaParams};
use crate::replay::ReplayWindow;
use crate::sequence::{SequenceBounds, end_of_space};

/// Everything that the packet path reads or writes, ordered so that a run of packets touches
/// as few cache lines as possible: the first two, inbound one more for the window; what lies
/// behind is for packets at the edge of a lease or a limit, and for refusals.
///
/// All words are written under `lock` only, except the counters of refusals.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct PacketState {
    pub(crate) lock: SpinLock,
    flags: AtomicU32,
    /// Outbound the last number used, inbound the highest one received.
    pub(crate) sequence: AtomicU64,
    pub(crate) horizon: Horizon,
    packets: AtomicU64,
    bytes: AtomicU64,
    /// The moment of the latest packet, or of the addition.
    used: AtomicU64,

    pub(crate) spi: Spi,
    pub(crate) owner: VmId,
    /// 0 is unknown.
    pub(crate) mtu: AtomicU32,
    pub(crate) direction: Direction,
    pub(crate) mode: Mode,
    pub(crate) esn: bool,
    /// An attempt at resynchronisation is due.
    pub(crate) resync_due: AtomicBool,
    /// Authentication failures since the last accepted packet or the last report.
    pub(crate) failures_in_a_row: AtomicU8,
    /// The last number that may be used or accepted before asking for the next stop; 0 once
    /// nothing more may be.
    pub(crate) stop: AtomicU64,
    pub(crate) per_direction: PerDirection,

    pub(crate) lifetime: LiveLifetime,
    born: Birth,
    pub(crate) authentication_failures: AtomicU64,
    pub(crate) failures_reported: AtomicU64,
    pub(crate) replays: AtomicU64,
    refused: AtomicU64,
}

/// How far packets pass without a closer look at limits, lease and mark: derived from all of
/// them by [`PacketState::look_ahead`], never farther than they allow, and forgotten when one of
/// them changes.
#[derive(Debug)]
pub(crate) struct Horizon {
    /// The last number; 0 asks for the closer look. Packet limits are in it.
    pub(crate) sequence: AtomicU64,
    /// So many bytes in all are too many.
    pub(crate) bytes: AtomicU64,
    /// From this moment on, in nanoseconds, it takes a closer look.
    pub(crate) time: AtomicU64,
}

/// The part of the state that only one direction has.
#[derive(Debug)]
pub(crate) enum PerDirection {
    Inbound(ReplayWindow, Marks),
    Outbound(SequenceBounds),
}

/// Conditions that an association enters once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flags(pub(crate) u32);

impl Flags {
    /// A soft limit was reached.
    pub(crate) const DYING: Flags = Flags(1);
    /// A hard limit was reached, or the numbers are used up.
    pub(crate) const DEAD: Flags = Flags(1 << 1);
    pub(crate) const DELETED: Flags = Flags(1 << 2);
    pub(crate) const SEQUENCE_HIGH: Flags = Flags(1 << 3);
    /// The sequence numbers are used up.
    pub(crate) const OVERFLOW: Flags = Flags(1 << 4);
    pub(crate) const LEASE_LOW: Flags = Flags(1 << 5);

    pub(crate) const fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Flags {
    type Output = Flags;

    fn bitor(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }
}

impl PacketState {
    /// The state of an association of this age.
    pub(crate) fn new(params: &SaParams, now: Timestamp, age: Duration) -> Self {
        let born = Birth::new(now, age);
        let lifetime = LiveLifetime::default();
        lifetime.set(&params.lifetime, born);
        Self {
            lock: SpinLock::default(),
            flags: AtomicU32::new(0),
            sequence: AtomicU64::new(params.sequence),
            horizon: Horizon {
                sequence: AtomicU64::new(0),
                bytes: AtomicU64::new(0),
                time: AtomicU64::new(0),
            },
            packets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            used: AtomicU64::new(now.as_nanos()),
            spi: params.spi,
            owner: params.owner,
            mtu: AtomicU32::new(params.mtu.unwrap_or(0)),
            direction: params.direction,
            mode: params.mode,
            esn: params.esn,
            resync_due: AtomicBool::new(false),
            failures_in_a_row: AtomicU8::new(0),
            stop: AtomicU64::new(0),
            per_direction: match params.direction {
                Direction::Inbound => {
                    PerDirection::Inbound(ReplayWindow::new(params.replay), Marks::unmarked())
                }
                Direction::Outbound => PerDirection::Outbound(SequenceBounds::unleased(params.esn)),
            },
            lifetime,
            born,
            authentication_failures: AtomicU64::new(0),
            failures_reported: AtomicU64::new(0),
            replays: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    #[inline]
    pub(crate) fn flags(&self) -> Flags {
        Flags(self.flags.load(Ordering::Relaxed))
    }

    /// Enters a condition; the event if it is a new one. Needs the lock.
    pub(crate) fn raise(&self, flags: Flags, event: Events) -> Events {
        let before = self.flags();
        if before.contains(flags) {
            return Events::NONE;
        }
        self.flags.store((before | flags).0, Ordering::Relaxed);
        if flags.0 & (Flags::DEAD | Flags::DELETED).0 != 0 {
            self.ask_again();
        }
        event
    }

    /// Asks for the next stop before another packet passes. Needs the lock.
    pub(crate) fn ask_again(&self) {
        self.stop.store(0, Ordering::Relaxed);
        self.horizon.sequence.store(0, Ordering::Relaxed);
    }

    /// Derives the horizon anew, after packets have passed by a closer look. Needs the lock.
    pub(crate) fn look_ahead(&self) {
        let dying = self.flags().contains(Flags::DYING);
        let nearest = self.lifetime.nearest(dying, self.used());
        let usage = self.usage();
        // A packet may use one number only, so that a limit in packets is one in numbers.
        let left = nearest
            .usage
            .packets
            .saturating_sub(usage.packets.saturating_add(1));
        let sequence = self.sequence.load(Ordering::Relaxed).saturating_add(left);
        let stop = self.stop.load(Ordering::Relaxed);
        let horizon = &self.horizon;
        horizon.sequence.store(
            sequence.min(stop).min(end_of_space(self.esn)),
            Ordering::Relaxed,
        );
        horizon.bytes.store(nearest.usage.bytes, Ordering::Relaxed);
        horizon.time.store(nearest.time, Ordering::Relaxed);
    }

    /// Leaves a condition. Needs the lock.
    pub(crate) fn clear(&self, flags: Flags) {
        self.flags
            .store(self.flags().0 & !flags.0, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn usage(&self) -> Usage {
        Usage {
            bytes: self.bytes.load(Ordering::Relaxed),
            packets: self.packets.load(Ordering::Relaxed),
        }
    }

    /// Needs the lock.
    #[inline]
    pub(crate) fn use_up(&self, usage: Usage, now: Timestamp) {
        self.bytes.store(usage.bytes, Ordering::Relaxed);
        self.packets.store(usage.packets, Ordering::Relaxed);
        let used = self.used.load(Ordering::Relaxed).max(now.as_nanos());
        self.used.store(used, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn used(&self) -> Timestamp {
        Timestamp::from_nanos(self.used.load(Ordering::Relaxed))
    }

    pub(crate) fn age(&self, now: Timestamp) -> Duration {
        self.born.age(now)
    }

    /// Needs the lock.
    pub(crate) fn restore_usage(&self, usage: Usage, used: Timestamp, refused: u64) {
        self.bytes.store(usage.bytes, Ordering::Relaxed);
        self.packets.store(usage.packets, Ordering::Relaxed);
        self.used.store(used.as_nanos(), Ordering::Relaxed);
        self.refused.store(refused, Ordering::Relaxed);
        self.horizon.sequence.store(0, Ordering::Relaxed);
    }

    /// Replaces the limits. A soft limit that was reached is armed again. Needs the lock.
    pub(crate) fn set_lifetime(&self, lifetime: &Lifetime) {
        self.lifetime.set(lifetime, self.born);
        self.clear(Flags::DYING);
        self.horizon.sequence.store(0, Ordering::Relaxed);
    }

    pub(crate) fn close(&self) {
        let _held = self.lock.acquire();
        self.raise(Flags::DELETED, Events::NONE);
    }

    pub(crate) fn see_all(&self) {
        if let PerDirection::Inbound(window, _) = &self.per_direction {
            let _held = self.lock.acquire();
            window.mark_all();
        }
    }

    /// The same lease or mark as another incarnation has.
    pub(crate) fn copy_lease(&self, from: &PacketState) {
        match (&self.per_direction, &from.per_direction) {
            (PerDirection::Outbound(to), PerDirection::Outbound(from)) => to.copy_lease(from),
            (PerDirection::Inbound(_, to), PerDirection::Inbound(_, from)) => to.copy(from),
            _ => {}
        }
    }

    /// Compares usage with the limits after packets have passed. Needs the lock.
    #[inline]
    pub(crate) fn settle(&self, usage: Usage) -> Events {
        let mut events = Events::NONE;
        if self.lifetime.soft.is_used_up(usage) {
            events |= self.raise(Flags::DYING, Events::SOFT_EXPIRE);
        }
        if self.lifetime.hard.is_used_up(usage) {
            events |= self.raise(Flags::DEAD, Events::HARD_EXPIRE);
        }
        events
    }

    /// Compares the clock with the limits. Needs the lock.
    #[inline]
    pub(crate) fn expire_held(&self, now: Timestamp) -> Events {
        let mut events = Events::NONE;
        let used = self.used();
        if self.lifetime.soft.is_over(now, used) {
            events |= self.raise(Flags::DYING, Events::SOFT_EXPIRE);
        }
        if self.lifetime.hard.is_over(now, used) {
            events |= self.raise(Flags::DEAD, Events::HARD_EXPIRE);
        }
        events
    }

    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Needs the lock.
    pub(crate) fn count_refused(&self, packets: u64) {
        self.refused
            .store(self.refused().saturating_add(packets), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use core::mem::{offset_of, size_of};

    use super::*;

    /// The size of a cache line on the processors that this is for, in bytes.
    const LINE: usize = 64;

    #[test]
    fn hot_words_share_cache_lines() {
        assert_eq!(offset_of!(PacketState, spi), LINE);
        assert!(offset_of!(PacketState, stop) < 2 * LINE);
        let size = size_of::<PacketState>();
        println!("per-packet state of an association with a window up to 1,024: {size} bytes");
        assert!(size <= 384, "{size} bytes");
    }
}
