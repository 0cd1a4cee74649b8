//! IPv4 and IPv6 headers with their options and extension headers.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use vesper_sa::{Flow, Ports};

use super::checksum::Checksum;
use super::protocol;

/// What is known of an IP packet after its headers were checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpHeader {
    /// IPv4 or IPv6.
    pub version: IpVersion,
    /// Bytes before the upper layer: the header with options or extension headers.
    pub header_len: usize,
    /// Bytes of the packet by its own length field; what follows is link padding.
    pub total_len: usize,
    /// The upper-layer protocol, past the extension headers.
    pub protocol: u8,
    /// Offset of the byte that names [`Self::protocol`].
    pub protocol_at: usize,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Type of service or traffic class: six bits DSCP, two bits ECN.
    pub traffic_class: u8,
    /// Time to live or hop limit.
    pub hop_limit: u8,
    /// The don't-fragment bit; always true of IPv6.
    pub dont_fragment: bool,
    /// Present if the packet is a fragment.
    pub fragment: Option<Fragment>,
}

/// The few fields of an IP header that encapsulation needs, cheap to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Brief {
    pub(crate) version: IpVersion,
    pub(crate) traffic_class: u8,
    pub(crate) hop_limit: u8,
    pub(crate) dont_fragment: bool,
    /// Bytes of the packet by its own length field; at most those that are there.
    pub(crate) total_len: usize,
}

impl Brief {
    /// The checks of [`IpHeader::base`].
    #[inline]
    pub(crate) fn parse(packet: &[u8]) -> Result<Self, WireError> {
        match packet.first() {
            None => Err(WireError::Truncated),
            Some(first) if first >> 4 == 4 => {
                let header = packet.first_chunk::<20>().ok_or(WireError::Truncated)?;
                let header_len = usize::from(header[0] & 0xf) * 4;
                if header_len < 20 || header_len > packet.len() {
                    return Err(WireError::HeaderLength);
                }
                let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
                if total_len < header_len || total_len > packet.len() {
                    return Err(WireError::TotalLength);
                }
                Ok(Self {
                    version: IpVersion::V4,
                    traffic_class: header[1],
                    hop_limit: header[8],
                    dont_fragment: header[6] & DONT_FRAGMENT != 0,
                    total_len,
                })
            }
            Some(first) if first >> 4 == 6 => {
                let header = packet.first_chunk::<40>().ok_or(WireError::Truncated)?;
                let total_len = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
                if total_len > packet.len() {
                    return Err(WireError::TotalLength);
                }
                Ok(Self {
                    version: IpVersion::V6,
                    traffic_class: header[0] << 4 | header[1] >> 4,
                    hop_limit: header[7],
                    dont_fragment: true,
                    total_len,
                })
            }
            Some(_) => Err(WireError::Version),
        }
    }
}

/// The don't-fragment bit in the flags of an IPv4 header (its seventh byte).
pub(crate) const DONT_FRAGMENT: u8 = 0x40;

/// Version of the Internet protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IpVersion {
    /// RFC 791.
    V4,
    /// RFC 8200.
    V6,
}

impl IpVersion {
    /// The protocol number of such a packet within another.
    #[inline]
    pub(crate) const fn protocol(self) -> u8 {
        match self {
            Self::V4 => protocol::IPV4,
            Self::V6 => protocol::IPV6,
        }
    }
}

/// Where in its datagram a fragment belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification, of 16 (IPv4) or 32 bits.
    pub identification: u32,
    /// Offset of the fragment's data in bytes.
    pub offset: u16,
    /// Whether fragments follow.
    pub more: bool,
}

/// Which part of a packet contradicts another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WireError {
    /// Shorter than the header of its version.
    Truncated,
    /// Neither version 4 nor version 6.
    Version,
    /// IPv4 header length below 20 bytes or beyond the packet.
    HeaderLength,
    /// Total or payload length beyond the packet, or below the header.
    TotalLength,
    /// IPv4 header checksum wrong.
    HeaderChecksum,
    /// An IPv6 extension header reaches beyond the packet.
    ExtensionHeader,
    /// UDP header truncated, or its length contradicts the packet's.
    Udp,
    /// Too short for an ESP header.
    Esp,
}

