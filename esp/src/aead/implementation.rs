//! Who does the cryptography.

use core::fmt;

use super::format::EspKey;
#[cfg(target_arch = "x86_64")]
use super::kernel;
use super::{ring, rustcrypto};
use crate::suite::{Encryption, Suite};

/// Who does the cryptography.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Implementation {
    /// Kernels of several packets at once with AVX-512: ChaCha20-Poly1305 and its implicit-IV
    /// form.
    Vaes512,
    /// The crate `ring`: AES-128 and AES-256 GCM with an ICV of 16 bytes, AES-GMAC,
    /// ChaCha20-Poly1305, their implicit-IV forms, and NULL with an HMAC.
    Ring,
    /// The crates of the RustCrypto project: every suite, every CPU.
    RustCrypto,
}

impl Implementation {
    /// All of them, whether this CPU can run them or not.
    pub const ALL: &'static [Implementation] = &[Self::Vaes512, Self::Ring, Self::RustCrypto];

    /// Those that this CPU can run.
    pub fn available() -> impl Iterator<Item = Implementation> {
        Self::ALL
            .iter()
            .copied()
            .filter(|implementation| implementation.is_available())
    }

    /// The name by which a user selects it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vaes512 => "vaes512",
            Self::Ring => "ring",
            Self::RustCrypto => "rustcrypto",
        }
    }

    /// The implementation with this name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|implementation| implementation.name() == name)
    }

    /// Whether this CPU can run it.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Vaes512 => {
                kernel::chacha20poly1305::Avx512::detect().is_some()
                    && kernel::composed::Vaes::detect().is_some()
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Vaes512 => false,
            Self::Ring | Self::RustCrypto => true,
        }
    }

    /// Whether it has the suite, on a CPU that can run it.
    pub fn supports(self, suite: &Suite) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Vaes512 => {
                kernel::composed::ComposedKey::supports(suite)
                    || matches!(
                        suite.encryption,
                        Encryption::ChaCha20Poly1305 | Encryption::ChaCha20Poly1305ImplicitIv
                    )
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Vaes512 => false,
            Self::Ring => EspKey::<ring::Key>::supports(suite),
            Self::RustCrypto => EspKey::<rustcrypto::Key>::supports(suite),
        }
    }

    /// The fastest that this CPU has for the suite.
    ///
    /// Of the two, `ring` encrypts faster. RustCrypto is faster at what only authenticates:
    /// its GHASH takes additional data several blocks at a time, its SHA-1 and SHA-2 use the
    /// instructions for them, and AES-GMAC with ESN needs no byte moved.
    pub fn fastest(suite: &Suite) -> Self {
        if Self::Vaes512.is_available() && Self::Vaes512.supports(suite) {
            return Self::Vaes512;
        }
        match suite.encryption {
            Encryption::AesGmac | Encryption::Null => Self::RustCrypto,
            _ if Self::Ring.supports(suite) => Self::Ring,
            _ => Self::RustCrypto,
        }
    }
}

impl fmt::Display for Implementation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
