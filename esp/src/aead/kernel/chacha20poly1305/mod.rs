//! ChaCha20-Poly1305 (RFC 7634, and RFC 8750 where the IV is implicit) for batches of ESP
//! packets, with AVX-512 and its 52-bit multiply-add, or with AVX2.
//!
//! The blocks of all packets go through ChaCha20 in one stream, sixteen or eight at a time, and
//! Poly1305 takes as many packets at once: small packets fill the lanes as well as large ones.
//! Where there is AVX2 only, long texts are left to `ring`, which is faster there.

mod chacha20;
mod poly1305;

use std::sync::OnceLock;

use arrayvec::ArrayVec;
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use super::known_answers;
use crate::aead::format::EspKey;
use crate::aead::{Cipher, Implementation, Job, ring};
use crate::suite::{Encryption, Suite};
use chacha20::{BLOCK, Lanes};
use poly1305::Message;

/// Packets that are worked on together, at most: several times as many as Poly1305 has lanes. (Fewer of
/// the longer packets would stay in the first cache in between; it costs more where they are no
/// multiple of the lanes.)
const BATCH: usize = 64;
/// Bytes of text from which on `ring` is faster than AVX2 across packets: it does Poly1305 with
/// scalar multiplications beside ChaCha20, which takes a long text of its own.
const RING_FROM: usize = 1088;
/// SPI and sequence number.
const HEADER_LEN: usize = 8;
const TAG_LEN: usize = 16;

/// Proof that the CPU has AVX2, and what is said here besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    /// AVX-512 with its 52-bit multiply-add.
    avx512: bool,
}

impl Token {
    /// For one of the kernels; `None` if the CPU lacks something or gives wrong answers.
    pub(crate) fn available(implementation: Implementation) -> Option<Self> {
        static AVAILABLE: [OnceLock<Option<Token>>; 2] = [const { OnceLock::new() }; 2];
        let detect = || Self::detect(implementation).filter(|token| known_answers::chacha(*token));
        let [avx512, avx2] = &AVAILABLE;
        match implementation {
            Implementation::Vaes512 => *avx512.get_or_init(detect),
            Implementation::Vaes256 | Implementation::AesNi => *avx2.get_or_init(detect),
            Implementation::Ring | Implementation::RustCrypto => None,
        }
    }

    pub(super) fn detect(implementation: Implementation) -> Option<Self> {
        use std::arch::is_x86_feature_detected as has;
        let avx512 = match implementation {
            Implementation::Vaes512 => true,
            Implementation::Vaes256 | Implementation::AesNi => false,
            Implementation::Ring | Implementation::RustCrypto => return None,
        };
        let wide = has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512ifma");
        (has!("avx2") && (wide || !avx512)).then_some(Self { avx512 })
    }
}

/// The key and salt of ChaCha20-Poly1305 in ESP packets.
pub(crate) struct ChaChaKey {
    key: chacha20::Key,
    salt: u32,
    /// 8, or 0 where the sequence number is the IV.
    iv_len: usize,
    token: Token,
    /// The same key for texts of [`RING_FROM`] bytes and more, without AVX-512.
    long: Option<Box<EspKey<ring::Key>>>,
}

impl ChaChaKey {
    /// Whether the suite is ChaCha20-Poly1305.
    pub(crate) fn supports(suite: &Suite) -> bool {
        matches!(
            suite.encryption,
            Encryption::ChaCha20Poly1305 | Encryption::ChaCha20Poly1305ImplicitIv
        )
    }

    /// 32 bytes of key and 4 of salt; packets with `iv_len` bytes of IV, 8 or 0. `None` for
    /// other lengths.
    pub(crate) fn new(token: Token, key_and_salt: &[u8], iv_len: usize) -> Option<Self> {
        let (words, rest) = key_and_salt.as_chunks();
        let [key @ .., salt] = <&[[u8; 4]; 9]>::try_from(words).ok()?;
        if !rest.is_empty() || !matches!(iv_len, 0 | 8) {
            return None;
        }
        let mut expanded = Self {
            key: chacha20::Key([0; 8]),
            salt: u32::from_le_bytes(*salt),
            iv_len,
            token,
            long: None,
        };
        for (word, bytes) in expanded.key.0.iter_mut().zip(key) {
            *word = u32::from_le_bytes(*bytes);
        }
        Some(expanded)
    }

