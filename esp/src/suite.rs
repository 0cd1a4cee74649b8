//! Which transforms there are, by their IANA numbers and by the names that `ip xfrm` and
//! Wireshark give them.

mod error;
mod refused;
mod wireshark;
mod xfrm;

use core::fmt;

pub use error::{Role, SuiteError};
pub use refused::Refused;
pub use xfrm::Xfrm;

/// An ESP transform with its key and ICV lengths: one row of [`Suite::ALL`].
///
/// A suite is compared by its name; use `&'static Suite` values out of the table.
#[derive(Debug)]
#[non_exhaustive]
pub struct Suite {
    /// The name of the row, in the notation of IKE proposals: `aes256gcm16`, `aes128-sha256`.
    pub name: &'static str,
    /// What encrypts.
    pub encryption: Encryption,
    /// What authenticates, where that is not the encryption itself.
    pub integrity: Option<Integrity>,
    /// Bytes of the encryption key, without the salt.
    pub key_len: usize,
    /// Bytes of salt that follow the encryption key (`KEYMAT` order, RFC 4106 section 8.1).
    pub salt_len: usize,
    /// Bytes of the integrity key; 0 for AEADs.
    pub auth_key_len: usize,
    /// Bytes of explicit IV in each packet.
    pub iv_len: usize,
    /// Bytes of integrity check value at the end of each packet.
    pub icv_len: usize,
    /// Payload, padding, pad length and next header together are a multiple of this many bytes.
    pub alignment: usize,
}

/// Encryption transforms (IKEv2 transform type 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Encryption {
    /// ENCR_NULL (RFC 2410).
    Null,
    /// ENCR_AES_CBC (RFC 3602).
    AesCbc,
    /// ENCR_AES_CTR (RFC 3686).
    AesCtr,
    /// ENCR_AES_CCM_8, _12, _16 (RFC 4309).
    AesCcm,
    /// ENCR_AES_GCM_8, _12, _16 (RFC 4106).
    AesGcm,
    /// ENCR_NULL_AUTH_AES_GMAC (RFC 4543).
    AesGmac,
    /// ENCR_CHACHA20_POLY1305 (RFC 7634).
    ChaCha20Poly1305,
    /// ENCR_AES_GCM_16_IIV (RFC 8750).
    AesGcmImplicitIv,
    /// ENCR_CHACHA20_POLY1305_IIV (RFC 8750).
    ChaCha20Poly1305ImplicitIv,
    /// ENCR_AES_CCM_8_IIV (RFC 8750).
    AesCcmImplicitIv,
}

/// Integrity transforms (IKEv2 transform type 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Integrity {
    /// AUTH_HMAC_SHA1_96 (RFC 2404).
    HmacSha1_96,
    /// AUTH_HMAC_SHA2_256_128 (RFC 4868).
    HmacSha256_128,
    /// AUTH_HMAC_SHA2_384_192 (RFC 4868).
    HmacSha384_192,
    /// AUTH_HMAC_SHA2_512_256 (RFC 4868).
    HmacSha512_256,
}

impl Integrity {
    /// All of them.
    pub const ALL: [Integrity; 4] = [
        Self::HmacSha1_96,
        Self::HmacSha256_128,
        Self::HmacSha384_192,
        Self::HmacSha512_256,
    ];

    /// The number of the transform in IANA's registry of IKEv2 parameters.
    pub const fn iana(self) -> u16 {
        match self {
            Self::HmacSha1_96 => 2,
            Self::HmacSha256_128 => 12,
            Self::HmacSha384_192 => 13,
            Self::HmacSha512_256 => 14,
        }
    }

    /// The algorithm name that `ip xfrm state add` takes after `auth-trunc`.
    pub const fn xfrm(self) -> &'static str {
        match self {
            Self::HmacSha1_96 => "hmac(sha1)",
            Self::HmacSha256_128 => "hmac(sha256)",
            Self::HmacSha384_192 => "hmac(sha384)",
            Self::HmacSha512_256 => "hmac(sha512)",
        }
    }

    /// Bytes of ICV.
    pub const fn icv_len(self) -> usize {
        match self {
            Self::HmacSha1_96 => 12,
            Self::HmacSha256_128 => 16,
            Self::HmacSha384_192 => 24,
            Self::HmacSha512_256 => 32,
        }
    }

    /// Bytes of key: the length of the hash's output (RFC 4868 section 2.1.1).
    pub const fn key_len(self) -> usize {
        match self {
            Self::HmacSha1_96 => 20,
            Self::HmacSha256_128 => 32,
            Self::HmacSha384_192 => 48,
            Self::HmacSha512_256 => 64,
        }
    }
}

