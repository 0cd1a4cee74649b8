//! Two processors of an adapter, on two threads, beside one: packets of two machines, out and in.
//!
//! The machines have functions: what they send is posted, and what is for them arrives, on the core
//! that works for them. What another thread would leave in its own core's cache is no cost of the
//! adapter.

use std::collections::HashMap;
use std::vec::Drain;

use vesper_offload::{Nic, OffloadMode, Poster, QueueId, Send, VfId};
use vesper_sa::{Timestamp, VmId};

use super::mbuf::Mbuf;
use super::node::{Ipsec, Kind, Node, Path, mac};
use crate::case::{Case, PACKETS};
use crate::contest::{Fault, Repetition};
use crate::lanes::{Cores, Gate, Lap};
use crate::sys;

const VMS: [VmId; 2] = [VmId(1), VmId(2)];

/// Packets of one machine in a pass. As many more go before them, so that each thread has begun and
/// its core is warm when the clock starts.
const EACH: usize = PACKETS / VMS.len();

/// Two nodes with a machine for each processor.
pub(super) struct Processors {
    nodes: [Node; 2],
    /// Of each machine at either node.
    functions: [[(VfId, QueueId); VMS.len()]; 2],
    frames: [Vec<Vec<u8>>; VMS.len()],
    now: Timestamp,
    /// Of each machine, in turns full and empty.
    sending: [Vec<Mbuf>; VMS.len()],
    posting: [Vec<Mbuf>; VMS.len()],
}

impl Processors {
    /// An adapter with so many processors, two machines, and a function for each.
    pub(super) fn new(case: &Case, processors: u16) -> Result<Self, Fault> {
        let path = Path::new(Kind::Function, Ipsec::Offloaded(OffloadMode::Packet));
        let mut nodes = [
            Node::new(0, path, processors)?,
            Node::new(1, path, processors)?,
        ];
        let mut functions = [[(VfId(0), QueueId::DEFAULT); VMS.len()]; 2];
        for (node, functions) in nodes.iter_mut().zip(&mut functions) {
            for (index, vm) in VMS.into_iter().enumerate() {
                node.add(case, path, vm)?;
                let processor = index % usize::from(processors);
                let set = node.host.nic().set_processor(vm, processor);
                set.map_err(|error| Fault::new("nic", error))?;
                let function = node
                    .function
                    .ok_or_else(|| Fault::new("nic", "no function"))?;
                functions[index] = function;
            }
        }
        let frames = VMS.map(|vm| {
            let lengths = case.size.lengths();
            let frames = lengths.iter().take(EACH).enumerate().map(|(index, len)| {
                let mut packet = vec![0; *len];
                case.write_inner(index, &mut packet);
                let header = [&mac(1, vm).0[..], &mac(0, vm).0, &[8, 0]].concat();
                [header, packet].concat()
            });
            frames.collect()
        });
        let buffers = || VMS.map(|_| (0..EACH * 2).map(|_| Mbuf::empty()).collect());
        Ok(Self {
            nodes,
            functions,
            frames,
            now: Timestamp::from_secs(1),
            sending: buffers(),
            posting: buffers(),
        })
    }

