//! The AEAD crates, one call per packet, as their documentation shows.

use std::sync::Arc;

use aes_gcm::aead::AeadInOut;
use aes_gcm::aead::array::typenum::{U12, U16};
use aes_gcm::{Aes128Gcm, Aes256Gcm, KeyInit};
use chacha20poly1305::ChaCha20Poly1305;
use ring::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use vesper_esp::{Encryption, Suite};

use super::{Backend, InProcess, Packet};
use crate::case::{Case, Direction};
use crate::contest::Contestant;
use crate::lanes::{Cores, Gate, Lap};
use crate::sys;

/// Bytes of SPI and sequence number: the additional data.
const AAD: usize = 8;
/// Bytes of additional data and IV, which stand before the text.
const HEADER: usize = 16;
/// Bytes of ICV.
const ICV: usize = 16;

/// The crates that this package depends on.
pub(crate) fn libraries(cores: &Arc<Cores>) -> Vec<Box<dyn Contestant>> {
    vec![
        Box::new(InProcess::new(Ring, cores)),
        Box::new(InProcess::new(AesGcm, cores)),
        Box::new(InProcess::new(ChaCha, cores)),
    ]
}

/// A key of one of the crates, and the salt.
struct Salted<K> {
    key: K,
    salt: [u8; 4],
}

/// What the crates have in common.
trait Detached: Send + Sync {
    fn seal(&self, nonce: [u8; 12], aad: &[u8], text_and_icv: &mut [u8]) -> bool;
    fn open(&self, nonce: [u8; 12], aad: &[u8], text_and_icv: &mut [u8]) -> bool;
}

impl<K: Detached> Salted<K> {
    fn new(key: Option<K>, salt: &[u8]) -> Option<Self> {
        Some(Self {
            key: key?,
            salt: salt.try_into().ok()?,
        })
    }

    fn nonce(&self, iv: &[u8]) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&self.salt);
        nonce[4..].copy_from_slice(iv);
        nonce
    }
}

fn process<K: Detached>(
    direction: Direction,
    packets: Vec<Packet<'_, Salted<K>>>,
    gate: &Gate,
) -> Option<Lap> {
    let mut good = true;
    gate.pass();
    let start = sys::ticks();
    for Packet { key, esp, .. } in packets {
        let (header, text_and_icv) = esp.split_at_mut(HEADER);
        let (aad, iv) = header.split_at(AAD);
        let nonce = key.nonce(iv);
        good &= match direction {
            Direction::Out => key.key.seal(nonce, aad, text_and_icv),
            Direction::In => key.key.open(nonce, aad, text_and_icv),
        };
    }
    let end = sys::ticks();
    good.then_some(Lap { start, end })
}

/// Whether a suite is one that the crates have as it is, and its key length in bits.
fn bits(suite: &Suite) -> Option<(Encryption, usize)> {
    (suite.icv_len == ICV && suite.iv_len == HEADER - AAD)
        .then_some((suite.encryption, suite.key_len * 8))
}

const LACKS: &str = "the crate does not have it";

struct Ring;

impl Backend for Ring {
    type Key = Salted<LessSafeKey>;

    fn name(&self) -> &str {
        "ring"
    }

    fn key(&self, case: &Case, key: &[u8], _: &[u8]) -> Result<Self::Key, String> {
        let algorithm: Option<&'static Algorithm> = match bits(case.suite) {
            Some((Encryption::AesGcm, 128)) => Some(&AES_128_GCM),
            Some((Encryption::AesGcm, 256)) => Some(&AES_256_GCM),
            Some((Encryption::ChaCha20Poly1305, _)) => Some(&CHACHA20_POLY1305),
            _ => None,
        };
        let (key, salt) = key.split_at(case.suite.key_len);
        let key = algorithm.and_then(|algorithm| UnboundKey::new(algorithm, key).ok());
        Salted::new(key.map(LessSafeKey::new), salt).ok_or_else(|| LACKS.into())
    }

    fn process(
        _: &Case,
        direction: Direction,
        packets: Vec<Packet<'_, Self::Key>>,
        gate: &Gate,
    ) -> Option<Lap> {
        process(direction, packets, gate)
    }
}

