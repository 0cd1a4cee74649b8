//! The uplink with its neighbours.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use vesper_esp::{Buffer, PacketBuf};
use vesper_offload::{MacAddress, VlanId, ethertype};
use vesper_sa::Timestamp;

use super::cache::{Cache, CacheLimits, Hop, Question, Resolution};
use super::message::{Message, answer, may_be_message, question, read};
use crate::port::{Incoming, Pool, Port, PortStatus};

/// Frames that wait for an answer, all hops together.
const WAITING: usize = 256;

/// Between two looks at the cache.
const TICK: Duration = Duration::from_millis(50);

/// Answers that are given in one tick.
const ANSWERS: u32 = 16;

/// What the uplink has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UplinkOptions {
    /// Where tunnels end.
    pub address: IpAddr,
    /// Our own Ethernet address.
    pub mac: MacAddress,
    /// The next hop of everything; without one each peer is its own.
    pub gateway: Option<IpAddr>,
}

/// A port to the network that finds out where tunnel packets go.
///
/// A frame whose destination is our own address, or nobody's, has to be resolved; every other
/// one knows where it goes.
#[derive(Debug)]
pub struct Uplink {
    inner: Box<dyn Port>,
    options: UplinkOptions,
    cache: Cache,
    waiting: Vec<(Hop, PacketBuf)>,
    /// The hop that was resolved last: packets come in runs.
    last: Option<(Hop, MacAddress, Timestamp)>,
    /// Our own frames, and those that have waited.
    ready: Vec<PacketBuf>,
    questions: Vec<Question>,
    lost: Vec<Hop>,
    ticked: Timestamp,
    answers: u32,
    dropped: u64,
}

impl Uplink {
    /// Puts it in front of a port.
    pub fn new(inner: Box<dyn Port>, options: UplinkOptions, limits: CacheLimits) -> Self {
        Self {
            inner,
            options,
            cache: Cache::new(limits),
            waiting: Vec::with_capacity(WAITING),
            last: None,
            ready: Vec::with_capacity(WAITING),
            questions: Vec::new(),
            lost: Vec::new(),
            ticked: Timestamp::ZERO,
            answers: ANSWERS,
            dropped: 0,
        }
    }

    /// Hears a frame; false if it is for somebody else to read.
    fn hear(&mut self, frame: &[u8], now: Timestamp, pool: &mut Pool) -> bool {
        let Some(heard) = read(frame) else {
            return false;
        };
        if heard.source == self.options.mac {
            return true;
        }
        match heard.message {
            Message::Question { target, asker } => {
                if let Some((address, mac)) = asker {
                    // Who asks says where it is (RFC 826, RFC 4861 section 7.2.3).
                    self.learn((heard.vlan, address), mac, now);
                }
                if target != self.options.address {
                    return asker.is_some_and(|(address, _)| address == self.options.address);
                }
                if self.answers > 0
                    && let Some(frame) = answer(target, self.options.mac, asker, heard.vlan)
                {
                    self.answers -= 1;
                    self.ready.extend(pool.copy(&frame));
                }
            }
            Message::Answer { address, mac } => {
                self.learn((heard.vlan, address), mac, now);
            }
        }
        true
    }

    fn learn(&mut self, hop: Hop, mac: MacAddress, now: Timestamp) {
        if !self.cache.learn(hop, mac, now) {
            return;
        }
        self.last = None;
        for (_, mut frame) in self.waiting.extract_if(.., |(other, _)| *other == hop) {
            address(&mut frame, mac);
            self.ready.push(frame);
        }
    }

    /// Questions that are due, and frames that waited in vain.
    fn tick(&mut self, now: Timestamp, pool: &mut Pool) {
        if now.since(self.ticked) < TICK {
            return;
        }
        self.ticked = now;
        self.answers = ANSWERS;
        // A hop in steady use has to be seen as used. A gateway is known before it is needed.
        self.last = None;
        if let Some(gateway) = self.options.gateway {
            self.cache.resolve((None, gateway), now);
        }
        self.cache.pass(now, &mut self.questions, &mut self.lost);
        let from = (self.options.address, self.options.mac);
        for ((vlan, target), last) in self.questions.drain(..) {
            let frame = question(from, target, last, vlan);
            self.ready.extend(frame.and_then(|frame| pool.copy(&frame)));
        }
        for hop in self.lost.drain(..) {
            for (_, frame) in self.waiting.extract_if(.., |(other, _)| *other == hop) {
                self.dropped += 1;
                pool.give(frame);
            }
        }
    }

