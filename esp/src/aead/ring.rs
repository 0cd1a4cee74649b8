//! The `ring` implementation: what it has of the algorithms, which is most of what is common.

use core::hint::black_box;

use ::ring::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use ::ring::hmac;
use subtle::ConstantTimeEq;

use super::primitive::Primitive;
use super::transform::{Spec, Transform, Unsupported, single_piece};

/// A key of one algorithm; wiped when it is dropped.
#[expect(
    clippy::large_enum_variant,
    reason = "keys are boxed by their owners; a second box would be a second cache miss"
)]
pub(in crate::aead) enum Key {
    Aead(LessSafeKey),
    Hmac(hmac::Key),
}

impl Transform for Key {
    const SPLIT_AAD: bool = false;

    fn supports(spec: Spec, key_len: usize) -> Result<(), Unsupported> {
        let algorithm = Algorithm::of(spec.primitive, key_len)?;
        let (nonce_fits, tag_fits) = match algorithm {
            Algorithm::Aead(algorithm) => (
                spec.nonce_len == aead::NONCE_LEN,
                spec.tag_len == algorithm.tag_len(),
            ),
            Algorithm::Hmac(algorithm) => {
                let longest = algorithm.digest_algorithm().output_len();
                (spec.nonce_len == 0, (1..=longest).contains(&spec.tag_len))
            }
        };
        match (nonce_fits, tag_fits) {
            (true, true) => Ok(()),
            (false, _) => Err(Unsupported::NonceLength(spec.nonce_len)),
            (_, false) => Err(Unsupported::TagLength(spec.tag_len)),
        }
    }

    fn new(spec: Spec, key: &[u8]) -> Result<Self, Unsupported> {
        Self::supports(spec, key.len())?;
        Ok(match Algorithm::of(spec.primitive, key.len())? {
            Algorithm::Aead(algorithm) => Self::Aead(LessSafeKey::new(
                UnboundKey::new(algorithm, key).map_err(|_| Unsupported::KeyLength(key.len()))?,
            )),
            Algorithm::Hmac(algorithm) => Self::Hmac(hmac::Key::new(algorithm, key)),
        })
    }

    fn seal(&self, nonce: &[u8], aad: [&[u8]; 2], text: &mut [u8], tag: &mut [u8]) -> bool {
        match self {
            Self::Aead(key) => {
                let (Ok(nonce), Some(aad)) =
                    (Nonce::try_assume_unique_for_key(nonce), single_piece(aad))
                else {
                    return false;
                };
                match key.seal_in_place_separate_tag(nonce, Aad::from(aad), text) {
                    Ok(made) if made.as_ref().len() == tag.len() => {
                        tag.copy_from_slice(made.as_ref());
                        true
                    }
                    _ => false,
                }
            }
            Self::Hmac(key) => match compute_mac(key, aad).as_ref().get(..tag.len()) {
                Some(made) => {
                    tag.copy_from_slice(made);
                    true
                }
                None => false,
            },
        }
    }

    fn open(&self, nonce: &[u8], aad: [&[u8]; 2], text: &mut [u8], tag: &[u8]) -> bool {
        match self {
            Self::Aead(key) => {
                let (Ok(nonce), Some(aad), Ok(tag)) = (
                    Nonce::try_assume_unique_for_key(nonce),
                    single_piece(aad),
                    tag.try_into(),
                ) else {
                    return false;
                };
                key.open_in_place_separate_tag(nonce, Aad::from(aad), tag, text, 0..)
                    .is_ok()
            }
            Self::Hmac(key) => compute_mac(key, aad)
                .as_ref()
                .get(..tag.len())
                .is_some_and(|made| bool::from(made.ct_eq(tag))),
        }
    }
}

impl Key {
    /// Overwrites the expanded key with that of a key of zeroes.
    ///
    /// `ring` wipes nothing by itself and its types have no other way in. The key expansion
    /// writes the same bytes for every key of an algorithm.
    fn wipe(&mut self) {
        const ZEROES: [u8; 32] = [0; 32];
        match self {
            Self::Aead(key) => {
                let algorithm = key.algorithm();
                if let Ok(zero) = UnboundKey::new(algorithm, &ZEROES[..algorithm.key_len()]) {
                    *key = LessSafeKey::new(zero);
                }
            }
            Self::Hmac(key) => *key = hmac::Key::new(key.algorithm(), &ZEROES),
        }
        // Writes to memory that is about to be freed may be left out, unless someone looks.
        black_box(self);
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.wipe();
    }
}

enum Algorithm {
    Aead(&'static aead::Algorithm),
    Hmac(hmac::Algorithm),
}

impl Algorithm {
    fn of(primitive: Primitive, key_len: usize) -> Result<Self, Unsupported> {
        Ok(match (primitive, key_len) {
            (Primitive::AesGcm | Primitive::AesGmac, 16) => Self::Aead(&aead::AES_128_GCM),
            (Primitive::AesGcm | Primitive::AesGmac, 32) => Self::Aead(&aead::AES_256_GCM),
            (Primitive::ChaCha20Poly1305, 32) => Self::Aead(&aead::CHACHA20_POLY1305),
            (Primitive::AesGcm | Primitive::AesGmac | Primitive::ChaCha20Poly1305, _) => {
                return Err(Unsupported::KeyLength(key_len));
            }
            (Primitive::HmacSha1, _) => Self::Hmac(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY),
            (Primitive::HmacSha256, _) => Self::Hmac(hmac::HMAC_SHA256),
            (Primitive::HmacSha384, _) => Self::Hmac(hmac::HMAC_SHA384),
            (Primitive::HmacSha512, _) => Self::Hmac(hmac::HMAC_SHA512),
            (Primitive::AesCcm | Primitive::AesCbc | Primitive::AesCtr, _) => {
                return Err(Unsupported::Primitive(primitive));
            }
        })
    }
}

fn compute_mac(key: &hmac::Key, message: [&[u8]; 2]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(key);
    for piece in message {
        context.update(piece);
    }
    context.sign()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wiped_key_is_the_key_of_zeroes() {
        for (primitive, key_len, nonce_len, tag_len) in [
            (Primitive::AesGcm, 16, 12, 16),
            (Primitive::AesGcm, 32, 12, 16),
            (Primitive::ChaCha20Poly1305, 32, 12, 16),
            (Primitive::HmacSha1, 20, 0, 12),
            (Primitive::HmacSha512, 64, 0, 32),
        ] {
            let spec = Spec {
                primitive,
                nonce_len,
                tag_len,
            };
            let tag_of = |key: &Key| {
                let mut tag = vec![0; tag_len];
                assert!(key.seal(&vec![9; nonce_len], [b"message", &[]], &mut [], &mut tag));
                tag
            };
            let mut key = Key::new(spec, &vec![0x5a; key_len]).unwrap();
            let zero = Key::new(spec, &vec![0; key_len]).unwrap();
            assert_ne!(tag_of(&key), tag_of(&zero));
            key.wipe();
            assert_eq!(tag_of(&key), tag_of(&zero), "{primitive}");
        }
    }
}
