//! Security associations and policies as people write them down: `ip xfrm state add ...` and
//! `ip xfrm policy add ...` lines, and rows of Wireshark's `esp_sa` table.
//!
//! Every word of a line is either honoured, or known to have no effect on ESP processing
//! (`docs/verify.md` lists both), or an error that names the file, the line, the word and the
//! reason. Nothing is skipped silently.
//!
//! ```
//! use vesper_verify::xfrm::{self, Entry};
//!
//! let text = "ip xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1000 mode tunnel \
//!             replay-window 64 aead 'rfc4106(gcm(aes))' 0x000102030405060708090a0b0c0d0e0f10111213 128";
//! let entries = xfrm::parse(text, "example.sa").unwrap();
//! let Entry::State(state) = &entries[0] else { panic!() };
//! assert_eq!(state.keys.suite().name, "aes128gcm16");
//!
//! let error = xfrm::parse("ip xfrm state add mark 7", "example.sa").unwrap_err();
//! assert!(error.to_string().starts_with("example.sa:1: mark: "));
//! ```

mod algorithm;
mod flags;
mod lexeme;
mod policy;
mod print;
mod selector;
mod shell;
mod state;
mod wireshark;
mod words;

use core::fmt;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use vesper_esp::aead::{Cipher, CipherError, Implementation};
use vesper_esp::{Suite, SuiteError};
use vesper_sa::Spi;
use zeroize::Zeroizing;

pub use flags::Flags;
pub use policy::{PolicyAction, PolicyLine, Template};
pub use print::{HIDDEN, selector_words};
pub use state::{Offload, State};
pub use wireshark::{AddressPattern, Row, SpiPattern};

use words::{Fault, Object, Words};

/// One association of a file.
#[derive(Clone, Debug)]
pub enum Entry {
    /// An `ip xfrm state add` line.
    State(Box<State>),
    /// A row of Wireshark's `esp_sa` table. It says less: neither mode nor replay state, and
    /// addresses and SPI may be patterns.
    Row(Row),
}

impl Entry {
    /// The line of the file that it begins on, counted from 1.
    pub const fn line(&self) -> usize {
        match self {
            Self::State(state) => state.line,
            Self::Row(row) => row.line,
        }
    }

    /// The suite and its keys.
    pub const fn keys(&self) -> &Keys {
        match self {
            Self::State(state) => &state.keys,
            Self::Row(row) => &row.keys,
        }
    }
}

/// Reads a file of associations, one a line.
pub fn read(path: &Path) -> Result<Vec<Entry>, ReadError> {
    let file = path.display().to_string();
    let io = |error| ReadError::Io {
        file: file.clone(),
        error,
    };
    let bytes = Zeroizing::new(fs::read(path).map_err(io)?);
    let text = core::str::from_utf8(&bytes).map_err(|_| io(io::ErrorKind::InvalidData.into()))?;
    parse(text, &file).map_err(ReadError::Line)
}

