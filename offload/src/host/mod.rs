//! The host around the adapter: machines, the synthetic path through the software switch, the
//! software fallback of IPsec, and where each association is at work.

mod deliver;
mod glance;
mod inbound;
mod machine;
mod open;
mod outbound;
mod outstanding;
mod placement;
mod posting;
mod protect;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use vesper_esp::{Buffer, Counters, Engine, EspContext, Reassembler, ReassemblyLimits};
use vesper_sa::{Event, SaHandle, Sad, Spd, Timestamp, VmId};

use crate::fate::{Loss, Losses};
use crate::nic::{Nic, NicEvent};
use crate::settings::{Admission, VmAddress, VmSettings};
use crate::transfer::{HostSend, Send};
use crate::unit::{OffloadHandle, PortId};
use crate::vswitch::{SwitchLimits, VirtualSwitch};

use outbound::Scratch;

pub use machine::{DataPath, MachineCounters, MachineError};
pub use outstanding::{AdapterWork, Outstanding, OutstandingCounters};
pub use placement::{OffloadWish, Placement, SetAside, SoftwareReason};

/// How many events are kept until somebody takes them.
const EVENTS: usize = 4096;

/// Keys are what the host itself has given out.
type Table<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// The host's side of an adapter, driven by one thread: what a hypervisor's root partition
/// does. Machines with a virtual function go past it in both directions.
#[derive(Debug)]
pub struct Host<B> {
    nic: Arc<Nic<B>>,
    engine: Engine,
    sad: Sad<EspContext>,
    /// Where fragments of ESP packets become whole.
    reassembler: Reassembler,
    policies: Table<VmId, Arc<Spd>>,
    switch: VirtualSwitch,
    machines: BTreeMap<VmId, Machine<B>>,
    /// Who is at each port of the software switch.
    ports: Table<PortId, VmId>,
    placements: Table<(VmId, SaHandle), PlacedSa>,
    /// What the adapter's handles stand for.
    offloaded: Table<OffloadHandle, (VmId, SaHandle)>,
    /// What they stood for that the adapter has let go of, as long as packets in crypto mode are
    /// on their way that know them by these.
    leaving: Table<OffloadHandle, (VmId, SaHandle)>,
    /// Those in crypto mode with ESN, of whose numbers the adapter has to be told.
    followed: BTreeSet<(VmId, SaHandle)>,
    events: Vec<NicEvent>,
    /// Frames of which the owner is not known.
    losses: Losses,
    /// The machines in the order of their turns, and whose turn was the last.
    order: Vec<VmId>,
    turn: usize,
    scratch: Scratch<B>,
}

#[derive(Debug)]
struct Machine<B> {
    port: PortId,
    address: VmAddress,
    settings: VmSettings,
    path: DataPath,
    /// Sent by the machine, not yet switched.
    sends: VecDeque<HostSend<B>>,
    /// Switched and protected, not yet taken by the adapter.
    unsent: Vec<Send<B>>,
    /// Frames were refused when they were posted: they go on before anything newer does.
    has_refused: bool,
    deficit: i64,
    /// The one that was posted last is filled first: it is the most likely to be in the cache.
    posted: Vec<B>,
    ready: VecDeque<B>,
    outstanding: Outstanding,
    counters: MachineCounters,
}

#[derive(Debug)]
struct PlacedSa {
    placement: Placement,
    wish: OffloadWish,
    /// Crypto mode with ESN: the number that the adapter was told last.
    pushed: u64,
}

impl<B: Buffer> Host<B> {
    /// The host of an adapter.
    pub fn new(nic: Arc<Nic<B>>, limits: SwitchLimits) -> Self {
        Self {
            nic,
            engine: Engine::default(),
            sad: Sad::new(),
            reassembler: Reassembler::new(ReassemblyLimits::default()),
            policies: Table::default(),
            switch: VirtualSwitch::new(limits),
            machines: BTreeMap::new(),
            ports: Table::default(),
            placements: Table::default(),
            offloaded: Table::default(),
            leaving: Table::default(),
            followed: BTreeSet::new(),
            events: Vec::new(),
            losses: Losses::default(),
            order: Vec::new(),
            turn: 0,
            scratch: Scratch::default(),
        }
    }

    /// The adapter.
    pub fn nic(&self) -> &Arc<Nic<B>> {
        &self.nic
    }

    /// Adds a machine and gives it what its settings ask for and the adapter has; the answer
    /// names what it does not get.
    pub fn add_machine(
        &mut self,
        vm: VmId,
        address: VmAddress,
        settings: VmSettings,
    ) -> Result<Admission, MachineError> {
        self.admit_machine(vm, address, settings)
    }

    /// Sets the policies of a machine, in the host and in the adapter. Without policies its
    /// packets pass as they are.
    pub fn set_policies(&mut self, vm: VmId, policies: Option<Spd>) {
        let policies = policies.map(Arc::new);
        match &policies {
            Some(policies) => self.policies.insert(vm, Arc::clone(policies)),
            None => self.policies.remove(&vm),
        };
        self.nic.set_policies(vm, policies);
    }

    /// All associations, offloaded or not.
    pub fn sad(&self) -> &Sad<EspContext> {
        &self.sad
    }

    /// What the software fallback has done.
    pub fn esp_counters(&self) -> &Counters {
        self.engine.counters()
    }

    /// Bounds what fragments of ESP packets may occupy; those that are under way are dropped.
    pub fn set_reassembly_limits(&mut self, limits: ReassemblyLimits) {
        self.reassembler = Reassembler::new(limits);
    }

    /// Fragments of ESP packets on their way to becoming whole.
    pub fn reassembler(&self) -> &Reassembler {
        &self.reassembler
    }

    /// Received frames that were lost before it was known for whom they are.
    pub fn losses(&self) -> &Losses {
        &self.losses
    }

    /// Does what there is to do: events, completions, switching, software IPsec. Each machine
    /// gets a fair share of `budget` packets in each direction. Returns how many packets were
    /// moved.
    pub fn run(&mut self, now: Timestamp, budget: usize) -> usize {
        self.follow_events();
        self.push_sequences(now);
        self.take_completions(now);
        let received = self.receive(now, budget);
        let sent = self.switch_sends(now, budget);
        self.forget_left();
        received + sent
    }

    /// Takes the events since the last call, those of the adapter included.
    pub fn take_events(&mut self) -> Vec<NicEvent> {
        self.follow_events();
        let own = self.engine.drain_events().map(NicEvent::Sa);
        self.events.extend(own);
        core::mem::take(&mut self.events)
    }

    fn report(&mut self, event: Event) {
        if self.events.len() < EVENTS {
            self.events.push(NicEvent::Sa(event));
        }
    }

    fn count(&mut self, vm: VmId, change: impl FnOnce(&mut MachineCounters)) {
        if let Some(machine) = self.machines.get_mut(&vm) {
            change(&mut machine.counters);
        }
    }

    fn lose(&mut self, vm: Option<VmId>, buffer: B, loss: Loss) {
        self.nic.recycle(buffer);
        match vm.and_then(|vm| self.machines.get_mut(&vm)) {
            Some(machine) => machine.counters.losses.count(loss),
            None => self.losses.count(loss),
        }
    }
}
