//! What to do with a packet that is too big for the path: cut it before encapsulation, or tell
//! its sender.

use core::fmt;
use core::net::IpAddr;

use arrayvec::ArrayVec;
use etherparse::{
    Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber, Ipv4Header, Ipv6Header,
    icmpv4::DestUnreachableHeader,
};

use crate::wire::{Checksum, IpHeader, IpVersion, WireError, protocol};

/// The longest IPv4 header in bytes.
const MAX_HEADER: usize = 60;

/// Cuts the IPv4 packet `packet` into fragments of at most `mtu` bytes each (RFC 791 section
/// 3.2), to be encapsulated one by one.
///
/// IPv6 packets and those with the don't-fragment bit are refused: answer them with
/// [`too_big`].
pub fn fragments(packet: &[u8], mtu: usize) -> Result<Fragments<'_>, FragmentError> {
    let ip = IpHeader::base(packet).map_err(FragmentError::Malformed)?;
    if ip.dont_fragment {
        return Err(FragmentError::DontFragment);
    }
    let room = mtu.saturating_sub(ip.header_len) / 8 * 8;
    if room == 0 {
        return Err(FragmentError::Mtu(mtu));
    }
    let (offset, more) = ip
        .fragment
        .map_or((0, false), |fragment| (fragment.offset, fragment.more));
    Ok(Fragments {
        header: &packet[..ip.header_len],
        payload: &packet[ip.header_len..ip.total_len],
        at: 0,
        room,
        offset,
        more,
    })
}

/// The fragments of one packet, in order.
#[derive(Clone, Debug)]
pub struct Fragments<'a> {
    header: &'a [u8],
    payload: &'a [u8],
    at: usize,
    room: usize,
    offset: u16,
    more: bool,
}

/// One fragment: a header of its own and a part of the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FragmentParts<'a> {
    header: ArrayVec<u8, MAX_HEADER>,
    payload: &'a [u8],
}

/// Why a packet was not cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FragmentError {
    /// Not an IP packet.
    Malformed(WireError),
    /// The sender forbade it, or the packet is IPv6, which only its source may fragment.
    DontFragment,
    /// The MTU in bytes leaves no room for a payload.
    Mtu(usize),
}

impl<'a> Iterator for Fragments<'a> {
    type Item = FragmentParts<'a>;

    fn next(&mut self) -> Option<FragmentParts<'a>> {
        let rest = self
            .payload
            .get(self.at..)
            .filter(|rest| !rest.is_empty())?;
        let len = rest.len().min(self.room);
        let more = self.more || len < rest.len();
        let mut header = if self.at == 0 {
            self.header.iter().copied().collect()
        } else {
            later_header(self.header)
        };
        let total_len = (header.len() + len) as u16;
        let bits = u16::from(more) << 13 | (usize::from(self.offset) + self.at) as u16 >> 3;
        header[2..4].copy_from_slice(&total_len.to_be_bytes());
        header[6..8].copy_from_slice(&bits.to_be_bytes());
        header[10..12].fill(0);
        let sum = Checksum::new().bytes(&header).finish();
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        self.at += len;
        Some(FragmentParts {
            header,
            payload: &rest[..len],
        })
    }
}

/// The header of a fragment that is not the first: only options with the copied flag.
///
//= https://www.rfc-editor.org/rfc/rfc791#section-3.1
//# The copied flag indicates that this option is copied into all
//# fragments on fragmentation.
fn later_header(header: &[u8]) -> ArrayVec<u8, MAX_HEADER> {
    let mut later: ArrayVec<u8, MAX_HEADER> = header[..20].iter().copied().collect();
    let mut options = &header[20..];
    while let [kind, after @ ..] = options {
        let len = match (kind, after) {
            (0, _) => break,
            (1, _) => 1,
            (_, [len, ..]) if *len >= 2 && usize::from(*len) <= options.len() => usize::from(*len),
            _ => break,
        };
        if kind & 0x80 != 0 {
            later.extend(options[..len].iter().copied());
        }
        options = &options[len..];
    }
    while !later.len().is_multiple_of(4) {
        later.push(0);
    }
    later[0] = 0x40 | (later.len() / 4) as u8;
    later
}

impl FragmentParts<'_> {
    /// Bytes of the fragment.
    #[expect(clippy::len_without_is_empty, reason = "a fragment has a header")]
    pub fn len(&self) -> usize {
        self.header.len() + self.payload.len()
    }

    /// Writes the fragment to the beginning of `out`; `false` if it is too short.
    #[must_use]
    pub fn write_to(&self, out: &mut [u8]) -> bool {
        let Some(out) = out.get_mut(..self.len()) else {
            return false;
        };
        let (header, payload) = out.split_at_mut(self.header.len());
        header.copy_from_slice(&self.header);
        payload.copy_from_slice(self.payload);
        true
    }
}

