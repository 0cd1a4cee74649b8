//! Where in an IP packet the ESP packet lies.

use core::net::IpAddr;

use arrayvec::ArrayVec;

use super::checksum::is_right;
use super::ip::{IpHeader, IpVersion, WireError};
use super::protocol;

/// An ESP packet found in an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EspLocation {
    /// IPv4 or IPv6.
    pub version: IpVersion,
    /// Destination address of the IP packet.
    pub destination: IpAddr,
    /// Type of service or traffic class of the IP packet.
    pub traffic_class: u8,
    /// Whether there is a UDP header in front of the SPI.
    pub udp: bool,
    /// Bytes of IP header, options and extension headers.
    pub header_len: usize,
    /// Offset of the byte that names the protocol behind them.
    pub protocol_at: usize,
    /// Offset of the SPI.
    pub esp_at: usize,
    /// Bytes from the SPI to the end of the ICV.
    pub esp_len: usize,
    /// The SPI, reserved values included.
    pub spi: u32,
    /// The sequence number on the wire.
    pub sequence: u32,
}

/// What [`locate`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Located {
    /// An ESP packet.
    Esp(EspLocation),
    /// A well-formed packet of another kind.
    NotEsp(NotEsp),
    /// A fragment: to be reassembled before ESP can look at it.
    ///
    //= https://www.rfc-editor.org/rfc/rfc4303#section-3.4.1
    //# If required, reassembly is performed prior to ESP processing.
    Fragment(IpHeader),
    /// Lengths or headers contradict each other.
    Malformed(WireError),
}

/// Packets that are none of ESP's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotEsp {
    /// Another IP protocol, or UDP on other ports.
    OtherProtocol(u8),
    /// A NAT keepalive (RFC 3948 section 2.3).
    Keepalive,
    /// A packet with the non-ESP marker: IKE (RFC 3948 section 2.2).
    Ike,
}

/// The UDP ports that carry ESP: a packet from or to one of them is ESP in UDP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncapsulationPorts(ArrayVec<u16, 8>);

impl EncapsulationPorts {
    /// Adds a port; `false` if there are eight already.
    pub fn add(&mut self, port: u16) -> bool {
        self.contains(port) || self.0.try_push(port).is_ok()
    }

    /// Whether `port` carries ESP.
    pub fn contains(&self, port: u16) -> bool {
        self.0.contains(&port)
    }
}

impl Default for EncapsulationPorts {
    /// Port 4500 alone.
    fn default() -> Self {
        Self(ArrayVec::from_iter([vesper_sa::NAT_TRAVERSAL_PORT.get()]))
    }
}

/// An ESP packet right behind an IPv4 header without options.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlainLocation {
    pub(crate) spi: u32,
    pub(crate) sequence: u32,
    /// Bytes from the SPI to the end of the ICV.
    pub(crate) esp_len: u32,
    pub(crate) traffic_class: u8,
}

impl PlainLocation {
    /// Bytes of the IP header.
    pub(crate) const HEADER_LEN: usize = 20;
    /// Offset of the byte that names the protocol.
    pub(crate) const PROTOCOL_AT: usize = 9;
}

/// Finds the ESP packet in the IP packet `packet`, whose first byte is the version.
#[inline]
pub fn locate(packet: &[u8], ports: &EncapsulationPorts) -> Located {
    match locate_plain(packet) {
        Some(plain) => Located::Esp(EspLocation {
            version: IpVersion::V4,
            destination: IpAddr::from([packet[16], packet[17], packet[18], packet[19]]),
            traffic_class: plain.traffic_class,
            udp: false,
            header_len: PlainLocation::HEADER_LEN,
            protocol_at: PlainLocation::PROTOCOL_AT,
            esp_at: PlainLocation::HEADER_LEN,
            esp_len: plain.esp_len as usize,
            spi: plain.spi,
            sequence: plain.sequence,
        }),
        None => locate_any(packet, ports),
    }
}

/// Destination and SPI of most ESP packets, as they are in the packet; `None` asks for a
/// closer look.
#[inline]
pub(crate) fn plain_key(packet: &[u8]) -> Option<[u8; 8]> {
    let start = packet.first_chunk::<24>()?;
    let is_plain =
        start[0] == 0x45 && start[9] == protocol::ESP && start[6] & 0x3f == 0 && start[7] == 0;
    let [.., a, b, c, d, e, f, g, h] = *start;
    is_plain.then_some([a, b, c, d, e, f, g, h])
}

/// [`locate`] for most packets; `None` asks for a closer look.
#[inline(always)]
pub(crate) fn locate_plain(packet: &[u8]) -> Option<PlainLocation> {
    let start = packet.first_chunk::<28>()?;
    let header = start.first_chunk::<20>()?;
    let total_len = usize::from(u16::from_be_bytes([start[2], start[3]]));
    let is_plain = start[0] == 0x45
        && start[9] == protocol::ESP
        && start[6] & 0x3f == 0
        && start[7] == 0
        && (28..=packet.len()).contains(&total_len)
        && (start[10..12] == [0, 0] || is_right(header));
    let number =
        |at: usize| u32::from_be_bytes([start[at], start[at + 1], start[at + 2], start[at + 3]]);
    is_plain.then(|| PlainLocation {
        spi: number(20),
        sequence: number(24),
        esp_len: total_len as u32 - 20,
        traffic_class: start[1],
    })
}

