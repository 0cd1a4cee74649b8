//! Recognising the next packet of a flow without taking it apart.

use vesper_esp::wire::protocol;

use crate::ethernet::{HEADER_LEN, ethertype};

/// What policy looks at in an ordinary packet: IPv4 without options, whole, TCP or UDP. Two
/// packets with equal keys are of the same flow, so that what was decided for one holds for
/// the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlowKey {
    addresses: u64,
    /// Ports, and the protocol.
    rest: u64,
}

/// Of the first eight bytes of an IPv4 header: version and length of the header, whether it is
/// a fragment and which.
pub(crate) const PLAIN_MASK: u64 = 0xff00_0000_0000_3fff;

/// A header of 20 bytes, of a whole packet.
pub(crate) const PLAIN: u64 = 0x4500_0000_0000_0000;

impl FlowKey {
    /// The key of an IP packet; `None` if it is not an ordinary one, and has to be looked at.
    #[inline]
    pub(crate) fn of(packet: &[u8]) -> Option<Self> {
        let start = packet.first_chunk::<24>()?;
        let (head, rest) = start.split_first_chunk::<8>()?;
        let ([_, protocol, _, _], rest) = rest.split_first_chunk::<4>()?;
        let (addresses, ports) = rest.split_first_chunk::<8>()?;
        let head = u64::from_be_bytes(*head);
        let total_len = usize::from((head >> 32) as u16);
        let is_ordinary = head & PLAIN_MASK == PLAIN
            && matches!(*protocol, protocol::TCP | protocol::UDP)
            && (24..=packet.len()).contains(&total_len);
        let ports = u32::from_ne_bytes(*ports.first_chunk()?);
        is_ordinary.then_some(Self {
            addresses: u64::from_ne_bytes(*addresses),
            rest: u64::from(ports) << 8 | u64::from(*protocol),
        })
    }
}

impl FlowKey {
    /// Source and destination port.
    pub(crate) fn ports(self) -> [u16; 2] {
        let [a, b, c, d] = ((self.rest >> 8) as u32).to_ne_bytes();
        [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]
    }

    /// A number that spreads flows evenly.
    pub(crate) fn hash(self) -> u32 {
        let (ports, protocol) = (self.rest >> 8, self.rest & 0xff);
        mix(self.addresses ^ ports << 16 ^ protocol)
    }
}

/// What frames of one flow have in common on their way between two stations: the Ethernet
/// header, without a tag, and what policy looks at. Made to be compared: a frame is the next of
/// the same flow if a handful of words are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameKey {
    link: [u64; 2],
    /// Protocol and source.
    source: u64,
    /// Destination and ports, of those that `mask` has.
    destination: u64,
    mask: u64,
}

/// Bytes of a frame that its key is made of.
const KEY_LEN: usize = HEADER_LEN + 24;

/// The destination among the eight bytes from it on, of which the others are ports.
const DESTINATION_MASK: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);

/// Protocol and source among the eight bytes from the hop limit on.
const SOURCE_MASK: u64 = u64::from_ne_bytes([0, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff]);

impl FrameKey {
    /// The key of a whole frame; `None` if it is not an ordinary one, and has to be looked at.
    pub(crate) fn of(frame: &[u8]) -> Option<Self> {
        let start: &[u8; KEY_LEN] = frame.first_chunk()?;
        let is_ip = start[12..14] == ethertype::IPV4.to_be_bytes();
        FlowKey::of(frame.get(HEADER_LEN..)?).filter(|_| is_ip)?;
        Some(Self::read(start))
    }

    /// The key of this flow and of those that differ from it in their ports alone.
    pub(crate) const fn of_all_ports(self) -> Self {
        Self {
            destination: self.destination & DESTINATION_MASK,
            mask: DESTINATION_MASK,
            ..self
        }
    }

    /// Whether a frame is of this flow; what was decided for the others holds for it then.
    #[inline(always)]
    pub(crate) fn matches(&self, frame: &[u8]) -> bool {
        let Some(start) = frame.first_chunk::<KEY_LEN>() else {
            return false;
        };
        let other = Self::read(start);
        let total_len = usize::from(u16::from_be_bytes([start[16], start[17]]));
        let head = word(start, HEADER_LEN) & PLAIN_MASK.to_be();
        let difference = (self.link[0] ^ other.link[0])
            | (self.link[1] ^ other.link[1])
            | (self.source ^ other.source)
            | ((self.destination ^ other.destination) & self.mask)
            | (head ^ PLAIN.to_be());
        difference == 0 && (24..=frame.len() - HEADER_LEN).contains(&total_len)
    }

