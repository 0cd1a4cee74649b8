//! From a machine to the wire on the synthetic path: policy, software IPsec, switching.

use core::time::Duration;
use std::sync::Arc;

use vesper_esp::wire::flow;
use vesper_esp::{Buffer, EspSa, Outbound, Verdict};
use vesper_sa::{Action, Direction, Event, Mode, SaHandle, Timestamp, VmId};

use super::{AdapterWork, Host, Placement};
use crate::capability::OffloadMode;
use crate::ethernet::{Frame, ethertype};
use crate::fate::{Loss, SendError};
use crate::nic::{BATCH, fill_checksum};
use crate::rings::weight_of;
use crate::transfer::{Completion, HostSend, Send, SendIpsec};
use crate::unit::{OffloadHandle, PortId};
use crate::vswitch::Forward;

/// A completion that has not come after this time will not come.
const COMPLETION_TIMEOUT: Duration = Duration::from_secs(1);

/// A frame of a machine, taken apart, and what is left to be done to it.
pub(super) struct Opened<B> {
    pub(super) frame: Frame<B>,
    pub(super) segment_size: Option<u16>,
    pub(super) checksum: bool,
}

/// What is to be done with a frame of a machine.
#[derive(Clone)]
enum Plan {
    /// It goes where the software switch says.
    Clear,
    /// The adapter does it all.
    Adapter(OffloadHandle),
    /// The host makes the ESP packet, the adapter encrypts it.
    Frame(Arc<EspSa>, SaHandle, OffloadHandle),
    /// Software does it all.
    Software(Arc<EspSa>, SaHandle),
    Lose(Loss),
}

impl<B: Buffer> Host<B> {
    /// Takes what machines have sent, in fair turns.
    pub(super) fn switch_sends(&mut self, now: Timestamp, budget: usize) -> usize {
        let order: Vec<VmId> = self.machines.keys().copied().collect();
        let mut moved = 0;
        let mut idle = 0;
        while moved < budget && idle < order.len() {
            self.turn = (self.turn + 1) % order.len();
            let Some(&vm) = order.get(self.turn) else {
                break;
            };
            let Some(frames) = self.take_turn(vm) else {
                idle += 1;
                continue;
            };
            idle = 0;
            moved += frames.len();
            if !frames.is_empty() {
                self.protect(vm, now, frames, true);
            }
        }
        moved
    }

    /// A fair share of what a machine has sent, at most a batch; perhaps nothing, if it has had
    /// more than its share before. `None` if nothing waits, or while the adapter has not even
    /// taken what came before.
    fn take_turn(&mut self, vm: VmId) -> Option<Vec<HostSend<B>>> {
        let machine = self.machines.get_mut(&vm)?;
        self.nic.send_from_host(vm, &mut machine.unsent);
        if !machine.unsent.is_empty() || machine.sends.is_empty() {
            return None;
        }
        let weight = machine.settings.vmq_weight.max(machine.settings.iov_weight);
        machine.deficit += weight_of(1500) * 8 * i64::from(weight.max(1)) / 100;
        let mut frames = Vec::with_capacity(BATCH);
        while machine.deficit > 0 && frames.len() < BATCH {
            let Some(send) = machine.sends.pop_front() else {
                machine.deficit = 0;
                break;
            };
            machine.deficit -= weight_of(send.frame.data().len());
            frames.push(send);
        }
        Some(frames)
    }

    /// Applies policy to frames of a machine and sends them on. `switched` is false for frames
    /// of a virtual function that the adapter could not protect: they are for the wire.
    fn protect(&mut self, vm: VmId, now: Timestamp, frames: Vec<HostSend<B>>, switched: bool) {
        let mut opened = Vec::with_capacity(frames.len());
        for send in frames {
            match Frame::open(send.frame) {
                Ok(frame) => opened.push(Opened {
                    frame,
                    segment_size: send.segment_size,
                    checksum: send.checksum,
                }),
                Err((buffer, _)) => self.lose(Some(vm), buffer, Loss::Malformed),
            }
        }
        self.protect_opened(vm, now, opened, switched);
    }

