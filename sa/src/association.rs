//! One security association.

use core::fmt;
use core::net::IpAddr;
use core::sync::atomic::Ordering;
use core::time::Duration;

use crate::event::{Event, Events, SaIdentity};
use crate::ident::{Direction, Spi, Timestamp, VmId};
use crate::inbound::{Commit, Precheck};
use crate::lease::{Lease, LeaseError, LeaseHolder, LeaseRequest, LeaseStore};
use crate::lifetime::Usage;
use crate::outbound::Reservation;
use crate::params::{Mode, SaParams};
use crate::replay::ReplayRefusal;
use crate::sequence::end_of_space;
use crate::snapshot::{Past, RestoreError, SaSnapshot};
use crate::state::{Flags, PacketState};
use crate::update::{SaUpdate, UpdateError};

/// A security association: its configuration, its per-packet state, and what the data path
/// keeps beside them (keys, prepared headers) as the `context`.
///
/// Any number of threads may send and receive with one association at a time. A call takes
/// the association's lock at most once, whatever the number of packets; [`check`](Self::check)
/// takes none.
///
/// An association with extended sequence numbers and without anti-replay service is allowed,
/// but ill-advised: each number is then taken to be the one nearest to the highest so far, and
/// a replayed packet that authenticates is accepted.
#[derive(Debug)]
#[repr(C)]
pub struct Sa<C> {
    pub(crate) state: PacketState,
    context: C,
    params: SaParams,
}

/// How far an association's life has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SaState {
    /// In use.
    Mature,
    /// A soft limit is reached; in use until it is replaced.
    Dying,
    /// A hard limit is reached or the sequence numbers are used up; carries nothing more.
    Dead,
    /// Removed from its database; carries nothing more.
    Deleted,
}

/// Parameters that contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaParamsError {
    /// The outer addresses are of different IP versions.
    AddressVersions {
        /// Outer source address.
        source: IpAddr,
        /// Outer destination address.
        destination: IpAddr,
    },
    /// The sequence number does not fit without extended sequence numbers.
    SequenceTooLarge {
        /// The number to continue from.
        sequence: u64,
    },
    /// Traffic flow confidentiality padding was asked for in transport mode, which can not
    /// tell it from the payload (RFC 4303 section 2.7).
    PaddedTransport {
        /// The padding in bytes.
        tfc_pad: u16,
    },
}

impl fmt::Display for SaParamsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddressVersions {
                source,
                destination,
            } => write!(
                f,
                "outer source {source} and destination {destination} are of different IP \
                 versions"
            ),
            Self::SequenceTooLarge { sequence } => write!(
                f,
                "sequence number {sequence} needs extended sequence numbers, which are off"
            ),
            Self::PaddedTransport { tfc_pad } => write!(
                f,
                "padding to {tfc_pad} bytes needs tunnel mode, but the mode is transport"
            ),
        }
    }
}

impl core::error::Error for SaParamsError {}

/// What an association has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SaStatistics {
    /// Packets sent, or accepted.
    pub packets: u64,
    /// Bytes that the cipher was applied to in those packets.
    pub bytes: u64,
    /// Received packets refused by their sequence number.
    pub replays: u64,
    /// Received packets that failed authentication.
    pub authentication_failures: u64,
    /// Packets refused because of a limit, of the lease or of deletion.
    pub refused: u64,
}

impl<C> Sa<C> {
    /// An association that begins now.
    ///
    /// Outbound it sends the number after `params.sequence` first, without a lease: any number
    /// of its space. Inbound its window ends at `params.sequence` and is empty, so that unseen
    /// numbers within it are still accepted; see [`with_all_seen`](Self::with_all_seen).
    pub fn new(params: SaParams, context: C, now: Timestamp) -> Result<Self, SaParamsError> {
        if params.source.is_ipv4() != params.destination.is_ipv4() {
            return Err(SaParamsError::AddressVersions {
                source: params.source,
                destination: params.destination,
            });
        }
        if params.sequence > end_of_space(params.esn) {
            return Err(SaParamsError::SequenceTooLarge {
                sequence: params.sequence,
            });
        }
        if params.tfc_pad != 0 && params.mode == Mode::Transport {
            return Err(SaParamsError::PaddedTransport {
                tfc_pad: params.tfc_pad,
            });
        }
        Ok(Self {
            state: PacketState::new(&params, now, Duration::ZERO),
            context,
            params,
        })
    }

    /// Inbound: no number up to `params.sequence` is accepted. For an association that may
    /// have received any of them before, as after a crash.
    pub fn with_all_seen(self) -> Self {
        self.state.see_all();
        self
    }

