//! A TAP interface: a virtual machine of a hypervisor without vhost-user, a container, or this
//! host itself.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use rustix::io::{Errno, readv, writev};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use vesper_esp::{Buffer, PacketBuf};
use vesper_sa::Timestamp;

use super::intake::{Arrived, Intake, LARGEST, room};
use super::link::Link;
use super::sys::{TapQueue, open_tap, set_mtu, set_up};
use super::virtio_net::HEADER_LEN;
use super::{Incoming, Pool, Port, PortStatus};

/// Queues that a TAP interface may have.
pub const MOST_TAP_QUEUES: u16 = 16;

/// A TAP interface, this end of it.
#[derive(Debug)]
pub struct Tap {
    queues: Vec<TapQueue>,
    /// All queues at once, if there are several.
    ready: Option<Arc<Epoll>>,
    /// The queue whose turn is next.
    turn: usize,
    link: Link,
    intake: Intake,
    spill: Vec<u8>,
    status: PortStatus,
}

impl Tap {
    /// Opens an interface, which is made if there is none of this name, sets its MTU and
    /// switches it on. `queues` is 1 to [`MOST_TAP_QUEUES`]; more than one is for guests with as many.
    pub fn open(name: &str, queues: u16, mtu: Option<u16>) -> io::Result<Self> {
        let queues = open_tap(name, queues.clamp(1, MOST_TAP_QUEUES), HEADER_LEN)?;
        let flags = SocketFlags::CLOEXEC;
        let socket: OwnedFd =
            rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
        if let Some(mtu) = mtu {
            set_mtu(socket.as_fd(), name, mtu)?;
        }
        set_up(socket.as_fd(), name)?;
        let ready = match queues.len() {
            1 => None,
            _ => {
                let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
                for (index, queue) in (0..).zip(&queues) {
                    epoll.add(queue, EpollEvent::new(EpollFlags::EPOLLIN, index))?;
                }
                Some(Arc::new(epoll))
            }
        };
        let mut port = Self {
            queues,
            ready,
            turn: 0,
            link: Link::new(name, socket),
            intake: Intake::new(),
            spill: vec![0; LARGEST],
            status: PortStatus::default(),
        };
        port.link.look(&mut port.status)?;
        // The address of the interface is for whoever is behind it.
        port.status.mac = None;
        Ok(port)
    }
}

impl Port for Tap {
    fn receive(
        &mut self,
        now: Timestamp,
        pool: &mut Pool,
        most: usize,
        into: &mut Vec<Incoming>,
    ) -> usize {
        self.link.follow(now, &mut self.status);
        let mut taken = self.intake.hand_over(most, into);
        let mut dry = 0;
        while taken < most && dry < self.queues.len() {
            let Some(mut buffer) = room(pool) else { break };
            let mut header = [0; HEADER_LEN];
            let queue = &self.queues[self.turn % self.queues.len()];
            let mut vectors = [
                IoSliceMut::new(&mut header),
                IoSliceMut::new(buffer.data_mut()),
                IoSliceMut::new(&mut self.spill),
            ];
            match readv(queue, &mut vectors) {
                Ok(len) => {
                    let arrived = Arrived {
                        header: &header,
                        len: len.saturating_sub(HEADER_LEN),
                        spill: &self.spill,
                        tag: None,
                    };
                    self.intake.finish(buffer, arrived, pool, &mut self.status);
                    taken += self.intake.hand_over(most - taken, into);
                }
                Err(_) => {
                    pool.give(buffer);
                    dry += 1;
                    self.turn = self.turn.wrapping_add(1);
                }
            }
        }
        taken
    }

    fn send(&mut self, _now: Timestamp, pool: &mut Pool, frames: &mut Vec<PacketBuf>) {
        let header = [0; HEADER_LEN];
        let mut done = 0;
        for frame in frames.iter() {
            let vectors = [IoSlice::new(&header), IoSlice::new(frame.data())];
            match writev(&self.queues[0], &vectors) {
                Ok(_) => {
                    self.status.sent += 1;
                    self.status.sent_bytes += frame.data().len() as u64;
                }
                Err(Errno::AGAIN | Errno::NOBUFS) => break,
                // Too long, too short, or the interface is down.
                Err(_) => self.status.dropped += 1,
            }
            done += 1;
        }
        frames.drain(..done).for_each(|frame| pool.give(frame));
    }

    fn status(&self) -> PortStatus {
        self.status.clone()
    }

    fn wake(&self) -> Option<BorrowedFd<'_>> {
        match &self.ready {
            Some(ready) => Some(ready.0.as_fd()),
            None => Some(self.queues[0].as_fd()),
        }
    }

    fn prepare_sleep(&mut self, _sleeping: bool) -> bool {
        !self.intake.is_empty()
    }
}
