//! The daemon while it runs: nodes, plane, store and control, started and stopped in order.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vesper_sa::VmId;
use vesper_verify::xfrm::{Line, PolicyLine, State, parse_lines, parse_policies};

use super::desired;
use super::housekeeping;
use super::reload::Reloader;
use crate::config::{Config, Located, UserConfig};
use crate::control::{Control, ControlSettings, Peers, Service, TcpSettings};
use crate::node::{NodeHandle, NodeStatistics, Nodes, Statistics};
use crate::ops::{Operations, ServiceManager, Sources};
use crate::pair;
use crate::plane::{Change, Origin, Persistence, Plane, SaSpec, Scope, Volatile};
use crate::port::Opener;
use crate::secret_file;
use crate::store::{Alarm, Durable, Files, RefillSettings, StorePaths};

type Failure = Box<dyn std::error::Error>;

/// How often what happened is collected from the nodes.
const LISTEN: Duration = Duration::from_millis(50);

/// How often limits by time are enforced on associations that carry nothing.
const EXPIRE: Duration = Duration::from_secs(1);

/// How long what is on its way may take to arrive when the daemon ends.
const DRAIN: Duration = Duration::from_secs(2);

/// Everything that runs.
#[derive(Debug)]
pub(super) struct Running {
    nodes: Arc<Nodes>,
    durable: Option<Arc<Durable>>,
    listener: Option<Listener>,
    reloader: Arc<Reloader>,
    control: Option<Control>,
    operations: Option<Operations>,
}

/// The thread that collects what happened.
#[derive(Debug)]
struct Listener {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Running {
    /// Starts what a configuration asks for. No packet is taken before everything is in force.
    pub(super) fn start(config: Config, file: Option<&Path>) -> Result<Self, Failure> {
        let durable = match &config.daemon.state {
            Some(state) => Some(Arc::new(open_store(&config, state)?)),
            None => None,
        };
        let persistence: Arc<dyn Persistence> = match &durable {
            Some(durable) => Arc::clone(durable) as Arc<dyn Persistence>,
            None => Arc::new(Volatile::default()),
        };
        let plane = Arc::new(Plane::new(persistence)?);
        let (nodes, mut opener) = Nodes::start(&config)?;
        housekeeping::keep_off_workers(&nodes.statistics());
        let nodes = Arc::new(nodes);
        let durable_ref = durable.as_deref();
        let set_up = set_up(&config, &plane, &nodes, &mut opener, durable_ref).and_then(|()| {
            let durable = durable.as_deref();
            recover(&config, &plane, durable)?;
            pairs(&config, &plane, durable)
        });
        let paired = match set_up {
            Ok(paired) => paired,
            Err(error) => {
                nodes.stop();
                return Err(error);
            }
        };
        let reloader = Arc::new(Reloader::new(
            file,
            config.clone(),
            Arc::clone(&plane),
            paired,
        ));
        let control = match &config.daemon.control {
            Some(socket) => Some(serve(&config, socket, &plane, &nodes, &reloader)?),
            None => None,
        };
        let listener = Listener::start(&plane, &nodes)?;
        let shown = Arc::clone(&nodes);
        let sources = Sources {
            statistics: Arc::new(move || shown.statistics()),
            plane,
            store: durable.as_ref().map(|durable| durable.store().clone()),
        };
        let operations = Operations::start(config.daemon.status, sources)?;
        nodes.release()?;
        ServiceManager.ready();
        Ok(Self {
            nodes,
            durable,
            listener: Some(listener),
            reloader,
            control,
            operations: Some(operations),
        })
    }

    /// How everything stands.
    pub(super) fn statistics(&self) -> Statistics {
        self.nodes.statistics()
    }

    /// Where metrics and status page are served.
    pub(super) fn status_address(&self) -> Option<SocketAddr> {
        self.operations.as_ref().and_then(Operations::address)
    }

    /// Reads the configuration anew, and logs what came of it.
    pub(super) fn reload(&self) {
        match self.reloader.reload(false) {
            Ok(diff) if diff.is_empty() => tracing::info!("reloaded: nothing has changed"),
            Ok(diff) => tracing::info!("reloaded:\n{diff}"),
            Err(refusal) => tracing::error!("not reloaded, nothing has changed: {refusal}"),
        }
    }

