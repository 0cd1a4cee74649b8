//! Security associations and policy for IPsec ESP: which associations exist, whose they are,
//! and what they may still do (RFC 4301, RFC 4303).
//!
//! An [`Sa`] hands out sequence numbers, recognises replayed packets and enforces lifetimes, for
//! any number of threads at a time and a run of packets per call. A [`Sad`] knows whose the
//! associations are, an [`Spd`] which packets need one, and a [`Database`] publishes changes to
//! both as one epoch.
//!
//! # What it is not
//!
//! - It knows no algorithm and holds no key: what the data path keeps beside an association is
//!   the type parameter `C`.
//! - It neither opens nor seals packets.
//! - It does no input or output, starts no thread and has no clock: the caller passes the
//!   moment ([`Timestamp`]), and delivers what is to be said ([`Event`]).
//! - It stores nothing: sequence numbers survive a crash through a [`LeaseStore`], everything
//!   else through an [`SaSnapshot`].
//!
//! # The packet path
//!
//! ```text
//! send      policy -> Epoch::outbound -> Sa::reserve -> (seal)
//! receive   Epoch::inbound -> Sa::check -> (open) -> Commit::accept
//!                                             \--> Sa::authentication_failed
//! ```
//!
//! # Example
//!
//! ```
//! use vesper_sa::{Direction, Mode, Sa, SaParams, Spi, Timestamp};
//!
//! let now = Timestamp::from_secs(1);
//! let params = |direction| {
//!     SaParams::new(
//!         Spi::new(0x1000).unwrap(),
//!         direction,
//!         Mode::Tunnel,
//!         "192.0.2.1".parse().unwrap(),
//!         "192.0.2.2".parse().unwrap(),
//!     )
//! };
//! let sender = Sa::new(params(Direction::Outbound), (), now)?;
//! let receiver = Sa::new(params(Direction::Inbound), (), now)?;
//!
//! // Three packets to send: numbers 1, 2 and 3.
//! let granted = sender.reserve(now, [1400, 1400, 60].into_iter());
//! assert_eq!((granted.first, granted.count, granted.refused), (1, 3, None));
//!
//! // The third arrives twice. Both pass the check, only one is accepted.
//! let sequence = receiver.check(3)?;
//! assert_eq!(receiver.check(3), Ok(sequence));
//! let mut commit = receiver.commit(now);
//! assert!(commit.accept(sequence, 60).is_ok());
//! assert!(commit.accept(sequence, 60).is_err());
//! assert!(commit.finish().is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod association;
mod database;
mod event;
mod handle;
mod ident;
mod inbound;
mod interval;
mod lease;
mod lifetime;
mod lock;
mod mark;
mod outbound;
mod params;
mod replay;
mod sad;
mod sad_error;
mod selector;
mod sequence;
mod snapshot;
mod spd;
mod state;
mod table;
mod update;

pub use association::{Sa, SaParamsError, SaState, SaStatistics};
pub use database::{Change, Database, Epoch, Reader, Readers, View};
pub use event::{Auditable, AuditedPacket, Event, Events, SaIdentity};
pub use handle::{ReceiveKey, Receiver, SaHandle};
pub use ident::{Direction, Spi, Timestamp, VmId};
pub use inbound::{Commit, InboundRefusal, Precheck};
pub use lease::{
    Lease, LeaseError, LeaseHolder, LeaseRecord, LeaseRequest, LeaseStore, MAX_SKIP,
    MemoryLeaseStore,
};
pub use outbound::{OutboundRefusal, Reservation};
pub use params::{
    Df, Dscp, Ecn, Lifetime, Limits, Mode, NAT_TRAVERSAL_PORT, NatChecksum, ReplayProtection,
    SaParams, Scope, TunnelHeader, UdpEncapsulation, WindowSize,
};
pub use replay::ReplayRefusal;
pub use sad::{DEFAULT_SA_LIMIT, Detached, SaUsage, Sad};
pub use sad_error::{AddError, ChangeError, NotFound, SpiError};
pub use selector::{AddressRange, Flow, PortRange, Ports, Selector};
pub use snapshot::{Past, RestoreError, SaSnapshot, SnapshotError};
pub use spd::{Action, Policy, Protection, Spd};
pub use update::{SaUpdate, UpdateError};
