//! GCM for what the crate `aes-gcm` has no type for: tags of any permitted length, nonces of any
//! length known at run time, and a message in two pieces.
//!
//! Composed of RustCrypto's `aes`, `ctr` and `ghash` as NIST SP 800-38D describes it.

use aes::cipher::{BlockCipherEncrypt, InnerIvInit, StreamCipherCore};
use ctr::CtrCore;
use ctr::flavors::Ctr32BE;
use ghash::universal_hash::UniversalHash;
use ghash::{Block, GHash};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::aes::Aes;
use crate::aead::transform::Unsupported;

/// An expanded key; both halves wipe themselves when they are dropped.
pub(in crate::aead) struct Gcm {
    aes: Aes,
    ghash: GHash,
}

type Ctr<'a> = CtrCore<&'a Aes, Ctr32BE>;

impl Gcm {
    pub(super) fn new(key: &[u8]) -> Result<Self, Unsupported> {
        let aes = Aes::new(key)?;
        let mut h = Zeroizing::new([0; 16]);
        aes.encrypt_block((&mut *h).into());
        let ghash = GHash::new((&*h).into());
        Ok(Self { aes, ghash })
    }

    /// Encrypts and writes as many bytes of the tag as `tag` has, which is 16 at most.
    pub(super) fn seal(
        &self,
        nonce: &[u8],
        aad: [&[u8]; 2],
        text: &mut [u8],
        tag: &mut [u8],
    ) -> bool {
        let (mask, ctr) = self.start(nonce);
        if ctr
            .try_apply_keystream_partial((&mut *text).into())
            .is_err()
        {
            return false;
        }
        let full = self.tag(mask, aad, text);
        let Some(made) = full.get(..tag.len()) else {
            return false;
        };
        tag.copy_from_slice(made);
        true
    }

    /// Checks as many bytes of the tag as `tag` has, and decrypts only if they are right.
    pub(super) fn open(&self, nonce: &[u8], aad: [&[u8]; 2], text: &mut [u8], tag: &[u8]) -> bool {
        let (mask, ctr) = self.start(nonce);
        let full = self.tag(mask, aad, text);
        full.get(..tag.len())
            .is_some_and(|made| bool::from(made.ct_eq(tag)))
            && ctr.try_apply_keystream_partial(text.into()).is_ok()
    }

    /// The encrypted pre-counter block J0 of section 7.1, and the key stream that follows it.
    fn start(&self, nonce: &[u8]) -> (Block, Ctr<'_>) {
        let mut j0 = Block::default();
        if nonce.len() == 12 {
            j0[..12].copy_from_slice(nonce);
            j0[15] = 1;
        } else {
            let mut ghash = self.ghash.clone();
            ghash.update_padded(nonce);
            ghash.update(&[lengths(0, nonce.len())]);
            j0 = ghash.finalize();
        }
        let mut ctr = Ctr::inner_iv_init(&self.aes, &j0);
        let mut mask = Block::default();
        ctr.write_keystream_block(&mut mask);
        (mask, ctr)
    }

    fn tag(&self, mask: Block, aad: [&[u8]; 2], ciphertext: &[u8]) -> Block {
        let mut ghash = self.ghash.clone();
        for piece in aad {
            ghash.update_padded(piece);
        }
        ghash.update_padded(ciphertext);
        ghash.update(&[lengths(aad[0].len() + aad[1].len(), ciphertext.len())]);
        let mut tag = ghash.finalize();
        for (byte, mask) in tag.iter_mut().zip(mask) {
            *byte ^= mask;
        }
        tag
    }
}

/// The block that ends a GHASH: two lengths, in bits.
fn lengths(first: usize, second: usize) -> Block {
    let mut block = Block::default();
    block[..8].copy_from_slice(&(first as u64 * 8).to_be_bytes());
    block[8..].copy_from_slice(&(second as u64 * 8).to_be_bytes());
    block
}
