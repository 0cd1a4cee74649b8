//! The RustCrypto implementation: every algorithm, every CPU.

mod aes;
mod ccm;
mod gcm;

use ::aes::cipher::array::Array;
use ::aes::cipher::consts::U12;
use ::aes::cipher::{BlockModeDecrypt, BlockModeEncrypt, InnerIvInit, StreamCipherCore};
use aes_gcm::AesGcm;
use aes_gcm::aead::AeadInOut;
use chacha20poly1305::ChaCha20Poly1305;
use ctr::CtrCore;
use ctr::flavors::Ctr32BE;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Sha256, Sha384, Sha512};
use subtle::ConstantTimeEq;

use self::aes::Aes;
use self::gcm::Gcm;
use super::primitive::Primitive;
use super::transform::{Spec, Transform, Unsupported, single_piece};

/// A key of one algorithm; each variant wipes itself when it is dropped.
pub(in crate::aead) enum Key {
    /// Nonce of 12, tag of 16 bytes.
    AesGcm(AesGcm<Aes, U12>),
    /// Any other lengths, and AES-GMAC.
    Gcm(Gcm),
    AesCcm(Aes),
    ChaCha20Poly1305(ChaCha20Poly1305),
    AesCbc(Aes),
    AesCtr(Aes),
    HmacSha1(Hmac<Sha1>),
    HmacSha256(Hmac<Sha256>),
    HmacSha384(Hmac<Sha384>),
    HmacSha512(Hmac<Sha512>),
}

impl Transform for Key {
    const SPLIT_AAD: bool = true;

    fn supports(spec: Spec, key_len: usize) -> Result<(), Unsupported> {
        let Spec {
            primitive,
            nonce_len,
            tag_len,
        } = spec;
        let aes = matches!(key_len, 16 | 24 | 32);
        let (key_fits, nonce_fits, tag_fits) = match primitive {
            Primitive::AesGcm | Primitive::AesGmac => {
                (aes, nonce_len > 0, matches!(tag_len, 4 | 8 | 12..=16))
            }
            Primitive::AesCcm => (
                aes,
                matches!(nonce_len, 7..=13),
                ccm::supports(nonce_len, tag_len),
            ),
            Primitive::ChaCha20Poly1305 => (key_len == 32, nonce_len == 12, tag_len == 16),
            Primitive::AesCbc | Primitive::AesCtr => (aes, nonce_len == 16, tag_len == 0),
            Primitive::HmacSha1 => (true, nonce_len == 0, matches!(tag_len, 1..=20)),
            Primitive::HmacSha256 => (true, nonce_len == 0, matches!(tag_len, 1..=32)),
            Primitive::HmacSha384 => (true, nonce_len == 0, matches!(tag_len, 1..=48)),
            Primitive::HmacSha512 => (true, nonce_len == 0, matches!(tag_len, 1..=64)),
        };
        match (key_fits, nonce_fits, tag_fits) {
            (true, true, true) => Ok(()),
            (false, ..) => Err(Unsupported::KeyLength(key_len)),
            (_, false, _) => Err(Unsupported::NonceLength(nonce_len)),
            (_, _, false) => Err(Unsupported::TagLength(tag_len)),
        }
    }

    fn new(spec: Spec, key: &[u8]) -> Result<Self, Unsupported> {
        Self::supports(spec, key.len())?;
        let key_length = |_| Unsupported::KeyLength(key.len());
        Ok(match spec.primitive {
            Primitive::AesGcm if spec.nonce_len == 12 && spec.tag_len == 16 => {
                Self::AesGcm(Aes::new(key)?.into())
            }
            Primitive::AesGcm | Primitive::AesGmac => Self::Gcm(Gcm::new(key)?),
            Primitive::AesCcm => Self::AesCcm(Aes::new(key)?),
            Primitive::ChaCha20Poly1305 => {
                Self::ChaCha20Poly1305(ChaCha20Poly1305::new_from_slice(key).map_err(key_length)?)
            }
            Primitive::AesCbc => Self::AesCbc(Aes::new(key)?),
            Primitive::AesCtr => Self::AesCtr(Aes::new(key)?),
            Primitive::HmacSha1 => Self::HmacSha1(Hmac::new_from_slice(key).map_err(key_length)?),
            Primitive::HmacSha256 => {
                Self::HmacSha256(Hmac::new_from_slice(key).map_err(key_length)?)
            }
            Primitive::HmacSha384 => {
                Self::HmacSha384(Hmac::new_from_slice(key).map_err(key_length)?)
            }
            Primitive::HmacSha512 => {
                Self::HmacSha512(Hmac::new_from_slice(key).map_err(key_length)?)
            }
        })
    }

