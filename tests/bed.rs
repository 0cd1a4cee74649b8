//! Two adapters back to back, each with its host and some machines, and a monitor on the wire
//! between them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use etherparse::PacketBuilder;
use vesper_esp::aead::{Cipher, Implementation};
use vesper_esp::wire::{EncapsulationPorts, Located, locate};
use vesper_esp::{Buffer, EspSa, PacketBuf, Suite, association};
use vesper_offload::{
    DataPath, HEADROOM, Host, MacAddress, NicSwitchParams, OffloadMode, OffloadWish, PortId,
    Profile, QueueId, Rewrite, SaOffload, Send, SwitchLimits, VfId, VlanId, VmAddress, VmSettings,
};
use vesper_sa::{
    Action, Direction, Mode, Policy, Protection, SaHandle, SaParams, Selector, Spd, Spi, Timestamp,
    VmId,
};

/// Every clear-text payload contains these bytes: whoever sees them outside has found a leak.
pub const MARK: [u8; 16] = *b"clear text of vm";

/// Memory of a buffer that is lent to the adapter.
pub const MEMORY: usize = 2048;

/// An empty buffer to receive into.
pub fn empty() -> PacketBuf {
    PacketBuf::with_room(&[0; MEMORY], 0, 0)
}

/// One host with its adapter.
#[derive(Debug)]
pub struct Node {
    /// The host.
    pub host: Host<PacketBuf>,
    /// Which of the two.
    pub number: u8,
    next_send: u64,
}

/// Two nodes and the cable between them.
#[derive(Debug)]
pub struct Bed {
    /// Both ends.
    pub nodes: [Node; 2],
    /// The clock.
    pub now: Timestamp,
    /// What the monitor has seen.
    pub monitor: Monitor,
    steps: u64,
}

/// What passes on the cable.
#[derive(Debug, Default)]
pub struct Monitor {
    /// ESP packets.
    pub esp: u64,
    /// Packets in which [`MARK`] is visible.
    pub clear: u64,
    /// Other packets.
    pub other: u64,
    /// Sequence numbers that were on the wire twice on one association.
    pub repeated: u64,
    seen: HashMap<(IpAddr, u32), Numbers>,
    /// The last frames, if they are kept.
    pub kept: Option<Vec<PacketBuf>>,
}

/// Sequence numbers, in blocks of 64: those of an association are dense.
#[derive(Debug, Default)]
struct Numbers(HashMap<u32, u64>);

impl Numbers {
    /// `false` if it was there.
    fn insert(&mut self, number: u32) -> bool {
        let block = self.0.entry(number / 64).or_default();
        let bit = 1 << (number % 64);
        let is_new = *block & bit == 0;
        *block |= bit;
        is_new
    }
}

/// The address of a machine.
pub fn mac(node: u8, vm: VmId) -> MacAddress {
    let [.., high, low] = vm.0.to_be_bytes();
    MacAddress([2, 0, 0, node, high, low])
}

/// The IP address of a machine.
pub fn ip(node: u8, vm: VmId) -> [u8; 4] {
    let [.., high, low] = vm.0.to_be_bytes();
    [10, node, high, low]
}

/// Where the tunnels of a node end.
pub fn tunnel(node: u8) -> IpAddr {
    [192, 0, 2, node].into()
}

/// The address of a node's own port.
pub fn gateway(node: u8) -> MacAddress {
    MacAddress([2, 0, 0xff, 0, 0, node])
}

/// The SPI of the association from `node`, for `vm`.
pub fn spi(node: u8, vm: VmId, generation: u32) -> Spi {
    Spi::new(0x1000 + (generation << 20) + (u32::from(node) << 16) + vm.0).expect("not reserved")
}

