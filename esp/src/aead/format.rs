//! How each kind of suite lays its nonce, additional data, text and ICV into an ESP packet. Once
//! for all implementations.

use zeroize::Zeroize;

use super::CipherError;
use super::primitive::Primitive;
use super::transform::{Spec, Transform, Unsupported};
use crate::suite::{Encryption, Integrity, Suite};

/// SPI and sequence number.
const HEADER_LEN: usize = 8;
/// The longest nonce of any suite: 4 bytes of salt and 8 of IV.
const NONCE_LEN: usize = 12;
/// The ICV of AES-GMAC.
const GMAC_ICV_LEN: usize = 16;

/// The expanded keys of a suite, in one implementation.
pub(super) struct EspKey<K> {
    suite: &'static Suite,
    salt: [u8; 4],
    keys: Keys<K>,
}

enum Keys<K> {
    /// An AEAD over the whole packet (RFC 4106, RFC 4309, RFC 7634, RFC 8750).
    Aead(K),
    /// A MAC over the whole packet, with a nonce (RFC 4543).
    Gmac(K),
    /// A cipher, unless the text is not encrypted, and then an HMAC (RFC 4303).
    Composed { cipher: Option<Box<K>>, mac: Box<K> },
}

impl<K: Transform> EspKey<K> {
    pub(super) fn supports(suite: &Suite) -> bool {
        let encryption = encryption_spec(suite);
        let integrity = suite.integrity.map(integrity_spec);
        encryption.is_none_or(|spec| K::supports(spec, suite.key_len).is_ok())
            && integrity.is_none_or(|spec| K::supports(spec, suite.auth_key_len).is_ok())
    }

    /// The lengths of both keys must be those of the suite.
    pub(super) fn new(
        suite: &'static Suite,
        key: &[u8],
        auth_key: &[u8],
    ) -> Result<Self, CipherError> {
        let unsupported = |_: Unsupported| CipherError::Unsupported;
        let (key, given_salt) = key
            .split_at_checked(suite.key_len)
            .ok_or(CipherError::Unsupported)?;
        let encryption = match encryption_spec(suite) {
            Some(spec) => Some(K::new(spec, key).map_err(unsupported)?),
            None => None,
        };
        let integrity = match suite.integrity {
            Some(integrity) => {
                Some(K::new(integrity_spec(integrity), auth_key).map_err(unsupported)?)
            }
            None => None,
        };
        let keys = match (encryption, integrity) {
            (Some(mac), None) if suite.encryption == Encryption::AesGmac => Keys::Gmac(mac),
            (Some(aead), None) => Keys::Aead(aead),
            (cipher, Some(mac)) => Keys::Composed {
                cipher: cipher.map(Box::new),
                mac: Box::new(mac),
            },
            (None, None) => return Err(CipherError::Unsupported),
        };
        let mut salt = [0; 4];
        salt[..given_salt.len()].copy_from_slice(given_salt);
        Ok(Self { suite, salt, keys })
    }

    /// Encrypts the text and writes the ICV. A packet that has no room for them or is no
    /// multiple of the cipher's block is overwritten with zeroes, so that it cannot leave in
    /// clear.
    pub(super) fn seal(&self, sequence: u64, esn: bool, esp: &mut [u8]) {
        if !self.try_seal(sequence, esn, esp) {
            esp.fill(0);
        }
    }

    /// Checks the ICV and decrypts the text, or answers `false` and overwrites it with zeroes.
    pub(super) fn open(&self, sequence: u64, esn: bool, esp: &mut [u8]) -> bool {
        let authentic = self.try_open(sequence, esn, esp);
        if !authentic && let Some(parts) = self.cut(esp) {
            parts.text.fill(0);
        }
        authentic
    }

