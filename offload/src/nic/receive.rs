//! Receiving: from the wire into a queue, and from there, opened, into posted buffers.

use core::sync::atomic::Ordering;
use std::collections::VecDeque;

use arrayvec::ArrayVec;

use vesper_esp::aead::{Job, open_batch};
use vesper_esp::wire::{flow, locate};
use vesper_esp::{Buffer, Engine, Inbound, Verdict};
use vesper_sa::{Action, Direction, Spd, Timestamp, VmId};

use super::opened::Opening;
use super::steering::Steering;
use super::{BATCH, Config, Nic, NicEvent, Processor};
use crate::arrivals::{Arrivals, Class};
use crate::capability::OffloadMode;
use crate::crypto_mode::{finish_decrypted, to_decrypt};
use crate::crypto_status::{CryptoInfo, CryptoStatus};
use crate::ethernet::{Frame, Link, ethertype};
use crate::fate::Loss;
use crate::nic::large_send::checksum_is_right;
use crate::queue::QueueState;
use crate::rings::{Queue, lock};
use crate::transfer::{HostWork, Received, ReceivedIpsec};
use crate::unit::{Offloaded, SaOffload};

/// What the cryptography did to one frame of a batch.
#[derive(Clone, Copy)]
pub(super) enum Step<'a> {
    /// Nothing: not ESP, or of no association here.
    None,
    /// Packet mode.
    Opened(&'a Offloaded),
    /// Packet mode: refused, to the loss of this machine.
    Failed(VmId),
    /// Crypto mode.
    Decrypted(&'a Offloaded, CryptoInfo),
}

impl<B: Buffer> Nic<B> {
    /// Takes frames from the wire: decides by filter, or by association, whose they are, and
    /// puts them into that queue. VLAN and owner are decided before a frame gets near memory
    /// that a machine sees.
    #[inline(never)]
    pub fn receive(&self, frames: impl IntoIterator<Item = B>) {
        let config = self.read();
        let mut steering = Steering::new(self, &config);
        if config.faulty {
            let opened = frames.into_iter().filter_map(|frame| {
                let opened = Frame::open(frame);
                let opened =
                    opened.map_err(|(buffer, _)| self.lose(&config, None, buffer, Loss::Malformed));
                opened.ok()
            });
            for frame in self.spoil_received(&config, opened) {
                steering.place_opened(frame, None);
            }
            return;
        }
        for frame in frames {
            steering.place(frame);
        }
    }

    /// What planned faults do to received frames.
    fn spoil_received(
        &self,
        config: &Config<B>,
        frames: impl Iterator<Item = Frame<B>>,
    ) -> Vec<Frame<B>> {
        let mut spoiled: Vec<Frame<B>> = Vec::new();
        for mut frame in frames {
            let mut faults = lock(&self.faults);
            let plan = faults.plan;
            if faults.strikes(plan.lost_input) {
                faults.counters.lost_input += 1;
                drop(faults);
                self.lose(config, None, frame.payload, Loss::Fault);
                continue;
            }
            if faults.strikes(plan.corrupt_input) {
                let at = faults.below(frame.payload.data().len().max(1));
                let bit = faults.below(8);
                if let Some(byte) = frame.payload.data_mut().get_mut(at) {
                    *byte ^= 1 << bit;
                    faults.counters.corrupt_input += 1;
                }
            }
            if faults.strikes(plan.reordered_input)
                && let Some(before) = spoiled.pop()
            {
                faults.counters.reordered_input += 1;
                spoiled.extend([frame, before]);
            } else {
                spoiled.push(frame);
            }
        }
        spoiled
    }

    /// Copies a group frame to the functions of its VLAN, except the one that it comes from.
    pub(crate) fn replicate(&self, config: &Config<B>, frame: &Frame<B>, from: Option<VmId>) {
        let Some(switch) = &config.switch else {
            return;
        };
        for vport in switch.vports.iter().flatten() {
            let Some(queue) = config.queue(vport.queue) else {
                continue;
            };
            let entry = queue.owner.and_then(|owner| config.vms.get(&owner));
            let is_member = entry.is_some_and(|entry| {
                entry.port.address.vlan == frame.vlan && Some(entry.port.vm) != from
            });
            if !is_member {
                continue;
            }
            let mut inner = lock(&queue.inner);
            let Some(mut copy) = inner.posted.pop() else {
                drop(inner);
                self.count_receive_loss(config, queue.owner, Loss::NoBuffer);
                continue;
            };
            let payload = frame.payload.data();
            let waiting = inner.waiting.len();
            if waiting >= queue.ring
                || !crate::ethernet::fill(&mut copy, crate::HEADROOM, &[payload])
            {
                inner.posted.push(copy);
                drop(inner);
                self.count_receive_loss(config, queue.owner, Loss::NoBuffer);
                continue;
            }
            inner.counters.copies += 1;
            queue.attention.store(true, Ordering::Relaxed);
            let copy = Frame {
                payload: copy,
                link: frame.link,
                vlan: frame.vlan,
            };
            inner.waiting.push(copy, Class::Copy);
        }
    }

    pub(crate) fn lose(&self, config: &Config<B>, owner: Option<VmId>, buffer: B, loss: Loss) {
        self.recycle(buffer);
        self.count_receive_loss(config, owner, loss);
    }

    pub(super) fn count_receive_loss(&self, config: &Config<B>, owner: Option<VmId>, loss: Loss) {
        match owner.and_then(|owner| config.vms.get(&owner)) {
            Some(entry) => lock(&entry.port.sends).counters.receive_losses.count(loss),
            None => lock(&self.receive_losses).count(loss),
        }
    }

    /// Processes up to `most` frames that wait in a queue; returns packets and bytes.
    pub(crate) fn process_receive(
        &self,
        config: &Config<B>,
        queue: &Queue<B>,
        processor: &mut Processor<B>,
        now: Timestamp,
        most: usize,
    ) -> (usize, usize) {
        if !queue.attention.load(Ordering::Relaxed) {
            return (0, 0);
        }
        let mut batch = core::mem::replace(&mut processor.waiting, Arrivals::new());
        let stopping = {
            let mut inner = lock(&queue.inner);
            inner.waiting.take(most.min(BATCH), &mut batch);
            let is_empty = inner.waiting.len() == 0;
            if is_empty {
                queue.attention.store(false, Ordering::Relaxed);
            }
            inner.state == QueueState::StopDma && is_empty
        };
        let count = batch.len();
        let mut bytes = 0;
        if count > 0 {
            let engine = &mut processor.engine;
            match self.open_all(config, queue, engine, now, &mut batch, &mut bytes) {
                Opening::Untouched => {
                    bytes = total_bytes(&batch.payloads);
                    self.hand_over_untouched(config, queue, processor, now, &mut batch);
                }
                Opening::All(sas) => {
                    self.hand_over_opened(config, queue, processor, now, &mut batch, &sas);
                }
                Opening::Some(steps) => {
                    self.hand_over(config, queue, processor, now, &mut batch, steps);
                }
                Opening::Not => {
                    bytes = total_bytes(&batch.payloads);
                    let steps = self.open(config, engine, now, &mut batch);
                    self.hand_over(config, queue, processor, now, &mut batch, steps);
                }
            }
            let owner = queue.owner.unwrap_or(VmId::HOST);
            processor.account(owner, count, bytes);
        }
        processor.waiting = batch;
        if stopping {
            processor.stopped.push(queue.id);
        }
        (count, bytes)
    }

    /// Counts packets for those whose they are: in the default queue, that is what their
    /// associations say.
    pub(super) fn count_opened(&self, config: &Config<B>, opened: &OpenedBy) {
        for (owner, count) in opened {
            if let Some(entry) = config.vms.get(owner) {
                lock(&entry.port.sends).counters.opened += count;
            }
        }
    }

    /// The cryptography of a batch.
    #[inline(never)]
    fn open<'a>(
        &self,
        config: &'a Config<B>,
        engine: &mut Engine,
        now: Timestamp,
        batch: &mut Arrivals<B>,
    ) -> ArrayVec<Step<'a>, BATCH> {
        let mut steps: ArrayVec<Step<'a>, BATCH> = ArrayVec::new();
        let mut to_open: ArrayVec<Inbound<'_, &mut B>, BATCH> = ArrayVec::new();
        let mut jobs: ArrayVec<Job<'_>, BATCH> = ArrayVec::new();
        let mut last: Option<&'a Offloaded> = None;
        for (class, packet) in batch.iter_mut() {
            let Class::Esp(handle) = class else {
                steps.push(Step::None);
                continue;
            };
            if last.is_none_or(|last| last.handle != handle) {
                last = config.unit.at(handle).map(|offloaded| &**offloaded);
            }
            steps.push(match last {
                None => Step::None,
                Some(offloaded) if offloaded.offload.mode == OffloadMode::Packet => {
                    let mut job = Inbound::new(packet);
                    job.sa = Some(&offloaded.sa);
                    to_open.push(job);
                    Step::Opened(offloaded)
                }
                Some(offloaded) => {
                    let located = locate(packet.data(), &self.ports);
                    match to_decrypt(offloaded, located, packet.data_mut()) {
                        (Some(info), job) => {
                            jobs.extend(job);
                            Step::Decrypted(offloaded, info)
                        }
                        (None, _) => Step::None,
                    }
                }
            });
        }
        open_batch(&mut jobs);
        engine.decapsulate(now, &|_, _| None, &mut to_open);
        let (mut opened, mut decrypted) = (to_open.iter(), jobs.iter());
        for step in &mut steps {
            match step {
                Step::Opened(offloaded) => {
                    let verdict = opened.next().map(|job| job.verdict);
                    *step = match verdict {
                        Some(Verdict::Opened(_)) => *step,
                        _ => Step::Failed(offloaded.sa.owner()),
                    };
                }
                // Without a job its syntax is wrong.
                Step::Decrypted(offloaded, info) if info.status == CryptoStatus::Success => {
                    let job = decrypted.next();
                    finish_decrypted(offloaded, info, job);
                }
                _ => {}
            }
        }
        steps
    }

    /// Puts a batch where it belongs, and says what policy has to say.
    #[inline(never)]
    fn hand_over(
        &self,
        config: &Config<B>,
        queue: &Queue<B>,
        processor: &mut Processor<B>,
        now: Timestamp,
        batch: &mut Arrivals<B>,
        steps: ArrayVec<Step<'_>, BATCH>,
    ) {
        let policies = queue.owner.and_then(|owner| config.unit.policies(owner));
        let mut losses: ArrayVec<(Option<VmId>, Loss), BATCH> = ArrayVec::new();
        let mut to_host: ArrayVec<Received<B>, BATCH> = ArrayVec::new();
        let mut opened = OpenedBy::new();
        let mut inner = lock(&queue.inner);
        for ((mut frame, class), step) in batch.drain().zip(steps) {
            let mut owner = queue.owner;
            let outcome = match step {
                Step::Opened(offloaded) => {
                    let whose = owner.unwrap_or_else(|| offloaded.sa.owner());
                    add_opened(&mut opened, whose, 1);
                    owner = Some(whose);
                    let offload = &offloaded.offload;
                    let packet = frame.payload.data();
                    let (link, outcome) = around_opened(offload, frame.link, packet);
                    frame.link = link;
                    Ok(outcome)
                }
                Step::Decrypted(offloaded, info) => {
                    owner = owner.or(Some(offloaded.sa.owner()));
                    Ok(ReceivedIpsec::Crypto(info))
                }
                Step::Failed(failed) => {
                    owner = owner.or(Some(failed));
                    Err(Loss::Esp)
                }
                // Unknown, or deleted since: software has the next say, if there is any.
                Step::None => match class {
                    // In the default queue nobody knows yet whose it is.
                    Class::Esp(_) if owner.is_some() => Ok(ReceivedIpsec::Host(HostWork::Open)),
                    Class::Unknown if policies.is_some() => Ok(ReceivedIpsec::Host(HostWork::Open)),
                    Class::Esp(_) | Class::Unknown => Ok(ReceivedIpsec::Untouched),
                    Class::Clear | Class::Copy => match admits_clear(policies, &frame) {
                        true => Ok(ReceivedIpsec::Untouched),
                        false => Err(Loss::Policy),
                    },
                },
            };
            let lost = match outcome {
                Ok(ReceivedIpsec::Host(work)) => {
                    to_host.push(Received {
                        frame,
                        queue: queue.id,
                        owner,
                        ipsec: ReceivedIpsec::Host(work),
                    });
                    continue;
                }
                Ok(ipsec) => match inner.room(queue) {
                    // In a buffer of the machine already.
                    (0, loss) if class != Class::Copy => loss,
                    _ => {
                        if class != Class::Copy {
                            inner.exchange(queue, 1, &mut processor.recycled);
                        }
                        let received = Received {
                            frame,
                            queue: queue.id,
                            owner,
                            ipsec,
                        };
                        inner.indicate(queue, received, now);
                        continue;
                    }
                },
                Err(loss) => loss,
            };
            processor.recycled.push(frame.payload);
            losses.push((owner, lost));
        }
        drop(inner);
        if let Some(default_queue) = config.default_queue().filter(|_| !to_host.is_empty()) {
            let mut inner = lock(&default_queue.inner);
            inner.indicate_to_host(default_queue, to_host, now, |lost, loss| {
                processor.recycled.push(lost.frame.payload);
                losses.push((lost.owner, loss));
            });
        }
        for (owner, loss) in losses {
            self.count_receive_loss(config, owner, loss);
        }
        self.count_opened(config, &opened);
    }

    /// Passes on what the engine has to tell.
    pub(crate) fn report_events(&self, processor: &mut Processor<B>) {
        for event in processor.engine.drain_events() {
            self.emit(NicEvent::Sa(event));
        }
    }
}

