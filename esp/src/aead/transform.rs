//! What an implementation has to provide: single keyed algorithms, of which everything else in
//! this module is made.

use core::fmt;

use super::primitive::Primitive;

/// One keyed algorithm of one implementation.
///
/// Packets and published vectors alike go through these calls, so what a vector proves of an
/// implementation holds for packets.
///
/// - AEADs: `aad` is authenticated, `text` is encrypted or decrypted in place.
/// - MACs (AES-GMAC, HMAC): the message is `aad`, `text` is empty.
/// - Ciphers (AES-CBC, AES-CTR): `aad` and the tag are empty; the nonce is the IV or the first
///   counter block.
///
/// The additional data come in two pieces that belong together; AES-GMAC takes both only if
/// [`Transform::SPLIT_AAD`] says so and the first is a multiple of 16 bytes, AES-GCM, AES-CCM
/// and ChaCha20-Poly1305 take one of them.
pub(super) trait Transform: Sized {
    /// Whether AES-GMAC takes its message in two pieces.
    const SPLIT_AAD: bool;

    /// Whether there is such an algorithm here, and if not, why.
    fn supports(spec: Spec, key_len: usize) -> Result<(), Unsupported>;

    /// Expands a key.
    fn new(spec: Spec, key: &[u8]) -> Result<Self, Unsupported>;

    /// Encrypts `text` and writes the tag; `false` if the lengths do not fit the key's.
    fn seal(&self, nonce: &[u8], aad: [&[u8]; 2], text: &mut [u8], tag: &mut [u8]) -> bool;

    /// Checks the tag and decrypts `text`; `false` if the tag is wrong or the lengths do not
    /// fit, and then `text` holds nothing of use.
    fn open(&self, nonce: &[u8], aad: [&[u8]; 2], text: &mut [u8], tag: &[u8]) -> bool;
}

/// An algorithm with the lengths that are fixed for the life of a key, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spec {
    pub(super) primitive: Primitive,
    pub(super) nonce_len: usize,
    pub(super) tag_len: usize,
}

/// Why an implementation does not do what it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unsupported {
    /// The implementation lacks the algorithm.
    Primitive(Primitive),
    /// No key of this many bytes.
    KeyLength(usize),
    /// No nonce of this many bytes.
    NonceLength(usize),
    /// No tag of this many bytes.
    TagLength(usize),
    /// No text of this many bytes: AES-CBC takes whole blocks, a MAC takes its message as
    /// additional data.
    TextLength(usize),
    /// The algorithm authenticates nothing, but there are this many bytes of additional data.
    AadLength(usize),
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Primitive(primitive) => write!(f, "{primitive} is not implemented"),
            Self::KeyLength(len) => write!(f, "keys of {len} bytes are not implemented"),
            Self::NonceLength(len) => write!(f, "nonces of {len} bytes are not implemented"),
            Self::TagLength(len) => write!(f, "tags of {len} bytes are not implemented"),
            Self::TextLength(len) => write!(f, "a text of {len} bytes is not possible"),
            Self::AadLength(len) => {
                write!(
                    f,
                    "{len} bytes of additional data would not be authenticated"
                )
            }
        }
    }
}

impl core::error::Error for Unsupported {}

/// The one piece of additional data, where the other is empty.
pub(super) fn single_piece(aad: [&[u8]; 2]) -> Option<&[u8]> {
    match aad {
        [one, []] | [[], one] => Some(one),
        _ => None,
    }
}
