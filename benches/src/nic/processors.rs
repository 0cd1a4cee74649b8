//! Two processors of an adapter, on two threads, beside one: packets of two machines, received.

use std::sync::Arc;

use vesper_esp::Buffer;
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

    /// One pass, out and in, with all processors at work at once, each on a core of its own. A
    /// machine's packets are written, and arrive, on the core that works for it: what one core
    /// leaves in its cache for another is no cost of the adapter.
    pub(super) fn pass(&mut self, cores: &Cores) -> Result<Repetition, Fault> {
        self.now = Timestamp::from_nanos(self.now.as_nanos() + 1_000_000);
        let now = self.now;
        let [sender, receiver] = &mut self.nodes;
        let mut lanes: Vec<Lane> = (0..sender.host.nic().processors()).map(Lane::new).collect();
        let count = lanes.len();
        for (index, _) in VMS.iter().enumerate() {
            let buffers = self.free.drain(..EACH).collect();
            lanes[index % count].batches.push((index, buffers));
        }
        let frames = &self.frames;
        cores.run(&mut lanes, |lane, _| {
            for (vm, buffers) in &mut lane.batches {
                for (buffer, frame) in buffers.iter_mut().zip(&frames[*vm]) {
                    buffer.set(frame);
                }
            }
            [Lap::default(); 2]
        });
        for lane in &mut lanes {
            for (vm, mut sends) in lane.batches.drain(..) {
                let _ = sender.host.send(VMS[vm], &mut sends);
            }
        }
        for vm in VMS {
            let buffers = self.free.drain(..EACH).map(|mut buffer| {
                buffer.reset();
                buffer
            });
            let _ = receiver.host.post_buffers(vm, buffers);
        }
        sender.host.run(now, PACKETS * 2);
        let out = run(cores, &mut lanes, sender.host.nic(), now);
        let mut wire = Vec::new();
        sender.host.nic().take_transmitted(&mut wire, usize::MAX);
        sender.host.run(now, PACKETS * 2);
        for frame in wire {
            let vm = usize::from(frame.data()[SPI_END - 1] != VMS[0].0 as u8);
            lanes[vm % count].arriving.push(frame);
        }
        let inward = run(cores, &mut lanes, receiver.host.nic(), now);
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

/// Where the SPI of an ESP packet in a frame ends, whose last byte is the machine's number.
const SPI_END: usize = 14 + 20 + 4;

/// A processor of the adapter on its core, with the machines that it works for.
struct Lane {
    processor: usize,
    /// What machines are about to send, by their place in [`VMS`].
    batches: Vec<(usize, Vec<Mbuf>)>,
    arriving: Vec<Mbuf>,
}

impl Lane {
    fn new(processor: usize) -> Self {
        Self {
            processor,
            batches: Vec::new(),
            arriving: Vec::new(),
        }
    }
}

/// Runs every processor until nothing waits for it; what arrives for it comes before that.
fn run(cores: &Cores, lanes: &mut [Lane], nic: &Arc<Nic<Mbuf>>, now: Timestamp) -> Repetition {
    cores.run(lanes, |lane, gate| {
        nic.receive(lane.arriving.drain(..));
        gate.pass();
        let start = sys::ticks();
        nic.run_processor(lane.processor, now, PACKETS);
        let end = sys::ticks();
        [Lap { start, end }; 2]
    })
}
