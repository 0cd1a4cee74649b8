//! What an association is configured with: everything but its keys and its per-packet state.

use core::net::IpAddr;
use core::num::NonZeroU16;
use core::time::Duration;

use crate::ident::{Direction, Spi, VmId};
use crate::selector::Selector;

/// The parameters of one association (RFC 4301 section 4.4.2.1).
///
/// Keys are not here: the database knows no algorithm. What the data path keeps beside an
/// association is the type parameter of [`Sa`](crate::Sa).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaParams {
    /// The security parameter index.
    pub spi: Spi,
    /// Inbound or outbound.
    pub direction: Direction,
    /// The virtual machine that owns the association.
    pub owner: VmId,
    /// How an inbound packet finds the association; of no effect outbound.
    pub scope: Scope,
    /// Transport or tunnel.
    pub mode: Mode,
    /// Outer source address.
    pub source: IpAddr,
    /// Outer destination address.
    pub destination: IpAddr,
    /// Links associations and policies, as in `ip xfrm`; 0 is none.
    pub reqid: u32,
    /// ESP in UDP (RFC 3948).
    pub encapsulation: Option<UdpEncapsulation>,
    /// Extended (64-bit) sequence numbers (RFC 4303 section 2.2.1).
    pub esn: bool,
    /// Anti-replay service of an inbound association; of no effect outbound.
    pub replay: ReplayProtection,
    /// The sequence number to continue from: outbound the last one used, inbound the highest
    /// one seen. 0 for a new association.
    pub sequence: u64,
    /// Limits after which the association asks for, or demands, its replacement.
    pub lifetime: Lifetime,
    /// Which inner packets the association may carry; empty: any.
    pub selectors: Vec<Selector>,
    /// How the outer header of a tunnel is built from the inner one, and back.
    pub tunnel: TunnelHeader,
    /// Outbound: inner packets are padded to at least this many bytes (traffic flow
    /// confidentiality, RFC 4303 section 2.7); 0 is none. Tunnel mode only.
    pub tfc_pad: u16,
    /// Outbound: path MTU towards the peer in bytes, of the outer IP packet.
    pub mtu: Option<u32>,
    /// What to do with the inner TCP or UDP checksum after a transport-mode packet went
    /// through a NAT (RFC 3948 section 3.1.2).
    pub nat_checksum: NatChecksum,
}

impl SaParams {
    /// Parameters with the defaults that a careful operator would choose: a replay window of
    /// 64 packets, extended sequence numbers off, no limits, any selector, owner the host.
    pub fn new(
        spi: Spi,
        direction: Direction,
        mode: Mode,
        source: IpAddr,
        destination: IpAddr,
    ) -> Self {
        Self {
            spi,
            direction,
            owner: VmId::HOST,
            scope: Scope::Host,
            mode,
            source,
            destination,
            reqid: 0,
            encapsulation: None,
            esn: false,
            replay: ReplayProtection::default(),
            sequence: 0,
            lifetime: Lifetime::default(),
            selectors: Vec::new(),
            tunnel: TunnelHeader::default(),
            tfc_pad: 0,
            mtu: None,
            nat_checksum: NatChecksum::Keep,
        }
    }
}

/// Transport or tunnel mode (RFC 4301 section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// ESP between the IP header and its payload.
    Transport,
    /// A whole IP packet inside ESP inside a new IP packet.
    Tunnel,
}

/// How an inbound packet finds its association.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The outer destination is the host's: (destination, SPI) finds the association, which
    /// itself names the virtual machine.
    Host,
    /// The outer destination is the machine's own: a receive filter has named the machine
    /// before, and (machine, destination, SPI) finds the association.
    Vm,
}

/// ESP in UDP (RFC 3948).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UdpEncapsulation {
    /// Source port of the packets of this association.
    pub source_port: u16,
    /// Destination port of the packets of this association.
    pub destination_port: u16,
}

/// Whether and how far back replayed packets are recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplayProtection {
    /// A window of this many packets.
    Window(WindowSize),
    /// No anti-replay service. Has to be asked for.
    Off,
}

impl Default for ReplayProtection {
    //= https://www.rfc-editor.org/rfc/rfc4303#section-3.4.3
    //# A minimum window size of 32 packets MUST be supported, but a
    //# window size of 64 is preferred and SHOULD be employed as the default.
    fn default() -> Self {
        Self::Window(WindowSize::DEFAULT)
    }
}

