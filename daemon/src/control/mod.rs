//! The control interface: JSON over HTTP on Unix sockets, and on TCP with mutual TLS if that
//! is configured.
//!
//! ```text
//!   control.sock        everything                 ─┐
//!   vm/HOST/NAME.sock   the SAs of one machine      ├─ Listeners ─▶ Slots ─▶ api ─▶ Plane
//!   TCP, mutual TLS     everything                 ─┘   who?        how many?
//! ```
//!
//! [`api`] says what can be asked, [`types`] how it looks; `docs/control.md` is the manual.

pub mod api;
pub mod client;
mod connection;
mod listen;
mod peer;
mod slots;
mod tls;
pub mod types;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::node::Statistics;
use crate::plane::{Diff, Plane, Refusal};

pub use listen::Control;
pub use peer::Peers;
pub use tls::TcpSettings;

/// Where the control interface is, and for whom.
#[derive(Clone, Debug)]
pub struct ControlSettings {
    /// The control socket.
    pub socket: PathBuf,
    /// Who may use it, beside root and the user of the daemon.
    pub peers: Peers,
    /// The directory of the machines' sockets, `HOST/NAME.sock` in it; `None`: there are none.
    pub vm_sockets: Option<PathBuf>,
    /// Who may use those, beside root and the user of the daemon.
    pub vm_peers: Peers,
    /// The TCP address, if there is one.
    pub tcp: Option<TcpSettings>,
    /// How much it takes on.
    pub limits: ControlLimits,
}

/// How much the control interface takes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlLimits {
    /// Connections at a time. One more takes the place of the one that has waited longest
    /// without a request.
    pub connections: usize,
    /// Event streams at a time.
    pub streams: usize,
    /// How long a request may take to arrive, and its answer to be taken.
    pub patience: Duration,
    /// The longest body, in bytes.
    pub body: usize,
    /// The longest body of an import, in bytes.
    pub import: usize,
}

/// What the control interface speaks for.
#[derive(Clone)]
pub struct Service {
    /// The desired state, and the verbs on it.
    pub plane: Arc<Plane>,
    /// How things stand.
    pub statistics: Arc<dyn Fn() -> Statistics + Send + Sync>,
    /// Reads the configuration anew, and puts it in force or, if asked, only checks it.
    pub reload: Arc<dyn Fn(bool) -> Result<Diff, Refusal> + Send + Sync>,
}

/// Why the control interface could not be started.
#[derive(Debug)]
pub enum ControlError {
    /// A file or directory can not be used.
    Path(PathBuf, io::Error),
    /// Another process serves this socket.
    InUse(PathBuf),
    /// A TCP address can not be used.
    Tcp(SocketAddr, io::Error),
    /// No such group.
    Group(String),
    /// A certificate or key can not be used.
    Tls(PathBuf, String),
}

impl ControlSettings {
    /// A control socket at this path with sockets of machines beside it, for root and the user
    /// of the daemon.
    pub fn at(socket: PathBuf) -> Self {
        let vm_sockets = socket.parent().map(|directory| directory.join("vm"));
        Self {
            socket,
            peers: Peers::default(),
            vm_sockets,
            vm_peers: Peers::default(),
            tcp: None,
            limits: ControlLimits::default(),
        }
    }

    /// Where the control socket is unless something else is said: `/run/vesper/control.sock`
    /// for root, else in the user's runtime directory.
    pub fn default_socket() -> PathBuf {
        let directory = match (
            rustix::process::geteuid().is_root(),
            std::env::var_os("XDG_RUNTIME_DIR"),
        ) {
            (true, _) => PathBuf::from("/run/vesper"),
            (false, Some(runtime)) => PathBuf::from(runtime).join("vesper"),
            (false, None) => {
                std::env::temp_dir().join(format!("vesper-{}", rustix::process::geteuid().as_raw()))
            }
        };
        directory.join("control.sock")
    }
}

impl Default for ControlLimits {
    fn default() -> Self {
        Self {
            connections: 100,
            streams: 32,
            patience: Duration::from_secs(5),
            body: 64 << 10,
            import: 16 << 20,
        }
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("plane", &self.plane)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path, error) => write!(f, "{}: {error}", path.display()),
            Self::InUse(path) => write!(
                f,
                "{}: another process serves it; stop that one, or configure another socket",
                path.display()
            ),
            Self::Tcp(address, error) => write!(f, "{address}: {error}"),
            Self::Group(name) => write!(
                f,
                "group {name} does not exist; create it, or configure another"
            ),
            Self::Tls(path, error) => write!(f, "{}: {error}", path.display()),
        }
    }
}

impl std::error::Error for ControlError {}