    #[inline(always)]
    fn read(start: &[u8; KEY_LEN]) -> Self {
        Self {
            link: [word(start, 0), word(start, HEADER_LEN - 8)],
            source: word(start, 22) & SOURCE_MASK,
            destination: word(start, 30),
            mask: u64::MAX,
        }
    }
}

/// What ESP packets of one association have in common, with the Ethernet header before them: the
/// counterpart of [`FrameKey`] for what comes from the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EspKey {
    link: [u64; 2],
    /// Destination and SPI.
    target: u64,
}

impl EspKey {
    /// The key of a whole frame that holds the most frequent kind of ESP packet: right behind an
    /// IPv4 header without options, and whole. The header's checksum is left to whoever opens
    /// the packet.
    pub(crate) fn of(frame: &[u8]) -> Option<Self> {
        let start: &[u8; ESP_KEY_LEN] = frame.first_chunk()?;
        let is_ip = start[12..14] == ethertype::IPV4.to_be_bytes();
        (is_ip && Self::is_plain(start)).then(|| Self::read(start))
    }

    /// Whether a frame is of the same association.
    #[inline(always)]
    pub(crate) fn matches(&self, frame: &[u8]) -> bool {
        let Some(start) = frame.first_chunk::<ESP_KEY_LEN>() else {
            return false;
        };
        let other = Self::read(start);
        let difference = (self.link[0] ^ other.link[0])
            | (self.link[1] ^ other.link[1])
            | (self.target ^ other.target);
        difference == 0 && Self::is_plain(start)
    }

    #[inline(always)]
    fn is_plain(start: &[u8; ESP_KEY_LEN]) -> bool {
        let head = word(start, HEADER_LEN) & PLAIN_MASK.to_be();
        head == PLAIN.to_be() && start[HEADER_LEN + 9] == protocol::ESP
    }

    #[inline(always)]
    fn read(start: &[u8; ESP_KEY_LEN]) -> Self {
        Self {
            link: [word(start, 0), word(start, HEADER_LEN - 8)],
            target: word(start, 30),
        }
    }
}

/// Bytes of a frame up to the end of the sequence number.
const ESP_KEY_LEN: usize = HEADER_LEN + 28;

/// Eight bytes as they are in memory.
#[inline(always)]
fn word<const LEN: usize>(bytes: &[u8; LEN], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(word)
}