/// The ICMP message that tells the sender of `packet` that only `mtu` bytes fit (RFC 1191,
/// RFC 4443 section 3.2), sent by `from`, an address of the gateway in the packet's version.
///
/// `None` where no such message may be sent: in answer to an ICMP error, a later fragment, or a
/// packet that does not come from, or go to, a single host (RFC 1812 section 4.3.2.7).
pub fn too_big(packet: &[u8], mtu: u32, from: IpAddr) -> Option<Vec<u8>> {
    let ip = IpHeader::parse(packet).ok()?;
    let packet = &packet[..ip.total_len];
    let later = ip.fragment.is_some_and(|fragment| fragment.offset != 0);
    if later || is_icmp_error(&ip, packet) || !is_host(ip.source) || ip.destination.is_multicast() {
        return None;
    }
    match (ip.source, from) {
        (IpAddr::V4(to), IpAddr::V4(from)) => {
            // As much as fits into 576 bytes (RFC 1812 section 4.3.2.3).
            let quoted = &packet[..packet.len().min(576 - 20 - 8)];
            let kind =
                Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
                    next_hop_mtu: mtu.clamp(68, 65_535) as u16,
                });
            let icmp = Icmpv4Header::with_checksum(kind, quoted);
            let len = (8 + quoted.len()) as u16;
            let mut header =
                Ipv4Header::new(len, 64, IpNumber::ICMP, from.octets(), to.octets()).ok()?;
            header.header_checksum = header.calc_header_checksum();
            Some([&header.to_bytes()[..], &icmp.to_bytes(), quoted].concat())
        }
        (IpAddr::V6(to), IpAddr::V6(from)) => {
            let quoted = &packet[..packet.len().min(1280 - 40 - 8)];
            //= https://www.rfc-editor.org/rfc/rfc8200#section-5
            //# IPv6 requires that every link in the Internet have an MTU of 1280
            //# octets or greater.
            let kind = Icmpv6Type::PacketTooBig { mtu: mtu.max(1280) };
            let icmp =
                Icmpv6Header::with_checksum(kind, from.octets(), to.octets(), quoted).ok()?;
            let header = Ipv6Header {
                payload_length: (8 + quoted.len()) as u16,
                next_header: IpNumber::IPV6_ICMP,
                hop_limit: 64,
                source: from.octets(),
                destination: to.octets(),
                ..Ipv6Header::default()
            };
            Some([&header.to_bytes()[..], &icmp.to_bytes(), quoted].concat())
        }
        _ => None,
    }
}

fn is_icmp_error(ip: &IpHeader, packet: &[u8]) -> bool {
    let kind = packet.get(ip.header_len).copied();
    match (ip.version, ip.protocol, kind) {
        (IpVersion::V4, protocol::ICMP, Some(kind)) => matches!(kind, 3 | 4 | 5 | 11 | 12),
        (IpVersion::V6, protocol::ICMPV6, Some(kind)) => kind < 128,
        (_, protocol::ICMP | protocol::ICMPV6, None) => true,
        _ => false,
    }
}

fn is_host(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !address.is_multicast() && !address.is_unspecified() && !address.is_loopback() && !broadcast
}

impl fmt::Display for FragmentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(error) => error.fmt(f),
            Self::DontFragment => f.write_str("the packet must not be fragmented"),
            Self::Mtu(mtu) => write!(f, "an MTU of {mtu} bytes leaves no room for a payload"),
        }
    }
}

impl core::error::Error for FragmentError {}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{LaxSlicedPacket, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    fn packet(options: &[u8], payload: usize) -> Vec<u8> {
        let mut header = Ipv4Header::new(
            payload as u16,
            64,
            IpNumber::UDP,
            [10, 0, 0, 1],
            [10, 0, 0, 2],
        )
        .unwrap();
        header.options = options.try_into().unwrap();
        header.total_len = (header.header_len() + payload) as u16;
        header.dont_fragment = false;
        header.identification = 7;
        header.header_checksum = header.calc_header_checksum();
        let mut packet = header.to_bytes().to_vec();
        packet.extend((0..payload).map(|byte| byte as u8));
        packet
    }

