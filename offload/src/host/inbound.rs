//! From the adapter to a machine: what queues indicate, software IPsec, switching.

use std::sync::Arc;

use vesper_esp::wire::{EncapsulationPorts, IpHeader, Located, flow, locate, protocol};
use vesper_esp::{Buffer, EspSa, Inbound, Reassembly, Verdict};
use vesper_sa::{Action, Direction, Event, ReceiveKey, Receiver, SaHandle, Spi, Timestamp, VmId};

use super::glance::{ClearFlow, Latest};
use super::outbound::Way;
use super::{DataPath, Host, SoftwareReason};
use crate::HEADROOM;
use crate::arrivals::move_between;
use crate::crypto_status::{CryptoInfo, CryptoStatus};
use crate::ethernet::{Frame, HEADER_LEN, Link, VlanId, ethertype, fill, lend};
use crate::fate::Loss;
use crate::nic::BATCH;
use crate::queue::QueueId;
use crate::transfer::{HostSend, HostWork, Received, ReceivedIpsec};
use crate::unit::PortId;
use crate::vswitch::Forward;

/// A packet that software has to open, or to finish.
struct ToOpen<B> {
    frame: Frame<B>,
    owner: VmId,
    handle: SaHandle,
    /// Which of [`Batch::sas`].
    sa: usize,
    /// The number that the adapter has authenticated, if it has.
    sequence: Option<u64>,
    queue: QueueId,
}

/// Packets of one indication that software has to open.
struct Batch<B> {
    packets: Vec<ToOpen<B>>,
    /// Their associations; neighbours share an entry.
    sas: Vec<Arc<EspSa>>,
    latest: Option<Latest>,
    clear: Option<ClearFlow>,
}

impl<B: Buffer> Batch<B> {
    /// Adds a packet that is the same as the latest; any other comes back.
    fn add_same(
        &mut self,
        frame: Frame<B>,
        receiver: Option<VmId>,
        queue: QueueId,
    ) -> Option<Frame<B>> {
        let latest = Latest::of(&frame, receiver, queue);
        let (Some(last), true) = (
            self.packets.last(),
            latest.is_some() && latest == self.latest,
        ) else {
            return Some(frame);
        };
        self.packets.push(ToOpen {
            frame,
            owner: last.owner,
            handle: last.handle,
            sa: last.sa,
            sequence: None,
            queue,
        });
        None
    }

    fn push(&mut self, owner: VmId, handle: SaHandle, sa: &Arc<EspSa>, packet: Arrived<B>) {
        self.latest = None;
        let is_known = self.sas.last().is_some_and(|last| Arc::ptr_eq(last, sa));
        if !is_known {
            self.sas.push(Arc::clone(sa));
        }
        self.packets.push(ToOpen {
            frame: packet.frame,
            owner,
            handle,
            sa: self.sas.len() - 1,
            sequence: packet.sequence,
            queue: packet.queue,
        });
    }
}

/// An ESP packet, as the adapter has indicated it.
struct Arrived<B> {
    frame: Frame<B>,
    sequence: Option<u64>,
    queue: QueueId,
}

impl<B: Buffer> Host<B> {
    /// Takes what the adapter indicates, one batch of one queue at a time.
    pub(super) fn receive(&mut self, now: Timestamp, budget: usize) -> usize {
        let mut moved = 0;
        let mut batch = core::mem::take(&mut self.scratch.received);
        let mut due = core::mem::take(&mut self.scratch.due);
        // A function's queues are its machine's business.
        self.nic
            .due(now, &mut due, |owner| match self.data_path(owner) {
                Some(DataPath::Function { queue, .. }) => Some(queue),
                _ => None,
            });
        for (id, owner) in due.drain(..) {
            while moved < budget {
                let count = self.take_indicated(id, owner, &mut batch);
                if count == 0 {
                    break;
                }
                moved += count;
                if owner.is_some() {
                    // The buffers are the machine's now: nothing is kept back.
                    let _ = self.nic.return_packets(id, count as u32);
                }
                if !batch.is_empty() {
                    self.take(now, &mut batch);
                }
            }
        }
        self.scratch.received = batch;
        self.scratch.due = due;
        moved
    }

