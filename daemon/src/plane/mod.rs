//! The plane: which machines, associations and policies there should be on every node, and the
//! verbs that change it. It is the only thing that changes them while packets pass.
//!
//! ```text
//!   API, command line, reload
//!            │ words of ip xfrm, machine specs
//!            ▼
//!   check against the registry ─▶ expand keys, build tables ─▶ make durable ─▶ one call per node
//!            │ refusal: nothing has changed                    (Persistence)     (NodeHandle)
//!            ▼
//!   registry: names, words without keys, Arc<EspSa>: listing never bothers a worker
//! ```
//!
//! Everything here may block and belongs to control threads.

mod change;
mod doctor;
mod event;
mod filter;
mod force;
mod kept;
mod persistence;
mod policy;
mod record;
mod refusal;
mod registry;
mod reload;
mod sa;
mod spec;
mod together;
mod vm;
mod volatile;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use vesper_sa::Timestamp;

use crate::node::NodeHandle;
use registry::Registry;

pub use change::Diff;
pub use doctor::{Finding, Severity};
pub use event::{Event, Events, Subject};
pub use filter::{PolicyFilter, SaFilter};
pub use persistence::{Change, Persistence, PersistenceError, Secret};
pub use record::{Origin, PolicyRecord, SaId, SaRecord, VmRecord};
pub use refusal::{Kind, Refusal};
pub use spec::{Desired, MachineSpec, NodeSpec, Resume, SaSpec};
pub use vm::VmChange;
pub use volatile::Volatile;

/// Who asks: what is not in the scope does not exist for the asker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    All,
    /// The associations of one machine.
    Vm(vesper_sa::VmId),
}

/// The desired state of all nodes, and the verbs on it.
pub struct Plane {
    nodes: RwLock<Vec<Node>>,
    registry: RwLock<Registry>,
    /// Held by whoever changes something, from the check to the end.
    changing: Mutex<()>,
    /// What waits for whoever does so next.
    waiting: together::Waiting,
    persistence: Arc<dyn Persistence>,
    events: Events,
    /// Begins the fingerprints of keys, so that they mean nothing outside of this process.
    salt: [u8; 32],
}

/// A node that the plane governs.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) handle: NodeHandle,
    pub(crate) spec: Arc<NodeSpec>,
}

impl Plane {
    /// A plane without nodes.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn new(persistence: Arc<dyn Persistence>) -> Result<Self, Refusal> {
        let mut salt = [0; 32];
        getrandom::fill(&mut salt)
            .map_err(|error| Refusal::unavailable(format!("no random numbers: {error}")))?;
        Ok(Self {
            nodes: RwLock::default(),
            registry: RwLock::default(),
            changing: Mutex::default(),
            waiting: together::Waiting::default(),
            persistence,
            events: Events::default(),
            salt,
        })
    }

    /// Takes a node on. Its name is that of its handle.
    pub fn add_node(&self, handle: NodeHandle, spec: NodeSpec) {
        let node = Node {
            handle,
            spec: Arc::new(spec),
        };
        self.nodes
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(node);
    }

    /// The nodes, in the order in which they were taken on.
    pub fn nodes(&self) -> Vec<NodeHandle> {
        self.read_nodes()
            .iter()
            .map(|node| node.handle.clone())
            .collect()
    }

    /// The name of this host; without a name that of the only one there is.
    pub fn host_named(&self, host: Option<&str>) -> Result<String, Refusal> {
        let (_, node) = self.node_named(host)?;
        Ok(node.handle.name().to_owned())
    }

    /// What was said about a node.
    pub fn node_spec(&self, host: &str) -> Result<Arc<NodeSpec>, Refusal> {
        Ok(self.node_named(Some(host))?.1.spec)
    }

    /// What happens, for whoever subscribes.
    pub const fn events(&self) -> &Events {
        &self.events
    }

    pub(crate) fn read_nodes(&self) -> RwLockReadGuard<'_, Vec<Node>> {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn node(&self, index: usize) -> Result<Node, Refusal> {
        let node = self.read_nodes().get(index).cloned();
        node.ok_or_else(|| Refusal::unavailable("the node is gone".to_owned()))
    }

    /// The node with this name; without a name the only one there is.
    pub(crate) fn node_named(&self, host: Option<&str>) -> Result<(usize, Node), Refusal> {
        let nodes = self.read_nodes();
        let found = match (host, nodes.as_slice()) {
            (None, [_]) => Some(0),
            (None, _) => {
                let names: Vec<_> = nodes.iter().map(|node| node.handle.name()).collect();
                return Err(Refusal::words(
                    "host",
                    "",
                    "missing: there are several hosts",
                    format!("say `host NAME`; there are {}", names.join(", ")),
                ));
            }
            (Some(host), nodes) => nodes.iter().position(|node| node.handle.name() == host),
        };
        found
            .and_then(|index| Some((index, nodes.get(index)?.clone())))
            .ok_or_else(|| Refusal::not_found("host", host.unwrap_or_default()))
    }

    pub(crate) fn registry(&self) -> RwLockReadGuard<'_, Registry> {
        self.registry.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn registry_mut(&self) -> RwLockWriteGuard<'_, Registry> {
        self.registry
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// To be held while something changes.
    pub(crate) fn begin_change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The moment on the clock of a node's packets.
    pub(crate) fn now(node: &Node) -> Result<Timestamp, Refusal> {
        Ok(node.handle.call(|_, now| now)?)
    }
}

impl fmt::Debug for Plane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plane")
            .field("nodes", &self.read_nodes().len())
            .finish_non_exhaustive()
    }
}
