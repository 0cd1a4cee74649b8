//! Passes of packets through hosts and adapters, with the time that each party spends.

use vesper_esp::{Engine, EspSa, Inbound, Outbound, Verdict};
use vesper_offload::{Completion, Host, Poster, Send};
use vesper_sa::{Direction, Timestamp, VmId};

use super::mbuf::Mbuf;
use super::node::{Node, Path, mac, sa};
use crate::case::{Case, PACKETS};
use crate::contest::Fault;
use crate::sys;

/// Packets that are handed over at once.
pub(super) const BATCH: usize = 32;

const VM: VmId = VmId(1);

/// Ticks that each party has spent on a pass.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    /// The machine's driver.
    pub(super) machine: u64,
    pub(super) host: u64,
    pub(super) adapter: u64,
}

/// Where packets pass.
pub(super) trait Track {
    /// One pass of all packets: out, and in.
    fn pass(&mut self) -> Result<[Spent; 2], Fault>;

    /// Copies for each packet that was received so far.
    fn copies(&self) -> f64;
}

/// The engine alone, driven directly.
pub(super) struct Bare {
    engine: Engine,
    sas: [std::sync::Arc<EspSa>; 2],
    packets: Vec<Vec<u8>>,
    buffers: Vec<Mbuf>,
}

/// Two hosts with their adapters and a machine on each.
pub(super) struct Wired {
    nodes: [Node; 2],
    now: Timestamp,
    frames: Vec<Vec<u8>>,
    sends: Vec<Mbuf>,
    wire: Vec<Mbuf>,
    /// To be posted.
    empty: Vec<Mbuf>,
    received: Vec<Mbuf>,
    copies: f64,
}

/// The inner packets of a case.
fn packets(case: &Case) -> Vec<Vec<u8>> {
    let lengths = case.size.lengths();
    let packets = lengths.iter().enumerate().map(|(index, length)| {
        let mut packet = vec![0; *length];
        case.write_inner(index, &mut packet);
        packet
    });
    packets.collect()
}

impl Bare {
    pub(super) fn new(case: &Case) -> Result<Self, Fault> {
        Ok(Self {
            engine: Engine::default(),
            sas: [
                sa(case, VM, Direction::Outbound)?,
                sa(case, VM, Direction::Inbound)?,
            ],
            packets: packets(case),
            buffers: (0..PACKETS).map(|_| Mbuf::empty()).collect(),
        })
    }
}

impl Track for Bare {
    fn pass(&mut self) -> Result<[Spent; 2], Fault> {
        for (buffer, packet) in self.buffers.iter_mut().zip(&self.packets) {
            buffer.set_packet(packet);
        }
        let now = Timestamp::from_secs(1);
        let mut spent = [Spent::default(); 2];
        let mut failed = 0;
        for burst in self.buffers.chunks_mut(BATCH) {
            let packets = burst.iter_mut();
            let mut jobs: Vec<_> = packets
                .map(|packet| Outbound::new(&self.sas[0], packet))
                .collect();
            let start = sys::ticks();
            self.engine.encapsulate(now, &mut jobs);
            spent[0].adapter += sys::ticks() - start;
            let sealed = |job: &&Outbound<'_, _>| matches!(job.verdict, Verdict::Sealed { .. });
            failed += jobs.len() - jobs.iter().filter(sealed).count();
        }
        for burst in self.buffers.chunks_mut(BATCH) {
            let packets = burst.iter_mut();
            let mut jobs: Vec<_> = packets
                .map(|packet| {
                    let mut job = Inbound::new(packet);
                    job.sa = Some(&self.sas[1]);
                    job
                })
                .collect();
            let start = sys::ticks();
            self.engine.decapsulate(now, &|_, _| None, &mut jobs);
            spent[1].adapter += sys::ticks() - start;
            let opened = |job: &&Inbound<'_, _>| matches!(job.verdict, Verdict::Opened(_));
            failed += jobs.len() - jobs.iter().filter(opened).count();
        }
        match failed {
            0 => Ok(spent),
            _ => Err(Fault::new("engine", format_args!("{failed} packets"))),
        }
    }

    fn copies(&self) -> f64 {
        0.0
    }
}

impl Wired {
    pub(super) fn new(case: &Case, path: Path) -> Result<Self, Fault> {
        let mut nodes = [Node::new(0, path, 1)?, Node::new(1, path, 1)?];
        for node in &mut nodes {
            node.add(case, path, VM)?;
        }
        let frames = packets(case).into_iter().map(|packet| {
            let header = [&mac(1, VM).0[..], &mac(0, VM).0, &[8, 0]].concat();
            [header, packet].concat()
        });
        Ok(Self {
            nodes,
            now: Timestamp::from_secs(1),
            frames: frames.collect(),
            sends: (0..PACKETS).map(|_| Mbuf::empty()).collect(),
            wire: Vec::new(),
            empty: (0..PACKETS).map(|_| Mbuf::empty()).collect(),
            received: Vec::new(),
            copies: 0.0,
        })
    }

