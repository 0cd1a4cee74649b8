//! Sending: from a machine's ring through the IPsec unit to the wire, or to a function of this
//! adapter.

use core::sync::atomic::Ordering;
use std::collections::VecDeque;

use arrayvec::ArrayVec;

use vesper_esp::aead::{Job, seal_batch};
use vesper_esp::wire::{Located, locate};
use vesper_esp::{Buffer, Engine, Outbound};
use vesper_sa::{Mode, Timestamp, VmId};

use super::choose::{Choice, Chooser};
use super::sealed::{Route, Sealing, is_sealed, refusal};
use super::send::violation;
use super::steering::Steering;
use super::{BATCH, Config, Nic, Processor};
use crate::completions::SentIds;
use crate::crypto_mode::to_encrypt;
use crate::ethernet::{Frame, parse};
use crate::fate::{Loss, SendError};
use crate::fault::Faults;
use crate::nic::large_send::fill_checksum;
use crate::queue::QueueId;
use crate::rings::{VmPort, lock};
use crate::sends::{Pending, Poster, Ring};
use crate::sriov::Function;
use crate::transfer::{Completion, HostWork, Received, ReceivedIpsec, Send, SendIpsec};
use crate::unit::Offloaded;

/// What is done about IPsec for one frame of a batch.
#[derive(Clone, Copy)]
pub(super) enum Step<'a> {
    Clear,
    /// Packet mode: the engine has sealed it.
    Seal(&'a Offloaded),
    /// Crypto mode: encrypted in place.
    Encrypt,
    ToHost,
    /// The next one of the batch's errors.
    Fail,
}

