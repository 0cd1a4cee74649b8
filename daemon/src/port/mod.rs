//! Ports: where frames come from and go to. A virtual machine is behind one, the network behind
//! another; each kind is one module behind [`Port`].

mod af_packet;
mod cable;
mod generator;
mod intake;
mod link;
mod loopback;
mod open;
mod pcap;
mod sink;
mod sys;
mod tap;
pub mod vhost_user;
pub mod virtio_net;

use std::fmt;
use std::os::fd::BorrowedFd;

use vesper_esp::{Buffer, PacketBuf};
use vesper_offload::{HEADROOM, HostSend, MacAddress};
use vesper_sa::Timestamp;

pub use af_packet::AfPacket;
pub use cable::Cable;
pub use generator::Generator;
pub use loopback::Loopback;
pub use open::{Opener, Place, PortError};
pub use pcap::Pcap;
pub use sink::Sink;
pub use tap::{MOST_TAP_QUEUES, Tap};

/// A frame that came out of a port, with [`HEADROOM`] in front and [`TAILROOM`] behind it, and
/// what its sender leaves to the adapter.
pub type Incoming = HostSend<PacketBuf>;

/// One end of a link, polled by the one worker that owns it.
///
/// Nothing here may block. A call does at most what it is asked to do, so that one port can not
/// keep a worker from the others.
pub trait Port: Send + fmt::Debug {
    /// Takes at most `most` frames that have come in, in buffers out of `pool`; without buffers
    /// it leaves them where they are. Returns how many it has appended.
    fn receive(
        &mut self,
        now: Timestamp,
        pool: &mut Pool,
        most: usize,
        into: &mut Vec<Incoming>,
    ) -> usize;

    /// Sends frames from the front of `frames` and gives their buffers back to `pool`. What
    /// the link has no room for right now stays in `frames`; what it can never carry is dropped
    /// and counted in [`PortStatus::dropped`].
    fn send(&mut self, now: Timestamp, pool: &mut Pool, frames: &mut Vec<PacketBuf>);

    /// How the link is.
    fn status(&self) -> PortStatus;

    /// Becomes readable when there is something to receive or a full link has room again; a
    /// worker that has nothing to do sleeps on these. `None`: the port has to be polled.
    fn wake(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Called before the worker sleeps on [`wake`](Self::wake) and after it woke: a port that
    /// can do without notifications while it is polled asks for them here. Returns whether
    /// there is something to do, in which case the worker does not sleep.
    fn prepare_sleep(&mut self, sleeping: bool) -> bool {
        let _ = sleeping;
        false
    }
}

/// How the link of a port is, and what has passed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortStatus {
    /// Frames can pass.
    pub up: bool,
    /// The address of the interface, where it has one of its own.
    pub mac: Option<MacAddress>,
    /// The longest IP packet that the link carries, in bytes.
    pub mtu: u32,
    /// Frames received from the link.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames sent to the link.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Frames from the link that were not usable: too long, too short, against the protocol.
    pub malformed: u64,
    /// Frames that the link can not carry, or that were given up.
    pub dropped: u64,
}

/// Room behind a frame that suffices for what protection adds.
pub const TAILROOM: usize = PacketBuf::TAILROOM;

/// How many turns ahead a buffer's memory is asked for.
const AHEAD: usize = 4;

/// Appends a frame of which nothing is left to the adapter. In place: a frame that is handed to
/// [`Vec::push`] goes through memory once more.
#[inline(always)]
fn append(into: &mut Vec<Incoming>, frame: PacketBuf) {
    into.extend(std::iter::once(Incoming::new(frame)));
}

/// Buffers of one size that a worker's ports share. Never allocates after it was filled.
#[derive(Debug)]
pub struct Pool {
    free: Vec<PacketBuf>,
    /// Bytes of a frame that fit.
    frame: usize,
    capacity: usize,
}

impl Pool {
    /// `capacity` buffers for frames of up to `frame` bytes.
    pub fn new(capacity: usize, frame: usize) -> Self {
        let mut free = Vec::with_capacity(capacity);
        free.resize_with(capacity, || Self::buffer(frame));
        Self {
            free,
            frame,
            capacity,
        }
    }

    /// Makes so many buffers more.
    pub fn grow(&mut self, count: usize) {
        self.capacity += count;
        let free = self.free.len() + count;
        self.free.resize_with(free, || Self::buffer(self.frame));
    }

    /// The longest frame that a buffer takes, in bytes.
    pub const fn frame_capacity(&self) -> usize {
        self.frame
    }

    /// Buffers that are free.
    pub const fn free(&self) -> usize {
        self.free.len()
    }

    /// A free buffer of which all memory is its data: to be posted, or to be read into behind
    /// [`HEADROOM`] bytes and trimmed.
    pub fn take(&mut self) -> Option<PacketBuf> {
        let whole = HEADROOM + self.frame + TAILROOM;
        loop {
            let mut buffer = self.free.pop()?;
            // A buffer from elsewhere that is too small is not worth keeping.
            if buffer.refill(&[], 0) && buffer.grow_back(whole) {
                return Some(buffer);
            }
        }
    }

    /// A free buffer whose data are `len` bytes of unspecified content, with [`HEADROOM`] in front
    /// and [`TAILROOM`] behind them; `None` if there is none, or the frame is too long.
    // Inlined, since a buffer that is returned in memory is written in words and read in pairs of
    // them, which has to wait until the words have left the processor's store queue.
    #[inline(always)]
    pub fn take_for(&mut self, len: usize) -> Option<PacketBuf> {
        if len > self.frame {
            return None;
        }
        loop {
            let mut buffer = self.free.pop()?;
            self.prefetch();
            // A buffer from elsewhere that is too small is not worth keeping.
            if buffer.refill(&[], HEADROOM) && buffer.grow_back(len) {
                return Some(buffer);
            }
        }
    }

    /// Asks for the memory that a frame of `len` bytes will be written to, so many buffers after
    /// the one that is taken next. Stores to lines that are not in the first cache wait for one
    /// another.
    #[inline(always)]
    pub fn prefetch_frame(&self, after: usize, len: usize) {
        let next = self.free.len().wrapping_sub(after + 1);
        if let Some(buffer) = self.free.get(next) {
            let first = buffer.data().as_ptr();
            for line in (0..len).step_by(64) {
                sys::prefetch_to_write(first.wrapping_add(line));
            }
        }
    }

    /// A copy of `frame` in a free buffer; `None` if there is none, or the frame is too long.
    #[inline(always)]
    pub fn copy(&mut self, frame: &[u8]) -> Option<PacketBuf> {
        if frame.len() > self.frame {
            return None;
        }
        let mut buffer = self.free.pop()?;
        self.prefetch();
        if buffer.refill(frame, HEADROOM) {
            Some(buffer)
        } else {
            self.free.push(buffer);
            None
        }
    }

    /// Takes a buffer back.
    #[inline]
    pub fn give(&mut self, buffer: PacketBuf) {
        if self.free.len() < self.capacity {
            self.free.push(buffer);
        }
    }

    /// Asks for the memory of a buffer whose turn comes soon.
    #[inline]
    fn prefetch(&self) {
        let next = self.free.len().wrapping_sub(AHEAD);
        if let Some(buffer) = self.free.get(next) {
            let first = buffer.data().as_ptr();
            sys::prefetch_to_write(first);
            sys::prefetch_to_write(first.wrapping_add(64));
        }
    }

    fn buffer(frame: usize) -> PacketBuf {
        PacketBuf::with_room(&[], HEADROOM, frame + TAILROOM)
    }
}
