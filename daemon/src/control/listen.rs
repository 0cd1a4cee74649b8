//! The sockets, and what happens to who connects.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use vesper_sa::VmId;

use super::connection::{self, Caller};
use super::peer::Allowed;
use super::slots::{Peer, Slots};
use super::{ControlError, ControlLimits, ControlSettings, Service, api, tls};
use crate::plane::{Plane, Scope};

/// How often the sockets of machines are brought in line with the machines, if no event said
/// that there is something to do.
const SYNC: Duration = Duration::from_secs(5);

/// How far the threads of the control interface stand back behind those of the packets.
const CONTROL_NICE: i32 = 10;

/// How long a thread that may wait for a worker or a disk stays without anything to do.
const KEEP: Duration = Duration::from_secs(3600);

/// Connections of one machine at a time.
const VM_CONNECTIONS: usize = 8;

/// How long to wait after the system had no descriptor for a connection.
const RESPITE: Duration = Duration::from_millis(50);

/// The control interface while it runs; dropping it ends it and removes its sockets.
#[derive(Debug)]
pub struct Control {
    runtime: Option<Runtime>,
    sockets: Arc<std::sync::Mutex<Vec<PathBuf>>>,
}

/// What every connection needs.
#[derive(Clone)]
struct Front {
    router: Router,
    slots: Arc<Slots>,
    limits: ControlLimits,
}

impl Control {
    /// Serves on all configured sockets, on threads of its own.
    ///
    /// # Errors
    /// A socket can not be had; then nothing is served.
    pub fn start(settings: &ControlSettings, service: Service) -> Result<Self, ControlError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(16)
            // Each new thread has memory of its own to be warmed up.
            .thread_keep_alive(KEEP)
            .thread_name("control")
            // Packets go first: on Linux this concerns the thread alone.
            .on_thread_start(|| {
                let _ = rustix::process::setpriority_process(None, CONTROL_NICE);
            })
            .enable_all()
            .build()
            .map_err(|error| ControlError::Path(settings.socket.clone(), error))?;
        let plane = Arc::clone(&service.plane);
        let front = Front {
            router: api::router(service, settings.limits),
            slots: Slots::new(settings.limits.connections),
            limits: settings.limits,
        };
        let mut control = Self {
            runtime: None,
            sockets: Arc::default(),
        };
        let entered = runtime.enter();
        let allowed = Allowed::new(&settings.peers)?;
        let listener = bind(&settings.socket, &allowed)?;
        control.remember(&settings.socket);
        if let Some(directory) = &settings.vm_sockets {
            let sockets = VmSockets {
                directory: directory.clone(),
                allowed: Allowed::new(&settings.vm_peers)?,
                front: front.clone(),
                plane,
                open: HashMap::new(),
                all: Arc::clone(&control.sockets),
            };
            runtime.spawn(sockets.follow());
        }
        if let Some(tcp) = &settings.tcp {
            let fault = |error| ControlError::Tcp(tcp.address, error);
            let acceptor = tls::acceptor(tcp)?;
            let listener = std::net::TcpListener::bind(tcp.address).map_err(fault)?;
            listener.set_nonblocking(true).map_err(fault)?;
            let listener = TcpListener::from_std(listener).map_err(fault)?;
            runtime.spawn(front.clone().serve_tls(listener, acceptor));
        }
        runtime.spawn(front.serve(listener, allowed, Scope::All));
        drop(entered);
        control.runtime = Some(runtime);
        Ok(control)
    }

    fn remember(&self, socket: &Path) {
        let mut sockets = self
            .sockets
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        sockets.push(socket.to_owned());
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
        let sockets = self
            .sockets
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        for socket in sockets.iter() {
            // It may have been removed by somebody else.
            let _ = fs::remove_file(socket);
        }
    }
}

impl Front {
    /// Takes connections of a Unix socket for as long as it exists.
    async fn serve(self, listener: UnixListener, allowed: Allowed, scope: Scope) {
        loop {
            let Some((stream, _)) = accepted(listener.accept().await).await else {
                continue;
            };
            let caller = caller(&stream, &allowed, scope);
            // If all places are taken by requests in work, who comes now has to come again.
            let process = stream.peer_cred().ok().and_then(|peer| peer.pid());
            let peer = Peer::Process(process.unwrap_or(0));
            if let Some(slot) = self.slots.take(peer) {
                let router = self.router.clone();
                tokio::spawn(connection::serve(stream, slot, caller, router, self.limits));
            }
        }
    }

