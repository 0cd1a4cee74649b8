//! The header that virtio-net puts in front of a frame (virtio 1.2 section 5.1.6), with which a
//! sender leaves checksums and the cutting of large TCP packets to whoever takes the frame.
//! Virtual machines, TAP interfaces and packet sockets speak it.
//!
//! All of it is done here, while the frame is copied out of its sender's memory: what leaves a
//! port is finished, so that it can go into a tunnel, and never larger than the link's packets.
//! Every field is the sender's claim: it is checked against the frame itself, and nothing is
//! read or written outside of it.

use vesper_esp::wire::Checksum;

/// Bytes of the header without the number of buffers.
pub const HEADER_LEN: usize = 10;

/// Segments that one large packet may become; 64 KiB in packets of the smallest IPv4 MTU's MSS
/// (536 bytes) are 123.
pub const MOST_SEGMENTS: usize = 256;

/// Bytes at the start of a frame that suffice to plan its segmentation: Ethernet with two tags,
/// the longest IPv4 or the IPv6 header, the longest TCP header.
pub const HEADERS: usize = 14 + 8 + 60 + 60;

const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_ECN: u8 = 0x80;

/// What a sender says about its frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    flags: u8,
    gso_type: u8,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

/// What a sender may leave to us, as negotiated with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// Checksums.
    pub checksum: bool,
    /// Large TCP packets over IPv4.
    pub tcp4: bool,
    /// Large TCP packets over IPv6.
    pub tcp6: bool,
}

impl Allowed {
    /// All that is known here.
    pub const ALL: Self = Self {
        checksum: true,
        tcp4: true,
        tcp6: true,
    };
}

/// What is to be done to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Nothing.
    None,
    /// A checksum.
    Checksum,
    /// Segmentation, which includes checksums.
    Segments,
}

impl Header {
    /// Out of the bytes of a header, little-endian.
    pub const fn parse(bytes: &[u8; HEADER_LEN]) -> Self {
        let [
            flags,
            gso_type,
            _,
            _,
            size0,
            size1,
            start0,
            start1,
            at0,
            at1,
        ] = *bytes;
        Self {
            flags,
            gso_type,
            gso_size: u16::from_le_bytes([size0, size1]),
            csum_start: u16::from_le_bytes([start0, start1]),
            csum_offset: u16::from_le_bytes([at0, at1]),
        }
    }

    /// What the sender leaves to us; `None` if it may not, or the header makes no sense.
    pub const fn work(&self, allowed: Allowed) -> Option<Work> {
        let checksum = self.flags & NEEDS_CSUM != 0;
        if checksum && !allowed.checksum {
            return None;
        }
        match self.gso_type & !GSO_ECN {
            0 if checksum => Some(Work::Checksum),
            0 => Some(Work::None),
            GSO_TCPV4 if allowed.tcp4 && checksum && self.gso_size > 0 => Some(Work::Segments),
            GSO_TCPV6 if allowed.tcp6 && checksum && self.gso_size > 0 => Some(Work::Segments),
            _ => None,
        }
    }

    /// Finishes the checksum of a frame that asks for it; `false`, and nothing happened, if its
    /// place is outside of the frame.
    ///
    /// The sender has put the sum of the pseudo-header there.
    #[must_use]
    pub fn finish_checksum(&self, frame: &mut [u8]) -> bool {
        let start = usize::from(self.csum_start);
        let place = usize::from(self.csum_offset);
        let Some(covered) = frame.get_mut(start..).filter(|c| c.len() >= place + 2) else {
            return false;
        };
        let sum = Checksum::new().bytes(covered).finish();
        // Over UDP, 0 says that there is none (RFC 768); in TCP both are the same number.
        let sum = if sum == 0 { 0xffff } else { sum };
        covered[place..place + 2].copy_from_slice(&sum.to_be_bytes());
        true
    }
}

/// How a large TCP packet becomes segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// Bytes in front of the payload, which every segment repeats.
    pub header_len: usize,
    /// How many segments there are.
    pub count: usize,
    size: usize,
    payload: usize,
    ip_at: usize,
    tcp_at: usize,
    is_v6: bool,
    first: u32,
    identification: u16,
}

