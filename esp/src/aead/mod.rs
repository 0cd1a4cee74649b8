//! Keyed ciphers, and the one call that seals or opens a whole batch of packets with any mix
//! of keys, suites and lengths.
//!
//! This module knows the layout of an ESP packet from the SPI to the ICV and nothing about
//! IP, associations or policy.

mod format;
mod implementation;
mod iv;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod kernel;
pub mod primitive;
mod ring;
mod rustcrypto;
mod transform;

use core::fmt;

use crate::suite::{Encryption, Suite};
use format::EspKey;
use iv::IvSource;

pub use implementation::{FORCE, Implementation};
#[cfg(target_arch = "x86_64")]
pub(crate) use kernel::{prefetch, prefetch_soon};

/// Asks for memory before it is needed, where there is an instruction for it.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn prefetch<T: ?Sized>(_value: &T, _offset: usize) {}

/// As [`prefetch`], for a little later.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn prefetch_soon<T: ?Sized>(_value: &T, _offset: usize) {}

/// One ESP packet to be sealed or opened in place.
pub struct Job<'a> {
    /// The key.
    pub cipher: &'a Cipher,
    /// The 64-bit sequence number; its low half equals the one on the wire.
    pub sequence: u64,
    /// Whether the high half of the sequence number is authenticated (RFC 4303 section 2.2.1).
    pub esn: bool,
    /// SPI, sequence number, IV, text, ICV. To be sealed: the IV is written (see
    /// [`Cipher::write_iv`]), the text is clear and ends with padding, pad length and next
    /// header, the last `icv_len` bytes are overwritten.
    pub esp: &'a mut [u8],
    /// Set by [`open_batch`]: the ICV was right and the text is clear. If it was wrong, the
    /// text has been overwritten with zeroes.
    pub authentic: bool,
}

/// A suite with its expanded key and the implementation that was chosen for it.
///
/// Shareable between threads; the key is wiped when it is dropped and never shown.
pub struct Cipher {
    suite: &'static Suite,
    implementation: Implementation,
    iv: IvSource,
    inner: Inner,
}

/// Expanded keys by implementation. The key of the fastest kernels lies within, beside the
/// state of its association; the others are boxed.
#[expect(
    clippy::large_enum_variant,
    reason = "a pointer less on the packet path of the most used suites"
)]
enum Inner {
    #[cfg(target_arch = "x86_64")]
    Kernel(kernel::GcmKey),
    #[cfg(target_arch = "x86_64")]
    ChaCha(Box<kernel::chacha20poly1305::ChaChaKey>),
    #[cfg(target_arch = "x86_64")]
    Composed(Box<kernel::composed::ComposedKey>),
    Ring(Box<EspKey<ring::Key>>),
    RustCrypto(Box<EspKey<rustcrypto::Key>>),
}

/// Why a key could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CipherError {
    /// The encryption key with its salt has the wrong length, in bytes.
    KeyLength {
        /// What the suite takes.
        expected: usize,
        /// What was given.
        given: usize,
    },
    /// The integrity key has the wrong length, in bytes.
    AuthKeyLength {
        /// What the suite takes.
        expected: usize,
        /// What was given.
        given: usize,
    },
    /// The implementation lacks the suite, or this CPU lacks what the implementation needs.
    Unsupported,
    /// The system gave no random bytes for the IV key.
    NoEntropy,
    /// The environment variable [`FORCE`] names no implementation that this CPU can run.
    Forced,
}

impl Cipher {
    /// A key with the fastest implementation that this CPU has for the suite, or with the one
    /// that [`FORCE`] demands.
    ///
    /// `key` is the encryption key followed by the salt, `auth_key` the integrity key (empty
    /// for AEADs).
    pub fn new(suite: &'static Suite, key: &[u8], auth_key: &[u8]) -> Result<Self, CipherError> {
        let implementation = Implementation::chosen(suite)?;
        Self::with_implementation(suite, key, auth_key, implementation)
    }

    /// A key with the given implementation.
    pub fn with_implementation(
        suite: &'static Suite,
        key: &[u8],
        auth_key: &[u8],
        implementation: Implementation,
    ) -> Result<Self, CipherError> {
        let expected = suite.key_len + suite.salt_len;
        if key.len() != expected {
            return Err(CipherError::KeyLength {
                expected,
                given: key.len(),
            });
        }
        if auth_key.len() != suite.auth_key_len {
            return Err(CipherError::AuthKeyLength {
                expected: suite.auth_key_len,
                given: auth_key.len(),
            });
        }
        let inner = match implementation {
            #[cfg(target_arch = "x86_64")]
            Implementation::Vaes512 | Implementation::Vaes256 | Implementation::AesNi => {
                kernel_key(suite, key, auth_key, implementation)?
            }
            #[cfg(not(target_arch = "x86_64"))]
            Implementation::Vaes512 | Implementation::Vaes256 | Implementation::AesNi => {
                return Err(CipherError::Unsupported);
            }
            Implementation::Ring => Inner::Ring(Box::new(EspKey::new(suite, key, auth_key)?)),
            Implementation::RustCrypto => {
                Inner::RustCrypto(Box::new(EspKey::new(suite, key, auth_key)?))
            }
        };
        Ok(Self {
            suite,
            implementation,
            iv: IvSource::new(suite)?,
            inner,
        })
    }

