//! The inner TCP or UDP checksum after a transport-mode packet went through a NAT.

use core::net::IpAddr;

use vesper_sa::NatChecksum;

use crate::wire::{Checksum, IpHeader, IpVersion, protocol};

/// Applies `policy` to the checksum of the upper-layer packet behind the `header_len` bytes of
/// IP header of `packet` (RFC 3948 section 3.1.2). Packets whose checksum field is out of reach stay as they are.
pub(crate) fn correct_checksum(
    policy: NatChecksum,
    header_len: usize,
    next_header: u8,
    packet: &mut [u8],
) {
    let checksum_at = match next_header {
        protocol::TCP => 16,
        protocol::UDP => 6,
        _ => return,
    };
    if policy == NatChecksum::Keep {
        return;
    }
    let Ok(ip) = IpHeader::base(packet) else {
        return;
    };
    let Some(upper) = packet.get_mut(header_len..) else {
        return;
    };
    let Some(&[high, low]) = upper.get(checksum_at..checksum_at + 2) else {
        return;
    };
    let old = u16::from_be_bytes([high, low]);
    // No checksum was sent (RFC 768).
    if next_header == protocol::UDP && ip.version == IpVersion::V4 && old == 0 {
        return;
    }
    let new = match policy {
        NatChecksum::Keep => return,
        NatChecksum::Original {
            source,
            destination,
        } => {
            // The old sum, less the addresses that it covered, plus those that it has to cover.
            let sum = Checksum::new().word(!old);
            let sum = complement(complement(sum, source), destination);
            addresses(sum, ip.source, ip.destination).finish()
        }
        NatChecksum::Recompute => {
            upper[checksum_at..checksum_at + 2].fill(0);
            let Ok(len) = u32::try_from(upper.len()) else {
                return;
            };
            addresses(Checksum::new(), ip.source, ip.destination)
                .bytes(&len.to_be_bytes())
                .word(next_header.into())
                .bytes(upper)
                .finish()
        }
    };
    let new = match (next_header, new) {
        (protocol::UDP, 0) => 0xffff,
        (_, new) => new,
    };
    upper[checksum_at..checksum_at + 2].copy_from_slice(&new.to_be_bytes());
}

fn addresses(sum: Checksum, source: IpAddr, destination: IpAddr) -> Checksum {
    [source, destination]
        .into_iter()
        .fold(sum, |sum, address| match address {
            IpAddr::V4(address) => sum.bytes(&address.octets()),
            IpAddr::V6(address) => sum.bytes(&address.octets()),
        })
}

/// Takes `address` out of a sum.
fn complement(sum: Checksum, address: IpAddr) -> Checksum {
    match address {
        IpAddr::V4(address) => sum.bytes(&address.octets().map(|byte| !byte)),
        IpAddr::V6(address) => sum.bytes(&address.octets().map(|byte| !byte)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    fn packet(source: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ipv4(source, [10, 0, 0, 2], 64);
        let mut packet = Vec::new();
        match protocol {
            protocol::TCP => builder.tcp(1, 2, 3, 4).write(&mut packet, payload),
            _ => builder.udp(1, 2).write(&mut packet, payload),
        }
        .unwrap();
        packet
    }

    /// What the sender computed for its private address becomes right for the public one.
    #[test]
    fn both_ways_lead_to_the_checksum_of_the_translated_packet() {
        for upper in [protocol::TCP, protocol::UDP] {
            for payload in [&b""[..], b"odd", b"even", &[0xff; 31]] {
                let sent = packet([192, 168, 1, 9], upper, payload);
                let expected = packet([203, 0, 113, 7], upper, payload);
                let mut translated = expected.clone();
                translated[20..].copy_from_slice(&sent[20..]);
                let original = NatChecksum::Original {
                    source: "192.168.1.9".parse().unwrap(),
                    destination: "10.0.0.2".parse().unwrap(),
                };
                for policy in [original, NatChecksum::Recompute] {
                    let mut packet = translated.clone();
                    correct_checksum(policy, 20, upper, &mut packet);
                    assert_eq!(packet, expected, "{policy:?}");
                }
                let mut kept = translated.clone();
                correct_checksum(NatChecksum::Keep, 20, upper, &mut kept);
                assert_eq!(kept, translated);
            }
        }
    }

    #[test]
    fn a_datagram_without_checksum_keeps_none() {
        let mut packet = packet([192, 168, 1, 9], protocol::UDP, b"text");
        packet[26..28].fill(0);
        let before = packet.clone();
        correct_checksum(NatChecksum::Recompute, 20, protocol::UDP, &mut packet);
        assert_eq!(packet, before);
    }
}
