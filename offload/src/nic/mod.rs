//! The adapter: what the host and the machines talk to.

mod choose;
mod control;
mod ipsec;
mod large_send;
mod opened;
mod queues;
mod receive;
mod run;
mod sealed;
mod send;
mod sriov;
mod steering;
mod transmit;

use core::fmt;
use core::sync::atomic::Ordering;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use vesper_esp::wire::EncapsulationPorts;
use vesper_esp::{Buffer, Counters, Engine};
use vesper_sa::{Event, Timestamp, VmId};

use crate::capability::{Capabilities, WhyNot};
use crate::fate::Losses;
use crate::fault::{FaultCounters, FaultPlan, Faults};
use crate::filter::{Filters, ReceiveFilter};
use crate::profile::Profile;
use crate::queue::{QueueId, QueueState};
use crate::rings::{Queue, VmPort, lock, move_front};
use crate::settings::{VmAddress, VmSettings};
use crate::sriov::{Function, NicSwitch, VfId};
use crate::unit::{OffloadHandle, PortId, Unit};

pub use control::{NicUsage, RemoveVmError, VmUsage};
pub(crate) use large_send::fill_checksum;
pub use queues::{QueueError, QueueStatus};
pub use run::Paused;
pub use send::{Posted, SendRefusal};
pub(crate) use steering::peek;

/// How many packets are processed together: as many as the engine takes at a time.
pub const BATCH: usize = 64;

/// How many events are kept until somebody takes them; more are counted as lost.
const EVENTS: usize = 4096;

/// A simulated Ethernet adapter.
///
/// All methods take `&self`, so that the processors of the adapter can run on as many threads
/// as the embedder likes, one processor on one thread at a time.
#[derive(Debug)]
pub struct Nic<B> {
    profile: Profile,
    config: RwLock<Config<B>>,
    processors: Vec<Mutex<Processor<B>>>,
    wire: Mutex<VecDeque<B>>,
    recycled: Mutex<Vec<B>>,
    segment_buffers: Mutex<Vec<B>>,
    events: Mutex<Events>,
    faults: Mutex<Faults>,
    receive_losses: Mutex<Losses>,
    ports: EncapsulationPorts,
}

/// What changes by commands and is read by packets: once per batch.
#[derive(Debug)]
pub(crate) struct Config<B> {
    pub(crate) enabled: Capabilities,
    pub(crate) vms: HashMap<VmId, VmEntry<B>, foldhash::fast::RandomState>,
    /// Whose an address is, also where no filter says so.
    pub(crate) addresses: HashMap<ReceiveFilter, VmId, foldhash::fast::RandomState>,
    /// By number.
    pub(crate) queues: Vec<Option<Arc<Queue<B>>>>,
    pub(crate) filters: Filters,
    pub(crate) unit: Unit,
    pub(crate) switch: Option<NicSwitch>,
    /// What each processor serves.
    pub(crate) flows: Vec<Vec<Flow<B>>>,
    pub(crate) next_port: u32,
    /// Faults that strike packets are planned.
    pub(crate) faulty: bool,
    /// Pushed sequence numbers that a fault holds back.
    pub(crate) late_pushes: Vec<(Timestamp, OffloadHandle, VmId, u64)>,
}

/// A machine, and where its packets come.
#[derive(Debug)]
pub(crate) struct VmEntry<B> {
    pub(crate) port: Arc<VmPort<B>>,
    pub(crate) queue: Option<QueueId>,
    pub(crate) function: Option<VfId>,
    /// The processor of its sends.
    pub(crate) processor: usize,
    pub(crate) guest_driver: bool,
}

/// Something that a processor serves in turn.
#[derive(Debug)]
pub(crate) enum Flow<B> {
    Receive(Arc<Queue<B>>),
    Send(Arc<VmPort<B>>),
}

/// A processor of the adapter, with its engine. No two share a cache line (or a pair of them, which
/// are fetched together).
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Processor<B> {
    pub(crate) engine: Engine,
    pub(crate) cursor: usize,
    pub(crate) stalled_until: Timestamp,
    pub(crate) work: HashMap<VmId, Work, foldhash::fast::RandomState>,
    pub(crate) waiting: crate::arrivals::Arrivals<B>,
    pub(crate) sending: VecDeque<crate::transfer::Send<B>>,
    pub(crate) opened: Vec<crate::sends::Pending<B>>,
    /// Queues that are to be freed and on whose way nothing is any more.
    pub(crate) stopped: Vec<QueueId>,
    pub(crate) wire: Vec<B>,
    /// How many frames more the wire took when it was last looked at.
    pub(crate) wire_room: usize,
    pub(crate) recycled: Vec<B>,
}

