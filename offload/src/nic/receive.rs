//! Receiving: from the wire into a queue, and from there, opened, into posted buffers.

use arrayvec::ArrayVec;

use vesper_esp::aead::{Job, open_batch};
use vesper_esp::wire::{Located, flow, locate};
use vesper_esp::{Buffer, Inbound, Opened, Verdict};
use vesper_sa::{Action, Direction, ReceiveKey, Receiver, SaState, Spi, Timestamp, VmId};

use super::{BATCH, Config, Nic, NicEvent, Processor};
use crate::capability::OffloadMode;
use crate::crypto_status::{CryptoInfo, CryptoStatus};
use crate::ethernet::{Frame, ethertype};
use crate::fate::Loss;
use crate::nic::large_send::checksum_is_right;
use crate::queue::{QueueId, QueueState};
use crate::rings::{Class, Queue, Waiting, lock};
use crate::transfer::{HostWork, Received, ReceivedIpsec};
use crate::unit::Offloaded;

/// What became of one frame of a batch.
enum Outcome {
    Deliver(ReceivedIpsec),
    /// To the host's software, for the owner of the queue.
    ToHost,
    Lose(Loss),
}

impl<B: Buffer> Nic<B> {
    /// Takes frames from the wire: decides by filter, or by association, whose they are, and
    /// puts them into that queue. VLAN and owner are decided before a frame gets near memory
    /// that a machine sees.
    pub fn receive(&self, frames: impl IntoIterator<Item = B>) {
        let config = self.read();
        for frame in frames {
            match Frame::open(frame) {
                Ok(frame) if frame.link.destination.is_group() => {
                    self.replicate(&config, &frame, None);
                    self.enqueue(&config, QueueId::DEFAULT, frame, Class::Clear);
                }
                Ok(frame) => self.steer(&config, frame),
                Err((buffer, _)) => self.lose(&config, None, buffer, Loss::Malformed),
            }
        }
    }

    /// Finds the queue of a unicast frame and puts it there.
    pub(crate) fn steer(&self, config: &Config<B>, frame: Frame<B>) {
        let filtered = config
            .filters
            .classify(frame.link.destination, frame.vlan)
            .unwrap_or(QueueId::DEFAULT);
        let owner = config.queue(filtered).and_then(|queue| queue.owner);
        let (class, found) = self.classify(config, &frame, owner);
        match found {
            // An association that ends at the host names the machine.
            Some(offloaded) if owner.is_none() => {
                let queue = config
                    .vms
                    .get(&offloaded.sa.owner())
                    .and_then(|entry| entry.queue);
                if frame.vlan != offloaded.offload.vlan {
                    let owner = Some(offloaded.sa.owner());
                    return self.lose(config, owner, frame.payload, Loss::Vlan);
                }
                // In crypto mode the host has the rest to do, and a function is not its own.
                let queue = queue
                    .filter(|queue| {
                        offloaded.offload.mode == OffloadMode::Packet
                            || !config.is_of_function(*queue)
                    })
                    .unwrap_or(QueueId::DEFAULT);
                self.enqueue(config, queue, frame, class);
            }
            Some(offloaded) if frame.vlan != offloaded.offload.vlan => {
                self.lose(config, owner, frame.payload, Loss::Vlan);
            }
            _ => self.enqueue(config, filtered, frame, class),
        }
    }