/// How many packets of a batch were opened for whom, in runs.
pub(super) type OpenedBy = ArrayVec<(VmId, u64), BATCH>;

/// Adds packets that stand together.
pub(super) fn add_opened(opened: &mut OpenedBy, owner: VmId, count: u64) {
    match opened.last_mut() {
        Some((last, counted)) if *last == owner => *counted += count,
        _ => opened.push((owner, count)),
    }
}

fn total_bytes<B: Buffer>(payloads: &VecDeque<B>) -> usize {
    payloads.iter().map(|payload| payload.data().len()).sum()
}

/// Packet mode: the header before what was opened, and what there is to say of it.
#[inline]
pub(super) fn around_opened(
    offload: &SaOffload,
    link: Link,
    packet: &[u8],
) -> (Link, ReceivedIpsec) {
    let checksum = match offload.inner_checksum {
        true => checksum_is_right(packet),
        false => None,
    };
    let link = link.of_packet(packet, offload.rewrite.as_ref());
    (link, ReceivedIpsec::Opened { checksum })
}

/// Whether policy lets an unprotected frame in.
fn admits_clear<B: Buffer>(policies: Option<&Spd>, frame: &Frame<B>) -> bool {
    policies.is_none_or(|policies| match frame.is_ip() {
        true => flow(frame.payload.data())
            .is_some_and(|flow| policies.lookup(Direction::Inbound, &flow) == Action::Bypass),
        false => frame.link.ethertype == ethertype::ARP,
    })
}