/// The steps of a batch, and why some failed, in their order.
pub(super) struct Protected<'a> {
    pub(super) steps: ArrayVec<Step<'a>, BATCH>,
    pub(super) errors: ArrayVec<SendError, BATCH>,
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
        if !port.attention.load(Ordering::Relaxed) {
            return (0, 0);
        }
        let mut batch = core::mem::take(&mut processor.sending);
        let most = most.min(BATCH);
        let poster = {
            let mut sends = lock(&port.sends);
            let poster = sends.take_batch(now, most, &mut batch);
            if sends.is_empty() {
                port.attention.store(false, Ordering::Relaxed);
            }
            poster
        };
        let count = batch.len();
        let mut bytes = 0;
        if count > 0 {
            bytes = self.send_batch(config, (port, poster), processor, now, &mut batch);
            processor.account(port.vm, count, bytes);
        }
        processor.sending = batch;
        (count, bytes)
    }

    /// Does to a batch of frames whatever is to be done about IPsec, sends them and completes
    /// them. Returns their bytes, as posted.
    fn send_batch(
        &self,
        config: &Config<B>,
        from: (&VmPort<B>, Poster),
        processor: &mut Processor<B>,
        now: Timestamp,
        batch: &mut VecDeque<Send<B>>,
    ) -> usize {
        let (port, poster) = from;
        let first = batch.front();
        let is_large = first.is_some_and(|send| send.segment_size.is_some());
        let is_finished = first.is_some_and(|send| send.ipsec == SendIpsec::Done);
        if poster == Poster::Host
            && is_finished
            && !is_large
            && let Some(bytes) = self.send_finished(config, port, processor, batch)
        {
            return bytes;
        }
        let mut opened = core::mem::take(&mut processor.opened);
        let sealing = match is_large || is_finished {
            true => Sealing::Not,
            false => {
                let engine = &mut processor.engine;
                self.seal_all(config, from, engine, now, batch, &mut opened)
            }
        };
        let bytes = match sealing {
            Sealing::All { runs, bytes } => {
                self.send_sealed(config, from, processor, batch, &runs, bytes);
                bytes
            }
            Sealing::Some { protected, bytes } => {
                let protected = Some(protected);
                self.send_mixed(config, from, processor, now, &mut opened, bytes, protected);
                bytes
            }
            Sealing::Not => {
                open_sends(from, batch, &mut opened);
                match opened.first().and_then(|pending| pending.segment_size) {
                    Some(size) => self.send_large(config, from, processor, now, &mut opened, size),
                    None => {
                        let packets = opened.iter().map(|pending| &pending.frame.payload);
                        let bytes = packets.map(|packet| packet.data().len()).sum();
                        self.send_mixed(config, from, processor, now, &mut opened, bytes, None);
                        bytes
                    }
                }
            }
        };
        processor.opened = opened;
        bytes
    }

    /// Cuts the one large send in `batch`, sends the segments, and completes it as a whole.
    /// Returns its bytes.
    fn send_large(
        &self,
        config: &Config<B>,
        from: (&VmPort<B>, Poster),
        processor: &mut Processor<B>,
        now: Timestamp,
        batch: &mut Vec<Pending<B>>,
        size: u16,
    ) -> usize {
        let (port, poster) = from;
        let Some(large) = batch.pop() else {
            return 0;
        };
        let bytes = large.frame.payload.data().len();
        let Frame { payload, link, .. } = &large.frame;
        let choice = Chooser::new(config, port.vm).choose(large.ipsec, link, payload.data());
        let may_cut = match choice {
            Choice::Clear => true,
            Choice::Crypto(_) => false,
            Choice::Packet(_) if config.enabled.large_send => true,
            Choice::Packet(_) if matches!(large.ipsec, SendIpsec::Handle(_)) => false,
            // Whole, so that the host cuts it before it protects it.
            Choice::Packet(_) | Choice::ToHost => {
                self.send_by_host(config, from, processor, now, large);
                return bytes;
            }
            Choice::Fail(loss) => {
                lock(&port.sends).fail(poster, large, SendError::Lost(loss));
                return bytes;
            }
        };
        let segments = may_cut.then(|| self.cut(&large.frame, size)).flatten();
        let Some(segments) = segments else {
            lock(&port.sends).fail(poster, large, SendError::Lost(Loss::LargeSend));
            return bytes;
        };
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
            self.send_mixed(config, from, processor, now, batch, 0, None);
        }
        processor.recycled.push(large.frame.payload);
        let done = Completion::done(large.id);
        self.complete(config, lock(&port.sends).ring_mut(poster), done, now);
        bytes
    }

    /// Leaves a large send to the host, which cuts and protects it.
    fn send_by_host(
        &self,
        config: &Config<B>,
        from: (&VmPort<B>, Poster),
        processor: &mut Processor<B>,
        now: Timestamp,
        large: Pending<B>,
    ) {
        let (port, poster) = from;
        let mut frames = ArrayVec::new();
        frames.push(for_software(port.vm, large.frame, large.segment_size));
        self.leave_to_host(config, processor, frames, now);
        let mut sends = lock(&port.sends);
        sends.counters.to_host += 1;
        self.complete(
            config,
            sends.ring_mut(poster),
            Completion::done(large.id),
            now,
        );
    }

    /// Does to each of a batch of frames whatever is to be done about IPsec, unless that is done
    /// already, sends them, and completes those that are no segments. `bytes` are theirs, as
    /// posted.
    #[inline(never)]
    #[expect(clippy::too_many_arguments, reason = "the parts of one step")]
    fn send_mixed(
        &self,
        config: &Config<B>,
        from: (&VmPort<B>, Poster),
        processor: &mut Processor<B>,
        now: Timestamp,
        batch: &mut Vec<Pending<B>>,
        bytes: usize,
        protected: Option<Protected<'_>>,
    ) {
        let (port, poster) = from;
        let Protected { steps, errors } = protected.unwrap_or_else(|| {
            let engine = &mut processor.engine;
            self.protect(config, port.vm, engine, now, batch)
        });
        let mut errors = errors.into_iter();
        let mut for_host: ArrayVec<Received<B>, BATCH> = ArrayVec::new();
        let mut local: ArrayVec<Frame<B>, BATCH> = ArrayVec::new();
        let mut route = Route::default();
        let mut sends = lock(&port.sends);
        let mut sealed = 0;
        sends.counters.sent_bytes += bytes as u64;
        for (pending, step) in batch.drain(..).zip(&steps) {
            let Pending {
                id,
                is_segment,
                mut frame,
                ..
            } = pending;
            match *step {
                Step::Seal(offloaded) => {
                    frame.dress(offloaded.offload.vlan, offloaded.offload.rewrite.as_ref());
                    sealed += 1;
                    if config.faulty {
                        self.spoil(frame.payload.data_mut());
                    }
                }
                Step::Encrypt => {
                    sealed += 1;
                    if config.faulty {
                        self.spoil(frame.payload.data_mut());
                    }
                }
                Step::Clear => {}
                Step::ToHost => {
                    sends.counters.to_host += 1;
                    for_host.push(for_software(port.vm, frame, None));
                    if !is_segment {
                        self.complete(config, sends.ring_mut(poster), Completion::done(id), now);
                    }
                    continue;
                }
                Step::Fail => {
                    let error = errors.next().unwrap_or(SendError::Lost(Loss::NotFramed));
                    sends.fail_frame(
                        poster,
                        id,
                        is_segment,
                        frame,
                        error,
                        &mut processor.recycled,
                    );
                    continue;
                }
            }
            if config.switch.is_some() && route.is_local(config, frame.link.destination, frame.vlan)
            {
                local.push(frame);
            } else {
                match frame.close() {
                    Ok(buffer) => processor.wire.push(buffer),
                    Err(frame) => {
                        let error = SendError::Lost(Loss::NoRoom);
                        sends.fail_frame(
                            poster,
                            id,
                            is_segment,
                            frame,
                            error,
                            &mut processor.recycled,
                        );
                        continue;
                    }
                }
            }
            sends.counters.sent += 1;
            if !is_segment {
                self.complete(config, sends.ring_mut(poster), Completion::done(id), now);
            }
        }
        sends.counters.sealed += sealed;
        drop(sends);
        self.leave_to_host(config, processor, for_host, now);
        if !local.is_empty() {
            self.send_locally(config, port, processor, local);
        }
    }

    /// The NIC switch: frames for functions of this adapter, and for groups.
    pub(super) fn send_locally(
        &self,
        config: &Config<B>,
        port: &VmPort<B>,
        processor: &mut Processor<B>,
        frames: ArrayVec<Frame<B>, BATCH>,
    ) {
        for frame in frames {
            if !frame.link.destination.is_group() {
                Steering::new(self, config).place_opened(frame, None);
                continue;
            }
            self.replicate(config, &frame, Some(port.vm));
            match frame.close() {
                Ok(buffer) => processor.wire.push(buffer),
                Err(frame) => {
                    processor.recycled.push(frame.payload);
                    lock(&port.sends).counters.send_losses.count(Loss::NoRoom);
                }
            }
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
    ) -> Protected<'a> {
        let mut steps: ArrayVec<Step<'a>, BATCH> = ArrayVec::new();
        let mut failures: ArrayVec<(usize, SendError), BATCH> = ArrayVec::new();
        let mut to_seal: ArrayVec<Outbound<'_, &mut B>, BATCH> = ArrayVec::new();
        let mut jobs: ArrayVec<Job<'_>, BATCH> = ArrayVec::new();
        let mut chooser = Chooser::new(config, owner);
        for (index, pending) in batch.iter_mut().enumerate() {
            if pending.checksum {
                fill_checksum(pending.frame.payload.data_mut());
            }
            let Frame { payload, link, .. } = &pending.frame;
            let choice = chooser.choose(pending.ipsec, link, payload.data());
            let packet = &mut pending.frame.payload;
            let step = match choice {
                Choice::Packet(offloaded) => {
                    let mode = offloaded.sa.mode();
                    if mode == Mode::Tunnel || config.enabled.carries(mode, packet.data()) {
                        to_seal.push(Outbound::new(&offloaded.sa, packet));
                        Step::Seal(offloaded)
                    } else {
                        failures.push((index, SendError::Lost(Loss::NotOffloadable)));
                        Step::Fail
                    }
                }
                Choice::Crypto(offloaded) => {
                    let infer = |low| offloaded.infer(low);
                    match to_encrypt(&offloaded.sa, infer, packet.data_mut(), &self.ports) {
                        Some(job) => {
                            jobs.push(job);
                            Step::Encrypt
                        }
                        None => {
                            failures.push((index, SendError::Lost(Loss::NotFramed)));
                            Step::Fail
                        }
                    }
                }
                Choice::Clear => Step::Clear,
                Choice::ToHost => Step::ToHost,
                Choice::Fail(loss) => {
                    failures.push((index, SendError::Lost(loss)));
                    Step::Fail
                }
            };
            steps.push(step);
        }
        if !jobs.is_empty() {
            seal_batch(&mut jobs);
        }
        engine.encapsulate(now, &mut to_seal);
        if !to_seal.iter().all(is_sealed) {
            let sealing = steps.iter_mut().enumerate();
            let sealing = sealing.filter(|(_, step)| matches!(step, Step::Seal(_)));
            for ((index, step), job) in sealing.zip(&to_seal) {
                if let Some(error) = refusal(job) {
                    *step = Step::Fail;
                    failures.push((index, error));
                }
            }
            failures.sort_unstable_by_key(|(index, _)| *index);
        }
        Protected {
            steps,
            errors: failures.into_iter().map(|(_, error)| error).collect(),
        }
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
        inner.indicate_to_host(queue, frames, now, |lost, loss| {
            processor.recycled.push(lost.frame.payload);
            if let Some(entry) = lost.owner.and_then(|owner| config.vms.get(&owner)) {
                lock(&entry.port.sends).counters.send_losses.count(loss);
            }
        });
    }

    /// The end of a send that went well, with what a fault makes of it.
    #[inline]
    fn complete(
        &self,
        config: &Config<B>,
        sends: &mut Ring<B>,
        completion: Completion<B>,
        now: Timestamp,
    ) {
        if config.faulty {
            self.complete_faultily(sends, completion, now);
        } else {
            sends.completions.sent(SentIds::one(completion.id));
        }
    }

    fn complete_faultily(&self, sends: &mut Ring<B>, completion: Completion<B>, now: Timestamp) {
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
            sends.completions.push(completion);
            sends.completions.push(twin);
        } else if faults.strikes(plan.reordered_completion)
            && let Some(before) = sends.completions.pop()
        {
            faults.counters.reordered_completions += 1;
            sends.completions.push(completion);
            sends.completions.push(before);
        } else {
            sends.completions.push(completion);
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

/// Takes the frames of a batch apart; what may not be sent ends here, and never leaves in clear.
#[inline(never)]
fn open_sends<B: Buffer>(
    from: (&VmPort<B>, Poster),
    batch: &mut VecDeque<Send<B>>,
    opened: &mut Vec<Pending<B>>,
) {
    let (port, poster) = from;
    for send in batch.drain(..) {
        let violation = match parse(send.frame.data()) {
            Ok((link, vlan, _)) => violation(from, &link, vlan, send.ipsec),
            Err(_) => Some(Loss::Malformed),
        };
        if let Some(loss) = violation {
            lock(&port.sends).refuse(poster, send, loss);
            continue;
        }
        match Frame::open(send.frame) {
            Ok(mut frame) => {
                frame.vlan = frame.vlan.or(port.address.vlan);
                opened.push(Pending {
                    id: send.id,
                    is_segment: false,
                    frame,
                    ipsec: send.ipsec,
                    segment_size: send.segment_size,
                    checksum: send.checksum,
                });
            }
            Err((frame, _)) => {
                lock(&port.sends).refuse(poster, Send { frame, ..send }, Loss::Malformed)
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
    pub(super) fn is_switched(&self, id: QueueId) -> bool {
        self.is_of_function(id) || self.is_of_vport(id)
    }
}