const fn aead(
    name: &'static str,
    encryption: Encryption,
    key_len: usize,
    salt_len: usize,
    iv_len: usize,
    icv_len: usize,
) -> Suite {
    Suite {
        name,
        encryption,
        integrity: None,
        key_len,
        salt_len,
        auth_key_len: 0,
        iv_len,
        icv_len,
        alignment: 4,
    }
}

const fn composed(
    name: &'static str,
    encryption: Encryption,
    key_len: usize,
    integrity: Integrity,
) -> Suite {
    let (salt_len, iv_len, alignment) = match encryption {
        Encryption::AesCbc => (0, 16, 16),
        Encryption::AesCtr => (4, 8, 4),
        _ => (0, 0, 4),
    };
    Suite {
        name,
        encryption,
        integrity: Some(integrity),
        key_len,
        salt_len,
        auth_key_len: integrity.key_len(),
        iv_len,
        icv_len: integrity.icv_len(),
        alignment,
    }
}

impl Suite {
    /// Every suite of this library.
    ///
    /// What a verifier, a test or a benchmark walks; a new suite is a new row here.
    pub const ALL: &'static [Suite] = {
        use Encryption::*;
        use Integrity::*;
        &[
            aead("aes128gcm16", AesGcm, 16, 4, 8, 16),
            aead("aes192gcm16", AesGcm, 24, 4, 8, 16),
            aead("aes256gcm16", AesGcm, 32, 4, 8, 16),
            aead("aes128gcm12", AesGcm, 16, 4, 8, 12),
            aead("aes192gcm12", AesGcm, 24, 4, 8, 12),
            aead("aes256gcm12", AesGcm, 32, 4, 8, 12),
            aead("aes128gcm8", AesGcm, 16, 4, 8, 8),
            aead("aes192gcm8", AesGcm, 24, 4, 8, 8),
            aead("aes256gcm8", AesGcm, 32, 4, 8, 8),
            aead("aes128gmac", AesGmac, 16, 4, 8, 16),
            aead("aes192gmac", AesGmac, 24, 4, 8, 16),
            aead("aes256gmac", AesGmac, 32, 4, 8, 16),
            aead("chacha20poly1305", ChaCha20Poly1305, 32, 4, 8, 16),
            aead("aes128ccm16", AesCcm, 16, 3, 8, 16),
            aead("aes192ccm16", AesCcm, 24, 3, 8, 16),
            aead("aes256ccm16", AesCcm, 32, 3, 8, 16),
            aead("aes128ccm12", AesCcm, 16, 3, 8, 12),
            aead("aes192ccm12", AesCcm, 24, 3, 8, 12),
            aead("aes256ccm12", AesCcm, 32, 3, 8, 12),
            aead("aes128ccm8", AesCcm, 16, 3, 8, 8),
            aead("aes192ccm8", AesCcm, 24, 3, 8, 8),
            aead("aes256ccm8", AesCcm, 32, 3, 8, 8),
            composed("aes128-sha1", AesCbc, 16, HmacSha1_96),
            composed("aes192-sha1", AesCbc, 24, HmacSha1_96),
            composed("aes256-sha1", AesCbc, 32, HmacSha1_96),
            composed("aes128-sha256", AesCbc, 16, HmacSha256_128),
            composed("aes192-sha256", AesCbc, 24, HmacSha256_128),
            composed("aes256-sha256", AesCbc, 32, HmacSha256_128),
            composed("aes128-sha384", AesCbc, 16, HmacSha384_192),
            composed("aes192-sha384", AesCbc, 24, HmacSha384_192),
            composed("aes256-sha384", AesCbc, 32, HmacSha384_192),
            composed("aes128-sha512", AesCbc, 16, HmacSha512_256),
            composed("aes192-sha512", AesCbc, 24, HmacSha512_256),
            composed("aes256-sha512", AesCbc, 32, HmacSha512_256),
            composed("aes128ctr-sha1", AesCtr, 16, HmacSha1_96),
            composed("aes192ctr-sha1", AesCtr, 24, HmacSha1_96),
            composed("aes256ctr-sha1", AesCtr, 32, HmacSha1_96),
            composed("aes128ctr-sha256", AesCtr, 16, HmacSha256_128),
            composed("aes192ctr-sha256", AesCtr, 24, HmacSha256_128),
            composed("aes256ctr-sha256", AesCtr, 32, HmacSha256_128),
            composed("aes128ctr-sha384", AesCtr, 16, HmacSha384_192),
            composed("aes192ctr-sha384", AesCtr, 24, HmacSha384_192),
            composed("aes256ctr-sha384", AesCtr, 32, HmacSha384_192),
            composed("aes128ctr-sha512", AesCtr, 16, HmacSha512_256),
            composed("aes192ctr-sha512", AesCtr, 24, HmacSha512_256),
            composed("aes256ctr-sha512", AesCtr, 32, HmacSha512_256),
            composed("null-sha1", Null, 0, HmacSha1_96),
            composed("null-sha256", Null, 0, HmacSha256_128),
            composed("null-sha384", Null, 0, HmacSha384_192),
            composed("null-sha512", Null, 0, HmacSha512_256),
            aead("aes128gcm16iiv", AesGcmImplicitIv, 16, 4, 0, 16),
            aead("aes192gcm16iiv", AesGcmImplicitIv, 24, 4, 0, 16),
            aead("aes256gcm16iiv", AesGcmImplicitIv, 32, 4, 0, 16),
            aead(
                "chacha20poly1305iiv",
                ChaCha20Poly1305ImplicitIv,
                32,
                4,
                0,
                16,
            ),
            aead("aes128ccm8iiv", AesCcmImplicitIv, 16, 3, 0, 8),
            aead("aes192ccm8iiv", AesCcmImplicitIv, 24, 3, 0, 8),
            aead("aes256ccm8iiv", AesCcmImplicitIv, 32, 3, 0, 8),
        ]
    };

    /// The row with this name.
    pub fn by_name(name: &str) -> Option<&'static Suite> {
        Self::ALL.iter().find(|suite| suite.name == name)
    }

    /// The number of the encryption transform in IANA's registry of IKEv2 parameters; where
    /// the ICV has more than one length, each is a transform of its own.
    ///
    /// The number of the integrity transform is [`Integrity::iana`].
    pub const fn iana(&self) -> u16 {
        match self.encryption {
            Encryption::Null => 11,
            Encryption::AesCbc => 12,
            Encryption::AesCtr => 13,
            Encryption::AesCcm => match self.icv_len {
                8 => 14,
                12 => 15,
                _ => 16,
            },
            Encryption::AesGcm => match self.icv_len {
                8 => 18,
                12 => 19,
                _ => 20,
            },
            Encryption::AesGmac => 21,
            Encryption::ChaCha20Poly1305 => 28,
            Encryption::AesCcmImplicitIv => 29,
            Encryption::AesGcmImplicitIv => 30,
            Encryption::ChaCha20Poly1305ImplicitIv => 31,
        }
    }

    /// Whether the encryption transform authenticates as well.
    pub const fn is_aead(&self) -> bool {
        self.integrity.is_none()
    }
}

