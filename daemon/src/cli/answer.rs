//! How a command ends, and how answers are printed.

use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;

use crate::control::client::ClientError;

/// How a command ends when it does not succeed.
#[derive(Debug)]
pub(super) enum Stop {
    /// The daemon is not there, or refuses.
    Client(ClientError),
    /// The usage is at fault.
    Usage(String),
    /// What the command line names does not exist.
    NotFound(String),
    /// The command was done, and what it found is not good.
    Found,
    /// A file, the terminal or standard output.
    System(io::Error),
}

impl Stop {
    /// Tells people why, and scripts by the status.
    pub(super) fn tell(self) -> ExitCode {
        let (message, status) = match self {
            Self::Client(error) => {
                let status = match &error {
                    ClientError::NotReachable(..) => 3,
                    ClientError::NotPermitted(_) | ClientError::Refused(403, _) => 5,
                    ClientError::Refused(404, _) => 4,
                    ClientError::Refused(400, _) => 2,
                    _ => 1,
                };
                (error.to_string(), status)
            }
            Self::Usage(message) => (message, 2),
            Self::NotFound(message) => (message, 4),
            Self::Found => return ExitCode::from(1),
            // Who closed the pipe has seen enough.
            Self::System(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return ExitCode::SUCCESS;
            }
            Self::System(error) => (error.to_string(), 1),
        };
        // There is nobody left to tell if this fails.
        let _ = writeln!(io::stderr(), "vesper: {message}");
        ExitCode::from(status)
    }
}

impl From<ClientError> for Stop {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

/// Prints an answer as JSON.
pub(super) fn json(out: &mut dyn Write, answer: &impl Serialize) -> Result<(), Stop> {
    serde_json::to_writer_pretty(&mut *out, answer).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(())
}