/// As [`locate`], for every kind of packet.
fn locate_any(packet: &[u8], ports: &EncapsulationPorts) -> Located {
    let ip = match IpHeader::parse(packet) {
        Ok(ip) if !ip.checksum_is_plausible(packet) => {
            return Located::Malformed(WireError::HeaderChecksum);
        }
        Ok(ip) => ip,
        Err(error) => return Located::Malformed(error),
    };
    if ip.fragment.is_some() {
        return Located::Fragment(ip);
    }
    let upper = &packet[ip.header_len..ip.total_len];
    let (udp, esp) = match ip.protocol {
        protocol::ESP => (false, upper),
        protocol::UDP => match in_udp(upper, ports) {
            Ok(esp) => (true, esp),
            Err(other) => return other,
        },
        other => return Located::NotEsp(NotEsp::OtherProtocol(other)),
    };
    let Some(header) = esp.first_chunk::<8>() else {
        return Located::Malformed(WireError::Esp);
    };
    Located::Esp(EspLocation {
        version: ip.version,
        destination: ip.destination,
        traffic_class: ip.traffic_class,
        udp,
        header_len: ip.header_len,
        protocol_at: ip.protocol_at,
        esp_at: ip.header_len + if udp { 8 } else { 0 },
        esp_len: esp.len(),
        spi: u32::from_be_bytes([header[0], header[1], header[2], header[3]]),
        sequence: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
    })
}

/// What stands behind a UDP header, if it is ESP.
fn in_udp<'p>(upper: &'p [u8], ports: &EncapsulationPorts) -> Result<&'p [u8], Located> {
    const MALFORMED: Located = Located::Malformed(WireError::Udp);
    let (header, payload) = upper.split_first_chunk::<8>().ok_or(MALFORMED)?;
    let udp_len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let payload = udp_len
        .checked_sub(8)
        .and_then(|len| payload.get(..len))
        .ok_or(MALFORMED)?;
    let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    if !ports.contains(port(2)) && !ports.contains(port(0)) {
        return Err(Located::NotEsp(NotEsp::OtherProtocol(protocol::UDP)));
    }
    match payload {
        //= https://www.rfc-editor.org/rfc/rfc3948#section-2.3
        //# The receiver SHOULD ignore a received NAT-keepalive packet.
        [0xff] => Err(Located::NotEsp(NotEsp::Keepalive)),
        [0, 0, 0, 0, ..] => Err(Located::NotEsp(NotEsp::Ike)),
        esp => Ok(esp),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(source, destination)
            .write(&mut packet, payload)
            .unwrap();
        packet
    }

    fn located(packet: &[u8]) -> Located {
        locate(packet, &EncapsulationPorts::default())
    }

    #[test]
    fn keepalive_ike_and_esp_share_a_port() {
        use Located::*;
        assert_eq!(
            located(&udp(4500, 4500, &[0xff])),
            NotEsp(super::NotEsp::Keepalive)
        );
        assert_eq!(
            located(&udp(4500, 4500, &[0; 30])),
            NotEsp(super::NotEsp::Ike)
        );
        assert_eq!(
            located(&udp(4501, 4501, &[1; 30])),
            NotEsp(super::NotEsp::OtherProtocol(17))
        );
        for (source, destination) in [(4500, 4500), (59071, 4500), (4500, 59071)] {
            let Esp(esp) = located(&udp(source, destination, &[1; 30])) else {
                panic!("not found");
            };
            assert_eq!((esp.udp, esp.esp_at, esp.esp_len), (true, 28, 30));
            assert_eq!((esp.spi, esp.sequence), (0x01010101, 0x01010101));
        }
        for len in 2..8 {
            assert_eq!(
                located(&udp(4500, 4500, &[1; 8][..len])),
                Malformed(WireError::Esp)
            );
        }
        assert_eq!(located(&udp(4500, 4500, &[])), Malformed(WireError::Esp));
    }

    /// The short way for plain IPv4 says what the long way says.
    #[test]
    fn both_ways_agree() {
        let mut packet = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .write(&mut packet, etherparse::IpNumber(50), &[1; 30])
            .unwrap();
        let ports = EncapsulationPorts::default();
        let mut esp = 0;
        for at in 0..28 {
            for bit in 0..=8 {
                let mut packet = packet.clone();
                if bit < 8 {
                    packet[at] ^= 1 << bit;
                }
                for len in [packet.len(), packet.len() - 1, 29, 28, 27, 20] {
                    let short = locate(&packet[..len], &ports);
                    assert_eq!(short, locate_any(&packet[..len], &ports));
                    esp += usize::from(matches!(short, Located::Esp(_)));
                }
            }
        }
        assert!(esp > 0);
    }

    #[test]
    fn a_wrong_udp_length_is_malformed() {
        let mut packet = udp(1, 2, &[1; 30]);
        packet[25] = 7;
        assert_eq!(located(&packet), Located::Malformed(WireError::Udp));
        packet[25] = 39;
        assert_eq!(located(&packet), Located::Malformed(WireError::Udp));
    }
}
