//! One node in the hands of its worker: frames between ports, host and adapter.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use vesper_esp::PacketBuf;
use vesper_offload::{Admission, Fallback, Host, Nic};
use vesper_sa::{Timestamp, VmId};

use super::handle::HostCommands;
use super::machine::{Attach, AttachError, Machine, POSTED};
use super::statistics::{Board, MachineStatistics, NodeStatistics, PathKind};
use super::waker::Waker;
use crate::port::{Incoming, Pool, Port, PortStatus};

/// Frames that are taken from the wire at a time: a batch for each of three machines.
const WIRE_BURST: usize = 192;

/// Packets that the host, or a processor, moves in one round.
const BUDGET: usize = 512;

/// Buffers that are there for large packets to be cut into: several of 64 KiB.
const SEGMENTS: usize = 256;

/// A node: its adapter, its host, its ports.
pub(super) struct Driver {
    name: Arc<str>,
    pub(super) host: Host<PacketBuf>,
    nic: Arc<Nic<PacketBuf>>,
    pub(super) commands: HostCommands,
    uplink: Box<dyn Port>,
    machines: Vec<Machine>,
    /// Machines whose queue the adapter has not let go of.
    leaving: Vec<VmId>,
    pool: Pool,
    /// Machines for which there are buffers to be posted.
    equipped: usize,
    /// Processors of the adapter that this worker runs.
    processors: Vec<usize>,
    /// Workers that run the others.
    others: Vec<Arc<Waker>>,
    arrived: Vec<Incoming>,
    /// On its way to the uplink.
    wire: Vec<PacketBuf>,
    recycled: Vec<PacketBuf>,
    /// Nothing is taken from machines.
    is_held: bool,
    /// Frames are taken from the network: from the first release on, since before nobody knows
    /// the associations that would open them.
    is_open: bool,
    /// Frames of machines that were removed, which nobody can have any more.
    abandoned: u64,
    board: Arc<Board>,
}

impl Driver {
    pub(super) fn new(
        name: &str,
        host: Host<PacketBuf>,
        commands: HostCommands,
        uplink: Box<dyn Port>,
        pool: Pool,
        board: Arc<Board>,
    ) -> Self {
        Self {
            name: name.into(),
            nic: Arc::clone(host.nic()),
            host,
            commands,
            uplink,
            machines: Vec::new(),
            leaving: Vec::new(),
            pool,
            equipped: 0,
            processors: Vec::new(),
            others: Vec::new(),
            arrived: Vec::with_capacity(WIRE_BURST),
            wire: Vec::with_capacity(BUDGET * 2),
            recycled: Vec::with_capacity(BUDGET * 2),
            is_held: true,
            is_open: false,
            abandoned: 0,
            board,
        }
    }

    /// Gives it a processor of the adapter to run.
    pub(super) fn run_processor(&mut self, processor: usize) {
        self.processors.push(processor);
    }

    /// Another worker runs a processor of the adapter.
    pub(super) fn wake_too(&mut self, waker: Arc<Waker>) {
        self.others.push(waker);
    }

    /// One round: everything that is there goes as far as it can. Returns how much was done.
    pub(super) fn round(&mut self, now: Timestamp) -> usize {
        let mut moved = match self.commands.is_empty() {
            true => 0,
            false => self.run_commands(now),
        };
        moved += self.take_from_wire(now);
        // What the uplink does not take holds the machines up, not the buffers.
        if self.wire.is_empty() {
            for machine in &mut self.machines {
                moved += machine.take(now, &mut self.host, &mut self.pool, self.is_held);
            }
        }
        self.post_segments();
        // The host before the adapter, so that what machines have sent is not a round older, and
        // out of the nearer caches, when the adapter comes to it; and again for what the adapter
        // has received.
        moved += self.host.run(now, BUDGET);
        for &processor in &self.processors {
            moved += self.nic.run_processor(processor, now, BUDGET);
        }
        moved += self.host.run(now, BUDGET);
        // First those that nobody has touched for long: they are posted again, for all machines,
        // and what machines give back, which is still in the cache, is sent from next.
        self.nic.take_recycled(&mut self.recycled);
        for buffer in self.recycled.drain(..) {
            self.pool.give(buffer);
        }
        for machine in &mut self.machines {
            moved += machine.collect(&mut self.host, &mut self.pool);
        }
        for machine in &mut self.machines {
            machine.deliver(now, &mut self.pool);
        }
        moved += self.give_to_wire(now);
        if !self.leaving.is_empty() {
            self.finish_leaving();
        }
        if moved > 0 {
            self.others.iter().for_each(|other| other.wake());
        }
        moved
    }