/// Spreads numbers that lie close together (the finisher of SplitMix64).
pub(crate) const fn mix(value: u64) -> u32 {
    let z = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use vesper_esp::wire::flow;

    fn packet(source: [u8; 4], destination: [u8; 4], ports: (u16, u16), tcp: bool) -> Vec<u8> {
        let mut packet = Vec::new();
        let ip = PacketBuilder::ipv4(source, destination, 64);
        match tcp {
            true => ip.tcp(ports.0, ports.1, 7, 7).write(&mut packet, &[1]),
            false => ip.udp(ports.0, ports.1).write(&mut packet, &[1]),
        }
        .unwrap();
        packet
    }

    #[test]
    fn keys_are_equal_where_flows_are() {
        let mut packets = Vec::new();
        for source in [[10, 0, 0, 1], [10, 0, 0, 2]] {
            for destination in [[10, 1, 0, 1], [10, 1, 0, 2]] {
                for ports in [(1, 2), (2, 1)] {
                    for tcp in [false, true] {
                        packets.push(packet(source, destination, ports, tcp));
                    }
                }
            }
        }
        for one in &packets {
            for other in &packets {
                let keys = (FlowKey::of(one).unwrap(), FlowKey::of(other).unwrap());
                assert_eq!(keys.0 == keys.1, flow(one) == flow(other));
            }
        }
    }

    #[test]
    fn what_is_not_ordinary_has_no_key() {
        let right = packet([10, 0, 0, 1], [10, 0, 0, 2], (1, 2), false);
        assert!(FlowKey::of(&right).is_some());
        // IPv6, options, more fragments, a later fragment, another protocol, lengths.
        for (at, value) in [
            (0, 0x65),
            (0, 0x46),
            (6, 0x20),
            (7, 1),
            (9, 1),
            (2, 1),
            (3, 23),
        ] {
            let mut other = right.clone();
            other[at] = value;
            assert_eq!(FlowKey::of(&other), None, "{at}");
        }
        assert_eq!(FlowKey::of(&right[..23]), None);
    }

    /// A frame of this packet from one station to another.
    fn frame(from: u8, to: u8, packet: &[u8]) -> Vec<u8> {
        let header = [2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 8, 0];
        [&header[..], packet].concat()
    }

    #[test]
    fn frames_of_one_flow_match_and_no_others() {
        let mut frames = Vec::new();
        for (from, to) in [(1, 2), (1, 3), (3, 2)] {
            for ports in [(1, 2), (2, 1)] {
                for tcp in [false, true] {
                    for source in [[10, 0, 0, 1], [10, 0, 0, 2]] {
                        let packet = packet(source, [10, 1, 0, 1], ports, tcp);
                        frames.push(frame(from, to, &packet));
                    }
                }
            }
        }
        for (number, one) in frames.iter().enumerate() {
            let key = FrameKey::of(one).unwrap();
            for (other_number, other) in frames.iter().enumerate() {
                assert_eq!(key.matches(other), number == other_number);
            }
        }
        // What a flow may differ in: service, identification, hop limit, checksum, flag, length.
        let key = FrameKey::of(&frames[0]).unwrap();
        let mut same = frames[0].clone();
        same.extend([7; 9]);
        for at in [1, 4, 5, 8, 10, 11, 24, 28] {
            same[HEADER_LEN + at] ^= 0x5a;
        }
        same[HEADER_LEN + 6] = 0x40;
        assert!(key.matches(&same));
        // Of each other byte a change is seen, and so is a frame that is cut.
        let looked_at = (0..14).chain([14, 20, 21, 23]).chain(26..38);
        for at in looked_at {
            let mut other = frames[0].clone();
            other[at] ^= 1;
            assert!(!key.matches(&other), "{at}");
        }
        let whole = frames[0].len();
        assert!((0..whole).all(|len| !key.matches(&frames[0][..len])));
        let mut short = frames[0].clone();
        short[HEADER_LEN + 3] = 23;
        assert!(!key.matches(&short), "shorter than its ports");
        assert_eq!(FrameKey::of(&short), None);
    }

    #[test]
    fn the_key_of_all_ports_matches_all_ports_and_nothing_else() {
        let right = frame(1, 2, &packet([10, 0, 0, 1], [10, 1, 0, 1], (1, 2), false));
        let one = FrameKey::of(&right).unwrap();
        let all = one.of_all_ports();
        for at in 0..HEADER_LEN + 24 {
            let mut other = right.clone();
            other[at] ^= 1;
            let is_port = at >= HEADER_LEN + 20;
            assert_eq!(all.matches(&other), is_port || one.matches(&other), "{at}");
            assert!(!(is_port && one.matches(&other)), "{at}");
        }
    }

    #[test]
    fn esp_of_one_association_matches_and_no_other() {
        let mut esp = packet([10, 0, 0, 1], [10, 0, 0, 2], (1, 2), false);
        esp[9] = protocol::ESP;
        esp.extend([0; 60]);
        let esp = frame(1, 2, &esp);
        let key = EspKey::of(&esp).unwrap();
        for at in 0..esp.len() {
            let mut other = esp.clone();
            other[at] ^= 1;
            // The header, whole packets of ESP in IPv4 without options, destination and SPI.
            let looked_at = at < 15 || [20, 21, 23].contains(&at) || (30..38).contains(&at);
            assert_eq!(key.matches(&other), !looked_at, "{at}");
        }
        assert!(!key.matches(&esp[..41]));
        assert_eq!(EspKey::of(&esp[..41]), None);
        let udp = packet([10, 0, 0, 1], [10, 0, 0, 2], (1, 2), false);
        assert_eq!(EspKey::of(&frame(1, 2, &udp)), None);
    }
}