    /// Takes the packets of one queue.
    fn take(&mut self, now: Timestamp, received: &mut Vec<Received<B>>) {
        let mut batch = Batch {
            packets: Vec::with_capacity(received.len()),
            sas: Vec::new(),
            latest: None,
            clear: None,
        };
        for received in received.drain(..) {
            match (received.owner, received.ipsec) {
                (Some(owner), ReceivedIpsec::Host(HostWork::Protect { segment_size })) => {
                    self.protect_for_function(owner, now, received.frame, segment_size);
                }
                (owner, ReceivedIpsec::Crypto(info)) => {
                    self.finish_crypto(owner, received, info, &mut batch);
                }
                (Some(owner), ReceivedIpsec::Opened { .. }) => {
                    self.deliver(owner, received.queue, received.frame);
                }
                (owner, ReceivedIpsec::Host(_)) => {
                    let Received { frame, queue, .. } = received;
                    if let Some(frame) = batch.add_same(frame, owner, queue) {
                        self.find(now, owner, frame, queue, &mut batch);
                    }
                }
                (Some(owner), ReceivedIpsec::Untouched) if received.queue != QueueId::DEFAULT => {
                    self.deliver(owner, received.queue, received.frame);
                }
                (_, ReceivedIpsec::Untouched | ReceivedIpsec::Opened { .. }) => {
                    if let Some(frame) = batch.add_same(received.frame, None, QueueId::DEFAULT) {
                        self.switch_received(now, frame, &mut batch);
                    }
                }
            }
        }
        self.open(now, batch);
        self.recycle_all();
    }

    /// Takes what a queue indicates, a batch at most. Packets that the adapter has opened into
    /// buffers of their machine, which is what nearly all are that come through its queue, are
    /// delivered at once; the others are left in `others`. Returns how many there were.
    fn take_indicated(
        &mut self,
        id: QueueId,
        owner: Option<VmId>,
        others: &mut Vec<Received<B>>,
    ) -> usize {
        let Self { nic, machines, .. } = self;
        let mut machine = owner.and_then(|owner| machines.get_mut(&owner));
        let mut delivered = 0;
        let count = nic.take_ready(id, BATCH, |what, count, payloads| {
            let is_opened =
                what.owner == owner && matches!(what.ipsec, ReceivedIpsec::Opened { .. });
            match &mut machine {
                Some(machine) if is_opened && id != QueueId::DEFAULT && others.is_empty() => {
                    let header = what.link.header(None);
                    move_between(payloads, count, |mut payload| {
                        if header.put_before(&mut payload) {
                            machine.ready.push_back(payload);
                            delivered += 1;
                        } else {
                            machine.counters.losses.count(Loss::NoRoom);
                            nic.recycle(payload);
                        }
                    });
                }
                _ => move_between(payloads, count, |payload| {
                    others.push(what.received(payload));
                }),
            }
        });
        if let Some(machine) = machine {
            machine.counters.received += delivered;
        }
        count
    }

    /// A frame that a function has sent, and that the adapter could not protect.
    fn protect_for_function(
        &mut self,
        owner: VmId,
        now: Timestamp,
        frame: Frame<B>,
        segment_size: Option<u16>,
    ) {
        match frame.close() {
            Ok(frame) => {
                let send = HostSend {
                    segment_size,
                    ..HostSend::new(frame)
                };
                self.protect(owner, now, send, Way::Wire);
            }
            Err(frame) => self.lose(Some(owner), frame.payload, Loss::NoRoom),
        }
    }

    /// Crypto mode: the adapter has done the cryptography, the host does the rest; what failed
    /// ends here, counted.
    fn finish_crypto(
        &mut self,
        owner: Option<VmId>,
        received: Received<B>,
        info: CryptoInfo,
        batch: &mut Batch<B>,
    ) {
        let found = self.in_crypto_mode(info.handle);
        if let Some((owner, handle, _)) = &found
            && info.sa_delete_req
            && self.offloaded.contains_key(&info.handle)
        {
            self.fall_back(*owner, *handle, SoftwareReason::Ended);
        }
        match found {
            Some((owner, handle, sa)) if info.status == CryptoStatus::Success => {
                let arrived = Arrived {
                    frame: received.frame,
                    sequence: Some(info.sequence),
                    queue: received.queue,
                };
                batch.push(owner, handle, &sa, arrived);
            }
            Some((owner, ..)) => {
                self.count(owner, |counters| counters.crypto_failures += 1);
                let Received { frame, queue, .. } = received;
                self.lose_received(Some(owner), queue, frame.payload, Loss::Esp);
            }
            // Decrypted with an association that is gone meanwhile: nothing may judge it.
            None => {
                let Received { frame, queue, .. } = received;
                self.lose_received(owner, queue, frame.payload, Loss::NoSa);
            }
        }
    }