    /// Asks the ports for notifications, or tells them that they are polled again. Returns
    /// whether there is something to do.
    pub(super) fn prepare_sleep(&mut self, sleeping: bool) -> bool {
        let mut ready = self.uplink.prepare_sleep(sleeping) && self.is_open;
        let takes = self.wire.is_empty() && !self.is_held;
        for machine in &mut self.machines {
            let has_something = machine.port.prepare_sleep(sleeping);
            ready |= has_something && takes && !machine.has_backlog();
        }
        ready | (sleeping && !self.commands.is_empty())
    }

    /// The ports that the worker sleeps on.
    pub(super) fn ports(&self) -> impl Iterator<Item = &dyn Port> {
        let machines = self.machines.iter().map(|machine| &*machine.port);
        machines.chain([&*self.uplink])
    }

    pub(super) fn attach(
        &mut self,
        mut attach: Attach,
        now: Timestamp,
    ) -> Result<Admission, AttachError> {
        let vm = attach.vm;
        let mut admission = self.host.add_machine(vm, attach.address, attach.settings)?;
        self.host.set_policies(vm, attach.policies.take());
        // What is posted for machines must not be all that there is: then nothing could be
        // taken from the wire, or from machines, any more.
        if self.machines.len() == self.equipped {
            self.pool.grow(POSTED);
            self.equipped += 1;
        }
        let mut machine = Machine::new(attach);
        if machine.settings.iov_weight > 0
            && admission.fallbacks.contains(&Fallback::NoGuestDriver)
            && self.give_function(&mut machine)
        {
            admission
                .fallbacks
                .retain(|fallback| *fallback != Fallback::NoGuestDriver);
        }
        machine.follow_path(&mut self.host, &mut self.pool);
        self.machines.push(machine);
        self.publish(now);
        Ok(admission)
    }

    pub(super) fn detach(
        &mut self,
        vm: VmId,
        now: Timestamp,
    ) -> Result<Box<dyn Port>, AttachError> {
        let index = self.index(vm)?;
        if let Some(vesper_offload::DataPath::Function { .. }) = self.host.data_path(vm) {
            self.host.detach_function(vm)?;
        }
        let mut machine = self.machines.remove(index);
        self.abandoned += machine.clear(&mut self.pool) as u64;
        self.leaving.push(vm);
        self.finish_leaving();
        self.publish(now);
        Ok(machine.port)
    }

    pub(super) fn replace_port(
        &mut self,
        vm: VmId,
        port: Box<dyn Port>,
    ) -> Result<Box<dyn Port>, AttachError> {
        let index = self.index(vm)?;
        let machine = &mut self.machines[index];
        let old = std::mem::replace(&mut machine.port, port);
        add(&mut machine.earlier, &old.status());
        Ok(old)
    }

    pub(super) fn hold(&mut self, is_held: bool) {
        self.is_held = is_held;
        self.is_open |= !is_held;
    }

    /// Shows where everything stands; false if somebody is just looking.
    pub(super) fn publish(&self, now: Timestamp) -> bool {
        self.board.show(|node| self.report(now, node))
    }

