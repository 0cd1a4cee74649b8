//! AES-CBC, AES-CTR or NULL with an HMAC (RFC 3602, RFC 3686, RFC 2410; RFC 2404, RFC 4868) for
//! batches of ESP packets.
//!
//! Packets of all keys go through each step together, ordered by length so that those that
//! advance side by side end together. AES-CBC encryption takes sixteen packets at once with VAES
//! and AVX-512, eight with AES-NI. HMAC takes as many as a vector has words, or two where the CPU
//! has instructions for the hash.

mod aes;
mod hasher;
mod hmac;
mod lanes;
mod sha1;
mod sha2;
mod sha256;

use std::sync::OnceLock;

use arrayvec::ArrayVec;
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use super::known_answers;
use super::wipe::wipe;
use crate::aead::{Implementation, Job};
use crate::suite::{Encryption, Integrity, Suite};
use aes::{AesKey, BLOCK, CbcText};
use hmac::{Hash, HmacKey, Message};

/// Packets that are worked on together, at most.
const BATCH: usize = 64;
/// SPI and sequence number.
const HEADER_LEN: usize = 8;
/// Longest ICV.
const ICV_LEN: usize = 32;

/// Proof that the CPU has AES-NI, SSSE3 and SSE4.1, and what is said here besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    /// AVX-512 and VAES.
    avx512: bool,
    avx2: bool,
    /// The instructions for SHA-1 and SHA-256.
    sha: bool,
}

impl Token {
    /// For one of the kernels; `None` if the CPU lacks something or gives wrong answers.
    pub(crate) fn available(implementation: Implementation) -> Option<Self> {
        static AVAILABLE: [OnceLock<Option<Token>>; 3] = [const { OnceLock::new() }; 3];
        let detect =
            || Self::detect(implementation).filter(|token| known_answers::composed(*token));
        let [vaes512, vaes256, aesni] = &AVAILABLE;
        match implementation {
            Implementation::Vaes512 => *vaes512.get_or_init(detect),
            Implementation::Vaes256 => *vaes256.get_or_init(detect),
            Implementation::AesNi => *aesni.get_or_init(detect),
            Implementation::Ring | Implementation::RustCrypto => None,
        }
    }

    pub(super) fn detect(implementation: Implementation) -> Option<Self> {
        use std::arch::is_x86_feature_detected as has;
        let avx2 = has!("avx2");
        let token = match implementation {
            Implementation::Vaes512 => Self {
                avx512: has!("avx512f") && has!("avx512bw") && has!("vaes"),
                avx2,
                sha: has!("sha"),
            },
            Implementation::Vaes256 | Implementation::AesNi => Self {
                avx512: false,
                avx2,
                sha: has!("sha"),
            },
            Implementation::Ring | Implementation::RustCrypto => return None,
        };
        let wide = match implementation {
            Implementation::Vaes512 => token.avx512,
            Implementation::Vaes256 => avx2,
            _ => true,
        };
        (wide && has!("aes") && has!("sse4.1") && has!("ssse3")).then_some(token)
    }
}

/// The keys of a suite whose integrity is an HMAC of its own.
pub(crate) struct ComposedKey {
    encryption: Mode,
    /// The nonce of AES-CTR.
    salt: [u8; 4],
    iv_len: usize,
    icv_len: usize,
    mac: HmacKey,
    token: Token,
}

enum Mode {
    Null,
    Cbc(AesKey),
    Ctr(AesKey),
}

impl ComposedKey {
    /// Whether there is a kernel for the suite.
    pub(crate) fn supports(token: Token, suite: &Suite) -> bool {
        matches!(
            suite.encryption,
            Encryption::Null | Encryption::AesCbc | Encryption::AesCtr
        ) && suite
            .integrity
            .is_some_and(|integrity| hmac::supports(token, hash(integrity)))
    }

    /// `None` if there is no kernel for the suite or a key has not the length that it says.
    pub(crate) fn new(
        token: Token,
        suite: &Suite,
        key_and_salt: &[u8],
        auth_key: &[u8],
    ) -> Option<Self> {
        let (key, given_salt) = key_and_salt.split_at_checked(suite.key_len)?;
        let encryption = match suite.encryption {
            Encryption::Null => Mode::Null,
            Encryption::AesCbc => Mode::Cbc(AesKey::new(token, key)?),
            Encryption::AesCtr => Mode::Ctr(AesKey::new(token, key)?),
            _ => return None,
        };
        let mut salt = [0; 4];
        salt.get_mut(..given_salt.len())?
            .copy_from_slice(given_salt);
        Some(Self {
            encryption,
            salt,
            iv_len: suite.iv_len,
            icv_len: suite.icv_len,
            mac: HmacKey::new(token, hash(suite.integrity?), auth_key)?,
            token,
        })
    }

