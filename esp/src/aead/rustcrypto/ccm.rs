//! CCM with the lengths of nonce and tag chosen at run time out of those compiled in.

use aes::cipher::consts::{U4, U6, U7, U8, U9, U10, U11, U12, U13, U14, U16};
use ccm::aead::AeadInOut;
use ccm::{Ccm, Nonce, Tag};

use super::aes::Aes;

/// Calls `$call!(TAG, NONCE)` with the types of the given lengths, or gives `$otherwise`.
///
/// A nonce of 11 bytes is what ESP uses, with three lengths of tag (RFC 4309); the others are
/// those that published vectors exercise.
macro_rules! with_lengths {
    ($nonce_len:expr, $tag_len:expr, $call:ident, $otherwise:expr) => {
        match ($nonce_len, $tag_len) {
            (11, 8) => $call!(U8, U11),
            (11, 12) => $call!(U12, U11),
            (11, 16) => $call!(U16, U11),
            (12, 4) => $call!(U4, U12),
            (12, 6) => $call!(U6, U12),
            (12, 8) => $call!(U8, U12),
            (12, 10) => $call!(U10, U12),
            (12, 12) => $call!(U12, U12),
            (12, 14) => $call!(U14, U12),
            (12, 16) => $call!(U16, U12),
            (7, 16) => $call!(U16, U7),
            (8, 16) => $call!(U16, U8),
            (9, 16) => $call!(U16, U9),
            (10, 16) => $call!(U16, U10),
            (13, 4) => $call!(U4, U13),
            (13, 6) => $call!(U6, U13),
            (13, 8) => $call!(U8, U13),
            (13, 10) => $call!(U10, U13),
            (13, 12) => $call!(U12, U13),
            (13, 14) => $call!(U14, U13),
            (13, 16) => $call!(U16, U13),
            _ => $otherwise,
        }
    };
}

pub(super) fn supports(nonce_len: usize, tag_len: usize) -> bool {
    macro_rules! yes {
        ($tag:ty, $nonce:ty) => {
            true
        };
    }
    with_lengths!(nonce_len, tag_len, yes, false)
}

pub(super) fn seal(aes: &Aes, nonce: &[u8], aad: &[u8], text: &mut [u8], tag: &mut [u8]) -> bool {
    macro_rules! seal {
        ($tag:ty, $nonce:ty) => {{
            let Ok(nonce) = <&Nonce<$nonce>>::try_from(nonce) else {
                return false;
            };
            let ccm = Ccm::<&Aes, $tag, $nonce>::from(aes);
            match ccm.encrypt_inout_detached(nonce, aad, text.into()) {
                Ok(made) => {
                    tag.copy_from_slice(&made);
                    true
                }
                Err(_) => false,
            }
        }};
    }
    with_lengths!(nonce.len(), tag.len(), seal, false)
}

pub(super) fn open(aes: &Aes, nonce: &[u8], aad: &[u8], text: &mut [u8], tag: &[u8]) -> bool {
    macro_rules! open {
        ($tag:ty, $nonce:ty) => {{
            let (Ok(nonce), Ok(tag)) = (
                <&Nonce<$nonce>>::try_from(nonce),
                <&Tag<$tag>>::try_from(tag),
            ) else {
                return false;
            };
            Ccm::<&Aes, $tag, $nonce>::from(aes)
                .decrypt_inout_detached(nonce, aad, text.into(), tag)
                .is_ok()
        }};
    }
    with_lengths!(nonce.len(), tag.len(), open, false)
}
