//! `aead`, `enc`, `auth` and `auth-trunc`: which together name a suite and carry its keys.

use vesper_esp::Suite;
use zeroize::Zeroizing;

use super::{Keys, Reason};

type Key = Zeroizing<Vec<u8>>;

/// The algorithms of a line, as far as they have been read.
#[derive(Default)]
pub(super) struct Algorithms {
    aead: Option<(String, Key, u32)>,
    encryption: Option<(String, Key)>,
    integrity: Option<(String, Key, Option<u32>)>,
}

impl Algorithms {
    /// Adds `kind NAME KEY [BITS]`; `bits` is there for `aead` and `auth-trunc`.
    pub(super) fn add(
        &mut self,
        kind: &str,
        name: &str,
        key: Key,
        bits: Option<u32>,
    ) -> Result<(), Reason> {
        let name = name.to_owned();
        let twice = match kind {
            "aead" => self.aead.replace((name, key, bits.unwrap_or(0))).is_some(),
            "enc" => self.encryption.replace((name, key)).is_some(),
            _ => self.integrity.replace((name, key, bits)).is_some(),
        };
        if twice {
            return Err(Reason::Twice);
        }
        if self.aead.is_some() && (self.encryption.is_some() || self.integrity.is_some()) {
            return Err(Reason::Unsupported(
                "aead encrypts and authenticates; it stands alone, without enc and auth",
            ));
        }
        Ok(())
    }

    /// The suite with its keys, or the word to blame.
    pub(super) fn keys(self) -> Result<Keys, (&'static str, Reason)> {
        let algorithm = |word, error| (word, Reason::Algorithm(error));
        let none = || Key::new(Vec::new());
        match (self.aead, self.encryption, self.integrity) {
            (Some((name, key, bits)), _, _) => {
                let suite = Suite::from_xfrm_aead(&name, key.len(), bits as usize)
                    .map_err(|error| algorithm("aead", error))?;
                Keys::new(suite, key, none()).map_err(|reason| ("aead", reason))
            }
            (None, Some((name, key)), integrity) => {
                // The kernel's name for no integrity at all, which the suites refuse.
                let (auth_name, auth_key, bits) =
                    integrity.unwrap_or_else(|| ("digest_null".to_owned(), none(), None));
                let bits = bits.map(|bits| bits as usize);
                let suite = Suite::from_xfrm_enc_auth(&name, key.len(), &auth_name, bits)
                    .map_err(|error| algorithm(blame(&error), error))?;
                Keys::new(suite, key, auth_key).map_err(|reason| ("auth-trunc", reason))
            }
            (None, None, _) => Err(("aead", Reason::Missing)),
        }
    }
}

/// Whether `enc` or the word beside it is at fault.
fn blame(error: &vesper_esp::SuiteError) -> &'static str {
    use vesper_esp::{Refused, Role, SuiteError};
    match error {
        SuiteError::Truncation { .. }
        | SuiteError::Unknown {
            role: Role::Integrity,
            ..
        }
        | SuiteError::Refused(Refused::HmacMd5 | Refused::NoIntegrity) => "auth-trunc",
        _ => "enc",
    }
}
