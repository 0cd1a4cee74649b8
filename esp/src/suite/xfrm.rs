//! The names of `ip xfrm state add`, which are those of the Linux kernel.

use super::error::unknown;
use super::{Encryption, Integrity, Refused, Role, Suite, SuiteError, find_aead, find_composed};

/// How `ip xfrm state add` spells a suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Xfrm {
    /// `aead NAME KEY ICV_BITS`.
    Aead {
        /// The kernel's name of the AEAD.
        name: &'static str,
        /// Bits of ICV.
        icv_bits: usize,
    },
    /// `enc ENCRYPTION KEY auth-trunc INTEGRITY KEY ICV_BITS`.
    EncAuth {
        /// The kernel's name of the cipher.
        encryption: &'static str,
        /// The kernel's name of the MAC.
        integrity: &'static str,
        /// Bits of ICV.
        icv_bits: usize,
    },
}

impl Suite {
    /// The suite that `ip xfrm state add ... aead NAME KEY ICV_BITS` means; `key_len` counts the
    /// bytes of KEY, which ends with the salt.
    pub fn from_xfrm_aead(
        name: &str,
        key_len: usize,
        icv_bits: usize,
    ) -> Result<&'static Suite, SuiteError> {
        let encryption = match name {
            "rfc4106(gcm(aes))" => Encryption::AesGcm,
            "rfc4543(gcm(aes))" => Encryption::AesGmac,
            "rfc4309(ccm(aes))" => Encryption::AesCcm,
            "rfc7539esp(chacha20,poly1305)" => Encryption::ChaCha20Poly1305,
            _ => return Err(unknown(Role::Aead, name, Refused::encryption(name))),
        };
        find_aead(encryption, key_len, icv_bits)
    }

    /// The suite that `ip xfrm state add ... enc NAME KEY auth-trunc NAME KEY ICV_BITS` means,
    /// or, without `icv_bits`, `... auth NAME KEY`.
    ///
    /// `key_len` counts the bytes of the encryption key, with the salt of `rfc3686(ctr(aes))`.
    /// The kernel's short names (`aes`, `sha256`, `cipher_null`...) are known as well. Beware
    /// that `auth hmac(sha256)` alone means 96 bits to the kernel, which is no standard suite
    /// and an error here.
    pub fn from_xfrm_enc_auth(
        encryption: &str,
        key_len: usize,
        integrity: &str,
        icv_bits: Option<usize>,
    ) -> Result<&'static Suite, SuiteError> {
        let encryption = match encryption {
            "cbc(aes)" | "aes" => Encryption::AesCbc,
            "rfc3686(ctr(aes))" => Encryption::AesCtr,
            "ecb(cipher_null)" | "cipher_null" => Encryption::Null,
            name => return Err(unknown(Role::Encryption, name, Refused::encryption(name))),
        };
        // The default is what the kernel's algorithm table has beside the name.
        let (integrity, default_bits) = match integrity {
            "hmac(sha1)" | "sha1" => (Integrity::HmacSha1_96, 96),
            "hmac(sha256)" | "sha256" => (Integrity::HmacSha256_128, 96),
            "hmac(sha384)" | "sha384" => (Integrity::HmacSha384_192, 192),
            "hmac(sha512)" | "sha512" => (Integrity::HmacSha512_256, 256),
            name => return Err(unknown(Role::Integrity, name, Refused::integrity(name))),
        };
        let given = icv_bits.unwrap_or(default_bits);
        if given != integrity.icv_len() * 8 {
            return Err(SuiteError::Truncation { integrity, given });
        }
        find_composed(encryption, key_len, integrity)
    }

    /// How `ip xfrm state add` spells the suite; `None` where the kernel has no such transform.
    pub const fn xfrm(&self) -> Option<Xfrm> {
        let Some(name) = self.encryption.xfrm() else {
            return None;
        };
        let icv_bits = self.icv_len * 8;
        Some(match self.integrity {
            None => Xfrm::Aead { name, icv_bits },
            Some(integrity) => Xfrm::EncAuth {
                encryption: name,
                integrity: integrity.xfrm(),
                icv_bits,
            },
        })
    }
}