    /// Charges what the association had carried before a crash to its lifetime.
    pub fn with_past(mut self, past: Past, now: Timestamp) -> Self {
        let usage = Usage {
            packets: past.packets,
            bytes: past.bytes,
        };
        self.state = PacketState::new(&self.params, now, past.age);
        self.state.restore_usage(usage, now, 0);
        self
    }

    /// Takes over the state that another incarnation of the association had. Numbers of which
    /// the snapshot knows nothing, because its window was smaller, count as received.
    pub fn with_snapshot(
        mut self,
        snapshot: &SaSnapshot,
        now: Timestamp,
    ) -> Result<Self, RestoreError> {
        self.admit_identity(snapshot.spi, snapshot.direction, snapshot.esn)?;
        if self.params.sequence > snapshot.sequence() {
            return Err(RestoreError::Behind {
                snapshot: snapshot.sequence(),
                params: self.params.sequence,
            });
        }
        self.state = PacketState::new(&self.params, now, snapshot.age());
        self.state.restore(snapshot, now);
        Ok(self)
    }

    /// Ends `old` and takes over its state and its lease: the way to change parameters or
    /// context of an association in use. Threads that still hold `old` are refused as if it
    /// had been deleted, so that no sequence number is used by both.
    pub fn continuing(self, old: &Sa<C>, now: Timestamp) -> Result<Self, RestoreError> {
        self.admit_identity(old.spi(), old.direction(), old.esn())?;
        old.close();
        let snapshot = old.snapshot(now);
        let sa = Self {
            params: SaParams {
                sequence: 0,
                ..self.params
            },
            ..self
        }
        .with_snapshot(&snapshot, now)?;
        sa.state.copy_lease(&old.state);
        Ok(sa)
    }

    fn admit_identity(
        &self,
        spi: Spi,
        direction: Direction,
        esn: bool,
    ) -> Result<(), RestoreError> {
        if (spi, direction, esn) == (self.spi(), self.direction(), self.esn()) {
            Ok(())
        } else {
            Err(RestoreError::OtherAssociation)
        }
    }

    /// What the association was created with.
    #[inline]
    pub fn params(&self) -> &SaParams {
        &self.params
    }

    /// What the data path keeps beside the association.
    #[inline]
    pub fn context(&self) -> &C {
        &self.context
    }

    /// The security parameter index.
    #[inline]
    pub fn spi(&self) -> Spi {
        self.state.spi
    }

    /// The virtual machine that owns the association.
    #[inline]
    pub fn owner(&self) -> VmId {
        self.state.owner
    }

    /// Inbound or outbound.
    #[inline]
    pub fn direction(&self) -> Direction {
        self.state.direction
    }

    /// Transport or tunnel.
    #[inline]
    pub fn mode(&self) -> Mode {
        self.state.mode
    }

    /// Whether sequence numbers are extended to 64 bits.
    #[inline]
    pub fn esn(&self) -> bool {
        self.state.esn
    }

    /// The association's name outside of the database.
    pub fn identity(&self) -> SaIdentity {
        SaIdentity {
            owner: self.owner(),
            direction: self.direction(),
            destination: self.params.destination,
            spi: self.spi(),
        }
    }

    /// How far the association's life has gone.
    #[inline]
    pub fn state(&self) -> SaState {
        let flags = self.state.flags();
        if flags.contains(Flags::DELETED) {
            SaState::Deleted
        } else if flags.contains(Flags::DEAD) {
            SaState::Dead
        } else if flags.contains(Flags::DYING) {
            SaState::Dying
        } else {
            SaState::Mature
        }
    }

    /// Outbound the last sequence number used, inbound the highest one accepted.
    pub fn sequence(&self) -> u64 {
        self.state.sequence.load(Ordering::Relaxed)
    }

    /// Outbound: reserves a sequence number for each packet, in order, and charges the
    /// lifetime packet by packet. `lengths` are the bytes that the cipher is applied to; the
    /// iterator is driven to its end and must not use this association.
    ///
    /// Stops at the first packet that is refused. Numbers of packets that are then not sent
    /// are lost, which is harmless.
    #[inline]
    pub fn reserve(&self, now: Timestamp, lengths: impl Iterator<Item = u32>) -> Reservation {
        self.state.reserve(now, lengths)
    }

    /// Outbound: as [`reserve`](Self::reserve) for most runs, those that end far from every
    /// bound: the number of the first of `count` packets with that many bytes in all, and no
    /// event. `None`, and nothing has happened, asks for that one.
    #[inline]
    pub fn reserve_run(&self, now: Timestamp, count: u32, bytes: u64) -> Option<u64> {
        self.state.reserve_run(now, count, bytes)
    }