    /// One pass, out and in, with all processors at work at once, each on a core of its own.
    pub(super) fn pass(&mut self, cores: &Cores) -> Result<Repetition, Fault> {
        self.now = Timestamp::from_nanos(self.now.as_nanos() + 1_000_000);
        let now = self.now;
        let [sender, receiver] = self.nodes.each_ref().map(|node| node.host.nic());
        let [senders, receivers] = &self.functions;
        let frames = &self.frames;
        let count = sender.processors();
        let mut lanes: Vec<Lane> = (0..count).map(Lane::new).collect();
        for (vm, buffers) in self.sending.iter_mut().enumerate() {
            lanes[vm % count]
                .machines
                .push((vm, core::mem::take(buffers)));
        }
        let out = cores.run(&mut lanes, |lane, gate| {
            for (vm, buffers) in &mut lane.machines {
                for (buffer, frame) in buffers.iter_mut().zip(frames[*vm].iter().cycle()) {
                    buffer.set(frame);
                }
                lane.owners
                    .extend(buffers.iter().map(|buffer| (buffer.address(), *vm)));
            }
            twice(sender, lane, now, gate, |vm, batch| {
                let sends = batch.zip(1..).map(|(frame, id)| Send::new(id, frame));
                let mut sends = sends.collect();
                sender.send_from_function(senders[vm].0, &mut sends);
            })
        });
        // The wire knows which core a frame is on, and does not look into it.
        let owners: HashMap<usize, usize> = lanes
            .iter_mut()
            .flat_map(|lane| lane.owners.drain(..))
            .collect();
        let mut wire = Vec::new();
        sender.take_transmitted(&mut wire, usize::MAX);
        let sent = wire.len();
        for frame in wire {
            let Some(vm) = owners.get(&frame.address()) else {
                continue;
            };
            let mut machines = lanes[vm % count].machines.iter_mut();
            if let Some((_, frames)) = machines.find(|(found, _)| found == vm) {
                frames.push(frame);
            }
        }
        for (vm, buffers) in self.posting.iter_mut().enumerate() {
            let posting = &mut lanes[vm % count].posting;
            posting.push((vm, core::mem::take(buffers)));
        }
        let inward = cores.run(&mut lanes, |lane, gate| {
            for (vm, buffers) in &mut lane.posting {
                buffers.iter_mut().for_each(Mbuf::reset);
                let _ = receiver.post_buffers(receivers[*vm].1, buffers.drain(..));
            }
            twice(receiver, lane, now, gate, |_, batch| {
                receiver.receive(batch)
            })
        });
        let mut received = 0;
        let mut free = Vec::new();
        for vm in 0..VMS.len() {
            let queue = receivers[vm].1;
            let buffers = &mut self.sending[vm];
            received += receiver.take_frames(queue, buffers, usize::MAX);
            let _ = receiver.return_packets(queue, buffers.len() as u32);
            sender.take_failures(VMS[vm], Poster::Guest, now, &mut Vec::new());
        }
        receiver.take_recycled(&mut free);
        for buffers in &mut self.posting {
            buffers.extend(free.drain(..free.len().min(EACH * 2)));
        }
        if received != PACKETS * 2 || sent != PACKETS * 2 {
            let what = format_args!("{sent} packets sent, {received} received");
            return Err(Fault::new("nic", what));
        }
        Ok(Repetition {
            ticks: [out.ticks[0], inward.ticks[0]],
            disturbed: out.disturbed || inward.disturbed,
        })
    }
}

/// A processor of the adapter on its core, with the machines that it works for, by their places in
/// [`VMS`].
struct Lane {
    processor: usize,
    /// Their packets.
    machines: Vec<(usize, Vec<Mbuf>)>,
    /// Buffers that they are about to post.
    posting: Vec<(usize, Vec<Mbuf>)>,
    /// Whose which buffer is.
    owners: Vec<(usize, usize)>,
}

impl Lane {
    fn new(processor: usize) -> Self {
        Self {
            processor,
            machines: Vec::new(),
            posting: Vec::new(),
            owners: Vec::new(),
        }
    }
}

/// Gives the first half of each machine's packets to a processor and runs it until nothing waits,
/// then the second half, on the clock.
fn twice(
    nic: &Nic<Mbuf>,
    lane: &mut Lane,
    now: Timestamp,
    gate: &Gate,
    mut give: impl FnMut(usize, Drain<'_, Mbuf>),
) -> [Lap; 2] {
    let mut half = || {
        for (vm, packets) in &mut lane.machines {
            let count = packets.len().min(EACH);
            give(*vm, packets.drain(..count));
        }
    };
    half();
    nic.run_processor(lane.processor, now, PACKETS * 2);
    half();
    gate.pass();
    let start = sys::ticks();
    nic.run_processor(lane.processor, now, PACKETS * 2);
    let end = sys::ticks();
    [Lap { start, end }; 2]
}