    /// A frame that came to the default queue unprotected, or protected with an association
    /// that only software has.
    fn switch_received(&mut self, now: Timestamp, frame: Frame<B>, batch: &mut Batch<B>) {
        if let Some(flow) = &batch.clear
            && flow.matches(&frame)
        {
            let (vm, tag) = flow.to;
            self.copy_to(vm, tag, &frame);
            return self.scratch.free.push(frame.payload);
        }
        let latest = Latest::of(&frame, None, QueueId::DEFAULT);
        batch.latest = None;
        let to = self
            .switch
            .forward(PortId::HOST, &frame.link, frame.vlan, now);
        match to {
            Forward::To(port, tag) => {
                let vm = self.machine_at(port);
                if vm.is_some() && is_esp(&frame) {
                    self.find(now, vm, frame, QueueId::DEFAULT, batch);
                    batch.latest = batch.latest.and(latest);
                } else {
                    self.deliver_copy(port, tag, &frame);
                    let admitting = vm.filter(|&vm| self.admits_clear(vm, &frame));
                    batch.clear = admitting.and_then(|vm| ClearFlow::of(&frame, (vm, tag)));
                    self.nic.recycle(frame.payload);
                }
            }
            // To the host's own address, where tunnels end: nobody else is there.
            _ if is_esp(&frame) => {
                self.find(now, None, frame, QueueId::DEFAULT, batch);
            }
            Forward::Flood(exits) => {
                for (port, tag) in exits {
                    self.deliver_copy(port, tag, &frame);
                }
                self.nic.recycle(frame.payload);
            }
            Forward::Drop(loss) => self.lose(None, frame.payload, loss),
        }
    }

    /// Finds the association of an ESP packet: one of the receiver, else one that ends at the
    /// host and names the receiver.
    fn find(
        &mut self,
        now: Timestamp,
        vm: Option<VmId>,
        mut frame: Frame<B>,
        queue: QueueId,
        batch: &mut Batch<B>,
    ) {
        let latest = Latest::of(&frame, vm, queue);
        batch.latest = None;
        let located = match located(&frame) {
            Located::Fragment(ip) if is_piece_of_esp(&ip) => {
                match self.reassemble(now, vm, frame) {
                    Some(whole) => {
                        frame = whole;
                        self::located(&frame)
                    }
                    None => return,
                }
            }
            located => located,
        };
        let esp = match (located, vm) {
            (Located::Esp(esp), _) => esp,
            // A piece of something else, which the adapter could not tell.
            (Located::Fragment(_), Some(vm)) if self.admits_clear(vm, &frame) => {
                return self.deliver(vm, queue, frame);
            }
            _ => return self.lose(vm, frame.payload, Loss::NoSa),
        };
        let receivers = vm.map(Receiver::Vm).into_iter().chain([Receiver::Host]);
        let found = Spi::new(esp.spi).and_then(|spi| {
            receivers
                .map(|receiver| ReceiveKey {
                    receiver,
                    destination: esp.destination,
                    spi,
                })
                .find_map(|key| self.sad.inbound(&key))
        });
        let Some((handle, sa)) = found else {
            self.report(Event::BadSpi {
                receiver: vm,
                destination: esp.destination,
                spi: esp.spi,
            });
            return self.lose(vm, frame.payload, Loss::NoSa);
        };
        let owner = sa.owner();
        if frame.vlan != self.wire_form(owner, handle).vlan {
            return self.lose(Some(owner), frame.payload, Loss::Vlan);
        }
        let arrived = Arrived {
            frame,
            sequence: None,
            queue,
        };
        batch.push(owner, handle, sa, arrived);
        batch.latest = latest;
    }

