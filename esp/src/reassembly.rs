//! Reassembly of outer fragments, the stage in front of the engine.
//!
//! The pieces are put together by `etherparse`; what is here is the bound on memory and time
//! that it leaves to its user, and the refusal of overlapping fragments.

use core::fmt;
use core::net::IpAddr;
use core::time::Duration;
use std::collections::HashMap;

use etherparse::IpNumber;
use etherparse::defrag::{IpDefragBuf, IpFragRange};
use vesper_sa::Timestamp;

use crate::wire::{Checksum, Fragment, IpHeader, IpVersion, WireError, protocol};

/// How much a [`Reassembler`] may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReassemblyLimits {
    /// Datagrams under way at once; the oldest makes room for a new one.
    pub datagrams: usize,
    /// Bytes of all datagrams under way together.
    pub bytes: usize,
    /// How long the fragments of one datagram may take.
    pub timeout: Duration,
}

impl Default for ReassemblyLimits {
    /// 256 datagrams, 4 MiB, 30 seconds (as Linux).
    fn default() -> Self {
        Self {
            datagrams: 256,
            bytes: 4 << 20,
            timeout: Duration::from_secs(30),
        }
    }
}

/// Collects fragments until their datagram is whole.
#[derive(Debug)]
pub struct Reassembler {
    limits: ReassemblyLimits,
    pending: HashMap<Key, Datagram>,
    bytes: usize,
    given_up: u64,
}

/// What became of a packet handed to [`Reassembler::push`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reassembly {
    /// The packet is no fragment: use it as it is.
    Whole,
    /// The fragment was kept; others are missing.
    Waiting,
    /// The last missing fragment: here is the datagram.
    Complete(Vec<u8>),
    /// The fragment, and its datagram with it, was thrown away.
    Refused(ReassemblyError),
}

/// Why a datagram was thrown away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReassemblyError {
    /// Not an IP packet.
    Malformed(WireError),
    /// Empty, not a multiple of eight bytes before the last, or beyond the last.
    Length,
    /// Longer than an IP packet can be.
    TooLong,
    /// Overlaps another fragment with different content (RFC 5722).
    Overlap,
    /// In more pieces than are tracked.
    TooManyPieces,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    channel: u32,
    source: IpAddr,
    destination: IpAddr,
    identification: u32,
    /// IPv4 only (RFC 791 section 3.2); IPv6 does not look at it (RFC 8200 section 4.5).
    protocol: u8,
}

#[derive(Debug)]
struct Datagram {
    buffer: IpDefragBuf,
    /// Headers of the first fragment, as they will stand in front of the datagram.
    header: Vec<u8>,
    since: Timestamp,
    congestion: bool,
}

/// Holes per datagram; ordinary traffic has one or two.
const MAX_PIECES: usize = 64;

impl Reassembler {
    /// An empty stage.
    pub fn new(limits: ReassemblyLimits) -> Self {
        Self {
            limits,
            pending: HashMap::new(),
            bytes: 0,
            given_up: 0,
        }
    }

    /// Datagrams of which fragments are missing.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Datagrams that were given up for lack of time or room.
    pub const fn given_up(&self) -> u64 {
        self.given_up
    }

    /// Takes one IP packet. `channel` keeps apart what must not be mixed: a VLAN, a virtual
    /// machine.
    pub fn push(&mut self, now: Timestamp, channel: u32, packet: &[u8]) -> Reassembly {
        let ip = match IpHeader::parse(packet) {
            Ok(ip) if !ip.checksum_is_plausible(packet) => {
                return Reassembly::Refused(ReassemblyError::Malformed(WireError::HeaderChecksum));
            }
            Ok(ip) => ip,
            Err(error) => return Reassembly::Refused(ReassemblyError::Malformed(error)),
        };
        let Some(fragment) = ip.fragment else {
            return Reassembly::Whole;
        };
        self.expire(now);
        let key = Key {
            channel,
            source: ip.source,
            destination: ip.destination,
            identification: fragment.identification,
            protocol: match ip.version {
                IpVersion::V4 => ip.protocol,
                IpVersion::V6 => 0,
            },
        };
        let payload = &packet[ip.header_len..ip.total_len];
        self.make_room(key, payload.len() + usize::from(fragment.offset));
        let datagram = self.pending.entry(key).or_insert_with(|| Datagram {
            buffer: IpDefragBuf::new(IpNumber(ip.protocol), Vec::new(), Vec::new()),
            header: Vec::new(),
            since: now,
            congestion: false,
        });
        let held = datagram.buffer.data().len();
        let outcome = datagram.add(&ip, fragment, packet, payload);
        self.bytes = self.bytes + datagram.buffer.data().len() - held;
        match outcome {
            Ok(false) => Reassembly::Waiting,
            Ok(true) => match self.remove(&key).map(Datagram::into_packet) {
                Some(Some(packet)) => Reassembly::Complete(packet),
                _ => Reassembly::Refused(ReassemblyError::TooLong),
            },
            Err(error) => {
                self.remove(&key);
                Reassembly::Refused(error)
            }
        }
    }