    /// Leaves long texts to `ring`, if that is faster; `key_and_salt` is the same again.
    pub(crate) fn with_ring(mut self, suite: &'static Suite, key_and_salt: &[u8]) -> Self {
        if !self.token.avx512 {
            self.long = EspKey::new(suite, key_and_salt, &[]).ok().map(Box::new);
        }
        self
    }

    /// The key of `ring`, if a packet of this many bytes is for it.
    fn ring(&self, len: usize) -> Option<&EspKey<ring::Key>> {
        let long = len >= HEADER_LEN + self.iv_len + TAG_LEN + RING_FROM;
        self.long.as_deref().filter(|_| long)
    }

    /// Whether a packet of this many bytes has room for header, IV and ICV, and the counter of
    /// blocks for the text.
    fn fits(&self, len: usize) -> bool {
        len.checked_sub(HEADER_LEN + self.iv_len + TAG_LEN)
            .is_some_and(|text| text / BLOCK < u32::MAX as usize)
    }
}

impl Drop for ChaChaKey {
    fn drop(&mut self) {
        self.key.0.zeroize();
        self.salt.zeroize();
    }
}

/// A job, cut where RFC 7634 section 2 says.
struct Packet<'a> {
    key: &'a ChaChaKey,
    nonce: [u32; 3],
    aad: [u8; 16],
    aad_len: usize,
    text: &'a mut [u8],
    icv: &'a mut [u8; TAG_LEN],
    authentic: &'a mut bool,
}

impl<'a> Packet<'a> {
    /// `None` if the packet is too short for header, IV and ICV.
    fn new(key: &'a ChaChaKey, job: &'a mut Job<'_>) -> Option<Self> {
        let (covered, icv) = job.esp.split_last_chunk_mut()?;
        let (header, rest) = covered.split_first_chunk_mut::<HEADER_LEN>()?;
        let (iv, text) = rest.split_at_mut_checked(key.iv_len)?;
        let header = u64::from_be_bytes(*header);
        let (spi, low) = (header >> 32, header & 0xffff_ffff);
        let high = if job.esn { job.sequence >> 32 } else { 0 };
        // The salt, then the IV or the sequence number in its place (RFC 8750 section 4).
        let iv = match <[u8; 8]>::try_from(&*iv) {
            Ok(iv) => u64::from_le_bytes(iv),
            Err(_) => (high << 32 | low).swap_bytes(),
        };
        //= https://www.rfc-editor.org/rfc/rfc7634#section-2.1
        // The additional data are SPI and sequence number: 12 bytes with ESN, else 8.
        let (aad, aad_len) = if job.esn {
            let aad = u128::from(spi) << 96 | u128::from(high) << 64 | u128::from(low) << 32;
            (aad, 12)
        } else {
            (u128::from(header) << 64, 8)
        };
        Some(Self {
            key,
            nonce: [key.salt, iv as u32, (iv >> 32) as u32],
            aad: aad.to_be_bytes(),
            aad_len,
            text,
            icv,
            authentic: &mut job.authentic,
        })
    }

    fn message<'b>(&'b self, key: &'b [u128; 2]) -> Message<'b> {
        Message {
            key,
            aad: self.aad,
            aad_len: self.aad_len,
            text: self.text,
        }
    }

    /// The key of Poly1305 comes from block 0, the text takes the blocks from 1 on (RFC 8439
    /// section 2.8).
    fn encrypt<'b>(&'b mut self, lanes: &mut Lanes<'b>) {
        for (block, text) in self.text.chunks_mut(BLOCK).enumerate() {
            lanes.xor(&self.key.key, block as u32 + 1, self.nonce, text);
        }
    }
}

/// Keys of Poly1305 for a batch; wiped when they are dropped.
struct MacKeys(ArrayVec<[u128; 2], BATCH>);

