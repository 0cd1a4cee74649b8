//! A vhost-user front-end for tests: the protocol by the `vhost` crate, the rings written by
//! hand, so that anything can stand in them.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses a part of it"
)]

pub mod visits;

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vesper_daemon::port::vhost_user::{Role, VhostUser, VhostUserOptions};
use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};
use vmm_sys_util::eventfd::EventFd;

/// Where the guest and the front-end see the memory.
pub const GUEST: u64 = 0x10_0000;
pub const USER: u64 = 0x7000_0000_0000;
pub const MEMORY: usize = 4 << 20;

/// Entries of each ring.
pub const SIZE: u16 = 256;

/// Where buffers are, behind the rings.
pub const BUFFERS: u64 = GUEST + 0x10_0000;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub mod feature {
    pub const CSUM: u64 = 1 << 0;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const PROTOCOL: u64 = 1 << 30;
    pub const VERSION_1: u64 = 1 << 32;
    pub const USUAL: u64 = CSUM | HOST_TSO4 | MRG_RXBUF | PROTOCOL | VERSION_1;
}

/// A directory for sockets that goes with it.
#[derive(Debug)]
pub struct Directory(pub PathBuf);

impl Directory {
    pub fn new(name: &str) -> Self {
        let name = format!("vesper-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn options(socket: &Path, pairs: u16) -> VhostUserOptions {
    VhostUserOptions {
        socket: socket.to_owned(),
        role: Role::Server { permissions: 0o600 },
        queue_pairs: pairs,
        mtu: 9000,
        sealed: false,
    }
}

pub fn open(socket: &Path, pairs: u16) -> VhostUser {
    VhostUser::open(&options(socket, pairs)).unwrap()
}

pub struct FrontEnd {
    pub protocol: Frontend,
    pub memory: MmapRegion,
    pub region: VhostUserMemoryRegionInfo,
    pub calls: Vec<EventFd>,
    pub kicks: Vec<EventFd>,
    available: Vec<u16>,
}

impl FrontEnd {
    /// Connects, and sets up one queue pair.
    pub fn connect(socket: &Path, features: u64) -> Self {
        Self::over(UnixStream::connect(socket).unwrap(), 1, features)
    }

    pub fn over(stream: UnixStream, pairs: usize, features: u64) -> Self {
        let mut protocol = Frontend::from_stream(stream, pairs as u64 * 2);
        protocol.set_owner().unwrap();
        let offered = protocol.get_features().unwrap();
        assert_eq!(features & !offered, 0);
        protocol.set_features(features).unwrap();
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0 {
            let offered = protocol.get_protocol_features().unwrap();
            let wanted = VhostUserProtocolFeatures::REPLY_ACK
                | VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
            assert!(offered.contains(wanted));
            protocol.set_protocol_features(wanted).unwrap();
            // Every message is answered, so that it is done when the call returns.
            protocol.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, MEMORY as u64).unwrap();
        let memory = MmapRegion::from_file(FileOffset::new(file.into(), 0), MEMORY).unwrap();
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: GUEST,
            memory_size: MEMORY as u64,
            userspace_addr: USER,
            mmap_offset: 0,
            mmap_handle: memory.file_offset().unwrap().file().as_raw_fd(),
        };
        protocol.set_mem_table(&[region]).unwrap();
        let mut front_end = Self {
            protocol,
            memory,
            region,
            calls: Vec::new(),
            kicks: Vec::new(),
            available: vec![0; pairs * 2],
        };
        for ring in 0..pairs * 2 {
            front_end.calls.push(EventFd::new(libc_nonblock()).unwrap());
            front_end.kicks.push(EventFd::new(libc_nonblock()).unwrap());
            front_end.start(ring);
        }
        front_end
    }

    /// Sets up a ring from its beginning, and enables it.
    pub fn start(&mut self, ring: usize) {
        let at = (ring * 0x1_0000) as u64;
        for offset in 0..0x2000 {
            self.poke64(at + offset * 8, 0);
        }
        self.available[ring] = 0;
        let config = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: USER + at,
            avail_ring_addr: USER + at + 0x4000,
            used_ring_addr: USER + at + 0x8000,
            log_addr: None,
        };
        self.protocol.set_vring_num(ring, SIZE).unwrap();
        self.protocol.set_vring_base(ring, 0).unwrap();
        self.protocol.set_vring_addr(ring, &config).unwrap();
        let (call, kick) = (&self.calls[ring], &self.kicks[ring]);
        self.protocol.set_vring_call(ring, call).unwrap();
        self.protocol.set_vring_kick(ring, kick).unwrap();
        self.protocol.set_vring_enable(ring, true).unwrap();
    }