    /// Keeps a fragment until its datagram is whole, which is then in the buffer of its last
    /// fragment, if it has the room.
    ///
    //= https://www.rfc-editor.org/rfc/rfc4303#section-3.4.1
    //# If required, reassembly is performed prior to ESP processing.
    fn reassemble(
        &mut self,
        now: Timestamp,
        vm: Option<VmId>,
        mut frame: Frame<B>,
    ) -> Option<Frame<B>> {
        // Fragments of different receivers and VLANs are never mixed.
        let receiver = vm.and_then(|vm| self.machines.get(&vm));
        let receiver = receiver.map_or(PortId::HOST, |machine| machine.port);
        let vlan = frame.vlan.map_or(0, VlanId::get);
        let channel = receiver.0 << 12 | u32::from(vlan);
        let packet = match self.reassembler.push(now, channel, frame.payload.data()) {
            Reassembly::Complete(packet) => packet,
            Reassembly::Waiting => {
                self.nic.recycle(frame.payload);
                return None;
            }
            Reassembly::Whole => return Some(frame),
            Reassembly::Refused(_) => {
                self.lose(vm, frame.payload, Loss::Fragment);
                return None;
            }
        };
        let has = frame.payload.data().len();
        let grown = match packet.len().checked_sub(has) {
            Some(more) => frame.payload.grow_back(more),
            None => {
                frame.payload.trim_back(has - packet.len());
                true
            }
        };
        if !grown {
            self.lose(vm, frame.payload, Loss::NoRoom);
            return None;
        }
        frame.payload.data_mut().copy_from_slice(&packet);
        Some(frame)
    }

    /// Opens packets in software, or finishes those that the adapter has decrypted.
    fn open(&mut self, now: Timestamp, batch: Batch<B>) {
        let Batch {
            mut packets, sas, ..
        } = batch;
        if packets.is_empty() {
            return;
        }
        let mut whole = Vec::with_capacity(packets.len());
        let mut begun = Vec::new();
        for packet in &mut packets {
            let mut job = Inbound::new(&mut packet.frame.payload);
            job.sa = sas.get(packet.sa).map(|sa| &**sa);
            match packet.sequence {
                Some(sequence) => {
                    job.sequence = sequence;
                    begun.push(job);
                }
                None => whole.push(job),
            }
        }
        self.engine.decapsulate(now, &|_, _| None, &mut whole);
        self.engine.accept(now, &mut begun);
        let is_opened = |job: &Inbound<'_, _>| matches!(job.verdict, Verdict::Opened(_));
        let whole: Vec<bool> = whole.iter().map(is_opened).collect();
        let begun: Vec<bool> = begun.iter().map(is_opened).collect();
        let (mut whole, mut begun) = (whole.into_iter(), begun.into_iter());
        let mut form = None;
        let mut opened = (VmId::HOST, 0);
        for packet in packets {
            let ToOpen {
                mut frame,
                owner,
                handle,
                queue,
                ..
            } = packet;
            let is_opened = match packet.sequence {
                Some(_) => begun.next(),
                None => whole.next(),
            };
            if is_opened != Some(true) {
                self.lose_received(Some(owner), queue, frame.payload, Loss::Esp);
                continue;
            }
            if opened.0 != owner {
                self.count(opened.0, |counters| counters.opened += opened.1);
                opened = (owner, 0);
            }
            opened.1 += 1;
            let rewrite = match form {
                Some((known, rewrite)) if known == (owner, handle) => rewrite,
                _ => {
                    let rewrite = self.wire_form(owner, handle).rewrite;
                    form = Some(((owner, handle), rewrite));
                    rewrite
                }
            };
            frame.dress(frame.vlan, rewrite.as_ref());
            self.deliver(owner, queue, frame);
        }
        self.count(opened.0, |counters| counters.opened += opened.1);
    }

    /// Loses a frame. One that came through a machine's queue is in a buffer that the machine
    /// has posted, and gets it posted again: else whoever sends bad packets would take away the
    /// machine's buffers.
    fn lose_received(&mut self, vm: Option<VmId>, queue: QueueId, mut buffer: B, loss: Loss) {
        if queue == QueueId::DEFAULT {
            return self.lose(vm, buffer, loss);
        }
        lend(&mut buffer);
        // If the queue is gone, nothing takes it, and it is free.
        let mut lent = Some(buffer);
        let _ = self
            .nic
            .post_buffers(queue, core::iter::from_fn(|| lent.take()));
        if let Some(buffer) = lent {
            self.nic.recycle(buffer);
        }
        match vm.and_then(|vm| self.machines.get_mut(&vm)) {
            Some(machine) => machine.counters.losses.count(loss),
            None => self.losses.count(loss),
        }
    }

    /// Hands a frame to its machine: over, if it is in a buffer of the machine's queue, else
    /// by a copy.
    fn deliver(&mut self, vm: VmId, queue: QueueId, frame: Frame<B>) {
        if queue == QueueId::DEFAULT {
            self.copy_to(vm, None, &frame);
            return self.scratch.free.push(frame.payload);
        }
        let untagged = Frame {
            vlan: None,
            ..frame
        };
        match (untagged.close(), self.machines.get_mut(&vm)) {
            (Ok(buffer), Some(machine)) => {
                machine.counters.received += 1;
                machine.ready.push_back(buffer);
            }
            (Ok(buffer), None) => self.lose(None, buffer, Loss::Gone),
            (Err(frame), _) => self.lose(Some(vm), frame.payload, Loss::NoRoom),
        }
    }

