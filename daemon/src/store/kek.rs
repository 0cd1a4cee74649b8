//! The key-encryption key, and what is derived from it.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use vesper_verify::xfrm::Keys;
use zeroize::{Zeroize, Zeroizing};

use crate::secret_file;

use super::{Fingerprint, StoreError};

/// The key that all keys in the store are encrypted with: 256 bits from a file, which may be a
/// systemd credential. Wiped when dropped, never shown.
#[derive(Clone)]
pub struct Kek(Zeroizing<[u8; 32]>);

/// Why there is no key-encryption key.
#[derive(Debug)]
#[non_exhaustive]
pub enum KekError {
    /// The file could not be read or written.
    Io {
        /// The file.
        file: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The file is not a regular file.
    NotAFile(PathBuf),
    /// Others than its owner may read or change the file.
    Mode {
        /// The file.
        file: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file belongs to somebody else, who could replace it.
    Owner {
        /// The file.
        file: PathBuf,
        /// The user id of its owner.
        owner: u32,
    },
    /// The file holds neither 32 bytes nor 64 hexadecimal digits.
    Length {
        /// The file.
        file: PathBuf,
        /// Bytes that it holds, as far as was read.
        found: usize,
    },
    /// It does not exist.
    Missing {
        /// The file.
        file: PathBuf,
        /// There is a store that was written with it.
        is_needed: bool,
    },
    /// The system has no randomness to give.
    Random,
}

const KEY_LEN: usize = 32;

impl Kek {
    /// Reads the key: 32 bytes, or 64 hexadecimal digits with or without a line end. The file
    /// must belong to this user or to root, and be closed to everybody else.
    pub fn read(path: &Path) -> Result<Self, KekError> {
        let io = |error| KekError::Io {
            file: path.to_owned(),
            error,
        };
        // A pipe that nobody writes into is no reason to wait.
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        let mut file = options.open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(KekError::NotAFile(path.to_owned()));
        }
        if secret_file::is_open_to_others(path, &metadata) {
            return Err(KekError::Mode {
                file: path.to_owned(),
                mode: metadata.mode() & 0o7777,
            });
        }
        let me = rustix::process::geteuid().as_raw();
        if metadata.uid() != me && metadata.uid() != 0 {
            return Err(KekError::Owner {
                file: path.to_owned(),
                owner: metadata.uid(),
            });
        }
        let mut bytes = Zeroizing::new([0; 2 * KEY_LEN + 3]);
        let mut found = 0;
        loop {
            match file.read(&mut bytes[found..]) {
                Ok(0) => break,
                Ok(read) => found += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io(error)),
            }
        }
        Self::parse(&bytes[..found]).ok_or(KekError::Length {
            file: path.to_owned(),
            found,
        })
    }

    /// Reads the key, or makes a new one in a file that only this user can read.
    pub fn read_or_create(path: &Path) -> Result<Self, KekError> {
        match Self::read(path) {
            Err(KekError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {}
            outcome => return outcome,
        }
        let io = |error| KekError::Io {
            file: path.to_owned(),
            error,
        };
        let kek = Self::random()?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(io)?;
        file.write_all(&*kek.0).map_err(io)?;
        file.sync_all().map_err(io)?;
        if let Some(directory) = path.parent().filter(|parent| *parent != Path::new("")) {
            File::open(directory)
                .and_then(|directory| directory.sync_all())
                .map_err(io)?;
        }
        Ok(kek)
    }

    /// A new key that is kept nowhere.
    pub fn random() -> Result<Self, KekError> {
        let mut key = Zeroizing::new([0; KEY_LEN]);
        getrandom::fill(&mut *key).map_err(|_| KekError::Random)?;
        Ok(Self(key))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut key = Zeroizing::new([0; KEY_LEN]);
        if bytes.len() == KEY_LEN {
            key.copy_from_slice(bytes);
            return Some(Self(key));
        }
        let digits = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let digits = digits.strip_suffix(b"\r").unwrap_or(digits);
        if digits.len() != 2 * KEY_LEN {
            return None;
        }
        for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |digit: u8| char::from(digit).to_digit(16);
            *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
        }
        Some(Self(key))
    }
}

