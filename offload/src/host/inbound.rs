//! From the adapter to a machine: what queues indicate, software IPsec, switching.

use vesper_esp::Buffer;
use vesper_sa::{Timestamp, VmId};

use super::glance::ClearFlow;
use super::open::{ToOpen, is_esp};
use super::outbound::Way;
use super::{DataPath, Host};
use crate::arrivals::{Indicated, Ready, move_between};
use crate::ethernet::{Frame, ethertype};
use crate::fate::Loss;
use crate::nic::{BATCH, peek};
use crate::queue::QueueId;
use crate::transfer::{HostSend, HostWork, ReceivedIpsec};
use crate::unit::PortId;
use crate::vswitch::Forward;

impl<B: Buffer> Host<B> {
    /// Takes what the adapter indicates, one batch of one queue at a time.
    pub(super) fn receive(&mut self, now: Timestamp, budget: usize) -> usize {
        let mut moved = 0;
        let mut batch = core::mem::replace(&mut self.scratch.received, Ready::new());
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

    /// Takes the packets of one queue, a batch at most.
    fn take(&mut self, now: Timestamp, received: &mut Ready<B>) {
        let mut batch = core::mem::take(&mut self.scratch.to_open);
        received.take(BATCH, |what, count, payloads| {
            let payloads = core::iter::from_fn(|| payloads.pop_front()).take(count);
            self.take_run(now, what, payloads, &mut batch);
        });
        self.open(now, &mut batch);
        self.scratch.to_open = batch;
        self.recycle_all();
    }

    /// Takes packets of which the same is to be said.
    fn take_run(
        &mut self,
        now: Timestamp,
        what: &Indicated,
        payloads: impl Iterator<Item = B>,
        batch: &mut ToOpen<B>,
    ) {
        let (owner, queue) = (what.owner, what.queue);
        match (owner, what.ipsec) {
            (Some(owner), ReceivedIpsec::Host(HostWork::Protect { segment_size })) => {
                for payload in payloads {
                    self.protect_for_function(owner, now, what.frame(payload), segment_size);
                }
            }
            (owner, ReceivedIpsec::Crypto(info)) => {
                for payload in payloads {
                    self.finish_crypto(owner, queue, what.frame(payload), info, batch);
                }
            }
            (owner, ReceivedIpsec::Host(_)) => {
                let mut same = None;
                for payload in payloads {
                    let key = key_of(what, &payload);
                    if key.is_some() && key == same {
                        batch.push_alike(payload);
                    } else {
                        let is_found = self.find(now, owner, what.frame(payload), queue, batch);
                        same = key.filter(|_| is_found);
                    }
                }
            }
            (Some(owner), ReceivedIpsec::Opened { .. }) => {
                payloads.for_each(|payload| self.deliver(owner, queue, what.frame(payload)));
            }
            (Some(owner), ReceivedIpsec::Untouched) if queue != QueueId::DEFAULT => {
                payloads.for_each(|payload| self.deliver(owner, queue, what.frame(payload)));
            }
            (_, ReceivedIpsec::Untouched | ReceivedIpsec::Opened { .. }) => {
                self.switch_received(now, what, payloads, batch);
            }
        }
    }

    /// Takes what a queue indicates, a batch at most. Packets that the adapter has opened into
    /// buffers of their machine, which is what nearly all are that come through its queue, are
    /// delivered at once; the others are left in `others`. Returns how many there were.
    fn take_indicated(&mut self, id: QueueId, owner: Option<VmId>, others: &mut Ready<B>) -> usize {
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
                _ => others.extend(*what, payloads, count),
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

    /// Frames that came to the default queue unprotected, or protected with associations that only
    /// software has, all with the same header.
    fn switch_received(
        &mut self,
        now: Timestamp,
        what: &Indicated,
        payloads: impl Iterator<Item = B>,
        batch: &mut ToOpen<B>,
    ) {
        let mut same = None;
        let mut clear: Option<ClearFlow> = None;
        for payload in payloads {
            let key = key_of(what, &payload);
            if key.is_some() && key == same {
                batch.push_alike(payload);
                continue;
            }
            if let Some(flow) = &clear
                && flow.matches(payload.data())
            {
                let (vm, tag) = flow.to;
                let header = what.link.header(tag);
                self.copy(vm, &[header.bytes(), payload.data()]);
                self.scratch.free.push(payload);
                continue;
            }
            same = None;
            let frame = what.frame(payload);
            let to = self
                .switch
                .forward(PortId::HOST, &frame.link, frame.vlan, now);
            match to {
                Forward::To(port, tag) => {
                    let vm = self.machine_at(port);
                    if vm.is_some() && is_esp(&frame) {
                        let is_found = self.find(now, vm, frame, QueueId::DEFAULT, batch);
                        same = key.filter(|_| is_found);
                    } else {
                        self.deliver_copy(port, tag, &frame);
                        let admitting = vm.filter(|&vm| self.admits_clear(vm, &frame));
                        clear = admitting.and_then(|vm| ClearFlow::of(&frame, (vm, tag)));
                        self.nic.recycle(frame.payload);
                    }
                }
                // To the host's own address, where tunnels end: nobody else is there.
                _ if is_esp(&frame) => {
                    let is_found = self.find(now, None, frame, QueueId::DEFAULT, batch);
                    same = key.filter(|_| is_found);
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
    }
}

/// Address and SPI of the most frequent kind of ESP packet, see [`peek`]: the next packet of a run
/// with the same is of the same association. Nothing that this depends on changes within a batch.
#[inline(always)]
fn key_of<B: Buffer>(what: &Indicated, payload: &B) -> Option<u64> {
    peek(payload.data()).filter(|_| what.link.ethertype == ethertype::IPV4)
}
