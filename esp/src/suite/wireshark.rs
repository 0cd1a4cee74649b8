//! The texts of Wireshark's table `esp_sa`.

use super::error::unknown;
use super::{Encryption, Integrity, Refused, Role, Suite, SuiteError, find_aead, find_composed};

impl Suite {
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
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
