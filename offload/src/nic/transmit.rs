//! Sending: from a machine's ring through the IPsec unit to the wire, or to a function of this
//! adapter.

use arrayvec::ArrayVec;

use vesper_esp::aead::{Job, seal_batch};
use vesper_esp::wire::{EncapsulationPorts, Located, flow, locate};
use vesper_esp::{Buffer, Outbound, Verdict};
use vesper_sa::{Action, Direction, Timestamp, VmId};

use super::{BATCH, Config, Nic, Processor};
use crate::capability::OffloadMode;
use crate::ethernet::{Frame, VlanId, ethertype};
use crate::fate::{Loss, SendError};
use crate::fault::Faults;
use crate::nic::large_send::fill_checksum;
use crate::queue::QueueId;
use crate::rings::{Pending, Plan, SendRing, VmPort, lock};
use crate::sriov::Function;
use crate::transfer::{Completion, HostWork, Received, ReceivedIpsec};
use crate::unit::{Offloaded, Rewrite};

/// What is done about IPsec for one frame of a batch.
enum Step {
    Clear,
    /// Packet mode; the engine's verdict decides.
    Seal {
        vlan: Option<VlanId>,
        rewrite: Option<Rewrite>,
    },
    /// Crypto mode, done.
    Sealed,
    ToHost,
    Fail(SendError),
}

/// What policy, or the host, says about one frame.
enum Choice<'a> {
    Clear,
    Associate(&'a Offloaded),
    ToHost,
    Fail(Loss),
}

/// The end of a send: its identifier, if it is to be completed, or the frame and why it failed.
type Ended<B> = Result<Option<u64>, (Pending<B>, SendError)>;

impl<B: Buffer> Nic<B> {
    /// Processes up to `most` frames of a machine's send ring, as far as its rate limit
    /// allows; returns packets and bytes.
    pub(crate) fn process_send(
        &self,
        config: &Config<B>,
        port: &VmPort<B>,
        processor: &mut Processor<B>,
        now: Timestamp,
        most: usize,
    ) -> (usize, usize) {
        let mut batch = core::mem::take(&mut processor.sending);
        let mut bytes = 0;
        {
            let mut sends = lock(&port.sends);
            while batch.len() < most.min(BATCH) {
                let is_large = |pending: &Pending<B>| pending.segment_size.is_some();
                let Some(next) = sends.pending.front() else {
                    break;
                };
                // A large send is a batch of its own.
                if !batch.is_empty() && (is_large(next) || batch.last().is_some_and(is_large)) {
                    break;
                }
                let len = next.frame.payload.data().len();
                if !sends.limiter.admit(now, len) {
                    break;
                }
                bytes += len;
                batch.extend(sends.pending.pop_front());
            }
        }
        let count = batch.len();
        if count > 0 {
            match batch.first().and_then(|pending| pending.segment_size) {
                Some(size) => self.send_large(config, port, processor, now, &mut batch, size),
                None => self.send_batch(config, port, processor, now, &mut batch),
            }
            lock(&port.sends).counters.sent_bytes += bytes as u64;
            processor.account(port.vm, count, bytes);
        }
        processor.sending = batch;
        (count, bytes)
    }

    /// Cuts the one large send in `batch`, sends the segments, and completes it as a whole.
    fn send_large(
        &self,
        config: &Config<B>,
        port: &VmPort<B>,
        processor: &mut Processor<B>,
        now: Timestamp,
        batch: &mut Vec<Pending<B>>,
        size: u16,
    ) {
        let Some(mut large) = batch.pop() else {
            return;
        };
        let may_cut = match choose(config, port.vm, &large.plan, &large.frame) {
            Choice::Clear => true,
            Choice::Associate(offloaded) if offloaded.offload.mode == OffloadMode::Crypto => false,
            Choice::Associate(_) if config.enabled.large_send => true,
            Choice::Associate(_) if matches!(large.plan, Plan::Bound(_)) => false,
            // Whole, so that the host cuts it before it protects it.
            Choice::Associate(_) | Choice::ToHost => {
                return self.send_by_host(config, port, processor, now, large);
            }
            Choice::Fail(loss) => {
                return lock(&port.sends).fail(large, SendError::Lost(loss));
            }
        };
        let segments = may_cut.then(|| self.cut(&large.frame, size)).flatten();
        let Some(segments) = segments else {
            return lock(&port.sends).fail(large, SendError::Lost(Loss::LargeSend));
        };
        let mut segments: Vec<_> = segments
            .into_iter()
            .map(|frame| large.segment(frame))
            .collect();
        lock(&port.sends).counters.segments += segments.len() as u64;
        while !segments.is_empty() {
            batch.extend(segments.drain(..segments.len().min(BATCH)));
            self.send_batch(config, port, processor, now, batch);
        }
        processor.recycled.push(large.frame.payload);
        if let Some(id) = large.id.take() {
            let completion = Completion {
                id,
                result: Ok(()),
                buffer: None,
            };
            self.complete(config, &mut lock(&port.sends), completion, now);
        }
    }

