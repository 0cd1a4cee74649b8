//! What RFC 8221 and RFC 9395 forbid: recognised by name, refused with the reason.

use core::fmt;

/// An algorithm, or a lack of one, that an ESP association must not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refused {
    /// DES-CBC (RFC 2405): a key of 56 bits.
    Des,
    /// 3DES-CBC (RFC 2451): blocks of 64 bits.
    TripleDes,
    /// Blowfish-CBC (RFC 2451): blocks of 64 bits.
    Blowfish,
    /// CAST-128-CBC (RFC 2451): blocks of 64 bits.
    Cast,
    /// HMAC-MD5-96 (RFC 2403).
    HmacMd5,
    /// No integrity protection, whether the text is encrypted or not.
    NoIntegrity,
}

impl Refused {
    pub(super) fn encryption(name: &str) -> Option<Self> {
        match name {
            "cbc(des)" | "des" | "DES-CBC [RFC2405]" => Some(Self::Des),
            "cbc(des3_ede)" | "des3_ede" | "TripleDES-CBC [RFC2451]" => Some(Self::TripleDes),
            "cbc(blowfish)" | "blowfish" | "BLOWFISH-CBC [RFC2451]" => Some(Self::Blowfish),
            "cbc(cast5)" | "cast5" | "cbc(cast128)" | "cast128" | "CAST5-CBC [RFC2144]" => {
                Some(Self::Cast)
            }
            _ => None,
        }
    }

    pub(super) fn integrity(name: &str) -> Option<Self> {
        match name {
            "hmac(md5)" | "md5" | "HMAC-MD5-96 [RFC2403]" => Some(Self::HmacMd5),
            "digest_null" | "NULL" => Some(Self::NoIntegrity),
            _ => None,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Des => {
                "DES is refused: RFC 8221 section 5 forbids it, its key has only 56 bits; use AES-GCM"
            }
            Self::TripleDes => {
                "3DES is refused: RFC 8221 section 5 advises against it, its blocks of 64 bits \
                 collide after a few gigabytes; use AES-GCM"
            }
            Self::Blowfish => {
                "Blowfish is refused: RFC 8221 section 5 forbids it, its blocks of 64 bits \
                 collide after a few gigabytes; use AES-GCM"
            }
            Self::Cast => {
                "CAST is refused: RFC 9395 deprecates it, its blocks of 64 bits collide after a \
                 few gigabytes; use AES-GCM"
            }
            Self::HmacMd5 => {
                "HMAC-MD5 is refused: RFC 8221 section 6 forbids it; use HMAC-SHA2-256-128"
            }
            Self::NoIntegrity => {
                "ESP without integrity is refused: RFC 8221 section 4 forbids it, unauthenticated \
                 text can be altered and decrypted by an attacker; use an AEAD or add an HMAC"
            }
        })
    }
}

impl core::error::Error for Refused {}