    pub(super) fn protect_opened(
        &mut self,
        vm: VmId,
        now: Timestamp,
        opened: Vec<Opened<B>>,
        switched: bool,
    ) {
        let mut frames: Vec<(Opened<B>, Plan)> = Vec::with_capacity(opened.len());
        for frame in opened {
            let plan = self.plan(vm, &frame.frame);
            self.prepare(vm, frame, plan, &mut frames);
        }

        let mut software = Vec::new();
        let mut framed = Vec::new();
        for (opened, plan) in &mut frames {
            let packet = &mut opened.frame.payload;
            match plan {
                Plan::Software(sa, _) => software.push(Outbound::new(sa, packet)),
                Plan::Frame(sa, ..) => framed.push(Outbound::new(sa, packet)),
                Plan::Clear | Plan::Adapter(_) | Plan::Lose(_) => {}
            }
        }
        self.engine.encapsulate(now, &mut software);
        self.engine.frame(now, &mut framed);
        let software: Vec<Verdict> = software.iter().map(|entry| entry.verdict).collect();
        let framed: Vec<Verdict> = framed.iter().map(|entry| entry.verdict).collect();
        let (mut software, mut framed) = (software.into_iter(), framed.into_iter());

        let mut sends = Vec::with_capacity(frames.len());
        for (opened, plan) in frames {
            let mut frame = opened.frame;
            let work = AdapterWork {
                framed: matches!(plan, Plan::Frame(..)),
                segment_size: opened.segment_size,
                checksum: opened.checksum,
            };
            let (ipsec, sealed) = match plan {
                Plan::Lose(loss) => {
                    self.lose(Some(vm), frame.payload, loss);
                    continue;
                }
                Plan::Clear => {
                    if switched && !self.switch(vm, &mut frame, now) {
                        self.nic.recycle(frame.payload);
                        continue;
                    }
                    (SendIpsec::Done, None)
                }
                Plan::Adapter(handle) => (SendIpsec::Handle(handle), None),
                Plan::Software(_, handle) => (SendIpsec::Done, Some((software.next(), handle))),
                Plan::Frame(_, handle, offloaded) => {
                    (SendIpsec::Handle(offloaded), Some((framed.next(), handle)))
                }
            };
            if let Some((verdict, handle)) = sealed {
                match verdict {
                    Some(Verdict::Sealed { .. }) => {}
                    Some(Verdict::TooBig { .. }) => {
                        self.lose(Some(vm), frame.payload, Loss::TooBig);
                        continue;
                    }
                    _ => {
                        self.lose(Some(vm), frame.payload, Loss::Esp);
                        continue;
                    }
                }
                let form = self.wire_form(vm, handle);
                frame.vlan = form.vlan;
                if let Some(rewrite) = form.rewrite {
                    frame.link.destination = rewrite.destination;
                    frame.link.source = rewrite.source;
                }
                frame.set_ip_ethertype();
                self.count(vm, |counters| counters.sealed += 1);
            }
            match frame.close() {
                Ok(buffer) => sends.push((buffer, ipsec, work)),
                Err(frame) => self.lose(Some(vm), frame.payload, Loss::NoRoom),
            }
        }
        self.post(vm, now, sends);
    }

    /// Cuts and completes a frame, unless the adapter is to do so: it does where it protects
    /// the packet itself.
    fn prepare(
        &mut self,
        vm: VmId,
        mut opened: Opened<B>,
        plan: Plan,
        ready: &mut Vec<(Opened<B>, Plan)>,
    ) {
        if opened.segment_size.is_none() && !opened.checksum || matches!(plan, Plan::Lose(_)) {
            return ready.push((opened, plan));
        }
        let in_adapter = matches!(plan, Plan::Adapter(_));
        let Some(size) = opened
            .segment_size
            .filter(|_| !in_adapter || !self.nic.cuts())
        else {
            if !in_adapter {
                fill_checksum(opened.frame.payload.data_mut());
                opened.checksum = false;
            }
            return ready.push((opened, plan));
        };
        match self.nic.cut(&opened.frame, size) {
            Some(segments) => {
                self.nic.recycle(opened.frame.payload);
                ready.extend(segments.into_iter().map(|frame| {
                    let segment = Opened {
                        frame,
                        segment_size: None,
                        checksum: false,
                    };
                    (segment, plan.clone())
                }));
            }
            None => self.lose(Some(vm), opened.frame.payload, Loss::LargeSend),
        }
    }