/// A UDP frame from machine to machine with this many bytes of payload, [`MARK`] among them.
pub fn frame(from: u8, vm: VmId, payload: usize) -> Vec<u8> {
    let to = 1 - from;
    let mut text = vec![0xa5; payload.max(MARK.len())];
    text[..MARK.len()].copy_from_slice(&MARK);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(from, vm).0, mac(to, vm).0)
        .ipv4(ip(from, vm), ip(to, vm), 64)
        .udp(1000, vm.0 as u16)
        .write(&mut frame, &text)
        .expect("short enough");
    frame
}

/// A frame in a buffer with room around it.
pub fn sendable(frame: &[u8]) -> PacketBuf {
    PacketBuf::with_room(frame, HEADROOM, PacketBuf::TAILROOM)
}

/// What an association of the bed is made of, apart from its direction.
#[derive(Clone, Debug)]
pub struct SaPlan {
    /// The machine, the same at both ends.
    pub vm: VmId,
    /// Tells apart those that follow one another.
    pub generation: u32,
    /// Modes of offload wished for.
    pub modes: Vec<OffloadMode>,
    /// Extended sequence numbers.
    pub esn: bool,
    /// The number to continue from.
    pub sequence: u64,
}

impl SaPlan {
    /// A first association in this mode of offload.
    pub fn new(vm: VmId, modes: &[OffloadMode]) -> Self {
        Self {
            vm,
            generation: 0,
            modes: modes.to_vec(),
            esn: false,
            sequence: 0,
        }
    }

    /// The association from node `from`, as one end has it.
    pub fn make(&self, from: u8, direction: Direction) -> Arc<EspSa> {
        let spi = spi(from, self.vm, self.generation);
        let ends = (tunnel(from), tunnel(1 - from));
        let mut params = SaParams::new(spi, direction, Mode::Tunnel, ends.0, ends.1);
        params.owner = self.vm;
        params.reqid = self.vm.0;
        params.esn = self.esn;
        params.sequence = self.sequence;
        let suite = Suite::by_name("aes256gcm16").expect("exists");
        let mut key = [from; 36];
        key[..4].copy_from_slice(&self.vm.0.to_be_bytes());
        key[4..8].copy_from_slice(&self.generation.to_be_bytes());
        let implementation = Implementation::fastest(suite);
        let cipher = Cipher::with_implementation(suite, &key, &[], implementation);
        let cipher = cipher.expect("a key of the right length");
        Arc::new(association(params, cipher, Timestamp::ZERO).expect("sound parameters"))
    }

    /// How it is wished to be offloaded by node `here`.
    pub fn wish(&self, here: u8, direction: Direction) -> OffloadWish {
        let there = 1 - here;
        let rewrite = match direction {
            Direction::Outbound => Rewrite {
                destination: gateway(there),
                source: gateway(here),
            },
            Direction::Inbound => Rewrite {
                destination: mac(here, self.vm),
                source: gateway(here),
            },
        };
        OffloadWish {
            modes: self.modes.clone(),
            rewrite: Some(rewrite),
            ..OffloadWish::default()
        }
    }
}

impl Node {
    /// A node whose adapter has a NIC switch with so many functions, if any.
    pub fn new(number: u8, profile: Profile, functions: Option<u16>) -> Self {
        let nic = Arc::new(vesper_offload::Nic::new(profile));
        if let Some(virtual_functions) = functions {
            nic.create_nic_switch(NicSwitchParams {
                virtual_functions,
                default_queue_pairs: 1,
            })
            .expect("a new adapter");
        }
        let limits = SwitchLimits {
            floods: u32::MAX,
            ..SwitchLimits::default()
        };
        Self {
            host: Host::new(nic, limits),
            number,
            next_send: 0,
        }
    }

    /// The address of a machine of this node, untagged.
    pub fn address(&self, vm: VmId) -> VmAddress {
        VmAddress {
            mac: mac(self.number, vm),
            vlan: None,
        }
    }

    /// Adds a machine with buffers to receive into.
    pub fn add(&mut self, vm: VmId, settings: VmSettings) -> vesper_offload::Admission {
        let admission = self.host.add_machine(vm, self.address(vm), settings);
        let buffers = (0..256).map(|_| empty());
        self.host.post_buffers(vm, buffers).expect("just added");
        admission.expect("a new machine")
    }