    fn seal(&self, nonce: &[u8], aad: [&[u8]; 2], text: &mut [u8], tag: &mut [u8]) -> bool {
        match self {
            Self::AesGcm(aead) => seal_detached(aead, nonce, aad, text, tag),
            Self::Gcm(gcm) => gcm.seal(nonce, aad, text, tag),
            Self::AesCcm(aes) => {
                single_piece(aad).is_some_and(|aad| ccm::seal(aes, nonce, aad, text, tag))
            }
            Self::ChaCha20Poly1305(aead) => seal_detached(aead, nonce, aad, text, tag),
            Self::AesCbc(aes) => {
                let (blocks, []) = Array::slice_as_chunks_mut(text) else {
                    return false;
                };
                cbc::Encryptor::inner_iv_slice_init(aes, nonce)
                    .map(|mut cbc| cbc.encrypt_blocks(blocks))
                    .is_ok()
            }
            Self::AesCtr(aes) => apply_counter_mode(aes, nonce, text),
            Self::HmacSha1(mac) => write_mac(mac, aad, tag),
            Self::HmacSha256(mac) => write_mac(mac, aad, tag),
            Self::HmacSha384(mac) => write_mac(mac, aad, tag),
            Self::HmacSha512(mac) => write_mac(mac, aad, tag),
        }
    }

    fn open(&self, nonce: &[u8], aad: [&[u8]; 2], text: &mut [u8], tag: &[u8]) -> bool {
        match self {
            Self::AesGcm(aead) => open_detached(aead, nonce, aad, text, tag),
            Self::Gcm(gcm) => gcm.open(nonce, aad, text, tag),
            Self::AesCcm(aes) => {
                single_piece(aad).is_some_and(|aad| ccm::open(aes, nonce, aad, text, tag))
            }
            Self::ChaCha20Poly1305(aead) => open_detached(aead, nonce, aad, text, tag),
            Self::AesCbc(aes) => {
                let (blocks, []) = Array::slice_as_chunks_mut(text) else {
                    return false;
                };
                cbc::Decryptor::inner_iv_slice_init(aes, nonce)
                    .map(|mut cbc| cbc.decrypt_blocks(blocks))
                    .is_ok()
            }
            Self::AesCtr(aes) => apply_counter_mode(aes, nonce, text),
            Self::HmacSha1(mac) => check_mac(mac, aad, tag),
            Self::HmacSha256(mac) => check_mac(mac, aad, tag),
            Self::HmacSha384(mac) => check_mac(mac, aad, tag),
            Self::HmacSha512(mac) => check_mac(mac, aad, tag),
        }
    }
}

fn seal_detached<A: AeadInOut>(
    aead: &A,
    nonce: &[u8],
    aad: [&[u8]; 2],
    text: &mut [u8],
    tag: &mut [u8],
) -> bool {
    let (Ok(nonce), Some(aad)) = (nonce.try_into(), single_piece(aad)) else {
        return false;
    };
    match aead.encrypt_inout_detached(nonce, aad, text.into()) {
        Ok(made) if made.len() == tag.len() => {
            tag.copy_from_slice(&made);
            true
        }
        _ => false,
    }
}

fn open_detached<A: AeadInOut>(
    aead: &A,
    nonce: &[u8],
    aad: [&[u8]; 2],
    text: &mut [u8],
    tag: &[u8],
) -> bool {
    let (Ok(nonce), Some(aad), Ok(tag)) = (nonce.try_into(), single_piece(aad), tag.try_into())
    else {
        return false;
    };
    aead.decrypt_inout_detached(nonce, aad, text.into(), tag)
        .is_ok()
}

fn apply_counter_mode(aes: &Aes, first_block: &[u8], text: &mut [u8]) -> bool {
    CtrCore::<&Aes, Ctr32BE>::inner_iv_slice_init(aes, first_block)
        .is_ok_and(|ctr| ctr.try_apply_keystream_partial(text.into()).is_ok())
}

fn write_mac<M: Mac + Clone>(mac: &M, message: [&[u8]; 2], tag: &mut [u8]) -> bool {
    match compute_mac(mac, message).get(..tag.len()) {
        Some(made) => {
            tag.copy_from_slice(made);
            true
        }
        None => false,
    }
}

fn check_mac<M: Mac + Clone>(mac: &M, message: [&[u8]; 2], tag: &[u8]) -> bool {
    compute_mac(mac, message)
        .get(..tag.len())
        .is_some_and(|made| bool::from(made.ct_eq(tag)))
}

fn compute_mac<M: Mac + Clone>(mac: &M, message: [&[u8]; 2]) -> Array<u8, M::OutputSize> {
    let mut mac = mac.clone();
    for piece in message {
        mac.update(piece);
    }
    mac.finalize().into_bytes()
}

#[cfg(test)]
mod tests {
    use zeroize::ZeroizeOnDrop;

    use super::*;

    /// The crates promise by this trait to wipe their keys; it hangs on Cargo features. `Hmac`
    /// has no promise of its own, but its two halves are hash states of these types.
    #[test]
    fn every_key_wipes_itself() {
        fn wipes<T: ZeroizeOnDrop>() {}
        wipes::<::aes::Aes128>();
        wipes::<::aes::Aes192>();
        wipes::<::aes::Aes256>();
        wipes::<::aes::Aes128Enc>();
        wipes::<AesGcm<::aes::Aes256, U12>>();
        wipes::<ChaCha20Poly1305>();
        wipes::<Sha1>();
        wipes::<Sha256>();
        wipes::<Sha512>();
        assert!(std::mem::needs_drop::<ghash::GHash>());
        assert!(std::mem::needs_drop::<Hmac<Sha1>>());
        assert!(std::mem::needs_drop::<Hmac<Sha384>>());
    }
}