impl IpHeader {
    /// Checks version and lengths; does not walk extension headers: `header_len` of IPv6 is 40
    /// and `protocol` the first next header.
    pub fn base(packet: &[u8]) -> Result<Self, WireError> {
        let brief = Brief::parse(packet)?;
        match brief.version {
            IpVersion::V4 => Self::v4(packet, brief),
            IpVersion::V6 => Self::v6(packet, brief),
        }
    }

    /// As [`Self::base`], and walks the extension headers of IPv6 up to the upper layer, or up
    /// to the fragment header of a fragment.
    pub fn parse(packet: &[u8]) -> Result<Self, WireError> {
        let mut ip = Self::base(packet)?;
        if ip.version == IpVersion::V6 {
            ip.walk_extensions(packet)?;
        }
        Ok(ip)
    }

    /// Whether the IPv4 header checksum is right; true of IPv6, and of the value 0 that a
    /// capture holds where the sending adapter was to fill it in.
    pub fn checksum_is_plausible(&self, packet: &[u8]) -> bool {
        match (self.version, packet.get(..self.header_len)) {
            (IpVersion::V6, _) => true,
            (IpVersion::V4, Some(header)) => {
                header[10..12] == [0, 0] || Checksum::new().bytes(header).finish() == 0
            }
            (IpVersion::V4, None) => false,
        }
    }

    fn v4(packet: &[u8], brief: Brief) -> Result<Self, WireError> {
        let header = packet.first_chunk::<20>().ok_or(WireError::Truncated)?;
        let fragment = u16::from_be_bytes([header[6], header[7]]);
        let address = |at: usize| {
            IpAddr::V4(Ipv4Addr::new(
                header[at],
                header[at + 1],
                header[at + 2],
                header[at + 3],
            ))
        };
        Ok(Self {
            version: brief.version,
            header_len: usize::from(header[0] & 0xf) * 4,
            total_len: brief.total_len,
            protocol: header[9],
            protocol_at: 9,
            source: address(12),
            destination: address(16),
            traffic_class: brief.traffic_class,
            hop_limit: brief.hop_limit,
            dont_fragment: brief.dont_fragment,
            fragment: (fragment & 0x3fff != 0).then(|| Fragment {
                identification: u32::from(u16::from_be_bytes([header[4], header[5]])),
                offset: (fragment & 0x1fff) << 3,
                more: fragment & 0x2000 != 0,
            }),
        })
    }

    fn v6(packet: &[u8], brief: Brief) -> Result<Self, WireError> {
        let header = packet.first_chunk::<40>().ok_or(WireError::Truncated)?;
        let address = |at: usize| {
            let mut octets = [0; 16];
            octets.copy_from_slice(&header[at..at + 16]);
            IpAddr::V6(Ipv6Addr::from(octets))
        };
        Ok(Self {
            version: brief.version,
            header_len: 40,
            total_len: brief.total_len,
            protocol: header[6],
            protocol_at: 6,
            source: address(8),
            destination: address(24),
            traffic_class: brief.traffic_class,
            hop_limit: brief.hop_limit,
            dont_fragment: brief.dont_fragment,
            fragment: None,
        })
    }

