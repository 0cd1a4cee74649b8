//! HMAC (RFC 2104) with the hash instructions of the CPU, two packets at a time: one waits for
//! its rounds while the other works.

use core::arch::x86_64::*;

use zeroize::Zeroize;

use super::{Vaes, sha1, sha256};

/// Bytes in a block of SHA-1 and SHA-256.
const BLOCK: usize = 64;

/// A state of a hash, in the order of its instructions.
pub(super) type State = [u128; 2];

/// The hashes of this kernel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hash {
    Sha1,
    Sha256,
}

impl Hash {
    fn initial(self) -> State {
        match self {
            Self::Sha1 => sha1::INITIAL,
            Self::Sha256 => sha256::INITIAL,
        }
    }

    const fn digest_len(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }

    /// The digest, and zeroes behind it.
    fn digest(self, state: State) -> [u8; 32] {
        match self {
            Self::Sha1 => sha1::digest(state),
            Self::Sha256 => sha256::digest(state),
        }
    }

    /// # Safety
    /// Every pointer is valid for reads of `64 * count` bytes.
    #[inline]
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    unsafe fn compress<const N: usize>(
        self,
        states: &mut [State; N],
        messages: [*const u8; N],
        count: usize,
    ) {
        // SAFETY: as for this function.
        unsafe {
            match self {
                Self::Sha1 => sha1::compress(states, messages, count),
                Self::Sha256 => sha256::compress(states, messages, count),
            }
        }
    }
}

/// A key: the states after its first block, inside and outside.
pub(super) struct HmacKey {
    pub(super) hash: Hash,
    inner: State,
    outer: State,
}

impl HmacKey {
    /// At most 64 bytes; `None` if there are more.
    pub(super) fn new(token: Vaes, hash: Hash, key: &[u8]) -> Option<Self> {
        let mut block = [0; BLOCK];
        block.get_mut(..key.len())?.copy_from_slice(key);
        let mut padded = [block, block];
        padded[0].iter_mut().for_each(|byte| *byte ^= 0x36);
        padded[1].iter_mut().for_each(|byte| *byte ^= 0x5c);
        let mut states = [hash.initial(); 2];
        let Vaes(..) = token;
        // SAFETY: the token proves that the CPU has the instructions; one block each.
        unsafe { hash.compress(&mut states, [padded[0].as_ptr(), padded[1].as_ptr()], 1) };
        block.zeroize();
        padded.zeroize();
        let [inner, outer] = states;
        states.zeroize();
        Some(Self { hash, inner, outer })
    }
}

impl Drop for HmacKey {
    fn drop(&mut self) {
        self.inner.zeroize();
        self.outer.zeroize();
    }
}

/// What is authenticated.
pub(super) struct Message<'a> {
    pub(super) key: &'a HmacKey,
    pub(super) covered: &'a [u8],
    /// What follows, if there is ESN: the high half of the sequence number (RFC 4303 section 2.2.1).
    pub(super) high: Option<[u8; 4]>,
}

impl Message<'_> {
    fn full_blocks(&self) -> usize {
        self.covered.len() / BLOCK
    }

    /// The last one or two blocks, with the padding of FIPS 180-4 section 5.1.1, and how many.
    fn last_blocks(&self) -> ([u8; 2 * BLOCK], usize) {
        let mut blocks = [0; 2 * BLOCK];
        let rest = &self.covered[self.full_blocks() * BLOCK..];
        blocks[..rest.len()].copy_from_slice(rest);
        let mut end = rest.len();
        let mut len = BLOCK + self.covered.len();
        if let Some(high) = self.high {
            blocks[end..end + 4].copy_from_slice(&high);
            end += 4;
            len += 4;
        }
        blocks[end] = 0x80;
        let count = if end < BLOCK - 8 { 1 } else { 2 };
        blocks[count * BLOCK - 8..count * BLOCK].copy_from_slice(&(8 * len as u64).to_be_bytes());
        (blocks, count)
    }
}

/// The digest of every message.
///
/// Best if those with one hash are neighbours, and of these the ones of similar length.
pub(super) fn digests(token: Vaes, messages: &[Message<'_>], digests: &mut [[u8; 32]]) {
    let Vaes(..) = token;
    let mut done = 0;
    for run in messages.chunk_by(|one, other| one.key.hash == other.key.hash) {
        for pair in run.chunks(2) {
            let places = &mut digests[done..done + pair.len()];
            // SAFETY: the token proves that the CPU has the instructions.
            unsafe {
                match pair {
                    [one, other] => places.copy_from_slice(&interleaved([one, other])),
                    [one] => places.copy_from_slice(&interleaved([one])),
                    _ => {}
                }
            }
            done += pair.len();
        }
    }
}

/// The digests of messages with the same hash.
#[target_feature(enable = "sha,sse4.1,ssse3")]
fn interleaved<const N: usize>(messages: [&Message<'_>; N]) -> [[u8; 32]; N] {
    let hash = messages[0].key.hash;
    let mut states = messages.map(|message| message.key.inner);
    let texts = messages.map(|message| (message.covered.as_ptr(), message.full_blocks()));
    // SAFETY: the full blocks of the messages.
    unsafe { blocks(hash, &mut states, texts) };
    let last = messages.map(Message::last_blocks);
    let places = last
        .each_ref()
        .map(|(blocks, count)| (blocks.as_ptr(), *count));
    // SAFETY: as many blocks as were made.
    unsafe { blocks(hash, &mut states, places) };

    let outer = states.map(|state| {
        let mut block = [0; BLOCK];
        block[..32].copy_from_slice(&hash.digest(state));
        let len = hash.digest_len();
        block[len] = 0x80;
        let bits = 8 * (BLOCK + len) as u64;
        block[BLOCK - 8..].copy_from_slice(&bits.to_be_bytes());
        block
    });
    let mut states = messages.map(|message| message.key.outer);
    // SAFETY: one block each.
    unsafe { hash.compress(&mut states, outer.each_ref().map(|block| block.as_ptr()), 1) };
    states.map(|state| hash.digest(state))
}

/// Takes blocks of each message into its state: together as many as all have, the others one
/// message after the other.
///
/// # Safety
/// Every pointer is valid for reads of as many blocks as stand beside it.
#[inline]
#[target_feature(enable = "sha,sse4.1,ssse3")]
unsafe fn blocks<const N: usize>(
    hash: Hash,
    states: &mut [State; N],
    messages: [(*const u8, usize); N],
) {
    let common = messages
        .into_iter()
        .map(|(_, count)| count)
        .min()
        .unwrap_or(0);
    // SAFETY: as for this function.
    unsafe {
        hash.compress(states, messages.map(|(message, _)| message), common);
        for (state, (message, count)) in states.iter_mut().zip(messages) {
            let rest = message.wrapping_add(BLOCK * common);
            hash.compress(core::array::from_mut(state), [rest], count - common);
        }
    }
}

#[inline]
pub(super) fn load(half: &u128) -> __m128i {
    // SAFETY: 16 aligned bytes, of which any are valid.
    unsafe { _mm_load_si128((&raw const *half).cast()) }
}

#[inline]
pub(super) fn store(half: __m128i) -> u128 {
    // SAFETY: the same size, and every bit pattern is valid.
    unsafe { core::mem::transmute(half) }
}
