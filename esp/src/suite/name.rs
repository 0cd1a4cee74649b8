//! From the names that others use to a row of the table, and back.

use core::fmt;

use super::{Encryption, Integrity, Refused, Suite};

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

/// What a name was given for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Encryption and integrity in one.
    Aead,
    /// Encryption alone.
    Encryption,
    /// Integrity alone.
    Integrity,
}

/// Why names and lengths give no suite.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SuiteError {
    /// The standards forbid it.
    Refused(Refused),
    /// No transform of this library has this name.
    Unknown {
        /// What the name was given for.
        role: Role,
        /// The name.
        name: Box<str>,
    },
    /// The transform has no such key length.
    KeyLength {
        /// The transform.
        encryption: Encryption,
        /// Bytes that were given, salt included.
        given: usize,
    },
    /// The encryption transform has no such ICV length.
    IcvLength {
        /// The transform.
        encryption: Encryption,
        /// Bits that were given.
        given: usize,
    },
    /// The integrity transform is not truncated like this.
    Truncation {
        /// The transform.
        integrity: Integrity,
        /// Bits that were given, or that the kernel takes where none are given.
        given: usize,
    },
    /// `AES-GCM [RFC4106]` says nothing about the ICV, and the authentication column does not
    /// say it either.
    IcvUnstated,
    /// An AEAD was combined with an integrity transform.
    IntegrityBesideAead {
        /// The AEAD.
        encryption: Encryption,
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

    /// The suite of a line of Wireshark's `esp_sa` table, by the texts of its encryption and
    /// authentication columns; `key_len` counts the bytes of the encryption key with its salt.
    pub fn from_wireshark(
        encryption: &str,
        key_len: usize,
        authentication: &str,
    ) -> Result<&'static Suite, SuiteError> {
        let unchecked_bits = match authentication {
            "ANY 64 bit authentication [no checking]" => Some(64),
            "ANY 96 bit authentication [no checking]" => Some(96),
            "ANY 128 bit authentication [no checking]" => Some(128),
            "ANY 192 bit authentication [no checking]" => Some(192),
            "ANY 256 bit authentication [no checking]" => Some(256),
            _ => None,
        };
        let aead = match encryption {
            "AES-GCM with 8 octet ICV [RFC4106]" => Some((Encryption::AesGcm, Some(64))),
            "AES-GCM with 12 octet ICV [RFC4106]" => Some((Encryption::AesGcm, Some(96))),
            "AES-GCM with 16 octet ICV [RFC4106]" => Some((Encryption::AesGcm, Some(128))),
            "AES-GCM [RFC4106]" => Some((Encryption::AesGcm, unchecked_bits)),
            "AES-GCM with IIV and 16 octet ICV [RFC4106 & RFC8750]" => {
                Some((Encryption::AesGcmImplicitIv, Some(128)))
            }
            "ChaCha20 with Poly1305 [RFC7634]" => Some((Encryption::ChaCha20Poly1305, Some(128))),
            "ChaCha20 with Poly1305 and IIV [RFC7634 & RFC8750]" => {
                Some((Encryption::ChaCha20Poly1305ImplicitIv, Some(128)))
            }
            _ => None,
        };
        if let Some((encryption, icv_bits)) = aead {
            if authentication != "NULL" && unchecked_bits.is_none() {
                return Err(SuiteError::IntegrityBesideAead { encryption });
            }
            return find_aead(
                encryption,
                key_len,
                icv_bits.ok_or(SuiteError::IcvUnstated)?,
            );
        }
        let encryption = match encryption {
            "NULL" => Encryption::Null,
            "AES-CBC [RFC3602]" => Encryption::AesCbc,
            "AES-CTR [RFC3686]" => Encryption::AesCtr,
            name => return Err(unknown(Role::Encryption, name, Refused::encryption(name))),
        };
        let integrity = match authentication {
            "HMAC-SHA-1-96 [RFC2404]" => Integrity::HmacSha1_96,
            "HMAC-SHA-256-128 [RFC4868]" => Integrity::HmacSha256_128,
            "HMAC-SHA-384-192 [RFC4868]" => Integrity::HmacSha384_192,
            "HMAC-SHA-512-256 [RFC4868]" => Integrity::HmacSha512_256,
            "HMAC-SHA-256-96 [draft-ietf-ipsec-ciph-sha-256-00]" => {
                return Err(SuiteError::Truncation {
                    integrity: Integrity::HmacSha256_128,
                    given: 96,
                });
            }
            _ if unchecked_bits.is_some() => {
                return Err(SuiteError::Refused(Refused::NoIntegrity));
            }
            name => return Err(unknown(Role::Integrity, name, Refused::integrity(name))),
        };
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

impl fmt::Display for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Null => "NULL",
            Self::AesCbc => "AES-CBC",
            Self::AesCtr => "AES-CTR",
            Self::AesCcm => "AES-CCM",
            Self::AesGcm => "AES-GCM",
            Self::AesGmac => "AES-GMAC",
            Self::ChaCha20Poly1305 => "ChaCha20-Poly1305",
            Self::AesGcmImplicitIv => "AES-GCM with implicit IV",
            Self::ChaCha20Poly1305ImplicitIv => "ChaCha20-Poly1305 with implicit IV",
            Self::AesCcmImplicitIv => "AES-CCM with implicit IV",
        })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aead => "AEAD",
            Self::Encryption => "encryption",
            Self::Integrity => "integrity",
        })
    }
}