impl KekError {
    /// Says of a file that does not exist what it is needed for.
    pub(super) fn or_missing(self, is_needed: bool) -> Self {
        match self {
            Self::Io { file, error } if error.kind() == io::ErrorKind::NotFound => {
                Self::Missing { file, is_needed }
            }
            other => other,
        }
    }
}

impl fmt::Debug for Kek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kek")
    }
}

impl fmt::Display for KekError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { file, error } => {
                write!(f, "key-encryption key {}: {error}", file.display())
            }
            Self::NotAFile(file) => write!(
                f,
                "key-encryption key {}: not a regular file",
                file.display()
            ),
            Self::Mode { file, mode } => write!(
                f,
                "key-encryption key {}: mode {mode:04o} lets others read or change it; \
                 run `chmod 0600 {}`",
                file.display(),
                file.display()
            ),
            Self::Owner { file, owner } => write!(
                f,
                "key-encryption key {}: belongs to user {owner}, who could replace it; \
                 it should belong to root or to the user of the daemon",
                file.display()
            ),
            Self::Length { file, found } => write!(
                f,
                "key-encryption key {}: {found} bytes, but a key is 32 bytes or 64 hexadecimal \
                 digits",
                file.display()
            ),
            Self::Missing { file, is_needed } => {
                let way_out = match is_needed {
                    true => {
                        "put back the one that the store was written with; if it is lost, remove \
                         the store and its anchor, and replace the keys of all associations"
                    }
                    false => "make it known to the service, with LoadCredential=",
                };
                write!(
                    f,
                    "key-encryption key {}: does not exist; {way_out}",
                    file.display()
                )
            }
            Self::Random => f.write_str("key-encryption key: the system gives no random numbers"),
        }
    }
}

impl std::error::Error for KekError {}

/// What the key-encryption key is used for, each with a key of its own.
pub(super) struct StoreKeys {
    wrap: Aes256Gcm,
    fingerprint: Zeroizing<[u8; 32]>,
    seal: Zeroizing<[u8; 32]>,
}

/// Bytes of the nonce in front of a wrapped record.
const NONCE_LEN: usize = 12;

/// Bytes of a seal.
pub(super) const SEAL_LEN: usize = 16;

impl StoreKeys {
    pub(super) fn derive(kek: &Kek) -> Self {
        let hkdf = Hkdf::<Sha256>::new(Some(b"vesper store"), &*kek.0);
        let expand = |info: &[u8]| {
            let mut key = Zeroizing::new([0; 32]);
            hkdf.expand(info, &mut *key)
                .expect("32 bytes are less than the 8,160 that HKDF-SHA-256 gives");
            key
        };
        Self {
            wrap: Aes256Gcm::new((&*expand(b"wrap keys")).into()),
            fingerprint: expand(b"fingerprint keys"),
            seal: expand(b"seal records"),
        }
    }

    /// Encrypts words with the keys in them; `name` is authenticated with them.
    pub(super) fn wrap(&self, name: &[u8], words: &str) -> Result<Vec<u8>, StoreError> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|_| StoreError::Random)?;
        let payload = Payload {
            msg: words.as_bytes(),
            aad: name,
        };
        let text = self
            .wrap
            .encrypt(&Nonce::from(nonce), payload)
            .map_err(|_| StoreError::Damaged { table: "sas" })?;
        let mut wrapped = nonce.to_vec();
        wrapped.extend_from_slice(&text);
        Ok(wrapped)
    }

    pub(super) fn unwrap(&self, name: &[u8], wrapped: &[u8]) -> Option<Zeroizing<String>> {
        let (nonce, text) = wrapped.split_first_chunk::<NONCE_LEN>()?;
        let payload = Payload {
            msg: text,
            aad: name,
        };
        let words = self.wrap.decrypt(&Nonce::from(*nonce), payload).ok()?;
        match String::from_utf8(words) {
            Ok(words) => Some(Zeroizing::new(words)),
            Err(error) => {
                error.into_bytes().zeroize();
                None
            }
        }
    }

    /// A hash of the encryption key with its salt, or of the authentication key if there is
    /// none: equal for two suites that would use the same key with the same nonces.
    pub(super) fn fingerprint(&self, keys: &Keys) -> Fingerprint {
        let (key, auth_key) = keys.expose();
        let used = if key.is_empty() { auth_key } else { key };
        Fingerprint(mac(&self.fingerprint, &[used]))
    }

    /// Proves that a record was written by a holder of the key-encryption key.
    pub(super) fn seal(&self, table: &str, parts: &[&[u8]]) -> [u8; SEAL_LEN] {
        let mut all = vec![table.as_bytes(), b"\0"];
        all.extend_from_slice(parts);
        mac(&self.seal, &all)
    }
}