impl MacKeys {
    fn for_packets(packets: &[Packet<'_>]) -> Self {
        Self(packets.iter().map(|_| [0; 2]).collect())
    }
}

impl Drop for MacKeys {
    fn drop(&mut self) {
        for key in &mut self.0 {
            key.zeroize();
        }
    }
}

/// Seals the packets of all jobs that have such a key; returns how many have.
///
/// A packet that cannot be sealed is overwritten with zeroes.
pub(crate) fn seal(jobs: &mut [Job<'_>]) -> usize {
    let mut taken = 0;
    let mut jobs = jobs;
    while let Some((token, mut packets)) = next_packets::<true>(&mut jobs, &mut taken) {
        let mut keys = MacKeys::for_packets(&packets);
        let mut lanes = Lanes::new(token);
        for (packet, key) in packets.iter_mut().zip(&mut keys.0) {
            lanes.xor(&packet.key.key, 0, packet.nonce, as_bytes(key));
            packet.encrypt(&mut lanes);
        }
        lanes.flush();
        drop(lanes);
        let tags = tags(token, &packets, &keys);
        for (packet, tag) in packets.iter_mut().zip(tags) {
            *packet.icv = tag;
        }
    }
    taken
}

/// Opens the packets of all jobs that have such a key and sets [`Job::authentic`]; returns how
/// many have.
///
/// What is not authentic is never decrypted; its text is overwritten with zeroes.
pub(crate) fn open(jobs: &mut [Job<'_>]) -> usize {
    let mut taken = 0;
    let mut jobs = jobs;
    while let Some((token, mut packets)) = next_packets::<false>(&mut jobs, &mut taken) {
        let mut keys = MacKeys::for_packets(&packets);
        let mut lanes = Lanes::new(token);
        for (packet, key) in packets.iter().zip(&mut keys.0) {
            lanes.xor(&packet.key.key, 0, packet.nonce, as_bytes(key));
        }
        lanes.flush();
        drop(lanes);
        let tags = tags(token, &packets, &keys);
        let mut lanes = Lanes::new(token);
        for (packet, tag) in packets.iter_mut().zip(&tags) {
            *packet.authentic = packet.icv.ct_eq(tag).into();
            if *packet.authentic {
                packet.encrypt(&mut lanes);
            } else {
                packet.text.fill(0);
            }
        }
        lanes.flush();
    }
    taken
}

type Packets<'a> = ArrayVec<Packet<'a>, BATCH>;

/// The next packets, of those jobs that have such a key, all of one kernel; `None` if there are no
/// more. Takes the jobs it has seen from `jobs` and counts those with such a key in `taken`. What is
/// left to `ring` is done at once.
fn next_packets<'a, 'k, const SEAL: bool>(
    jobs: &mut &'a mut [Job<'k>],
    taken: &mut usize,
) -> Option<(Token, Packets<'a>)> {
    let mut packets = Packets::new();
    let mut token = None;
    while let Some(next) = jobs.first() {
        let cipher: &'k Cipher = next.cipher;
        let key = cipher.chacha_key();
        if key.is_some_and(|key| token.is_some_and(|token| token != key.token)) {
            break;
        }
        let (job, behind) = core::mem::take(jobs).split_first_mut()?;
        *jobs = behind;
        let Some(key) = key else {
            continue;
        };
        token = Some(key.token);
        *taken += 1;
        job.authentic = false;
        if let Some(key) = key.ring(job.esp.len()) {
            if SEAL {
                key.seal(job.sequence, job.esn, job.esp);
            } else {
                job.authentic = key.open(job.sequence, job.esn, job.esp);
            }
        } else if key.fits(job.esp.len()) {
            packets.extend(Packet::new(key, job));
        } else if SEAL {
            job.esp.fill(0);
        }
        if packets.is_full() {
            break;
        }
    }
    Some((token?, packets))
}

fn tags(token: Token, packets: &[Packet<'_>], keys: &MacKeys) -> ArrayVec<[u8; TAG_LEN], BATCH> {
    let pairs = packets.iter().zip(&keys.0);
    let messages: ArrayVec<Message<'_>, BATCH> =
        pairs.map(|(packet, key)| packet.message(key)).collect();
    let mut tags: ArrayVec<_, BATCH> = packets.iter().map(|_| [0; TAG_LEN]).collect();
    poly1305::tags(token, &messages, &mut tags);
    tags
}

fn as_bytes(key: &mut [u128; 2]) -> &mut [u8] {
    // SAFETY: 32 bytes, of which any are valid, without padding and borrowed as before. The
    // order of the bytes is that of Poly1305, little-endian.
    unsafe { core::slice::from_raw_parts_mut(key.as_mut_ptr().cast(), 32) }
}
