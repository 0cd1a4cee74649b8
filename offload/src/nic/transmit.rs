//! Sending: from a machine's ring through the IPsec unit to the wire, or to a function of this
//! adapter.

use arrayvec::ArrayVec;

use vesper_esp::aead::{Job, seal_batch};
use vesper_esp::wire::{EncapsulationPorts, Located, flow, locate};
use vesper_esp::{Buffer, Engine, Outbound, Verdict};
use vesper_sa::{Action, Direction, Spd, Timestamp, VmId};

use super::{BATCH, Config, Nic, Processor};
use crate::capability::OffloadMode;
use crate::ethernet::{Frame, MacAddress, VlanId, ethertype};
use crate::fate::{Loss, SendError};
use crate::fault::Faults;
use crate::flow_key::FlowKey;
use crate::nic::large_send::fill_checksum;
use crate::queue::QueueId;
use crate::rings::{Pending, Plan, SendRing, VmCounters, VmPort, lock};
use crate::sriov::Function;
use crate::transfer::{Completion, HostWork, Received, ReceivedIpsec};
use crate::unit::{OffloadHandle, Offloaded};

/// What is done about IPsec for one frame of a batch.
#[derive(Clone, Copy)]
enum Step<'a> {
    Clear,
    /// Packet mode: the engine seals it.
    Seal(&'a Offloaded),
    /// Crypto mode: encrypted in place.
    Encrypt,
    ToHost,
    Fail(SendError),
}