    proptest! {
        /// etherparse reads every fragment, and the payloads stand in order at their offsets.
        #[test]
        fn fragments_carry_the_whole_payload(payload in 1usize..3000, mtu in 68usize..1500, options in prop::sample::select(vec![&[][..], &[0x83, 4, 4, 0], &[0x07, 4, 4, 0], &[1, 0x83, 3, 4, 7, 3, 4, 0]])) {
            let packet = packet(options, payload);
            let mut rebuilt: Vec<u8> = Vec::new();
            let parts: Vec<_> = fragments(&packet, mtu).unwrap().collect();
            for (index, part) in parts.iter().enumerate() {
                prop_assert!(part.len() <= mtu);
                let mut out = vec![0; part.len()];
                prop_assert!(part.write_to(&mut out));
                let sliced = LaxSlicedPacket::from_ip(&out).unwrap();
                let Some(etherparse::LaxNetSlice::Ipv4(ip)) = sliced.net else { panic!("not IPv4") };
                let header = ip.header();
                prop_assert_eq!(header.to_header().calc_header_checksum(), header.header_checksum());
                prop_assert_eq!(usize::from(header.fragments_offset().byte_offset()), rebuilt.len());
                prop_assert_eq!(header.more_fragments(), index + 1 < parts.len());
                prop_assert_eq!(header.identification(), 7);
                let copied = options.contains(&0x83);
                if index > 0 { prop_assert_eq!(header.options().contains(&0x83), copied); prop_assert!(!header.options().contains(&0x07)); }
                rebuilt.extend(ip.payload().payload);
            }
            prop_assert_eq!(&rebuilt[..], &packet[packet.len() - payload..]);
        }
    }

    #[test]
    fn a_fragment_of_a_fragment_keeps_its_place() {
        let mut packet = packet(&[], 96);
        packet[6..8].copy_from_slice(&(0x2000u16 | 10).to_be_bytes());
        let places: Vec<_> = fragments(&packet, 20 + 64)
            .unwrap()
            .map(|part| u16::from_be_bytes([part.header[6], part.header[7]]))
            .collect();
        assert_eq!(places, [0x2000 | 10, 0x2000 | 18]);
    }

    #[test]
    fn what_must_not_be_cut_is_refused() {
        let mut packet = packet(&[], 96);
        assert_eq!(fragments(&packet, 27).unwrap_err(), FragmentError::Mtu(27));
        packet[6] = 0x40;
        assert_eq!(
            fragments(&packet, 60).unwrap_err(),
            FragmentError::DontFragment
        );
        assert!(fragments(&packet[..19], 60).is_err());
    }

    #[test]
    fn too_big_quotes_the_packet() {
        let packet = packet(&[], 1400);
        let answer = too_big(&packet, 1300, [10, 0, 0, 254].into()).unwrap();
        assert_eq!(answer.len(), 576);
        let sliced = SlicedPacket::from_ip(&answer).unwrap();
        let Some(NetSlice::Ipv4(ip)) = &sliced.net else {
            panic!("not IPv4")
        };
        assert_eq!(ip.header().destination(), [10, 0, 0, 1]);
        let Some(TransportSlice::Icmpv4(icmp)) = &sliced.transport else {
            panic!("not ICMP")
        };
        assert_eq!(
            icmp.icmp_type(),
            Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
                next_hop_mtu: 1300
            })
        );
        assert_eq!(icmp.payload(), &packet[..548]);
        assert_eq!(Checksum::new().bytes(&answer[20..]).finish(), 0);
        assert_eq!(
            too_big(&answer, 500, [10, 0, 0, 254].into()),
            None,
            "an error about an error"
        );
        assert_eq!(too_big(&packet, 1300, "fd00::1".parse().unwrap()), None);
    }

    #[test]
    fn too_big_of_version_6_is_at_least_1280() {
        let mut packet = Vec::new();
        let source = "fd00::1".parse::<core::net::Ipv6Addr>().unwrap().octets();
        PacketBuilder::ipv6(source, source, 64)
            .udp(1, 2)
            .write(&mut packet, &[5; 1400])
            .unwrap();
        let answer = too_big(&packet, 600, "fd00::fe".parse().unwrap()).unwrap();
        assert_eq!(answer.len(), 1280);
        let sliced = SlicedPacket::from_ip(&answer).unwrap();
        let Some(TransportSlice::Icmpv6(icmp)) = &sliced.transport else {
            panic!("not ICMPv6")
        };
        assert_eq!(icmp.icmp_type(), Icmpv6Type::PacketTooBig { mtu: 1280 });
        let Some(NetSlice::Ipv6(ip)) = &sliced.net else {
            panic!("not IPv6")
        };
        assert!(icmp.is_checksum_valid(ip.header().source(), ip.header().destination()));
    }
}