impl PartialEq for Suite {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Suite {}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

fn find_aead(
    encryption: Encryption,
    key_len: usize,
    icv_bits: usize,
) -> Result<&'static Suite, SuiteError> {
    let with_key = |suite: &&Suite| {
        suite.encryption == encryption && suite.key_len + suite.salt_len == key_len
    };
    if !Suite::ALL.iter().any(|suite| with_key(&suite)) {
        return Err(SuiteError::KeyLength {
            encryption,
            given: key_len,
        });
    }
    Suite::ALL
        .iter()
        .filter(with_key)
        .find(|suite| suite.icv_len * 8 == icv_bits)
        .ok_or(SuiteError::IcvLength {
            encryption,
            given: icv_bits,
        })
}

fn find_composed(
    encryption: Encryption,
    key_len: usize,
    integrity: Integrity,
) -> Result<&'static Suite, SuiteError> {
    Suite::ALL
        .iter()
        .find(|suite| {
            suite.encryption == encryption
                && suite.key_len + suite.salt_len == key_len
                && suite.integrity == Some(integrity)
        })
        .ok_or(SuiteError::KeyLength {
            encryption,
            given: key_len,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        for (index, suite) in Suite::ALL.iter().enumerate() {
            assert!(
                Suite::ALL[..index].iter().all(|other| other != suite),
                "{suite}"
            );
            assert_eq!(Suite::by_name(suite.name), Some(suite));
        }
        assert_eq!(Suite::ALL.len(), 57);
    }

    /// IANA, "Internet Key Exchange Version 2 (IKEv2) Parameters", transform type 1.
    #[test]
    fn transforms_have_their_registered_numbers() {
        for (name, number) in [
            ("null-sha1", 11),
            ("aes192-sha256", 12),
            ("aes128ctr-sha512", 13),
            ("aes128ccm8", 14),
            ("aes256ccm12", 15),
            ("aes192ccm16", 16),
            ("aes128gcm8", 18),
            ("aes192gcm12", 19),
            ("aes256gcm16", 20),
            ("aes256gmac", 21),
            ("chacha20poly1305", 28),
            ("aes128ccm8iiv", 29),
            ("aes256gcm16iiv", 30),
            ("chacha20poly1305iiv", 31),
        ] {
            assert_eq!(
                Suite::by_name(name).map(Suite::iana),
                Some(number),
                "{name}"
            );
        }
    }
}
