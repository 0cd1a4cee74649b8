//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

/// A one's complement sum in progress.
#[derive(Clone, Copy, Debug, Default)]
pub struct Checksum(u64);

impl Checksum {
    /// An empty sum.
    pub const fn new() -> Self {
        Self(0)
    }

    /// Adds a 16-bit word.
    pub const fn word(self, word: u16) -> Self {
        Self(self.0 + word as u64)
    }

    /// Adds bytes that begin at an even offset; an odd last byte is padded with zero.
    pub fn bytes(self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<4>();
        let mut sum = words.iter().fold(self.0, |sum, word| {
            sum + u64::from(u32::from_be_bytes(*word))
        });
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        sum += u64::from(u32::from_be_bytes(last));
        Self((sum & 0xffff_ffff) + (sum >> 32))
    }

    /// The checksum: the complement of the folded sum.
    pub const fn finish(self) -> u16 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        !(sum as u16)
    }
}

/// Whether the checksum of an IPv4 header without options is right.
#[inline]
pub(crate) fn is_right(header: &[u8; 20]) -> bool {
    // The order of bytes does not matter for the sum being all ones (RFC 1071 section 2).
    let (words, _) = header.as_chunks::<4>();
    let sum = words
        .iter()
        .fold(0, |sum, word| sum + u64::from(u32::from_ne_bytes(*word)));
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum == 0xffff
}

/// The checksum after one 16-bit word that it covers changed from `old` to `new`
/// (RFC 1624 equation 3).
pub const fn adjusted(checksum: u16, old: u16, new: u16) -> u16 {
    let sum = !checksum as u32 + !old as u32 + new as u32;
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 section 4.1, one word at a time.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Checksum::new().bytes(&bytes).finish(), !0xddf2);
    }

    proptest! {
        #[test]
        fn equals_the_naive_sum(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(Checksum::new().bytes(&bytes).finish(), naive(&bytes));
        }

        #[test]
        fn incremental_update_verifies(mut bytes in prop::collection::vec(any::<u8>(), 20..=20), at in 0usize..9, new in any::<u16>()) {
            bytes[18..].fill(0);
            let sum = naive(&bytes);
            let old = u16::from_be_bytes([bytes[at * 2], bytes[at * 2 + 1]]);
            bytes[at * 2..at * 2 + 2].copy_from_slice(&new.to_be_bytes());
            bytes[18..].copy_from_slice(&adjusted(sum, old, new).to_be_bytes());
            prop_assert!(naive(&bytes) == 0);
            prop_assert!(is_right(bytes.first_chunk().unwrap()));
            bytes[at] ^= 1;
            prop_assert!(!is_right(bytes.first_chunk().unwrap()));
        }
    }
}
