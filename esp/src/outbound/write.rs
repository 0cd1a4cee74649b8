//! Writing everything but ciphertext and ICV of an outbound packet.

use super::Measured;
use crate::association::{EspSa, Framing};
use crate::wire::{Checksum, IpVersion, adjusted, protocol};

/// Writes what [`PlainOut`](crate::association::PlainOut) promises to be all; in front of the
/// payload that is `FRONT` bytes: IPv4, UDP or not, ESP header and IV.
#[inline(always)]
pub(super) fn write_plain<'p, const FRONT: usize>(
    framing: &Framing,
    packet: &'p mut [u8],
    measured: &Measured,
    sequence: u64,
) -> &'p mut [u8] {
    let len = packet.len();
    let template = framing.bytes();
    let words = ipv4_words(measured, len, sequence);
    let (header, body) = packet.split_at_mut(FRONT);
    header[..8].copy_from_slice(&first_half(words));
    header[8..24].copy_from_slice(&template[8..24]);
    header[10..12].copy_from_slice(&framing.checksum(words).to_be_bytes());
    if FRONT > 36 {
        header[24..32].copy_from_slice(&template[24..32]);
        header[24..26].copy_from_slice(&((len - 20) as u16).to_be_bytes());
    }
    header[FRONT - 12..FRONT - 8].copy_from_slice(&(sequence as u32).to_be_bytes());
    header[FRONT - 8..].copy_from_slice(&sequence.to_be_bytes());

    // Less than four bytes of padding, both lengths, and what the ICV, of 8 bytes at least,
    // will overwrite.
    const TRAILERS: [u64; 4] = [0, 0x0101, 0x02_0201, 0x0303_0201];
    let padding = measured.padding & 3;
    let next_header = u64::from(measured.next_header) << (8 * (padding + 1));
    let trailer = TRAILERS[usize::from(padding)] | next_header;
    let trailer_at = measured.packet_len as usize;
    body[trailer_at..trailer_at + 8].copy_from_slice(&trailer.to_le_bytes());
    &mut packet[FRONT - 16..]
}

/// Version, header length and type of service; total length; identification; flags.
#[inline]
fn ipv4_words(measured: &Measured, len: usize, sequence: u64) -> [u16; 4] {
    [
        0x4500 | u16::from(measured.traffic_class),
        len as u16,
        // Needed only where a router may fragment; unique for long enough.
        sequence as u16,
        u16::from(measured.flags) << 8,
    ]
}

/// The first eight bytes of an IPv4 header.
#[inline]
fn first_half([a, b, c, d]: [u16; 4]) -> [u8; 8] {
    let half = u64::from(a) << 48 | u64::from(b) << 32 | u64::from(c) << 16 | u64::from(d);
    half.to_be_bytes()
}

#[inline(never)]
pub(super) fn write_any<'p>(
    sa: &EspSa,
    packet: &'p mut [u8],
    measured: &Measured,
    sequence: u64,
) -> &'p mut [u8] {
    let context = sa.context();
    let framing = context.framing();
    let front = measured.front(framing);
    if measured.header_len == 0 {
        framing.write_with_ip(packet);
        match framing.version() {
            IpVersion::V4 => finish_ipv4(framing, packet, measured, sequence),
            IpVersion::V6 => finish_ipv6(sa, packet, measured),
        }
    } else {
        move_transport_header(framing, packet, measured);
    }
    if measured.decrement {
        decrement_hop_limit(measured.next_header, &mut packet[front..]);
    }
    let esp_at = usize::from(measured.header_len) + front - 8 - framing.iv_len();
    if framing.is_udp() {
        let udp_len = (packet.len() - (esp_at - 8)) as u16;
        packet[esp_at - 4..esp_at - 2].copy_from_slice(&udp_len.to_be_bytes());
    }
    let esp = &mut packet[esp_at..];
    let (header, text) = esp.split_at_mut(8 + framing.iv_len());
    header[4..8].copy_from_slice(&(sequence as u32).to_be_bytes());
    context.cipher().write_iv(sequence, &mut header[8..]);
    write_trailer(framing, text, measured);
    esp
}

/// Takes one off the hop limit of an inner packet.
fn decrement_hop_limit(next_header: u8, packet: &mut [u8]) {
    if next_header == protocol::IPV6 {
        packet[7] -= 1;
        return;
    }
    let old = u16::from_be_bytes([packet[8], packet[9]]);
    packet[8] -= 1;
    let new = u16::from_be_bytes([packet[8], packet[9]]);
    let sum = u16::from_be_bytes([packet[10], packet[11]]);
    packet[10..12].copy_from_slice(&adjusted(sum, old, new).to_be_bytes());
}

/// Padding for traffic flow confidentiality, padding, pad length and next header at the end of
/// `text`, in front of the ICV.
//= https://www.rfc-editor.org/rfc/rfc4303#section-2.4
//# The first padding byte appended to the plaintext is
//# numbered 1, with subsequent padding bytes making up a monotonically
//# increasing sequence: 1, 2, 3, ....
fn write_trailer(framing: &Framing, text: &mut [u8], measured: &Measured) {
    let padding_len = usize::from(measured.padding);
    let tfc_len = usize::from(measured.tfc);
    let end = text.len() - framing.icv_len();
    let trailer = &mut text[end - 2 - padding_len - tfc_len..end];
    let (tfc, trailer) = trailer.split_at_mut(tfc_len);
    tfc.fill(0);
    let (padding, rest) = trailer.split_at_mut(padding_len);
    for (byte, value) in padding.iter_mut().zip(1..) {
        *byte = value;
    }
    rest[0] = measured.padding;
    rest[1] = measured.next_header;
}