    /// Gives up the datagrams that took too long.
    pub fn expire(&mut self, now: Timestamp) {
        let late = |datagram: &Datagram| now.since(datagram.since) >= self.limits.timeout;
        if !self.pending.values().any(late) {
            return;
        }
        let keys: Vec<Key> = self
            .pending
            .iter()
            .filter(|(_, datagram)| late(datagram))
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            self.remove(&key);
            self.given_up += 1;
        }
    }

    /// Gives up the oldest datagrams until `key` may grow to `len` bytes.
    fn make_room(&mut self, key: Key, len: usize) {
        loop {
            let (count, held) = match self.pending.get(&key) {
                Some(datagram) => (self.pending.len(), datagram.buffer.data().len()),
                None => (self.pending.len() + 1, 0),
            };
            let bytes = self.bytes + len.saturating_sub(held);
            if count <= self.limits.datagrams && bytes <= self.limits.bytes {
                return;
            }
            let oldest = self
                .pending
                .iter()
                .filter(|(other, _)| **other != key)
                .min_by_key(|(_, datagram)| datagram.since)
                .map(|(key, _)| *key);
            let Some(oldest) = oldest else { return };
            self.remove(&oldest);
            self.given_up += 1;
        }
    }

    fn remove(&mut self, key: &Key) -> Option<Datagram> {
        let datagram = self.pending.remove(key)?;
        self.bytes -= datagram.buffer.data().len();
        Some(datagram)
    }
}

impl Default for Reassembler {
    fn default() -> Self {
        Self::new(ReassemblyLimits::default())
    }
}

impl Datagram {
    /// Adds a fragment; `true` if the datagram is whole now.
    fn add(
        &mut self,
        ip: &IpHeader,
        fragment: Fragment,
        packet: &[u8],
        payload: &[u8],
    ) -> Result<bool, ReassemblyError> {
        let start = usize::from(fragment.offset);
        let end = start + payload.len();
        if payload.is_empty() || (fragment.more && !payload.len().is_multiple_of(8)) {
            return Err(ReassemblyError::Length);
        }
        if end > usize::from(u16::MAX) {
            return Err(ReassemblyError::TooLong);
        }
        self.congestion |= ip.traffic_class & 3 == 3;
        let sections = self.buffer.sections();
        if sections.len() >= MAX_PIECES {
            return Err(ReassemblyError::TooManyPieces);
        }
        let overlaps = |section: &IpFragRange| {
            start < usize::from(section.end) && usize::from(section.start) < end
        };
        let last = sections.iter().map(|section| section.end).max();
        if !fragment.more && last.is_some_and(|last| usize::from(last) > end) {
            return Err(ReassemblyError::Length);
        }
        if let Some(section) = sections.iter().find(|section| overlaps(section)) {
            // The same fragment once more is no harm.
            let inside = usize::from(section.start) <= start && end <= usize::from(section.end);
            let same = inside && self.buffer.data().get(start..end) == Some(payload);
            return if same {
                Ok(false)
            } else {
                Err(ReassemblyError::Overlap)
            };
        }
        if start == 0 {
            self.header = unfragmented_header(ip, &packet[..ip.header_len]);
        }
        let offset = (fragment.offset >> 3)
            .try_into()
            .map_err(|_| ReassemblyError::TooLong)?;
        self.buffer
            .add(offset, fragment.more, payload)
            .map_err(|_| ReassemblyError::Length)?;
        Ok(self.buffer.is_complete())
    }

