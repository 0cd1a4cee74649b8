//! What can go wrong with the store.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why the store could not be opened, or did not keep something.
#[derive(Debug)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has the store open.
    InUse {
        /// The file that is locked.
        file: PathBuf,
    },
    /// The store was written by a newer release.
    Newer {
        /// Its format.
        found: u32,
        /// The newest format that this release reads.
        known: u32,
    },
    /// The store was written with another key-encryption key.
    WrongKey,
    /// A file could not be read or written.
    File {
        /// The file.
        file: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The database failed; nothing was changed, as far as anybody knows.
    Database(Box<redb::Error>),
    /// A record is not what was written: the disk or somebody has changed it.
    Damaged {
        /// The table that it is in.
        table: &'static str,
    },
    /// The store has changed behind the back of this process. It is not used any more.
    ChangedOutside,
    /// The store failed between the parts of a change, some of which are gone.
    Unfinished,
    /// There is no association of this name.
    NotFound,
    /// The system has no randomness to give.
    Random,
    /// The thread that renews leases has ended.
    Stopped,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse { file } => write!(
                f,
                "{}: in use by another process; give each daemon a state directory of its own",
                file.display()
            ),
            Self::Newer { found, known } => write!(
                f,
                "the store has format {found}, this release reads formats up to {known}: \
                 install the newer release, or begin with an empty state directory and new keys"
            ),
            Self::WrongKey => f.write_str(
                "the store was written with another key-encryption key; give the one that it \
                 was made with",
            ),
            Self::File { file, error } => write!(f, "{}: {error}", file.display()),
            Self::Database(error) => write!(f, "the store failed: {error}"),
            Self::Damaged { table } => {
                write!(
                    f,
                    "a record of the table \"{table}\" of the store is damaged"
                )
            }
            Self::ChangedOutside => f.write_str(
                "the store was changed by somebody else while it was in use; restart the daemon",
            ),
            Self::Unfinished => f.write_str(
                "the store failed in the midst of this change, which is taken back; try it again",
            ),
            Self::NotFound => f.write_str("the store does not know this association"),
            Self::Random => f.write_str("the system gives no random numbers"),
            Self::Stopped => f.write_str("the thread that renews leases has ended"),
        }
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::File { error, .. } => Some(error),
            Self::Database(error) => Some(error),
            _ => None,
        }
    }
}

macro_rules! from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for StoreError {
            fn from(error: $error) -> Self {
                Self::Database(Box::new(error.into()))
            }
        }
    )*};
}

from_redb!(
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError
);
