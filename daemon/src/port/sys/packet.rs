//! Packet sockets: batches of frames with the virtio-net header and the VLAN tag that the kernel
//! keeps apart.

use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use super::interface::check;
use crate::port::virtio_net::HEADER_LEN;

/// Frames that one call moves at most.
pub(in crate::port) const BATCH: usize = 64;

/// Room for the one control message that there is.
const CONTROL: usize = 64;

/// A packet socket bound to one interface.
#[derive(Debug)]
pub(in crate::port) struct PacketSocket(OwnedFd);

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

/// Aligned as a control message has to be.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL]);

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
        let socket = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        for option in [
            libc::PACKET_AUXDATA,
            libc::PACKET_VNET_HDR,
            libc::PACKET_IGNORE_OUTGOING,
            libc::PACKET_QDISC_BYPASS,
        ] {
            socket.set(option, &1i32)?;
        }
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
        Ok(socket)
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
        self.set(libc::PACKET_ADD_MEMBERSHIP, &membership)
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
                self.0.as_raw_fd(),
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
        &self,
        rooms: impl Iterator<Item = (&'a mut [u8], &'a mut [u8])>,
        infos: &mut [Info; BATCH],
    ) -> io::Result<usize> {
        let mut vectors = [[NO_VECTOR; 3]; BATCH];
        let mut controls = [Control([0; CONTROL]); BATCH];
        let mut messages = [NO_MESSAGE; BATCH];
        let mut count = 0;
        let parts = rooms.zip(infos.iter_mut()).zip(&mut vectors);
        let parts = parts.zip(&mut controls).zip(&mut messages);
        for (((((data, spill), info), vectors), control), message) in parts {
            *vectors = [vector(&mut info.header), vector(data), vector(spill)];
            message.msg_hdr.msg_iov = vectors.as_mut_ptr();
            message.msg_hdr.msg_iovlen = vectors.len();
            message.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
            message.msg_hdr.msg_controllen = CONTROL;
            count += 1;
        }
        // SAFETY: the first `count` messages point to vectors and control buffers that live
        // until the call returns, and those to the headers and rooms, which are lent mutably.
        let received = unsafe {
            libc::recvmmsg(
                self.0.as_raw_fd(),
                messages.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        let received = number(received)?;
        let parts = infos.iter_mut().zip(&messages).zip(&controls);
        for ((info, message), control) in parts.take(received) {
            info.len = (message.msg_len as usize).saturating_sub(HEADER_LEN);
            info.truncated = message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            info.tag = tag(&control.0, message.msg_hdr.msg_controllen);
        }
        Ok(received)
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
                self.0.as_raw_fd(),
                messages.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT,
            )
        };
        number(sent)
    }

    fn set<T>(&self, option: libc::c_int, value: &T) -> io::Result<()> {
        // SAFETY: each caller passes the type of its option, with its size, and it lives until
        // the call returns.
        check(unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                option,
                ptr::from_ref(value).cast(),
                mem::size_of::<T>() as libc::socklen_t,
            )
        })
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
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

/// The VLAN tag in the control message of a packet socket (`struct tpacket_auxdata`).
fn tag(control: &[u8; CONTROL], len: usize) -> Option<(u16, u16)> {
    const HEADER: usize = mem::size_of::<libc::cmsghdr>();
    const AUXDATA: usize = mem::size_of::<libc::tpacket_auxdata>();
    let message = control.get(..len.min(CONTROL))?;
    let word = |at: usize| Some(i32::from_ne_bytes(*message.get(at..)?.first_chunk()?));
    let half = |at: usize| Some(u16::from_ne_bytes(*message.get(at..)?.first_chunk()?));
    if message.len() < HEADER + AUXDATA
        || (word(8)?, word(12)?) != (libc::SOL_PACKET, libc::PACKET_AUXDATA)
    {
        return None;
    }
    let offset = |member: usize| HEADER + member;
    let status = word(offset(mem::offset_of!(libc::tpacket_auxdata, tp_status)))? as u32;
    let contents = half(offset(mem::offset_of!(libc::tpacket_auxdata, tp_vlan_tci)))?;
    let kind = half(offset(mem::offset_of!(libc::tpacket_auxdata, tp_vlan_tpid)))?;
    let kind = match status & libc::TP_STATUS_VLAN_TPID_VALID {
        0 => 0x8100,
        _ => kind,
    };
    (status & libc::TP_STATUS_VLAN_VALID != 0).then_some((kind, contents))
}
