//! Virtual machines over vhost-user: the front-end (QEMU, cloud-hypervisor, DPDK) shares the
//! memory of its guest and tells us where the rings of its virtio-net device are; the worker
//! polls them.
//!
//! The protocol is rust-vmm's (`vhost`), on a thread of its own per port. The rings are walked
//! by `split`, in place of `virtio-queue`, whose objects translate the addresses of a ring
//! anew for every access; that costs more than the frame itself. The accesses are those of
//! `vm-memory`, checked and volatile.

mod device;
mod memory;
mod ring;
mod session;
mod split;
mod transfer;

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use nix::poll::PollTimeout;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent};
use vesper_esp::{Buffer, PacketBuf};
use vesper_sa::Timestamp;

use super::{Incoming, Pool, Port, PortStatus};
use device::{Device, Limits};
use memory::Memory;
use ring::{Next, Parts, Ring};
use session::Session;
pub use session::{Role, SocketError};
use split::Window;
use transfer::{Taken, put, take};

/// What a vhost-user port is made of.
#[derive(Clone, Debug)]
pub struct VhostUserOptions {
    /// The path of the socket.
    pub socket: PathBuf,
    /// Which side makes it.
    pub role: Role,
    /// Queue pairs that the guest may have, 1 to 64.
    pub queue_pairs: u16,
    /// The longest IP packet, in bytes.
    pub mtu: u16,
    /// Refuse memory of which the file is not sealed against shrinking. A front-end that cuts
    /// its file would end this process with a fatal signal; it is the hypervisor that could, a
    /// guest can not.
    pub sealed: bool,
}

/// Chains of a guest during a visit to one of its rings.
#[derive(Debug, Default)]
struct Hands {
    window: Window,
    parts: Parts,
}

/// Queue pairs that a port may have.
pub const MOST_QUEUE_PAIRS: u16 = 64;

/// Buffers of the guest that one frame may be spread over.
const MOST_CHAINS: usize = 64;

/// Kicks that are taken at once.
const KICKS: usize = 64;

/// A virtual machine behind a vhost-user socket.
#[derive(Debug)]
pub struct VhostUser {
    device: Arc<Mutex<Device>>,
    /// Ends the thread before the rest goes.
    _session: Session,
    kicks: Arc<Epoll>,
    /// Segments of which the buffers are taken, and the worker's share was full.
    backlog: VecDeque<Incoming>,
    hands: Hands,
    /// The pair whose turn is next.
    turn: usize,
    status: PortStatus,
}

impl VhostUser {
    /// Makes or looks for the socket, and serves whoever is at its other end.
    pub fn open(options: &VhostUserOptions) -> Result<Self, SocketError> {
        let kicks = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(|error| session::failed(&options.socket, error.into()))?;
        let kicks = Arc::new(kicks);
        let limits = Limits {
            pairs: options.queue_pairs.clamp(1, MOST_QUEUE_PAIRS),
            sealed: options.sealed,
        };
        let device = Arc::new(Mutex::new(Device::new(limits, Arc::clone(&kicks))));
        let session = Session::start(&options.socket, options.role, Arc::clone(&device))?;
        Ok(Self {
            device,
            _session: session,
            kicks,
            backlog: VecDeque::with_capacity(super::virtio_net::MOST_SEGMENTS),
            hands: Hands::default(),
            turn: 0,
            status: PortStatus {
                mtu: options.mtu.into(),
                ..PortStatus::default()
            },
        })
    }

    /// The longest frame for the guest: with an Ethernet header and a VLAN tag.
    const fn longest(&self) -> usize {
        self.status.mtu as usize + 18
    }
}

/// The device, unless a message of the front-end is just changing it.
fn visit(device: &Mutex<Device>) -> Option<MutexGuard<'_, Device>> {
    match device.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(PoisonError::into_inner(poisoned)),
        Err(TryLockError::WouldBlock) => None,
    }
}

impl Port for VhostUser {
    fn receive(
        &mut self,
        _now: Timestamp,
        pool: &mut Pool,
        most: usize,
        into: &mut Vec<Incoming>,
    ) -> usize {
        let before = into.len();
        let waiting = self.backlog.len().min(most);
        into.extend(self.backlog.drain(..waiting));
        // From here on the backlog is empty, or there is no room.
        if waiting < most
            && let Some(mut device) = visit(&self.device)
        {
            let device = &mut *device;
            let pairs = device.rings.len() / 2;
            let mut budget = most - waiting;
            self.status.up = device.rings.iter().any(Ring::is_ready);
            for step in 0..pairs {
                if budget == 0 {
                    break;
                }
                let index = (self.turn + step) % pairs * 2 + 1;
                let taken = transmitted(
                    device,
                    index,
                    pool,
                    budget,
                    &mut self.hands,
                    into,
                    &mut self.status,
                );
                budget -= taken.min(budget);
            }
            self.turn = (self.turn + 1) % pairs.max(1);
        }
        if into.len() - before > most {
            self.backlog.extend(into.drain(before + most..));
        }
        into.len() - before
    }

