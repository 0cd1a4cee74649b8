//! The socket of a vhost-user port, and the thread that talks to the front-end: one at a time,
//! the next one when it has gone.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use vhost::vhost_user::{BackendReqHandler, Error, VhostUserBackendReqHandlerMut};

use super::device::Device;

/// Between two attempts to connect to a front-end that is not there.
const RETRY: Duration = Duration::from_millis(200);

/// Between two connections that the log tells of.
const TELL: Duration = Duration::from_secs(1);

/// The message that enables a ring, and flags of messages (version 1, a reply is wanted, it is
/// one).
const SET_VRING_ENABLE: u32 = 18;
const NEED_REPLY: u32 = 8;
const IS_REPLY: u32 = 1 | 4;

/// Which side makes the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We do, with these permission bits; front-ends come and go.
    Server {
        /// Permission bits of the socket, as `chmod` takes them.
        permissions: u32,
    },
    /// The front-end does; we connect to it, again and again.
    Client,
}

/// The thread; ends when dropped.
#[derive(Debug)]
pub(super) struct Session {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// To be removed at the end.
    made: Option<PathBuf>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    device: Arc<Mutex<Device>>,
    stop: OwnedFd,
    stopping: AtomicBool,
    /// The connection there is, to interrupt a read.
    connection: Mutex<Option<UnixStream>>,
    /// When the log has told of a connection last.
    told: Mutex<Option<Instant>>,
}

/// A socket could not be made.
#[derive(Debug)]
pub struct SocketError {
    path: PathBuf,
    error: io::Error,
}

impl fmt::Display for SocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        write!(f, "vhost-user socket {path}: {}", self.error)?;
        match self.error.kind() {
            io::ErrorKind::AddrInUse => {
                f.write_str("; another process serves it: stop that one, or choose another path")
            }
            io::ErrorKind::NotFound => f.write_str("; make its directory first"),
            io::ErrorKind::PermissionDenied => {
                f.write_str("; its directory must be writable for vesperd")
            }
            _ => Ok(()),
        }
    }
}

impl std::error::Error for SocketError {}

/// The error for a socket.
pub(super) fn failed(path: &Path, error: io::Error) -> SocketError {
    SocketError {
        path: path.to_owned(),
        error,
    }
}