    /// The datagram behind the headers of its first fragment; `None` if it is too long.
    fn into_packet(self) -> Option<Vec<u8>> {
        let mut packet = self.header;
        let header_len = packet.len();
        packet.extend_from_slice(self.buffer.data());
        let is_v4 = packet.first()? >> 4 == 4;
        let len_field = if is_v4 {
            packet.len()
        } else {
            packet.len() - 40
        };
        let len_field = u16::try_from(len_field).ok()?.to_be_bytes();
        // One marked fragment marks the datagram (RFC 3168 section 5.3).
        if is_v4 {
            if self.congestion {
                packet[1] |= 3;
            }
            packet[2..4].copy_from_slice(&len_field);
            packet[10..12].fill(0);
            let sum = Checksum::new().bytes(&packet[..header_len]).finish();
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            if self.congestion {
                packet[1] |= 0x30;
            }
            packet[4..6].copy_from_slice(&len_field);
        }
        Some(packet)
    }
}

/// The headers of a first fragment as they were before it was cut; `header` ends where the
/// data begin.
fn unfragmented_header(ip: &IpHeader, header: &[u8]) -> Vec<u8> {
    let mut whole = header.to_vec();
    match ip.version {
        // Without "more fragments" and offset; "don't fragment" stays.
        IpVersion::V4 => {
            whole[6] &= 0x40;
            whole[7] = 0;
        }
        // Without the fragment header, which is the last one: its predecessor names what
        // follows.
        IpVersion::V6 => {
            let (mut at, mut named_at) = (40, 6);
            while at < ip.protocol_at {
                let len = (usize::from(whole[at + 1]) + 1) * 8;
                (at, named_at) = (at + len, at);
            }
            debug_assert_eq!(whole[named_at], protocol::FRAGMENT);
            whole[named_at] = ip.protocol;
            whole.truncate(ip.protocol_at);
        }
    }
    whole
}

impl fmt::Display for ReassemblyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(error) => error.fmt(f),
            Self::Length => f.write_str("fragment length contradicts its place in the datagram"),
            Self::TooLong => f.write_str("datagram longer than an IP packet can be"),
            Self::Overlap => f.write_str("fragments overlap"),
            Self::TooManyPieces => f.write_str("datagram in too many pieces"),
        }
    }
}

impl core::error::Error for ReassemblyError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fragments;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn datagram(identification: u16, len: usize) -> Vec<u8> {
        let mut packet = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(1, 2)
            .write(&mut packet, &vec![0xa5; len])
            .unwrap();
        packet[6] = 0;
        packet[4..6].copy_from_slice(&identification.to_be_bytes());
        packet[10..12].fill(0);
        let sum = Checksum::new().bytes(&packet[..20]).finish();
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    fn cut(packet: &[u8], mtu: usize) -> Vec<Vec<u8>> {
        fragments(packet, mtu)
            .unwrap()
            .map(|part| {
                let mut out = vec![0; part.len()];
                assert!(part.write_to(&mut out));
                out
            })
            .collect()
    }