    /// Inbound, before authentication: the full sequence number of a packet that carries
    /// `sequence_low`, and whether it may still be received.
    ///
    /// Takes no lock and writes nothing unless it refuses (then it counts the replay). Beside
    /// other threads the answer may be a moment old: [`Commit::accept`] decides.
    #[inline]
    pub fn check(&self, sequence_low: u32) -> Result<u64, ReplayRefusal> {
        self.precheck().check(sequence_low)
    }

    /// Inbound, before authentication: [`check`](Self::check) for a run of packets, by the
    /// state of this moment.
    #[inline]
    pub fn precheck(&self) -> Precheck<'_> {
        self.state.precheck()
    }

    /// Inbound, after authentication: as [`commit`](Self::commit) for most runs, which come in
    /// order and end far from every bound. Accepts `packets`, each given by its full sequence
    /// number and the bytes that the cipher was applied to, from the first on, and returns how
    /// many; the one after those, and all later ones, want a [`Commit`]. There are no events.
    #[inline]
    pub fn accept_run(&self, now: Timestamp, packets: impl Iterator<Item = (u64, u32)>) -> usize {
        self.state.accept_run(now, packets)
    }

    /// Inbound, after authentication: takes the lock for a run of packets.
    #[inline]
    pub fn commit(&self, now: Timestamp) -> Commit<'_> {
        self.state.commit(now)
    }

    /// Inbound: counts a packet that failed authentication.
    ///
    /// Every sixteenth one in a row is a reason to look for the sender in other subspaces of
    /// extended sequence numbers ([`resync_candidates`](Self::resync_candidates)), and to
    /// report the failures, at most once a second.
    pub fn authentication_failed(&self, now: Timestamp) -> Events {
        self.state.authentication_failed(now)
    }

    /// Inbound, for a packet that failed authentication: full sequence numbers ahead of the
    /// inferred one that it might have instead (RFC 4303 appendix A3). The first to
    /// authenticate goes to [`Commit::accept`].
    ///
    /// At most 16 numbers, and only for one packet after every sixteenth failure in a row, so
    /// that forged packets at most double the work that they cause anyway. Empty without
    /// extended sequence numbers.
    pub fn resync_candidates(&self, sequence_low: u32) -> impl Iterator<Item = u64> + use<C> {
        self.state.resync_candidates(sequence_low)
    }

    /// Whether [`resync_candidates`](Self::resync_candidates) has something to offer.
    #[inline]
    pub fn is_resync_due(&self) -> bool {
        self.state.is_resync_due()
    }

    /// Enforces the time and idle limits when no packet passes; for the embedder's timer.
    pub fn expire(&self, now: Timestamp) -> Events {
        let _held = self.state.lock.acquire();
        self.state.expire_held(now)
    }

    /// Changes what may change while packets pass; all of it or, on an error, nothing.
    pub fn update(&self, update: &SaUpdate) -> Result<Events, UpdateError> {
        self.state.update(update)
    }

    /// Path MTU towards the peer in bytes, of the outer IP packet, if it is known.
    #[inline]
    pub fn mtu(&self) -> Option<u32> {
        Some(self.state.mtu.load(Ordering::Relaxed)).filter(|&mtu| mtu != 0)
    }

    /// Outbound: puts a lease in force. From the first lease on, only leased numbers are used;
    /// a lease that does not continue the one before makes the counter jump to it.
    pub fn set_lease(&self, lease: Lease) -> Result<(), LeaseError> {
        self.state.set_lease(lease)
    }

    /// Outbound: takes the next `size` numbers from `store` and puts them in force. To be
    /// called before the association is first used and on every [`Events::LEASE_LOW`].
    pub fn renew_lease(
        &self,
        store: &impl LeaseStore,
        holder: LeaseHolder,
        size: u32,
    ) -> Result<Lease, LeaseError> {
        if self.direction() == Direction::Inbound {
            return Err(LeaseError::Inbound);
        }
        let lease = store.grant(&LeaseRequest {
            sa: self.identity(),
            holder,
            used: self.sequence(),
            size,
            end: end_of_space(self.esn()),
        })?;
        self.set_lease(lease)?;
        Ok(lease)
    }

    /// Inbound: from now on no number above `mark` is accepted. Without a mark any number is.
    /// Returns the mark that is in force, which is never below the highest number accepted.
    ///
    /// Whoever makes every higher mark durable before it sets it (and a lower one after) can
    /// restore the association after a crash so that it accepts nothing twice: with the durable
    /// mark as `sequence` of its parameters, and [`with_all_seen`](Self::with_all_seen). To be
    /// called before the association is first used, and on every [`Events::LEASE_LOW`], which
    /// comes when half of the way to the mark is gone, or when an authentic packet was refused
    /// because of it.
    pub fn set_mark(&self, mark: u64) -> Result<u64, LeaseError> {
        self.state.set_mark(mark)
    }

    /// Inbound: the highest number accepted, or refused because of the mark alone. The next
    /// mark should be above it.
    pub fn highest_wanted(&self) -> u64 {
        self.state.highest_wanted()
    }

    /// Ends the association: from now on nothing is reserved or accepted.
    pub fn close(&self) {
        self.state.close();
    }

    /// The state at this moment, for [`with_snapshot`](Self::with_snapshot).
    pub fn snapshot(&self, now: Timestamp) -> SaSnapshot {
        let _held = self.state.lock.acquire();
        self.state.snapshot(now)
    }

    /// `events` of this association as messages.
    pub fn messages(&self, events: Events) -> impl Iterator<Item = Event> + use<C> {
        events.of(self.identity())
    }

    /// What the association has done so far.
    pub fn statistics(&self) -> SaStatistics {
        let usage = self.state.usage();
        SaStatistics {
            packets: usage.packets,
            bytes: usage.bytes,
            replays: self.state.replays.load(Ordering::Relaxed),
            authentication_failures: self.state.authentication_failures.load(Ordering::Relaxed),
            refused: self.state.refused(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{InboundRefusal, OutboundRefusal};

    fn params(direction: Direction) -> SaParams {
        SaParams::new(
            Spi::new(0x1000).unwrap(),
            direction,
            Mode::Tunnel,
            "192.0.2.1".parse().unwrap(),
            "192.0.2.2".parse().unwrap(),
        )
    }

    #[test]
    fn numbers_begin_with_one_and_never_cycle() {
        let mut params = params(Direction::Outbound);
        let sa = Sa::new(params.clone(), (), Timestamp::ZERO).unwrap();
        let first = sa.reserve(Timestamp::ZERO, [10, 20].into_iter());
        assert_eq!((first.first, first.count, first.refused), (1, 2, None));

        params.sequence = u64::from(u32::MAX) - 2;
        let sa = Sa::new(params.clone(), (), Timestamp::ZERO).unwrap();
        let last = sa.reserve(Timestamp::ZERO, [1; 5].into_iter());
        assert_eq!((last.first, last.count), (u64::from(u32::MAX) - 1, 2));
        assert_eq!(last.refused, Some(OutboundRefusal::SequenceExhausted));
        assert_eq!(
            last.events,
            Events::SEQUENCE_HIGH | Events::SEQUENCE_OVERFLOW
        );
        assert_eq!(sa.state(), SaState::Dead);
        let none = sa.reserve(Timestamp::ZERO, [1].into_iter());
        assert_eq!(none.refused, Some(OutboundRefusal::SequenceExhausted));
        assert_eq!((none.count, none.events), (0, Events::NONE));
        assert_eq!(sa.statistics().refused, 4);

        params.esn = true;
        params.sequence = u64::MAX - 1;
        let sa = Sa::new(params, (), Timestamp::ZERO).unwrap();
        let last = sa.reserve(Timestamp::ZERO, [1; 5].into_iter());
        assert_eq!((last.first, last.count), (u64::MAX, 1));
        assert_eq!(last.refused, Some(OutboundRefusal::SequenceExhausted));
    }

    #[test]
    fn a_number_is_accepted_once() {
        let sa = Sa::new(params(Direction::Inbound), (), Timestamp::ZERO).unwrap();
        assert_eq!(sa.check(0), Err(ReplayRefusal::Zero));
        assert_eq!(sa.check(70), Ok(70));
        let mut commit = sa.commit(Timestamp::ZERO);
        assert_eq!(commit.accept(70, 100), Ok(()));
        let twin = commit.accept(70, 100);
        assert_eq!(twin, Err(InboundRefusal::Replay(ReplayRefusal::Seen)));
        assert_eq!(commit.finish(), Events::NONE);
        assert_eq!(sa.check(70), Err(ReplayRefusal::Seen));
        assert_eq!(sa.check(6), Err(ReplayRefusal::Old));
        assert_eq!(sa.check(7), Ok(7));
        let statistics = sa.statistics();
        assert_eq!((statistics.packets, statistics.replays), (1, 4));
    }
}