    /// Stops in order: takes nothing more, lets what is on its way arrive, keeps what has to
    /// survive. `is_closed`: all hosts are joined by cables, so that what one sends another one
    /// gets. Returns how everything stands then.
    pub(super) fn stop(mut self, is_closed: bool) -> Result<Statistics, Failure> {
        ServiceManager.stopping();
        self.control = None;
        self.operations = None;
        self.nodes.hold()?;
        drain(&self.nodes, is_closed);
        if let Some(listener) = self.listener.take() {
            listener.stop();
        }
        let now = self.nodes.clock().now();
        let statistics = self.nodes.stop();
        if let Some(durable) = &self.durable {
            durable.close(now)?;
        }
        Ok(statistics)
    }
}

impl Listener {
    fn start(plane: &Arc<Plane>, nodes: &Arc<Nodes>) -> std::io::Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        let (plane, flag) = (Arc::clone(plane), Arc::clone(&ended));
        let handles: Vec<NodeHandle> = nodes.handles().cloned().collect();
        let thread = thread::Builder::new()
            .name("events".to_owned())
            .spawn(move || {
                let mut expired = Instant::now();
                while !flag.load(Ordering::Relaxed) {
                    for handle in &handles {
                        let Ok(events) = handle.call(|host, _| host.take_events()) else {
                            continue;
                        };
                        plane.report(handle.name(), events);
                    }
                    if expired.elapsed() >= EXPIRE {
                        expired = Instant::now();
                        plane.expire();
                    }
                    thread::park_timeout(LISTEN);
                }
            })?;
        Ok(Self { ended, thread })
    }

    fn stop(self) {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        // A panic was reported where it happened.
        let _ = self.thread.join();
    }
}

fn open_store(config: &Config, state: &Path) -> Result<Durable, Failure> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state)
        .map_err(|error| format!("{}: {error}", state.display()))?;
    let mut files = Files::in_directory(state);
    if let Some(anchor) = &config.daemon.anchor {
        files.anchor.clone_from(anchor);
    }
    let kek = match &config.daemon.key {
        Some(key) => {
            secret_file::resolve(key).map_err(|error| format!("{}: {error}", key.display()))?
        }
        None => state.join("key"),
    };
    let paths = StorePaths { files, kek };
    let durable = Durable::open(&paths, RefillSettings::default(), |alarm| match alarm {
        Alarm::Failing { reason } => tracing::error!(reason, "nothing can be made durable"),
        Alarm::Mended => tracing::info!("the store works again"),
        Alarm::NeedsRekey { name, reason } => {
            tracing::error!(reason, "{name} needs a new key");
        }
    })?;
    if let Some((loss, detail)) = durable.loss() {
        tracing::error!(detail, "{loss}: associations need new keys");
    }
    Ok(durable)
}

/// Nodes and machines.
fn set_up(
    config: &Config,
    plane: &Plane,
    nodes: &Nodes,
    opener: &mut Opener,
    durable: Option<&Durable>,
) -> Result<(), Failure> {
    for (host, handle) in config.hosts.iter().zip(nodes.handles()) {
        plane.add_node(handle.clone(), desired::node(host));
    }
    for (host, params) in durable.map(Durable::requested_switches).unwrap_or_default() {
        let mut hosts = config.hosts.iter();
        if hosts.any(|other| *other.name == host && other.nic_switch.is_none())
            && let Err(refusal) = plane.make_switch(&host, params)
        {
            tracing::error!("the NIC switch of {host} is not there: {refusal}");
        }
    }
    for host in &config.hosts {
        for vm in &host.vms {
            let port = opener
                .open(&vm.port, &vm.place(host))
                .map_err(|error| format!("vm {}/{}: {error}", host.name, vm.name))?;
            let spec = desired::machine(host, vm);
            plane.add_vm(spec, Some(port), Origin::Configured)?;
        }
    }
    Ok(())
}

/// Associations and policies: those of the configuration, and those that there were before.
/// The plane asks the store where each may go on.
fn recover(config: &Config, plane: &Plane, durable: Option<&Durable>) -> Result<(), Failure> {
    let desired = desired::everything(config)?;
    let configured = desired.sas.into_iter().map(SaSpec::new).collect();
    plane.add_sas(Scope::All, configured, Origin::Configured)?;
    plane.add_policies(desired.policies, false, Origin::Configured)?;
    let Some(durable) = durable else {
        return Ok(());
    };
    let waiting = restore_vms(plane, durable)?;
    // One by one: one that is refused (another's limit, numbers used up) takes no other along.
    for words in durable.requested_sas() {
        let state = parse(&words)?;
        let (spi, destination) = (state.spi, state.destination);
        let spec = SaSpec::new(state);
        if let Err(refusal) = plane.add_sas(Scope::All, vec![spec], Origin::Requested) {
            tracing::error!("{destination} {spi} is not in force: {refusal}");
        }
    }
    for words in durable.requested_policies() {
        let lines = parse_policies(&words, "store")?;
        if let Err(refusal) = plane.add_policies(lines, false, Origin::Requested) {
            tracing::error!("policy {words} is not in force: {refusal}");
        }
    }
    durable.started(&waiting)?;
    Ok(())
}