    /// Leaves a large send to the host, which cuts and protects it.
    fn send_by_host(
        &self,
        config: &Config<B>,
        port: &VmPort<B>,
        processor: &mut Processor<B>,
        now: Timestamp,
        large: Pending<B>,
    ) {
        let mut frames = ArrayVec::new();
        frames.push(for_software(port.vm, large.frame, large.segment_size));
        self.leave_to_host(config, processor, frames, now);
        let mut sends = lock(&port.sends);
        sends.counters.to_host += 1;
        if let Some(id) = large.id {
            let completion = Completion {
                id,
                result: Ok(()),
                buffer: None,
            };
            self.complete(config, &mut sends, completion, now);
        }
    }

    fn send_batch(
        &self,
        config: &Config<B>,
        port: &VmPort<B>,
        processor: &mut Processor<B>,
        now: Timestamp,
        batch: &mut Vec<Pending<B>>,
    ) {
        let mut steps: ArrayVec<Step, BATCH> = ArrayVec::new();
        let mut jobs: ArrayVec<Outbound<'_, &mut B>, BATCH> = ArrayVec::new();
        for pending in batch.iter_mut() {
            if pending.checksum {
                fill_checksum(pending.frame.payload.data_mut());
            }
            let step = match choose(config, port.vm, &pending.plan, &pending.frame) {
                Choice::Clear => Step::Clear,
                Choice::ToHost => Step::ToHost,
                Choice::Fail(loss) => Step::Fail(SendError::Lost(loss)),
                Choice::Associate(offloaded) => match offloaded.offload.mode {
                    OffloadMode::Crypto => {
                        let packet = pending.frame.payload.data_mut();
                        match seal_in_place(offloaded, packet, &self.ports) {
                            true => Step::Sealed,
                            false => Step::Fail(SendError::Lost(Loss::NotFramed)),
                        }
                    }
                    OffloadMode::Packet
                        if !config
                            .enabled
                            .carries(offloaded.sa.mode(), pending.frame.payload.data()) =>
                    {
                        Step::Fail(SendError::Lost(Loss::NotOffloadable))
                    }
                    OffloadMode::Packet => {
                        jobs.push(Outbound::new(&offloaded.sa, &mut pending.frame.payload));
                        Step::Seal {
                            vlan: offloaded.offload.vlan,
                            rewrite: offloaded.offload.rewrite,
                        }
                    }
                },
            };
            steps.push(step);
        }
        processor.engine.encapsulate(now, &mut jobs);
        let verdicts: ArrayVec<Verdict, BATCH> = jobs.iter().map(|job| job.verdict).collect();
        drop(jobs);

        let mut verdicts = verdicts.into_iter();
        let mut done: ArrayVec<(Pending<B>, Result<bool, SendError>), BATCH> = ArrayVec::new();
        let (mut sealed, mut to_host) = (0, 0);
        let mut for_host: ArrayVec<Received<B>, BATCH> = ArrayVec::new();
        for (mut pending, step) in batch.drain(..).zip(steps) {
            let result = match step {
                Step::Clear => Ok(false),
                Step::Sealed => Ok(true),
                Step::Fail(error) => Err(error),
                Step::ToHost => {
                    to_host += 1;
                    for_host.push(for_software(port.vm, pending.frame, None));
                    if let Some(id) = pending.id {
                        let completion = Completion {
                            id,
                            result: Ok(()),
                            buffer: None,
                        };
                        self.complete(config, &mut lock(&port.sends), completion, now);
                    }
                    continue;
                }
                Step::Seal { vlan, rewrite } => match verdicts.next() {
                    Some(Verdict::Sealed { .. }) => {
                        pending.frame.vlan = vlan;
                        if let Some(rewrite) = rewrite {
                            pending.frame.link.destination = rewrite.destination;
                            pending.frame.link.source = rewrite.source;
                        }
                        pending.frame.set_ip_ethertype();
                        Ok(true)
                    }
                    Some(Verdict::TooBig { mtu }) => Err(SendError::TooBig { mtu }),
                    Some(Verdict::Drop(reason)) => Err(SendError::Esp(reason)),
                    _ => Err(SendError::Lost(Loss::NotFramed)),
                },
            };
            sealed += u64::from(result == Ok(true));
            done.push((pending, result));
        }
        self.leave_to_host(config, processor, for_host, now);
        self.emit_batch(config, port, processor, now, done);
        let mut sends = lock(&port.sends);
        sends.counters.sealed += sealed;
        sends.counters.to_host += to_host;
    }

