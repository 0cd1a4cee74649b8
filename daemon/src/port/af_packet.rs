//! An interface of the host through a packet socket: the uplink in most cases. Nothing has to
//! be set up, every driver has it; receiving costs no system call, sending one a batch.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};
use vesper_esp::{Buffer, PacketBuf};
use vesper_offload::MacAddress;
use vesper_sa::Timestamp;

use super::intake::{Arrived, Intake, LARGEST, room};
use super::link::Link;
use super::sys::{BATCH, Info, PacketSocket};
use super::{Incoming, Pool, Port, PortStatus};

/// Bytes of a frame that do not fit into a buffer, per frame of a batch.
const SPILL: usize = LARGEST;

/// Bytes that the kernel keeps for us beside the ring, by its own count: frames that are larger than
/// the ring's slots.
const RECEIVE_BUFFER: usize = 8 << 20;

/// An interface of the host.
#[derive(Debug)]
pub struct AfPacket {
    socket: PacketSocket,
    link: Link,
    intake: Intake,
    buffers: Vec<PacketBuf>,
    spill: Vec<u8>,
    status: PortStatus,
    batches: u32,
}

/// After this many batches the socket's own losses are asked for.
const ASK_EVERY: u32 = 1024;

impl AfPacket {
    /// Binds to an interface. If `mac` is not its own address, it takes all frames that come
    /// by, as long as the port is open.
    pub fn open(name: &str, mac: MacAddress) -> io::Result<Self> {
        let socket = PacketSocket::open(name)?;
        // Without CAP_NET_ADMIN it has what the system allows everybody.
        if set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
            let _ = set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER);
        }
        let link = Link::new(name, socket.as_fd().try_clone_to_owned()?);
        let mut status = PortStatus::default();
        link.look(&mut status)?;
        if status.mac != Some(mac) {
            socket.take_all(name)?;
        }
        Ok(Self {
            socket,
            link,
            intake: Intake::new(),
            buffers: Vec::with_capacity(BATCH),
            spill: vec![0; SPILL * BATCH],
            status,
            batches: 0,
        })
    }
}

impl Port for AfPacket {
    fn receive(
        &mut self,
        now: Timestamp,
        pool: &mut Pool,
        most: usize,
        into: &mut Vec<Incoming>,
    ) -> usize {
        self.link.follow(now, &mut self.status);
        let taken = self.intake.hand_over(most, into);
        while self.buffers.len() < BATCH
            && let Some(buffer) = room(pool)
        {
            self.buffers.push(buffer);
        }
        let count = (most - taken).min(self.buffers.len());
        if count == 0 {
            return taken;
        }
        let mut infos = [Info::default(); BATCH];
        let rooms = self.buffers.iter_mut().take(count);
        let rooms = rooms
            .map(Buffer::data_mut)
            .zip(self.spill.chunks_mut(SPILL));
        let received = self.socket.receive(rooms, &mut infos);
        let spills = self.spill.chunks(SPILL);
        let arrived = self.buffers.drain(..received).zip(&infos).zip(spills);
        for ((buffer, info), spill) in arrived {
            if info.truncated {
                self.status.malformed += 1;
                pool.give(buffer);
                continue;
            }
            let arrived = Arrived {
                header: &info.header,
                len: info.len,
                spill,
                tag: info.tag,
            };
            self.intake.finish(buffer, arrived, pool, &mut self.status);
        }
        self.batches += u32::from(received > 0);
        if self.batches >= ASK_EVERY {
            self.batches = 0;
            self.status.dropped += self.socket.overruns();
        }
        taken + self.intake.hand_over(most - taken, into)
    }

    fn send(&mut self, _now: Timestamp, pool: &mut Pool, frames: &mut Vec<PacketBuf>) {
        let mut done = 0;
        while done < frames.len() {
            match self
                .socket
                .send(frames[done..].iter().map(|frame| frame.data()))
            {
                Ok(sent) => {
                    for frame in &frames[done..done + sent] {
                        self.status.sent += 1;
                        self.status.sent_bytes += frame.data().len() as u64;
                    }
                    done += sent;
                    if sent == 0 {
                        break;
                    }
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN | libc::ENOBUFS) => break,
                    // Too long or too short, or the interface is down or gone: the first one
                    // is given up.
                    _ => {
                        self.status.dropped += 1;
                        done += 1;
                    }
                },
            }
        }
        frames.drain(..done).for_each(|frame| pool.give(frame));
    }

    fn status(&self) -> PortStatus {
        self.status.clone()
    }

    fn wake(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn prepare_sleep(&mut self, _sleeping: bool) -> bool {
        !self.intake.is_empty()
    }
}
