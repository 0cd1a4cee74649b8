//! What is measured: a level, a suite, a packet size and a number of associations; and the
//! keys and packets of it, made by a recipe that the peers' programs follow too (it is
//! written down in `benches/peers/README.md`), so that every contestant must produce the
//! same bytes.

use std::fmt;

use vesper_esp::{Encryption, Suite};

/// Packets in one pass.
pub(crate) const PACKETS: usize = 1024;

/// Packets that are handed over at once.
pub(crate) const BURST: usize = 64;

/// The sizes and frequencies of the IMIX: 7 of 64, 4 of 570 and 1 of 1,420 bytes.
const IMIX: [usize; 12] = [64, 64, 64, 64, 64, 64, 64, 570, 570, 570, 570, 1420];

/// How much of a packet's way is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// Cipher and ICV alone.
    Aead,
    /// The whole of ESP in tunnel mode.
    Esp,
}

/// The size of the packets: of the text at [`Level::Aead`], of the inner IP packet at
/// [`Level::Esp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// Bytes.
    Bytes(usize),
    /// The mixture of sizes.
    Imix,
}

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Sealed.
    Out,
    /// Opened.
    In,
}

/// One thing to be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) level: Level,
    pub(crate) suite: &'static Suite,
    pub(crate) size: Size,
    /// Security associations, round robin in a shuffled order.
    pub(crate) sas: usize,
}

impl Level {
    /// The name on the command line and in results.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Aead => "aead",
            Self::Esp => "esp",
        }
    }
}

impl Direction {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Out, Self::In];

    /// The name on the command line and in results.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::In => "in",
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{bytes}"),
            Self::Imix => f.write_str("imix"),
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (level, suite) = (self.level.name(), self.suite.name);
        write!(f, "{level} {suite} {} {}", self.size, self.sas)
    }
}

impl Size {
    /// The nominal size of each packet of a pass.
    pub(crate) fn lengths(self) -> Vec<usize> {
        match self {
            Self::Bytes(bytes) => vec![bytes; PACKETS],
            Self::Imix => {
                let mut lengths: Vec<_> = IMIX.iter().copied().cycle().take(PACKETS).collect();
                Stream::new(Stream::IMIX).shuffle(&mut lengths);
                lengths
            }
        }
    }

    /// The mean size of a packet, in bytes.
    pub(crate) fn mean(self) -> f64 {
        self.lengths().iter().sum::<usize>() as f64 / PACKETS as f64
    }
}

impl Case {
    /// The encryption key with its salt, and the integrity key, of association `index`.
    pub(crate) fn keys(&self, index: usize) -> (Vec<u8>, Vec<u8>) {
        let mut stream = Stream::new(Stream::KEYS + index as u64);
        let mut key = vec![0; self.suite.key_len + self.suite.salt_len];
        stream.fill(&mut key);
        let mut auth_key = vec![0; self.suite.auth_key_len];
        stream.fill(&mut auth_key);
        (key, auth_key)
    }

    /// The associations in the order in which packets use them.
    pub(crate) fn order(&self) -> Vec<u32> {
        let mut order: Vec<_> = (0..self.sas as u32).collect();
        Stream::new(Stream::ORDER).shuffle(&mut order);
        order
    }

    /// Bytes of text at [`Level::Aead`] for a nominal size: AES-CBC takes whole blocks.
    pub(crate) fn text_len(&self, size: usize) -> usize {
        match self.suite.encryption {
            Encryption::AesCbc => size.next_multiple_of(16),
            _ => size,
        }
    }

