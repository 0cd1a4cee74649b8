//! HMAC (RFC 2104) of many packets at once.

use zeroize::Zeroize;

use super::Token;
use super::hasher::{
    Hasher, Sha1, Sha256, Sha256Avx2, Sha256Avx512, Sha512Avx2, Sha512Avx512, Word,
};
use super::lanes::Lanes;
use super::{sha1, sha256};

/// The hashes of this kernel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hash {
    Sha1,
    Sha256,
    Sha384,
    Sha512,
}

/// The initial hash values of SHA-384 and SHA-512 (FIPS 180-4 sections 5.3.4 and 5.3.5).
const INITIAL_384: [u64; 8] = [
    0xcbbb_9d5d_c105_9ed8,
    0x629a_292a_367c_d507,
    0x9159_015a_3070_dd17,
    0x152f_ecd8_f70e_5939,
    0x6733_2667_ffc0_0b31,
    0x8eb4_4a87_6858_1511,
    0xdb0c_2e0d_64f9_8fa7,
    0x47b5_481d_befa_4fa4,
];
const INITIAL_512: [u64; 8] = [
    0x6a09_e667_f3bc_c908,
    0xbb67_ae85_84ca_a73b,
    0x3c6e_f372_fe94_f82b,
    0xa54f_f53a_5f1d_36f1,
    0x510e_527f_ade6_82d1,
    0x9b05_688c_2b3e_6c1f,
    0x1f83_d9ab_fb41_bd6b,
    0x5be0_cd19_137e_2179,
];

impl Hash {
    /// Bytes in a block.
    pub(super) const fn block_len(self) -> usize {
        match self {
            Self::Sha1 | Self::Sha256 => 64,
            Self::Sha384 | Self::Sha512 => 128,
        }
    }

    pub(super) const fn digest_len(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    fn initial(self) -> [u64; 8] {
        match self {
            Self::Sha1 => sha1::INITIAL.map(u64::from),
            Self::Sha256 => sha256::INITIAL.map(u64::from),
            Self::Sha384 => INITIAL_384,
            Self::Sha512 => INITIAL_512,
        }
    }
}

/// Which instructions a hash runs on; `None` where there is no kernel for it.
macro_rules! with_hasher {
    ($token:expr, $hash:expr, |$hasher:ident| $do:expr) => {{
        let (token, hash): (Token, Hash) = ($token, $hash);
        macro_rules! with {
            ($type:ty) => {{
                type $hasher = $type;
                Some($do)
            }};
        }
        match hash {
            Hash::Sha1 if token.sha => with!(Sha1),
            Hash::Sha256 if token.sha && token.avx512 => with!(Sha256Avx512),
            Hash::Sha256 if token.sha => with!(Sha256),
            Hash::Sha256 if token.avx2 => with!(Sha256Avx2),
            Hash::Sha384 | Hash::Sha512 if token.avx512 => with!(Sha512Avx512),
            Hash::Sha384 | Hash::Sha512 if token.avx2 => with!(Sha512Avx2),
            _ => None,
        }
    }};
}

/// Whether the instructions are enough for the hash.
pub(super) fn supports(token: Token, hash: Hash) -> bool {
    with_hasher!(token, hash, |H| H::LANES > 0).unwrap_or(false)
}

/// A key: the states after its first block, inside and outside, their words in 64 bits each.
pub(super) struct HmacKey {
    pub(super) hash: Hash,
    states: [[u64; 8]; 2],
}

impl HmacKey {
    /// At most a block; `None` if there is more, or if there is no kernel for the hash.
    pub(super) fn new(token: Token, hash: Hash, key: &[u8]) -> Option<Self> {
        let mut block = [0_u8; 128];
        let padded = block.get_mut(..hash.block_len())?;
        padded.get_mut(..key.len())?.copy_from_slice(key);
        let mut states = [hash.initial(); 2];
        for (state, pad) in states.iter_mut().zip([0x36, 0x5c ^ 0x36]) {
            // The second time the first pad is taken out as well.
            padded.iter_mut().for_each(|byte| *byte ^= pad);
            // SAFETY: a token proves that the CPU has the instructions; one block.
            with_hasher!(token, hash, |H| unsafe { compress::<H>(state, padded) })?;
        }
        block.zeroize();
        Some(Self { hash, states })
    }

    /// The state inside.
    #[inline]
    pub(super) fn inner<W: Word>(&self) -> [W; 8] {
        self.states[0].map(W::new)
    }