    /// Frames that the host's software has to protect come to it through the default queue.
    fn leave_to_host(
        &self,
        config: &Config<B>,
        processor: &mut Processor<B>,
        frames: ArrayVec<Received<B>, BATCH>,
        now: Timestamp,
    ) {
        let Some(queue) = config.default_queue().filter(|_| !frames.is_empty()) else {
            return;
        };
        let mut inner = lock(&queue.inner);
        for received in frames {
            let owner = received.owner;
            if let Err((buffer, loss)) = inner.deliver(queue, received, true, now) {
                processor.recycled.push(buffer);
                if let Some(entry) = owner.and_then(|owner| config.vms.get(&owner)) {
                    lock(&entry.port.sends).counters.send_losses.count(loss);
                }
            }
        }
    }

    /// The frames of a batch leave, and their sends are completed.
    fn emit_batch(
        &self,
        config: &Config<B>,
        port: &VmPort<B>,
        processor: &mut Processor<B>,
        now: Timestamp,
        done: ArrayVec<(Pending<B>, Result<bool, SendError>), BATCH>,
    ) {
        let mut ended: ArrayVec<Ended<B>, BATCH> = ArrayVec::new();
        for (mut pending, result) in done {
            ended.push(match result {
                Err(error) => Err((pending, error)),
                Ok(sealed) => {
                    if sealed && config.faulty {
                        self.spoil(pending.frame.payload.data_mut());
                    }
                    let id = pending.id;
                    match self.forward(config, port, processor, pending.frame) {
                        Ok(()) => Ok(id),
                        Err(frame) => {
                            pending.frame = frame;
                            Err((pending, SendError::Lost(Loss::NoRoom)))
                        }
                    }
                }
            });
        }
        let mut sends = lock(&port.sends);
        for end in ended {
            match end {
                Ok(id) => {
                    sends.counters.sent += 1;
                    if let Some(id) = id {
                        let completion = Completion {
                            id,
                            result: Ok(()),
                            buffer: None,
                        };
                        self.complete(config, &mut sends, completion, now);
                    }
                }
                Err((pending, error)) => sends.fail(pending, error),
            }
        }
    }

    /// To a function of this adapter, if the destination is one and there is a NIC switch;
    /// else to the wire.
    fn forward(
        &self,
        config: &Config<B>,
        port: &VmPort<B>,
        processor: &mut Processor<B>,
        frame: Frame<B>,
    ) -> Result<(), Frame<B>> {
        if config.switch.is_some() {
            let destination = frame.link.destination;
            if destination.is_group() {
                self.replicate(config, &frame, Some(port.vm));
            } else if let Some(queue) = config.filters.classify(destination, frame.vlan)
                && config.is_switched(queue)
            {
                self.steer(config, frame);
                return Ok(());
            }
        }
        processor.wire.push(frame.close()?);
        Ok(())
    }

    /// The end of a send that went well, with what a fault makes of it.
    fn complete(
        &self,
        config: &Config<B>,
        sends: &mut SendRing<B>,
        completion: Completion<B>,
        now: Timestamp,
    ) {
        if !config.faulty {
            sends.completions.push_back(completion);
            return;
        }
        let mut faults = lock(&self.faults);
        let plan = faults.plan;
        if faults.strikes(plan.lost_completion) {
            faults.counters.lost_completions += 1;
        } else if faults.strikes(plan.late_completion) {
            faults.counters.late_completions += 1;
            let due = Timestamp::from_nanos(now.as_nanos().saturating_add(plan.late_by));
            sends.late.push((due, completion));
        } else if faults.strikes(plan.double_completion) {
            faults.counters.double_completions += 1;
            let twin = Completion {
                buffer: None,
                ..completion
            };
            sends.completions.extend([completion, twin]);
        } else if faults.strikes(plan.reordered_completion)
            && let Some(before) = sends.completions.pop_back()
        {
            faults.counters.reordered_completions += 1;
            sends.completions.extend([completion, before]);
        } else {
            sends.completions.push_back(completion);
        }
    }

