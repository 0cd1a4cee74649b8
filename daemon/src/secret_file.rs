//! Files that hold secrets: where they are, and whether others can read them.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Stands for the directory in which systemd puts the credentials of a service.
const CREDENTIALS: &str = "$CREDENTIALS_DIRECTORY/";

/// The path that is meant: `$CREDENTIALS_DIRECTORY/NAME` is a credential of systemd.
///
/// # Errors
/// There are no credentials.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf, String> {
    let name = path
        .to_str()
        .and_then(|path| path.strip_prefix(CREDENTIALS));
    match (name, credentials()) {
        (None, _) => Ok(path.to_owned()),
        (Some(name), Some(directory)) => Ok(directory.join(name)),
        (Some(_), None) => Err(
            "CREDENTIALS_DIRECTORY is not set: this process is no service of systemd, or it has \
             no LoadCredential="
                .to_owned(),
        ),
    }
}

/// Whether users other than the owner could read or change the file.
///
/// Credentials of systemd belong to root and let the user of the service in by an access
/// control list, whose mask stands where the rights of the group do (acl(5)); their directory is
/// closed to others.
pub(crate) fn is_open_to_others(path: &Path, metadata: &Metadata) -> bool {
    let forbidden = match is_credential(path) && metadata.uid() == 0 {
        true => 0o037,
        false => 0o077,
    };
    metadata.mode() & forbidden != 0
}

/// Whether a path is one of a credential of systemd, which nobody but systemd makes.
pub(crate) fn is_credential(path: &Path) -> bool {
    credentials().is_some_and(|directory| path.starts_with(directory))
}

fn credentials() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

/// The longest file that is read, in bytes.
const LONGEST: u64 = 256 << 20;

/// Opens a file to read it. Anything but a regular file is refused: a pipe would keep whoever
/// reads it waiting, and a device may never end.
pub(crate) fn open(path: &Path) -> io::Result<(File, Metadata)> {
    let mut options = OpenOptions::new();
    // Without it, the system would wait for somebody to write into a pipe.
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !metadata.is_file() {
        let message = "not a regular file; copy what it has into one";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    Ok((file, metadata))
}

/// Reads the text of an open file.
pub(crate) fn read_text((file, metadata): (File, Metadata)) -> io::Result<Zeroizing<String>> {
    if metadata.len() > LONGEST {
        let message = format!("longer than {} MiB", LONGEST >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    // It does not grow, which would leave a part of it behind.
    let room = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
    let mut text = Zeroizing::new(String::with_capacity(room.saturating_add(1)));
    file.take(metadata.len()).read_to_string(&mut text)?;
    Ok(text)
}
