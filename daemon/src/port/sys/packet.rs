//! Packet sockets: frames with the virtio-net header and the VLAN tag that the kernel keeps apart,
//! received through a ring and sent in batches.

use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use super::frame_ring::FrameRing;
use super::interface::{check, interface};
use crate::port::virtio_net::HEADER_LEN;

/// Frames that one call moves at most.
pub(in crate::port) const BATCH: usize = 64;

/// What an Ethernet frame has beside its IP packet: addresses, type, two VLAN tags.
const ETHERNET: usize = 14 + 8;

/// A packet socket bound to one interface.
#[derive(Debug)]
pub(in crate::port) struct PacketSocket {
    socket: OwnedFd,
    ring: FrameRing,
}

/// What came with a frame.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::port) struct Info {
    /// The virtio-net header.
    pub(in crate::port) header: [u8; HEADER_LEN],
    /// Bytes of the frame.
    pub(in crate::port) len: usize,
    /// It was longer than the room for it.
    pub(in crate::port) truncated: bool,
    /// The tag that the kernel has taken off: type and contents.
    pub(in crate::port) tag: Option<(u16, u16)>,
}

impl PacketSocket {
    /// Binds to an interface: all protocols, without the frames that this host sends there
    /// itself, past the queueing discipline.
    pub(in crate::port) fn open(name: &str) -> io::Result<Self> {
        let index = index(name)?;
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // Protocol 0: nothing comes before it is bound.
        // SAFETY: takes numbers only.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        check(fd)?;
        // SAFETY: the descriptor is new and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        for option in [
            libc::PACKET_VNET_HDR,
            libc::PACKET_IGNORE_OUTGOING,
            libc::PACKET_QDISC_BYPASS,
        ] {
            set(socket.as_fd(), option, &1i32)?;
        }
        let mtu = interface(socket.as_fd(), name)?.mtu as usize;
        let ring = FrameRing::map(socket.as_fd(), mtu + ETHERNET)?;
        // SAFETY: all members are numbers, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index;
        // SAFETY: the address is of this type and length, and lives until the call returns.
        check(unsafe {
            libc::bind(
                fd,
                ptr::from_ref(&address).cast(),
                mem::size_of_val(&address) as libc::socklen_t,
            )
        })?;
        Ok(Self { socket, ring })
    }

    /// Has the interface take frames for other addresses than its own, as long as the socket
    /// is open.
    pub(in crate::port) fn take_all(&self, name: &str) -> io::Result<()> {
        let membership = libc::packet_mreq {
            mr_ifindex: index(name)?,
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        set(self.as_fd(), libc::PACKET_ADD_MEMBERSHIP, &membership)
    }

    /// Frames that the kernel dropped since the last call, for want of room in the socket.
    pub(in crate::port) fn overruns(&self) -> u64 {
        let mut statistics = libc::tpacket_stats {
            tp_packets: 0,
            tp_drops: 0,
        };
        let mut len = mem::size_of_val(&statistics) as libc::socklen_t;
        // SAFETY: the value is of the type of this option, `len` its size; both live until the
        // call returns.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                ptr::from_mut(&mut statistics).cast(),
                &mut len,
            )
        };
        match result {
            0 => statistics.tp_drops.into(),
            _ => 0,
        }
    }

    /// Receives at most [`BATCH`] frames, as many as there are, each into one of the `rooms`
    /// and what does not fit there into the second part of it. Returns how many.
    pub(in crate::port) fn receive<'a>(
        &mut self,
        rooms: impl Iterator<Item = (&'a mut [u8], &'a mut [u8])>,
        infos: &mut [Info; BATCH],
    ) -> usize {
        let mut count = 0;
        for ((data, spill), info) in rooms.zip(infos) {
            let is_queued = self.ring.take(|slot| {
                info.header = slot.header;
                info.len = slot.len;
                info.tag = slot.tag;
                info.truncated = slot.bytes.len() < slot.len;
                if !slot.is_queued {
                    let inside = slot.bytes.len().min(data.len());
                    let (first, rest) = slot.bytes.split_at(inside);
                    data[..inside].copy_from_slice(first);
                    match spill.get_mut(..rest.len()) {
                        Some(spill) => spill.copy_from_slice(rest),
                        None => info.truncated = true,
                    }
                }
                slot.is_queued
            });
            match is_queued {
                None => break,
                Some(false) => {}
                Some(true) => self.receive_queued(data, spill, info),
            }
            count += 1;
        }
        count
    }

    /// Receives the frame that did not fit into its slot of the ring.
    fn receive_queued(&self, data: &mut [u8], spill: &mut [u8], info: &mut Info) {
        let mut vectors = [vector(&mut info.header), vector(data), vector(spill)];
        let mut message = NO_MESSAGE.msg_hdr;
        message.msg_iov = vectors.as_mut_ptr();
        message.msg_iovlen = vectors.len();
        // SAFETY: the message points to vectors that live until the call returns, and those to
        // header and rooms, which are lent mutably.
        let received =
            unsafe { libc::recvmsg(self.socket.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) };
        let len = usize::try_from(received).unwrap_or(0);
        info.len = len.saturating_sub(HEADER_LEN);
        info.truncated = len < HEADER_LEN || message.msg_flags & libc::MSG_TRUNC != 0;
    }

    /// Sends at most [`BATCH`] frames. Returns how many.
    pub(in crate::port) fn send<'a>(
        &self,
        frames: impl Iterator<Item = &'a [u8]>,
    ) -> io::Result<usize> {
        let header = [0u8; HEADER_LEN];
        let mut vectors = [[NO_VECTOR; 2]; BATCH];
        let mut messages = [NO_MESSAGE; BATCH];
        let mut count = 0;
        let parts = frames.zip(&mut vectors);
        for ((frame, vectors), message) in parts.zip(&mut messages) {
            *vectors = [constant(&header), constant(frame)];
            message.msg_hdr.msg_iov = vectors.as_mut_ptr();
            message.msg_hdr.msg_iovlen = vectors.len();
            count += 1;
        }
        // SAFETY: the first `count` messages point to vectors that live until the call returns,
        // and those to the header and the frames, which are lent and only read.
        let sent = unsafe {
            libc::sendmmsg(
                self.socket.as_raw_fd(),
                messages.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT,
            )
        };
        number(sent)
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

const NO_VECTOR: libc::iovec = libc::iovec {
    iov_base: ptr::null_mut(),
    iov_len: 0,
};

// SAFETY: all members are numbers and pointers, for which zero is a value.
const NO_MESSAGE: libc::mmsghdr = unsafe { mem::zeroed() };

fn vector(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    }
}

/// For sending, where nothing is written through it.
fn constant(bytes: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

fn number(result: libc::c_int) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn index(name: &str) -> io::Result<libc::c_int> {
    let name = CString::new(name)?;
    // SAFETY: the name ends with a zero byte and lives until the call returns.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index as libc::c_int),
    }
}

/// Sets an option of a packet socket.
pub(super) fn set<T>(socket: BorrowedFd<'_>, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: each caller passes the type of its option, with its size, and it lives until the call
    // returns.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            ptr::from_ref(value).cast(),
            mem::size_of::<T>() as libc::socklen_t,
        )
    })
}
