//! A machine as its worker sees it: the port that it is behind, and its way into the adapter.

use std::fmt;
use std::sync::Arc;

use vesper_esp::PacketBuf;
use vesper_offload::{
    BATCH, Completion, DataPath, Host, HostSend, MachineError, Nic, Poster, QueueId, Received,
    Send, SendIpsec, VfId, VmAddress, VmSettings,
};
use vesper_sa::{Spd, Timestamp, VmId};

use crate::port::{Incoming, Pool, Port, PortStatus};

/// Frames that are taken from a machine at a time: as many as are protected at a time, which is
/// the faster the more there are. Other machines wait meanwhile.
const BURST: usize = BATCH;

/// Buffers that are posted for a machine to receive into. The host keeps 128 of them for copies
/// where there is a queue, and up to a batch is missing before new ones are posted: the rest has
/// to take all that comes from the wire at a time.
pub(super) const POSTED: usize = 384;

/// What is needed to add a machine.
#[derive(Debug)]
pub struct Attach {
    /// Its identifier.
    pub vm: VmId,
    /// Its name.
    pub name: String,
    /// Where it is on the network.
    pub address: VmAddress,
    /// What the adapter is told about it.
    pub settings: VmSettings,
    /// The policies that it begins with; without any its packets pass as they are.
    pub policies: Option<Spd>,
    /// What it is behind.
    pub port: Box<dyn Port>,
}

/// Why a machine was not added, changed or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachError {
    /// The host, or the adapter, refused.
    Machine(MachineError),
    /// The machine has no port here.
    Unknown(VmId),
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine(error) => error.fmt(f),
            Self::Unknown(vm) => write!(f, "{vm} does not exist"),
        }
    }
}

impl std::error::Error for AttachError {}

impl From<MachineError> for AttachError {
    fn from(error: MachineError) -> Self {
        Self::Machine(error)
    }
}

/// A machine with its port.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) vm: VmId,
    pub(super) name: Arc<str>,
    pub(super) port: Box<dyn Port>,
    pub(super) settings: VmSettings,
    /// What ports did that it was behind before.
    pub(super) earlier: PortStatus,
    /// Frames that can not be given to it: they do not fit.
    pub(super) unusable: u64,
    /// Out of the port, not yet taken by the host ...
    incoming: Vec<Incoming>,
    /// ... or by its function.
    sends: Vec<Send<PacketBuf>>,
    /// It has sent large packets, to be cut.
    pub(super) sends_large: bool,
    next_id: u64,
    /// Posted through its function, now or before, and not completed.
    posted_sends: usize,
    completions: Vec<Completion<PacketBuf>>,
    received: Vec<Received<PacketBuf>>,
    /// For the machine, not yet taken by its port.
    outgoing: Vec<PacketBuf>,
    /// Buffers posted.
    posted: usize,
    function: Option<(VfId, QueueId)>,
}

impl Machine {
    pub(super) fn new(attach: Attach) -> Self {
        Self {
            vm: attach.vm,
            name: attach.name.into(),
            port: attach.port,
            settings: attach.settings,
            earlier: PortStatus::default(),
            unusable: 0,
            incoming: Vec::with_capacity(BURST),
            sends: Vec::with_capacity(BURST),
            sends_large: false,
            next_id: 0,
            posted_sends: 0,
            completions: Vec::with_capacity(BURST),
            received: Vec::with_capacity(BATCH),
            outgoing: Vec::with_capacity(POSTED),
            posted: 0,
            function: None,
        }
    }

    /// Takes frames from the port and gives them to the adapter, or to the host.
    pub(super) fn take(
        &mut self,
        now: Timestamp,
        host: &mut Host<PacketBuf>,
        pool: &mut Pool,
        is_held: bool,
    ) -> usize {
        let mut moved = 0;
        if !is_held && !self.has_backlog() {
            moved = self.port.receive(now, pool, BURST, &mut self.incoming);
        }
        let large = |incoming: &Incoming| incoming.segment_size.is_some();
        self.sends_large |= moved > 0 && self.incoming.iter().any(large);
        if self.posted_sends > 0 {
            moved += self.take_completions(now, host.nic(), pool);
        }
        match self.function {
            Some((vf, _)) => {
                for incoming in self.incoming.drain(..) {
                    self.next_id += 1;
                    self.sends.push(Send {
                        id: self.next_id,
                        frame: incoming.frame,
                        ipsec: SendIpsec::Policy,
                        segment_size: incoming.segment_size,
                        checksum: incoming.checksum,
                    });
                }
                if !self.sends.is_empty() {
                    let accepted = host.nic().send_from_function(vf, &mut self.sends).accepted;
                    self.posted_sends += accepted;
                    moved += accepted;
                }
            }
            None => {
                if !self.incoming.is_empty() {
                    // The machine exists as long as its port.
                    moved += host.send_frames(self.vm, &mut self.incoming).unwrap_or(0);
                }
            }
        }
        moved
    }

