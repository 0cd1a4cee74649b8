//! From a machine to the wire on the synthetic path: policy, software IPsec, switching.

use core::time::Duration;
use std::sync::Arc;

use vesper_esp::wire::flow;
use vesper_esp::{Buffer, EspSa, Outbound, Verdict};
use vesper_sa::{Action, Direction, Event, Mode, Timestamp, VmId};

use super::placement::WireForm;
use super::{AdapterWork, Host, Outstanding, Placement};
use crate::capability::OffloadMode;
use crate::ethernet::{Frame, ethertype};
use crate::fate::{Loss, SendError};
use crate::flow_key::FlowKey;
use crate::nic::{BATCH, fill_checksum};
use crate::rings::{Pending, quantum, weight_of};
use crate::sriov::Function;
use crate::transfer::{Completion, HostSend, SendIpsec};
use crate::unit::{OffloadHandle, PortId};
use crate::vswitch::Forward;

/// A completion that has not come after this time will not come.
const COMPLETION_TIMEOUT: Duration = Duration::from_secs(1);

/// A frame of a machine, taken apart, and what is left to be done to it.
pub(super) struct ToProtect<B> {
    pub(super) frame: Frame<B>,
    pub(super) segment_size: Option<u16>,
    pub(super) checksum: bool,
}

/// Where frames go that need no protection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Where the software switch says.
    Switch,
    /// To the wire: a virtual function has sent them, and the adapter could not protect them.
    Wire,
}

/// What is to be done with the frames of a flow.
#[derive(Debug)]
enum Plan {
    /// Nothing about IPsec.
    Clear,
    /// The adapter does it all.
    Adapter(OffloadHandle),
    /// The host makes the ESP packet, the adapter encrypts it.
    Frame(Arc<EspSa>, WireForm, OffloadHandle),
    /// Software does it all.
    Software(Arc<EspSa>, WireForm),
    Lose(Loss),
}

/// What the work on a batch needs; empty in between, it keeps its memory.
#[derive(Debug)]
pub(super) struct Scratch<B> {
    taken: Vec<HostSend<B>>,
    plans: Vec<Plan>,
    frames: Vec<Planned<B>>,
    completions: Vec<Completion<B>>,
}

/// What a machine is about to post to the adapter.
struct Posting<B> {
    now: Timestamp,
    unsent: Vec<Pending<B>>,
    outstanding: Outstanding,
}

impl<B> Posting<B> {
    /// `framed`: the frame holds an ESP packet in clear.
    #[inline]
    fn push(&mut self, frame: ToProtect<B>, ipsec: SendIpsec, framed: bool) {
        let ToProtect {
            frame,
            segment_size,
            checksum,
        } = frame;
        let work = AdapterWork {
            framed,
            segment_size,
            checksum,
        };
        self.unsent.push(Pending {
            id: self.outstanding.begin(self.now, work),
            is_segment: false,
            frame,
            ipsec,
            segment_size,
            checksum,
            from: Function::Physical,
        });
    }
}

/// A frame, the number of its plan, and what is left to be done to it.
#[derive(Debug)]
struct Planned<B> {
    frame: Frame<B>,
    plan: u32,
    segment_size: Option<u16>,
    checksum: bool,
    /// Why ESP refused it.
    refused: Option<Loss>,
}

impl<B> Default for Scratch<B> {
    fn default() -> Self {
        Self {
            taken: Vec::new(),
            plans: Vec::new(),
            frames: Vec::new(),
            completions: Vec::new(),
        }
    }
}

impl<B: Buffer> Host<B> {
    /// Takes what machines have sent, in fair turns.
    pub(super) fn switch_sends(&mut self, now: Timestamp, budget: usize) -> usize {
        let mut taken = core::mem::take(&mut self.scratch.taken);
        let mut moved = 0;
        let mut idle = 0;
        while moved < budget && idle < self.order.len() {
            self.turn = (self.turn + 1) % self.order.len();
            let Some(&vm) = self.order.get(self.turn) else {
                break;
            };
            if !self.take_turn(vm, &mut taken) {
                idle += 1;
                continue;
            }
            idle = 0;
            moved += taken.len();
            self.protect_sends(vm, now, taken.drain(..));
        }
        self.scratch.taken = taken;
        moved
    }

