//! A port that takes everything and sends nothing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use vesper_esp::{Buffer, PacketBuf};
use vesper_sa::Timestamp;

use super::{Incoming, Pool, Port, PortStatus};
use crate::node::Waker;

/// Takes everything, sends nothing.
#[derive(Debug)]
pub struct Sink {
    /// Never becomes readable.
    never: Waker,
    status: PortStatus,
}

impl Sink {
    /// A sink for IP packets of up to `mtu` bytes.
    pub fn new(mtu: u32) -> io::Result<Self> {
        Ok(Self {
            never: Waker::new()?,
            status: PortStatus {
                up: true,
                mtu,
                ..PortStatus::default()
            },
        })
    }
}

impl Port for Sink {
    fn receive(&mut self, _: Timestamp, _: &mut Pool, _: usize, _: &mut Vec<Incoming>) -> usize {
        0
    }

    fn send(&mut self, _: Timestamp, pool: &mut Pool, frames: &mut Vec<PacketBuf>) {
        for frame in frames.drain(..) {
            self.status.sent += 1;
            self.status.sent_bytes += frame.data().len() as u64;
            pool.give(frame);
        }
    }

    fn status(&self) -> PortStatus {
        self.status.clone()
    }

    fn wake(&self) -> Option<BorrowedFd<'_>> {
        Some(self.never.as_fd())
    }
}
