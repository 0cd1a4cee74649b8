//! Large send and checksums: what an adapter does to TCP and UDP inside of what it protects.

use vesper_esp::Buffer;
use vesper_esp::wire::{Checksum, IpHeader, IpVersion, protocol};

use crate::ethernet::{Frame, fill};
use crate::nic::Nic;
use crate::rings::lock;

/// Flags of a TCP header that only the last segment keeps: FIN and PSH.
const LAST_ONLY: u8 = 0x09;

/// The flag that only the first segment keeps: CWR (RFC 3168 section 6.1.2).
const FIRST_ONLY: u8 = 0x80;

impl<B: Buffer> Nic<B> {
    /// Posts buffers for large sends to be cut into; all of the memory of a buffer is its data.
    pub fn post_segment_buffers(&self, buffers: impl IntoIterator<Item = B>) {
        lock(&self.segment_buffers).extend(buffers);
    }

    /// Buffers that are posted for large sends.
    pub fn segment_buffers(&self) -> usize {
        lock(&self.segment_buffers).len()
    }

    /// Whether large sends that the adapter protects are cut by it.
    pub(crate) fn cuts(&self) -> bool {
        self.read().enabled.large_send
    }

    /// Cuts a large send into the buffers that were posted for that.
    pub(crate) fn cut(&self, large: &Frame<B>, size: u16) -> Option<Vec<Frame<B>>> {
        cut(large, size, &mut lock(&self.segment_buffers))
    }
}