    /// Bytes of header, IV and ICV.
    fn overhead(&self) -> usize {
        HEADER_LEN + self.iv_len + self.icv_len
    }

    /// Whether a text of this many bytes can be encrypted.
    fn takes(&self, text_len: usize) -> bool {
        !matches!(self.encryption, Mode::Cbc(_)) || text_len.is_multiple_of(BLOCK)
    }
}

impl Drop for ComposedKey {
    fn drop(&mut self) {
        self.salt.zeroize();
    }
}

const fn hash(integrity: Integrity) -> Hash {
    match integrity {
        Integrity::HmacSha1_96 => Hash::Sha1,
        Integrity::HmacSha256_128 => Hash::Sha256,
        Integrity::HmacSha384_192 => Hash::Sha384,
        Integrity::HmacSha512_256 => Hash::Sha512,
    }
}

/// A job, cut where RFC 4303 section 2 says.
struct Packet<'a> {
    key: &'a ComposedKey,
    esp: &'a mut [u8],
    /// Bytes before the ICV: header, IV and text.
    covered: usize,
    /// Where the high half of the sequence number is authenticated, the bytes of the ICV in
    /// whose place it stands for now.
    displaced: Option<[u8; 4]>,
    authentic: &'a mut bool,
}

impl<'a> Packet<'a> {
    /// `None` if the packet is too short for header, IV and ICV.
    #[inline]
    fn new(key: &'a ComposedKey, job: &'a mut Job<'_>) -> Option<Self> {
        let covered = job.esp.len().checked_sub(key.icv_len)?;
        if covered < HEADER_LEN + key.iv_len {
            return None;
        }
        //= https://www.rfc-editor.org/rfc/rfc4303#section-2.2.1
        // The high half of an extended number is authenticated behind everything else. The ICV
        // gives way to it until the digest is there, so that the message lies in one piece.
        let mut displaced = None;
        if job.esn {
            let high = ((job.sequence >> 32) as u32).to_be_bytes();
            let place = job.esp[covered..].first_chunk_mut()?;
            displaced = Some(core::mem::replace(place, high));
        }
        Some(Self {
            key,
            esp: &mut *job.esp,
            covered,
            displaced,
            authentic: &mut job.authentic,
        })
    }

    #[inline]
    fn text(&mut self) -> &mut [u8] {
        &mut self.esp[HEADER_LEN + self.key.iv_len..self.covered]
    }

    /// IV and text in blocks, for AES-CBC.
    #[inline]
    fn blocks(&mut self) -> &mut [[u8; BLOCK]] {
        self.esp[HEADER_LEN..self.covered].as_chunks_mut().0
    }

    #[inline]
    fn message(&self) -> Message<'_> {
        Message {
            key: &self.key.mac,
            text: &self.esp[..self.covered + self.displaced.map_or(0, |bytes| bytes.len())],
        }
    }

    /// AES-CTR in both directions.
    fn ctr(&mut self, key: &AesKey) {
        //= https://www.rfc-editor.org/rfc/rfc3686#section-4
        // The counter block: nonce, IV, and a counter that begins with one.
        let mut counter = [0; BLOCK];
        counter[..4].copy_from_slice(&self.key.salt);
        counter[15] = 1;
        let iv = HEADER_LEN..HEADER_LEN + self.key.iv_len;
        for (place, byte) in counter[4..12].iter_mut().zip(&self.esp[iv]) {
            *place = *byte;
        }
        aes::ctr(self.key.token, key, counter, self.text());
    }

    /// Writes the ICV.
    #[inline]
    fn seal(&mut self, digest: &[u8; ICV_LEN]) {
        let icv = &mut self.esp[self.covered..];
        // The lengths that there are, each copied at once.
        match icv.len() {
            12 => icv.copy_from_slice(&digest[..12]),
            16 => icv.copy_from_slice(&digest[..16]),
            24 => icv.copy_from_slice(&digest[..24]),
            len => icv.copy_from_slice(&digest[..len]),
        }
    }

    /// Puts the ICV back and says whether it is that of the digest.
    #[inline]
    fn check(&mut self, digest: &[u8; ICV_LEN]) -> bool {
        let icv = &mut self.esp[self.covered..];
        if let (Some(bytes), Some(place)) = (self.displaced, icv.first_chunk_mut()) {
            *place = bytes;
        }
        match icv.len() {
            12 => same::<12>(icv, digest),
            16 => same::<16>(icv, digest),
            24 => same::<24>(icv, digest),
            _ => same::<32>(icv, digest),
        }
    }
}

/// Whether the first bytes are the same, found out without a branch that depends on them.
#[inline]
fn same<const LEN: usize>(icv: &[u8], digest: &[u8]) -> bool {
    let (Some(icv), Some(digest)) = (icv.first_chunk::<LEN>(), digest.first_chunk::<LEN>()) else {
        return false;
    };
    let pairs = icv.iter().zip(digest);
    let different = pairs.fold(0, |sum, (given, right)| sum | (given ^ right));
    different.ct_eq(&0).into()
}

