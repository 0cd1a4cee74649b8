//! Where in an IP packet the ESP packet lies.

use arrayvec::ArrayVec;

use super::ip::{IpHeader, WireError};
use super::protocol;

/// An ESP packet found in an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EspLocation {
    /// The IP header around it.
    pub ip: IpHeader,
    /// Offset of the UDP header, if the packet is ESP in UDP.
    pub udp_at: Option<usize>,
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

/// Finds the ESP packet in the IP packet `packet`, whose first byte is the version.
pub fn locate(packet: &[u8], ports: &EncapsulationPorts) -> Located {
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
    let (udp_at, esp_at, esp) = match ip.protocol {
        protocol::ESP => (None, ip.header_len, upper),
        protocol::UDP => {
            let Some((header, payload)) = upper.split_first_chunk::<8>() else {
                return Located::Malformed(WireError::Udp);
            };
            let udp_len = usize::from(u16::from_be_bytes([header[4], header[5]]));
            let Some(payload) = udp_len.checked_sub(8).and_then(|len| payload.get(..len)) else {
                return Located::Malformed(WireError::Udp);
            };
            let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
            if !ports.contains(port(2)) && !ports.contains(port(0)) {
                return Located::NotEsp(NotEsp::OtherProtocol(ip.protocol));
            }
            match payload {
                //= https://www.rfc-editor.org/rfc/rfc3948#section-2.3
                //# The receiver SHOULD ignore a received NAT-keepalive packet.
                [0xff] => return Located::NotEsp(NotEsp::Keepalive),
                [0, 0, 0, 0, ..] => return Located::NotEsp(NotEsp::Ike),
                esp => (Some(ip.header_len), ip.header_len + 8, esp),
            }
        }
        other => return Located::NotEsp(NotEsp::OtherProtocol(other)),
    };
    let Some(header) = esp.first_chunk::<8>() else {
        return Located::Malformed(WireError::Esp);
    };
    Located::Esp(EspLocation {
        ip,
        udp_at,
        esp_at,
        esp_len: esp.len(),
        spi: u32::from_be_bytes([header[0], header[1], header[2], header[3]]),
        sequence: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
    })
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
            assert_eq!((esp.udp_at, esp.esp_at, esp.esp_len), (Some(20), 28, 30));
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

    #[test]
    fn a_wrong_udp_length_is_malformed() {
        let mut packet = udp(1, 2, &[1; 30]);
        packet[25] = 7;
        assert_eq!(located(&packet), Located::Malformed(WireError::Udp));
        packet[25] = 39;
        assert_eq!(located(&packet), Located::Malformed(WireError::Udp));
    }
}
