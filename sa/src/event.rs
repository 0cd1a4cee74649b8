//! What an association, a database or an adapter has to tell the key manager.

use core::fmt;
use core::net::IpAddr;
use core::ops::{BitOr, BitOrAssign};

use crate::ident::{Direction, Spi, VmId};
use crate::selector::Flow;

/// Names one association outside of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SaIdentity {
    /// The virtual machine that owns the association.
    pub owner: VmId,
    /// Inbound or outbound.
    pub direction: Direction,
    /// Outer destination address.
    pub destination: IpAddr,
    /// The security parameter index.
    pub spi: Spi,
}

impl fmt::Display for SaIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} SA {} to {} of {}",
            self.direction, self.spi, self.destination, self.owner
        )
    }
}

/// What RFC 4303 section 4 wants told of a packet that is refused.
///
//= https://www.rfc-editor.org/rfc/rfc4303#section-3.4.2
//# The
//# audit log entry for this event SHOULD include the SPI value,
//# date/time received, Source Address, Destination Address, Sequence
//# Number, and (in IPv6) the cleartext Flow ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditedPacket {
    /// The index, which may be a reserved one.
    pub spi: u32,
    /// Outer source address.
    pub source: IpAddr,
    /// Outer destination address.
    pub destination: IpAddr,
    /// The sequence number on the wire.
    pub sequence: u32,
    /// The flow label of the outer header, if that is IPv6.
    pub flow_label: Option<u32>,
}

impl fmt::Display for AuditedPacket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "SPI 0x{:08x}, {} to {}, sequence number {}",
            self.spi, self.source, self.destination, self.sequence
        )?;
        match self.flow_label {
            Some(label) => write!(f, ", flow label 0x{label:05x}"),
            None => Ok(()),
        }
    }
}

/// Why a packet was refused, as far as RFC 4303 calls that an auditable event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Auditable {
    /// It names no association (section 3.4.2).
    NoAssociation,
    /// It is a fragment (section 3.4.1).
    Fragment,
    /// Its sequence number was seen before, or is too old to tell (section 3.4.3).
    Replay,
    /// Its integrity check fails (section 3.4.4).
    Integrity,
}

/// A message for the key manager: what PF_KEY and xfrm call acquire and expire, and what
/// RFC 4303 wants audited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A policy demands protection and there is no association for it.
    Acquire {
        /// The virtual machine whose packet it was.
        owner: VmId,
        /// The `reqid` of the policy.
        reqid: u32,
        /// The packet's flow.
        flow: Flow,
    },
    /// A soft limit is reached: negotiate a replacement.
    SoftExpire(SaIdentity),
    /// A hard limit is reached: the association carries nothing more.
    HardExpire(SaIdentity),
    /// Seven eighths of the sequence numbers are used: negotiate a replacement.
    SequenceHigh(SaIdentity),
    /// The sequence numbers are used up (RFC 4303 section 3.3.3).
    SequenceOverflow(SaIdentity),
    /// Half of the granted sequence numbers are used, or one was needed that is not granted:
    /// renew the lease of an outbound association ([`Sa::renew_lease`](crate::Sa::renew_lease)),
    /// raise the mark of an inbound one ([`Sa::set_mark`](crate::Sa::set_mark)).
    LeaseLow(SaIdentity),
    /// Several packets in a row failed authentication.
    AuthenticationFailures(SaIdentity),
    /// A packet named an association that does not exist (RFC 4303 section 3.4.2).
    BadSpi {
        /// The virtual machine whose receive filter took the packet, if one did.
        receiver: Option<VmId>,
        /// The packet.
        packet: AuditedPacket,
    },
    /// A packet was refused: of each reason, at most one a second is told of.
    PacketRefused {
        /// The association that it named, if it named one that exists.
        sa: Option<SaIdentity>,
        /// Why.
        reason: Auditable,
        /// The packet.
        packet: AuditedPacket,
    },
    /// Most of what a virtual machine or the adapter can hold is used.
    CapacityLow {
        /// Who runs out of capacity; the host stands for the adapter as a whole.
        owner: VmId,
        /// Associations that exist.
        used: u32,
        /// Associations that may exist.
        limit: u32,
    },
    /// The adapter was reset; what was in flight is lost.
    Reset,
}

/// The events of one association during one call: a small set without order.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Events(u8);

impl Events {
    /// Nothing happened.
    pub const NONE: Events = Events(0);
    /// See [`Event::SoftExpire`].
    pub const SOFT_EXPIRE: Events = Events(1);
    /// See [`Event::HardExpire`].
    pub const HARD_EXPIRE: Events = Events(1 << 1);
    /// See [`Event::SequenceHigh`].
    pub const SEQUENCE_HIGH: Events = Events(1 << 2);
    /// See [`Event::SequenceOverflow`].
    pub const SEQUENCE_OVERFLOW: Events = Events(1 << 3);
    /// See [`Event::LeaseLow`].
    pub const LEASE_LOW: Events = Events(1 << 4);
    /// See [`Event::AuthenticationFailures`].
    pub const AUTHENTICATION_FAILURES: Events = Events(1 << 5);

    /// Whether nothing happened.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether everything in `other` happened.
    pub const fn contains(self, other: Events) -> bool {
        self.0 & other.0 == other.0
    }

    /// The events as messages about the association `sa`.
    pub fn of(self, sa: SaIdentity) -> impl Iterator<Item = Event> {
        KINDS
            .iter()
            .filter(move |kind| self.contains(kind.set))
            .map(move |kind| (kind.message)(sa))
    }
}

/// One kind of event of an association.
struct Kind {
    set: Events,
    message: fn(SaIdentity) -> Event,
    name: &'static str,
}

const fn kind(set: Events, message: fn(SaIdentity) -> Event, name: &'static str) -> Kind {
    Kind { set, message, name }
}

const KINDS: [Kind; 6] = [
    kind(Events::SOFT_EXPIRE, Event::SoftExpire, "soft expire"),
    kind(Events::HARD_EXPIRE, Event::HardExpire, "hard expire"),
    kind(Events::SEQUENCE_HIGH, Event::SequenceHigh, "sequence high"),
    kind(
        Events::SEQUENCE_OVERFLOW,
        Event::SequenceOverflow,
        "sequence overflow",
    ),
    kind(Events::LEASE_LOW, Event::LeaseLow, "lease low"),
    kind(
        Events::AUTHENTICATION_FAILURES,
        Event::AuthenticationFailures,
        "authentication failures",
    ),
];

impl BitOr for Events {
    type Output = Events;

    fn bitor(self, other: Events) -> Events {
        Events(self.0 | other.0)
    }
}

impl BitOrAssign for Events {
    fn bitor_assign(&mut self, other: Events) {
        self.0 |= other.0;
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = KINDS
            .iter()
            .filter(|kind| self.contains(kind.set))
            .map(|kind| kind.name);
        f.debug_set().entries(names).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_becomes_one_message_per_member() {
        let sa = SaIdentity {
            owner: VmId(7),
            direction: Direction::Outbound,
            destination: "192.0.2.1".parse().unwrap(),
            spi: Spi::MIN,
        };
        assert_eq!(Events::NONE.of(sa).count(), 0);
        let events = Events::HARD_EXPIRE | Events::LEASE_LOW;
        let messages: Vec<_> = events.of(sa).collect();
        assert_eq!(messages, [Event::HardExpire(sa), Event::LeaseLow(sa)]);
        assert_eq!(format!("{events:?}"), r#"{"hard expire", "lease low"}"#);
        assert_eq!(sa.to_string(), "outbound SA 0x00000100 to 192.0.2.1 of vm7");
    }
}