    /// The state outside.
    #[inline]
    pub(super) fn outer<W: Word>(&self) -> [W; 8] {
        self.states[1].map(W::new)
    }
}

/// Takes one block into a state.
///
/// # Safety
/// The CPU has the instructions of the hasher, and `block` is a block of it.
unsafe fn compress<H: Hasher>(state: &mut [u64; 8], block: &[u8]) {
    let mut words = state.map(H::Word::new);
    // SAFETY: the caller vouches for both.
    unsafe { H::one(&mut words, block.as_ptr(), 1) };
    *state = words.map(Word::widened);
}

impl Drop for HmacKey {
    fn drop(&mut self) {
        for state in &mut self.states {
            state.zeroize();
        }
    }
}

/// What is authenticated.
pub(super) struct Message<'a> {
    pub(super) key: &'a HmacKey,
    pub(super) text: &'a [u8],
}

/// The first 32 bytes of the digest of every message, or fewer where a digest is shorter.
///
/// Best if messages with one hash are neighbours, and of these the shorter ones come first.
pub(super) fn digests(token: Token, messages: &[Message<'_>], digests: &mut [[u8; 32]]) {
    let mut done = 0;
    for run in messages.chunk_by(|one, other| one.key.hash == other.key.hash) {
        let places = &mut digests[done..done + run.len()];
        done += run.len();
        let Some(first) = run.first() else { continue };
        // SAFETY: a token proves that the CPU has the instructions. There is a hasher, for
        // there are keys.
        with_hasher!(token, first.key.hash, |H| unsafe {
            Lanes::<H>::new(first.key.hash).run(run, places);
        });
    }
}

#[cfg(test)]
mod tests {
    use hmac::{KeyInit, Mac};

    use super::*;
    use crate::aead::Implementation;

    /// What the libraries make of it.
    fn expected(hash: Hash, key: &[u8], text: &[u8]) -> Vec<u8> {
        fn with<M: Mac + KeyInit>(key: &[u8], text: &[u8]) -> Vec<u8> {
            let mut mac = <M as KeyInit>::new_from_slice(key).unwrap();
            mac.update(text);
            mac.finalize().into_bytes().to_vec()
        }
        match hash {
            Hash::Sha1 => with::<hmac::Hmac<::sha1::Sha1>>(key, text),
            Hash::Sha256 => with::<hmac::Hmac<::sha2::Sha256>>(key, text),
            Hash::Sha384 => with::<hmac::Hmac<::sha2::Sha384>>(key, text),
            Hash::Sha512 => with::<hmac::Hmac<::sha2::Sha512>>(key, text),
        }
    }

    /// The CPU, and what it would be if it lacked some of its instructions.
    fn tokens() -> Vec<Token> {
        let mut tokens = Vec::new();
        for implementation in [Implementation::Vaes512, Implementation::AesNi] {
            let Some(all) = Token::detect(implementation) else {
                continue;
            };
            let without_sha = Token { sha: false, ..all };
            let without_avx2 = Token { avx2: false, ..all };
            tokens.extend([all, without_sha, without_avx2]);
        }
        tokens
    }

    #[test]
    fn every_number_of_messages_of_any_length_agrees_with_the_libraries() {
        let texts: Vec<u8> = (0..4_000_u32).map(|i| ((i * i) >> 3) as u8).collect();
        let mut number = 0_usize;
        for token in tokens() {
            for hash in [Hash::Sha1, Hash::Sha256, Hash::Sha384, Hash::Sha512] {
                if !supports(token, hash) {
                    assert!(HmacKey::new(token, hash, b"key").is_none());
                    continue;
                }
                let secrets = [&b"key"[..], b"another key", &texts[..hash.block_len()]];
                let keys = secrets.map(|key| HmacKey::new(token, hash, key).unwrap());
                // The second time all are equally long.
                for (count, same) in (0..=40).flat_map(|count| [(count, false), (count, true)]) {
                    let mut messages: Vec<(usize, &[u8])> = (0..count)
                        .map(|_| {
                            number += 1;
                            let len = number * 53 % 300 + number % 7 / 6 * 900;
                            let len = if same { count * 29 } else { len };
                            (number % 3, &texts[number % 60..][..len])
                        })
                        .collect();
                    messages.sort_by_key(|(_, text)| text.len());
                    let mut results = vec![[0; 32]; count];
                    let jobs: Vec<Message<'_>> = messages
                        .iter()
                        .map(|(key, text)| Message {
                            key: &keys[*key],
                            text,
                        })
                        .collect();
                    digests(token, &jobs, &mut results);
                    for ((key, text), result) in messages.iter().zip(&results) {
                        let expected = expected(hash, secrets[*key], text);
                        let len = expected.len().min(32);
                        assert_eq!(
                            result[..len],
                            expected[..len],
                            "{token:?}, one of {count}, {} bytes",
                            text.len()
                        );
                    }
                }
            }
        }
    }
}