    /// Wrong ICV, flipped ciphertext.
    fn spoil(&self, packet: &mut [u8]) {
        let mut faults = lock(&self.faults);
        let Faults { plan, .. } = *faults;
        if faults.strikes(plan.wrong_icv) {
            faults.counters.wrong_icv += 1;
            if let Some(last) = packet.last_mut() {
                *last ^= 1;
            }
        } else if faults.strikes(plan.corrupt_output)
            && let Located::Esp(esp) = locate(packet, &self.ports)
        {
            faults.counters.corrupt_output += 1;
            // Behind SPI and sequence number: IV, text or ICV.
            let at = esp.esp_at + 8 + faults.below(esp.esp_len.saturating_sub(8).max(1));
            if let Some(byte) = packet.get_mut(at) {
                *byte ^= 0x10;
            }
        }
    }
}

/// A frame of a machine that the host's software has to protect.
fn for_software<B>(owner: VmId, frame: Frame<B>, segment_size: Option<u16>) -> Received<B> {
    Received {
        frame,
        queue: QueueId::DEFAULT,
        owner: Some(owner),
        ipsec: ReceivedIpsec::Host(HostWork::Protect { segment_size }),
    }
}

impl<B: Buffer> Config<B> {
    /// Whether a queue is a virtual function's.
    pub(crate) fn is_of_function(&self, id: QueueId) -> bool {
        self.queue(id)
            .is_some_and(|queue| matches!(queue.function, Function::Virtual(_)))
    }

    /// Whether the NIC switch forwards to a queue.
    fn is_switched(&self, id: QueueId) -> bool {
        self.is_of_function(id) || self.is_of_vport(id)
    }
}

/// What to do about IPsec for a frame.
fn choose<'a, B: Buffer>(
    config: &'a Config<B>,
    owner: VmId,
    plan: &'a Plan,
    frame: &Frame<B>,
) -> Choice<'a> {
    match plan {
        Plan::Done => return Choice::Clear,
        Plan::Bound(offloaded) => return Choice::Associate(offloaded),
        Plan::Policy => {}
    }
    let Some(policies) = config.unit.policies(owner) else {
        return Choice::Clear;
    };
    if !frame.is_ip() {
        return match frame.link.ethertype {
            ethertype::ARP => Choice::Clear,
            _ => Choice::Fail(Loss::Policy),
        };
    }
    let packet = frame.payload.data();
    let Some(flow) = flow(packet) else {
        return Choice::Fail(Loss::Malformed);
    };
    match policies.lookup(Direction::Outbound, &flow) {
        Action::Bypass => Choice::Clear,
        Action::Discard => Choice::Fail(Loss::Policy),
        Action::Protect(protection) => {
            let destination = protection.destination(&flow);
            match config.unit.outbound(owner, protection.reqid, destination) {
                Some(offloaded)
                    if offloaded.offload.mode == OffloadMode::Packet
                        && config.enabled.carries(offloaded.sa.mode(), packet) =>
                {
                    Choice::Associate(offloaded)
                }
                // Not offloaded, or in crypto mode, where the host makes the ESP packet.
                _ => Choice::ToHost,
            }
        }
    }
}

/// Crypto mode: encrypts the ESP packet that the host has made, if it is one of this
/// association.
fn seal_in_place(offloaded: &Offloaded, packet: &mut [u8], ports: &EncapsulationPorts) -> bool {
    let Located::Esp(esp) = locate(packet, ports) else {
        return false;
    };
    let sa = &offloaded.sa;
    let suite = sa.context().cipher().suite();
    let text = esp.esp_len.checked_sub(8 + suite.iv_len + suite.icv_len);
    let is_framed = esp.spi == sa.spi().get()
        && esp.destination == sa.params().destination
        && sa.direction() == Direction::Outbound
        && text.is_some_and(|text| text >= 2 && text.is_multiple_of(suite.alignment));
    let Some(bytes) = packet
        .get_mut(esp.esp_at..esp.esp_at + esp.esp_len)
        .filter(|_| is_framed)
    else {
        return false;
    };
    let mut jobs = [Job {
        cipher: sa.context().cipher(),
        sequence: offloaded.infer(esp.sequence),
        esn: sa.esn(),
        esp: bytes,
        authentic: false,
    }];
    seal_batch(&mut jobs);
    true
}
