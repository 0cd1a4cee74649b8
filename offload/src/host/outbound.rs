//! From a machine to the wire on the synthetic path: policy, software IPsec, switching.

use core::time::Duration;
use std::sync::Arc;

use arrayvec::ArrayVec;

use vesper_esp::aead::seal_batch;
use vesper_esp::wire::{EncapsulationPorts, flow};
use vesper_esp::{Buffer, EspSa, Outbound, Verdict};
use vesper_sa::{Action, Direction, Event, Mode, Timestamp, VmId};

use super::placement::WireForm;
use super::{AdapterWork, Host, Outstanding, Placement};
use crate::capability::OffloadMode;
use crate::completions::Completed;
use crate::crypto_mode::to_encrypt;
use crate::ethernet::{Frame, Link, VlanId, ethertype, parse};
use crate::fate::{Loss, SendError};
use crate::flow_key::FrameKey;
use crate::nic::{BATCH, fill_checksum};
use crate::queue::QueueId;
use crate::rings::{move_front, quantum, weight_of};
use crate::sends::Poster;
use crate::transfer::{HostSend, Received, Send, SendIpsec};
use crate::unit::{OffloadHandle, PortId};
use crate::vswitch::Forward;

/// A completion that has not come after this time will not come.
const COMPLETION_TIMEOUT: Duration = Duration::from_secs(1);

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
    completions: Vec<Completed<B>>,
    pub(super) received: Vec<Received<B>>,
    pub(super) due: Vec<(QueueId, Option<VmId>)>,
    pub(super) free: Vec<B>,
}

/// Frames of a machine that policy is applied to.
struct Batch<B> {
    vm: VmId,
    posting: Posting<B>,
    plans: Vec<Plan>,
    /// What is not yet in `posting`.
    planned: Vec<Planned<B>>,
    way: Way,
    /// Whether the adapter cuts large packets, once that was asked.
    cuts: Option<bool>,
    /// The flow that the last plan is for; `None`: that frame alone.
    key: Option<FrameKey>,
    /// What the last plan comes to for frames that need nothing else.
    short: Short,
}

/// What a plan comes to, where frames stay as they are.
#[derive(Clone, Copy)]
enum Short {
    /// Post them for the adapter, which does it all.
    Adapter(OffloadHandle),
    /// Post them as they are: to the wire.
    Wire,
    /// Copy them to this machine, if its policies let them in.
    Copy(VmId),
    /// Look closer.
    No,
}

/// What a machine is about to post to the adapter.
struct Posting<B> {
    now: Timestamp,
    unsent: Vec<Send<B>>,
    outstanding: Outstanding,
    /// The identifier of the next send; those from `outstanding.next()` on have this work.
    next: u64,
    work: AdapterWork,
}

impl<B> Posting<B> {
    /// `framed`: the frame holds an ESP packet in clear, of this association.
    #[inline(always)]
    fn push(&mut self, send: HostSend<B>, ipsec: SendIpsec, framed: Option<OffloadHandle>) {
        let HostSend {
            frame,
            segment_size,
            checksum,
        } = send;
        let work = AdapterWork {
            framed,
            segment_size,
            checksum,
        };
        if work != self.work {
            self.begin();
            self.work = work;
        }
        let id = self.next;
        self.next += 1;
        self.unsent.push(Send {
            id,
            frame,
            ipsec,
            segment_size,
            checksum,
        });
    }

    /// Takes note of what was pushed since the last time, all with the same work.
    fn begin(&mut self) {
        let count = self.next - self.outstanding.next();
        self.outstanding.begin_all(self.now, self.work, count);
    }
}

/// A frame that was taken apart, and the number of its plan.
#[derive(Debug)]
struct Planned<B> {
    frame: Frame<B>,
    plan: u32,
    /// Why ESP refused it.
    refused: Option<Loss>,
    /// It is where it belongs, and its buffer is free.
    is_delivered: bool,
}

impl<B> Planned<B> {
    /// With nothing left to be done to it.
    const fn new(frame: Frame<B>, plan: u32) -> Self {
        Self {
            frame,
            plan,
            refused: None,
            is_delivered: false,
        }
    }
}

