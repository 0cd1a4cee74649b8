//! Why something was not done: the word, the value, and the way out.

use std::fmt;

use vesper_verify::xfrm::SaFileError;

use super::PersistenceError;
use crate::node::Stopped;

/// Why something was not done. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What kind of reason it is.
    pub kind: Kind,
    /// The word that is at fault; empty if no word is.
    pub word: String,
    /// Its value; empty if it has none. Never a key.
    pub value: String,
    /// What is wrong.
    pub reason: String,
    /// The way out.
    pub remedy: String,
}

/// The kinds of reasons, which decide about HTTP and exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What was asked makes no sense.
    Words,
    /// There is no such thing, or it is not for the asker.
    NotFound,
    /// The asker may not do this.
    NotPermitted,
    /// It contradicts what there is: exists already, in use, quota used up.
    Conflict,
    /// The daemon can not do it now.
    Unavailable,
}

impl Refusal {
    /// What was asked makes no sense.
    pub fn words(
        word: &str,
        value: impl fmt::Display,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(Kind::Words, word, value, reason, remedy)
    }

    /// There is no such thing, or it is not for the asker.
    pub fn not_found(word: &str, value: impl fmt::Display) -> Self {
        Self::new(
            Kind::NotFound,
            word,
            value,
            "not found",
            "list what there is, and name one of them",
        )
    }

    /// It contradicts what there is.
    pub fn conflict(
        word: &str,
        value: impl fmt::Display,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(Kind::Conflict, word, value, reason, remedy)
    }

    /// The asker may not do this.
    pub fn not_permitted(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Kind::NotPermitted, "", "", reason, remedy)
    }

    /// The daemon can not do it now.
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Self::new(
            Kind::Unavailable,
            "",
            "",
            reason,
            "try again; if it stays so, look at the daemon's log",
        )
    }

    fn new(
        kind: Kind,
        word: &str,
        value: impl fmt::Display,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            word: word.to_owned(),
            value: value.to_string(),
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            word,
            value,
            reason,
            remedy,
            ..
        } = self;
        match (word.is_empty(), value.is_empty()) {
            (true, true) => {}
            (false, true) => write!(f, "{word}: ")?,
            (true, false) => write!(f, "{value}: ")?,
            (false, false) => write!(f, "{word} {value}: ")?,
        }
        f.write_str(reason)?;
        if !remedy.is_empty() {
            write!(f, "; {remedy}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

impl From<Stopped> for Refusal {
    fn from(stopped: Stopped) -> Self {
        Self::unavailable(stopped.to_string())
    }
}

impl From<PersistenceError> for Refusal {
    fn from(error: PersistenceError) -> Self {
        Self::unavailable(format!("not stored, so not done: {error}"))
    }
}

impl From<SaFileError> for Refusal {
    /// The line is told where there may be several.
    fn from(error: SaFileError) -> Self {
        let reason = match error.line {
            0 | 1 => error.reason.to_string(),
            line => format!("line {line}: {}", error.reason),
        };
        Self::words(
            &error.word,
            error.value.as_deref().unwrap_or_default(),
            reason,
            error.reason.remedy(),
        )
    }
}