    /// Copies an unprotected frame to the machine at a port, with this tag, if its policies let
    /// it in.
    pub(super) fn deliver_copy(&mut self, port: PortId, tag: Option<VlanId>, frame: &Frame<B>) {
        let Some(vm) = self.machine_at(port) else {
            return self.losses.count(Loss::NoDestination);
        };
        if !self.admits_clear(vm, frame) {
            return self.count(vm, |counters| counters.losses.count(Loss::Policy));
        }
        self.copy_to(vm, tag, frame);
    }

    /// The copy that the synthetic path costs.
    fn copy_to(&mut self, vm: VmId, tag: Option<VlanId>, frame: &Frame<B>) {
        let Some(machine) = self.machines.get_mut(&vm) else {
            return self.losses.count(Loss::NoDestination);
        };
        let losses = &mut machine.counters.losses;
        let Some(mut buffer) = machine.posted.pop_front() else {
            return losses.count(Loss::NoBuffer);
        };
        if !fill(&mut buffer, HEADROOM, &[frame.payload.data()]) {
            machine.posted.push_front(buffer);
            return losses.count(Loss::NoBuffer);
        }
        let copy = Frame {
            payload: buffer,
            link: frame.link,
            vlan: tag,
        };
        match copy.close() {
            Ok(buffer) => {
                machine.counters.received += 1;
                machine.counters.copies += 1;
                machine.ready.push_back(buffer);
            }
            Err(copy) => {
                losses.count(Loss::NoRoom);
                self.nic.recycle(copy.payload);
            }
        }
    }

    /// As [`copy_to`](Self::copy_to), a whole frame without a tag.
    pub(super) fn copy_whole(&mut self, vm: VmId, frame: &[u8]) {
        let Some(machine) = self.machines.get_mut(&vm) else {
            return self.losses.count(Loss::NoDestination);
        };
        let losses = &mut machine.counters.losses;
        let Some(mut buffer) = machine.posted.pop_front() else {
            return losses.count(Loss::NoBuffer);
        };
        if !fill(&mut buffer, HEADROOM - HEADER_LEN, &[frame]) {
            machine.posted.push_front(buffer);
            return losses.count(Loss::NoBuffer);
        }
        machine.counters.received += 1;
        machine.counters.copies += 1;
        machine.ready.push_back(buffer);
    }

    /// Gives the adapter the buffers back of which the content was copied.
    pub(super) fn recycle_all(&mut self) {
        if !self.scratch.free.is_empty() {
            self.nic.recycle_all(&mut self.scratch.free);
        }
    }

    fn machine_at(&self, port: PortId) -> Option<VmId> {
        self.ports.get(&port).copied()
    }

    /// Whether a machine takes this frame without protection.
    fn admits_clear(&self, vm: VmId, frame: &Frame<B>) -> bool {
        self.admits_packet(vm, &frame.link, frame.payload.data())
    }

    /// As [`admits_clear`](Self::admits_clear), of a packet and the header before it.
    pub(super) fn admits_packet(&self, vm: VmId, link: &Link, packet: &[u8]) -> bool {
        let Some(policies) = self.policies.get(&vm) else {
            return true;
        };
        if !link.is_ip() {
            return link.ethertype == ethertype::ARP;
        }
        flow(packet)
            .is_some_and(|flow| policies.lookup(Direction::Inbound, &flow) == Action::Bypass)
    }
}

fn located<B: Buffer>(frame: &Frame<B>) -> Located {
    locate(frame.payload.data(), &EncapsulationPorts::default())
}

/// Whether a frame holds an ESP packet, or a piece of one.
fn is_esp<B: Buffer>(frame: &Frame<B>) -> bool {
    frame.is_ip()
        && match located(frame) {
            Located::Esp(_) => true,
            Located::Fragment(ip) => is_piece_of_esp(&ip),
            Located::NotEsp(_) | Located::Malformed(_) => false,
        }
}

/// Whether a fragment belongs to an ESP packet. ESP in UDP can be told by its first fragment
/// alone: who uses it avoids fragments (RFC 3948 section 3.4 leaves them to the sender).
const fn is_piece_of_esp(ip: &IpHeader) -> bool {
    ip.protocol == protocol::ESP
}