/// Machines that were added by request before; those that can not be there this time.
fn restore_vms(plane: &Plane, durable: &Durable) -> Result<Vec<VmId>, Failure> {
    let mut waiting = Vec::new();
    for (host, name, settings) in durable.requested_vms() {
        // One of the configuration has taken its place.
        if plane.vm_named(Some(&host), &name).is_ok() {
            let (host, vm) = (&*host, &*name);
            durable.commit(&[Change::DeleteVm { host, vm }])?;
            continue;
        }
        if let Err(refusal) = plane.restore_vm(&host, &name, &settings) {
            tracing::error!(
                "vm {host}/{name} is not there, and is tried again at the next start: {refusal}"
            );
            waiting.push(durable.vm_id(&host, &name)?);
        }
    }
    Ok(waiting)
}

/// The association that words describe.
fn parse(words: &str) -> Result<State, Failure> {
    match parse_lines(words, "store")?.into_iter().next() {
        Some(Line::State(state)) => Ok(*state),
        _ => Err("no words of an association".into()),
    }
}

/// What pairs got: their associations and policies.
pub(super) type Paired = (Vec<State>, Vec<PolicyLine>);

/// Fresh keys for machines of this process that talk to each other.
fn pairs(config: &Config, plane: &Plane, durable: Option<&Durable>) -> Result<Paired, Failure> {
    let mut paired = Paired::default();
    for vm in pair::keys(config)? {
        for words in &vm.sas {
            let state = State {
                host: Some(vm.host.clone()),
                vm: Some(vm.vm.clone()),
                ..parse(words.expose())?
            };
            if let Some(durable) = durable {
                durable.do_not_keep(&state.keys);
            }
            paired.0.push(state);
        }
        paired.1.extend(vm.policies()?);
    }
    let specs = paired.0.iter().cloned().map(SaSpec::new).collect();
    plane.add_sas(Scope::All, specs, Origin::Configured)?;
    plane.add_policies(paired.1.clone(), false, Origin::Configured)?;
    Ok(paired)
}

fn serve(
    config: &Config,
    socket: &Path,
    plane: &Arc<Plane>,
    nodes: &Arc<Nodes>,
    reloader: &Arc<Reloader>,
) -> Result<Control, Failure> {
    let (nodes, reloader) = (Arc::clone(nodes), Arc::clone(reloader));
    let service = Service {
        plane: Arc::clone(plane),
        statistics: Arc::new(move || nodes.statistics()),
        reload: Arc::new(move |only_check| reloader.reload(only_check)),
    };
    let peers = |group: &Option<Located<String>>, users: &[Located<UserConfig>]| Peers {
        group: group.as_ref().map(ToString::to_string),
        // The configuration was checked: they exist.
        uids: users.iter().filter_map(|user| user.uid()).collect(),
    };
    let control = &config.control;
    let settings = ControlSettings {
        peers: peers(&control.group, &control.users),
        vm_peers: peers(&control.vm_group, &control.vm_users),
        tcp: control.tcp.as_deref().map(|tcp| TcpSettings {
            address: tcp.address,
            certificate: tcp.certificate.clone(),
            key: tcp.key.clone(),
            client_authorities: tcp.client_authorities.clone(),
        }),
        ..ControlSettings::at(socket.to_owned())
    };
    Ok(Control::start(&settings, service)?)
}

/// Waits until nothing is on its way any more, or for the longest time that it may take.
fn drain(nodes: &Nodes, is_closed: bool) {
    let held = nodes.clock().now();
    let deadline = Instant::now() + DRAIN;
    while Instant::now() < deadline {
        let statistics = nodes.statistics();
        // Counted after the last frame was taken from a machine.
        let is_idle = |node: &NodeStatistics| node.at > held && node.in_flight() == 0;
        // Between two hosts a frame belongs to neither.
        let is_on_wire = is_closed && statistics.wire_difference() != 0;
        if statistics.nodes.iter().all(is_idle) && !is_on_wire {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
}