    fn classify<'a>(
        &self,
        config: &'a Config<B>,
        frame: &Frame<B>,
        owner: Option<VmId>,
    ) -> (Class, Option<&'a Offloaded>) {
        if !frame.is_ip() {
            return (Class::Clear, None);
        }
        let packet = frame.payload.data();
        match locate(packet, &self.ports) {
            Located::Esp(esp) => {
                let found = Spi::new(esp.spi).and_then(|spi| {
                    let key = ReceiveKey {
                        receiver: owner.map_or(Receiver::Host, Receiver::Vm),
                        destination: esp.destination,
                        spi,
                    };
                    config.unit.inbound(&key)
                });
                let found =
                    found.filter(|offloaded| config.enabled.carries(offloaded.sa.mode(), packet));
                match found {
                    Some(offloaded) => (Class::Esp(offloaded.handle), Some(offloaded)),
                    None => (Class::Unknown, None),
                }
            }
            Located::Fragment(_) => (Class::Unknown, None),
            Located::NotEsp(_) | Located::Malformed(_) => (Class::Clear, None),
        }
    }

    /// Puts a frame into the ring of a queue, of the default queue if that one does not
    /// receive.
    fn enqueue(&self, config: &Config<B>, id: QueueId, frame: Frame<B>, class: Class) {
        let receives = |queue: &&std::sync::Arc<Queue<B>>| {
            queue.id == QueueId::DEFAULT || lock(&queue.inner).state.receives()
        };
        let queue = config.queue(id).filter(receives);
        let Some(queue) = queue.or(config.default_queue()) else {
            return self.lose(config, None, frame.payload, Loss::Gone);
        };
        if let Err(waiting) = queue.enqueue(Waiting { frame, class }) {
            self.lose(config, queue.owner, waiting.frame.payload, Loss::RingFull);
        }
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
            let Some(mut copy) = inner.posted.pop_front() else {
                drop(inner);
                self.count_receive_loss(config, queue.owner, Loss::NoBuffer);
                continue;
            };
            let payload = frame.payload.data();
            let waiting = inner.waiting.len();
            if waiting >= queue.ring
                || !crate::ethernet::fill(&mut copy, crate::HEADROOM, &[payload])
            {
                inner.posted.push_front(copy);
                drop(inner);
                self.count_receive_loss(config, queue.owner, Loss::NoBuffer);
                continue;
            }
            inner.counters.copies += 1;
            inner.waiting.push_back(Waiting {
                frame: Frame {
                    payload: copy,
                    link: frame.link,
                    vlan: frame.vlan,
                },
                class: Class::Copy,
            });
        }
    }

    pub(crate) fn lose(&self, config: &Config<B>, owner: Option<VmId>, buffer: B, loss: Loss) {
        self.recycle(buffer);
        self.count_receive_loss(config, owner, loss);
    }

    fn count_receive_loss(&self, config: &Config<B>, owner: Option<VmId>, loss: Loss) {
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
        let mut batch = core::mem::take(&mut processor.waiting);
        let stopping = {
            let mut inner = lock(&queue.inner);
            let count = most.min(BATCH).min(inner.waiting.len());
            batch.extend(inner.waiting.drain(..count));
            inner.state == QueueState::StopDma && inner.waiting.is_empty()
        };
        let count = batch.len();
        let bytes = batch
            .iter()
            .map(|waiting| waiting.frame.payload.data().len())
            .sum();
        if count > 0 {
            let outcomes = self.open(config, queue, processor, now, &mut batch);
            self.hand_over(config, queue, processor, now, &mut batch, outcomes);
            let owner = queue.owner.unwrap_or(VmId::HOST);
            processor.account(owner, count, bytes);
        }
        processor.waiting = batch;
        if stopping {
            processor.stopped.push(queue.id);
        }
        (count, bytes)
    }

    /// The cryptography of a batch, and what policy says about it.
    fn open(
        &self,
        config: &Config<B>,
        queue: &Queue<B>,
        processor: &mut Processor<B>,
        now: Timestamp,
        batch: &mut [Waiting<B>],
    ) -> ArrayVec<Outcome, BATCH> {
        let associations: ArrayVec<Option<&Offloaded>, BATCH> = batch
            .iter()
            .map(|waiting| match waiting.class {
                Class::Esp(handle) => config.unit.at(handle).map(|offloaded| &**offloaded),
                Class::Clear | Class::Copy | Class::Unknown => None,
            })
            .collect();

        let mut jobs: ArrayVec<Inbound<'_, &mut B>, BATCH> = ArrayVec::new();
        for (waiting, association) in batch.iter_mut().zip(&associations) {
            if let Some(offloaded) = association
                && offloaded.offload.mode == OffloadMode::Packet
            {
                let mut job = Inbound::new(&mut waiting.frame.payload);
                job.sa = Some(&offloaded.sa);
                jobs.push(job);
            }
        }
        processor.engine.decapsulate(now, &|_, _| None, &mut jobs);
        let verdicts: ArrayVec<Verdict, BATCH> = jobs.iter().map(|job| job.verdict).collect();
        drop(jobs);

        let mut verdicts = verdicts.into_iter();
        let policies = queue.owner.and_then(|owner| config.unit.policies(owner));
        batch
            .iter_mut()
            .zip(&associations)
            .map(
                |(waiting, association)| match (association, waiting.class) {
                    (Some(offloaded), _) if offloaded.offload.mode == OffloadMode::Packet => {
                        let verdict = verdicts.next().unwrap_or(Verdict::Pending);
                        opened(offloaded, verdict, &mut waiting.frame)
                    }
                    (Some(offloaded), _) => {
                        let info = self.open_in_place(offloaded, waiting.frame.payload.data_mut());
                        Outcome::Deliver(
                            info.map_or(ReceivedIpsec::Untouched, ReceivedIpsec::Crypto),
                        )
                    }
                    // Unknown, or deleted since: software has the next say, if there is any.
                    (None, Class::Unknown | Class::Esp(_)) if policies.is_some() => Outcome::ToHost,
                    (None, Class::Unknown | Class::Esp(_)) => {
                        Outcome::Deliver(ReceivedIpsec::Untouched)
                    }
                    (None, Class::Clear | Class::Copy) => {
                        let frame = &waiting.frame;
                        let admitted = policies.is_none_or(|policies| match frame.is_ip() {
                            true => flow(frame.payload.data()).is_some_and(|flow| {
                                policies.lookup(Direction::Inbound, &flow) == Action::Bypass
                            }),
                            false => frame.link.ethertype == ethertype::ARP,
                        });
                        match admitted {
                            true => Outcome::Deliver(ReceivedIpsec::Untouched),
                            false => Outcome::Lose(Loss::Policy),
                        }
                    }
                },
            )
            .collect()
    }

    /// Crypto mode: authenticates and decrypts the ESP packet where it is. `None` if it is not
    /// ESP after all.
    fn open_in_place(&self, offloaded: &Offloaded, packet: &mut [u8]) -> Option<CryptoInfo> {
        let Located::Esp(esp) = locate(packet, &self.ports) else {
            return None;
        };
        let sa = &offloaded.sa;
        let cipher = sa.context().cipher();
        let suite = cipher.suite();
        let sequence = offloaded.infer(esp.sequence);
        let mut info = CryptoInfo {
            handle: offloaded.handle,
            status: CryptoStatus::InvalidPacketSyntax,
            sequence,
            esp_offset: esp.esp_at as u16,
            next_header: 0,
            pad_length: 0,
            sa_delete_req: sa.state() >= SaState::Dead,
        };
        let text = esp.esp_len.checked_sub(8 + suite.iv_len + suite.icv_len);
        if text.is_none_or(|text| text < 2 || !text.is_multiple_of(suite.alignment)) {
            return Some(info);
        }
        let esp = packet.get_mut(esp.esp_at..esp.esp_at + esp.esp_len)?;
        let mut jobs = [Job {
            cipher,
            sequence,
            esn: sa.esn(),
            esp,
            authentic: false,
        }];
        open_batch(&mut jobs);
        let [job] = jobs;
        info.status = CryptoStatus::authentication_failed(sa.mode());
        if job.authentic {
            info.status = CryptoStatus::Success;
            let end = job.esp.len() - suite.icv_len;
            if let Some([pad_length, next_header]) = job.esp.get(end - 2..end) {
                (info.pad_length, info.next_header) = (*pad_length, *next_header);
            }
        }
        Some(info)
    }

    /// Puts a batch where it belongs.
    fn hand_over(
        &self,
        config: &Config<B>,
        queue: &Queue<B>,
        processor: &mut Processor<B>,
        now: Timestamp,
        batch: &mut Vec<Waiting<B>>,
        outcomes: ArrayVec<Outcome, BATCH>,
    ) {
        let opened_by_association = |waiting: &Waiting<B>| match waiting.class {
            Class::Esp(handle) => config.unit.at(handle).map(|offloaded| offloaded.sa.owner()),
            Class::Clear | Class::Copy | Class::Unknown => None,
        };
        let mut losses: ArrayVec<(Option<VmId>, Loss), BATCH> = ArrayVec::new();
        let mut to_host: ArrayVec<Received<B>, BATCH> = ArrayVec::new();
        let mut opened = 0;
        {
            let mut inner = lock(&queue.inner);
            for (waiting, outcome) in batch.drain(..).zip(outcomes) {
                let owner = queue.owner.or_else(|| opened_by_association(&waiting));
                let exchange = waiting.class != Class::Copy;
                let received = |ipsec| Received {
                    frame: waiting.frame,
                    queue: queue.id,
                    owner,
                    ipsec,
                };
                match outcome {
                    Outcome::Lose(loss) => {
                        let lost = received(ReceivedIpsec::Untouched);
                        processor.recycled.push(lost.frame.payload);
                        losses.push((owner, loss));
                    }
                    Outcome::ToHost => to_host.push(received(ReceivedIpsec::Host(HostWork::Open))),
                    Outcome::Deliver(ipsec) => {
                        opened += u64::from(matches!(ipsec, ReceivedIpsec::Opened { .. }));
                        match inner.deliver(queue, received(ipsec), exchange, now) {
                            Ok(exchanged) => processor.recycled.extend(exchanged),
                            Err((buffer, loss)) => {
                                processor.recycled.push(buffer);
                                losses.push((owner, loss));
                            }
                        }
                    }
                }
            }
        }
        if let Some(default_queue) = config.default_queue().filter(|_| !to_host.is_empty()) {
            let mut inner = lock(&default_queue.inner);
            for received in to_host {
                let owner = received.owner;
                if let Err((buffer, loss)) = inner.deliver(default_queue, received, true, now) {
                    processor.recycled.push(buffer);
                    losses.push((owner, loss));
                }
            }
        }
        for (owner, loss) in losses {
            self.count_receive_loss(config, owner, loss);
        }
        if opened > 0
            && let Some(entry) = config.vms.get(&queue.owner.unwrap_or(VmId::HOST))
        {
            lock(&entry.port.sends).counters.opened += opened;
        }
    }

    /// Passes on what the engine has to tell.
    pub(crate) fn report_events(&self, processor: &mut Processor<B>) {
        for event in processor.engine.drain_events() {
            self.emit(NicEvent::Sa(event));
        }
    }
}

/// What the engine's verdict means for the frame.
fn opened<B: Buffer>(offloaded: &Offloaded, verdict: Verdict, frame: &mut Frame<B>) -> Outcome {
    match verdict {
        Verdict::Opened(Opened { .. }) => {
            if let Some(rewrite) = offloaded.offload.rewrite {
                frame.link.destination = rewrite.destination;
                frame.link.source = rewrite.source;
            }
            frame.set_ip_ethertype();
            let checksum = match offloaded.offload.inner_checksum {
                true => checksum_is_right(frame.payload.data()),
                false => None,
            };
            Outcome::Deliver(ReceivedIpsec::Opened { checksum })
        }
        _ => Outcome::Lose(Loss::Esp),
    }
}