    fn try_seal(&self, sequence: u64, esn: bool, esp: &mut [u8]) -> bool {
        match &self.keys {
            Keys::Aead(key) => self.cut(esp).is_some_and(|parts| {
                let nonce = self.nonce(sequence, esn, parts.head);
                let (aad, aad_len) = header_aad(sequence, esn, parts.head);
                key.seal(
                    &nonce[..self.nonce_len()],
                    [&aad[..aad_len], &[]],
                    parts.text,
                    parts.icv,
                )
            }),
            Keys::Gmac(key) => {
                let Some(Parts { head, .. }) = self.cut(esp) else {
                    return false;
                };
                let nonce = self.nonce(sequence, esn, head);
                let mut icv = [0; GMAC_ICV_LEN];
                let sealed = with_gmac_message::<K>(sequence, esn, esp, |message| {
                    key.seal(&nonce, message, &mut [], &mut icv)
                });
                if let Some(place) = esp.last_chunk_mut() {
                    *place = icv;
                }
                sealed
            }
            Keys::Composed { cipher, mac } => {
                if let Some(cipher) = cipher {
                    let encrypted = self.cut(esp).is_some_and(|parts| {
                        let iv = self.cipher_iv(parts.head);
                        cipher.seal(&iv, [&[], &[]], parts.text, &mut [])
                    });
                    if !encrypted {
                        return false;
                    }
                }
                self.split_icv(esp).is_some_and(|(covered, icv)| {
                    let high = high_half(sequence);
                    mac.seal(&[], [covered, if esn { &high } else { &[] }], &mut [], icv)
                })
            }
        }
    }

    fn try_open(&self, sequence: u64, esn: bool, esp: &mut [u8]) -> bool {
        match &self.keys {
            Keys::Aead(key) => self.cut(esp).is_some_and(|parts| {
                let nonce = self.nonce(sequence, esn, parts.head);
                let (aad, aad_len) = header_aad(sequence, esn, parts.head);
                key.open(
                    &nonce[..self.nonce_len()],
                    [&aad[..aad_len], &[]],
                    parts.text,
                    parts.icv,
                )
            }),
            Keys::Gmac(key) => {
                let Some(Parts { head, icv, .. }) = self.cut(esp) else {
                    return false;
                };
                let nonce = self.nonce(sequence, esn, head);
                let mut given = [0; GMAC_ICV_LEN];
                given.copy_from_slice(icv);
                with_gmac_message::<K>(sequence, esn, esp, |message| {
                    key.open(&nonce, message, &mut [], &given)
                })
            }
            Keys::Composed { cipher, mac } => {
                // RFC 4303 section 3.4.4.1: the ICV first; what is not authentic is never
                // decrypted.
                let authentic = self.split_icv(esp).is_some_and(|(covered, icv)| {
                    let high = high_half(sequence);
                    mac.open(&[], [covered, if esn { &high } else { &[] }], &mut [], icv)
                });
                match cipher {
                    Some(cipher) if authentic => self.cut(esp).is_some_and(|parts| {
                        let iv = self.cipher_iv(parts.head);
                        cipher.open(&iv, [&[], &[]], parts.text, &[])
                    }),
                    _ => authentic,
                }
            }
        }
    }
}

impl<K> EspKey<K> {
    /// `None` if the packet is too short for header, IV and ICV.
    fn cut<'a>(&self, esp: &'a mut [u8]) -> Option<Parts<'a>> {
        let (covered, icv) = self.split_icv(esp)?;
        let (head, text) = covered.split_at_mut_checked(HEADER_LEN + self.suite.iv_len)?;
        Some(Parts { head, text, icv })
    }

    /// What the ICV covers, and the ICV; `None` if the packet is too short for header, IV and
    /// ICV.
    fn split_icv<'a>(&self, esp: &'a mut [u8]) -> Option<(&'a mut [u8], &'a mut [u8])> {
        let covered = esp.len().checked_sub(self.suite.icv_len)?;
        if covered < HEADER_LEN + self.suite.iv_len {
            return None;
        }
        Some(esp.split_at_mut(covered))
    }

    fn nonce_len(&self) -> usize {
        self.suite.salt_len + 8
    }

    /// The nonce of an AEAD: the salt, then the IV (RFC 4106 section 4, RFC 4309 section 4,
    /// RFC 7634 section 2) or, where the IV is implicit, the sequence number (RFC 8750 section
    /// 4), which without ESN is the 32 bits on the wire behind 32 zero bits.
    fn nonce(&self, sequence: u64, esn: bool, head: &[u8]) -> [u8; NONCE_LEN] {
        let salt = self.suite.salt_len;
        let mut nonce = [0; NONCE_LEN];
        nonce[..salt].copy_from_slice(&self.salt[..salt]);
        let iv = &mut nonce[salt..salt + 8];
        if self.suite.iv_len == 8 {
            iv.copy_from_slice(&head[HEADER_LEN..]);
        } else {
            if esn {
                iv[..4].copy_from_slice(&high_half(sequence));
            }
            iv[4..].copy_from_slice(&head[4..8]);
        }
        nonce
    }

    /// What starts a separate cipher: the IV of AES-CBC, or for AES-CTR the first counter block.
    fn cipher_iv(&self, head: &[u8]) -> [u8; 16] {
        let mut block = [0; 16];
        let iv = &head[HEADER_LEN..];
        if iv.len() == block.len() {
            block.copy_from_slice(iv);
        } else {
            // RFC 3686 section 4: nonce, IV, and a counter that begins with one.
            block[..4].copy_from_slice(&self.salt);
            block[4..12].copy_from_slice(iv);
            block[15] = 1;
        }
        block
    }
}

