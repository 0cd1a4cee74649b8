//! A port that sends back what it gets, to whoever sent it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use vesper_esp::{Buffer, PacketBuf};
use vesper_sa::Timestamp;

use super::{Incoming, Pool, Port, PortStatus, append};
use crate::node::Waker;

/// Frames that wait to be sent back.
const WAITING: usize = 1024;

/// Sends back what it gets, with the addresses of Ethernet, IP, and UDP or TCP exchanged.
/// Checksums stay right: they are sums.
#[derive(Debug)]
pub struct Loopback {
    never: Waker,
    waiting: Vec<PacketBuf>,
    status: PortStatus,
}

impl Loopback {
    /// A loopback for IP packets of up to `mtu` bytes.
    pub fn new(mtu: u32) -> io::Result<Self> {
        Ok(Self {
            never: Waker::new()?,
            waiting: Vec::with_capacity(WAITING),
            status: PortStatus {
                up: true,
                mtu,
                ..PortStatus::default()
            },
        })
    }
}

impl Port for Loopback {
    fn receive(
        &mut self,
        _: Timestamp,
        _: &mut Pool,
        most: usize,
        into: &mut Vec<Incoming>,
    ) -> usize {
        let count = most.min(self.waiting.len());
        for frame in self.waiting.drain(..count) {
            self.status.received += 1;
            self.status.received_bytes += frame.data().len() as u64;
            append(into, frame);
        }
        count
    }

    fn send(&mut self, _: Timestamp, pool: &mut Pool, frames: &mut Vec<PacketBuf>) {
        for mut frame in frames.drain(..) {
            self.status.sent += 1;
            self.status.sent_bytes += frame.data().len() as u64;
            // It is the machine's: what the machine does not keep up with, the machine loses.
            match self.waiting.len() < WAITING && turn_round(frame.data_mut()) {
                true => self.waiting.push(frame),
                false => {
                    self.status.malformed += 1;
                    pool.give(frame);
                }
            }
        }
    }

    fn status(&self) -> PortStatus {
        self.status.clone()
    }

    fn wake(&self) -> Option<BorrowedFd<'_>> {
        Some(self.never.as_fd())
    }

    fn prepare_sleep(&mut self, sleeping: bool) -> bool {
        sleeping && !self.waiting.is_empty()
    }
}

/// Exchanges source and destination; false if it is neither IPv4 nor IPv6.
fn turn_round(frame: &mut [u8]) -> bool {
    let (address, len, protocol, header) = match frame {
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x08, 0x00, ip @ ..] if ip.len() >= 20 => {
            (26, 4, ip[9], usize::from(ip[0] & 0xf) * 4)
        }
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x86, 0xdd, ip @ ..] if ip.len() >= 40 => {
            (22, 16, ip[6], 40)
        }
        _ => return false,
    };
    swap(frame, 0, 6);
    swap(frame, address, len);
    // TCP and UDP.
    if matches!(protocol, 6 | 17) {
        swap(frame, 14 + header, 2);
    }
    true
}

/// Exchanges two neighbours of `len` bytes at `at`, if they are there.
fn swap(frame: &mut [u8], at: usize, len: usize) {
    if let Some(both) = frame.get_mut(at..at + 2 * len) {
        both.rotate_left(len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{PacketBuilder, SlicedPacket};

    #[test]
    fn a_packet_goes_back_where_it_came_from() {
        let mut there = Vec::new();
        let mut back = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(1000, 2000)
            .write(&mut there, b"hello")
            .unwrap();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1])
            .ipv4([10, 0, 0, 2], [10, 0, 0, 1], 64)
            .udp(2000, 1000)
            .write(&mut back, b"hello")
            .unwrap();
        let mut pool = Pool::new(4, 100);
        let mut port = Loopback::new(1500).unwrap();
        let mut frames = vec![pool.copy(&there).unwrap(), pool.copy(&[0; 60]).unwrap()];
        port.send(Timestamp::ZERO, &mut pool, &mut frames);
        assert!(port.prepare_sleep(true));
        let mut received = Vec::new();
        assert_eq!(
            port.receive(Timestamp::ZERO, &mut pool, 9, &mut received),
            1
        );
        assert_eq!(received[0].frame.data(), back);
        assert!(SlicedPacket::from_ethernet(received[0].frame.data()).is_ok());
        assert_eq!((port.status().sent, port.status().malformed), (2, 1));
    }
}