    async fn serve_tls(self, listener: TcpListener, acceptor: tokio_rustls::TlsAcceptor) {
        loop {
            let Some((stream, address)) = accepted(listener.accept().await).await else {
                continue;
            };
            let Some(slot) = self.slots.take(Peer::Address(address.ip())) else {
                continue;
            };
            let (front, acceptor) = (self.clone(), acceptor.clone());
            tokio::spawn(async move {
                let handshake =
                    tokio::time::timeout(front.limits.patience, acceptor.accept(stream));
                let stream = tokio::select! {
                    done = handshake => done,
                    () = slot.evicted() => return,
                };
                // Without a certificate of the authorities there is no stream.
                let Ok(Ok(stream)) = stream else { return };
                let caller = Caller::Within(Scope::All);
                connection::serve(stream, slot, caller, front.router, front.limits).await;
            });
        }
    }
}

/// What was accepted; `None`, after a moment, if the system had nothing to give.
async fn accepted<T>(result: io::Result<T>) -> Option<T> {
    if result.is_err() {
        tokio::time::sleep(RESPITE).await;
    }
    result.ok()
}

fn caller(stream: &UnixStream, allowed: &Allowed, scope: Scope) -> Caller {
    match stream.peer_cred() {
        Ok(peer) if allowed.admits(peer.uid(), peer.gid()) => Caller::Within(scope),
        Ok(peer) => Caller::Stranger { uid: peer.uid() },
        Err(_) => Caller::Stranger { uid: u32::MAX },
    }
}

/// A listening socket, for the group if there is one. Its mode is 0660, and 0666 if users are
/// named: to whom the file system can not give it, and whom the kernel names when they connect.
fn bind(path: &Path, allowed: &Allowed) -> Result<UnixListener, ControlError> {
    let fault = |error| ControlError::Path(path.to_owned(), error);
    if let Some(directory) = path.parent() {
        make_directory(directory, allowed.names_others()).map_err(fault)?;
    }
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    if is_socket {
        match BlockingStream::connect(path) {
            Ok(_) => return Err(ControlError::InUse(path.to_owned())),
            // Left behind by a process that was killed.
            Err(_) => fs::remove_file(path).map_err(fault)?,
        }
    }
    let listener = UnixListener::bind(path).map_err(fault)?;
    if let Some(gid) = allowed.gid {
        chown(path, None, Some(gid.as_raw())).map_err(fault)?;
    }
    let mode = if allowed.names_users() { 0o666 } else { 0o660 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(fault)?;
    Ok(listener)
}

/// Makes a directory if there is none, which others may pass, whatever the umask, if sockets in
/// it are for them. What there is already stays as it is.
fn make_directory(path: &Path, for_others: bool) -> io::Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_directory(parent, for_others)?;
    }
    fs::create_dir(path)?;
    if for_others {
        fs::set_permissions(path, fs::Permissions::from_mode(0o711))?;
    }
    Ok(())
}

/// The sockets of the machines.
struct VmSockets {
    directory: PathBuf,
    allowed: Allowed,
    front: Front,
    plane: Arc<Plane>,
    open: HashMap<VmId, (PathBuf, JoinHandle<()>)>,
    all: Arc<std::sync::Mutex<Vec<PathBuf>>>,
}

impl VmSockets {
    /// Opens a socket for each machine that comes, and closes that of each one that goes.
    async fn follow(mut self) {
        let mut events = self.plane.events().subscribe();
        loop {
            self.sync();
            loop {
                let event = tokio::time::timeout(SYNC, events.recv()).await;
                match event {
                    Ok(Ok(event)) if !event.kind.starts_with("vm-") => {}
                    _ => break,
                }
            }
        }
    }

    fn sync(&mut self) {
        let vms = self.plane.vms();
        self.open.retain(|id, (path, task)| {
            let stays = vms.iter().any(|vm| vm.id == *id);
            if !stays {
                task.abort();
                // It may have been removed by somebody else.
                let _ = fs::remove_file(path);
            }
            stays
        });
        for vm in vms {
            if self.open.contains_key(&vm.id) {
                continue;
            }
            let path = self
                .directory
                .join(&vm.spec.host)
                .join(format!("{}.sock", vm.spec.name));
            match bind(&path, &self.allowed) {
                Ok(listener) => {
                    // Places of its own: what one machine does, nobody else feels.
                    let front = Front {
                        slots: Slots::new(VM_CONNECTIONS),
                        ..self.front.clone()
                    };
                    let scope = Scope::Vm(vm.id);
                    let task = tokio::spawn(front.serve(listener, self.allowed.clone(), scope));
                    self.all
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .push(path.clone());
                    self.open.insert(vm.id, (path, task));
                }
                Err(error) => tracing::error!("socket of {}: {error}", vm.spec.name),
            }
        }
    }
}
