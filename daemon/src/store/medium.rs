//! The files of a store, behind a trait so that tests can cut the power.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use redb::{Builder, Database, DatabaseError};
use sha2::{Digest, Sha256};

use super::StoreError;

/// Where a store lies.
pub trait Medium: Send + Sync + fmt::Debug + 'static {
    /// Opens the database, or makes an empty one.
    fn database(&self, builder: &Builder) -> Result<Database, DatabaseError>;

    /// Opens the anchor, or makes an empty one.
    fn anchor(&self) -> Result<Box<dyn AnchorFile>, StoreError>;

    /// A number that a copy of the database file does not have, and that stays the same over
    /// restarts; 0 if there is none.
    fn file(&self) -> Result<u64, StoreError>;

    /// What tells this machine from others; all zero if nothing does.
    fn machine(&self) -> [u8; 16];

    /// Puts a damaged database out of the way, so that an empty one can be made.
    fn set_aside(&self) -> Result<(), StoreError>;

    /// What to call the database in messages.
    fn name(&self) -> PathBuf;
}

/// The file of an anchor.
pub trait AnchorFile: Send {
    /// All of it.
    fn read(&mut self) -> Result<Vec<u8>, StoreError>;
    /// Writes a part.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError>;
    /// Makes what was written durable.
    fn sync(&mut self) -> Result<(), StoreError>;
}

/// A store in files of this system.
#[derive(Clone, Debug)]
pub struct Files {
    /// The database.
    pub store: PathBuf,
    /// The anchor. It does its work best where a backup, a snapshot or a copy of the database
    /// does not take it along.
    pub anchor: PathBuf,
}

impl Files {
    /// Both files in one directory.
    pub fn in_directory(directory: &Path) -> Self {
        Self {
            store: directory.join("store.redb"),
            anchor: directory.join("store.anchor"),
        }
    }
}

impl Medium for Files {
    fn database(&self, builder: &Builder) -> Result<Database, DatabaseError> {
        // Made here, so that it is closed to others from the first moment.
        private(&self.store, |_| ())?;
        builder.create(&self.store)
    }

    fn anchor(&self) -> Result<Box<dyn AnchorFile>, StoreError> {
        let at = |error| file_error(&self.anchor, error);
        let file = private(&self.anchor, |file| file).map_err(at)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::InUse {
                    file: self.anchor.clone(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(at(error)),
        }
        Ok(Box::new(LocalAnchor {
            path: self.anchor.clone(),
            file,
        }))
    }

    fn file(&self) -> Result<u64, StoreError> {
        let metadata = fs::metadata(&self.store).map_err(|error| file_error(&self.store, error))?;
        // A file that takes the place of a deleted one may get its inode, but was made later.
        let made = metadata.created().ok();
        let made = made.and_then(|made| made.duration_since(UNIX_EPOCH).ok());
        let made = made.unwrap_or_default().as_nanos();
        let hash = Sha256::digest(format!("{} {made}", metadata.ino()));
        let (first, _) = hash.split_first_chunk().expect("32 bytes have 8");
        Ok(u64::from_be_bytes(*first))
    }

    fn machine(&self) -> [u8; 16] {
        // The identity of the installation. That of the (virtual) hardware is for root only, so
        // it would change with the rights of the process.
        let Ok(id) = fs::read_to_string("/etc/machine-id") else {
            return [0; 16];
        };
        // Not to be published as it is (machine-id(5)).
        let hash = Sha256::digest(format!("vesper store {}", id.trim()));
        let mut machine = [0; 16];
        machine.copy_from_slice(&hash[..16]);
        machine
    }

    fn set_aside(&self) -> Result<(), StoreError> {
        let aside = (1..)
            .map(|number| {
                let mut name = self.store.clone().into_os_string();
                name.push(format!(".damaged-{number}"));
                PathBuf::from(name)
            })
            .find(|path| !path.exists());
        match aside {
            Some(aside) => {
                fs::rename(&self.store, aside).map_err(|error| file_error(&self.store, error))
            }
            None => Ok(()),
        }
    }

    fn name(&self) -> PathBuf {
        self.store.clone()
    }
}

struct LocalAnchor {
    path: PathBuf,
    file: File,
}

impl AnchorFile for LocalAnchor {
    fn read(&mut self) -> Result<Vec<u8>, StoreError> {
        let mut bytes = Vec::new();
        self.file
            .seek(SeekFrom::Start(0))
            .and_then(|_| (&self.file).take(4096).read_to_end(&mut bytes))
            .map_err(|error| file_error(&self.path, error))?;
        Ok(bytes)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| self.file.write_all(bytes))
            .map_err(|error| file_error(&self.path, error))
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.file
            .sync_data()
            .map_err(|error| file_error(&self.path, error))
    }
}

/// Opens a file that only this user may read, making it and its directory if need be; the
/// entry in the directory is durable.
fn private<R>(path: &Path, then: impl FnOnce(File) -> R) -> io::Result<R> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        outcome => return outcome.map(then),
    }
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let file = options.create_new(true).open(path)?;
    File::open(directory)?.sync_all()?;
    Ok(then(file))
}

fn file_error(path: &Path, error: io::Error) -> StoreError {
    StoreError::File {
        file: path.to_owned(),
        error,
    }
}