    pub fn poke(&self, offset: u64, bytes: &[u8]) {
        let slice = self.memory.as_volatile_slice();
        slice.write_slice(bytes, offset as usize).unwrap();
    }

    pub fn poke64(&self, offset: u64, value: u64) {
        self.poke(offset, &value.to_le_bytes());
    }

    pub fn peek<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let slice = self.memory.as_volatile_slice();
        slice.read_slice(&mut bytes, offset as usize).unwrap();
        bytes
    }

    pub fn descriptor(&self, ring: usize, index: u16, at: u64, len: u32, flags: u16, next: u16) {
        let offset = ring as u64 * 0x1_0000 + u64::from(index) * 16;
        self.descriptor_at(offset, at, len, flags, next);
    }

    pub fn descriptor_at(&self, offset: u64, at: u64, len: u32, flags: u16, next: u16) {
        self.poke64(offset, at);
        let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        self.poke64(offset + 8, rest);
    }

    /// Makes a chain available.
    pub fn offer(&mut self, ring: usize, head: u16) {
        let index = self.available[ring];
        let at = ring as u64 * 0x1_0000 + 0x4000;
        self.poke(at + 4 + 2 * u64::from(index % SIZE), &head.to_le_bytes());
        self.available[ring] = index.wrapping_add(1);
        self.set_available(ring, index.wrapping_add(1));
    }

    pub fn set_available(&self, ring: usize, index: u16) {
        let at = ring * 0x1_0000 + 0x4002;
        let slice = self.memory.as_volatile_slice();
        slice.store(index.to_le(), at, Ordering::Release).unwrap();
    }

    pub fn used(&self, ring: usize) -> u16 {
        u16::from_le_bytes(self.peek(ring as u64 * 0x1_0000 + 0x8002))
    }

    /// Chains that were made available and have not come back.
    pub fn outstanding(&self, ring: usize) -> u16 {
        self.available[ring].wrapping_sub(self.used(ring))
    }

    /// Head and length of an entry of the used ring.
    pub fn used_entry(&self, ring: usize, index: u16) -> (u32, u32) {
        let at = ring as u64 * 0x1_0000 + 0x8004 + 8 * u64::from(index % SIZE);
        let bytes: [u8; 8] = self.peek(at);
        let whole = u64::from_le_bytes(bytes);
        (whole as u32, (whole >> 32) as u32)
    }

    /// Sends a frame with this virtio-net header in one descriptor.
    pub fn transmit(&mut self, header: &[u8; 12], frame: &[u8]) {
        let slot = self.available[1] % SIZE;
        let at = BUFFERS + u64::from(slot) * 2048;
        self.poke(at - GUEST, header);
        self.poke(at - GUEST + 12, frame);
        self.descriptor(1, slot, at, frame.len() as u32 + 12, 0, 0);
        self.offer(1, slot);
    }

    /// Posts a buffer of `len` bytes to receive into.
    pub fn post(&mut self, len: u32) {
        let slot = self.available[0] % SIZE;
        let at = BUFFERS + 0x10_0000 + u64::from(slot) * 2048;
        self.descriptor(0, slot, at, len, WRITE, 0);
        self.offer(0, slot);
    }

    /// What was written into the buffer that was posted as the n-th one.
    pub fn posted(&self, n: u16, len: usize) -> Vec<u8> {
        let at = BUFFERS - GUEST + 0x10_0000 + u64::from(n % SIZE) * 2048;
        let mut bytes = vec![0; len];
        let slice = self.memory.as_volatile_slice();
        slice.read_slice(&mut bytes, at as usize).unwrap();
        bytes
    }
}

const fn libc_nonblock() -> i32 {
    0o4000
}
