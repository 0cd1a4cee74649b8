//! Steering: which queue a received frame belongs to, by filter or by association.

use std::sync::MutexGuard;

use vesper_esp::Buffer;
use vesper_esp::wire::{Located, locate};
use vesper_sa::{ReceiveKey, Receiver, Spi, VmId};

use super::{Config, Nic};
use crate::capability::OffloadMode;
use crate::ethernet::{Frame, MacAddress, VlanId};
use crate::fate::Loss;
use crate::queue::QueueId;
use crate::rings::{Class, Queue, QueueInner, Waiting, lock};
use crate::unit::Offloaded;

/// Steers frames one after another. Neighbours are mostly alike: what was found for one frame
/// is tried on the next one first, and its queue stays locked until another one is needed.
pub(super) struct Steering<'a, B> {
    nic: &'a Nic<B>,
    config: &'a Config<B>,
    filtered: Option<Filtered>,
    association: Option<(ReceiveKey, Option<&'a Offloaded>)>,
    queue: Option<(QueueId, &'a Queue<B>, MutexGuard<'a, QueueInner<B>>)>,
}

/// What the filters say of an address.
#[derive(Clone, Copy)]
struct Filtered {
    destination: MacAddress,
    vlan: Option<VlanId>,
    queue: QueueId,
    owner: Option<VmId>,
}

impl<'a, B: Buffer> Steering<'a, B> {
    pub(super) fn new(nic: &'a Nic<B>, config: &'a Config<B>) -> Self {
        Self {
            nic,
            config,
            filtered: None,
            association: None,
            queue: None,
        }
    }

    /// Unlocks the queue that is held.
    pub(super) fn let_go(&mut self) {
        self.queue = None;
    }

    /// The queue of a unicast frame, and what the frame is; if it is on the wrong VLAN for its
    /// association, the owner of that.
    #[inline]
    pub(super) fn find(&mut self, frame: &Frame<B>) -> Result<(QueueId, Class), VmId> {
        let Filtered { queue, owner, .. } = self.filter(frame);
        if !frame.is_ip() {
            return Ok((queue, Class::Clear));
        }
        let packet = frame.payload.data();
        let esp = match locate(packet, &self.nic.ports) {
            Located::Esp(esp) => esp,
            Located::Fragment(_) => return Ok((queue, Class::Unknown)),
            Located::NotEsp(_) | Located::Malformed(_) => return Ok((queue, Class::Clear)),
        };
        let Some(spi) = Spi::new(esp.spi) else {
            return Ok((queue, Class::Unknown));
        };
        let key = ReceiveKey {
            receiver: owner.map_or(Receiver::Host, Receiver::Vm),
            destination: esp.destination,
            spi,
        };
        let found = match self.association {
            Some((known, found)) if known == key => found,
            _ => {
                let found = self.config.unit.inbound(&key).map(|found| &**found);
                self.association = Some((key, found));
                found
            }
        };
        let carried = found.filter(|found| self.config.enabled.carries(found.sa.mode(), packet));
        let Some(offloaded) = carried else {
            return Ok((queue, Class::Unknown));
        };
        if frame.vlan != offloaded.offload.vlan {
            return Err(offloaded.sa.owner());
        }
        let queue = match owner {
            Some(_) => queue,
            // An association that ends at the host names the machine.
            None => self.queue_of_owner(offloaded),
        };
        Ok((queue, Class::Esp(offloaded.handle)))
    }

    /// Puts a frame into the ring of a queue, of the default queue if that one does not
    /// receive.
    #[inline]
    pub(super) fn enqueue(&mut self, id: QueueId, frame: Frame<B>, class: Class) {
        if !matches!(self.queue, Some((open, ..)) if open == id) {
            self.open(id);
        }
        let Some((_, queue, inner)) = &mut self.queue else {
            return self.nic.lose(self.config, None, frame.payload, Loss::Gone);
        };
        if inner.waiting.len() < queue.ring {
            inner.waiting.push_back(Waiting { frame, class });
        } else {
            let owner = queue.owner;
            self.let_go();
            self.nic
                .lose(self.config, owner, frame.payload, Loss::RingFull);
        }
    }

    fn filter(&mut self, frame: &Frame<B>) -> Filtered {
        let (destination, vlan) = (frame.link.destination, frame.vlan);
        match self.filtered {
            Some(found) if found.destination == destination && found.vlan == vlan => found,
            _ => {
                let queue = self.config.filters.classify(destination, vlan);
                let queue = queue.unwrap_or(QueueId::DEFAULT);
                let found = Filtered {
                    destination,
                    vlan,
                    queue,
                    owner: self.config.queue(queue).and_then(|queue| queue.owner),
                };
                self.filtered = Some(found);
                found
            }
        }
    }

    fn queue_of_owner(&self, offloaded: &Offloaded) -> QueueId {
        let config = self.config;
        let entry = config.vms.get(&offloaded.sa.owner());
        entry
            .and_then(|entry| entry.queue)
            // In crypto mode the host has the rest to do, and a function is not its own.
            .filter(|queue| {
                offloaded.offload.mode == OffloadMode::Packet || !config.is_of_function(*queue)
            })
            .unwrap_or(QueueId::DEFAULT)
    }

    /// Locks a queue in place of the one that is held.
    fn open(&mut self, id: QueueId) {
        self.queue = None;
        let config = self.config;
        let wanted = config.queue(id).map(|queue| (queue, lock(&queue.inner)));
        let receiving =
            wanted.filter(|(_, inner)| id == QueueId::DEFAULT || inner.state.receives());
        let open = match receiving {
            Some(open) => Some(open),
            None => config
                .default_queue()
                .map(|queue| (queue, lock(&queue.inner))),
        };
        self.queue = open.map(|(queue, inner)| (id, &**queue, inner));
    }
}
