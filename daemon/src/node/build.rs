//! From the configuration to running nodes.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use vesper_esp::PacketBuf;
use vesper_offload::{Host, Nic, Profile, SriovError};

use super::driver::Driver;
use super::handle::{NodeHandle, Stopped};
use super::statistics::{Board, Statistics};
use super::waker::Waker;
use super::worker::{Clock, Shared, Worker, cpus};
use crate::config::{Config, HostConfig, VmConfig};
use crate::port::{Opener, Place, Pool, PortError};

/// Bytes of an Ethernet header with a tag.
const LINK: u32 = 18;

/// The nodes of a configuration, running.
#[derive(Debug)]
pub struct Nodes {
    nodes: Vec<Node>,
    threads: Vec<Thread>,
    clock: Clock,
}

#[derive(Debug)]
struct Node {
    handle: NodeHandle,
    board: Arc<Board>,
}

#[derive(Debug)]
struct Thread {
    shared: Arc<Shared>,
    roles: Arc<str>,
    join: Mutex<Option<JoinHandle<()>>>,
}

/// Why nodes could not be started.
#[derive(Debug)]
pub enum StartError {
    /// A port could not be opened.
    Port {
        /// Whose: host, or host/vm.
        place: String,
        /// Why.
        error: PortError,
    },
    /// The adapter refused the NIC switch of this host.
    Switch(String, SriovError),
    /// The system refused a thread or a descriptor.
    System(io::Error),
}

impl Nodes {
    /// Starts the nodes that the configuration names, without their machines, whose ports are
    /// opened by the opener that comes back. Nothing is taken from machines until
    /// [`release`](Self::release): first it has to be known what to protect.
    pub fn start(config: &Config) -> Result<(Self, Opener), StartError> {
        let clock = Clock::start();
        let mut opener = Opener::new();
        let mut builder = Builder {
            clock,
            cpus: cpus(),
            next: 0,
            workers: BTreeMap::new(),
        };
        let mut nodes = Vec::new();
        for host in &config.hosts {
            nodes.push(builder.node(host, &mut opener)?);
        }
        let threads = builder.start()?;
        let nodes = Self {
            nodes,
            threads,
            clock,
        };
        Ok((nodes, opener))
    }

    /// The nodes, in the order of the configuration.
    pub fn handles(&self) -> impl Iterator<Item = &NodeHandle> {
        self.nodes.iter().map(|node| &node.handle)
    }

    /// The clock of the workers.
    pub const fn clock(&self) -> Clock {
        self.clock
    }

    /// Where everything stands, at most a few hundredths of a second old.
    pub fn statistics(&self) -> Statistics {
        let workers = self.threads.iter();
        Statistics {
            nodes: self.nodes.iter().map(|node| node.board.look()).collect(),
            workers: workers
                .map(|thread| thread.shared.statistics(&thread.roles))
                .collect(),
        }
    }

    /// Begins to take frames from machines, and, the first time, from the network.
    pub fn release(&self) -> Result<(), Stopped> {
        self.handles().try_for_each(NodeHandle::release)
    }

    /// Stops to take frames from machines; those that are on their way go on.
    pub fn hold(&self) -> Result<(), Stopped> {
        self.handles().try_for_each(NodeHandle::hold)
    }

    /// Ends the workers. What is still on its way is lost. Returns where everything stands
    /// then.
    pub fn stop(&self) -> Statistics {
        for thread in &self.threads {
            thread.shared.stop();
        }
        for thread in &self.threads {
            let mut join = thread.join.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(join) = join.take() {
                // A panic was reported where it happened.
                let _ = join.join();
            }
        }
        self.statistics()
    }
}

/// Spreads what there is to do over threads.
struct Builder {
    clock: Clock,
    /// Those that the process may use.
    cpus: Vec<usize>,
    next: usize,
    /// By CPU.
    workers: BTreeMap<Option<usize>, Draft>,
}

/// A worker that is not running yet.
struct Draft {
    worker: Worker,
    shared: Arc<Shared>,
    roles: Vec<String>,
}