    /// A fair share of what a machine has sent, at most a batch; perhaps nothing, if it has had
    /// more than its share before. `false` if nothing waits, or while the adapter has not even
    /// taken what came before.
    fn take_turn(&mut self, vm: VmId, frames: &mut Vec<HostSend<B>>) -> bool {
        let Some(machine) = self.machines.get_mut(&vm) else {
            return false;
        };
        if !machine.unsent.is_empty() {
            self.nic.post_from_host(vm, &mut machine.unsent);
        }
        if !machine.unsent.is_empty() || machine.sends.is_empty() {
            return false;
        }
        machine.deficit += quantum(machine.settings.share());
        while machine.deficit > 0 && frames.len() < BATCH {
            let Some(send) = machine.sends.pop_front() else {
                machine.deficit = 0;
                break;
            };
            machine.deficit -= weight_of(send.frame.data().len());
            frames.push(send);
        }
        true
    }

    fn protect_sends(
        &mut self,
        vm: VmId,
        now: Timestamp,
        sends: impl IntoIterator<Item = HostSend<B>>,
    ) {
        let mut malformed = Vec::new();
        let opened = sends.into_iter().filter_map(|send| {
            let opened = Frame::open(send.frame).map(|frame| ToProtect {
                frame,
                segment_size: send.segment_size,
                checksum: send.checksum,
            });
            opened.map_err(|(buffer, _)| malformed.push(buffer)).ok()
        });
        self.protect(vm, now, opened, Way::Switch);
        for buffer in malformed {
            self.lose(Some(vm), buffer, Loss::Malformed);
        }
    }

    /// Applies policy to frames of a machine and sends them on. Neighbours of one flow share a
    /// plan: nothing that it depends on changes before all of them are planned.
    pub(super) fn protect(
        &mut self,
        vm: VmId,
        now: Timestamp,
        frames: impl IntoIterator<Item = ToProtect<B>>,
        way: Way,
    ) {
        let Some(machine) = self.machines.get_mut(&vm) else {
            for frame in frames {
                self.nic.recycle(frame.frame.payload);
            }
            return;
        };
        let mut posting = Posting {
            now,
            unsent: core::mem::take(&mut machine.unsent),
            outstanding: core::mem::take(&mut machine.outstanding),
        };
        let mut plans = core::mem::take(&mut self.scratch.plans);
        let mut planned = core::mem::take(&mut self.scratch.frames);
        let mut cuts = None;
        let mut last = None;
        for frame in frames {
            let key = match frame.frame.is_ip() {
                true => FlowKey::of(frame.frame.payload.data()),
                false => None,
            };
            if key.is_none() || last != key {
                plans.push(self.plan(vm, &frame.frame));
                last = key;
            }
            let number = plans.len() - 1;
            match &plans[number] {
                // The adapter cuts what it protects itself, if it can.
                Plan::Adapter(handle)
                    if frame.segment_size.is_none()
                        || *cuts.get_or_insert_with(|| self.nic.cuts()) =>
                {
                    posting.push(frame, SendIpsec::Handle(*handle), false);
                }
                plan => self.prepare(vm, frame, (number as u32, plan), &mut planned),
            }
        }
        if !planned.is_empty() {
            self.encapsulate(vm, now, &plans, &mut planned);
            self.route(vm, &plans, &mut planned, &mut posting, way);
        }
        self.nic.post_from_host(vm, &mut posting.unsent);
        if let Some(machine) = self.machines.get_mut(&vm) {
            machine.unsent = posting.unsent;
            machine.outstanding = posting.outstanding;
        }
        plans.clear();
        self.scratch.plans = plans;
        self.scratch.frames = planned;
    }

    /// Cuts and completes a frame that the adapter does not do this for.
    fn prepare(
        &mut self,
        vm: VmId,
        frame: ToProtect<B>,
        (number, plan): (u32, &Plan),
        planned: &mut Vec<Planned<B>>,
    ) {
        let mut frame = Planned {
            frame: frame.frame,
            plan: number,
            segment_size: frame.segment_size,
            checksum: frame.checksum,
            refused: None,
        };
        if frame.segment_size.is_none() && !frame.checksum || matches!(plan, Plan::Lose(_)) {
            return planned.push(frame);
        }
        let Some(size) = frame.segment_size else {
            fill_checksum(frame.frame.payload.data_mut());
            frame.checksum = false;
            return planned.push(frame);
        };
        match self.nic.cut(&frame.frame, size) {
            Some(segments) => {
                self.nic.recycle(frame.frame.payload);
                planned.extend(segments.into_iter().map(|frame| Planned {
                    frame,
                    plan: number,
                    segment_size: None,
                    checksum: false,
                    refused: None,
                }));
            }
            None => self.lose(Some(vm), frame.frame.payload, Loss::LargeSend),
        }
    }

