//! Where explicit IVs come from.

use aes::Aes128Enc;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use super::CipherError;
use crate::suite::{Encryption, Suite};

/// The source of the IVs of one key.
pub(super) enum IvSource {
    /// The sequence number, or no explicit IV at all.
    Sequence,
    /// The sequence number, encrypted under a key that nobody else has.
    Encrypted(Box<Aes128Enc>),
}

impl IvSource {
    pub(super) fn new(suite: &Suite) -> Result<Self, CipherError> {
        if suite.encryption != Encryption::AesCbc {
            return Ok(Self::Sequence);
        }
        let mut key = Zeroizing::new([0; 16]);
        SystemRandom::new()
            .fill(key.as_mut_slice())
            .map_err(|_| CipherError::NoEntropy)?;
        Ok(Self::Encrypted(Box::new(Aes128Enc::new((&*key).into()))))
    }

    /// Writes the IV of the packet with this sequence number: 8 bytes of the number or 16 of its
    /// encryption. A slice of another length is left as it is.
    pub(super) fn write(&self, sequence: u64, iv: &mut [u8]) {
        match self {
            //= https://www.rfc-editor.org/rfc/rfc4106#section-3.1
            //# For a given key, the IV MUST NOT repeat.
            Self::Sequence => {
                if let Ok(iv) = <&mut [u8; 8]>::try_from(iv) {
                    *iv = sequence.to_be_bytes();
                }
            }
            // RFC 3602 section 3 asks for an IV that is random and cannot be predicted. Under a
            // random key AES is a random permutation to everyone else: distinct numbers give
            // distinct IVs that nobody can foresee.
            Self::Encrypted(aes) => {
                if let Ok(iv) = <&mut [u8; 16]>::try_from(iv) {
                    *iv = u128::from(sequence).to_be_bytes();
                    aes.encrypt_block(iv.into());
                }
            }
        }
    }
}