    /// What is to be done with a frame, by the policies of its machine.
    fn plan(&mut self, vm: VmId, frame: &Frame<B>) -> Plan {
        let Some(policies) = self.policies.get(&vm) else {
            return Plan::Clear;
        };
        if !frame.is_ip() {
            return match frame.link.ethertype {
                ethertype::ARP => Plan::Clear,
                _ => Plan::Lose(Loss::Policy),
            };
        }
        let Some(flow) = flow(frame.payload.data()) else {
            return Plan::Lose(Loss::Malformed);
        };
        let protection = match policies.lookup(Direction::Outbound, &flow) {
            Action::Bypass => return Plan::Clear,
            Action::Discard => return Plan::Lose(Loss::Policy),
            Action::Protect(protection) => protection,
        };
        let destination = protection.destination(&flow);
        let Some((handle, sa)) = self.sad.outbound(vm, protection.reqid, destination) else {
            self.report(Event::Acquire {
                owner: vm,
                reqid: protection.reqid,
                flow,
            });
            return Plan::Lose(Loss::NoSa);
        };
        let placed = self.placements.get(&(vm, handle));
        match placed.map(|placed| &placed.placement) {
            Some(Placement::Offloaded {
                handle: offloaded,
                mode: OffloadMode::Packet,
            }) if sa.mode() == Mode::Tunnel
                || self.nic.offload_ok(vm, *offloaded, frame.payload.data()) =>
            {
                Plan::Adapter(*offloaded)
            }
            Some(Placement::Offloaded {
                handle: offloaded,
                mode: OffloadMode::Crypto,
            }) => Plan::Frame(Arc::clone(sa), handle, *offloaded),
            _ => Plan::Software(Arc::clone(sa), handle),
        }
    }

    /// Sends an unprotected frame through the software switch. True: it goes to the wire,
    /// through the uplink, as well; its tag is set.
    fn switch(&mut self, vm: VmId, frame: &mut Frame<B>, now: Timestamp) -> bool {
        let Some(port) = self.machines.get(&vm).map(|machine| machine.port) else {
            return false;
        };
        let tag = frame.vlan.take();
        match self.switch.forward(port, &frame.link, tag, now) {
            Forward::Drop(loss) => {
                self.count(vm, |counters| counters.losses.count(loss));
                false
            }
            Forward::To(PortId::HOST, tag) => {
                frame.vlan = tag;
                true
            }
            Forward::To(to, _) => {
                self.deliver_copy(to, frame);
                false
            }
            Forward::Flood(exits) => {
                let mut uplink = false;
                for (to, tag) in exits {
                    if to == PortId::HOST {
                        (frame.vlan, uplink) = (tag, true);
                    } else {
                        self.deliver_copy(to, frame);
                    }
                }
                uplink
            }
        }
    }

    fn post(&mut self, vm: VmId, now: Timestamp, frames: Vec<(B, SendIpsec, AdapterWork)>) {
        let Some(machine) = self.machines.get_mut(&vm) else {
            for (buffer, ..) in frames {
                self.nic.recycle(buffer);
            }
            return;
        };
        for (frame, ipsec, work) in frames {
            machine.unsent.push(Send {
                id: machine.outstanding.begin(now, work),
                frame,
                ipsec,
                segment_size: work.segment_size,
                checksum: work.checksum,
            });
        }
        self.nic.send_from_host(vm, &mut machine.unsent);
    }

    /// Completions of what machines have sent on the synthetic path.
    ///
    /// Where the association had left the adapter between plan and post, a frame that is still
    /// what the machine sent goes through policy once more; an ESP packet that the adapter was
    /// to encrypt is clear text with a used number, and ends here.
    pub(super) fn take_completions(&mut self, now: Timestamp) {
        let mut completions: Vec<Completion<B>> = Vec::new();
        let mut again = Vec::new();
        for (vm, machine) in &mut self.machines {
            self.nic.take_completions(*vm, now, &mut completions);
            for completion in completions.drain(..) {
                let ticket = machine.outstanding.complete(completion.id);
                let Some(buffer) = completion.buffer else {
                    continue;
                };
                let is_stale = completion.result == Err(SendError::Lost(Loss::ForeignHandle));
                match ticket.map(|ticket| ticket.work) {
                    Some(work) if is_stale && !work.framed => {
                        let send = HostSend {
                            frame: buffer,
                            segment_size: work.segment_size,
                            checksum: work.checksum,
                        };
                        again.push((*vm, send));
                    }
                    _ => self.nic.recycle(buffer),
                }
            }
            machine.outstanding.expire(now, COMPLETION_TIMEOUT);
        }
        for (vm, send) in again {
            self.protect(vm, now, vec![send], true);
        }
    }
}