    /// Software's part of ESP, and the form of the frames around it.
    fn encapsulate(&mut self, vm: VmId, now: Timestamp, plans: &[Plan], frames: &mut [Planned<B>]) {
        let has_work = |plan: &Plan| matches!(plan, Plan::Software(..) | Plan::Frame(..));
        if !plans.iter().any(has_work) {
            return;
        }
        let (mut software, mut framed) = (Vec::new(), Vec::new());
        for planned in frames.iter_mut() {
            let packet = &mut planned.frame.payload;
            match plans.get(planned.plan as usize) {
                Some(Plan::Software(sa, _)) => software.push(Outbound::new(sa, packet)),
                Some(Plan::Frame(sa, ..)) => framed.push(Outbound::new(sa, packet)),
                _ => {}
            }
        }
        self.engine.encapsulate(now, &mut software);
        self.engine.frame(now, &mut framed);
        let refusal = |entry: &Outbound<'_, &mut B>| match entry.verdict {
            Verdict::Sealed { .. } => None,
            Verdict::TooBig { .. } => Some(Loss::TooBig),
            _ => Some(Loss::Esp),
        };
        let software: Vec<_> = software.iter().map(refusal).collect();
        let framed: Vec<_> = framed.iter().map(refusal).collect();
        let (mut software, mut framed) = (software.into_iter(), framed.into_iter());
        let mut sealed = 0;
        for planned in frames.iter_mut() {
            let (refused, form) = match plans.get(planned.plan as usize) {
                Some(Plan::Software(_, form)) => (software.next(), form),
                Some(Plan::Frame(_, form, _)) => (framed.next(), form),
                _ => continue,
            };
            planned.refused = refused.flatten();
            if planned.refused.is_none() {
                sealed += 1;
                form.apply(&mut planned.frame);
            }
        }
        self.count(vm, |counters| counters.sealed += sealed);
    }

    /// Sends frames to where their plans say.
    fn route(
        &mut self,
        vm: VmId,
        plans: &[Plan],
        frames: &mut Vec<Planned<B>>,
        posting: &mut Posting<B>,
        way: Way,
    ) {
        for mut planned in frames.drain(..) {
            let plan = plans.get(planned.plan as usize);
            let ipsec = match (planned.refused, plan) {
                (Some(loss), _) | (None, Some(&Plan::Lose(loss))) => {
                    self.lose(Some(vm), planned.frame.payload, loss);
                    continue;
                }
                (None, Some(Plan::Adapter(handle) | Plan::Frame(_, _, handle))) => {
                    SendIpsec::Handle(*handle)
                }
                (None, Some(Plan::Clear)) if way == Way::Switch => {
                    if !self.switch(vm, &mut planned.frame, posting.now) {
                        self.nic.recycle(planned.frame.payload);
                        continue;
                    }
                    SendIpsec::Done
                }
                (None, Some(Plan::Clear | Plan::Software(..)) | None) => SendIpsec::Done,
            };
            let frame = ToProtect {
                frame: planned.frame,
                segment_size: planned.segment_size,
                checksum: planned.checksum,
            };
            posting.push(frame, ipsec, matches!(plan, Some(Plan::Frame(..))));
        }
    }

    /// What is to be done with the frames of a flow, by the policies of their machine.
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
            }) => Plan::Frame(Arc::clone(sa), self.wire_form(vm, handle), *offloaded),
            _ => Plan::Software(Arc::clone(sa), self.wire_form(vm, handle)),
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
            Forward::To(to, tag) => {
                self.deliver_copy(to, tag, frame);
                false
            }
            Forward::Flood(exits) => {
                let mut uplink = false;
                for (to, tag) in exits {
                    if to == PortId::HOST {
                        (frame.vlan, uplink) = (tag, true);
                    } else {
                        self.deliver_copy(to, tag, frame);
                    }
                }
                uplink
            }
        }
    }

    /// Completions of what machines have sent on the synthetic path.
    ///
    /// Where the association had left the adapter between plan and post, a frame that is still
    /// what the machine sent goes through policy once more; an ESP packet that the adapter was
    /// to encrypt is clear text with a used number, and ends here.
    pub(super) fn take_completions(&mut self, now: Timestamp) {
        let mut completions = core::mem::take(&mut self.scratch.completions);
        let mut again = Vec::new();
        for (vm, machine) in &mut self.machines {
            self.nic.take_completions(*vm, now, &mut completions);
            for completion in completions.drain(..) {
                let work = machine.outstanding.complete(completion.id);
                let Some(buffer) = completion.buffer else {
                    continue;
                };
                let is_stale = completion.result == Err(SendError::Lost(Loss::ForeignHandle));
                match work {
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
        self.scratch.completions = completions;
        for (vm, send) in again {
            self.protect_sends(vm, now, [send]);
        }
    }
}