/// Cuts a TCP packet into segments of at most `size` bytes of payload, each in a buffer out of
/// `buffers`. `None`, and nothing happened, if it is no whole TCP packet or there are too few
/// buffers, or too small ones.
fn cut<B: Buffer>(large: &Frame<B>, size: u16, buffers: &mut Vec<B>) -> Option<Vec<Frame<B>>> {
    let packet = large.payload.data();
    let ip = IpHeader::parse(packet).ok()?;
    if ip.protocol != protocol::TCP || ip.fragment.is_some() || size == 0 {
        return None;
    }
    let tcp = packet.get(ip.header_len..ip.total_len)?;
    let tcp_len = usize::from(*tcp.get(12)? >> 4) * 4;
    let payload = tcp.get(tcp_len..).filter(|_| tcp_len >= 20)?;
    let headers = packet.get(..ip.header_len + tcp_len)?;
    let first = u32::from_be_bytes(*tcp.get(4..8)?.first_chunk()?);
    let identification = u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]);

    let count = payload.len().div_ceil(usize::from(size)).max(1);
    let from = buffers.len().checked_sub(count)?;
    let needed = crate::HEADROOM + headers.len() + usize::from(size);
    if buffers[from..].iter().any(|b| b.data().len() < needed) {
        return None;
    }
    let empty: &[u8] = &[];
    let chunks = payload.chunks(usize::from(size));
    let chunks = chunks.chain(payload.is_empty().then_some(empty));
    let segments = buffers.drain(from..).zip(chunks).enumerate();
    let segments = segments.map(|(index, (mut buffer, chunk))| {
        // The length was checked above.
        let _ = fill(&mut buffer, crate::HEADROOM, &[headers, chunk]);
        let data = buffer.data_mut();
        let len = data.len();
        match ip.version {
            IpVersion::V4 => {
                let id = identification.wrapping_add(index as u16);
                data[2..4].copy_from_slice(&(len as u16).to_be_bytes());
                data[4..6].copy_from_slice(&id.to_be_bytes());
                data[10..12].fill(0);
                let sum = Checksum::new().bytes(&data[..ip.header_len]).finish();
                data[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            IpVersion::V6 => data[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes()),
        }
        let tcp = &mut data[ip.header_len..];
        let sequence = first.wrapping_add((index * usize::from(size)) as u32);
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        if index + 1 < count {
            tcp[13] &= !LAST_ONLY;
        }
        if index > 0 {
            tcp[13] &= !FIRST_ONLY;
        }
        fill_checksum(data);
        Frame {
            payload: buffer,
            link: large.link,
            vlan: large.vlan,
        }
    });
    Some(segments.collect())
}

/// Writes the checksum of the TCP or UDP packet in an IP packet; other packets and fragments
/// stay as they are.
pub(crate) fn fill_checksum(packet: &mut [u8]) {
    let Some((at, upper_at, end)) = checksum_place(packet) else {
        return;
    };
    packet[at..at + 2].fill(0);
    let is_udp = at - upper_at == 6;
    let sum = upper_sum(packet, upper_at, end, is_udp);
    let sum = if sum == 0 && is_udp { 0xffff } else { sum };
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Whether the TCP or UDP checksum of an IP packet is right; `None` if there is none.
pub(crate) fn checksum_is_right(packet: &[u8]) -> Option<bool> {
    let (at, upper_at, end) = checksum_place(packet)?;
    let is_udp = at - upper_at == 6;
    let is_v4 = packet[0] >> 4 == 4;
    if is_udp && is_v4 && packet[at..at + 2] == [0, 0] {
        return None;
    }
    Some(upper_sum(packet, upper_at, end, is_udp) == 0)
}

/// Offsets of the checksum, of the TCP or UDP header, and of the packet's end.
fn checksum_place(packet: &[u8]) -> Option<(usize, usize, usize)> {
    let ip = IpHeader::parse(packet).ok()?;
    let within = match ip.protocol {
        protocol::TCP => 16,
        protocol::UDP => 6,
        _ => return None,
    };
    let at = ip.header_len + within;
    (ip.fragment.is_none() && at + 2 <= ip.total_len).then_some((at, ip.header_len, ip.total_len))
}

/// The checksum over pseudo header and upper layer.
fn upper_sum(packet: &[u8], upper_at: usize, end: usize, is_udp: bool) -> u16 {
    let addresses = match packet[0] >> 4 {
        4 => &packet[12..20],
        _ => &packet[8..40],
    };
    let protocol = match is_udp {
        true => protocol::UDP,
        false => protocol::TCP,
    };
    Checksum::new()
        .bytes(addresses)
        .word(protocol.into())
        .word((end - upper_at) as u16)
        .bytes(&packet[upper_at..end])
        .finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ethernet::Link;
    use etherparse::{IpHeaders, PacketBuilder, TcpHeader};
    use vesper_esp::PacketBuf;

    fn tcp(payload: &[u8], v6: bool) -> Vec<u8> {
        let mut header = TcpHeader::new(1000, 80, 0xffff_ff00, 512);
        header.ack = true;
        header.psh = true;
        header.fin = true;
        header.cwr = true;
        let mut packet = Vec::new();
        match v6 {
            false => PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
                .tcp_header(header)
                .write(&mut packet, payload),
            true => PacketBuilder::ipv6([1; 16], [2; 16], 64)
                .tcp_header(header)
                .write(&mut packet, payload),
        }
        .unwrap();
        packet
    }

    fn frame_of(packet: &[u8]) -> Frame<PacketBuf> {
        Frame {
            payload: PacketBuf::from_packet(packet),
            link: Link::default(),
            vlan: None,
        }
    }

    fn buffers(count: usize) -> Vec<PacketBuf> {
        vec![PacketBuf::with_room(&[0; 2048], 0, 0); count]
    }

    /// What etherparse says of the segments.
    #[test]
    fn segments_carry_the_stream_on() {
        let payload: Vec<u8> = (0..3500).map(|byte| byte as u8).collect();
        for v6 in [false, true] {
            let large = frame_of(&tcp(&payload, v6));
            let mut pool = buffers(5);
            let segments = cut(&large, 1000, &mut pool).unwrap();
            assert_eq!((segments.len(), pool.len()), (4, 1));
            let mut stream = Vec::new();
            for (index, segment) in segments.iter().enumerate() {
                let data = segment.payload.data();
                assert_eq!(checksum_is_right(data), Some(true));
                let (ip, upper) = IpHeaders::from_slice(data).unwrap();
                if let IpHeaders::Ipv4(header, _) = &ip {
                    assert_eq!(header.header_checksum, header.calc_header_checksum());
                }
                let (header, rest) = TcpHeader::from_slice(upper.payload).unwrap();
                let offset = index as u32 * 1000;
                assert_eq!(header.sequence_number, 0xffff_ff00_u32.wrapping_add(offset));
                let is_last = index == 3;
                assert_eq!((header.fin, header.psh), (is_last, is_last));
                assert_eq!(header.cwr, index == 0);
                assert!(header.ack);
                stream.extend_from_slice(rest);
            }
            assert_eq!(stream, payload);
        }
    }

    #[test]
    fn what_can_not_be_cut_is_refused_whole() {
        let large = frame_of(&tcp(&[1; 3500], false));
        assert!(cut(&large, 1000, &mut buffers(3)).is_none());
        assert!(cut(&large, 0, &mut buffers(9)).is_none());
        let mut small = vec![PacketBuf::with_room(&[0; 1000], 0, 0); 4];
        assert!(cut(&large, 1000, &mut small).is_none());
        assert_eq!(small.len(), 4);
        let mut udp = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(1, 2)
            .write(&mut udp, &[0; 100])
            .unwrap();
        assert!(cut(&frame_of(&udp), 10, &mut buffers(100)).is_none());
    }

    #[test]
    fn checksums_agree_with_etherparse() {
        for len in [0, 1, 2, 99, 1400] {
            for v6 in [false, true] {
                let right = tcp(&vec![0xa5; len], v6);
                let mut packet = right.clone();
                let at = if v6 { 56 } else { 36 };
                packet[at] ^= 0x55;
                assert_eq!(checksum_is_right(&packet), Some(false));
                fill_checksum(&mut packet);
                assert_eq!(packet, right);
            }
        }
    }
}
