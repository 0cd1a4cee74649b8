//! Steering: which queue a received frame belongs to, by filter or by association.

use core::net::IpAddr;
use core::sync::atomic::Ordering;
use std::sync::MutexGuard;

use vesper_esp::Buffer;
use vesper_esp::wire::{Located, locate, protocol};
use vesper_sa::{Mode, ReceiveKey, Receiver, Spi, VmId};

use super::{Config, Nic};
use crate::arrivals::Class;
use crate::capability::OffloadMode;
use crate::ethernet::{Frame, HEADER_LEN, MacAddress, VlanId};
use crate::fate::Loss;
use crate::filter::ReceiveFilter;
use crate::flow_key::{EspKey, FlowKey, FrameKey, PLAIN, PLAIN_MASK, mix};
use crate::queue::QueueId;
use crate::rings::{Queue, QueueInner, lock};
use crate::unit::Offloaded;

/// Steers frames one after another. Neighbours are mostly alike: what was found for one frame
/// is tried on the next one first, and its queue stays locked until another one is needed.
pub(super) struct Steering<'a, B> {
    nic: &'a Nic<B>,
    config: &'a Config<B>,
    filtered: Option<Filtered>,
    association: Option<(ReceiveKey, Option<Found<'a>>)>,
    /// The latest frame, if a glance recognises those that are like it: they go to the end of the
    /// queue that is open.
    latest: Option<Latest>,
    open: Option<OpenQueue<'a, B>>,
}

/// What the next frame is recognised by, if it is like the latest one.
#[derive(Clone, Copy)]
pub(super) enum Latest {
    /// ESP of the same association, or of none.
    Esp(EspKey),
    /// Of the same flow. With UDP that is not enough where a port carries ESP.
    Clear(FrameKey),
}

impl Latest {
    fn of(frame: &[u8]) -> Option<Self> {
        let esp = EspKey::of(frame).map(Self::Esp);
        esp.or_else(|| FrameKey::of(frame).map(Self::Clear))
    }

    #[inline(always)]
    fn matches(&self, frame: &[u8]) -> bool {
        match self {
            Self::Esp(key) => key.matches(frame),
            Self::Clear(key) => key.matches(frame),
        }
    }
}

/// A queue that is locked, and the name that it was asked for by.
struct OpenQueue<'a, B> {
    id: QueueId,
    queue: &'a Queue<B>,
    inner: MutexGuard<'a, QueueInner<B>>,
}

/// An association, and the queue that its packets go to: that of the filter is the same for
/// all packets with the same receiver.
#[derive(Clone, Copy)]
struct Found<'a> {
    offloaded: &'a Offloaded,
    queue: QueueId,
}

/// What the filters say of an address.
#[derive(Clone, Copy)]
struct Filtered {
    destination: MacAddress,
    vlan: Option<VlanId>,
    queue: QueueId,
    owner: Option<VmId>,
    /// The queue has others beside it.
    is_spread: bool,
}

impl<'a, B: Buffer> Steering<'a, B> {
    pub(super) fn new(nic: &'a Nic<B>, config: &'a Config<B>) -> Self {
        Self {
            nic,
            config,
            filtered: None,
            association: None,
            latest: None,
            open: None,
        }
    }

    /// Puts a frame from the wire into the queue that it belongs to.
    #[inline(always)]
    pub(super) fn place(&mut self, mut buffer: B) {
        if let Some(latest) = &self.latest
            && latest.matches(buffer.data())
            && let Some(open) = &mut self.open
            && open.inner.waiting.len() < open.queue.ring
        {
            buffer.trim_front(HEADER_LEN);
            return open.inner.waiting.push_alike(buffer);
        }
        self.place_any(buffer);
    }

    #[inline(never)]
    fn place_any(&mut self, buffer: B) {
        let key = Latest::of(buffer.data());
        match Frame::open(buffer) {
            Ok(frame) => self.place_opened(frame, key),
            Err((buffer, _)) => {
                self.let_go();
                self.nic.lose(self.config, None, buffer, Loss::Malformed);
            }
        }
    }

    /// Puts a frame that was taken apart into the queue that it belongs to; `key` is what those
    /// that are like it can be recognised by.
    pub(super) fn place_opened(&mut self, frame: Frame<B>, key: Option<Latest>) {
        if frame.link.destination.is_group() {
            self.let_go();
            self.nic.replicate(self.config, &frame, None);
            return self.enqueue(QueueId::DEFAULT, frame, Class::Clear);
        }
        match self.find(&frame) {
            Ok((queue, class)) => {
                let latest = key.filter(|key| self.is_simple(key, class, frame.payload.data()));
                self.enqueue(queue, frame, class);
                // What did not get into its own queue has let it go.
                self.latest = latest.filter(|_| self.open.is_some());
            }
            Err(owner) => {
                self.let_go();
                self.nic
                    .lose(self.config, Some(owner), frame.payload, Loss::Vlan);
            }
        }
    }

    /// Whether the next packet with the same key is the same. In transport mode every packet is
    /// looked at, and so is UDP through a port that carries ESP: of several associations, or of
    /// none.
    fn is_simple(&self, key: &Latest, class: Class, packet: &[u8]) -> bool {
        let has_spi = matches!(key, Latest::Esp(_));
        match class {
            Class::Esp(handle) => {
                let offloaded = self.config.unit.at(handle);
                has_spi && offloaded.is_some_and(|offloaded| offloaded.sa.mode() == Mode::Tunnel)
            }
            // No association has this key.
            Class::Unknown => has_spi && matches!(self.association, Some((_, None))),
            Class::Clear => FlowKey::of(packet).is_some_and(|flow| {
                let mut ports = flow.ports().into_iter();
                !ports.any(|port| self.nic.ports.contains(port))
            }),
            Class::Copy => false,
        }
    }