    /// Writes packet `index` of [`Level::Aead`], ready to be sealed: SPI, sequence number,
    /// IV, text. The ICV is left alone.
    pub(crate) fn write_esp(&self, index: usize, esp: &mut [u8]) {
        let sequence = index as u64 + 1;
        let (spi, rest) = esp.split_at_mut(4);
        spi.copy_from_slice(&(0x1000 + index as u32).to_be_bytes());
        let (number, rest) = rest.split_at_mut(4);
        number.copy_from_slice(&(sequence as u32).to_be_bytes());
        let (iv, text) = rest.split_at_mut(self.suite.iv_len);
        let mut stream = Stream::new(Stream::TEXT + index as u64);
        match self.suite.encryption {
            Encryption::AesCbc => stream.fill(iv),
            _ => iv.copy_from_slice(&sequence.to_be_bytes()[8 - iv.len()..]),
        }
        let text_len = text.len() - self.suite.icv_len;
        stream.fill(&mut text[..text_len]);
    }

    /// Writes packet `index` of [`Level::Esp`], an inner IPv4 packet with UDP. `packet` has
    /// room for both headers.
    pub(crate) fn write_inner(&self, index: usize, packet: &mut [u8]) {
        let length = packet.len() as u16;
        let (ip, rest) = packet.split_at_mut(20);
        let (udp, text) = rest.split_at_mut(8);
        ip.copy_from_slice(&[
            0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 1, 0, 1, 10, 2, 0, 1,
        ]);
        ip[2..4].copy_from_slice(&length.to_be_bytes());
        ip[4..6].copy_from_slice(&(index as u16).to_be_bytes());
        let words = ip.chunks_exact(2);
        let sum: u32 = words
            .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
            .sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        udp.copy_from_slice(&[4, 0, 4, 1, 0, 0, 0, 0]);
        udp[4..6].copy_from_slice(&(length - 20).to_be_bytes());
        Stream::new(Stream::TEXT + index as u64).fill(text);
    }
}

/// The pseudo-random numbers of the recipe: SplitMix64.
#[derive(Debug)]
pub(crate) struct Stream(u64);

impl Stream {
    const KEYS: u64 = 1 << 32;
    const TEXT: u64 = 2 << 32;
    const ORDER: u64 = 3 << 32;
    const IMIX: u64 = 4 << 32;

    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Little-endian numbers one after another, the last cut off where the bytes end.
    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Fisher and Yates, from the end.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// What all contestants must agree on: a hash (FNV-1a, 64 bits) of every byte of every
/// sealed packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digest(u64);

impl Digest {
    /// Of nothing.
    pub(crate) const EMPTY: Self = Self(0xcbf2_9ce4_8422_2325);

    /// With these bytes after what was there.
    pub(crate) fn with(self, bytes: &[u8]) -> Self {
        Self(bytes.iter().fold(self.0, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        }))
    }

    /// As a peer's program writes it.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        u64::from_str_radix(text, 16).ok().map(Self)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_is_splitmix64() {
        // The first outputs for seed 1234567, as in the reference of the algorithm's authors.
        let mut stream = Stream::new(1_234_567);
        assert_eq!(stream.next(), 6_457_827_717_110_365_317);
        assert_eq!(stream.next(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn digest_is_fnv_1a() {
        assert_eq!(Digest::EMPTY.with(b"foobar"), Digest(0x8594_4171_f739_67e8));
        let digest = Digest::EMPTY.with(b"a");
        assert_eq!(Digest::parse(&digest.to_string()), Some(digest));
    }

    #[test]
    fn imix_has_its_proportions() {
        let lengths = Size::Imix.lengths();
        let count = |size| lengths.iter().filter(|&&length| length == size).count();
        assert_eq!(lengths.len(), PACKETS);
        // 85 whole cycles of 12 and 4 packets of the next.
        assert_eq!(
            (count(64), count(570), count(1420)),
            (85 * 7 + 4, 85 * 4, 85)
        );
    }

    #[test]
    fn order_is_a_permutation() {
        let case = Case {
            level: Level::Aead,
            suite: &Suite::ALL[0],
            size: Size::Imix,
            sas: 1024,
        };
        let mut order = case.order();
        assert!(order.windows(2).any(|pair| pair[0] > pair[1]));
        order.sort_unstable();
        assert!(order.iter().copied().eq(0..1024));
    }
}