/// What a processor has done for one machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Something that the host should know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NicEvent {
    /// About an association: soft and hard limits, sequence numbers, failures.
    Sa(Event),
    /// The adapter writes into the queue's memory no more
    /// (`NDIS_STATUS_RECEIVE_QUEUE_STATE`).
    DmaStopped(QueueId),
    /// All packets of the queue are returned: it is gone, and its buffers are recycled.
    QueueFreed(QueueId),
    /// What is enabled has changed.
    CapabilitiesChanged,
    /// The adapter can not keep an association any more; it has stopped using it.
    SaLost {
        /// The owner.
        owner: VmId,
        /// What was its handle.
        handle: OffloadHandle,
        /// Why.
        why: WhyNot,
    },
    /// The adapter was reset: it has no associations any more, and what was in its rings is
    /// lost.
    Reset,
    /// A virtual function is gone without having been asked to go.
    FunctionLost(VfId, VmId),
}

#[derive(Debug, Default)]
struct Events {
    queue: VecDeque<NicEvent>,
    lost: u64,
}

impl fmt::Display for NicEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sa(event) => write!(f, "{event:?}"),
            Self::DmaStopped(queue) => write!(f, "{queue} stopped"),
            Self::QueueFreed(queue) => write!(f, "{queue} freed"),
            Self::CapabilitiesChanged => f.write_str("enabled capabilities changed"),
            Self::SaLost { owner, handle, why } => write!(f, "SA {handle} of {owner} lost: {why}"),
            Self::Reset => f.write_str("adapter reset"),
            Self::FunctionLost(vf, vm) => write!(f, "{vf} of {vm} lost"),
        }
    }
}

impl<B: Buffer> Nic<B> {
    /// An adapter of this profile, with nothing but its default queue, on processor 0, and the
    /// host's own send queue.
    pub fn new(profile: Profile) -> Self {
        let host = VmSettings {
            ipsec_offload_limit: u32::MAX,
            trusted: true,
            ..VmSettings::default()
        };
        let address = VmAddress {
            mac: crate::ethernet::MacAddress::default(),
            vlan: None,
        };
        let port = VmPort::new(VmId::HOST, PortId::HOST, address, host, profile.ring);
        let default_queue = Queue::new(
            QueueId::DEFAULT,
            None,
            Function::Physical,
            &host,
            profile.ring * 4,
        );
        lock(&default_queue.inner).state = QueueState::Running;
        let mut config = Config {
            enabled: profile.ipsec.clone(),
            vms: HashMap::default(),
            addresses: HashMap::default(),
            queues: vec![Some(Arc::new(default_queue))],
            filters: Filters::new(profile.filters),
            unit: Unit::new(profile.ipsec.sa_capacity),
            switch: None,
            flows: Vec::new(),
            next_port: 1,
            faulty: false,
            late_pushes: Vec::new(),
        };
        config.vms.insert(
            VmId::HOST,
            VmEntry {
                port: Arc::new(port),
                queue: None,
                function: None,
                processor: 0,
                guest_driver: false,
            },
        );
        let processors = (0..profile.processors.max(1))
            .map(|_| Mutex::new(Processor::new()))
            .collect::<Vec<_>>();
        config.rebuild_flows(processors.len());
        Self {
            config: RwLock::new(config),
            processors,
            wire: Mutex::new(VecDeque::new()),
            recycled: Mutex::new(Vec::new()),
            segment_buffers: Mutex::new(Vec::new()),
            events: Mutex::new(Events::default()),
            faults: Mutex::new(Faults::new(FaultPlan::default())),
            receive_losses: Mutex::new(Losses::default()),
            ports: EncapsulationPorts::default(),
            profile,
        }
    }

    /// The model.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// What the adapter could do.
    pub fn supported(&self) -> &Capabilities {
        &self.profile.ipsec
    }

    /// What the adapter does at present.
    pub fn enabled(&self) -> Capabilities {
        self.read().enabled.clone()
    }

    /// Processors of the adapter.
    pub fn processors(&self) -> usize {
        self.processors.len()
    }

    /// Takes the events since the last call, and how many were lost because nobody called.
    pub fn take_events(&self) -> (Vec<NicEvent>, u64) {
        let mut events = lock(&self.events);
        let lost = core::mem::take(&mut events.lost);
        (events.queue.drain(..).collect(), lost)
    }

    /// Takes the frames that are on the wire, in order, up to `most`.
    pub fn take_transmitted(&self, frames: &mut Vec<B>, most: usize) {
        let mut wire = lock(&self.wire);
        let count = most.min(wire.len());
        move_front(&mut wire, count, frames);
    }

    /// Takes buffers that are free again: of frames that were dropped, and those posted that a
    /// received frame's buffer was handed over for. Whoever fills the wire uses them again.
    ///
    /// They hold what they held; where machines can see the memory around a packet, wipe them.
    pub fn take_recycled(&self, buffers: &mut Vec<B>) {
        buffers.append(&mut lock(&self.recycled));
    }

