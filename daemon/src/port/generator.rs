//! A port that sends made-up packets, and checks those that come from another generator.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use vesper_esp::{Buffer, PacketBuf};
use vesper_sa::Timestamp;

use super::{Incoming, Place, Pool, Port, PortStatus, append};
use crate::config::{GeneratorConfig, Sizes};

/// Lengths of IP packets in the order in which they are sent: 64 x 7, 570 x 4, 1420 x 1.
const IMIX: [u16; 12] = [64, 570, 64, 64, 570, 64, 1420, 64, 570, 64, 64, 570];

/// Where the UDP payload begins in a frame.
const PAYLOAD: usize = 14 + 20 + 8;

/// Where the source port is, which tells flows apart.
const SOURCE_PORT: usize = 14 + 20;

/// The first source port.
const FIRST_PORT: u16 = 1024;

/// The discard port (RFC 863).
const DESTINATION_PORT: u16 = 9;

/// What a payload begins with; flow, sequence number of the flow, and the moment of sending
/// follow, then bytes that count up.
const MAGIC: [u8; 8] = *b"vesper\x00\x01";

/// Bytes of the payload before the pattern.
const MARK: usize = 8 + 2 + 8 + 8;

/// One of so many packets is compared byte for byte.
const SAMPLE: u64 = 64;

/// How many packets ahead the memory of one is asked for.
const AHEAD: usize = 6;

/// The most that is made up for at once after the sender was not asked for a while, in
/// nanoseconds.
const CATCH_UP: u64 = 1_000_000;

/// Sends made-up UDP packets and checks received ones.
#[derive(Debug)]
pub struct Generator {
    templates: Vec<Vec<u8>>,
    next: usize,
    flow: usize,
    sent: Vec<u64>,
    /// By flow, the number that is expected next.
    expected: Vec<u64>,
    pattern: Vec<u8>,
    pace: Pace,
    timer: OwnedFd,
    status: PortStatus,
    latency: Latency,
}

/// How fast packets are sent.
#[derive(Debug)]
struct Pace {
    /// Packets a second; 0 is unlimited.
    rate: u64,
    /// When the next one is due.
    due: u64,
}

/// How long sampled packets were on their way.
#[derive(Clone, Copy, Debug, Default)]
struct Latency {
    samples: u64,
    nanos: u64,
}

impl Generator {
    /// A generator at a place.
    pub fn new(config: &GeneratorConfig, place: &Place) -> io::Result<Self> {
        let lengths = match config.sizes {
            Sizes::Imix => IMIX.to_vec(),
            Sizes::Fixed(length) => vec![length],
        };
        let templates = lengths
            .iter()
            .map(|length| template(config, place, *length))
            .collect();
        let flows = usize::from(config.flows.max(1));
        Ok(Self {
            templates,
            next: 0,
            flow: 0,
            sent: vec![0; flows],
            expected: vec![0; flows],
            pattern: (0..=u16::MAX).map(|index| index as u8).collect(),
            pace: Pace {
                rate: config.rate,
                due: 0,
            },
            timer: timerfd_create(
                TimerfdClockId::Monotonic,
                TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
            )?,
            status: PortStatus {
                up: true,
                mac: Some(place.mac),
                mtu: place.mtu(),
                ..PortStatus::default()
            },
            latency: Latency::default(),
        })
    }

    /// Checks a packet: is it one of another generator, is it whole, is it in its turn?
    fn check(&mut self, now: Timestamp, frame: &[u8]) -> bool {
        let Some(mark) = Mark::read(frame) else {
            return false;
        };
        let flow = usize::from(mark.flow);
        if flow >= self.expected.len() {
            self.expected.resize(flow + 1, 0);
        }
        let is_in_turn = mark.sequence >= self.expected[flow];
        self.expected[flow] = mark.sequence + 1;
        if mark.sequence.is_multiple_of(SAMPLE) {
            self.latency.samples += 1;
            self.latency.nanos += now.as_nanos().saturating_sub(mark.sent);
            let rest = &frame[PAYLOAD + MARK..];
            return is_in_turn && rest == &self.pattern[..rest.len()];
        }
        is_in_turn
    }
}

