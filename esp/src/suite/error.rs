//! Why names and lengths give no suite.

use core::fmt;

use super::{Encryption, Integrity, Refused, Suite};

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

pub(super) fn unknown(role: Role, name: &str, refused: Option<Refused>) -> SuiteError {
    match refused {
        Some(refused) => SuiteError::Refused(refused),
        None => SuiteError::Unknown {
            role,
            name: name.into(),
        },
    }
}
