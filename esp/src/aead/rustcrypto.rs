//! The RustCrypto implementation.

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit};

use super::CipherError;
use crate::suite::{Encryption, Suite};

pub(super) struct Key {
    gcm: Aes256Gcm,
    salt: [u8; 4],
}

impl Key {
    pub(super) fn new(suite: &Suite, key: &[u8], _auth: &[u8]) -> Result<Self, CipherError> {
        if suite.encryption != Encryption::AesGcm || suite.key_len != 32 || suite.icv_len != 16 {
            return Err(CipherError::Unsupported);
        }
        let gcm = Aes256Gcm::new_from_slice(&key[..32]).map_err(|_| CipherError::Unsupported)?;
        let mut salt = [0; 4];
        salt.copy_from_slice(&key[32..]);
        Ok(Self { gcm, salt })
    }

    pub(super) fn seal(&self, sequence: u64, esn: bool, esp: &mut [u8]) {
        let (nonce, aad, aad_len) = self.nonce_and_aad(sequence, esn, esp);
        let text_len = esp.len() - 32;
        let (text, tag) = esp[16..].split_at_mut(text_len);
        if let Ok(made) =
            self.gcm
                .encrypt_inout_detached(&nonce.into(), &aad[..aad_len], text.into())
        {
            tag.copy_from_slice(&made);
        }
    }

    pub(super) fn open(&self, sequence: u64, esn: bool, esp: &mut [u8]) -> bool {
        let (nonce, aad, aad_len) = self.nonce_and_aad(sequence, esn, esp);
        let text_len = esp.len() - 32;
        let (text, tag) = esp[16..].split_at_mut(text_len);
        let mut expected = [0; 16];
        expected.copy_from_slice(tag);
        self.gcm
            .decrypt_inout_detached(
                &nonce.into(),
                &aad[..aad_len],
                text.into(),
                &expected.into(),
            )
            .is_ok()
    }

    fn nonce_and_aad(&self, sequence: u64, esn: bool, esp: &[u8]) -> ([u8; 12], [u8; 12], usize) {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&self.salt);
        nonce[4..].copy_from_slice(&esp[8..16]);
        let mut aad = [0; 12];
        aad[..4].copy_from_slice(&esp[..4]);
        if esn {
            aad[4..].copy_from_slice(&sequence.to_be_bytes());
        } else {
            aad[4..8].copy_from_slice(&esp[4..8]);
        }
        (nonce, aad, if esn { 12 } else { 8 })
    }
}
