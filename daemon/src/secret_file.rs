//! Files that hold secrets: where they are, and whether others can read them.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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
    let is_credential = credentials().is_some_and(|directory| path.starts_with(directory));
    let forbidden = match is_credential && metadata.uid() == 0 {
        true => 0o037,
        false => 0o077,
    };
    metadata.mode() & forbidden != 0
}

fn credentials() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}
