//! The algorithms under the suites, bare: so that published vectors, which know nothing of ESP,
//! run through the very code and keys that packets go through.

use core::fmt;

use super::implementation::Implementation;
use super::transform::{Spec, Transform};
use super::{ring, rustcrypto};

pub use super::transform::Unsupported;

/// An algorithm that suites are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Primitive {
    /// AES-GCM (NIST SP 800-38D), keys of 16, 24 or 32 bytes.
    AesGcm,
    /// AES-GCM that encrypts nothing; the message is the additional data.
    AesGmac,
    /// AES-CCM (RFC 3610), keys of 16, 24 or 32 bytes.
    AesCcm,
    /// ChaCha20-Poly1305 (RFC 8439).
    ChaCha20Poly1305,
    /// AES-CBC (NIST SP 800-38A) without padding; the nonce is the IV, the tag empty.
    AesCbc,
    /// AES-CTR (NIST SP 800-38A); the nonce is the first counter block, of which the last 32
    /// bits count; the tag is empty.
    AesCtr,
    /// HMAC-SHA-1 (RFC 2104); the message is the additional data, the nonce empty.
    HmacSha1,
    /// HMAC-SHA-256 (RFC 4231); like [`Primitive::HmacSha1`].
    HmacSha256,
    /// HMAC-SHA-384 (RFC 4231); like [`Primitive::HmacSha1`].
    HmacSha384,
    /// HMAC-SHA-512 (RFC 4231); like [`Primitive::HmacSha1`].
    HmacSha512,
}

/// A key for one algorithm with fixed lengths of nonce and tag.
///
/// Wiped when it is dropped and never shown.
pub struct PrimitiveKey {
    spec: Spec,
    inner: Inner,
}

enum Inner {
    Ring(Box<ring::Key>),
    RustCrypto(Box<rustcrypto::Key>),
}

impl Primitive {
    /// All of them.
    pub const ALL: &'static [Primitive] = &[
        Self::AesGcm,
        Self::AesGmac,
        Self::AesCcm,
        Self::ChaCha20Poly1305,
        Self::AesCbc,
        Self::AesCtr,
        Self::HmacSha1,
        Self::HmacSha256,
        Self::HmacSha384,
        Self::HmacSha512,
    ];

    /// A key for this algorithm, with nonces of `nonce_len` and tags of `tag_len` bytes.
    ///
    /// # Errors
    ///
    /// [`Unsupported`] if the implementation lacks the algorithm or one of the lengths.
    pub fn key(
        self,
        implementation: Implementation,
        key: &[u8],
        nonce_len: usize,
        tag_len: usize,
    ) -> Result<PrimitiveKey, Unsupported> {
        let spec = Spec {
            primitive: self,
            nonce_len,
            tag_len,
        };
        let inner = match implementation {
            Implementation::Ring => Inner::Ring(Box::new(ring::Key::new(spec, key)?)),
            Implementation::RustCrypto => {
                Inner::RustCrypto(Box::new(rustcrypto::Key::new(spec, key)?))
            }
        };
        Ok(PrimitiveKey { spec, inner })
    }
}

impl PrimitiveKey {
    /// Encrypts `text` in place and writes the tag.
    ///
    /// # Errors
    ///
    /// [`Unsupported`] if a length is not that of the key or not possible.
    pub fn seal(
        &self,
        nonce: &[u8],
        aad: &[u8],
        text: &mut [u8],
        tag: &mut [u8],
    ) -> Result<(), Unsupported> {
        self.check(nonce, aad, text, tag)?;
        let text_len = text.len();
        let sealed = match &self.inner {
            Inner::Ring(key) => key.seal(nonce, [aad, &[]], text, tag),
            Inner::RustCrypto(key) => key.seal(nonce, [aad, &[]], text, tag),
        };
        match sealed {
            true => Ok(()),
            false => Err(Unsupported::TextLength(text_len)),
        }
    }

    /// Checks the tag and decrypts `text` in place; if the tag is wrong, the answer is `false`
    /// and `text` has been overwritten with zeroes.
    ///
    /// # Errors
    ///
    /// [`Unsupported`] if a length is not that of the key or not possible.
    pub fn open(
        &self,
        nonce: &[u8],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8],
    ) -> Result<bool, Unsupported> {
        self.check(nonce, aad, text, tag)?;
        let authentic = match &self.inner {
            Inner::Ring(key) => key.open(nonce, [aad, &[]], text, tag),
            Inner::RustCrypto(key) => key.open(nonce, [aad, &[]], text, tag),
        };
        if !authentic {
            text.fill(0);
        }
        Ok(authentic)
    }

    fn check(&self, nonce: &[u8], aad: &[u8], text: &[u8], tag: &[u8]) -> Result<(), Unsupported> {
        if nonce.len() != self.spec.nonce_len {
            return Err(Unsupported::NonceLength(nonce.len()));
        }
        if tag.len() != self.spec.tag_len {
            return Err(Unsupported::TagLength(tag.len()));
        }
        let text_fits = match self.spec.primitive {
            Primitive::AesGcm
            | Primitive::AesCcm
            | Primitive::ChaCha20Poly1305
            | Primitive::AesCtr => true,
            Primitive::AesCbc => text.len().is_multiple_of(16),
            Primitive::AesGmac
            | Primitive::HmacSha1
            | Primitive::HmacSha256
            | Primitive::HmacSha384
            | Primitive::HmacSha512 => text.is_empty(),
        };
        if !text_fits {
            return Err(Unsupported::TextLength(text.len()));
        }
        if matches!(self.spec.primitive, Primitive::AesCbc | Primitive::AesCtr) && !aad.is_empty() {
            return Err(Unsupported::AadLength(aad.len()));
        }
        Ok(())
    }
}

impl fmt::Debug for PrimitiveKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrimitiveKey")
            .field("spec", &self.spec)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Primitive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AesGcm => "AES-GCM",
            Self::AesGmac => "AES-GMAC",
            Self::AesCcm => "AES-CCM",
            Self::ChaCha20Poly1305 => "ChaCha20-Poly1305",
            Self::AesCbc => "AES-CBC",
            Self::AesCtr => "AES-CTR",
            Self::HmacSha1 => "HMAC-SHA-1",
            Self::HmacSha256 => "HMAC-SHA-256",
            Self::HmacSha384 => "HMAC-SHA-384",
            Self::HmacSha512 => "HMAC-SHA-512",
        })
    }
}