/// Flags of a TCP header that only the last segment keeps: FIN and PSH.
const LAST_ONLY: u8 = 0x09;

/// The flag that only the first segment keeps: CWR (RFC 3168 section 6.1.2).
const FIRST_ONLY: u8 = 0x80;

impl Segmentation {
    /// Plans the segmentation of a frame of `frame_len` bytes, of which `head` are the first
    /// ones, as many as there are up to [`HEADERS`]. `None` if it is no such packet as the
    /// header says, or would become more than [`MOST_SEGMENTS`].
    pub fn plan(header: &Header, head: &[u8], frame_len: usize) -> Option<Self> {
        let mut ip_at = 14;
        let mut ethertype = word(head, 12)?;
        for _ in 0..2 {
            if matches!(ethertype, 0x8100 | 0x88a8) {
                ethertype = word(head, ip_at + 2)?;
                ip_at += 4;
            }
        }
        let is_v6 = header.gso_type & !GSO_ECN == GSO_TCPV6;
        let (ip_len, protocol, ip_total) = if is_v6 {
            let total = 40 + usize::from(word(head, ip_at + 4)?);
            (40, *head.get(ip_at + 6)?, total)
        } else {
            let first = *head.get(ip_at)?;
            let fragment = word(head, ip_at + 6)? & 0x3fff;
            if first >> 4 != 4 || fragment != 0 {
                return None;
            }
            let total = usize::from(word(head, ip_at + 2)?);
            (usize::from(first & 0xf) * 4, *head.get(ip_at + 9)?, total)
        };
        let expected = if is_v6 { 0x86dd } else { 0x0800 };
        if ethertype != expected || protocol != 6 || ip_len < 20 || *head.get(ip_at)? >> 4 == 0 {
            return None;
        }
        let tcp_at = ip_at + ip_len;
        let tcp_len = usize::from(*head.get(tcp_at + 12)? >> 4) * 4;
        let header_len = tcp_at + tcp_len;
        // Linux leaves the length of packets beyond 64 KiB at 0 (big TCP); those are not taken.
        if tcp_len < 20 || head.len() < header_len || ip_at + ip_total != frame_len {
            return None;
        }
        let payload = frame_len.checked_sub(header_len)?;
        let size = usize::from(header.gso_size);
        let count = payload.div_ceil(size).max(1);
        (count <= MOST_SEGMENTS).then_some(Self {
            header_len,
            count,
            size,
            payload,
            ip_at,
            tcp_at,
            is_v6,
            first: u32::from_be_bytes([
                head[tcp_at + 4],
                head[tcp_at + 5],
                head[tcp_at + 6],
                head[tcp_at + 7],
            ]),
            identification: word(head, ip_at + 4)?,
        })
    }

    /// Which bytes of the payload the segment with this index carries.
    pub fn payload(&self, index: usize) -> std::ops::Range<usize> {
        let start = (index * self.size).min(self.payload);
        start..(start + self.size).min(self.payload)
    }

    /// The longest segment, in bytes of a whole frame.
    pub fn longest(&self) -> usize {
        self.header_len + self.size.min(self.payload)
    }