    /// Takes what the adapter, or the host, has for the machine, and posts other buffers.
    pub(super) fn collect(&mut self, host: &mut Host<PacketBuf>, pool: &mut Pool) -> usize {
        let mut moved = 0;
        if self.outgoing.len() < POSTED {
            moved = match self.function {
                Some((_, queue)) => self.take_indicated(host.nic(), queue, pool),
                None => 0,
            };
            let before = self.outgoing.len();
            // The machine exists as long as its port.
            let _ = host.take_received(self.vm, &mut self.outgoing);
            moved += self.outgoing.len() - before;
        }
        self.posted = self.posted.saturating_sub(moved);
        self.post(host, pool);
        moved
    }

    /// Gives what was collected to the port.
    pub(super) fn deliver(&mut self, now: Timestamp, pool: &mut Pool) {
        if !self.outgoing.is_empty() {
            self.port.send(now, pool, &mut self.outgoing);
        }
    }

    /// Follows the path of the machine, and posts the buffers that it needs.
    pub(super) fn follow_path(&mut self, host: &mut Host<PacketBuf>, pool: &mut Pool) {
        let function = match host.data_path(self.vm) {
            Some(DataPath::Function { vf, queue }) => Some((vf, queue)),
            _ => None,
        };
        if self.function != function {
            self.function = function;
            self.posted = 0;
            self.incoming
                .extend(self.sends.drain(..).map(|send| HostSend {
                    frame: send.frame,
                    segment_size: send.segment_size,
                    checksum: send.checksum,
                }));
        }
        self.post(host, pool);
    }

    /// Posts to the queue of a function that does not carry traffic yet.
    pub(super) fn prepare_function(
        &mut self,
        nic: &Nic<PacketBuf>,
        (vf, queue): (VfId, QueueId),
        pool: &mut Pool,
    ) {
        self.function = Some((vf, queue));
        self.posted = post_to(nic, queue, POSTED, pool);
    }

    /// Frames that the machine has sent and nobody has taken.
    pub(super) const fn has_backlog(&self) -> bool {
        !self.sends.is_empty() || !self.incoming.is_empty()
    }

    /// Frames between the port and the adapter, or the host, in both directions.
    pub(super) const fn in_flight(&self) -> usize {
        self.sends.len() + self.incoming.len() + self.outgoing.len()
    }

    /// Gives every buffer back; the frames in them are lost.
    pub(super) fn clear(&mut self, pool: &mut Pool) -> usize {
        let lost = self.in_flight();
        let sends = self.sends.drain(..).map(|send| send.frame);
        let buffers = sends
            .chain(self.incoming.drain(..).map(|send| send.frame))
            .chain(self.outgoing.drain(..));
        buffers.for_each(|buffer| pool.give(buffer));
        lost
    }

    fn take_completions(&mut self, now: Timestamp, nic: &Nic<PacketBuf>, pool: &mut Pool) -> usize {
        let sent = nic.take_failures(self.vm, Poster::Guest, now, &mut self.completions);
        let count = sent + self.completions.len();
        self.posted_sends = self.posted_sends.saturating_sub(count);
        for completion in self.completions.drain(..) {
            // The adapter has counted why a send failed.
            if let Some(buffer) = completion.buffer {
                pool.give(buffer);
            }
        }
        count
    }

    fn take_indicated(&mut self, nic: &Nic<PacketBuf>, queue: QueueId, pool: &mut Pool) -> usize {
        nic.take_indication(queue, &mut self.received, POSTED);
        let count = self.received.len();
        if count == 0 {
            return 0;
        }
        for received in self.received.drain(..) {
            let frame = vesper_offload::Frame {
                vlan: None,
                ..received.frame
            };
            match frame.close() {
                Ok(frame) => self.outgoing.push(frame),
                Err(frame) => {
                    self.unusable += 1;
                    pool.give(frame.payload);
                }
            }
        }
        // They were outstanding, all of them.
        let _ = nic.return_packets(queue, count as u32);
        count
    }

    fn post(&mut self, host: &mut Host<PacketBuf>, pool: &mut Pool) {
        let missing = POSTED.saturating_sub(self.posted);
        if missing == 0 || (missing < BATCH && self.posted > 0) {
            return;
        }
        match self.function {
            Some((_, queue)) => self.posted += post_to(host.nic(), queue, missing, pool),
            None => {
                let before = pool.free();
                let buffers = std::iter::from_fn(|| pool.take()).take(missing);
                // The machine exists as long as its port.
                let _ = host.post_buffers(self.vm, buffers);
                self.posted += before - pool.free();
            }
        }
    }
}

fn post_to(nic: &Nic<PacketBuf>, queue: QueueId, count: usize, pool: &mut Pool) -> usize {
    let before = pool.free();
    let buffers = std::iter::from_fn(|| pool.take()).take(count);
    // The queue exists as long as the function.
    let _ = nic.post_buffers(queue, buffers);
    before - pool.free()
}
