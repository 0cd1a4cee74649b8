//! The daemon while it runs: nodes, plane, store and control, started and stopped in order.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vesper_verify::xfrm::{PolicyLine, State, parse_policies};

use super::desired;
use super::durable::{Durable, parse};
use super::reload::Reloader;
use crate::config::Config;
use crate::control::{Control, ControlSettings, Service};
use crate::node::{NodeHandle, Nodes, Statistics};
use crate::pair;
use crate::plane::{Origin, Persistence, Plane, Resume, SaSpec, Scope, Volatile};
use crate::port::Opener;
use crate::store::{
    Alarm, Files, Kek, Origin as StoredOrigin, Recovered, RecoveredSa, Refill, RefillSettings,
    Standing, Store,
};

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
        let (durable, recovered) = match &config.daemon.state {
            Some(state) => {
                let (durable, recovered) = open_store(&config, state)?;
                (Some(Arc::new(durable)), recovered)
            }
            None => (None, Recovered::default()),
        };
        let persistence: Arc<dyn Persistence> = match &durable {
            Some(durable) => Arc::clone(durable) as Arc<dyn Persistence>,
            None => Arc::new(Volatile::default()),
        };
        let plane = Arc::new(Plane::new(persistence)?);
        let (nodes, mut opener) = Nodes::start(&config)?;
        let nodes = Arc::new(nodes);
        let set_up = set_up(&config, &plane, &nodes, &mut opener).and_then(|()| {
            let durable = durable.as_deref();
            recover(&config, &plane, durable, &recovered)?;
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
            Some(socket) => Some(serve(socket, &plane, &nodes, &reloader)?),
            None => None,
        };
        let listener = Listener::start(&plane, &nodes, durable.clone())?;
        nodes.release()?;
        Ok(Self {
            nodes,
            durable,
            listener: Some(listener),
            reloader,
            control,
        })
    }

    /// How everything stands.
    pub(super) fn statistics(&self) -> Statistics {
        self.nodes.statistics()
    }

    /// Reads the configuration anew; what it said.
    pub(super) fn reload(&self) -> String {
        match self.reloader.reload(false) {
            Ok(diff) if diff.is_empty() => "reloaded: nothing has changed".to_owned(),
            Ok(diff) => format!("reloaded:\n{diff}"),
            Err(refusal) => format!("not reloaded, nothing has changed: {refusal}"),
        }
    }

    /// Stops in order: takes nothing more, lets what is on its way arrive, keeps what has to
    /// survive. Returns how everything stands then.
    pub(super) fn stop(mut self) -> Result<Statistics, Failure> {
        self.control = None;
        self.nodes.hold()?;
        drain(&self.nodes);
        if let Some(listener) = self.listener.take() {
            listener.stop();
        }
        let now = self.nodes.clock().now();
        let statistics = self.nodes.stop();
        if let Some(durable) = &self.durable {
            durable.finish(now)?;
        }
        Ok(statistics)
    }
}