    proptest! {
        #[test]
        fn any_order_gives_the_datagram(len in 100usize..4000, mtu in 68usize..1500, seed in any::<u64>(), twice in any::<bool>()) {
            let whole = datagram(9, len);
            let mut parts = cut(&whole, mtu);
            prop_assume!(parts.len() > 1 && parts.len() < MAX_PIECES);
            let mut state = seed;
            for at in (1..parts.len()).rev() {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                parts.swap(at, (state >> 33) as usize % (at + 1));
            }
            let mut stage = Reassembler::default();
            let last = parts.len() - 1;
            for (index, part) in parts.iter().enumerate() {
                if twice && index < last {
                    prop_assert_eq!(stage.push(Timestamp::ZERO, 0, part), Reassembly::Waiting);
                }
                let expected = if index == last { Reassembly::Complete(whole.clone()) } else { Reassembly::Waiting };
                prop_assert_eq!(stage.push(Timestamp::ZERO, 0, part), expected);
            }
            prop_assert_eq!((stage.pending(), stage.bytes), (0, 0));
        }

        #[test]
        fn garbage_never_panics_and_stays_within_bounds(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 40..100), 0..60)) {
            let limits = ReassemblyLimits { datagrams: 4, bytes: 10_000, ..Default::default() };
            let mut stage = Reassembler::new(limits);
            for (index, mut packet) in packets.into_iter().enumerate() {
                let len = packet.len() as u16;
                if index % 2 == 0 {
                    packet[0] = 0x45;
                    packet[2..4].copy_from_slice(&len.to_be_bytes());
                    packet[10..20].fill(0);
                    packet[4..6].fill(0);
                } else {
                    packet[0] = 0x60;
                    packet[4..6].copy_from_slice(&(len - 40).to_be_bytes());
                    packet[6] = 44;
                    packet[8..40].fill(1);
                }
                stage.push(Timestamp::ZERO, 0, &packet);
                prop_assert!(stage.pending() <= 4 && stage.bytes <= 10_000 + 65_535);
                prop_assert_eq!(stage.bytes, stage.pending.values().map(|d| d.buffer.data().len()).sum::<usize>());
            }
        }
    }

    #[test]
    fn version_6_loses_its_fragment_header() {
        let header = |payload: u16, bits: u16| {
            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend((16 + payload).to_be_bytes());
            packet.extend([0, 64]);
            packet.extend([7; 32]);
            packet.extend([44, 0, 1, 4, 0, 0, 0, 0]);
            packet.extend([50, 0]);
            packet.extend(bits.to_be_bytes());
            packet.extend([0, 0, 0, 5]);
            packet
        };
        let mut first = header(8, 1);
        first.extend(1..=8);
        let mut second = header(4, 8);
        second.extend(9..=12);
        let mut stage = Reassembler::default();
        assert_eq!(stage.push(Timestamp::ZERO, 0, &second), Reassembly::Waiting);
        let Reassembly::Complete(whole) = stage.push(Timestamp::ZERO, 0, &first) else {
            panic!("not complete");
        };
        let ip = IpHeader::parse(&whole).unwrap();
        assert_eq!((ip.header_len, ip.protocol, ip.fragment), (48, 50, None));
        assert_eq!(whole[48..], (1..=12).collect::<Vec<u8>>());
        assert_eq!(ip.total_len, whole.len());
    }

    #[test]
    fn overlaps_lies_and_silence_end_a_datagram() {
        let parts = cut(&datagram(9, 100), 68);
        let mut stage = Reassembler::default();
        let mut other = parts[1].clone();
        *other.last_mut().unwrap() ^= 1;
        assert_eq!(
            stage.push(Timestamp::ZERO, 0, &parts[1]),
            Reassembly::Waiting
        );
        assert_eq!(stage.push(Timestamp::ZERO, 1, &other), Reassembly::Waiting);
        assert_eq!(stage.pending(), 2, "channels are apart");
        assert_eq!(
            stage.push(Timestamp::ZERO, 0, &other),
            Reassembly::Refused(ReassemblyError::Overlap)
        );
        assert_eq!(stage.pending(), 1);
        assert_eq!(
            stage.push(Timestamp::from_secs(30), 0, &parts[0]),
            Reassembly::Waiting
        );
        assert_eq!((stage.pending(), stage.given_up()), (1, 1));
        assert_eq!(
            stage.push(Timestamp::ZERO, 0, &datagram(1, 50)),
            Reassembly::Whole
        );
    }

    #[test]
    fn a_flood_of_first_fragments_is_bounded() {
        let limits = ReassemblyLimits {
            datagrams: 10,
            bytes: 20_000,
            ..Default::default()
        };
        let mut stage = Reassembler::new(limits);
        for identification in 0..1000 {
            let parts = cut(&datagram(identification, 3000), 1500);
            stage.push(Timestamp::ZERO, 0, &parts[0]);
            assert!(stage.pending() <= 10 && stage.bytes <= 20_000);
        }
        assert_eq!(stage.given_up(), 990);
    }
}