    fn walk_extensions(&mut self, packet: &[u8]) -> Result<(), WireError> {
        let packet = &packet[..self.total_len];
        loop {
            let rest = packet.get(self.header_len..).unwrap_or_default();
            let len = match self.protocol {
                protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => {
                    let start = rest.first_chunk::<2>().ok_or(WireError::ExtensionHeader)?;
                    (usize::from(start[1]) + 1) * 8
                }
                protocol::FRAGMENT => {
                    let header = rest.first_chunk::<8>().ok_or(WireError::ExtensionHeader)?;
                    let field = u16::from_be_bytes([header[2], header[3]]);
                    // A packet that is its only fragment needs no reassembly (RFC 6946).
                    if field & 0xfff9 != 0 {
                        self.fragment = Some(Fragment {
                            identification: u32::from_be_bytes([
                                header[4], header[5], header[6], header[7],
                            ]),
                            offset: field & 0xfff8,
                            more: field & 1 != 0,
                        });
                    }
                    8
                }
                _ => return Ok(()),
            };
            if rest.len() < len {
                return Err(WireError::ExtensionHeader);
            }
            self.protocol = rest[0];
            self.protocol_at = self.header_len;
            self.header_len += len;
            if self.fragment.is_some() {
                return Ok(());
            }
        }
    }
}

/// What selectors look at in the IP packet `packet`; `None` if it is not an IP packet.
///
/// Ports that cannot be seen, in a later fragment or a truncated header, are
/// [`Ports::Opaque`].
pub fn flow(packet: &[u8]) -> Option<Flow> {
    let base = IpHeader::base(packet).ok()?;
    let Ok(ip) = IpHeader::parse(packet) else {
        return Some(Flow {
            source: base.source,
            destination: base.destination,
            protocol: base.protocol,
            ports: Ports::Opaque,
        });
    };
    let upper = packet.get(ip.header_len..ip.total_len).unwrap_or_default();
    let ports = if ip.fragment.is_some_and(|fragment| fragment.offset != 0) {
        Ports::Opaque
    } else {
        upper_ports(ip.protocol, upper)
    };
    Some(Flow {
        source: ip.source,
        destination: ip.destination,
        protocol: ip.protocol,
        ports,
    })
}

/// Protocol and ports of what stands behind a header that names `next_header`: past extension
/// headers of IPv6, which transport mode leaves behind ESP.
pub(crate) fn upper_layer(version: IpVersion, next_header: u8, upper: &[u8]) -> (u8, Ports) {
    let (mut protocol, mut upper) = (next_header, upper);
    if version == IpVersion::V6 {
        while let protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS =
            protocol
        {
            let rest = match upper {
                [_, len, ..] => upper.get((usize::from(*len) + 1) * 8..),
                _ => None,
            };
            let Some(rest) = rest else {
                return (protocol, Ports::Opaque);
            };
            (protocol, upper) = (upper[0], rest);
        }
        if protocol == protocol::FRAGMENT {
            return (protocol, Ports::Opaque);
        }
    }
    (protocol, upper_ports(protocol, upper))
}

/// Ports, or ICMP type and code, of an upper-layer header.
fn upper_ports(protocol: u8, upper: &[u8]) -> Ports {
    match (protocol, upper) {
        (
            protocol::TCP | protocol::UDP | protocol::SCTP | protocol::DCCP | protocol::UDP_LITE,
            [a, b, c, d, ..],
        ) => Ports::Known(u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])),
        (protocol::ICMP | protocol::ICMPV6, [kind, code, ..]) => {
            Ports::Known(u16::from(*kind), u16::from(*code))
        }
        // Mobility header type (RFC 4301 section 4.4.1.1).
        (protocol::MOBILITY, [_, _, kind, ..]) => Ports::Known(u16::from(*kind), 0),
        (
            protocol::TCP
            | protocol::UDP
            | protocol::SCTP
            | protocol::DCCP
            | protocol::UDP_LITE
            | protocol::ICMP
            | protocol::ICMPV6
            | protocol::MOBILITY,
            _,
        ) => Ports::Opaque,
        _ => Ports::None,
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "shorter than an IP header",
            Self::Version => "IP version is neither 4 nor 6",
            Self::HeaderLength => "IPv4 header length is out of bounds",
            Self::TotalLength => "IP length field contradicts the length of the packet",
            Self::HeaderChecksum => "IPv4 header checksum is wrong",
            Self::ExtensionHeader => "IPv6 extension header reaches beyond the packet",
            Self::Udp => "UDP length contradicts the length of the packet",
            Self::Esp => "too short for an ESP header",
        })
    }
}