/// Seals the packets of all jobs that have such a key; returns how many have.
///
/// A packet that cannot be sealed is overwritten with zeroes.
pub(crate) fn seal(jobs: &mut [Job<'_>]) -> usize {
    let mut taken = 0;
    each_kernel::<true>(jobs, &mut taken, |token, packets| {
        let mut texts: ArrayVec<CbcText<'_>, BATCH> = ArrayVec::new();
        for packet in packets.iter_mut() {
            let key = packet.key;
            match &key.encryption {
                Mode::Null => {}
                Mode::Ctr(key) => packet.ctr(key),
                Mode::Cbc(key) => texts.push(CbcText {
                    key,
                    blocks: packet.blocks(),
                }),
            }
        }
        texts.sort_unstable_by_key(|text| (text.key.rounds, usize::MAX - text.blocks.len()));
        aes::cbc_encrypt(token, &mut texts);
        drop(texts);
        let digests = digests(token, packets);
        for (packet, digest) in packets.iter_mut().zip(&digests) {
            packet.seal(digest);
        }
    });
    taken
}

/// Opens the packets of all jobs that have such a key and sets [`Job::authentic`]; returns how
/// many have.
///
/// RFC 4303 section 3.4.4.1: the ICV first; what is not authentic is never decrypted. Its text
/// is overwritten with zeroes.
pub(crate) fn open(jobs: &mut [Job<'_>]) -> usize {
    let mut taken = 0;
    each_kernel::<false>(jobs, &mut taken, |token, packets| {
        let mut digests = digests(token, packets);
        for (packet, digest) in packets.iter_mut().zip(&mut digests) {
            let right = packet.check(digest);
            // The right ICV of a forged packet is nobody's business.
            wipe(digest);
            let key = packet.key;
            *packet.authentic = right && key.takes(packet.text().len());
            if !*packet.authentic {
                packet.text().fill(0);
                continue;
            }
            match &key.encryption {
                Mode::Null => {}
                Mode::Ctr(key) => packet.ctr(key),
                Mode::Cbc(key) => aes::cbc_decrypt(token, key, packet.blocks()),
            }
        }
    });
    taken
}

type Packets<'a> = ArrayVec<Packet<'a>, BATCH>;

/// Does the work on the packets of those jobs that have such a key, for each kernel in turn.
/// Counts the jobs in `taken`.
fn each_kernel<const SEAL: bool>(
    jobs: &mut [Job<'_>],
    taken: &mut usize,
    work: impl Fn(Token, &mut Packets<'_>),
) {
    for jobs in jobs.chunks_mut(BATCH) {
        // Once, unless keys of several kernels meet in one batch.
        let mut done: ArrayVec<Token, BATCH> = ArrayVec::new();
        loop {
            let tokens = jobs.iter().filter_map(|job| job.cipher.composed_key());
            let mut tokens = tokens.map(|key| key.token);
            let Some(token) = tokens.find(|token| !done.contains(token)) else {
                break;
            };
            done.push(token);
            let mut others = false;
            work(token, &mut packets::<SEAL>(jobs, token, taken, &mut others));
            if !others {
                break;
            }
        }
    }
}

/// The packets of those jobs whose keys have the token, those with one hash and of similar length
/// together. `others` says whether there are such keys with other tokens.
fn packets<'a, const SEAL: bool>(
    jobs: &'a mut [Job<'_>],
    token: Token,
    taken: &mut usize,
    others: &mut bool,
) -> Packets<'a> {
    let mut packets = Packets::new();
    for job in jobs {
        let Some(key) = job.cipher.composed_key() else {
            continue;
        };
        if key.token != token {
            *others = true;
            continue;
        }
        *taken += 1;
        job.authentic = false;
        let text = job.esp.len().checked_sub(key.overhead());
        if SEAL && !text.is_some_and(|len| key.takes(len)) {
            // It must not leave in clear.
            job.esp.fill(0);
        } else if let Some(packet) = Packet::new(key, job) {
            packets.push(packet);
        }
    }
    packets.sort_unstable_by_key(|packet| (packet.key.mac.hash, packet.covered));
    packets
}

fn digests(token: Token, packets: &[Packet<'_>]) -> ArrayVec<[u8; ICV_LEN], BATCH> {
    let messages: ArrayVec<Message<'_>, BATCH> = packets.iter().map(Packet::message).collect();
    let mut digests: ArrayVec<_, BATCH> = packets.iter().map(|_| [0; ICV_LEN]).collect();
    hmac::digests(token, &messages, &mut digests);
    digests
}