    /// Unlocks the queue that is held.
    fn let_go(&mut self) {
        self.open = None;
        self.latest = None;
    }

    /// The queue of a unicast frame, and what the frame is; if it is on the wrong VLAN for its
    /// association, the owner of that.
    fn find(&mut self, frame: &Frame<B>) -> Result<(QueueId, Class), VmId> {
        let Filtered {
            queue: first,
            owner,
            is_spread,
            ..
        } = self.filter(frame);
        if !frame.is_ip() {
            return Ok((first, Class::Clear));
        }
        let packet = frame.payload.data();
        let queue = match is_spread {
            true => self
                .config
                .spread(first, FlowKey::of(packet).map_or(0, FlowKey::hash)),
            false => first,
        };
        let (destination, spi) = match peek(packet) {
            Some(key) => {
                let [d0, d1, d2, d3, spi @ ..] = key.to_be_bytes();
                (IpAddr::from([d0, d1, d2, d3]), u32::from_be_bytes(spi))
            }
            None => match locate(packet, &self.nic.ports) {
                Located::Esp(esp) => (esp.destination, esp.spi),
                Located::Fragment(_) => return Ok((queue, Class::Unknown)),
                Located::NotEsp(_) | Located::Malformed(_) => return Ok((queue, Class::Clear)),
            },
        };
        let Some(spi) = Spi::new(spi) else {
            return Ok((queue, Class::Unknown));
        };
        let key = ReceiveKey {
            receiver: owner.map_or(Receiver::Host, Receiver::Vm),
            destination,
            spi,
        };
        let found = match self.association {
            Some((known, found)) if known == key => found,
            _ => {
                let found = self.config.unit.inbound(&key).map(|offloaded| {
                    // An association that ends at the host names the machine.
                    let first = owner.map_or_else(|| self.queue_of_owner(offloaded), |_| first);
                    // All packets of an association go one way: its window stays in one cache.
                    Found {
                        offloaded,
                        queue: self.config.spread(first, mix(u64::from(spi.get()))),
                    }
                });
                self.association = Some((key, found));
                found
            }
        };
        let Some(Found { offloaded, queue }) = found.filter(|found| {
            let mode = found.offloaded.sa.mode();
            mode == Mode::Tunnel || self.config.enabled.carries(mode, packet)
        }) else {
            return Ok((queue, Class::Unknown));
        };
        if frame.vlan != offloaded.offload.vlan {
            return Err(offloaded.sa.owner());
        }
        Ok((queue, Class::Esp(offloaded.handle)))
    }

    /// Puts a frame into the ring of a queue, of the default queue if that one does not
    /// receive.
    fn enqueue(&mut self, id: QueueId, frame: Frame<B>, class: Class) {
        if self.open.as_ref().is_none_or(|open| open.id != id) {
            self.open(id);
        }
        let Some(OpenQueue { queue, inner, .. }) = &mut self.open else {
            return self.nic.lose(self.config, None, frame.payload, Loss::Gone);
        };
        if inner.waiting.len() < queue.ring {
            inner.waiting.push(frame, class);
            queue.attention.store(true, Ordering::Relaxed);
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
                let filter = ReceiveFilter {
                    mac: destination,
                    vlan,
                };
                let queue = self.config.filters.classify(destination, vlan);
                let queue = queue.unwrap_or(QueueId::DEFAULT);
                let found = self.config.queue(queue);
                let owner = found.and_then(|queue| queue.owner);
                let is_spread = found.is_some_and(|queue| !queue.followers.is_empty());
                let found = Filtered {
                    destination,
                    vlan,
                    queue,
                    // A machine without a filter has its associations all the same.
                    owner: owner.or_else(|| self.config.addresses.get(&filter).copied()),
                    is_spread,
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
        self.open = None;
        let config = self.config;
        let wanted = config.queue(id).map(|queue| OpenQueue {
            id,
            queue,
            inner: lock(&queue.inner),
        });
        let receiving = wanted.filter(|open| id == QueueId::DEFAULT || open.inner.state.receives());
        self.open = match receiving {
            Some(open) => Some(open),
            None => config.default_queue().map(|queue| OpenQueue {
                id,
                queue,
                inner: lock(&queue.inner),
            }),
        };
    }
}

impl<B: Buffer> Config<B> {
    /// Which of the queues of a port gets what has this hash.
    fn spread(&self, first: QueueId, hash: u32) -> QueueId {
        let followers = self.queue(first).map_or(&[][..], |queue| &queue.followers);
        let place = hash as usize % (followers.len() + 1);
        match place.checked_sub(1).and_then(|place| followers.get(place)) {
            Some(follower) => *follower,
            None => first,
        }
    }
}

/// Destination and SPI, in this order, of the most frequent kind of ESP packet: right behind an IPv4 header
/// without options, and whole. The header's checksum is left to whoever opens the packet.
#[inline(always)]
pub(crate) fn peek(packet: &[u8]) -> Option<u64> {
    let start = packet.first_chunk::<28>()?;
    let head = u64::from_be_bytes(*start.first_chunk()?);
    let is_esp = head & PLAIN_MASK == PLAIN && start[9] == protocol::ESP;
    let key = start.get(16..24)?.first_chunk()?;
    is_esp.then_some(u64::from_be_bytes(*key))
}