    /// How long a packet may have to wait in the adapter for nothing but time: for a rate
    /// limit, for interrupt moderation.
    pub(super) fn patience(&self) -> Option<Duration> {
        let limits = self.machines.iter().flat_map(|machine| {
            let settings = &machine.settings;
            let limited = (settings.rate_limit > 0).then_some(Duration::from_millis(1));
            let delay = settings.interrupts.delay;
            [limited, (delay > 0).then_some(Duration::from_nanos(delay))]
        });
        limits.flatten().min()
    }

    fn take_from_wire(&mut self, now: Timestamp) -> usize {
        if !self.is_open {
            return 0;
        }
        let count = self
            .uplink
            .receive(now, &mut self.pool, WIRE_BURST, &mut self.arrived);
        if count > 0 {
            let frames = self.arrived.drain(..).map(|incoming| incoming.frame);
            self.nic.receive(frames);
        }
        count
    }

    fn give_to_wire(&mut self, now: Timestamp) -> usize {
        let before = self.wire.len();
        if before == 0 {
            self.nic.take_transmitted(&mut self.wire, BUDGET);
        }
        let count = self.wire.len();
        if count > 0 {
            self.uplink.send(now, &mut self.pool, &mut self.wire);
        }
        count - self.wire.len()
    }

    /// Where machines send large packets there have to be buffers to cut them into.
    fn post_segments(&mut self) {
        if !self.machines.iter().any(|machine| machine.sends_large) {
            return;
        }
        let missing = SEGMENTS.saturating_sub(self.nic.segment_buffers());
        let buffers = std::iter::from_fn(|| self.pool.take()).take(missing);
        self.nic.post_segment_buffers(buffers);
    }

    /// The machine has a driver for virtual functions: gives it one, if one is left.
    fn give_function(&mut self, machine: &mut Machine) -> bool {
        let vm = machine.vm;
        if self.nic.declare_guest_driver(vm, true).is_err() {
            return false;
        }
        let Ok(function) = self.host.attach_function(vm) else {
            return false;
        };
        machine.prepare_function(&self.nic, function, &mut self.pool);
        self.host
            .activate_function(vm, function.0, function.1)
            .is_ok()
    }

    /// A queue is freed in two steps, see [`Host::remove_machine`].
    fn finish_leaving(&mut self) {
        let host = &mut self.host;
        self.leaving.retain(|vm| {
            matches!(
                host.remove_machine(*vm),
                Err(vesper_offload::MachineError::Remove(_))
            )
        });
    }

    fn index(&self, vm: VmId) -> Result<usize, AttachError> {
        let mut machines = self.machines.iter();
        machines
            .position(|machine| machine.vm == vm)
            .ok_or(AttachError::Unknown(vm))
    }

    fn report(&self, now: Timestamp, node: &mut NodeStatistics) {
        node.at = now;
        node.uplink = self.uplink.status();
        node.esp = self.nic.esp_counters();
        node.esp.merge(self.host.esp_counters());
        node.losses = self.nic.receive_losses();
        node.losses.merge(self.host.losses());
        node.abandoned = self.abandoned;
        node.free_buffers = self.pool.free();
        node.machines.clear();
        for machine in &self.machines {
            let vm = machine.vm;
            let mut port = machine.port.status();
            add(&mut port, &machine.earlier);
            node.machines.push(MachineStatistics {
                vm,
                name: Arc::clone(&machine.name),
                path: PathKind::new(
                    self.host.data_path(vm),
                    machine.settings.ipsec_offload_limit,
                ),
                port,
                unusable: machine.unusable,
                sas: self.host.sad().usage(vm),
                offloaded: self
                    .nic
                    .vm_usage(vm)
                    .map(|usage| usage.ipsec_sas)
                    .unwrap_or_default(),
                adapter: self.nic.vm_counters(vm).unwrap_or_default(),
                host: self.host.machine_counters(vm).unwrap_or_default(),
            });
        }
    }
}

fn add(sum: &mut PortStatus, other: &PortStatus) {
    sum.received += other.received;
    sum.received_bytes += other.received_bytes;
    sum.sent += other.sent;
    sum.sent_bytes += other.sent_bytes;
    sum.malformed += other.malformed;
    sum.dropped += other.dropped;
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