    fn send(&mut self, _now: Timestamp, pool: &mut Pool, frames: &mut Vec<PacketBuf>) {
        if frames.is_empty() {
            return;
        }
        let Some(mut device) = visit(&self.device) else {
            return;
        };
        let device = &mut *device;
        // The pairs that the guest uses are the first ones.
        let receiving = device.rings.iter().step_by(2);
        let pairs = receiving.take_while(|ring| ring.is_ready()).count();
        self.status.up = pairs > 0;
        let longest = self.longest();
        let status = &mut self.status;
        if pairs == 0 {
            status.dropped += frames.len() as u64;
            frames.drain(..).for_each(|frame| pool.give(frame));
            return;
        }
        for pair in 0..pairs {
            let share = Share {
                ring: pair * 2,
                has: |frame: &[u8]| pairs == 1 || flow(frame) % pairs == pair,
                longest,
            };
            deliver(device, share, pool, &mut self.hands, frames, status);
        }
    }

    fn status(&self) -> PortStatus {
        self.status.clone()
    }

    fn wake(&self) -> Option<BorrowedFd<'_>> {
        Some(self.kicks.0.as_fd())
    }

    fn prepare_sleep(&mut self, sleeping: bool) -> bool {
        if sleeping && !self.backlog.is_empty() {
            return true;
        }
        // What has been kicked is seen by polling; only new kicks shall wake.
        let mut fired = [EpollEvent::empty(); KICKS];
        let _ = self.kicks.wait(&mut fired, PollTimeout::ZERO);
        let Some(mut device) = visit(&self.device) else {
            return true;
        };
        let device = &mut *device;
        let mut more = false;
        for (index, ring) in device.rings.iter_mut().enumerate() {
            let wanted = sleeping && (index % 2 == 1 || ring.starved);
            let kicked = ring.kick.is_some();
            if let Some((view, mut position)) = ring.open(&device.memory) {
                let available = position.notify(&view, wanted);
                ring.keep(position);
                // A guest without kicks has to be polled.
                more |= available || (wanted && !kicked);
            }
        }
        more
    }
}

/// Takes what a guest has sent on one ring, at most `most` chains. Returns how many there were.
fn transmitted(
    device: &mut Device,
    index: usize,
    pool: &mut Pool,
    most: usize,
    hands: &mut Hands,
    into: &mut Vec<Incoming>,
    status: &mut PortStatus,
) -> usize {
    let (allowed, header_len) = (device.allowed(), device.header_len());
    let Device { memory, rings, .. } = device;
    let memory: &Memory = memory;
    let Some(ring) = rings.get_mut(index) else {
        return 0;
    };
    let Some((view, mut position)) = ring.open(memory) else {
        return 0;
    };
    if !position.look(&view) {
        status.malformed += 1;
        ring.give_up();
        return 0;
    }
    let Hands { window, parts } = hands;
    window.begin(most);
    let mut taken = 0;
    let frames = into.len();
    while taken < most && into.len() - frames < most {
        let before = position;
        parts.clear(false);
        let head = match position.next(&view, memory, window, parts) {
            Next::Empty => break,
            Next::Malformed(head) => {
                status.malformed += 1;
                head
            }
            Next::Chain(head) => {
                let count = into.len();
                match take(memory, parts, header_len, allowed, pool, into) {
                    Taken::Frames(bytes) => {
                        status.received += (into.len() - count) as u64;
                        status.received_bytes += bytes as u64;
                    }
                    Taken::Malformed => status.malformed += 1,
                    Taken::NoBuffers => {
                        position = before;
                        break;
                    }
                }
                head
            }
        };
        position.complete(&view, head, 0);
        taken += 1;
    }
    let interrupt = position.publish(&view);
    ring.keep(position);
    if interrupt {
        ring.interrupt();
    }
    taken
}

/// What a ring of a guest gets.
struct Share<F> {
    ring: usize,
    /// Whether a frame is for it.
    has: F,
    /// Longer ones it never gets.
    longest: usize,
}

