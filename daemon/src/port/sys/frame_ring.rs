//! The ring of received frames that a packet socket shares with the kernel (`PACKET_RX_RING`,
//! version 2, in which each frame is handed over at once): a frame costs no system call.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicU32, Ordering};

use super::packet::set;
use super::prefetch::prefetch_to_read;
use crate::port::virtio_net::HEADER_LEN;

/// Bytes of all slots.
const BYTES: usize = 8 << 20;

/// Bytes that the kernel allocates in one piece.
const BLOCK: usize = 64 << 10;

/// Bytes of a slot: at least, at most. Longer frames come through the socket's queue.
const SLOT: [usize; 2] = [2 << 10, 16 << 10];

/// Bytes in front of a frame in its slot: the kernel's header, room for an address, alignment.
const FRONT: usize = 128;

/// The slots, mapped until it is dropped.
#[derive(Debug)]
pub(super) struct FrameRing {
    map: NonNull<u8>,
    /// Bytes of a slot.
    slot: usize,
    /// The slot that is filled next.
    next: usize,
}

// SAFETY: the mapping is this ring's alone, and is used through `&mut` only.
unsafe impl Send for FrameRing {}

/// A frame in its slot.
pub(super) struct Slot<'a> {
    /// The virtio-net header.
    pub(super) header: [u8; HEADER_LEN],
    /// The frame, as far as it fits.
    pub(super) bytes: &'a [u8],
    /// Bytes of the frame.
    pub(super) len: usize,
    /// The VLAN tag that the kernel has taken off: type and contents.
    pub(super) tag: Option<(u16, u16)>,
    /// It does not fit, but is in the socket's queue as a whole.
    pub(super) is_queued: bool,
}

impl FrameRing {
    /// Makes the ring of a socket to which frames of up to `longest` bytes come, as a rule.
    pub(super) fn map(socket: BorrowedFd<'_>, longest: usize) -> io::Result<Self> {
        let slot = (longest + FRONT).next_power_of_two();
        let slot = slot.clamp(SLOT[0], SLOT[1]);
        set(
            socket,
            libc::PACKET_VERSION,
            &(libc::tpacket_versions::TPACKET_V2 as libc::c_int),
        )?;
        set(socket, libc::PACKET_COPY_THRESH, &1i32)?;
        let request = libc::tpacket_req {
            tp_block_size: BLOCK as u32,
            tp_block_nr: (BYTES / BLOCK) as u32,
            tp_frame_size: slot as u32,
            tp_frame_nr: (BYTES / slot) as u32,
        };
        set(socket, libc::PACKET_RX_RING, &request)?;
        // SAFETY: a new mapping, wherever the kernel likes, of as many bytes as the ring has.
        let map = unsafe {
            libc::mmap(
                ptr::null_mut(),
                BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                socket.as_raw_fd(),
                0,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let map = NonNull::new(map.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { map, slot, next: 0 })
    }

    /// Shows the next frame to `read`, and gives its slot back; `None` if there is none.
    pub(super) fn take<R>(&mut self, read: impl FnOnce(Slot<'_>) -> R) -> Option<R> {
        let start = self.at(self.next);
        // SAFETY: a slot begins with its status, which is aligned since slots are, and the kernel
        // changes it while we look: only atomic accesses are made to it.
        let status = unsafe { AtomicU32::from_ptr(start.as_ptr().cast()) };
        if status.load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
            return None;
        }
        self.next = (self.next + 1) % (BYTES / self.slot);
        // Another processor has written it.
        let following = self.at(self.next).as_ptr();
        prefetch_to_read(following);
        prefetch_to_read(following.wrapping_add(FRONT / 2));
        // SAFETY: a slot begins with this header, of numbers only; the kernel has handed it over,
        // and writes to it no more until the status is stored below.
        let head = unsafe { start.cast::<libc::tpacket2_hdr>().read() };
        let (mac, kept) = (usize::from(head.tp_mac), head.tp_snaplen as usize);
        let inside = mac >= HEADER_LEN && mac + kept <= self.slot;
        let result = inside.then(|| {
            // SAFETY: these bytes are within the slot, which was handed over, see above.
            let bytes = unsafe {
                slice::from_raw_parts(start.as_ptr().add(mac - HEADER_LEN), HEADER_LEN + kept)
            };
            let (header, bytes) = bytes.split_at(HEADER_LEN);
            let mut copied = [0; HEADER_LEN];
            copied.copy_from_slice(header);
            read(Slot {
                header: copied,
                bytes,
                len: head.tp_len as usize,
                tag: tag(&head),
                is_queued: head.tp_status & libc::TP_STATUS_COPY != 0,
            })
        });
        status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
        result
    }

    fn at(&self, slot: usize) -> NonNull<u8> {
        // SAFETY: there are BYTES / slot slots, and `next` is always less.
        unsafe { self.map.add(slot * self.slot) }
    }
}

impl Drop for FrameRing {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nothing refers to it any more.
        unsafe { libc::munmap(self.map.as_ptr().cast(), BYTES) };
    }
}

fn tag(head: &libc::tpacket2_hdr) -> Option<(u16, u16)> {
    let kind = match head.tp_status & libc::TP_STATUS_VLAN_TPID_VALID {
        0 => 0x8100,
        _ => head.tp_vlan_tpid,
    };
    (head.tp_status & libc::TP_STATUS_VLAN_VALID != 0).then_some((kind, head.tp_vlan_tci))
}