impl<K> Drop for EspKey<K> {
    fn drop(&mut self) {
        self.salt.zeroize();
    }
}

/// An ESP packet, cut where its suite says.
struct Parts<'a> {
    /// SPI, sequence number and explicit IV.
    head: &'a mut [u8],
    text: &'a mut [u8],
    icv: &'a mut [u8],
}

/// The additional data of an AEAD and how many bytes of it count: the SPI and the sequence
/// number, of 64 bits with ESN and else of 32 (RFC 4106 section 5).
fn header_aad(sequence: u64, esn: bool, head: &[u8]) -> ([u8; 12], usize) {
    let mut aad = [0; 12];
    if esn {
        aad[..4].copy_from_slice(&head[..4]);
        aad[4..8].copy_from_slice(&high_half(sequence));
        aad[8..].copy_from_slice(&head[4..8]);
        (aad, 12)
    } else {
        aad[..8].copy_from_slice(&head[..8]);
        (aad, 8)
    }
}

/// Calls `f` with the message of AES-GMAC: everything before the ICV, with the high half of the
/// sequence number after the SPI if there is ESN (RFC 4543 section 3.3). `esp` has room for
/// header, IV and ICV. The ICV is left undefined.
///
/// The high half is not in the packet. Implementations that take the message in two pieces get a
/// first block put together beside it; for the others everything after the SPI moves four bytes
/// into the room of the ICV for the time of the call.
fn with_gmac_message<K: Transform>(
    sequence: u64,
    esn: bool,
    esp: &mut [u8],
    f: impl FnOnce([&[u8]; 2]) -> bool,
) -> bool {
    let end = esp.len() - GMAC_ICV_LEN;
    if !esn {
        return f([&esp[..end], &[]]);
    }
    let high = high_half(sequence);
    if K::SPLIT_AAD {
        let mut first = [0; 16];
        first[..4].copy_from_slice(&esp[..4]);
        first[4..8].copy_from_slice(&high);
        first[8..].copy_from_slice(&esp[4..12]);
        f([&first, &esp[12..end]])
    } else {
        esp.copy_within(4..end, 8);
        esp[4..8].copy_from_slice(&high);
        let answer = f([&esp[..end + 4], &[]]);
        esp.copy_within(8..end + 4, 4);
        answer
    }
}

/// The half of the sequence number that is not on the wire. A separate MAC takes it after the
/// next header (RFC 4303 section 2.2.1).
fn high_half(sequence: u64) -> [u8; 4] {
    ((sequence >> 32) as u32).to_be_bytes()
}

fn encryption_spec(suite: &Suite) -> Option<Spec> {
    let primitive = match suite.encryption {
        Encryption::Null => return None,
        Encryption::AesCbc => Primitive::AesCbc,
        Encryption::AesCtr => Primitive::AesCtr,
        Encryption::AesCcm | Encryption::AesCcmImplicitIv => Primitive::AesCcm,
        Encryption::AesGcm | Encryption::AesGcmImplicitIv => Primitive::AesGcm,
        Encryption::AesGmac => Primitive::AesGmac,
        Encryption::ChaCha20Poly1305 | Encryption::ChaCha20Poly1305ImplicitIv => {
            Primitive::ChaCha20Poly1305
        }
    };
    let (nonce_len, tag_len) = match suite.integrity {
        None => (suite.salt_len + 8, suite.icv_len),
        Some(_) => (16, 0),
    };
    Some(Spec {
        primitive,
        nonce_len,
        tag_len,
    })
}

fn integrity_spec(integrity: Integrity) -> Spec {
    Spec {
        primitive: match integrity {
            Integrity::HmacSha1_96 => Primitive::HmacSha1,
            Integrity::HmacSha256_128 => Primitive::HmacSha256,
            Integrity::HmacSha384_192 => Primitive::HmacSha384,
            Integrity::HmacSha512_256 => Primitive::HmacSha512,
        },
        nonce_len: 0,
        tag_len: integrity.icv_len(),
    }
}