fn mac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 16] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    let whole: [u8; 32] = mac.finalize().into_bytes().into();
    let mut half = [0; 16];
    half.copy_from_slice(&whole[..16]);
    half
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn keys(words: &str) -> Keys {
        let text = format!("src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1000 {words}");
        let entries = vesper_verify::xfrm::parse(&text, "test").unwrap();
        entries[0].keys().clone()
    }

    #[test]
    fn a_key_file_has_one_of_two_forms() {
        let raw: Vec<u8> = (0..32).collect();
        let hex: String = raw.iter().map(|byte| format!("{byte:02X}")).collect();
        for text in [
            raw.clone(),
            hex.clone().into_bytes(),
            format!("{hex}\n").into_bytes(),
            format!("{hex}\r\n").into_bytes(),
        ] {
            assert_eq!(Kek::parse(&text).unwrap().0.as_slice(), raw);
        }
        for text in [
            "",
            "00",
            &hex[1..],
            &format!("{hex}0"),
            &hex.replace('0', "g"),
        ] {
            assert!(Kek::parse(text.as_bytes()).is_none(), "{text:?}");
        }
    }

    #[test]
    fn a_key_file_is_closed_to_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kek");
        let made = Kek::read_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(*Kek::read(&path).unwrap().0, *made.0);
        for mode in [0o640, 0o604, 0o660] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let refused = Kek::read(&path).unwrap_err();
            assert!(matches!(refused, KekError::Mode { mode: found, .. } if found == mode));
            assert!(refused.to_string().contains("chmod 0600"));
        }
        assert!(matches!(
            Kek::read(directory.path()),
            Err(KekError::NotAFile(_))
        ));
        assert_eq!(format!("{made:?}"), "Kek");
    }

    #[test]
    fn wrapped_words_belong_to_their_name_and_key() {
        let store = StoreKeys::derive(&Kek::parse(&[1; 32]).unwrap());
        let wrapped = store.wrap(b"name", "the words").unwrap();
        assert!(!wrapped.windows(5).any(|window| window == b"words"));
        assert_eq!(&**store.unwrap(b"name", &wrapped).unwrap(), "the words");
        assert!(store.unwrap(b"other", &wrapped).is_none());
        assert_ne!(store.wrap(b"name", "the words").unwrap(), wrapped);
        let other = StoreKeys::derive(&Kek::parse(&[2; 32]).unwrap());
        assert!(other.unwrap(b"name", &wrapped).is_none());
        for index in 0..wrapped.len() {
            let mut changed = wrapped.clone();
            changed[index] ^= 1;
            assert!(store.unwrap(b"name", &changed).is_none());
            assert!(store.unwrap(b"name", &wrapped[..index]).is_none());
        }
    }

    #[test]
    fn one_key_in_two_suites_has_one_fingerprint() {
        let store = StoreKeys::derive(&Kek::parse(&[1; 32]).unwrap());
        let key = "0x000102030405060708090a0b0c0d0e0f10111213";
        let gcm = keys(&format!("aead 'rfc4106(gcm(aes))' {key} 128"));
        let short = keys(&format!("aead 'rfc4106(gcm(aes))' {key} 64"));
        let other = keys(&format!(
            "aead 'rfc4106(gcm(aes))' {} 128",
            key.replace("13", "14")
        ));
        assert_eq!(store.fingerprint(&gcm), store.fingerprint(&short));
        assert_ne!(store.fingerprint(&gcm), store.fingerprint(&other));
    }
}