impl Port for Generator {
    fn receive(
        &mut self,
        now: Timestamp,
        pool: &mut Pool,
        most: usize,
        into: &mut Vec<Incoming>,
    ) -> usize {
        let count = self.pace.allow(now, most).min(pool.free());
        for sent in 0..count {
            let Some(template) = self.templates.get(self.next) else {
                break;
            };
            let later = &self.templates[(self.next + AHEAD) % self.templates.len()];
            pool.prefetch_frame(AHEAD, later.len());
            let Some(mut frame) = pool.copy(template) else {
                self.pace.give_back(count - sent);
                return sent;
            };
            let data = frame.data_mut();
            let number = &mut self.sent[self.flow];
            Mark {
                flow: self.flow as u16,
                sequence: *number,
                sent: now.as_nanos(),
            }
            .write(data);
            *number += 1;
            self.status.received += 1;
            self.status.received_bytes += data.len() as u64;
            append(into, frame);
            self.next += 1;
            if self.next == self.templates.len() {
                self.next = 0;
                self.flow = (self.flow + 1) % self.sent.len();
            }
        }
        count
    }

    fn send(&mut self, now: Timestamp, pool: &mut Pool, frames: &mut Vec<PacketBuf>) {
        for frame in frames.drain(..) {
            let data = frame.data();
            self.status.sent += 1;
            self.status.sent_bytes += data.len() as u64;
            if !self.check(now, frame.data()) {
                self.status.malformed += 1;
            }
            pool.give(frame);
        }
    }

    fn status(&self) -> PortStatus {
        self.status.clone()
    }

    fn wake(&self) -> Option<BorrowedFd<'_>> {
        Some(self.timer.as_fd())
    }

    fn prepare_sleep(&mut self, sleeping: bool) -> bool {
        if self.pace.rate == 0 {
            return sleeping;
        }
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let wait = match sleeping {
            true => Timespec {
                tv_sec: (self.pace.interval() / 1_000_000_000) as i64,
                tv_nsec: (self.pace.interval() % 1_000_000_000) as i64,
            },
            false => zero,
        };
        let timer = Itimerspec {
            it_interval: zero,
            it_value: wait,
        };
        // Without the timer the worker's own one wakes it, later.
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &timer);
        false
    }
}

impl Pace {
    /// How many packets may be sent now.
    fn allow(&mut self, now: Timestamp, most: usize) -> usize {
        if self.rate == 0 {
            return most;
        }
        let now = now.as_nanos();
        self.due = self.due.max(now.saturating_sub(CATCH_UP));
        let mut count = 0;
        while count < most && self.due <= now {
            self.due += self.interval();
            count += 1;
        }
        count
    }

    fn give_back(&mut self, count: usize) {
        if self.rate > 0 {
            self.due = self.due.saturating_sub(self.interval() * count as u64);
        }
    }

    /// Nanoseconds from packet to packet.
    fn interval(&self) -> u64 {
        (1_000_000_000 / self.rate.max(1)).max(1)
    }
}

/// What tells a packet from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    flow: u16,
    sequence: u64,
    sent: u64,
}

impl Mark {
    fn write(self, frame: &mut [u8]) {
        let Some(mark) = frame.get_mut(SOURCE_PORT..PAYLOAD + MARK) else {
            return;
        };
        let port = FIRST_PORT.wrapping_add(self.flow);
        mark[..2].copy_from_slice(&port.to_be_bytes());
        let mark = &mut mark[16..];
        mark[..2].copy_from_slice(&self.flow.to_be_bytes());
        mark[2..10].copy_from_slice(&self.sequence.to_be_bytes());
        mark[10..].copy_from_slice(&self.sent.to_be_bytes());
    }

    /// `None` if the frame is not one of a generator.
    fn read(frame: &[u8]) -> Option<Self> {
        let mark = frame.get(PAYLOAD..PAYLOAD + MARK)?;
        let (magic, mark) = mark.split_first_chunk()?;
        let (flow, mark) = mark.split_first_chunk()?;
        let (sequence, mark) = mark.split_first_chunk()?;
        let is_ours = *magic == MAGIC && frame.get(12..14)? == [8, 0];
        is_ours.then_some(Self {
            flow: u16::from_be_bytes(*flow),
            sequence: u64::from_be_bytes(*sequence),
            sent: u64::from_be_bytes(*mark.first_chunk()?),
        })
    }
}

