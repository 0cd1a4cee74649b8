//! What a node has done so far: the one snapshot that table, API and metrics are made of.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use vesper_esp::Counters;
use vesper_offload::{DataPath, Losses, MachineCounters, Usage, VmCounters};
use vesper_sa::{SaUsage, Timestamp, VmId};

use crate::port::PortStatus;

/// All nodes and workers of the process at one moment.
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    /// The nodes, in the order of the configuration.
    pub nodes: Vec<NodeStatistics>,
    /// The workers.
    pub workers: Vec<WorkerStatistics>,
}

/// One node. Every counter counts from the start of the process.
#[derive(Clone, Debug, Default)]
pub struct NodeStatistics {
    /// Its name.
    pub name: Arc<str>,
    /// When this was counted, on the clock of the workers.
    pub at: Timestamp,
    /// The port to the network.
    pub uplink: PortStatus,
    /// Its machines.
    pub machines: Vec<MachineStatistics>,
    /// What ESP has done, adapter and host's software together.
    pub esp: Counters,
    /// Frames that were lost before it was known for whom they are.
    pub losses: Losses,
    /// Frames that were on their way from or to machines when those were removed.
    pub abandoned: u64,
    /// Packet buffers that are free.
    pub free_buffers: usize,
}

/// One machine.
#[derive(Clone, Debug)]
pub struct MachineStatistics {
    /// Its identifier.
    pub vm: VmId,
    /// Its name.
    pub name: Arc<str>,
    /// The way that its packets take.
    pub path: PathKind,
    /// Its port: what came from the machine is `received`, what it got is `sent`.
    pub port: PortStatus,
    /// Frames that could not be given to it.
    pub unusable: u64,
    /// Associations that it has and may have.
    pub sas: SaUsage,
    /// Of those, offloaded ones.
    pub offloaded: Usage,
    /// What the adapter has done for it.
    pub adapter: VmCounters,
    /// What the host has done for it.
    pub host: MachineCounters,
}

/// The way that a machine's packets take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PathKind {
    /// The software switch and the host's cryptography.
    Software,
    /// The software switch both ways, the adapter's cryptography.
    Synthetic,
    /// A receive queue of its own.
    Queue,
    /// A virtual function.
    Function,
}

/// A thread that drives nodes.
#[derive(Clone, Debug, Default)]
pub struct WorkerStatistics {
    /// What it drives.
    pub roles: Arc<str>,
    /// The CPU that it is pinned to.
    pub cpu: Option<usize>,
    /// Nanoseconds in which it moved something.
    pub busy: u64,
    /// Nanoseconds since it was started.
    pub elapsed: u64,
    /// Times that it went to sleep.
    pub sleeps: u64,
}

/// Where a worker shows how its node stands. It never waits for who is looking.
#[derive(Debug)]
pub(super) struct Board(Mutex<NodeStatistics>);

impl Statistics {
    /// What hosts sent less what hosts received: what is between them, where all of them are
    /// joined by cables.
    pub fn wire_difference(&self) -> i64 {
        let nodes = self.nodes.iter();
        nodes
            .map(|node| node.uplink.sent as i64 - node.uplink.received as i64)
            .sum()
    }
}

impl NodeStatistics {
    /// Frames that are neither where they were to go nor counted as lost: those that are on
    /// their way. Negative only where frames were copied, to groups or as segments of large
    /// sends.
    pub fn in_flight(&self) -> i64 {
        let machines =
            |count: fn(&MachineStatistics) -> u64| -> u64 { self.machines.iter().map(count).sum() };
        let came = self.uplink.received + machines(|machine| machine.port.received);
        let went = self.uplink.sent + machines(|machine| machine.port.sent);
        let lost = machines(MachineStatistics::lost)
            + self.uplink.dropped
            + self.losses.total()
            + self.abandoned;
        came as i64 - went as i64 - lost as i64
    }
}

impl MachineStatistics {
    /// Frames lost on their way from or to the machine, by reason.
    pub fn losses(&self) -> Losses {
        let mut losses = self.adapter.send_losses;
        losses.merge(&self.adapter.receive_losses);
        losses.merge(&self.host.losses);
        losses
    }

    /// Frames lost on their way from or to the machine.
    pub fn lost(&self) -> u64 {
        self.losses().total() + self.unusable + self.port.dropped
    }

    /// Packets sealed, by adapter and software.
    pub const fn sealed(&self) -> u64 {
        self.adapter.sealed + self.host.sealed
    }

    /// Packets opened, by adapter and software.
    pub const fn opened(&self) -> u64 {
        self.adapter.opened + self.host.opened
    }
}

impl PathKind {
    pub(super) const fn new(path: Option<DataPath>, offload_limit: u32) -> Self {
        match path {
            Some(DataPath::Function { .. }) => Self::Function,
            Some(DataPath::Queue(_)) => Self::Queue,
            _ if offload_limit == 0 => Self::Software,
            _ => Self::Synthetic,
        }
    }
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Software => "software",
            Self::Synthetic => "synthetic",
            Self::Queue => "queue",
            Self::Function => "function",
        })
    }
}

impl Board {
    pub(super) fn new(name: &str) -> Self {
        Self(Mutex::new(NodeStatistics {
            name: name.into(),
            ..NodeStatistics::default()
        }))
    }

    /// Changes what is shown; false, and nothing happened, if somebody is just looking.
    pub(super) fn show(&self, change: impl FnOnce(&mut NodeStatistics)) -> bool {
        let shown = self.0.try_lock();
        shown.is_ok_and(|mut node| {
            change(&mut node);
            true
        })
    }

    pub(super) fn look(&self) -> NodeStatistics {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