impl<B> Default for Scratch<B> {
    fn default() -> Self {
        Self {
            taken: Vec::new(),
            plans: Vec::new(),
            frames: Vec::new(),
            completions: Vec::new(),
            received: Vec::new(),
            due: Vec::new(),
            free: Vec::new(),
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
            self.protect_sends(vm, now, &mut taken);
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
            self.nic.send_from_host(vm, &mut machine.unsent);
        }
        if !machine.unsent.is_empty() || machine.sends.is_empty() {
            return false;
        }
        machine.deficit += quantum(machine.settings.share());
        let count = machine.sends.len();
        let lengths = machine.sends.iter().map(|send| send.frame.data().len());
        let weight: i64 = lengths.take(BATCH).map(weight_of).sum();
        if count <= BATCH && weight < machine.deficit {
            machine.deficit = match count {
                BATCH => machine.deficit - weight,
                _ => 0,
            };
            move_front(&mut machine.sends, count, frames);
            return true;
        }
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

    fn protect_sends(&mut self, vm: VmId, now: Timestamp, sends: &mut Vec<HostSend<B>>) {
        let Some(mut batch) = self.begin(vm, now, Way::Switch) else {
            sends
                .drain(..)
                .for_each(|send| self.nic.recycle(send.frame));
            return;
        };
        for send in sends.drain(..) {
            self.add(&mut batch, send);
        }
        self.finish(batch);
    }

    /// Applies policy to a frame of a machine and sends it on.
    pub(super) fn protect(&mut self, vm: VmId, now: Timestamp, send: HostSend<B>, way: Way) {
        match self.begin(vm, now, way) {
            Some(mut batch) => {
                self.add(&mut batch, send);
                self.finish(batch);
            }
            None => self.nic.recycle(send.frame),
        }
    }

    /// Begins a batch of frames of a machine, if there is such a machine.
    fn begin(&mut self, vm: VmId, now: Timestamp, way: Way) -> Option<Batch<B>> {
        let machine = self.machines.get_mut(&vm)?;
        Some(Batch {
            vm,
            posting: Posting {
                now,
                next: machine.outstanding.next(),
                work: AdapterWork::default(),
                unsent: core::mem::take(&mut machine.unsent),
                outstanding: core::mem::take(&mut machine.outstanding),
            },
            plans: core::mem::take(&mut self.scratch.plans),
            planned: core::mem::take(&mut self.scratch.frames),
            way,
            cuts: None,
            key: None,
            short: Short::No,
        })
    }

    /// Applies policy to the next frame. Neighbours of one flow share a plan: nothing that it
    /// depends on changes before all of them are planned.
    #[inline(always)]
    fn add(&mut self, batch: &mut Batch<B>, send: HostSend<B>) {
        let frame = send.frame.data();
        let is_known = batch.key.is_some_and(|key| key.matches(frame));
        if !is_known && !self.add_plan(batch, frame) {
            return self.lose(Some(batch.vm), send.frame, Loss::Malformed);
        }
        // What is prepared leaves with the batch, and nothing overtakes it.
        let short = match batch.planned.is_empty() {
            true => batch.short,
            false => Short::No,
        };
        match short {
            // The adapter cuts what it protects itself, if it can.
            Short::Adapter(handle)
                if send.segment_size.is_none()
                    || *batch.cuts.get_or_insert_with(|| self.nic.cuts()) =>
            {
                let ipsec = SendIpsec::Handle(handle);
                batch.posting.push(send, ipsec, None);
            }
            Short::Wire if send.segment_size.is_none() && !send.checksum => {
                batch.posting.push(send, SendIpsec::Done, None);
            }
            Short::Copy(to) if send.segment_size.is_none() && !send.checksum => {
                self.copy_whole(to, send.frame.data());
                self.scratch.free.push(send.frame);
            }
            _ => self.prepare(batch, send),
        }
    }

    /// Plans for a frame and those that are like it; `false` if it is malformed.
    #[inline(never)]
    fn add_plan(&mut self, batch: &mut Batch<B>, frame: &[u8]) -> bool {
        let Ok((link, tag, len)) = parse(frame) else {
            return false;
        };
        let packet = frame.get(len..).unwrap_or_default();
        let plan = self.plan(batch.vm, &link, packet);
        batch.key = FrameKey::of(frame);
        batch.short = match plan {
            Plan::Adapter(handle) => Short::Adapter(handle),
            Plan::Clear if batch.way == Way::Wire => Short::Wire,
            // What is looked at once holds for all that are like it.
            Plan::Clear if batch.key.is_some() => self.short_way(batch, &link, tag, packet),
            _ => Short::No,
        };
        batch.plans.push(plan);
        true
    }

    /// Where the software switch sends clear frames of this flow, if they stay as they are.
    fn short_way(
        &mut self,
        batch: &Batch<B>,
        link: &Link,
        tag: Option<VlanId>,
        packet: &[u8],
    ) -> Short {
        let Some(port) = self.machines.get(&batch.vm).map(|machine| machine.port) else {
            return Short::No;
        };
        match self.switch.one_way(port, link, tag, batch.posting.now) {
            Some((PortId::HOST, None)) => Short::Wire,
            Some((port, None)) => match self.ports.get(&port).copied() {
                Some(to) if self.admits_packet(to, link, packet) => Short::Copy(to),
                _ => Short::No,
            },
            _ => Short::No,
        }
    }

    /// Protects what the host has to, and sends everything on.
    fn finish(&mut self, batch: Batch<B>) {
        let Batch {
            vm,
            mut posting,
            mut plans,
            mut planned,
            way,
            ..
        } = batch;
        if !planned.is_empty() {
            self.encapsulate(vm, posting.now, &plans, &mut planned);
            self.route(vm, &plans, &mut planned, &mut posting, way);
        }
        posting.begin();
        self.nic.send_from_host(vm, &mut posting.unsent);
        self.recycle_all();
        if let Some(machine) = self.machines.get_mut(&vm) {
            machine.unsent = posting.unsent;
            machine.outstanding = posting.outstanding;
        }
        plans.clear();
        self.scratch.plans = plans;
        self.scratch.frames = planned;
    }

    /// Takes a frame apart, and cuts and completes it if the adapter does not.
    #[inline(never)]
    fn prepare(&mut self, batch: &mut Batch<B>, send: HostSend<B>) {
        let Batch { plans, planned, .. } = batch;
        let Some(plan) = plans.last() else { return };
        let number = plans.len() as u32 - 1;
        let opened = match Frame::open(send.frame) {
            Ok(frame) => frame,
            Err((buffer, _)) => return self.lose(Some(batch.vm), buffer, Loss::Malformed),
        };
        let mut frame = Planned::new(opened, number);
        if matches!(plan, Plan::Lose(_)) {
            return planned.push(frame);
        }
        match send.segment_size {
            None => {
                if send.checksum {
                    fill_checksum(frame.frame.payload.data_mut());
                }
                planned.push(frame);
            }
            Some(size) => match self.nic.cut(&frame.frame, size) {
                Some(segments) => {
                    self.nic.recycle(frame.frame.payload);
                    let segments = segments.into_iter();
                    planned.extend(segments.map(|frame| Planned::new(frame, number)));
                }
                None => self.lose(Some(batch.vm), frame.frame.payload, Loss::LargeSend),
            },
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
        for planned in frames.iter_mut() {
            let plan = plans.get(planned.plan as usize);
            if matches!(plan, Some(Plan::Clear)) && way == Way::Switch {
                planned.is_delivered = !self.switch(vm, &mut planned.frame, posting.now);
            }
        }
        for planned in frames.drain(..) {
            let plan = plans.get(planned.plan as usize);
            let ipsec = match (planned.refused, plan) {
                (Some(loss), _) | (None, Some(&Plan::Lose(loss))) => {
                    self.lose(Some(vm), planned.frame.payload, loss);
                    continue;
                }
                (None, Some(Plan::Adapter(handle) | Plan::Frame(_, _, handle))) => {
                    SendIpsec::Handle(*handle)
                }
                (None, Some(Plan::Clear)) if planned.is_delivered => {
                    self.nic.recycle(planned.frame.payload);
                    continue;
                }
                (None, Some(Plan::Clear | Plan::Software(..)) | None) => SendIpsec::Done,
            };
            match planned.frame.close() {
                Ok(frame) => {
                    let framed = match plan {
                        Some(Plan::Frame(_, _, handle)) => Some(*handle),
                        _ => None,
                    };
                    posting.push(HostSend::new(frame), ipsec, framed);
                }
                Err(frame) => self.lose(Some(vm), frame.payload, Loss::NoRoom),
            }
        }
    }

    /// What is to be done with the frames of a flow, by the policies of their machine.
    #[inline(never)]
    fn plan(&mut self, vm: VmId, link: &Link, packet: &[u8]) -> Plan {
        let Some(policies) = self.policies.get(&vm) else {
            return Plan::Clear;
        };
        if !link.is_ip() {
            return match link.ethertype {
                ethertype::ARP => Plan::Clear,
                _ => Plan::Lose(Loss::Policy),
            };
        }
        let Some(flow) = flow(packet) else {
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
            }) if sa.mode() == Mode::Tunnel || self.nic.offload_ok(vm, *offloaded, packet) => {
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
    /// to encrypt has its number already, and software encrypts it in the adapter's place.
    pub(super) fn take_completions(&mut self, now: Timestamp) {
        let mut completions = core::mem::take(&mut self.scratch.completions);
        let mut again = Vec::new();
        let mut to_encrypt = Vec::new();
        for (vm, machine) in &mut self.machines {
            if machine.outstanding.is_empty() {
                continue;
            }
            self.nic
                .take_completed(*vm, Poster::Host, now, &mut completions);
            for completed in completions.drain(..) {
                let completion = match completed {
                    Completed::Sent(ids) => {
                        machine.outstanding.complete_all(ids);
                        continue;
                    }
                    Completed::Failed(completion) => completion,
                };
                let work = machine.outstanding.complete(completion.id);
                let Some(buffer) = completion.buffer else {
                    continue;
                };
                let is_stale = completion.result == Err(SendError::Lost(Loss::ForeignHandle));
                match work.filter(|_| is_stale) {
                    Some(AdapterWork {
                        framed: Some(handle),
                        ..
                    }) => to_encrypt.push((*vm, handle, buffer)),
                    Some(work) => {
                        let send = HostSend {
                            frame: buffer,
                            segment_size: work.segment_size,
                            checksum: work.checksum,
                        };
                        again.push((*vm, send));
                    }
                    None => self.nic.recycle(buffer),
                }
            }
            machine.outstanding.expire(now, COMPLETION_TIMEOUT);
        }
        self.scratch.completions = completions;
        for (vm, handle, frame) in to_encrypt {
            self.encrypt_framed(vm, now, handle, frame);
        }
        for (vm, send) in again {
            self.protect_sends(vm, now, &mut vec![send]);
        }
    }

    /// Encrypts an ESP packet that the host has made for crypto mode and the adapter has refused,
    /// untouched, because it had let go of the association; and sends it on.
    fn encrypt_framed(&mut self, vm: VmId, now: Timestamp, handle: OffloadHandle, mut frame: B) {
        let found = self.in_crypto_mode(handle);
        let (Some((.., sa)), Some(machine)) = (found, self.machines.get_mut(&vm)) else {
            return self.nic.recycle(frame);
        };
        let is_encrypted = parse(frame.data()).is_ok_and(|(_, _, len)| {
            let packet = frame.data_mut().get_mut(len..).unwrap_or_default();
            let ports = EncapsulationPorts::default();
            let job = to_encrypt(
                &sa,
                |low| last_ending_in(sa.sequence(), low),
                packet,
                &ports,
            );
            let is_found = job.is_some();
            seal_batch(&mut job.into_iter().collect::<ArrayVec<_, 1>>());
            is_found
        });
        if !is_encrypted {
            return self.lose(Some(vm), frame, Loss::Esp);
        }
        let id = machine.outstanding.begin(now, AdapterWork::default());
        machine.unsent.push(Send {
            ipsec: SendIpsec::Done,
            ..Send::new(id, frame)
        });
        self.nic.send_from_host(vm, &mut machine.unsent);
    }
}

/// The latest number that ends in `low`, where `last` is the last one that was given out.
const fn last_ending_in(last: u64, low: u32) -> u64 {
    last.wrapping_sub((last as u32).wrapping_sub(low) as u64)
}