/// A frame that only lacks its [`Mark`]. The UDP checksum is left out (RFC 768).
fn template(config: &GeneratorConfig, place: &Place, length: u16) -> Vec<u8> {
    let length = length.max((PAYLOAD - 14 + MARK) as u16);
    let mut frame = Vec::with_capacity(usize::from(length) + 14);
    frame.extend(place.gateway.0);
    frame.extend(place.mac.0);
    frame.extend([0x08, 0x00]);
    frame.extend(ipv4(config.source, config.destination, length));
    frame.extend(FIRST_PORT.to_be_bytes());
    frame.extend(DESTINATION_PORT.to_be_bytes());
    frame.extend((length - 20).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(MAGIC);
    frame.extend([0; MARK - MAGIC.len()]);
    let rest = usize::from(length) + 14 - frame.len();
    frame.extend((0..rest).map(|index| index as u8));
    frame
}

fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, length: u16) -> [u8; 20] {
    let mut header = [0; 20];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&length.to_be_bytes());
    // Do not fragment.
    header[6] = 0x40;
    header[8] = 64;
    header[9] = 17;
    header[12..16].copy_from_slice(&source.octets());
    header[16..20].copy_from_slice(&destination.octets());
    let checksum = vesper_esp::wire::Checksum::new().bytes(&header).finish();
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    use vesper_offload::MacAddress;

    fn generator(rate: u64, sizes: Sizes) -> Generator {
        let config = GeneratorConfig {
            source: [10, 0, 0, 1].into(),
            destination: [10, 0, 0, 2].into(),
            sizes,
            flows: 2,
            rate,
        };
        let place = Place {
            mac: MacAddress([2, 0, 0, 0, 0, 1]),
            gateway: MacAddress([2, 0, 0, 0, 0, 9]),
            frame: 1600,
        };
        Generator::new(&config, &place).unwrap()
    }

    fn now(micros: u64) -> Timestamp {
        Timestamp::from_nanos(micros * 1000)
    }

    #[test]
    fn packets_are_what_others_call_a_packet() {
        let mut pool = Pool::new(100, 1600);
        let mut frames = Vec::new();
        generator(0, Sizes::Imix).receive(now(5), &mut pool, 24, &mut frames);
        let mut lengths = Vec::new();
        for incoming in &frames {
            let data = incoming.frame.data();
            let packet = SlicedPacket::from_ethernet(data).unwrap();
            let Some(NetSlice::Ipv4(ip)) = &packet.net else {
                panic!("{packet:?}");
            };
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!(header.source, [10, 0, 0, 1]);
            let Some(TransportSlice::Udp(udp)) = packet.transport else {
                panic!("{packet:?}");
            };
            assert_eq!(usize::from(udp.length()), data.len() - 34);
            lengths.push(header.total_len);
        }
        let count = |length| lengths.iter().filter(|other| **other == length).count();
        assert_eq!((count(64), count(570), count(1420)), (14, 8, 2));
    }

    #[test]
    fn what_is_wrong_is_noticed() {
        let mut pool = Pool::new(200, 1600);
        let mut sender = generator(0, Sizes::Fixed(100));
        let mut take = |count| {
            let mut frames = Vec::new();
            sender.receive(now(5), &mut pool, count, &mut frames);
            let frames = frames.into_iter().map(|incoming| incoming.frame);
            frames.collect::<Vec<_>>()
        };
        let first = take(4);
        let mut receiver = generator(0, Sizes::Imix);
        let mut other = Pool::new(0, 1600);
        let mut malformed = |frames: &[PacketBuf]| {
            let before = receiver.status().malformed;
            receiver.send(now(10), &mut other, &mut frames.to_vec());
            receiver.status().malformed - before
        };
        assert_eq!(malformed(&first), 0);
        assert_eq!(malformed(&first[..1]), 1, "again");
        let mut foreign = first[2].clone();
        foreign.data_mut()[PAYLOAD] ^= 1;
        assert_eq!(malformed(&[foreign]), 1, "not of a generator");
        // 2 flows: packet 128 has number 64 of its flow, and is compared.
        let mut sampled = take(126).swap_remove(124);
        assert_eq!(malformed(&[sampled.clone()]), 0, "some were lost");
        *sampled.data_mut().last_mut().unwrap() ^= 1;
        assert_eq!(malformed(&[sampled]), 1, "falsified");
    }

    #[test]
    fn the_rate_is_kept() {
        let mut generator = generator(10_000, Sizes::Fixed(100));
        let mut pool = Pool::new(10, 1600);
        let mut sent = 0;
        let mut frames = Vec::new();
        for micros in 0..100_000 {
            sent += generator.receive(now(micros), &mut pool, 8, &mut frames);
            frames
                .drain(..)
                .for_each(|incoming| pool.give(incoming.frame));
        }
        assert_eq!(sent, 1000);
        assert!(!generator.prepare_sleep(true));
    }
}
