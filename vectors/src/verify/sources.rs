//! Where vectors come from: the built-in set, files, directories.

use core::fmt;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use include_dir::{Dir, include_dir};

use crate::formats::{self, Format, FormatError, FormatFault, Tests};
use crate::xfrm::{self, Entry, SaFileError};

/// The built-in set; `SOURCES.md` in it names origin and licence of each file.
static BUILTIN: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/data");

/// The end of the name of a capture's expectation.
const EXPECTATION: &str = ".expect.json";

/// A file of vectors that has not been read yet.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its name for people.
    pub name: String,
    /// Where it is.
    pub origin: Origin,
    /// Whether somebody named this very file; one that was merely found in a directory may
    /// turn out to be something else.
    pub named: bool,
}

/// Where a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In this program.
    Builtin(&'static str),
    /// In the file system.
    File(PathBuf),
}

/// The tests of a file.
#[derive(Debug)]
pub struct Vectors {
    /// The name of the file for people.
    pub name: String,
    /// The kind of file.
    pub format: Format,
    /// What it holds.
    pub tests: Tests,
    /// The capture that an expectation belongs to.
    pub(super) capture: Option<Beside>,
}

/// What lies beside an expectation.
#[derive(Debug)]
pub(super) struct Beside {
    pub(super) pcap: Vec<u8>,
    pub(super) entries: Vec<Entry>,
}

/// The built-in set, in order of its names.
pub fn builtin() -> Vec<Source> {
    fn walk(dir: &Dir<'static>, files: &mut BTreeMap<&'static str, ()>) {
        for file in dir.files() {
            if let Some(path) = file.path().to_str() {
                files.insert(path, ());
            }
        }
        for dir in dir.dirs() {
            walk(dir, files);
        }
    }
    let mut files = BTreeMap::new();
    walk(&BUILTIN, &mut files);
    files
        .into_keys()
        .filter(|path| path.ends_with(".json") || path.ends_with(".gz"))
        .map(|path| Source {
            name: path.to_owned(),
            origin: Origin::Builtin(path),
            named: true,
        })
        .collect()
}

/// The files that `path` means: itself, or everything in the directory, recursively and in
/// order of names. Captures and lists of associations are left to the expectation beside them.
pub fn find(path: &Path) -> Result<Vec<Source>, LoadError> {
    let failed = |path: &Path| {
        let file = path.display().to_string();
        move |error| LoadError::Io { file, error }
    };
    let source = |path: &Path, named| Source {
        name: path.display().to_string(),
        origin: Origin::File(path.to_owned()),
        named,
    };
    if !fs::metadata(path).map_err(failed(path))?.is_dir() {
        return Ok(vec![source(path, true)]);
    }
    let mut found = Vec::new();
    let mut pending = vec![path.to_owned()];
    while let Some(dir) = pending.pop() {
        let mut paths = Vec::new();
        for entry in fs::read_dir(&dir).map_err(failed(&dir))? {
            paths.push(entry.map_err(failed(&dir))?.path());
        }
        paths.sort();
        for path in paths {
            if fs::metadata(&path).map_err(failed(&path))?.is_dir() {
                pending.push(path);
            } else if !["pcap", "pcapng", "sa"]
                .iter()
                .any(|&companion| path.extension().is_some_and(|end| end == companion))
            {
                found.push(source(&path, false));
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

impl Source {
    /// Reads and parses the file; `None` if it was found in a directory and is no file of
    /// vectors.
    pub fn load(&self) -> Result<Option<Vectors>, LoadError> {
        let content = self.read("")?;
        let file = match formats::parse(&content, &self.name) {
            Ok(file) => file,
            Err(FormatError {
                reason: FormatFault::Unknown,
                ..
            }) if !self.named => return Ok(None),
            Err(error) => return Err(LoadError::Format(error)),
        };
        let capture = match file.tests {
            Tests::Expectation(_) => Some(self.beside()?),
            _ => None,
        };
        Ok(Some(Vectors {
            name: self.name.clone(),
            format: file.format,
            tests: file.tests,
            capture,
        }))
    }

    fn beside(&self) -> Result<Beside, LoadError> {
        let text = self.read(".sa")?;
        let name = self.name.replace(EXPECTATION, ".sa");
        let text = core::str::from_utf8(&text).map_err(|_| LoadError::Io {
            file: name.clone(),
            error: io::ErrorKind::InvalidData.into(),
        })?;
        Ok(Beside {
            pcap: self.read(".pcap")?,
            entries: xfrm::parse(text, &name).map_err(LoadError::Sa)?,
        })
    }

    /// The content of the file, or of the one beside it whose name ends in `instead`.
    fn read(&self, instead: &str) -> Result<Vec<u8>, LoadError> {
        let beside = |name: &str| match instead {
            "" => name.to_owned(),
            _ => name.replace(EXPECTATION, instead),
        };
        let failed = |error| LoadError::Io {
            file: beside(&self.name),
            error,
        };
        match &self.origin {
            Origin::Builtin(path) => BUILTIN
                .get_file(beside(path))
                .map(|file| file.contents().to_vec())
                .ok_or_else(|| failed(io::ErrorKind::NotFound.into())),
            Origin::File(path) => {
                let path = match (instead, path.to_str()) {
                    ("", _) | (_, None) => path.clone(),
                    (_, Some(path)) => PathBuf::from(beside(path)),
                };
                fs::read(path).map_err(failed)
            }
        }
    }
}

impl Vectors {
    /// How many tests there are.
    pub const fn count(&self) -> u64 {
        match &self.tests {
            Tests::Primitives(tests) => tests.len() as u64,
            Tests::Packets(tests) => tests.len() as u64,
            Tests::Expectation(expectation) => expectation.packets,
            Tests::Foreign { tests, .. } => *tests,
        }
    }
}

/// Why vectors cannot be read.
#[derive(Debug)]
#[non_exhaustive]
pub enum LoadError {
    /// A file or directory cannot be read.
    Io {
        /// Its name.
        file: String,
        /// What the system said.
        error: io::Error,
    },
    /// A file is malformed.
    Format(FormatError),
    /// The associations of a capture cannot be honoured.
    Sa(SaFileError),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { file, error } => write!(f, "{file}: {error}"),
            Self::Format(error) => error.fmt(f),
            Self::Sa(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for LoadError {}
