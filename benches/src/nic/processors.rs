//! Two processors of an adapter, on two threads, beside one: packets of two machines, received.

use std::sync::Arc;

use vesper_offload::{Nic, OffloadMode};
use vesper_sa::{Timestamp, VmId};

use super::mbuf::Mbuf;
use super::node::{Ipsec, Kind, Node, Path, mac};
use crate::case::{Case, PACKETS};
use crate::contest::{Fault, Repetition};
use crate::lanes::{Cores, Lap};
use crate::sys;

const VMS: [VmId; 2] = [VmId(1), VmId(2)];

/// Packets of one machine in a pass.
const EACH: usize = PACKETS / VMS.len();

/// Two nodes with a machine for each processor.
pub(super) struct Processors {
    nodes: [Node; 2],
    frames: [Vec<Vec<u8>>; 2],
    now: Timestamp,
    free: Vec<Mbuf>,
}

impl Processors {
    /// An adapter with so many processors, two machines, and a queue for each.
    pub(super) fn new(case: &Case, processors: u16) -> Result<Self, Fault> {
        let path = Path::new(Kind::Queue, Ipsec::Offloaded(OffloadMode::Packet));
        let mut nodes = [
            Node::new(0, path, processors)?,
            Node::new(1, path, processors)?,
        ];
        for node in &mut nodes {
            for vm in VMS {
                node.add(case, path, vm)?;
            }
            for (processor, vm) in VMS.into_iter().enumerate() {
                let processor = processor % usize::from(processors);
                let set = node.host.nic().set_processor(vm, processor);
                set.map_err(|error| Fault::new("nic", error))?;
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
        Ok(Self {
            nodes,
            frames,
            now: Timestamp::from_secs(1),
            free: (0..PACKETS * 2).map(|_| Mbuf::empty()).collect(),
        })
    }

    /// One pass, out and in, with all processors at work at once, each on a core of its own.
    pub(super) fn pass(&mut self, cores: &Cores) -> Result<Repetition, Fault> {
        self.now = Timestamp::from_nanos(self.now.as_nanos() + 1_000_000);
        let now = self.now;
        let [sender, receiver] = &mut self.nodes;
        for (vm, frames) in VMS.into_iter().zip(&self.frames) {
            let buffers = self.free.drain(..EACH).zip(frames);
            let mut sends: Vec<_> = buffers
                .map(|(mut buffer, frame)| {
                    buffer.set(frame);
                    buffer
                })
                .collect();
            let _ = sender.host.send(vm, &mut sends);
            let buffers = self.free.drain(..EACH).map(|mut buffer| {
                buffer.reset();
                buffer
            });
            let _ = receiver.host.post_buffers(vm, buffers);
        }
        sender.host.run(now, PACKETS * 2);
        let out = run(cores, sender.host.nic(), now);
        let mut wire = Vec::new();
        sender.host.nic().take_transmitted(&mut wire, usize::MAX);
        sender.host.run(now, PACKETS * 2);
        receiver.host.nic().receive(wire);
        let inward = run(cores, receiver.host.nic(), now);
        receiver.host.run(now, PACKETS * 2);
        let mut received = Vec::new();
        for vm in VMS {
            let _ = receiver.host.take_received(vm, &mut received);
        }
        let count = received.len();
        self.free.append(&mut received);
        for node in &self.nodes {
            node.host.nic().take_recycled(&mut self.free);
        }
        if count != PACKETS {
            return Err(Fault::new("nic", format_args!("{count} packets received")));
        }
        Ok(Repetition {
            ticks: [out.ticks[0], inward.ticks[0]],
            disturbed: out.disturbed || inward.disturbed,
        })
    }
}

/// Runs every processor until nothing waits for it.
fn run(cores: &Cores, nic: &Arc<Nic<Mbuf>>, now: Timestamp) -> Repetition {
    let mut lanes: Vec<usize> = (0..nic.processors()).collect();
    cores.run(&mut lanes, |processor, gate| {
        gate.pass();
        let start = sys::ticks();
        nic.run_processor(*processor, now, PACKETS);
        let end = sys::ticks();
        [Lap { start, end }, Lap { start, end }]
    })
}