impl Encryption {
    /// The algorithm name that `ip xfrm state add` takes after `aead` or `enc`; `None` where the
    /// kernel has no such transform.
    pub const fn xfrm(self) -> Option<&'static str> {
        match self {
            Self::Null => Some("ecb(cipher_null)"),
            Self::AesCbc => Some("cbc(aes)"),
            Self::AesCtr => Some("rfc3686(ctr(aes))"),
            Self::AesCcm => Some("rfc4309(ccm(aes))"),
            Self::AesGcm => Some("rfc4106(gcm(aes))"),
            Self::AesGmac => Some("rfc4543(gcm(aes))"),
            Self::ChaCha20Poly1305 => Some("rfc7539esp(chacha20,poly1305)"),
            Self::AesGcmImplicitIv | Self::ChaCha20Poly1305ImplicitIv | Self::AesCcmImplicitIv => {
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_of_the_kernel_goes_there_and_back() {
        let mut without = 0;
        for suite in Suite::ALL {
            let key_len = suite.key_len + suite.salt_len;
            let found = match suite.xfrm() {
                Some(Xfrm::Aead { name, icv_bits }) => {
                    Suite::from_xfrm_aead(name, key_len, icv_bits)
                }
                Some(Xfrm::EncAuth {
                    encryption,
                    integrity,
                    icv_bits,
                }) => Suite::from_xfrm_enc_auth(encryption, key_len, integrity, Some(icv_bits)),
                None => {
                    assert_eq!(
                        suite.iv_len, 0,
                        "{suite}: only implicit IVs are unknown there"
                    );
                    without += 1;
                    continue;
                }
            };
            assert_eq!(found, Ok(suite));
        }
        assert_eq!(without, 7);
    }

    #[test]
    fn the_kernels_short_names_and_default_truncations() {
        let name = |enc, key_len, auth, bits| {
            Suite::from_xfrm_enc_auth(enc, key_len, auth, bits).map(|suite| suite.name)
        };
        assert_eq!(name("aes", 32, "sha1", None), Ok("aes256-sha1"));
        assert_eq!(name("aes", 16, "sha256", Some(128)), Ok("aes128-sha256"));
        assert_eq!(
            name("cbc(aes)", 24, "hmac(sha384)", None),
            Ok("aes192-sha384")
        );
        assert_eq!(
            name("cipher_null", 0, "hmac(sha512)", None),
            Ok("null-sha512")
        );
        assert_eq!(
            name("rfc3686(ctr(aes))", 20, "sha256", Some(128)),
            Ok("aes128ctr-sha256")
        );
        let error = name("aes", 16, "hmac(sha256)", None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "hmac(sha256) is truncated to 128 bits in ESP, not 96; \
             write auth-trunc 'hmac(sha256)' KEY 128"
        );
    }

    #[test]
    fn what_the_standards_forbid_is_refused() {
        for (enc, auth, refused) in [
            ("cbc(des)", "hmac(sha1)", Refused::Des),
            ("des3_ede", "hmac(sha1)", Refused::TripleDes),
            ("blowfish", "hmac(sha1)", Refused::Blowfish),
            ("cbc(cast5)", "hmac(sha1)", Refused::Cast),
            ("aes", "md5", Refused::HmacMd5),
            ("aes", "digest_null", Refused::NoIntegrity),
            ("cipher_null", "digest_null", Refused::NoIntegrity),
        ] {
            assert_eq!(
                Suite::from_xfrm_enc_auth(enc, 16, auth, None),
                Err(SuiteError::Refused(refused)),
                "{enc} {auth}"
            );
            assert!(refused.to_string().contains("RFC "));
        }
    }

    #[test]
    fn errors_name_the_value_and_the_way_out() {
        assert_eq!(
            Suite::from_xfrm_aead("rfc4106(gcm(aes))", 16, 128)
                .unwrap_err()
                .to_string(),
            "AES-GCM takes a key of 20, 28 or 36 bytes with its salt, not 16"
        );
        assert_eq!(
            Suite::from_xfrm_aead("rfc4543(gcm(aes))", 20, 64)
                .unwrap_err()
                .to_string(),
            "AES-GMAC has an ICV of 128 bits, not 64"
        );
        assert_eq!(
            Suite::from_xfrm_aead("rfc4106(gcm(sm4))", 20, 128)
                .unwrap_err()
                .to_string(),
            "no AEAD transform here is called \"rfc4106(gcm(sm4))\""
        );
        assert_eq!(
            Suite::from_xfrm_enc_auth("cbc(camellia)", 16, "sha1", None),
            Err(SuiteError::Unknown {
                role: Role::Encryption,
                name: "cbc(camellia)".into()
            })
        );
    }
}