    /// Makes a segment out of a copy of the headers with its payload behind them.
    pub fn finish(&self, index: usize, segment: &mut [u8]) {
        let ip_len = segment.len() - self.ip_at;
        let (link_and_ip, tcp) = segment.split_at_mut(self.tcp_at);
        let ip = &mut link_and_ip[self.ip_at..];
        let addresses = if self.is_v6 {
            ip[4..6].copy_from_slice(&((ip_len - 40) as u16).to_be_bytes());
            &ip[8..40]
        } else {
            let identification = self.identification.wrapping_add(index as u16);
            ip[2..4].copy_from_slice(&(ip_len as u16).to_be_bytes());
            ip[4..6].copy_from_slice(&identification.to_be_bytes());
            ip[10..12].fill(0);
            let sum = Checksum::new().bytes(ip).finish();
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            &ip[12..20]
        };
        let sequence = self.first.wrapping_add((index * self.size) as u32);
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        if index + 1 < self.count {
            tcp[13] &= !LAST_ONLY;
        }
        if index > 0 {
            tcp[13] &= !FIRST_ONLY;
        }
        tcp[16..18].fill(0);
        let sum = Checksum::new().bytes(addresses).word(6);
        let sum = sum.word(tcp.len() as u16).bytes(tcp).finish();
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..at + 2)
        .map(|word| u16::from_be_bytes([word[0], word[1]]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{NetHeaders, PacketBuilder, PacketHeaders, TransportHeader};

    fn header(flags: u8, gso_type: u8, gso_size: u16, start: u16, offset: u16) -> Header {
        let mut bytes = [flags, gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes[4..6].copy_from_slice(&gso_size.to_le_bytes());
        bytes[6..8].copy_from_slice(&start.to_le_bytes());
        bytes[8..10].copy_from_slice(&offset.to_le_bytes());
        Header::parse(&bytes)
    }

    fn tcp(v6: bool, payload: usize) -> Vec<u8> {
        let link = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let ip = match v6 {
            false => link.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64),
            true => link.ipv6([1; 16], [2; 16], 64),
        };
        let payload: Vec<u8> = (0..payload).map(|i| (i % 251) as u8).collect();
        let mut frame = Vec::new();
        let tcp = ip.tcp(1000, 80, 0xffff_fe00, 500).fin().psh().ack(7);
        tcp.write(&mut frame, &payload).unwrap();
        frame
    }

    /// `etherparse` agrees with the checksums, lengths and numbers of every segment.
    fn check(frame: &[u8], segments: &[Vec<u8>], size: usize) {
        let whole = PacketHeaders::from_ethernet_slice(frame).unwrap();
        let mut sequence = 0xffff_fe00u32;
        let mut bytes = Vec::new();
        for (index, segment) in segments.iter().enumerate() {
            let parsed = PacketHeaders::from_ethernet_slice(segment).unwrap();
            let Some(TransportHeader::Tcp(tcp)) = parsed.transport else {
                panic!("not TCP")
            };
            let payload = parsed.payload.slice();
            let sum = match parsed.net.unwrap() {
                NetHeaders::Ipv4(ip, _) => {
                    assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                    assert_eq!(usize::from(ip.total_len), segment.len() - 14);
                    assert_eq!(usize::from(ip.identification), index);
                    tcp.calc_checksum_ipv4(&ip, payload).unwrap()
                }
                NetHeaders::Ipv6(ip, _) => {
                    assert_eq!(usize::from(ip.payload_length), segment.len() - 54);
                    tcp.calc_checksum_ipv6(&ip, payload).unwrap()
                }
                NetHeaders::Arp(_) => panic!("ARP"),
            };
            assert_eq!(tcp.checksum, sum);
            assert_eq!(tcp.sequence_number, sequence);
            let last = index + 1 == segments.len();
            assert_eq!((tcp.fin, tcp.psh, tcp.ack), (last, last, true));
            assert!(payload.len() == size || last);
            sequence = sequence.wrapping_add(payload.len() as u32);
            bytes.extend_from_slice(payload);
        }
        assert_eq!(bytes, whole.payload.slice());
    }

    fn cut(header: &Header, frame: &[u8]) -> Option<Vec<Vec<u8>>> {
        let head = &frame[..frame.len().min(HEADERS)];
        let plan = Segmentation::plan(header, head, frame.len())?;
        let segment = |index| {
            let mut segment = frame[..plan.header_len].to_vec();
            segment.extend_from_slice(&frame[plan.header_len..][plan.payload(index)]);
            assert!(segment.len() <= plan.longest());
            plan.finish(index, &mut segment);
            segment
        };
        Some((0..plan.count).map(segment).collect())
    }

    #[test]
    fn large_packets_become_right_segments() {
        for (v6, kind) in [(false, GSO_TCPV4), (true, GSO_TCPV6)] {
            for payload in [0, 1, 999, 1000, 1001, 60_000] {
                let frame = tcp(v6, payload);
                let header = header(NEEDS_CSUM, kind | GSO_ECN, 1000, 0, 0);
                assert_eq!(header.work(Allowed::ALL), Some(Work::Segments));
                let segments = cut(&header, &frame).unwrap();
                assert_eq!(segments.len(), payload.div_ceil(1000).max(1));
                check(&frame, &segments, 1000);
            }
        }
    }

    #[test]
    fn tags_stay_in_front() {
        let mut frame = tcp(false, 3000);
        frame.splice(12..12, [0x81, 0, 0, 7]);
        let header = header(NEEDS_CSUM, GSO_TCPV4, 1400, 0, 0);
        let segments = cut(&header, &frame).unwrap();
        assert_eq!(segments.len(), 3);
        for segment in &segments {
            assert_eq!(segment[12..18], [0x81, 0, 0, 7, 8, 0]);
        }
    }

    #[test]
    fn claims_are_checked_against_the_frame() {
        let large = |size| header(NEEDS_CSUM, GSO_TCPV4, size, 0, 0);
        let frame = tcp(false, 3000);
        // Fewer bytes than the IP header says, more, no TCP, IPv6, a fragment, no header.
        assert_eq!(cut(&large(1000), &frame[..frame.len() - 1]), None);
        assert_eq!(cut(&large(1000), &[&frame[..], &[0]].concat()), None);
        for (at, value) in [(23, 17), (14, 0x65), (20, 0x20), (14, 0x41), (46, 0x40)] {
            let mut wrong = frame.clone();
            wrong[at] = value;
            assert_eq!(cut(&large(1000), &wrong), None, "{at}");
        }
        for len in 0..54 {
            assert_eq!(Segmentation::plan(&large(100), &frame[..len], len), None);
        }
        assert_eq!(cut(&large(11), &frame), None);
        assert_eq!(cut(&large(12), &frame).unwrap().len(), 250);
        assert_eq!(large(0).work(Allowed::ALL), None);
        // Large without a checksum to compute, unknown kinds, what was not negotiated.
        assert_eq!(header(0, GSO_TCPV4, 100, 0, 0).work(Allowed::ALL), None);
        assert_eq!(header(1, 3, 100, 0, 0).work(Allowed::ALL), None);
        assert_eq!(header(1, 0x7f, 100, 0, 0).work(Allowed::ALL), None);
        let no = Allowed {
            checksum: true,
            tcp4: false,
            tcp6: true,
        };
        assert_eq!(large(100).work(no), None);
        let no = Allowed {
            checksum: false,
            ..Allowed::ALL
        };
        assert_eq!(header(NEEDS_CSUM, 0, 0, 0, 0).work(no), None);
    }

    #[test]
    fn a_checksum_is_finished_only_inside_of_the_frame() {
        // CVE-2024-11614: the place of the checksum beyond the packet.
        let link = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let udp = link.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(1, 2);
        let mut right = Vec::new();
        udp.write(&mut right, b"hello").unwrap();
        let mut frame = right.clone();
        // What a guest leaves: the sum of the pseudo-header alone.
        let pseudo = Checksum::new().bytes(&frame[26..34]).word(17).word(13);
        frame[40..42].copy_from_slice(&(!pseudo.finish()).to_be_bytes());
        let header_at = |start, offset| header(NEEDS_CSUM, 0, 0, start, offset);
        assert!(header_at(34, 6).finish_checksum(&mut frame));
        assert_eq!(frame, right);

        let len = frame.len() as u16;
        for start in [0, 1, 34, len - 1, len, len + 1, 65535] {
            for offset in [0, 1, 6, len - 3, len - 2, len - 1, len, len + 1, 65535] {
                let mut copy = frame.clone();
                let inside = usize::from(start) + usize::from(offset) + 2 <= copy.len();
                let done = header_at(start, offset).finish_checksum(&mut copy);
                assert_eq!(done, inside, "{start} {offset}");
                assert!(done || copy == frame);
            }
        }
    }
}