    /// Everything of the machine is to be protected with the tunnel to the other node.
    pub fn protect(&mut self, vm: VmId) {
        let action = Action::Protect(Protection {
            reqid: vm.0,
            tunnel: Some(tunnel(1 - self.number)),
        });
        let policy = |direction| Policy {
            direction,
            selector: Selector::default(),
            action,
        };
        let policies = [Direction::Outbound, Direction::Inbound].map(policy);
        self.host
            .set_policies(vm, Some(Spd::new(policies.to_vec())));
    }

    /// Adds both associations of a plan: outbound, inbound.
    pub fn add_sas(&mut self, plan: &SaPlan) -> [SaHandle; 2] {
        let (here, there) = (self.number, 1 - self.number);
        let outbound = plan.make(here, Direction::Outbound);
        let inbound = plan.make(there, Direction::Inbound);
        let add = |host: &mut Host<PacketBuf>, sa, direction| {
            host.add_sa(sa, plan.wish(here, direction))
                .expect("room in the database")
        };
        [
            add(&mut self.host, outbound, Direction::Outbound),
            add(&mut self.host, inbound, Direction::Inbound),
        ]
    }

    /// Offload in this mode, from the port of a machine, if there is such a machine.
    pub fn offload(&self, vm: VmId, mode: OffloadMode) -> SaOffload {
        let port = self.host.nic().vm_usage(vm).map(|usage| usage.port);
        SaOffload {
            mode,
            port: port.unwrap_or(PortId::HOST),
            vlan: None,
            rewrite: None,
            inner_checksum: false,
        }
    }

    /// The machine gets a virtual function, with buffers, that carries its traffic.
    pub fn give_function(&mut self, vm: VmId) -> (VfId, QueueId) {
        let nic = Arc::clone(self.host.nic());
        nic.declare_guest_driver(vm, true).expect("exists");
        let (vf, queue) = self.host.attach_function(vm).expect("a function is free");
        nic.post_buffers(queue, (0..256).map(|_| empty()))
            .expect("its queue");
        self.host
            .activate_function(vm, vf, queue)
            .expect("a new function");
        (vf, queue)
    }

    /// The machine sends a frame on whatever path it has; whether it was taken.
    pub fn send(&mut self, vm: VmId, frame: PacketBuf) -> bool {
        match self.host.data_path(vm) {
            Some(DataPath::Function { vf, .. }) => {
                self.next_send += 1;
                let mut sends = vec![Send::new(self.next_send, frame)];
                let posted = self.host.nic().send_from_function(vf, &mut sends);
                posted.accepted == 1
            }
            _ => {
                let mut frames = vec![frame];
                self.host.send(vm, &mut frames) == Ok(1)
            }
        }
    }

    /// The machine takes what it has received, from its function's queue and from the host,
    /// and posts as many buffers again to either.
    pub fn received(&mut self, vm: VmId) -> Vec<PacketBuf> {
        let mut frames = Vec::new();
        if let Some(DataPath::Function { queue, .. }) = self.host.data_path(vm) {
            self.drain(queue, &mut frames);
            let buffers = frames.iter().map(|_| empty());
            let posted = self.host.nic().post_buffers(queue, buffers);
            posted.expect("the queue of its path");
        }
        let from_queue = frames.len();
        self.host.take_received(vm, &mut frames).expect("exists");
        let buffers = frames.iter().skip(from_queue).map(|_| empty());
        self.host.post_buffers(vm, buffers).expect("exists");
        frames
    }

    /// The driver of a function takes what its queue has, and returns it.
    pub fn drain(&self, queue: QueueId, frames: &mut Vec<PacketBuf>) {
        let nic = self.host.nic();
        let mut batch = Vec::new();
        nic.take_indication(queue, &mut batch, usize::MAX);
        let count = batch.len() as u32;
        frames.extend(batch.drain(..).filter_map(|packet| packet.into_untagged()));
        if count > 0 {
            nic.return_packets(queue, count).expect("just taken");
        }
    }

