//! Who does the cryptography.

use core::fmt;
use std::env;
use std::sync::OnceLock;

use super::CipherError;
use super::format::EspKey;
#[cfg(target_arch = "x86_64")]
use super::kernel::{
    Kernel,
    chacha20poly1305::{self, ChaChaKey},
    composed::{self, ComposedKey},
};
use super::{ring, rustcrypto};
use crate::suite::{Encryption, Suite};

/// The environment variable that forces one implementation upon the whole process, for tests
/// and for operators with a broken CPU: the name of one, read once.
///
/// Suites that it does not have are left to the libraries, never to a kernel of another level.
pub const FORCE: &str = "VESPER_KERNEL";

/// Who does the cryptography.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Implementation {
    /// Kernels for CPUs with AVX-512, VAES and VPCLMULQDQ: AES-GCM and AES-GMAC; with IFMA also
    /// ChaCha20-Poly1305 and its implicit-IV form; AES-CBC, AES-CTR and NULL with an HMAC, of
    /// which those of SHA-1 and SHA-256 need the instructions for them.
    Vaes512,
    /// Kernels for CPUs with AVX2, VAES and VPCLMULQDQ: AES-GCM and AES-GMAC; all else as with
    /// AES-NI.
    Vaes256,
    /// Kernels for CPUs with AES-NI and PCLMULQDQ: AES-GCM and AES-GMAC; with AVX2 also
    /// ChaCha20-Poly1305 and its implicit-IV form, of which `ring` does long texts; AES-CBC, AES-CTR and
    /// NULL with an HMAC, of which SHA-1 needs the instructions for it, SHA-256 these or AVX2, the
    /// longer ones AVX2.
    AesNi,
    /// The crate `ring`: AES-128 and AES-256 GCM with an ICV of 16 bytes, AES-GMAC,
    /// ChaCha20-Poly1305, their implicit-IV forms, and NULL with an HMAC.
    Ring,
    /// The crates of the RustCrypto project: every suite, every CPU.
    RustCrypto,
}

impl Implementation {
    /// All of them, whether this CPU can run them or not.
    pub const ALL: &'static [Implementation] = &[
        Self::Vaes512,
        Self::Vaes256,
        Self::AesNi,
        Self::Ring,
        Self::RustCrypto,
    ];

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
            Self::Vaes256 => "vaes256",
            Self::AesNi => "aesni",
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
            Self::Vaes512 | Self::Vaes256 | Self::AesNi => Kernel::by_name(self.name()).is_some(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Vaes512 | Self::Vaes256 | Self::AesNi => false,
            Self::Ring | Self::RustCrypto => true,
        }
    }

    /// Whether it has the suite, on a CPU that can run it.
    pub fn supports(self, suite: &Suite) -> bool {
        match self {
            Self::Vaes512 | Self::Vaes256 | Self::AesNi => {
                let gcm = matches!(
                    suite.encryption,
                    Encryption::AesGcm | Encryption::AesGmac | Encryption::AesGcmImplicitIv
                );
                gcm || self.has_kernel(suite)
            }
            Self::Ring => EspKey::<ring::Key>::supports(suite),
            Self::RustCrypto => EspKey::<rustcrypto::Key>::supports(suite),
        }
    }

    /// Whether it has a kernel for a suite without AES-GCM, and the CPU what this one needs.
    #[cfg(target_arch = "x86_64")]
    fn has_kernel(self, suite: &Suite) -> bool {
        if ChaChaKey::supports(suite) {
            chacha20poly1305::Token::available(self).is_some()
        } else {
            composed::Token::available(self)
                .is_some_and(|token| ComposedKey::supports(token, suite))
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn has_kernel(self, _: &Suite) -> bool {
        false
    }

    /// The fastest that this CPU has for the suite.
    pub fn fastest(suite: &Suite) -> Self {
        [Self::Vaes512, Self::Vaes256, Self::AesNi]
            .into_iter()
            .find(|kernel| kernel.supports(suite) && kernel.is_available())
            .unwrap_or_else(|| Self::library(suite))
    }

    /// The implementation that [`FORCE`] demands for the suite, or else the fastest.
    pub(super) fn chosen(suite: &Suite) -> Result<Self, CipherError> {
        static FORCED: OnceLock<Option<Result<Implementation, CipherError>>> = OnceLock::new();
        let forced = FORCED.get_or_init(|| {
            let name = env::var_os(FORCE).filter(|name| !name.is_empty())?;
            let named = name.to_str().and_then(Self::by_name);
            let able = named.filter(|implementation| implementation.is_available());
            Some(able.ok_or(CipherError::Forced))
        });
        match forced {
            None => Ok(Self::fastest(suite)),
            Some(Err(error)) => Err(*error),
            Some(Ok(forced)) if forced.supports(suite) => Ok(*forced),
            Some(Ok(_)) => Ok(Self::library(suite)),
        }
    }

    /// The library that is faster at the suite.
    ///
    /// `ring` encrypts faster. RustCrypto is faster at what only authenticates: its GHASH takes
    /// additional data several blocks at a time, its SHA-1 and SHA-2 use the instructions for
    /// them, and AES-GMAC with ESN needs no byte moved.
    fn library(suite: &Suite) -> Self {
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