impl Builder {
    fn node(&mut self, config: &HostConfig, opener: &mut Opener) -> Result<Node, StartError> {
        let profile = Profile::by_name(&config.adapter).unwrap_or_else(Profile::full);
        let nic = Arc::new(Nic::<PacketBuf>::new(Profile {
            processors: *config.processors,
            ..profile
        }));
        if let Some(switch) = config.nic_switch {
            nic.create_nic_switch(switch.into())
                .map_err(|error| StartError::Switch(config.name.to_string(), error))?;
        }
        let host = Host::new(Arc::clone(&nic), config.switch.into());
        let (handle, commands) = NodeHandle::new(&config.name, Arc::clone(&nic));
        let board = Arc::new(Board::new(&config.name));
        let place = Place {
            mac: config.tunnel.mac.0,
            gateway: config.tunnel.mac.0,
            frame: *config.frame,
        };
        let uplink = opener
            .open_uplink(&config.uplink, &place, &config.tunnel)
            .map_err(|error| StartError::Port {
                place: format!("host {}", config.name),
                error,
            })?;
        let pool = Pool::new(*config.buffers as usize, *config.frame as usize);
        let mut driver = Driver::new(
            &config.name,
            host,
            commands,
            uplink,
            pool,
            Arc::clone(&board),
        );

        let workers = usize::from(*config.workers);
        let places: Vec<_> = (0..workers).map(|index| self.cpu(config, index)).collect();
        let mut host_waker = None;
        for (index, cpu) in places.iter().enumerate() {
            let draft = self.worker(*cpu)?;
            let waker = Arc::clone(&draft.shared.waker);
            let host_waker = host_waker.get_or_insert_with(|| Arc::clone(&waker));
            if index == 0 {
                draft.roles.push(config.name.to_string());
            }
            // The host is role 0, the processors are the others.
            for processor in 0..usize::from(*config.processors) {
                if (processor + 1) % workers != index {
                    continue;
                }
                draft
                    .roles
                    .push(format!("{} processor {processor}", config.name));
                if Arc::ptr_eq(host_waker, &waker) {
                    driver.run_processor(processor);
                } else {
                    draft
                        .worker
                        .run_processor(Arc::clone(&nic), processor, Arc::clone(host_waker));
                    driver.wake_too(waker.clone());
                }
            }
        }
        if let Some(first) = places.first() {
            self.worker(*first)?.worker.drive(driver);
        }
        Ok(Node { handle, board })
    }

    /// The CPU of a host's worker; the same one for several if there are too few.
    fn cpu(&mut self, config: &HostConfig, index: usize) -> Option<usize> {
        if let Some(cpus) = &config.cpus {
            return cpus.get(index % cpus.len().max(1)).copied();
        }
        let count = self.cpus.len();
        if count == 0 {
            return None;
        }
        self.next += 1;
        self.cpus.get((self.next - 1) % count).copied()
    }

    fn worker(&mut self, cpu: Option<usize>) -> Result<&mut Draft, StartError> {
        use std::collections::btree_map::Entry;
        Ok(match self.workers.entry(cpu) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let waker = Waker::new().map_err(StartError::System)?;
                let shared = Arc::new(Shared::new(waker, cpu));
                entry.insert(Draft {
                    worker: Worker::new(self.clock, Arc::clone(&shared)),
                    shared,
                    roles: Vec::new(),
                })
            }
        })
    }

    fn start(self) -> Result<Vec<Thread>, StartError> {
        let mut threads = Vec::new();
        for (index, draft) in self.workers.into_values().enumerate() {
            let worker = draft.worker;
            let join = thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || worker.run())
                .map_err(StartError::System)?;
            threads.push(Thread {
                shared: draft.shared,
                roles: draft.roles.join(", ").into(),
                join: Mutex::new(Some(join)),
            });
        }
        Ok(threads)
    }
}

impl VmConfig {
    /// Where the port of the machine is.
    pub fn place(&self, host: &HostConfig) -> Place {
        Place {
            mac: self.mac.0,
            gateway: host.tunnel.mac.0,
            frame: *host.frame,
        }
    }
}

impl Place {
    /// The longest IP packet in bytes that fits into a buffer.
    pub const fn mtu(&self) -> u32 {
        self.frame.saturating_sub(LINK)
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port { place, error } => write!(f, "{place}: {error}"),
            Self::Switch(host, error) => write!(f, "host {host}: nic_switch: {error}"),
            Self::System(error) => write!(f, "the system refuses a thread or descriptor: {error}"),
        }
    }
}

impl std::error::Error for StartError {}