/// Parses the text of a file of associations; `file` is its name for messages.
///
/// # Errors
/// The first line that cannot be honoured, or that describes the same association (outer
/// destination and SPI) as a line before it.
pub fn parse(text: &str, file: &str) -> Result<Vec<Entry>, SaFileError> {
    let mut entries = Vec::new();
    let mut seen: HashMap<(IpAddr, Spi), usize> = HashMap::new();
    for command in shell::commands(text, file)? {
        let located = |fault| SaFileError::new(file, fault);
        let entry = match &command.text {
            shell::Text::Words(words) => {
                let mut words = Words::new(words);
                if words::command(&mut words).map_err(located)? == Object::Policy {
                    return Err(located(words.fault(Reason::Unsupported(
                        "only associations can be read here, not policies",
                    ))));
                }
                let state = state::parse(command.line, &mut words).map_err(located)?;
                Entry::State(Box::new(state))
            }
            shell::Text::Row(row) => Entry::Row(wireshark::parse(command.line, row).map_err(
                |(word, reason)| {
                    located(Fault {
                        line: command.line,
                        word,
                        value: None,
                        reason,
                    })
                },
            )?),
        };
        if let Entry::State(state) = &entry
            && let Some(first) = seen.insert((state.destination, state.spi), state.line)
        {
            return Err(located(Fault {
                line: state.line,
                word: "spi".to_owned(),
                value: Some(state.spi.to_string()),
                reason: Reason::Duplicate { first },
            }));
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// What a line of `ip xfrm` adds.
#[derive(Clone, Debug)]
pub enum Line {
    /// An `ip xfrm state add` line.
    State(Box<State>),
    /// An `ip xfrm policy add` line.
    Policy(Box<PolicyLine>),
}

/// Parses the text of a file of associations and policies, one a line, as they are given to
/// `ip`; `file` is its name for messages. A line that does not say what it is about (`state` or
/// `policy`) is about an association.
///
/// # Errors
/// The first line that cannot be honoured.
pub fn parse_lines(text: &str, file: &str) -> Result<Vec<Line>, SaFileError> {
    let located = |fault| SaFileError::new(file, fault);
    let line = |command: &shell::Command| match &command.text {
        shell::Text::Words(words) => {
            let mut words = Words::new(words);
            match words::command(&mut words)? {
                Object::State => {
                    state::parse(command.line, &mut words).map(|state| Line::State(Box::new(state)))
                }
                Object::Policy => policy::parse(command.line, &mut words)
                    .map(|policy| Line::Policy(Box::new(policy))),
            }
        }
        shell::Text::Row(_) => Err(Fault {
            line: command.line,
            word: "row".to_owned(),
            value: None,
            reason: Reason::Unsupported(
                "a row of Wireshark's table lacks mode and replay window; give `ip xfrm` words",
            ),
        }),
    };
    shell::commands(text, file)?
        .iter()
        .map(|command| line(command).map_err(located))
        .collect()
}

/// Parses the words after `policy add`; see [`parse_lines`].
///
/// # Errors
/// The first line that cannot be honoured.
pub fn parse_policies(text: &str, file: &str) -> Result<Vec<PolicyLine>, SaFileError> {
    let mut policies = Vec::new();
    for command in shell::commands(text, file)? {
        let located = |fault| SaFileError::new(file, fault);
        let shell::Text::Words(words) = &command.text else {
            return Err(located(Fault {
                line: command.line,
                word: "row".to_owned(),
                value: None,
                reason: Reason::Expected("the words of `ip xfrm policy add`"),
            }));
        };
        let mut words = Words::new(words);
        words::policy_command(&mut words).map_err(located)?;
        policies.push(policy::parse(command.line, &mut words).map_err(located)?);
    }
    Ok(policies)
}

/// A suite with the key material for it. Wiped when dropped, never shown.
#[derive(Clone)]
pub struct Keys {
    suite: &'static Suite,
    key: Zeroizing<Vec<u8>>,
    auth_key: Zeroizing<Vec<u8>>,
}

impl Keys {
    /// Checks the lengths; `key` is the encryption key followed by the salt.
    fn new(
        suite: &'static Suite,
        key: Zeroizing<Vec<u8>>,
        auth_key: Zeroizing<Vec<u8>>,
    ) -> Result<Self, Reason> {
        let (expected, given) = if key.len() != suite.key_len + suite.salt_len {
            (suite.key_len + suite.salt_len, key.len())
        } else if auth_key.len() != suite.auth_key_len {
            (suite.auth_key_len, auth_key.len())
        } else {
            return Ok(Self {
                suite,
                key,
                auth_key,
            });
        };
        Err(Reason::KeyLength {
            suite,
            expected,
            given,
        })
    }

    /// The suite.
    pub const fn suite(&self) -> &'static Suite {
        self.suite
    }

    /// The encryption key followed by the salt, and the authentication key: secrets, for those
    /// who have to recognise a key.
    pub fn expose(&self) -> (&[u8], &[u8]) {
        (&self.key, &self.auth_key)
    }

    /// Expands the keys for this implementation.
    pub fn cipher(&self, implementation: Implementation) -> Result<Cipher, CipherError> {
        Cipher::with_implementation(self.suite, &self.key, &self.auth_key, implementation)
    }

    /// Expands the keys for the implementation that is fastest here.
    pub fn fastest_cipher(&self) -> Result<Cipher, CipherError> {
        Cipher::new(self.suite, &self.key, &self.auth_key)
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("suite", &self.suite.name)
            .finish_non_exhaustive()
    }
}

/// Why a file gave no associations.
#[derive(Debug)]
#[non_exhaustive]
pub enum ReadError {
    /// The file could not be read, or is not text.
    Io {
        /// The name of the file.
        file: String,
        /// What the system said.
        error: io::Error,
    },
    /// A line cannot be honoured.
    Line(SaFileError),
}

/// A line that cannot be honoured. Displayed as `file:line: word: reason`; never shows a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaFileError {
    /// The name of the file.
    pub file: String,
    /// The line of the word, counted from 1.
    pub line: usize,
    /// The word that is at fault.
    pub word: String,
    /// The value that it was given, if one was; never a key.
    pub value: Option<String>,
    /// What is wrong with it.
    pub reason: Reason,
}

impl SaFileError {
    fn new(file: &str, fault: Fault) -> Self {
        Self {
            file: file.to_owned(),
            line: fault.line,
            word: fault.word,
            value: fault.value,
            reason: fault.reason,
        }
    }
}

/// What is wrong with a word of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// A quote is opened and never closed on its line.
    UnclosedQuote,
    /// Not a word of `ip xfrm state add` or `ip xfrm policy add`.
    Unknown,
    /// The line ends where the word's value should be.
    NoValue,
    /// The line lacks this word, which it needs.
    Missing,
    /// The word is there for the second time.
    Twice,
    /// The value is not what the word takes, which is this.
    Expected(&'static str),
    /// Understood, but it cannot be honoured for this reason.
    Unsupported(&'static str),
    /// No such suite, or one that must not be used.
    Algorithm(SuiteError),
    /// The key has the wrong length.
    KeyLength {
        /// The suite that the line names.
        suite: &'static Suite,
        /// Bytes that it takes, salt included.
        expected: usize,
        /// Bytes on the line.
        given: usize,
    },
    /// An earlier line has the same destination and SPI.
    Duplicate {
        /// That line.
        first: usize,
    },
}

impl Reason {
    /// The way out, in a few words.
    pub fn remedy(&self) -> String {
        match self {
            Self::UnclosedQuote => "close the quote on the same line".to_owned(),
            Self::Unknown => "leave it out, or correct its spelling".to_owned(),
            Self::NoValue => "give its value".to_owned(),
            Self::Missing => "add it".to_owned(),
            Self::Twice => "give it once".to_owned(),
            // The reason says what is expected or supported, or what to leave out.
            Self::Expected(_) | Self::Unsupported(_) => String::new(),
            Self::Algorithm(SuiteError::KeyLength { .. }) => {
                "give the key and its salt in hexadecimal after 0x".to_owned()
            }
            // They say what to write instead.
            Self::Algorithm(
                SuiteError::Refused(_) | SuiteError::Truncation { .. } | SuiteError::IcvUnstated,
            ) => String::new(),
            Self::Algorithm(_) => "choose a suite of RFC 8221, such as AES-GCM".to_owned(),
            Self::KeyLength { expected, .. } => {
                format!("give {expected} bytes in hexadecimal after 0x, the salt at the end")
            }
            Self::Duplicate { .. } => "remove one of the two lines".to_owned(),
        }
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { file, error } if error.kind() == io::ErrorKind::InvalidData => {
                write!(f, "{file}: not a text file")
            }
            Self::Io { file, error } => write!(f, "{file}: {error}"),
            Self::Line(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for ReadError {}

impl fmt::Display for SaFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            line,
            word,
            reason,
            value: _,
        } = self;
        write!(f, "{file}:{line}: {word}: {reason}")
    }
}

impl core::error::Error for SaFileError {}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnclosedQuote => f.write_str("opened here and not closed before the line ends"),
            Self::Unknown => f.write_str("not a word of `ip xfrm state add`"),
            Self::NoValue => f.write_str("the line ends where its value should be"),
            Self::Missing => f.write_str("missing; the line needs it"),
            Self::Twice => f.write_str("given twice"),
            Self::Expected(what) => write!(f, "expected {what}"),
            Self::Unsupported(why) => f.write_str(why),
            Self::Algorithm(refused) => refused.fmt(f),
            Self::KeyLength {
                suite,
                expected,
                given,
            } => write!(
                f,
                "{suite} takes a key of {expected} bytes, this has {given}"
            ),
            Self::Duplicate { first } => write!(
                f,
                "line {first} already describes the association with this destination and SPI"
            ),
        }
    }
}
