//! AES-CBC, AES-CTR or NULL with an HMAC (RFC 3602, RFC 3686, RFC 2410; RFC 2404, RFC 4868) for
//! batches of ESP packets, with VAES, AVX-512 and the hash instructions.
//!
//! Packets of all keys go through each step together, ordered by length so that those that
//! advance side by side end together: AES-CBC encryption takes sixteen packets, HMAC two.

mod aes;
mod hmac;
mod sha1;
mod sha256;

use std::sync::OnceLock;

use arrayvec::ArrayVec;
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use super::known_answers;
use crate::aead::Job;
use crate::suite::{Encryption, Integrity, Suite};
use aes::{AesKey, BLOCK, CbcText};
use hmac::{Hash, HmacKey, Message};

/// Packets that are worked on together, at most.
const BATCH: usize = 64;
/// SPI and sequence number.
const HEADER_LEN: usize = 8;

/// Proof that the CPU has what these kernels need.
#[derive(Clone, Copy)]
pub(crate) struct Vaes(());

impl Vaes {
    /// `None` if the CPU lacks something or gives wrong answers.
    pub(crate) fn available() -> Option<Self> {
        static AVAILABLE: OnceLock<Option<Vaes>> = OnceLock::new();
        *AVAILABLE.get_or_init(|| Self::detect().filter(|token| known_answers::composed(*token)))
    }

    pub(super) fn detect() -> Option<Self> {
        let has = std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("vaes")
            && std::arch::is_x86_feature_detected!("aes")
            && std::arch::is_x86_feature_detected!("sha")
            && std::arch::is_x86_feature_detected!("sse4.1")
            && std::arch::is_x86_feature_detected!("ssse3");
        has.then_some(Self(()))
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
    token: Vaes,
}

enum Mode {
    Null,
    Cbc(AesKey),
    Ctr(AesKey),
}

impl ComposedKey {
    /// Whether there is a kernel for the suite.
    pub(crate) fn supports(suite: &Suite) -> bool {
        matches!(
            suite.encryption,
            Encryption::Null | Encryption::AesCbc | Encryption::AesCtr
        ) && suite
            .integrity
            .is_some_and(|integrity| hash(integrity).is_some())
    }

    /// `None` if there is no kernel for the suite or a key has not the length that it says.
    pub(crate) fn new(
        token: Vaes,
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
            mac: HmacKey::new(token, hash(suite.integrity?)?, auth_key)?,
            token,
        })
    }

    /// Whether a packet of this many bytes has room for header, IV and ICV.
    fn fits(&self, len: usize) -> bool {
        len >= HEADER_LEN + self.iv_len + self.icv_len
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

fn hash(integrity: Integrity) -> Option<Hash> {
    match integrity {
        Integrity::HmacSha1_96 => Some(Hash::Sha1),
        Integrity::HmacSha256_128 => Some(Hash::Sha256),
        Integrity::HmacSha384_192 | Integrity::HmacSha512_256 => None,
    }
}

/// A job, cut where RFC 4303 section 2 says.
struct Packet<'a> {
    key: &'a ComposedKey,
    /// Header, IV and text.
    covered: &'a mut [u8],
    icv: &'a mut [u8],
    high: Option<[u8; 4]>,
    authentic: &'a mut bool,
}

impl<'a> Packet<'a> {
    /// `None` if the packet is shorter than its ICV.
    fn new(key: &'a ComposedKey, job: &'a mut Job<'_>) -> Option<Self> {
        let covered = job.esp.len().checked_sub(key.icv_len)?;
        let (covered, icv) = job.esp.split_at_mut(covered);
        Some(Self {
            key,
            covered,
            icv,
            high: job.esn.then(|| ((job.sequence >> 32) as u32).to_be_bytes()),
            authentic: &mut job.authentic,
        })
    }

    fn text(&mut self) -> &mut [u8] {
        let start = HEADER_LEN + self.key.iv_len;
        self.covered.get_mut(start..).unwrap_or_default()
    }

    /// IV and text in blocks, for AES-CBC.
    fn blocks(&mut self) -> &mut [[u8; BLOCK]] {
        let iv_and_text = self.covered.get_mut(HEADER_LEN..).unwrap_or_default();
        iv_and_text.as_chunks_mut().0
    }

    fn message(&self) -> Message<'_> {
        Message {
            key: &self.key.mac,
            covered: self.covered,
            high: self.high,
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
        for (place, byte) in counter[4..12].iter_mut().zip(&self.covered[iv]) {
            *place = *byte;
        }
        aes::ctr(self.key.token, key, counter, self.text());
    }
}

/// Seals the packets of all jobs that have such a key; returns how many have.
///
/// A packet that cannot be sealed is overwritten with zeroes.
pub(crate) fn seal(jobs: &mut [Job<'_>]) -> usize {
    let mut taken = 0;
    for jobs in jobs.chunks_mut(BATCH) {
        let Some((token, mut packets)) = packets::<true>(jobs, &mut taken) else {
            continue;
        };
        let mut texts: ArrayVec<CbcText<'_>, BATCH> = ArrayVec::new();
        for packet in &mut packets {
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
        let digests = digests(token, &packets);
        for (packet, digest) in packets.iter_mut().zip(&digests) {
            let len = packet.icv.len();
            packet.icv.copy_from_slice(&digest[..len]);
        }
    }
    taken
}

/// Opens the packets of all jobs that have such a key and sets [`Job::authentic`]; returns how
/// many have.
///
/// RFC 4303 section 3.4.4.1: the ICV first; what is not authentic is never decrypted. Its text
/// is overwritten with zeroes.
pub(crate) fn open(jobs: &mut [Job<'_>]) -> usize {
    let mut taken = 0;
    for jobs in jobs.chunks_mut(BATCH) {
        let Some((token, mut packets)) = packets::<false>(jobs, &mut taken) else {
            continue;
        };
        let digests = digests(token, &packets);
        for (packet, digest) in packets.iter_mut().zip(&digests) {
            let right: bool = packet.icv.ct_eq(&digest[..packet.icv.len()]).into();
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
    }
    taken
}

type Packets<'a> = ArrayVec<Packet<'a>, BATCH>;

/// The packets of those jobs that have such a key, those with one hash and of similar length
/// together; `None` if there are none. Counts the jobs in `taken`.
fn packets<'a, const SEAL: bool>(
    jobs: &'a mut [Job<'_>],
    taken: &mut usize,
) -> Option<(Vaes, Packets<'a>)> {
    let mut packets = Packets::new();
    for job in jobs {
        let Some(key) = job.cipher.composed_key() else {
            continue;
        };
        *taken += 1;
        job.authentic = false;
        if !key.fits(job.esp.len()) {
            if SEAL {
                job.esp.fill(0);
            }
            continue;
        }
        if let Some(mut packet) = Packet::new(key, job) {
            if SEAL && !key.takes(packet.text().len()) {
                packet.covered.fill(0);
                packet.icv.fill(0);
                continue;
            }
            packets.push(packet);
        }
    }
    packets.sort_unstable_by_key(|packet| (packet.key.mac.hash, packet.covered.len()));
    let token = packets.first()?.key.token;
    Some((token, packets))
}

fn digests(token: Vaes, packets: &[Packet<'_>]) -> ArrayVec<[u8; 32], BATCH> {
    let messages: ArrayVec<Message<'_>, BATCH> = packets.iter().map(Packet::message).collect();
    let mut digests: ArrayVec<_, BATCH> = packets.iter().map(|_| [0; 32]).collect();
    hmac::digests(token, &messages, &mut digests);
    digests
}