/// The size of a replay window in packets: 32 to 65,536.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WindowSize(u32);

impl WindowSize {
    /// 32 packets.
    pub const MIN: WindowSize = WindowSize(32);
    /// 64 packets.
    pub const DEFAULT: WindowSize = WindowSize(64);
    /// 65,536 packets.
    pub const MAX: WindowSize = WindowSize(65_536);

    /// `None` outside of 32 to 65,536.
    pub const fn new(packets: u32) -> Option<Self> {
        if packets >= Self::MIN.0 && packets <= Self::MAX.0 {
            Some(Self(packets))
        } else {
            None
        }
    }

    /// The size in packets.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// Soft limits ask for a replacement, hard limits end the association (RFC 4301 section
/// 4.4.2.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lifetime {
    /// At the soft limit an event is emitted once.
    pub soft: Limits,
    /// At the hard limit the association carries no further packet.
    pub hard: Limits,
}

/// One set of limits; `None` is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of ESP payload before encryption.
    pub bytes: Option<u64>,
    /// Packets.
    pub packets: Option<u64>,
    /// Time since the association was added.
    pub time: Option<Duration>,
    /// Time since the last packet, or since the addition if there was none.
    pub idle: Option<Duration>,
}

/// How a tunnel's outer header is built from the inner one, and what the inner one learns
/// from it at the far end (RFC 4301 section 5.1.2, RFC 6040).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelHeader {
    /// The differentiated services code point of the outer header.
    pub dscp: Dscp,
    /// Explicit congestion notification.
    pub ecn: Ecn,
    /// The don't-fragment bit of an outer IPv4 header.
    pub df: Df,
    /// Hop limit (time to live) of the outer header.
    pub hop_limit: u8,
    /// Take one off the inner hop limit when encapsulating, as a forwarding gateway does.
    pub decrement_hop_limit: bool,
    /// Flow label of an outer IPv6 header: copy the inner one if that is IPv6, else 0.
    pub copy_flow_label: bool,
}

impl Default for TunnelHeader {
    fn default() -> Self {
        Self {
            dscp: Dscp::Copy,
            ecn: Ecn::Normal,
            df: Df::Copy,
            hop_limit: 64,
            decrement_hop_limit: false,
            copy_flow_label: false,
        }
    }
}

/// The code point of the outer header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dscp {
    /// That of the inner header.
    Copy,
    /// A fixed one, 0 to 63; the upper two bits are ignored.
    Set(u8),
}

/// Congestion notification across the tunnel (RFC 6040).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ecn {
    /// Encapsulate: copy. Decapsulate: merge by the table of RFC 6040 section 4.2.
    Normal,
    /// Encapsulate: Not-ECT. Decapsulate: merge by the same table.
    Compatibility,
    /// Encapsulate: Not-ECT. Decapsulate: leave the inner header as it was encrypted.
    Off,
}

/// The don't-fragment bit of an outer IPv4 header (RFC 4301 section 8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Df {
    /// That of the inner header; set if the inner packet is IPv6.
    Copy,
    /// Always set.
    Set,
    /// Never set.
    Clear,
}

/// The inner TCP or UDP checksum of a transport-mode packet that went through a NAT
/// (RFC 3948 section 3.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NatChecksum {
    /// Leave it; the verdict says that the integrity of the packet was proven by its ICV.
    Keep,
    /// Correct it incrementally: these were the sender's view of source and destination.
    Original {
        /// Source address as the sender saw it.
        source: IpAddr,
        /// Destination address as the sender saw it.
        destination: IpAddr,
    },
    /// Compute it anew.
    Recompute,
}

/// A non-zero UDP port that marks ESP in UDP by convention (RFC 3948): 4500.
pub const NAT_TRAVERSAL_PORT: NonZeroU16 = NonZeroU16::new(4500).expect("4500 is not zero");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_sizes_have_bounds() {
        assert_eq!(WindowSize::new(31), None);
        assert_eq!(WindowSize::new(32), Some(WindowSize::MIN));
        assert_eq!(WindowSize::new(65_536), Some(WindowSize::MAX));
        assert_eq!(WindowSize::new(65_537), None);
    }
}