/// Type of service, length, identification, fragment bits and checksum of an outer IPv4
/// header.
fn finish_ipv4(framing: &Framing, packet: &mut [u8], measured: &Measured, sequence: u64) {
    let words = ipv4_words(measured, packet.len(), sequence);
    packet[..8].copy_from_slice(&first_half(words));
    packet[10..12].copy_from_slice(&framing.checksum(words).to_be_bytes());
}

/// Traffic class, flow label and length of an outer IPv6 header.
fn finish_ipv6(sa: &EspSa, packet: &mut [u8], measured: &Measured) {
    let class = measured.traffic_class;
    let copy_flow_label = sa.params().tunnel.copy_flow_label;
    let label = if copy_flow_label && measured.next_header == protocol::IPV6 {
        let inner = &packet[measured.front(sa.context().framing())..];
        [inner[1] & 0xf, inner[2], inner[3]]
    } else {
        [0; 3]
    };
    packet[0] = 0x60 | class >> 4;
    packet[1] = class << 4 | label[0];
    packet[2] = label[1];
    packet[3] = label[2];
    let len = (packet.len() - 40) as u16;
    packet[4..6].copy_from_slice(&len.to_be_bytes());
}

/// Moves the IP header in front of the ESP header and corrects its length, protocol and
/// checksum, and writes UDP header and SPI behind it.
fn move_transport_header(framing: &Framing, packet: &mut [u8], measured: &Measured) {
    let front = measured.front(framing);
    let header_len = usize::from(measured.header_len);
    packet.copy_within(front..front + header_len, 0);
    let headers = framing.without_ip();
    packet[header_len..header_len + headers.len()].copy_from_slice(headers);
    packet[usize::from(measured.protocol_at)] = if framing.is_udp() {
        protocol::UDP
    } else {
        protocol::ESP
    };
    let len = packet.len();
    match framing.version() {
        IpVersion::V4 => {
            packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            packet[10..12].fill(0);
            let sum = Checksum::new().bytes(&packet[..header_len]).finish();
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        IpVersion::V6 => {
            packet[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aead::Cipher;
    use crate::outbound::{Content, Path, write};
    use crate::{Buffer, PacketBuf, Suite, Verdict, association};
    use vesper_sa::{
        Df, Direction, Dscp, Ecn, Mode, SaParams, Spi, Timestamp, TunnelHeader, UdpEncapsulation,
    };

    /// The short way of plain packets writes what the long way writes.
    #[test]
    fn both_ways_agree() {
        let suite = Suite::by_name("aes256gcm16").unwrap();
        let udp = UdpEncapsulation {
            source_port: 4500,
            destination_port: 4500,
        };
        let mut agreed = 0;
        for encapsulation in [None, Some(udp)] {
            for (dscp, ecn, df) in [
                (Dscp::Copy, Ecn::Normal, Df::Copy),
                (Dscp::Set(46), Ecn::Off, Df::Set),
                (Dscp::Set(0), Ecn::Compatibility, Df::Clear),
            ] {
                let mut params = SaParams::new(
                    Spi::MIN,
                    Direction::Outbound,
                    Mode::Tunnel,
                    "192.0.2.1".parse().unwrap(),
                    "192.0.2.2".parse().unwrap(),
                );
                params.encapsulation = encapsulation;
                params.mtu = Some(400);
                params.tunnel = TunnelHeader {
                    dscp,
                    ecn,
                    df,
                    ..params.tunnel
                };
                let cipher = Cipher::new(suite, &[7; 36], &[]).unwrap();
                let sa = association(params, cipher, Timestamp::ZERO).unwrap();
                let path = Path::of(&sa);
                for len in 20..400 {
                    for (version, class, flags) in [(0x45, 0xff, 0x40), (0x45, 0, 0), (0x60, 5, 0)]
                    {
                        let mut inner = vec![0xaa; len];
                        inner[..2].copy_from_slice(&[version, class]);
                        inner[6] = flags;
                        match (version, (len as u16).checked_sub(40)) {
                            (0x45, _) => inner[2..4].copy_from_slice(&(len as u16).to_be_bytes()),
                            (_, Some(rest)) => inner[4..6].copy_from_slice(&rest.to_be_bytes()),
                            (_, None) => continue,
                        }
                        let mut short = PacketBuf::from_packet(&inner);
                        let mut long = short.clone();
                        let sequence = 0x0102_0304_0506_0708 + len as u64;
                        let Some(measured) = path.measure_plain(Content::Ip, &mut short) else {
                            assert_eq!(short.data(), inner);
                            let refused = path.measure(Content::Ip, &mut long);
                            assert!(matches!(refused, Err(Verdict::TooBig { .. })), "{len}");
                            continue;
                        };
                        let esp = write(&sa, short.data_mut(), &measured, sequence);
                        let text = esp.len() - 16;
                        esp[text..].fill(0);
                        let esp = esp.to_vec();
                        let measured = path.measure(Content::Ip, &mut long).unwrap();
                        assert_eq!(
                            write_any(&sa, long.data_mut(), &measured, sequence)[..text],
                            esp[..text]
                        );
                        let end = long.data().len() - 16;
                        assert_eq!(short.data()[..end], long.data()[..end], "{len} bytes");
                        agreed += 1;
                    }
                }
            }
        }
        assert!(agreed > 5000, "{agreed}");
    }
}
