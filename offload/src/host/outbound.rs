//! From a machine to the wire on the synthetic path: policy, software IPsec, switching.

use std::sync::Arc;

use vesper_esp::wire::flow;
use vesper_esp::{Buffer, EspSa};
use vesper_sa::{Action, Direction, Event, Mode, Timestamp, VmId};

use super::open::ToOpen;
use super::placement::WireForm;
use super::posting::Posting;
use super::protect::{Planned, Whole};
use super::{Host, Placement};
use crate::arrivals::Ready;
use crate::capability::OffloadMode;
use crate::completions::Completed;
use crate::ethernet::{Frame, HEADER_LEN, Link, VlanId, ethertype, parse};
use crate::fate::Loss;
use crate::flow_key::FrameKey;
use crate::nic::BATCH;
use crate::queue::QueueId;
use crate::rings::{move_front, quantum, weight_of};
use crate::transfer::{HostSend, SendIpsec};
use crate::unit::{OffloadHandle, PortId};
use crate::vswitch::Forward;

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
pub(super) enum Plan {
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
    whole: Whole<B>,
    pub(super) completions: Vec<Completed<B>>,
    pub(super) received: Ready<B>,
    pub(super) to_open: ToOpen<B>,
    pub(super) due: Vec<(QueueId, Option<VmId>)>,
    pub(super) free: Vec<B>,
}

/// Frames of a machine that policy is applied to.
pub(super) struct Batch<B> {
    pub(super) vm: VmId,
    posting: Posting<B>,
    pub(super) plans: Vec<Plan>,
    /// What is not yet in `posting`: frames that are all to be sealed ...
    pub(super) whole: Whole<B>,
    /// ... or any frames.
    pub(super) planned: Vec<Planned<B>>,
    way: Way,
    /// Whether the adapter cuts large packets, once that was asked.
    cuts: Option<bool>,
    /// The flow that the last plan is for; `None`: that frame alone.
    key: Option<FrameKey>,
    /// The header that the last plan is for.
    link: Link,
    /// What the last plan comes to for frames that need nothing else.
    short: Short,
}

impl<B> Batch<B> {
    /// If complete frames like the last one are but posted: what they are recognised by, and what
    /// the adapter is told of them.
    #[inline(always)]
    fn posts_alike(&self) -> Option<(FrameKey, SendIpsec)> {
        let ipsec = match self.short {
            Short::Adapter(handle) => SendIpsec::Handle(handle),
            Short::Wire => SendIpsec::Done,
            Short::Copy(_) | Short::Seal | Short::No => return None,
        };
        // What is prepared leaves with the batch, and nothing overtakes it.
        let nothing_waits = self.planned.is_empty() && self.whole.is_empty();
        self.key.filter(|_| nothing_waits).map(|key| (key, ipsec))
    }
}

/// The length of an ordinary frame, in bytes.
const ORDINARY: usize = 1514;

/// What a plan comes to, where frames stay as they are.
#[derive(Clone, Copy)]
enum Short {
    /// Post them for the adapter, which does it all.
    Adapter(OffloadHandle),
    /// Post them as they are: to the wire.
    Wire,
    /// Copy them to this machine, if its policies let them in.
    Copy(VmId),
    /// Make ESP packets of them.
    Seal,
    /// Look closer.
    No,
}

impl<B> Default for Scratch<B> {
    fn default() -> Self {
        Self {
            taken: Vec::new(),
            plans: Vec::new(),
            frames: Vec::new(),
            whole: Whole::default(),
            completions: Vec::new(),
            received: Ready::new(),
            to_open: ToOpen::default(),
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
            if !taken.is_empty() {
                self.protect_sends(vm, now, &mut taken);
            }
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
            let posted = self.nic.send_from_host(vm, &mut machine.unsent);
            machine.has_refused |= posted.has_refused;
        }
        let waits = machine.has_refused || !machine.unsent.is_empty();
        if waits || machine.sends.is_empty() {
            return false;
        }
        machine.deficit += quantum(machine.settings.share());
        if machine.deficit <= 0 {
            return true;
        }
        // A batch as a whole, if its frames are of ordinary length: the cipher is the faster the
        // more packets it has at a time. What it was beyond its share is owed, and what a full
        // batch leaves of the share is not kept for ever.
        let most = BATCH as i64 * weight_of(ORDINARY);
        machine.deficit = machine
            .deficit
            .min(quantum(machine.settings.share()) + most);
        let left = machine.deficit + most;
        let mut weight = 0;
        let lengths = machine.sends.iter().map(|send| send.frame.data().len());
        let weights = lengths.take(BATCH).map(weight_of);
        let count = weights.take_while(|next| {
            let has_room = weight < left;
            weight += if has_room { *next } else { 0 };
            has_room
        });
        let count = count.count();
        machine.deficit -= weight;
        move_front(&mut machine.sends, count, frames);
        if machine.sends.is_empty() {
            machine.deficit = machine.deficit.min(0);
        }
        true
    }