impl Listener {
    fn start(
        plane: &Arc<Plane>,
        nodes: &Arc<Nodes>,
        durable: Option<Arc<Durable>>,
    ) -> std::io::Result<Self> {
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
                        if let Some(durable) = &durable {
                            durable.notice(handle.name(), &events);
                        }
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

fn open_store(config: &Config, state: &Path) -> Result<(Durable, Recovered), Failure> {
    std::fs::create_dir_all(state).map_err(|error| format!("{}: {error}", state.display()))?;
    let kek = match &config.daemon.key {
        Some(key) => Kek::read(key)?,
        None => Kek::read_or_create(&state.join("key"))?,
    };
    let (store, recovered) = Store::open(Files::in_directory(state), &kek)?;
    if let Some(loss) = recovered.loss {
        tracing::error!(
            detail = recovered.detail,
            "{loss}: associations need new keys"
        );
    }
    let (refill, _) = Refill::start(
        store.clone(),
        RefillSettings::default(),
        |alarm| match alarm {
            Alarm::Failing { reason } => tracing::error!(reason, "nothing can be made durable"),
            Alarm::Mended => tracing::info!("the store works again"),
            Alarm::NeedsRekey { name, reason } => {
                tracing::error!(reason, "{name} needs a new key");
            }
        },
    )?;
    Ok((Durable::new(store, refill, &recovered), recovered))
}

/// Nodes and machines.
fn set_up(
    config: &Config,
    plane: &Plane,
    nodes: &Nodes,
    opener: &mut Opener,
) -> Result<(), Failure> {
    for (host, handle) in config.hosts.iter().zip(nodes.handles()) {
        plane.add_node(handle.clone(), desired::node(host));
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

/// Associations and policies: those of the configuration, and those that were there before.
fn recover(
    config: &Config,
    plane: &Plane,
    durable: Option<&Durable>,
    recovered: &Recovered,
) -> Result<(), Failure> {
    let desired = desired::everything(config)?;
    let mut configured = Vec::new();
    let mut found = Vec::new();
    for state in desired.sas {
        let before = durable.and_then(|durable| before(durable, recovered, &state));
        let resume = match (before, recovered.loss) {
            (Some(before), _) => resume(&before.standing),
            // Nobody knows whether the key was used.
            (None, Some(loss)) => Resume::NeedsRekey(loss.to_string()),
            (None, None) => Resume::New,
        };
        found.extend(before.map(|before| &before.sa.name));
        configured.push(SaSpec { state, resume });
    }
    plane.add_sas(Scope::All, configured, Origin::Configured)?;
    plane.add_policies(desired.policies, false, Origin::Configured)?;

    for before in &recovered.sas {
        if found.contains(&&before.sa.name) {
            continue;
        }
        if before.sa.origin == StoredOrigin::File {
            // The configuration does not ask for it any more.
            if let Some(durable) = durable {
                durable.forget(&before.sa.name)?;
            }
            continue;
        }
        let spec = SaSpec {
            state: parse(&before.sa.words)?,
            resume: resume(&before.standing),
        };
        if let Err(refusal) = plane.add_sas(Scope::All, vec![spec], Origin::Requested) {
            tracing::error!("{} is not in force: {refusal}", before.sa.name);
        }
    }
    for (node, vm, words) in &recovered.policies {
        let mut lines: Vec<PolicyLine> = Vec::new();
        for words in words {
            lines.extend(parse_policies(words, "store")?);
        }
        if let Err(refusal) = plane.add_policies(lines, false, Origin::Requested) {
            tracing::error!("policies of {node}/{vm} are not in force: {refusal}");
        }
    }
    Ok(())
}

/// What the store knows of an association of the configuration: the same words, the same key.
fn before<'a>(
    durable: &Durable,
    recovered: &'a Recovered,
    state: &State,
) -> Option<&'a RecoveredSa> {
    let key = durable.fingerprint(&state.keys);
    recovered.sas.iter().find(|before| {
        before.sa.key == key
            && Some(&before.sa.name.node) == state.host.as_ref()
            && before.sa.name.sa.spi == state.spi
            && before.sa.name.sa.destination == state.destination
    })
}

fn resume(standing: &Standing) -> Resume {
    match standing {
        Standing::Fresh => Resume::After(0),
        Standing::Restored(snapshot) => Resume::After(snapshot.sequence()),
        Standing::After { sequence, .. } => Resume::After(*sequence),
        Standing::NeedsRekey(loss) => Resume::NeedsRekey(loss.to_string()),
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
    Ok(Control::start(
        &ControlSettings::at(socket.to_owned()),
        service,
    )?)
}

/// Waits until nothing is on its way any more, or for the longest time that it may take.
fn drain(nodes: &Nodes) {
    let deadline = Instant::now() + DRAIN;
    while Instant::now() < deadline {
        let statistics = nodes.statistics();
        if statistics.nodes.iter().all(|node| node.in_flight() == 0) {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
}
