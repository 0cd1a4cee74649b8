//! The last step to a machine on the synthetic path: over, or by a copy, if policy lets it in.

use vesper_esp::wire::flow;
use vesper_esp::{Buffer, prefetch};
use vesper_sa::{Action, Direction, VmId};

use super::{Host, Machine};
use crate::HEADROOM;
use crate::ethernet::{Frame, HEADER_LEN, Link, VlanId, ethertype, fill, lend};
use crate::fate::Loss;
use crate::queue::QueueId;
use crate::unit::PortId;

impl<B: Buffer> Host<B> {
    /// Hands a frame to its machine: over, if it is in a buffer of the machine's queue, else
    /// by a copy.
    pub(super) fn deliver(&mut self, vm: VmId, queue: QueueId, frame: Frame<B>) {
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

    /// Copies a frame with this tag to its machine.
    pub(super) fn copy_to(&mut self, vm: VmId, tag: Option<VlanId>, frame: &Frame<B>) {
        let header = frame.link.header(tag);
        self.copy(vm, &[header.bytes(), frame.payload.data()]);
    }

    /// Copies a frame to its machine.
    pub(super) fn copy(&mut self, vm: VmId, parts: &[&[u8]]) {
        match self.machines.get_mut(&vm) {
            Some(machine) => machine.copy_in(parts),
            None => self.losses.count(Loss::NoDestination),
        }
    }

    /// Loses a frame. One that came through a machine's queue is in a buffer that the machine
    /// has posted, and gets it posted again: else whoever sends bad packets would take away the
    /// machine's buffers.
    pub(super) fn lose_received(
        &mut self,
        vm: Option<VmId>,
        queue: QueueId,
        mut buffer: B,
        loss: Loss,
    ) {
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

    /// Gives the adapter the buffers back of which the content was copied.
    pub(super) fn recycle_all(&mut self) {
        if !self.scratch.free.is_empty() {
            self.nic.recycle_all(&mut self.scratch.free);
        }
    }

    pub(super) fn machine_at(&self, port: PortId) -> Option<VmId> {
        self.ports.get(&port).copied()
    }

    /// Whether a machine takes this frame without protection.
    pub(super) fn admits_clear(&self, vm: VmId, frame: &Frame<B>) -> bool {
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

impl<B: Buffer> Machine<B> {
    /// The copy that the synthetic path costs.
    pub(super) fn copy_in(&mut self, parts: &[&[u8]]) {
        let losses = &mut self.counters.losses;
        let Some(mut buffer) = self.posted.pop() else {
            return losses.count(Loss::NoBuffer);
        };
        // The next one but one is asked for meanwhile.
        if let Some(next) = self.posted.iter().nth_back(1) {
            prefetch(next.data().get(HEADROOM - HEADER_LEN..).unwrap_or_default());
        }
        if !fill(&mut buffer, HEADROOM - HEADER_LEN, parts) {
            self.posted.push(buffer);
            return losses.count(Loss::NoBuffer);
        }
        self.counters.received += 1;
        self.counters.copies += 1;
        self.ready.push_back(buffer);
    }
}