    pub(super) fn protect_sends(&mut self, vm: VmId, now: Timestamp, sends: &mut Vec<HostSend<B>>) {
        let Some(mut batch) = self.begin(vm, now, Way::Switch) else {
            sends
                .drain(..)
                .for_each(|send| self.nic.recycle(send.frame));
            return;
        };
        let mut sends = sends.drain(..);
        loop {
            if let Some((key, ipsec)) = batch.posts_alike() {
                let alike = sends.as_slice().iter();
                let alike = alike.take_while(|send| {
                    let is_complete = send.segment_size.is_none() && !send.checksum;
                    is_complete && key.matches(send.frame.data())
                });
                let alike = alike.count();
                batch.posting.extend(sends.by_ref().take(alike), ipsec);
            }
            match sends.next() {
                Some(send) => self.add(&mut batch, send),
                None => break,
            }
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
            posting: Posting::new(
                now,
                core::mem::take(&mut machine.unsent),
                core::mem::take(&mut machine.outstanding),
            ),
            plans: core::mem::take(&mut self.scratch.plans),
            whole: core::mem::take(&mut self.scratch.whole),
            planned: core::mem::take(&mut self.scratch.frames),
            way,
            cuts: None,
            key: None,
            link: Link::default(),
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
        let mut short = match batch.planned.is_empty() {
            true => batch.short,
            false => Short::No,
        };
        if !batch.whole.is_empty() && !matches!(short, Short::Seal) {
            self.take_apart(batch);
            short = Short::No;
        }
        match short {
            Short::Seal
                if send.segment_size.is_none() && !send.checksum && batch.whole.len() < BATCH =>
            {
                let plan = batch.plans.len() as u32 - 1;
                batch.whole.push(send.frame, plan, &batch.link);
            }
            // All of them, or none.
            Short::Seal => {
                self.take_apart(batch);
                self.prepare(batch, send);
            }
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
                self.copy(to, &[send.frame.data()]);
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
        let is_protected = matches!(
            plan,
            Plan::Adapter(_) | Plan::Software(..) | Plan::Frame(..)
        );
        let policies = self.policies.get(&batch.vm);
        if is_protected && policies.is_some_and(|all| all.ignores_ports(Direction::Outbound)) {
            // What else it depends on is in the key.
            batch.key = batch.key.map(FrameKey::of_all_ports);
        }
        batch.short = match plan {
            Plan::Adapter(handle) => Short::Adapter(handle),
            Plan::Software(..) | Plan::Frame(..) if len == HEADER_LEN => Short::Seal,
            Plan::Clear if batch.way == Way::Wire => Short::Wire,
            // What is looked at once holds for all that are like it.
            Plan::Clear if batch.key.is_some() => self.short_way(batch, &link, tag, packet),
            _ => Short::No,
        };
        batch.link = link;
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
            mut whole,
            mut planned,
            way,
            ..
        } = batch;
        if !whole.is_empty() {
            self.seal(vm, &plans, &mut whole, &mut posting);
        }
        if !planned.is_empty() {
            self.encapsulate(vm, posting.now, &plans, &mut planned);
            self.route(vm, &plans, &mut planned, &mut posting, way);
        }
        posting.begin();
        let posted = self.nic.send_from_host(vm, &mut posting.unsent);
        self.recycle_all();
        if let Some(machine) = self.machines.get_mut(&vm) {
            machine.has_refused |= posted.has_refused;
            machine.unsent = posting.unsent;
            machine.outstanding = posting.outstanding;
        }
        plans.clear();
        self.scratch.plans = plans;
        self.scratch.whole = whole;
        self.scratch.frames = planned;
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
    pub(super) fn switch(&mut self, vm: VmId, frame: &mut Frame<B>, now: Timestamp) -> bool {
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
}