impl Session {
    /// Begins to serve a device at a socket.
    pub(super) fn start(
        path: &Path,
        role: Role,
        device: Arc<Mutex<Device>>,
    ) -> Result<Self, SocketError> {
        let failed = |error| failed(path, error);
        let listener = match role {
            Role::Server { permissions } => Some(listen(path, permissions).map_err(failed)?),
            Role::Client => None,
        };
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| failed(error.into()))?;
        let shared = Arc::new(Shared {
            name: path.display().to_string(),
            device,
            stop,
            stopping: AtomicBool::new(false),
            connection: Mutex::new(None),
            told: Mutex::new(None),
        });
        let made = listener.is_some().then(|| path.to_owned());
        let (served, path) = (Arc::clone(&shared), path.to_owned());
        let thread = std::thread::Builder::new()
            .name("vhost-user".into())
            .spawn(move || match listener {
                Some(listener) => served.accept(&listener),
                None => served.connect(&path),
            })
            .map_err(failed)?;
        Ok(Self {
            shared,
            thread: Some(thread),
            made,
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let _ = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
        if let Some(connection) = &*lock(&self.shared.connection) {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let Some(path) = &self.made {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Shared {
    fn accept(&self, listener: &UnixListener) {
        while self.wait(Some(listener.as_fd()), PollTimeout::NONE) {
            match listener.accept() {
                Ok((stream, _)) => self.serve(stream),
                // Nobody after all, or no descriptors left: not in a busy loop.
                Err(_) => {
                    self.pause();
                }
            }
        }
    }

    fn connect(&self, path: &Path) {
        let mut failing = false;
        while !self.stopping.load(Ordering::SeqCst) {
            match UnixStream::connect(path) {
                Ok(stream) => {
                    failing = false;
                    self.serve(stream);
                }
                Err(error) if !failing => {
                    failing = true;
                    tracing::info!(socket = self.name, %error, "waiting for the front-end");
                }
                Err(_) => {}
            }
            self.pause();
        }
    }

    /// Talks to one front-end until it goes, or says something impossible.
    fn serve(&self, stream: UnixStream) {
        let Ok(clone) = stream.try_clone() else {
            return;
        };
        *lock(&self.connection) = Some(clone);
        let tell = self.may_tell();
        if tell {
            tracing::info!(socket = self.name, "front-end connected");
        }
        let Ok(early) = stream.try_clone() else {
            return;
        };
        let mut handler = BackendReqHandler::from_stream(stream, Arc::clone(&self.device));
        let error = loop {
            if self.stopping.load(Ordering::SeqCst) {
                break Error::Disconnected;
            }
            if self.enable_early(&early) {
                continue;
            }
            match handler.handle_request() {
                Ok(()) | Err(Error::SocketRetry(_)) => {}
                Err(error) => break error,
            }
        };
        *lock(&self.connection) = None;
        let mut device = lock(&self.device);
        let refusal = device.refusal.take();
        device.reset();
        drop(device);
        // One that comes and goes all the time does not fill the log.
        if !tell {
            return;
        }
        match (error, refusal) {
            (Error::Disconnected, _) => tracing::info!(socket = self.name, "front-end gone"),
            (error, reason) => {
                tracing::warn!(socket = self.name, %error, reason, "front-end refused");
            }
        }
    }

    /// Takes the next message if it enables a ring before the features are set, as QEMU does
    /// when a device starts; `vhost` refuses it there, since the features say whether the
    /// message exists. Returns whether it has been taken.
    fn enable_early(&self, stream: &UnixStream) -> bool {
        if lock(&self.device).is_negotiated() {
            return false;
        }
        // Code, flags, size: the header of every message.
        let mut message = [0; 20];
        let flags = RecvFlags::PEEK | RecvFlags::WAITALL;
        let peeked = rustix::net::recv(stream, &mut message[..12], flags);
        let word = |message: &[u8; 20], at: usize| {
            message[at..]
                .first_chunk()
                .map_or(0, |word| u32::from_ne_bytes(*word))
        };
        let header = [word(&message, 0), word(&message, 8)];
        if !peeked.is_ok_and(|(len, _)| len == 12) || header != [SET_VRING_ENABLE, 8] {
            return false;
        }
        let taken = rustix::net::recv(stream, &mut message, RecvFlags::WAITALL);
        if !taken.is_ok_and(|(len, _)| len == message.len()) {
            return false;
        }
        let (index, enable) = (word(&message, 12), word(&message, 16) == 1);
        let refused = lock(&self.device).set_vring_enable(index, enable).is_err();
        if word(&message, 4) & NEED_REPLY != 0 {
            let mut reply = Vec::with_capacity(20);
            for part in [SET_VRING_ENABLE, IS_REPLY, 8, refused.into(), 0] {
                reply.extend(part.to_ne_bytes());
            }
            let _ = rustix::net::send(stream, &reply, SendFlags::NOSIGNAL);
        }
        true
    }

    /// Whether the last connection that the log tells of was long enough ago.
    fn may_tell(&self) -> bool {
        let mut told = lock(&self.told);
        let long_ago = told.is_none_or(|at| at.elapsed() >= TELL);
        if long_ago {
            *told = Some(Instant::now());
        }
        long_ago
    }

    /// Waits until the descriptor is readable; `false` if it is time to end.
    fn wait(&self, readable: Option<std::os::fd::BorrowedFd<'_>>, timeout: PollTimeout) -> bool {
        let stop = PollFd::new(self.stop.as_fd(), PollFlags::POLLIN);
        let other = readable.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let mut fds: Vec<_> = other.into_iter().chain([stop]).collect();
        let _ = poll(&mut fds, timeout);
        !self.stopping.load(Ordering::SeqCst)
    }

    fn pause(&self) {
        let timeout = PollTimeout::try_from(RETRY).unwrap_or(PollTimeout::MAX);
        self.wait(None, timeout);
    }
}

/// A lock that a panic of the other side does not take away.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Listens, with the permissions from the first moment. A socket that a dead process has left
/// is replaced, one that is served is not.
fn listen(path: &Path, permissions: u32) -> io::Result<UnixListener> {
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        let is_socket = metadata.file_type().is_socket();
        if !is_socket || UnixStream::connect(path).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        std::fs::remove_file(path)?;
    }
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Linux makes the file with the mode of the socket, less the umask.
    fchmod(&socket, Mode::from_raw_mode(permissions))?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(permissions))?;
    rustix::net::listen(&socket, 1)?;
    Ok(UnixListener::from(socket))
}