/// What policy, or the host, says about one frame.
#[derive(Clone, Copy)]
enum Choice<'a> {
    Clear,
    Associate(&'a Offloaded),
    ToHost,
    Fail(Loss),
}

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
                None => self.send_batch(config, port, processor, now, &mut batch, bytes),
            }
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
        let Some(large) = batch.pop() else {
            return;
        };
        let choice = Chooser::new(config, port.vm).choose(large.plan, &large.frame);
        let may_cut = match choice {
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
        let bytes = large.frame.payload.data().len();
        let mut segments: Vec<_> = segments
            .into_iter()
            .map(|frame| large.segment(frame))
            .collect();
        {
            let mut sends = lock(&port.sends);
            sends.counters.segments += segments.len() as u64;
            sends.counters.sent_bytes += bytes as u64;
        }
        while !segments.is_empty() {
            batch.extend(segments.drain(..segments.len().min(BATCH)));
            self.send_batch(config, port, processor, now, batch, 0);
        }
        processor.recycled.push(large.frame.payload);
        let done = Completion::done(large.id);
        self.complete(config, &mut lock(&port.sends), done, now);
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
        self.complete(config, &mut sends, Completion::done(large.id), now);
    }

    /// Does to a batch of frames whatever is to be done about IPsec, sends them, and completes
    /// those that are no segments. `bytes` are theirs, as posted.
    fn send_batch(
        &self,
        config: &Config<B>,
        port: &VmPort<B>,
        processor: &mut Processor<B>,
        now: Timestamp,
        batch: &mut Vec<Pending<B>>,
        bytes: usize,
    ) {
        let steps = self.protect(config, port.vm, &mut processor.engine, now, batch);
        let mut counters = VmCounters {
            sent_bytes: bytes as u64,
            ..VmCounters::default()
        };
        let mut for_host: ArrayVec<Received<B>, BATCH> = ArrayVec::new();
        let mut route = Route::default();
        for (mut pending, step) in batch.drain(..).zip(steps) {
            let mut error = None;
            match step {
                Step::Clear => {}
                Step::Encrypt => {
                    counters.sealed += 1;
                    if config.faulty {
                        self.spoil(pending.frame.payload.data_mut());
                    }
                }
                Step::Seal(offloaded) => {
                    counters.sealed += 1;
                    let frame = &mut pending.frame;
                    frame.vlan = offloaded.offload.vlan;
                    if let Some(rewrite) = offloaded.offload.rewrite {
                        frame.link.destination = rewrite.destination;
                        frame.link.source = rewrite.source;
                    }
                    frame.set_ip_ethertype();
                    if config.faulty {
                        self.spoil(frame.payload.data_mut());
                    }
                }
                Step::ToHost => {
                    counters.to_host += 1;
                    for_host.push(for_software(port.vm, pending.frame, None));
                    if !pending.is_segment {
                        processor.completed.push(Completion::done(pending.id));
                    }
                    continue;
                }
                Step::Fail(why) => error = Some(why),
            }
            let failed = match error {
                Some(error) => Err((pending.frame, error)),
                None => self
                    .forward(config, port, processor, &mut route, pending.frame)
                    .map_err(|frame| (frame, SendError::Lost(Loss::NoRoom))),
            };
            match failed {
                Ok(()) => {
                    counters.sent += 1;
                    if !pending.is_segment {
                        processor.completed.push(Completion::done(pending.id));
                    }
                }
                Err((frame, error)) => {
                    counters.send_losses.count(error.loss());
                    match pending.is_segment {
                        true => processor.recycled.push(frame.payload),
                        false => processor.completed.push(Completion {
                            id: pending.id,
                            result: Err(error),
                            buffer: Some(frame.give_back()),
                        }),
                    }
                }
            }
        }
        self.leave_to_host(config, processor, for_host, now);
        let mut sends = lock(&port.sends);
        sends.counters.merge(&counters);
        if config.faulty {
            for completion in processor.completed.drain(..) {
                match completion.result {
                    Ok(()) => self.complete(config, &mut sends, completion, now),
                    Err(_) => sends.completions.push_back(completion),
                }
            }
        } else {
            sends.completions.extend(processor.completed.drain(..));
        }
    }

    /// What is done about IPsec for each frame; it is done, except in what a step names.
    fn protect<'a>(
        &self,
        config: &'a Config<B>,
        owner: VmId,
        engine: &mut Engine,
        now: Timestamp,
        batch: &mut [Pending<B>],
    ) -> ArrayVec<Step<'a>, BATCH> {
        let mut steps: ArrayVec<Step<'a>, BATCH> = ArrayVec::new();
        let mut to_seal: ArrayVec<Outbound<'_, &mut B>, BATCH> = ArrayVec::new();
        let mut to_encrypt: ArrayVec<Job<'_>, BATCH> = ArrayVec::new();
        let mut chooser = Chooser::new(config, owner);
        for pending in batch.iter_mut() {
            if pending.checksum {
                fill_checksum(pending.frame.payload.data_mut());
            }
            steps.push(match chooser.choose(pending.plan, &pending.frame) {
                Choice::Clear => Step::Clear,
                Choice::ToHost => Step::ToHost,
                Choice::Fail(loss) => Step::Fail(SendError::Lost(loss)),
                Choice::Associate(offloaded) => {
                    let packet = &mut pending.frame.payload;
                    match offloaded.offload.mode {
                        OffloadMode::Crypto => {
                            match to_encrypt_in_place(offloaded, packet.data_mut(), &self.ports) {
                                Some(job) => {
                                    to_encrypt.push(job);
                                    Step::Encrypt
                                }
                                None => Step::Fail(SendError::Lost(Loss::NotFramed)),
                            }
                        }
                        OffloadMode::Packet
                            if !config.enabled.carries(offloaded.sa.mode(), packet.data()) =>
                        {
                            Step::Fail(SendError::Lost(Loss::NotOffloadable))
                        }
                        OffloadMode::Packet => {
                            to_seal.push(Outbound::new(&offloaded.sa, packet));
                            Step::Seal(offloaded)
                        }
                    }
                }
            });
        }
        seal_batch(&mut to_encrypt);
        engine.encapsulate(now, &mut to_seal);
        let sealing = steps
            .iter_mut()
            .filter(|step| matches!(step, Step::Seal(_)));
        for (step, job) in sealing.zip(&to_seal) {
            match job.verdict {
                Verdict::Sealed { .. } => {}
                Verdict::TooBig { mtu } => *step = Step::Fail(SendError::TooBig { mtu }),
                Verdict::Drop(reason) => *step = Step::Fail(SendError::Esp(reason)),
                _ => *step = Step::Fail(SendError::Lost(Loss::NotFramed)),
            }
        }
        steps
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

    /// To a function of this adapter, if the destination is one and there is a NIC switch;
    /// else to the wire.
    #[inline]
    fn forward(
        &self,
        config: &Config<B>,
        port: &VmPort<B>,
        processor: &mut Processor<B>,
        route: &mut Route,
        frame: Frame<B>,
    ) -> Result<(), Frame<B>> {
        if config.switch.is_some() {
            let to = (frame.link.destination, frame.vlan);
            if route.to != Some(to) {
                let queue = config.filters.classify(to.0, to.1);
                *route = Route {
                    to: Some(to),
                    is_local: queue.is_some_and(|queue| config.is_switched(queue)),
                };
            }
            if to.0.is_group() {
                self.replicate(config, &frame, Some(port.vm));
            } else if route.is_local {
                self.steer(config, [frame]);
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

/// Where the NIC switch sends frames for an address: what it has found for the one before.
#[derive(Default)]
struct Route {
    to: Option<(MacAddress, Option<VlanId>)>,
    /// To a queue of this adapter.
    is_local: bool,
}

/// Says what to do about IPsec for the frames of one machine's batch. What it has found for
/// one frame it knows for the next one of the same flow: nothing changes meanwhile.
struct Chooser<'a, B> {
    config: &'a Config<B>,
    owner: VmId,
    policies: Option<&'a Spd>,
    flow: Option<(FlowKey, Choice<'a>)>,
    bound: Option<(OffloadHandle, Choice<'a>)>,
}

impl<'a, B: Buffer> Chooser<'a, B> {
    fn new(config: &'a Config<B>, owner: VmId) -> Self {
        Self {
            config,
            owner,
            policies: config.unit.policies(owner),
            flow: None,
            bound: None,
        }
    }

    #[inline]
    fn choose(&mut self, plan: Plan, frame: &Frame<B>) -> Choice<'a> {
        match plan {
            Plan::Done => Choice::Clear,
            Plan::Bound(handle) => match self.bound {
                Some((bound, choice)) if bound == handle => choice,
                _ => {
                    let found = self.config.unit.at_or_draining(handle);
                    let choice = found.map_or(Choice::Fail(Loss::ForeignHandle), |offloaded| {
                        Choice::Associate(offloaded)
                    });
                    self.bound = Some((handle, choice));
                    choice
                }
            },
            Plan::Policy => match self.policies {
                Some(policies) => self.by_policy(policies, frame),
                None => Choice::Clear,
            },
        }
    }

    #[inline]
    fn by_policy(&mut self, policies: &Spd, frame: &Frame<B>) -> Choice<'a> {
        if !frame.is_ip() {
            return match frame.link.ethertype {
                ethertype::ARP => Choice::Clear,
                _ => Choice::Fail(Loss::Policy),
            };
        }
        let packet = frame.payload.data();
        let key = FlowKey::of(packet);
        match (key, self.flow) {
            (Some(key), Some((known, choice))) if key == known => choice,
            _ => {
                let choice = self.look_up(policies, packet);
                self.flow = key.map(|key| (key, choice));
                choice
            }
        }
    }

    fn look_up(&self, policies: &Spd, packet: &[u8]) -> Choice<'a> {
        let Some(flow) = flow(packet) else {
            return Choice::Fail(Loss::Malformed);
        };
        let protection = match policies.lookup(Direction::Outbound, &flow) {
            Action::Bypass => return Choice::Clear,
            Action::Discard => return Choice::Fail(Loss::Policy),
            Action::Protect(protection) => protection,
        };
        let destination = protection.destination(&flow);
        let config = self.config;
        let found = config
            .unit
            .outbound(self.owner, protection.reqid, destination);
        match found {
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

/// Crypto mode: what there is to encrypt in the packet that the host has made, if it is an ESP
/// packet of this association.
fn to_encrypt_in_place<'a>(
    offloaded: &'a Offloaded,
    packet: &'a mut [u8],
    ports: &EncapsulationPorts,
) -> Option<Job<'a>> {
    let Located::Esp(esp) = locate(packet, ports) else {
        return None;
    };
    let sa = &offloaded.sa;
    let suite = sa.context().cipher().suite();
    let text = esp.esp_len.checked_sub(8 + suite.iv_len + suite.icv_len);
    let is_framed = esp.spi == sa.spi().get()
        && esp.destination == sa.params().destination
        && sa.direction() == Direction::Outbound
        && text.is_some_and(|text| text >= 2 && text.is_multiple_of(suite.alignment));
    let bytes = packet.get_mut(esp.esp_at..esp.esp_at + esp.esp_len)?;
    is_framed.then(|| Job {
        cipher: sa.context().cipher(),
        sequence: offloaded.infer(esp.sequence),
        esn: sa.esn(),
        esp: bytes,
        authentic: false,
    })
}