impl fmt::Display for SuiteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refused) => refused.fmt(f),
            Self::Unknown { role, name } => {
                write!(f, "no {role} transform here is called {name:?}")
            }
            Self::KeyLength { encryption, given } => {
                write!(
                    f,
                    "{encryption} takes a key of {} bytes with its salt, not {given}",
                    Lengths::of(*encryption, |suite| suite.key_len + suite.salt_len)
                )
            }
            Self::IcvLength { encryption, given } => {
                write!(
                    f,
                    "{encryption} has an ICV of {} bits, not {given}",
                    Lengths::of(*encryption, |suite| suite.icv_len * 8)
                )
            }
            Self::Truncation { integrity, given } => {
                let bits = integrity.icv_len() * 8;
                let name = integrity.xfrm();
                write!(
                    f,
                    "{name} is truncated to {bits} bits in ESP, not {given}; \
                     write auth-trunc '{name}' KEY {bits}"
                )
            }
            Self::IcvUnstated => f.write_str(
                "\"AES-GCM [RFC4106]\" does not say how long the ICV is; \
                 write \"AES-GCM with 16 octet ICV [RFC4106]\" or its 8 or 12 octet form",
            ),
            Self::IntegrityBesideAead { encryption } => write!(
                f,
                "{encryption} has its own integrity; the authentication column must be NULL"
            ),
        }
    }
}

impl core::error::Error for SuiteError {}

/// The lengths that an encryption transform has in the table, as text: `20, 28 or 36`.
struct Lengths {
    encryption: Encryption,
    length: fn(&Suite) -> usize,
}

impl Lengths {
    fn of(encryption: Encryption, length: fn(&Suite) -> usize) -> Self {
        Self { encryption, length }
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = Suite::ALL
            .iter()
            .filter(|suite| suite.encryption == self.encryption);
        let mut lengths: Vec<usize> = rows.map(self.length).collect();
        lengths.sort_unstable();
        lengths.dedup();
        for (index, length) in lengths.iter().enumerate() {
            let separator = match index {
                0 => "",
                _ if index + 1 == lengths.len() => " or ",
                _ => ", ",
            };
            write!(f, "{separator}{length}")?;
        }
        Ok(())
    }
}

fn unknown(role: Role, name: &str, refused: Option<Refused>) -> SuiteError {
    match refused {
        Some(refused) => SuiteError::Refused(refused),
        None => SuiteError::Unknown {
            role,
            name: name.into(),
        },
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
    fn wireshark_texts() {
        let name =
            |enc, key_len, auth| Suite::from_wireshark(enc, key_len, auth).map(|suite| suite.name);
        assert_eq!(
            name("AES-GCM with 16 octet ICV [RFC4106]", 36, "NULL"),
            Ok("aes256gcm16")
        );
        assert_eq!(
            name("AES-GCM with 8 octet ICV [RFC4106]", 20, "NULL"),
            Ok("aes128gcm8")
        );
        assert_eq!(
            name(
                "AES-GCM [RFC4106]",
                28,
                "ANY 96 bit authentication [no checking]"
            ),
            Ok("aes192gcm12")
        );
        assert_eq!(
            name("AES-GCM [RFC4106]", 28, "NULL"),
            Err(SuiteError::IcvUnstated)
        );
        assert_eq!(
            name("ChaCha20 with Poly1305 [RFC7634]", 36, "NULL"),
            Ok("chacha20poly1305")
        );
        assert_eq!(
            name(
                "AES-GCM with IIV and 16 octet ICV [RFC4106 & RFC8750]",
                20,
                "NULL"
            ),
            Ok("aes128gcm16iiv")
        );
        assert_eq!(
            name("AES-CBC [RFC3602]", 16, "HMAC-SHA-1-96 [RFC2404]"),
            Ok("aes128-sha1")
        );
        assert_eq!(
            name("AES-CTR [RFC3686]", 36, "HMAC-SHA-512-256 [RFC4868]"),
            Ok("aes256ctr-sha512")
        );
        assert_eq!(
            name("NULL", 0, "HMAC-SHA-384-192 [RFC4868]"),
            Ok("null-sha384")
        );
        assert!(name("AES-CBC [RFC3602]", 16, "AES-GCM [RFC4106]").is_err());
        assert_eq!(
            name(
                "AES-GCM with 16 octet ICV [RFC4106]",
                36,
                "HMAC-SHA-1-96 [RFC2404]"
            ),
            Err(SuiteError::IntegrityBesideAead {
                encryption: Encryption::AesGcm
            })
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
        for (enc, auth, refused) in [
            ("TripleDES-CBC [RFC2451]", "NULL", Refused::TripleDes),
            ("AES-CBC [RFC3602]", "NULL", Refused::NoIntegrity),
            ("NULL", "NULL", Refused::NoIntegrity),
            (
                "AES-CBC [RFC3602]",
                "ANY 96 bit authentication [no checking]",
                Refused::NoIntegrity,
            ),
            ("NULL", "HMAC-MD5-96 [RFC2403]", Refused::HmacMd5),
        ] {
            assert_eq!(
                Suite::from_wireshark(enc, 16, auth),
                Err(SuiteError::Refused(refused)),
                "{enc} {auth}"
            );
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