    /// The counters of ESP, summed over the processors.
    pub fn esp_counters(&self) -> Counters {
        let mut sum = Counters::default();
        for processor in &self.processors {
            sum.merge(lock(processor).engine.counters());
        }
        sum
    }

    /// Received frames that were lost before it was known for whom they are.
    pub fn receive_losses(&self) -> Losses {
        *lock(&self.receive_losses)
    }

    /// What a processor has done, by machine; the host stands for what no machine owns.
    pub fn work(&self, processor: usize) -> HashMap<VmId, Work> {
        self.processors
            .get(processor)
            .map(|processor| {
                lock(processor)
                    .work
                    .iter()
                    .map(|(vm, work)| (*vm, *work))
                    .collect()
            })
            .unwrap_or_default()
    }

    /// Plans faults, in place of those planned before.
    pub fn plan_faults(&self, plan: FaultPlan) {
        self.write().faulty = plan
            != FaultPlan {
                seed: plan.seed,
                late_by: plan.late_by,
                ..FaultPlan::default()
            };
        let mut faults = lock(&self.faults);
        let counters = faults.counters;
        *faults = Faults::new(plan);
        faults.counters = counters;
    }

    /// What the planned faults have done.
    pub fn fault_counters(&self) -> FaultCounters {
        lock(&self.faults).counters
    }

    /// Whether there are events to take.
    pub(crate) fn has_events(&self) -> bool {
        !lock(&self.events).queue.is_empty()
    }

    pub(crate) fn emit(&self, event: NicEvent) {
        let mut events = lock(&self.events);
        if events.queue.len() < EVENTS {
            events.queue.push_back(event);
        } else {
            events.lost += 1;
        }
    }

    pub(crate) fn recycle(&self, buffer: B) {
        lock(&self.recycled).push(buffer);
    }

    pub(crate) fn recycle_all(&self, buffers: &mut Vec<B>) {
        lock(&self.recycled).append(buffers);
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Config<B>> {
        self.config.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Config<B>> {
        self.config.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Buffer> Config<B> {
    pub(crate) fn queue(&self, id: QueueId) -> Option<&Arc<Queue<B>>> {
        self.queues.get(usize::from(id.0))?.as_ref()
    }

    /// The default queue, which is always there.
    pub(crate) fn default_queue(&self) -> Option<&Arc<Queue<B>>> {
        self.queue(QueueId::DEFAULT)
    }

    /// Who is served by which processor: a machine's queue and its sends by the same one, the
    /// other queues of its port by the next ones.
    pub(crate) fn rebuild_flows(&mut self, processors: usize) {
        let mut flows: Vec<Vec<Flow<B>>> = (0..processors).map(|_| Vec::new()).collect();
        let mut vms: Vec<_> = self.vms.values().collect();
        vms.sort_by_key(|entry| entry.port.vm);
        for entry in vms {
            if let Some(flows) = flows.get_mut(entry.processor) {
                flows.push(Flow::Send(Arc::clone(&entry.port)));
            }
        }
        for queue in self.queues.iter().flatten() {
            let owner = queue.owner.and_then(|owner| self.vms.get(&owner));
            let processor = owner.map_or(0, |entry| (entry.processor + queue.rank) % processors);
            if let Some(flows) = flows.get_mut(processor) {
                flows.push(Flow::Receive(Arc::clone(queue)));
            }
        }
        self.flows = flows;
    }
}

impl<B> Flow<B> {
    /// Whether nothing waits and nothing is owed: a turn would change nothing.
    #[inline]
    pub(crate) fn is_idle(&self) -> bool {
        let (attention, deficit) = match self {
            Self::Receive(queue) => (&queue.attention, &queue.deficit),
            Self::Send(port) => (&port.attention, &port.deficit),
        };
        !attention.load(Ordering::Relaxed) && deficit.load(Ordering::Relaxed) == 0
    }
}

impl<B: Buffer> Processor<B> {
    fn new() -> Self {
        Self {
            engine: Engine::default(),
            cursor: 0,
            stalled_until: Timestamp::ZERO,
            work: HashMap::default(),
            waiting: crate::arrivals::Arrivals::new(),
            sending: VecDeque::with_capacity(BATCH),
            opened: Vec::new(),
            stopped: Vec::new(),
            wire: Vec::with_capacity(BATCH),
            wire_room: 0,
            recycled: Vec::new(),
        }
    }

    pub(crate) fn account(&mut self, owner: VmId, packets: usize, bytes: usize) {
        let work = self.work.entry(owner).or_default();
        work.packets += packets as u64;
        work.bytes += bytes as u64;
    }
}