    /// The machine of node 0 sends all frames, up to the wire. Not inlined, for profilers.
    #[inline(never)]
    fn send(&mut self) -> Result<Spent, Fault> {
        let Node { host, function, .. } = &mut self.nodes[0];
        let nic = std::sync::Arc::clone(host.nic());
        let mut spent = Spent::default();
        let mut id = 0;
        let mut sends: Vec<Send<Mbuf>> = Vec::with_capacity(BATCH);
        let mut frames = Vec::with_capacity(BATCH);
        let mut completions: Vec<Completion<Mbuf>> = Vec::with_capacity(BATCH);
        while !self.sends.is_empty() {
            self.now = later(self.now);
            frames.extend(self.sends.drain(..BATCH.min(self.sends.len())));
            let start = sys::ticks();
            match function {
                Some((vf, _)) => {
                    sends.extend(frames.drain(..).map(|frame| {
                        id += 1;
                        Send::new(id, frame)
                    }));
                    nic.send_from_function(*vf, &mut sends);
                }
                None => {
                    let _ = host.send(VM, &mut frames);
                }
            }
            let posted = sys::ticks();
            host.run(self.now, BATCH);
            let switched = sys::ticks();
            nic.run_processor(0, self.now, BATCH);
            let sent = sys::ticks();
            if function.is_some() {
                nic.take_failures(VM, Poster::Guest, self.now, &mut completions);
                completions.clear();
            }
            let completed = sys::ticks();
            spent.machine += (posted - start) + (completed - sent);
            spent.host += switched - posted;
            spent.adapter += sent - switched;
            nic.take_transmitted(&mut self.wire, usize::MAX);
        }
        match self.wire.len() {
            PACKETS => Ok(spent),
            count => Err(lost("sent", count, host)),
        }
    }

    /// The machine of node 1 receives all that is on the wire. Not inlined, for profilers.
    #[inline(never)]
    fn receive(&mut self) -> Result<Spent, Fault> {
        let Node { host, function, .. } = &mut self.nodes[1];
        let nic = std::sync::Arc::clone(host.nic());
        let mut spent = Spent::default();
        let mut wire = core::mem::take(&mut self.wire).into_iter();
        while wire.len() > 0 {
            self.now = later(self.now);
            let rest = self.empty.len() - BATCH.min(wire.len());
            let posted = self.empty.split_off(rest);
            let start = sys::ticks();
            let _ = match function {
                Some((_, queue)) => nic.post_buffers(*queue, posted).is_ok(),
                None => host.post_buffers(VM, posted).is_ok(),
            };
            let ready = sys::ticks();
            nic.receive(wire.by_ref().take(BATCH));
            nic.run_processor(0, self.now, BATCH);
            let arrived = sys::ticks();
            host.run(self.now, BATCH);
            let switched = sys::ticks();
            match function {
                Some((_, queue)) => {
                    let count = nic.take_frames(*queue, &mut self.received, BATCH);
                    let _ = nic.return_packets(*queue, count as u32);
                }
                None => {
                    let _ = host.take_received(VM, &mut self.received);
                }
            }
            let taken = sys::ticks();
            spent.machine += (ready - start) + (taken - switched);
            spent.adapter += arrived - ready;
            spent.host += switched - arrived;
        }
        let counters = host.machine_counters(VM).unwrap_or_default();
        self.copies = counters.copies as f64 / counters.received.max(1) as f64;
        match self.received.len() {
            PACKETS => Ok(spent),
            count => Err(lost("received", count, host)),
        }
    }
}

impl Track for Wired {
    fn pass(&mut self) -> Result<[Spent; 2], Fault> {
        for (buffer, frame) in self.sends.iter_mut().zip(&self.frames) {
            buffer.set(frame);
        }
        let out = self.send()?;
        let inward = self.receive()?;
        // The buffers of both nodes are free again, wherever they are.
        self.sends.append(&mut self.received);
        for node in &self.nodes {
            node.host.nic().take_recycled(&mut self.empty);
        }
        let surplus = self.empty.len().saturating_sub(PACKETS);
        self.sends.extend(self.empty.drain(..surplus));
        self.sends.truncate(PACKETS);
        self.empty.iter_mut().for_each(Mbuf::reset);
        Ok([out, inward])
    }

    fn copies(&self) -> f64 {
        self.copies
    }
}

/// A tenth of a millisecond later: nothing is moderated or due in between.
fn later(now: Timestamp) -> Timestamp {
    Timestamp::from_nanos(now.as_nanos() + 100_000)
}

fn lost(what: &str, count: usize, host: &Host<Mbuf>) -> Fault {
    Fault::new(
        "nic",
        format_args!(
            "{count} of {PACKETS} packets {what}: {:?}",
            host.machine_counters(VM)
        ),
    )
}