    /// Runs host and adapter once.
    pub fn run(&mut self, now: Timestamp) {
        self.host.run(now, 100_000);
        self.run_adapter(now);
        self.host.run(now, 100_000);
        self.run_adapter(now);
    }

    /// Runs every processor of the adapter.
    pub fn run_adapter(&self, now: Timestamp) {
        let nic = self.host.nic();
        for processor in 0..nic.processors() {
            nic.run_processor(processor, now, 100_000);
        }
    }
}

impl Bed {
    /// Two nodes with adapters of this profile.
    pub fn new(profile: Profile, functions: Option<u16>) -> Self {
        Self {
            nodes: [0, 1].map(|number| Node::new(number, profile.clone(), functions)),
            now: Timestamp::from_secs(1),
            monitor: Monitor::default(),
            steps: 0,
        }
    }

    /// A machine at both ends, protected, with associations in both directions.
    pub fn add_pair(&mut self, settings: VmSettings, plan: &SaPlan) -> [[SaHandle; 2]; 2] {
        let mut handles = [[SaHandle::from_bits(0); 2]; 2];
        for (node, handles) in self.nodes.iter_mut().zip(&mut handles) {
            node.add(plan.vm, settings);
            node.protect(plan.vm);
            *handles = node.add_sas(plan);
        }
        handles
    }

    /// Lets a tenth of a millisecond pass: hosts, adapters, cable.
    pub fn step(&mut self) {
        self.now = Timestamp::from_nanos(self.now.as_nanos() + 100_000);
        for from in 0..2 {
            self.nodes[from].run(self.now);
            let mut wire = Vec::new();
            self.nodes[from]
                .host
                .nic()
                .take_transmitted(&mut wire, usize::MAX);
            for frame in &wire {
                self.monitor.look(frame.data());
            }
            if let Some(kept) = &mut self.monitor.kept {
                kept.extend(wire.iter().cloned());
            }
            self.nodes[1 - from].host.nic().receive(wire);
        }
        // Nobody fills this wire but the nodes themselves: free buffers would pile up.
        self.steps += 1;
        if self.steps.is_multiple_of(256) {
            for node in &self.nodes {
                node.host.nic().take_recycled(&mut Vec::new());
            }
        }
    }

    /// Steps until nothing more can be on its way.
    pub fn settle(&mut self) {
        for _ in 0..6 {
            self.step();
        }
    }

    /// Sends `count` frames of a machine from one node and returns what it gets at the other.
    pub fn exchange(&mut self, from: usize, vm: VmId, count: usize) -> usize {
        let frame = frame(from as u8, vm, 100);
        for _ in 0..count {
            assert!(self.nodes[from].send(vm, sendable(&frame)));
        }
        self.settle();
        let got = self.nodes[1 - from].received(vm);
        for packet in &got {
            assert_eq!(packet.data()[14..], frame[14..], "what was sent");
        }
        got.len()
    }
}

impl Monitor {
    /// Looks at one frame.
    pub fn look(&mut self, frame: &[u8]) {
        let vlan = frame.get(12..14) == Some(&[0x81, 0]);
        let packet = frame.get(if vlan { 18 } else { 14 }..).unwrap_or_default();
        self.clear += u64::from(frame.windows(MARK.len()).any(|window| window == MARK));
        match locate(packet, &EncapsulationPorts::default()) {
            Located::Esp(esp) => {
                self.esp += 1;
                let seen = self.seen.entry((esp.destination, esp.spi)).or_default();
                self.repeated += u64::from(!seen.insert(esp.sequence));
            }
            _ => self.other += 1,
        }
    }
}

/// A VLAN that exists.
pub fn vlan(id: u16) -> Option<VlanId> {
    Some(VlanId::new(id).expect("1 to 4094"))
}
