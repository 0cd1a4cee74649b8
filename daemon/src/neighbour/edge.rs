//! The edge of a machine's network.
//!
//! A tunnel carries IP packets and no Ethernet: a machine that asks for the address of a peer
//! behind a tunnel would never hear an answer. So it gets one here, for every address but its
//! own: the host, to whom all its packets go anyway.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use vesper_esp::wire::{Checksum, IpHeader, protocol};
use vesper_esp::{Buffer, PacketBuf, fragments, too_big};
use vesper_offload::{HEADROOM, MacAddress};
use vesper_sa::Timestamp;

use super::message::{Message, answer, may_be_message, read};
use crate::port::{Incoming, Pool, Port, PortStatus};

/// Answers, of either kind, in a tenth of a second.
const ANSWERS: u32 = 100;

/// How a machine's edge behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EdgeOptions {
    /// The Ethernet address that answers give.
    pub mac: MacAddress,
    /// Answers questions for neighbours.
    pub answers: bool,
    /// The longest IP packet that goes into the machine's tunnels, in bytes. Longer ones are
    /// cut, or their sender is told (RFC 1191, RFC 8201).
    pub tunnel_mtu: Option<u16>,
    /// TCP connections agree upon segments that fit into `tunnel_mtu` (MSS clamping).
    pub clamp: bool,
}

/// A machine's port with its edge in front.
#[derive(Debug)]
pub struct Edge {
    inner: Box<dyn Port>,
    options: EdgeOptions,
    /// Frames out of the inner port.
    taken: Vec<Incoming>,
    /// Fragments that the worker had no room for.
    waiting: VecDeque<Incoming>,
    /// Answers to the machine.
    ready: Vec<PacketBuf>,
    since: Timestamp,
    left: u32,
    dropped: u64,
}

impl Edge {
    /// Puts it in front of a port.
    pub fn new(inner: Box<dyn Port>, options: EdgeOptions) -> Self {
        Self {
            inner,
            options,
            taken: Vec::with_capacity(64),
            waiting: VecDeque::new(),
            ready: Vec::with_capacity(64),
            since: Timestamp::ZERO,
            left: ANSWERS,
            dropped: 0,
        }
    }

    /// Whether one more answer may be given now.
    fn may_answer(&mut self, now: Timestamp) -> bool {
        if now.since(self.since) >= Duration::from_millis(100) {
            (self.since, self.left) = (now, ANSWERS);
        }
        let may = self.left > 0 && self.ready.len() < 256;
        self.left -= u32::from(may);
        may
    }

    fn take(&mut self, mut incoming: Incoming, now: Timestamp, pool: &mut Pool) {
        let frame = incoming.frame.data();
        if self.options.answers
            && let Some(heard) = read(frame)
            && let Message::Question { target, asker } = heard.message
        {
            // Somebody who looks for its own address, or whether it may have one, wants silence.
            let is_peer = asker.is_some_and(|(address, _)| address != target);
            if is_peer
                && self.may_answer(now)
                && let Some(frame) = answer(target, self.options.mac, asker, heard.vlan)
            {
                self.ready.extend(pool.copy(&frame));
            }
            return pool.give(incoming.frame);
        }
        let Some(mtu) = self.options.tunnel_mtu else {
            return self.waiting.push_back(incoming);
        };
        let Some(at) = ip_at(frame) else {
            return self.waiting.push_back(incoming);
        };
        if frame.len() - at > usize::from(mtu) {
            return self.shorten(incoming, at, mtu, now, pool);
        }
        if self.options.clamp {
            clamp(&mut incoming.frame.data_mut()[at..], mtu);
        }
        self.waiting.push_back(incoming);
    }

    /// Cuts a packet that is too long, or tells its sender.
    fn shorten(
        &mut self,
        incoming: Incoming,
        at: usize,
        mtu: u16,
        now: Timestamp,
        pool: &mut Pool,
    ) {
        let (link, packet) = incoming.frame.data().split_at(at);
        match fragments(packet, mtu.into()) {
            Ok(fragments) => {
                for fragment in fragments {
                    let Some(mut buffer) = pool.take() else {
                        self.dropped += 1;
                        break;
                    };
                    buffer.trim_front(HEADROOM);
                    let behind = buffer.data().len().saturating_sub(at + fragment.len());
                    buffer.trim_back(behind);
                    let (head, body) = buffer.data_mut().split_at_mut(at);
                    head.copy_from_slice(link);
                    if fragment.write_to(body) {
                        self.waiting.push_back(Incoming::new(buffer));
                    }
                }
            }
            Err(_) => {
                self.dropped += 1;
                // In the name of the one it was for: the sender looks at what is quoted.
                let to = IpHeader::parse(packet).ok().map(|ip| ip.destination);
                if let Some(from) = to
                    && self.may_answer(now)
                    && let Some(icmp) = too_big(packet, mtu.into(), from)
                {
                    let mut frame = link.to_vec();
                    frame.copy_within(6..12, 0);
                    frame[6..12].copy_from_slice(&self.options.mac.0);
                    frame.extend(icmp);
                    self.ready.extend(pool.copy(&frame));
                }
            }
        }
        pool.give(incoming.frame);
    }