    fn resolve(&mut self, hop: Hop, now: Timestamp) -> Resolution {
        if let Some((last, mac, _)) = self.last
            && last == hop
        {
            return Resolution::Known(mac);
        }
        let resolution = self.cache.resolve(hop, now);
        if let Resolution::Known(mac) = resolution {
            self.last = Some((hop, mac, now));
        }
        resolution
    }

    /// The next hop of a frame that has none yet.
    fn next_hop(&self, frame: &[u8]) -> Option<Option<Hop>> {
        let to = frame.first_chunk().map(|mac| MacAddress(*mac))?;
        if to != self.options.mac && to != MacAddress::default() {
            return None;
        }
        Some(
            destination(frame)
                .map(|(vlan, destination)| (vlan, self.options.gateway.unwrap_or(destination))),
        )
    }
}

impl Port for Uplink {
    fn receive(
        &mut self,
        now: Timestamp,
        pool: &mut Pool,
        most: usize,
        into: &mut Vec<Incoming>,
    ) -> usize {
        let before = into.len();
        self.inner.receive(now, pool, most, into);
        let mut index = before;
        while index < into.len() {
            // Mostly they are not, and stay where they are.
            if may_be_message(into[index].frame.data()) {
                let incoming = into.remove(index);
                if self.hear(incoming.frame.data(), now, pool) {
                    pool.give(incoming.frame);
                    continue;
                }
                into.insert(index, incoming);
            }
            index += 1;
        }
        self.tick(now, pool);
        if !self.ready.is_empty() {
            self.inner.send(now, pool, &mut self.ready);
        }
        into.len() - before
    }

    fn send(&mut self, now: Timestamp, pool: &mut Pool, frames: &mut Vec<PacketBuf>) {
        frames.retain_mut(|frame| {
            let Some(hop) = self.next_hop(frame.data()) else {
                return true;
            };
            let resolution = hop.map(|hop| (hop, self.resolve(hop, now)));
            match resolution {
                Some((_, Resolution::Known(mac))) => {
                    address(frame, mac);
                    return true;
                }
                Some((hop, Resolution::Asked)) if self.waiting.len() < WAITING => {
                    self.waiting.push((hop, std::mem::take(frame)));
                    // The question does not wait for the next tick.
                    self.ticked = Timestamp::ZERO;
                }
                _ => {
                    self.dropped += 1;
                    pool.give(std::mem::take(frame));
                }
            }
            false
        });
        self.tick(now, pool);
        if !self.ready.is_empty() {
            self.inner.send(now, pool, &mut self.ready);
        }
        self.inner.send(now, pool, frames);
    }

    fn status(&self) -> PortStatus {
        let mut status = self.inner.status();
        status.dropped += self.dropped;
        status
    }

    fn wake(&self) -> Option<BorrowedFd<'_>> {
        self.inner.wake()
    }

    fn prepare_sleep(&mut self, sleeping: bool) -> bool {
        self.inner.prepare_sleep(sleeping)
    }
}

fn address(frame: &mut PacketBuf, mac: MacAddress) {
    if let Some(place) = frame.data_mut().first_chunk_mut() {
        *place = mac.0;
    }
}

/// VLAN and destination of an IP packet.
fn destination(frame: &[u8]) -> Option<(Option<VlanId>, IpAddr)> {
    let word = |at: usize| Some(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?));
    let (mut at, mut vlan) = (12, None);
    if word(at)? == ethertype::VLAN {
        vlan = VlanId::new(word(14)? & 0xfff);
        at = 16;
    }
    let kind = word(at)?;
    let ip = frame.get(at + 2..)?;
    let destination = match kind {
        ethertype::IPV4 => IpAddr::from(*ip.get(16..)?.first_chunk::<4>()?),
        ethertype::IPV6 => IpAddr::from(*ip.get(24..)?.first_chunk::<16>()?),
        _ => return None,
    };
    Some((vlan, destination))
}