impl core::error::Error for WireError {}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{
        IpNumber, Ipv4Header, Ipv6Extensions, Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader,
        Ipv6RoutingExtensions,
    };
    use proptest::prelude::*;

    #[test]
    fn options_and_fragment_fields() {
        let mut header =
            Ipv4Header::new(8, 9, IpNumber::UDP, [10, 0, 0, 1], [10, 0, 0, 2]).unwrap();
        header.options = [1, 1, 1, 1].into();
        header.identification = 0x1234;
        header.dont_fragment = false;
        header.more_fragments = true;
        header.fragment_offset = 100.try_into().unwrap();
        header.total_len = 24 + 8;
        header.header_checksum = header.calc_header_checksum();
        let mut packet = header.to_bytes().to_vec();
        packet.extend([0, 53, 0, 54, 0, 8, 0, 0, 0xaa]);
        let ip = IpHeader::parse(&packet).unwrap();
        assert_eq!((ip.header_len, ip.total_len, ip.protocol), (24, 32, 17));
        assert_eq!(ip.source, "10.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(
            ip.fragment,
            Some(Fragment {
                identification: 0x1234,
                offset: 800,
                more: true
            })
        );
        assert!(ip.checksum_is_plausible(&packet));
        packet[8] ^= 1;
        assert!(!ip.checksum_is_plausible(&packet));
        assert_eq!(flow(&packet).unwrap().ports, Ports::Opaque);
    }

    #[test]
    fn extension_headers_are_walked() {
        let raw = |next| Ipv6RawExtHeader::new_raw(next, &[0; 14]).unwrap();
        let extensions = Ipv6Extensions {
            hop_by_hop_options: Some(raw(IpNumber::IPV6_ROUTE_HEADER)),
            destination_options: None,
            routing: Some(Ipv6RoutingExtensions {
                routing: raw(IpNumber::IPV6_FRAGMENTATION_HEADER),
                final_destination_options: None,
            }),
            fragment: Some(Ipv6FragmentHeader::new(
                IpNumber::UDP,
                0.try_into().unwrap(),
                false,
                7,
            )),
            auth: None,
        };
        let mut packet = Vec::new();
        let header = Ipv6Header {
            payload_length: (extensions.header_len() + 8) as u16,
            next_header: IpNumber::IPV6_HEADER_HOP_BY_HOP,
            hop_limit: 3,
            ..Default::default()
        };
        packet.extend(header.to_bytes());
        extensions
            .write(&mut packet, IpNumber::IPV6_HEADER_HOP_BY_HOP)
            .unwrap();
        packet.extend([0, 53, 0, 54, 0, 8, 0, 0]);
        let ip = IpHeader::parse(&packet).unwrap();
        assert_eq!(ip.header_len, 40 + 16 + 16 + 8);
        assert_eq!(ip.protocol, protocol::UDP);
        assert_eq!(packet[ip.protocol_at], protocol::UDP);
        assert_eq!(ip.fragment, None, "an atomic fragment is no fragment");
        assert_eq!(flow(&packet).unwrap().ports, Ports::Known(53, 54));
    }

    proptest! {
        #[test]
        fn never_panics_and_never_lies(packet in prop::collection::vec(any::<u8>(), 0..120), version in prop::sample::select(vec![4u8, 6, 0]), next in prop::sample::select(vec![0u8, 43, 44, 60, 17])) {
            let mut packet = packet;
            if let Some(first) = packet.first_mut() { *first = version << 4 | *first & 0xf; }
            if let Some(byte) = packet.get_mut(6) { *byte = next; }
            if let Some(byte) = packet.get_mut(4) { *byte = 0; }
            if let Ok(ip) = IpHeader::parse(&packet) {
                prop_assert!(ip.header_len <= ip.total_len && ip.total_len <= packet.len());
                prop_assert_eq!(packet[ip.protocol_at], ip.protocol);
            }
            flow(&packet);
        }
    }
}