impl Detached for LessSafeKey {
    fn seal(&self, nonce: [u8; 12], aad: &[u8], text_and_icv: &mut [u8]) -> bool {
        let (text, icv) = text_and_icv.split_at_mut(text_and_icv.len() - ICV);
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.seal_in_place_separate_tag(nonce, Aad::from(aad), text)
            .map(|tag| icv.copy_from_slice(tag.as_ref()))
            .is_ok()
    }

    fn open(&self, nonce: [u8; 12], aad: &[u8], text_and_icv: &mut [u8]) -> bool {
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.open_in_place(nonce, Aad::from(aad), text_and_icv)
            .is_ok()
    }
}

/// A key of the RustCrypto project's crates.
struct RustCrypto<C>(C);

impl<C: AeadInOut<NonceSize = U12, TagSize = U16> + Send + Sync> Detached for RustCrypto<C> {
    fn seal(&self, nonce: [u8; 12], aad: &[u8], text_and_icv: &mut [u8]) -> bool {
        let (text, icv) = text_and_icv.split_at_mut(text_and_icv.len() - ICV);
        self.0
            .encrypt_inout_detached(&nonce.into(), aad, text.into())
            .map(|tag| icv.copy_from_slice(&tag))
            .is_ok()
    }

    fn open(&self, nonce: [u8; 12], aad: &[u8], text_and_icv: &mut [u8]) -> bool {
        let (text, icv) = text_and_icv.split_at_mut(text_and_icv.len() - ICV);
        let mut tag = [0; ICV];
        tag.copy_from_slice(icv);
        self.0
            .decrypt_inout_detached(&nonce.into(), aad, text.into(), &tag.into())
            .is_ok()
    }
}

struct AesGcm;

/// Either key length of the crate `aes-gcm`, chosen once per key.
enum AesGcmKey {
    Aes128(RustCrypto<Aes128Gcm>),
    Aes256(RustCrypto<Aes256Gcm>),
}

impl Detached for AesGcmKey {
    fn seal(&self, nonce: [u8; 12], aad: &[u8], text_and_icv: &mut [u8]) -> bool {
        match self {
            Self::Aes128(key) => key.seal(nonce, aad, text_and_icv),
            Self::Aes256(key) => key.seal(nonce, aad, text_and_icv),
        }
    }

    fn open(&self, nonce: [u8; 12], aad: &[u8], text_and_icv: &mut [u8]) -> bool {
        match self {
            Self::Aes128(key) => key.open(nonce, aad, text_and_icv),
            Self::Aes256(key) => key.open(nonce, aad, text_and_icv),
        }
    }
}

impl Backend for AesGcm {
    type Key = Salted<AesGcmKey>;

    fn name(&self) -> &str {
        "aes-gcm"
    }

    fn key(&self, case: &Case, key: &[u8], _: &[u8]) -> Result<Self::Key, String> {
        let (key, salt) = key.split_at(case.suite.key_len);
        let key = match bits(case.suite) {
            Some((Encryption::AesGcm, 128)) => Aes128Gcm::new_from_slice(key)
                .ok()
                .map(|key| AesGcmKey::Aes128(RustCrypto(key))),
            Some((Encryption::AesGcm, 256)) => Aes256Gcm::new_from_slice(key)
                .ok()
                .map(|key| AesGcmKey::Aes256(RustCrypto(key))),
            _ => None,
        };
        Salted::new(key, salt).ok_or_else(|| LACKS.into())
    }

    fn process(
        _: &Case,
        direction: Direction,
        packets: Vec<Packet<'_, Self::Key>>,
        gate: &Gate,
    ) -> Option<Lap> {
        process(direction, packets, gate)
    }
}

struct ChaCha;

impl Backend for ChaCha {
    type Key = Salted<RustCrypto<ChaCha20Poly1305>>;

    fn name(&self) -> &str {
        "chacha20poly1305"
    }

    fn key(&self, case: &Case, key: &[u8], _: &[u8]) -> Result<Self::Key, String> {
        let (key, salt) = key.split_at(case.suite.key_len);
        let key = match bits(case.suite) {
            Some((Encryption::ChaCha20Poly1305, _)) => {
                ChaCha20Poly1305::new_from_slice(key).ok().map(RustCrypto)
            }
            _ => None,
        };
        Salted::new(key, salt).ok_or_else(|| LACKS.into())
    }

    fn process(
        _: &Case,
        direction: Direction,
        packets: Vec<Packet<'_, Self::Key>>,
        gate: &Gate,
    ) -> Option<Lap> {
        process(direction, packets, gate)
    }
}
