//! Files of test vectors. A file is known by its content, whatever its name.

mod cavp;
mod expectation;
mod hex;
mod own;
mod wycheproof;

use core::fmt;
use std::borrow::Cow;
use std::io::{self, Read};

use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use vesper_esp::aead::primitive::Primitive;

use crate::xfrm::SaFileError;

pub use expectation::Expectation;
pub use hex::Hex;
pub use own::{PacketTest, Step, Wanted};

/// The most that a compressed file may hold, in bytes.
const LONGEST_FILE: u64 = 256 << 20;

/// The tests of one file.
#[derive(Debug)]
pub struct TestFile {
    /// What kind of file it is.
    pub format: Format,
    /// What it holds.
    pub tests: Tests,
}

/// The kinds of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// JSON of the Wycheproof project.
    Wycheproof,
    /// A response file of NIST's Cryptographic Algorithm Validation Program.
    Cavp,
    /// Our own vectors of whole packets.
    Packets,
    /// Our own vectors of bare algorithms.
    Primitives,
    /// What a capture beside it holds, once opened.
    Expectation,
}

/// What a file holds.
#[derive(Debug)]
pub enum Tests {
    /// Tests of bare algorithms.
    Primitives(Vec<PrimitiveTest>),
    /// Whole packets.
    Packets(Vec<PacketTest>),
    /// The expected outcome of a capture.
    Expectation(Expectation),
    /// Tests of an algorithm that no ESP suite uses.
    Foreign {
        /// Its name in the file.
        algorithm: String,
        /// How many tests there are.
        tests: u64,
    },
}

/// One test of a bare algorithm.
#[derive(Clone, Debug)]
pub struct PrimitiveTest {
    /// How the file calls the test.
    pub name: String,
    /// The algorithm.
    pub primitive: Primitive,
    /// The key.
    pub key: Vec<u8>,
    /// Nonce or IV.
    pub nonce: Vec<u8>,
    /// Additional data; of a MAC, the message.
    pub aad: Vec<u8>,
    /// The clear text; `None` if the file does not say it, as of a forgery.
    pub text: Option<Vec<u8>>,
    /// The text encrypted.
    pub sealed: Vec<u8>,
    /// The tag.
    pub tag: Vec<u8>,
    /// What an implementation must make of it.
    pub validity: Validity,
}

/// What an implementation must make of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Sealing gives the sealed text and the tag, opening gives the text.
    Valid,
    /// Opening fails.
    Forged,
    /// The lengths are not allowed: no key can be made, or opening fails.
    InvalidParameters,
}

/// Reads a file of vectors; `name` is its name for messages.
///
/// # Errors
/// The file is none of the known kinds, or is one and malformed.
pub fn parse(bytes: &[u8], name: &str) -> Result<TestFile, FormatError> {
    let fault = |(line, reason)| FormatError {
        file: name.to_owned(),
        line,
        reason,
    };
    let bytes = decompressed(bytes).map_err(|error| fault((0, FormatFault::Compression(error))))?;
    let text = core::str::from_utf8(&bytes).map_err(|_| fault((0, FormatFault::Unknown)))?;
    let text = text.trim_start_matches('\u{feff}');
    let file = if text.trim_start().starts_with('{') {
        json(text)
    } else if cavp::is_gcm(text) {
        cavp::parse(text)
    } else {
        Err((0, FormatFault::Unknown))
    };
    file.map_err(fault)
}

/// The content of a file, decompressed if it is compressed by gzip.
pub(crate) fn decompressed(bytes: &[u8]) -> io::Result<Cow<'_, [u8]>> {
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(Cow::Borrowed(bytes));
    }
    let mut content = Vec::new();
    MultiGzDecoder::new(bytes)
        .take(LONGEST_FILE + 1)
        .read_to_end(&mut content)?;
    if content.len() as u64 > LONGEST_FILE {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(Cow::Owned(content))
}

/// The fields by which JSON files are told apart.
#[derive(Deserialize)]
struct Probe {
    format: Option<String>,
    algorithm: Option<serde::de::IgnoredAny>,
    #[serde(rename = "testGroups")]
    test_groups: Option<serde::de::IgnoredAny>,
    inner: Option<serde::de::IgnoredAny>,
    frames: Option<serde::de::IgnoredAny>,
}

fn json(text: &str) -> Result<TestFile, (usize, FormatFault)> {
    let probe: Probe = deserialize(text)?;
    match probe {
        Probe {
            format: Some(format),
            ..
        } => match format.as_str() {
            own::PACKETS => own::packets(text),
            own::PRIMITIVES => own::primitives(text),
            _ => Err((0, FormatFault::Version(format))),
        },
        Probe {
            algorithm: Some(_),
            test_groups: Some(_),
            ..
        } => wycheproof::parse(text),
        Probe {
            inner: Some(_),
            frames: Some(_),
            ..
        } => expectation::parse(text),
        _ => Err((0, FormatFault::Unknown)),
    }
}

fn deserialize<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, (usize, FormatFault)> {
    serde_json::from_str(text).map_err(|error| (error.line(), FormatFault::Json(error)))
}

/// Why a file gave no tests. Displayed as `file:line: reason`.
#[derive(Debug)]
pub struct FormatError {
    /// The name of the file.
    pub file: String,
    /// The line, counted from 1; 0 if it is the file as a whole.
    pub line: usize,
    /// What is wrong.
    pub reason: FormatFault,
}

/// What is wrong with a file of vectors.
#[derive(Debug)]
#[non_exhaustive]
pub enum FormatFault {
    /// None of the known kinds.
    Unknown,
    /// Another version of our own formats.
    Version(String),
    /// Cannot be decompressed.
    Compression(io::Error),
    /// Not the JSON that the kind of file consists of.
    Json(serde_json::Error),
    /// A field of a response file is missing.
    Missing(&'static str),
    /// A field of a response file has no such value.
    Value(&'static str),
    /// An association of a packet test cannot be honoured.
    Sa {
        /// The name of the test.
        test: String,
        /// What is wrong with it.
        error: Box<SaFileError>,
    },
    /// A name that is none of the algorithms here.
    Primitive(String),
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.reason),
            line => write!(f, "{}:{line}: {}", self.file, self.reason),
        }
    }
}

impl core::error::Error for FormatError {}

impl fmt::Display for FormatFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str(
                "not a file of test vectors (Wycheproof JSON, NIST CAVP .rsp of GCM, our packets \
                 or primitives JSON, or .expect.json beside a capture)",
            ),
            Self::Version(format) => {
                write!(
                    f,
                    "format {format:?} is not known, only {:?} and {:?}",
                    own::PACKETS,
                    own::PRIMITIVES
                )
            }
            Self::Compression(error) => write!(f, "cannot be decompressed: {error}"),
            Self::Json(error) => error.fmt(f),
            Self::Missing(field) => write!(f, "{field} is missing"),
            Self::Value(expected) => write!(f, "expected {expected}"),
            Self::Sa { test, error } => write!(f, "test {test:?}: {error}"),
            Self::Primitive(name) => write!(f, "no algorithm here is called {name:?}"),
        }
    }
}

impl Format {
    /// Its name in tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Wycheproof => "wycheproof",
            Self::Cavp => "cavp",
            Self::Packets => "packets",
            Self::Primitives => "primitives",
            Self::Expectation => "capture",
        }
    }
}
