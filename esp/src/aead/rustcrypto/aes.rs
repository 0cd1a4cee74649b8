//! AES with a key of any of its three lengths as one type.

use aes::cipher::common::BlockSizeUser;
use aes::cipher::consts::U16;
use aes::cipher::{
    BlockCipherDecClosure, BlockCipherDecrypt, BlockCipherEncClosure, BlockCipherEncrypt, KeyInit,
};
use aes::{Aes128, Aes192, Aes256};

use crate::aead::transform::Unsupported;

/// An expanded AES key; each variant wipes itself when it is dropped.
///
/// The modes of operation are generic over their block cipher; choosing the key length in here
/// makes one type of each mode instead of three, and costs one branch per call, not per block.
pub(in crate::aead) enum Aes {
    Aes128(Aes128),
    Aes192(Aes192),
    Aes256(Aes256),
}

impl Aes {
    pub(super) fn new(key: &[u8]) -> Result<Self, Unsupported> {
        match key.len() {
            16 => Aes128::new_from_slice(key).map(Self::Aes128),
            24 => Aes192::new_from_slice(key).map(Self::Aes192),
            _ => Aes256::new_from_slice(key).map(Self::Aes256),
        }
        .map_err(|_| Unsupported::KeyLength(key.len()))
    }
}

impl BlockSizeUser for Aes {
    type BlockSize = U16;
}

impl BlockCipherEncrypt for Aes {
    #[inline]
    fn encrypt_with_backend(&self, f: impl BlockCipherEncClosure<BlockSize = U16>) {
        match self {
            Self::Aes128(aes) => aes.encrypt_with_backend(f),
            Self::Aes192(aes) => aes.encrypt_with_backend(f),
            Self::Aes256(aes) => aes.encrypt_with_backend(f),
        }
    }
}

impl BlockCipherDecrypt for Aes {
    #[inline]
    fn decrypt_with_backend(&self, f: impl BlockCipherDecClosure<BlockSize = U16>) {
        match self {
            Self::Aes128(aes) => aes.decrypt_with_backend(f),
            Self::Aes192(aes) => aes.decrypt_with_backend(f),
            Self::Aes256(aes) => aes.decrypt_with_backend(f),
        }
    }
}