    /// Whether something may have to be done to a frame of the machine.
    fn concerns(&self, frame: &[u8]) -> bool {
        let too_long = |mtu: u16| self.options.clamp || frame.len() > usize::from(mtu);
        (self.options.answers && may_be_message(frame))
            || self.options.tunnel_mtu.is_some_and(too_long)
    }

    fn is_idle(&self) -> bool {
        !self.options.answers && self.options.tunnel_mtu.is_none()
    }
}

impl Port for Edge {
    fn receive(
        &mut self,
        now: Timestamp,
        pool: &mut Pool,
        most: usize,
        into: &mut Vec<Incoming>,
    ) -> usize {
        if self.is_idle() {
            return self.inner.receive(now, pool, most, into);
        }
        let before = into.len();
        let waiting = self.waiting.len().min(most);
        into.extend(self.waiting.drain(..waiting));
        let start = into.len();
        if waiting < most {
            self.inner.receive(now, pool, most - waiting, into);
        }
        // Mostly nothing has to be done to any of them, and they stay where they are.
        let concerns = |incoming: &Incoming| self.concerns(incoming.frame.data());
        if let Some(first) = into[start..].iter().position(concerns) {
            let mut taken = std::mem::take(&mut self.taken);
            taken.extend(into.drain(start + first..));
            for incoming in taken.drain(..) {
                self.take(incoming, now, pool);
            }
            self.taken = taken;
            let room = most.saturating_sub(into.len() - before);
            let count = self.waiting.len().min(room);
            into.extend(self.waiting.drain(..count));
        }
        if !self.ready.is_empty() {
            self.inner.send(now, pool, &mut self.ready);
        }
        into.len() - before
    }

    fn send(&mut self, now: Timestamp, pool: &mut Pool, frames: &mut Vec<PacketBuf>) {
        if self.options.clamp
            && let Some(mtu) = self.options.tunnel_mtu
        {
            for frame in frames.iter_mut() {
                if let Some(at) = ip_at(frame.data()) {
                    clamp(&mut frame.data_mut()[at..], mtu);
                }
            }
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
        !self.waiting.is_empty() | self.inner.prepare_sleep(sleeping)
    }
}

/// Where the IP packet of a frame begins.
fn ip_at(frame: &[u8]) -> Option<usize> {
    let at = match frame.get(12..14)? {
        [0x81, 0] => 16,
        _ => 12,
    };
    matches!(frame.get(at..at + 2)?, [8, 0] | [0x86, 0xdd]).then_some(at + 2)
}

/// Lowers the maximum segment size in a SYN to what fits (RFC 9293 section 3.7.1); it is never
/// raised.
fn clamp(packet: &mut [u8], mtu: u16) {
    let Ok(ip) = IpHeader::parse(packet) else {
        return;
    };
    if ip.protocol != protocol::TCP || ip.fragment.is_some_and(|f| f.offset != 0) {
        return;
    }
    let fixed = match ip.source {
        IpAddr::V4(_) => 20 + 20,
        IpAddr::V6(_) => 40 + 20,
    };
    let most = mtu.saturating_sub(fixed);
    let Some(tcp) = packet.get_mut(ip.header_len..ip.total_len) else {
        return;
    };
    if tcp.len() < 20 || tcp[13] & 0x02 == 0 {
        return;
    }
    let len = (usize::from(tcp[12] >> 4) * 4).min(tcp.len());
    let mut at = 20;
    while let Some(&[kind, size]) = tcp.get(at..len).and_then(<[u8]>::first_chunk) {
        match (kind, size) {
            (0, _) => return,
            (1, _) => at += 1,
            (2, 4) if at + 4 <= len => {
                let old = u16::from_be_bytes([tcp[at + 2], tcp[at + 3]]);
                if old > most {
                    tcp[at + 2..at + 4].copy_from_slice(&most.to_be_bytes());
                    // The option may stand at an odd place: then its bytes count the other way.
                    let swap = |word: u16| if at % 2 == 0 { word } else { word.swap_bytes() };
                    let sum = u16::from_be_bytes([tcp[16], tcp[17]]);
                    let sum = Checksum::new().word(!sum).word(!swap(old)).word(swap(most));
                    tcp[16..18].copy_from_slice(&sum.finish().to_be_bytes());
                }
                return;
            }
            (_, 0 | 1) => return,
            _ => at += usize::from(size),
        }
    }
}