/// Gives a guest those frames that are for one of its rings, as far as it has buffers.
fn deliver(
    device: &mut Device,
    share: Share<impl Fn(&[u8]) -> bool>,
    pool: &mut Pool,
    hands: &mut Hands,
    frames: &mut Vec<PacketBuf>,
    status: &mut PortStatus,
) {
    let (merges, header_len) = (device.merges(), device.header_len());
    let Device { memory, rings, .. } = device;
    let memory: &Memory = memory;
    let Some(ring) = rings.get_mut(share.ring) else {
        return;
    };
    let Some((view, mut position)) = ring.open(memory) else {
        return;
    };
    if !position.look(&view) {
        status.malformed += 1;
        ring.give_up();
        return;
    }
    hands.window.begin(frames.len());
    let mut starved = false;
    frames.retain_mut(|frame| {
        if starved || !(share.has)(frame.data()) {
            return true;
        }
        let done = loop {
            if frame.data().len() > share.longest {
                break Offered::TooLong;
            }
            match offer(
                &mut position,
                &view,
                memory,
                hands,
                merges,
                header_len,
                frame,
            ) {
                // The guest's buffers were no use: those are gone, the next ones may be good.
                Offered::Malformed => status.malformed += 1,
                done => break done,
            }
        };
        match done {
            Offered::Sent => {
                status.sent += 1;
                status.sent_bytes += frame.data().len() as u64;
            }
            Offered::Full => {
                starved = true;
                return true;
            }
            Offered::TooLong | Offered::Malformed => status.dropped += 1,
        }
        pool.give(std::mem::take(frame));
        false
    });
    ring.starved = starved;
    let interrupt = position.publish(&view);
    ring.keep(position);
    if interrupt {
        ring.interrupt();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offered {
    Sent,
    /// There are no more buffers.
    Full,
    /// No use of the guest's buffers: they are too small for it.
    TooLong,
    /// The guest's buffers made no sense and were given back.
    Malformed,
}

fn offer(
    position: &mut split::Split,
    view: &split::SplitView<'_>,
    memory: &Memory,
    hands: &mut Hands,
    merges: bool,
    header_len: usize,
    frame: &PacketBuf,
) -> Offered {
    let before = *position;
    let data = frame.data();
    let needed = header_len + data.len();
    let mut room = 0;
    let Hands { window, parts } = hands;
    parts.clear(true);
    let most = if merges { MOST_CHAINS } else { 1 };
    let mut whole = true;
    while whole && room < needed && parts.chains().len() < most {
        match position.next(view, memory, window, parts) {
            Next::Empty => {
                *position = before;
                return Offered::Full;
            }
            Next::Chain(head) => {
                parts.end_chain(head, parts.bytes() - room);
                room = parts.bytes();
            }
            Next::Malformed(head) => {
                parts.end_chain(head, 0);
                whole = false;
            }
        }
    }
    let count = parts.chains().len();
    if whole && room < needed {
        *position = before;
        return Offered::TooLong;
    }
    let mut header = [0; super::virtio_net::HEADER_LEN + 2];
    header[10..].copy_from_slice(&(count as u16).to_le_bytes());
    let header = &header[..header_len];
    whole = whole && put(memory, parts.as_slice(), header, data);
    let mut left = needed;
    for (head, len) in parts.chains() {
        let written = if whole { left.min(*len) } else { 0 };
        position.complete(view, *head, written as u32);
        left -= written;
    }
    if whole {
        Offered::Sent
    } else {
        Offered::Malformed
    }
}

/// A number that is the same for all frames of a flow: of the addresses, the protocol and the
/// first words of what follows the IP header, where TCP and UDP have their ports.
fn flow(frame: &[u8]) -> usize {
    let mut at = 14;
    if matches!(frame.get(12..14), Some([0x81, 0])) {
        at += 4;
    }
    let Some(ip) = frame.get(at..) else { return 0 };
    let (addresses, ports) = match ip.first().map(|first| first >> 4) {
        Some(4) => (12..20, usize::from(ip[0] & 0xf) * 4),
        Some(6) => (8..40, 40),
        _ => return 0,
    };
    let mix = |hash: u64, bytes: &[u8]| {
        bytes.iter().fold(hash, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
        })
    };
    let hash = mix(0xcbf2_9ce4_8422_2325, ip.get(addresses).unwrap_or(&[]));
    let hash = mix(hash, ip.get(ports..ports + 4).unwrap_or(&[]));
    (hash >> 32) as usize
}