    /// The suite.
    pub const fn suite(&self) -> &'static Suite {
        self.suite
    }

    /// Who does the work.
    pub const fn implementation(&self) -> Implementation {
        self.implementation
    }

    /// The key of the AES-GCM kernels, if that is what this cipher has.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn gcm_key(&self) -> Option<&kernel::GcmKey> {
        match &self.inner {
            Inner::Kernel(key) => Some(key),
            _ => None,
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    fn chacha_key(&self) -> Option<&kernel::chacha20poly1305::ChaChaKey> {
        match &self.inner {
            Inner::ChaCha(key) => Some(key),
            _ => None,
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    fn composed_key(&self) -> Option<&kernel::composed::ComposedKey> {
        match &self.inner {
            Inner::Composed(key) => Some(key),
            _ => None,
        }
    }

    /// Writes the explicit IV of the packet with this sequence number; `iv` has the suite's
    /// `iv_len`.
    ///
    /// AES-GCM, AES-CCM, AES-CTR, AES-GMAC and ChaCha20-Poly1305 take the sequence number
    /// itself, which never repeats under one key as long as the key has one sender: distinct
    /// senders must not share a key, for their IVs would be the same and give the texts away.
    /// AES-CBC needs an IV that nobody can predict (RFC 3602 section 3) and takes the number
    /// encrypted under a random key of its own.
    pub fn write_iv(&self, sequence: u64, iv: &mut [u8]) {
        self.iv.write(sequence, iv);
    }
}

#[cfg(target_arch = "x86_64")]
fn kernel_key(
    suite: &'static Suite,
    key: &[u8],
    auth_key: &[u8],
    implementation: Implementation,
) -> Result<Inner, CipherError> {
    use kernel::{Form, GcmKey, Kernel};
    let form = match suite.encryption {
        Encryption::AesGcm => Form::Gcm,
        Encryption::AesGmac => Form::Gmac,
        Encryption::AesGcmImplicitIv => Form::ImplicitIv,
        _ => {
            return suite_key(suite, key, auth_key, implementation).ok_or(CipherError::Unsupported);
        }
    };
    let kernel = Kernel::by_name(implementation.name()).ok_or(CipherError::Unsupported)?;
    let (key, salt) = key.split_last_chunk().ok_or(CipherError::Unsupported)?;
    GcmKey::new(kernel, key, *salt, form, suite.icv_len)
        .map(Inner::Kernel)
        .ok_or(CipherError::Unsupported)
}

/// A key of the kernels for whole suites.
#[cfg(target_arch = "x86_64")]
fn suite_key(
    suite: &'static Suite,
    key: &[u8],
    auth_key: &[u8],
    implementation: Implementation,
) -> Option<Inner> {
    use kernel::chacha20poly1305::{self, ChaChaKey};
    use kernel::composed::{self, ComposedKey};
    if ChaChaKey::supports(suite) {
        let token = chacha20poly1305::Token::available(implementation)?;
        let key = ChaChaKey::new(token, key, suite.iv_len)?.with_ring(suite, key);
        Some(Inner::ChaCha(Box::new(key)))
    } else {
        let token = composed::Token::available(implementation)?;
        let key = ComposedKey::new(token, suite, key, auth_key)?;
        Some(Inner::Composed(Box::new(key)))
    }
}

/// Without the packet, which may be clear.
impl fmt::Debug for Job<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("cipher", &self.cipher)
            .field("sequence", &self.sequence)
            .field("esn", &self.esn)
            .field("esp_len", &self.esp.len())
            .field("authentic", &self.authentic)
            .finish()
    }
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cipher")
            .field("suite", &self.suite.name)
            .field("implementation", &self.implementation)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for CipherError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyLength { expected, given } => write!(
                f,
                "the encryption key with its salt has {given} bytes, the suite takes {expected}"
            ),
            Self::AuthKeyLength { expected, given } => write!(
                f,
                "the integrity key has {given} bytes, the suite takes {expected}"
            ),
            Self::Unsupported => {
                f.write_str("the implementation does not have the suite on this CPU")
            }
            Self::NoEntropy => f.write_str("the system gave no random bytes for the IV key"),
            Self::Forced => {
                write!(
                    f,
                    "{FORCE} names no implementation that this CPU can run; it can run"
                )?;
                Implementation::available().try_for_each(|able| write!(f, " {able}"))
            }
        }
    }
}

impl core::error::Error for CipherError {}

/// Encrypts every text in place and writes every ICV.
///
/// A packet that cannot be sealed, because it is shorter than header, IV and ICV or because its
/// text is no multiple of the cipher's block, is overwritten with zeroes, SPI included, so that
/// it cannot leave in clear.
pub fn seal_batch(jobs: &mut [Job<'_>]) {
    #[cfg(target_arch = "x86_64")]
    if kernel::seal(jobs) == jobs.len() {
        return;
    }
    for job in jobs {
        match &job.cipher.inner {
            #[cfg(target_arch = "x86_64")]
            Inner::Kernel(_) | Inner::ChaCha(_) | Inner::Composed(_) => {}
            Inner::Ring(key) => key.seal(job.sequence, job.esn, job.esp),
            Inner::RustCrypto(key) => key.seal(job.sequence, job.esn, job.esp),
        }
    }
}

/// Checks every ICV and decrypts every text in place; see [`Job::authentic`].
///
/// Packets may be of any length, down to none at all.
pub fn open_batch(jobs: &mut [Job<'_>]) {
    #[cfg(target_arch = "x86_64")]
    if kernel::open(jobs) == jobs.len() {
        return;
    }
    for job in jobs {
        match &job.cipher.inner {
            #[cfg(target_arch = "x86_64")]
            Inner::Kernel(_) | Inner::ChaCha(_) | Inner::Composed(_) => {}
            Inner::Ring(key) => job.authentic = key.open(job.sequence, job.esn, job.esp),
            Inner::RustCrypto(key) => job.authentic = key.open(job.sequence, job.esn, job.esp),
        }
    }
}

#[cfg(test)]
mod tests;
