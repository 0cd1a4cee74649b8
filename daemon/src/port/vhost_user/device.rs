//! What a front-end has set up: features, memory, rings. It changes this by messages of the
//! vhost-user protocol, on the session's thread; the worker that polls the rings takes the same
//! lock for each visit, and skips the port while a message is being handled.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl, readlink};
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::memory::{Memory, REGIONS, RegionSpec};
use super::ring::Ring;
use crate::port::virtio_net::{Allowed, HEADER_LEN};

/// Feature bits (virtio 1.2 sections 5.1.3 and 6, and the vhost-user protocol).
pub(super) mod feature {
    pub(super) const CSUM: u64 = 1 << 0;
    pub(super) const MTU: u64 = 1 << 3;
    pub(super) const HOST_TSO4: u64 = 1 << 11;
    pub(super) const HOST_TSO6: u64 = 1 << 12;
    pub(super) const HOST_ECN: u64 = 1 << 13;
    pub(super) const MRG_RXBUF: u64 = 1 << 15;
    pub(super) const CTRL_VQ: u64 = 1 << 17;
    pub(super) const CTRL_RX: u64 = 1 << 18;
    pub(super) const MQ: u64 = 1 << 22;
    pub(super) const ANY_LAYOUT: u64 = 1 << 27;
    pub(super) const INDIRECT_DESC: u64 = 1 << 28;
    pub(super) const EVENT_IDX: u64 = 1 << 29;
    pub(super) const PROTOCOL_FEATURES: u64 = 1 << 30;
    pub(super) const VERSION_1: u64 = 1 << 32;
    pub(super) const IN_ORDER: u64 = 1 << 35;
}

/// Longest ring that a front-end may have.
const LONGEST_RING: u32 = 32768;

/// What the operator allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Queue pairs.
    pub(super) pairs: u16,
    /// Refuse memory that can be cut under us.
    pub(super) sealed: bool,
}

/// A device as the front-end has set it up.
#[derive(Debug)]
pub(super) struct Device {
    limits: Limits,
    /// Features that both sides have.
    features: u64,
    /// The front-end has said which.
    is_negotiated: bool,
    pub(super) memory: Memory,
    /// Receive and transmit ring of each pair, in turn.
    pub(super) rings: Vec<Ring>,
    /// An epoll instance with the kicks of all rings.
    kicks: Arc<Epoll>,
    /// What was wrong with the last message that was refused.
    pub(super) refusal: Option<String>,
}

impl Device {
    /// A device that nobody has set up.
    pub(super) fn new(limits: Limits, kicks: Arc<Epoll>) -> Self {
        let mut device = Self {
            limits,
            features: 0,
            is_negotiated: false,
            memory: Memory::default(),
            rings: Vec::new(),
            kicks,
            refusal: None,
        };
        device.reset();
        device
    }

    /// Forgets all that the front-end has said; its memory and descriptors are let go.
    pub(super) fn reset(&mut self) {
        self.features = 0;
        self.is_negotiated = false;
        self.memory = Memory::default();
        self.rings.clear();
        let rings = usize::from(self.limits.pairs) * 2;
        self.rings.resize_with(rings, Ring::default);
    }

    /// Whether the features are agreed upon.
    pub(super) const fn is_negotiated(&self) -> bool {
        self.is_negotiated
    }

    /// What the device can do.
    const fn offered(&self) -> u64 {
        use feature::*;
        let pairs = match self.limits.pairs {
            0 | 1 => 0,
            _ => MQ | CTRL_VQ | CTRL_RX,
        };
        CSUM | HOST_TSO4
            | HOST_TSO6
            | HOST_ECN
            | MTU
            | MRG_RXBUF
            | ANY_LAYOUT
            | INDIRECT_DESC
            | EVENT_IDX
            | PROTOCOL_FEATURES
            | VERSION_1
            | IN_ORDER
            | pairs
    }

    const fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// What the guest may leave to us.
    pub(super) const fn allowed(&self) -> Allowed {
        Allowed {
            checksum: self.has(feature::CSUM),
            tcp4: self.has(feature::HOST_TSO4),
            tcp6: self.has(feature::HOST_TSO6),
        }
    }

    /// Whether a frame for the guest may be spread over several of its buffers.
    pub(super) const fn merges(&self) -> bool {
        self.has(feature::MRG_RXBUF)
    }

    /// Bytes of the header in front of each frame: the number of buffers is part of it for all
    /// but the oldest guests.
    pub(super) const fn header_len(&self) -> usize {
        if self.has(feature::VERSION_1 | feature::MRG_RXBUF) {
            HEADER_LEN + 2
        } else {
            HEADER_LEN
        }
    }

    fn ring(&mut self, index: u32) -> Result<&mut Ring> {
        let count = self.rings.len();
        match self.rings.get_mut(index as usize) {
            Some(ring) => Ok(ring),
            None => {
                self.refusal = Some(format!("ring {index} of {count}"));
                Err(Error::InvalidParam)
            }
        }
    }

    fn refuse<T>(&mut self, why: impl ToString) -> Result<T> {
        self.refusal = Some(why.to_string());
        Err(Error::InvalidParam)
    }

    /// Only eventfds are taken: nothing else may be read from or written to without blocking.
    fn event(&mut self, file: File) -> Result<File> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let is_event = readlink(path, Vec::new())
            .is_ok_and(|target| target.as_bytes() == b"anon_inode:[eventfd]");
        let flags = fcntl_getfl(&file).unwrap_or(OFlags::empty());
        if !is_event || fcntl_setfl(&file, flags | OFlags::NONBLOCK).is_err() {
            return self.refuse("a kick or call descriptor is no eventfd");
        }
        Ok(file)
    }

    fn add(&mut self, region: RegionSpec, file: File) -> Result<()> {
        let sealed = self.limits.sealed;
        match self.memory.add(region, file, sealed) {
            Ok(()) => Ok(()),
            Err(error) => self.refuse(error),
        }
    }
}

impl VhostUserBackendReqHandlerMut for Device {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        // The protocol deprecates it, and advises to take it for disabling the rings.
        for ring in &mut self.rings {
            ring.enabled = false;
        }
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.reset();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let surplus = features & !self.offered();
        if surplus != 0 {
            return self.refuse(format!("features that were not offered: {surplus:#x}"));
        }
        self.features = features;
        self.is_negotiated = true;
        let event_idx = self.has(feature::EVENT_IDX);
        // Without protocol features there is no message that enables rings.
        let enabled = !self.has(feature::PROTOCOL_FEATURES);
        for ring in &mut self.rings {
            ring.event_idx = event_idx;
            ring.enabled |= enabled;
        }
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.limits.pairs.into())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        self.memory = Memory::default();
        for (region, file) in regions.iter().zip(files) {
            let region = RegionSpec {
                guest: region.guest_phys_addr,
                user: region.user_addr,
                size: region.memory_size,
                offset: region.mmap_offset,
            };
            if let Err(error) = self.add(region, file) {
                self.memory = Memory::default();
                return Err(error);
            }
        }
        Ok(None)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        let region = RegionSpec {
            guest: region.guest_phys_addr,
            user: region.user_addr,
            size: region.memory_size,
            offset: region.mmap_offset,
        };
        self.add(region, file)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let (guest, user, size) = (region.guest_phys_addr, region.user_addr, region.memory_size);
        match self.memory.remove(guest, user, size) {
            Ok(()) => Ok(()),
            Err(error) => self.refuse(error),
        }
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        if !num.is_power_of_two() || num > LONGEST_RING {
            return self.refuse(format!("a ring of {num} entries"));
        }
        let ring = self.ring(index)?;
        if ring.started {
            return self.refuse("the size of a ring in use");
        }
        ring.size = num as u16;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        self.ring(index)?.addresses = Some([descriptor, available, used]);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let Ok(base) = u16::try_from(base) else {
            return self.refuse(format!("ring base {base}"));
        };
        self.ring(index)?.base = base;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let ring = self.ring(index)?;
        let base = ring.stop();
        Ok(VhostUserVringState::new(index, base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let file = file.map(|file| self.event(file)).transpose()?;
        if let Some(file) = &file {
            // Edges: the kick itself is never read, another one wakes again.
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
            // The same description twice is no harm.
            let _ = self.kicks.add(file, EpollEvent::new(flags, index.into()));
        }
        let ring = self.ring(index.into())?;
        ring.kick = file;
        if ring.size == 0 {
            return self.refuse("a ring was started without a size");
        }
        ring.started = true;
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let file = file.map(|file| self.event(file)).transpose()?;
        self.ring(index.into())?.call = file;
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let file = file.map(|file| self.event(file)).transpose()?;
        self.ring(index.into())?.error = file;
        Ok(())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.ring(index)?.enabled = enable;
        Ok(())
    }

    // The rest belongs to protocol features that are not offered.

    fn get_config(&mut self, _: u32, _: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        self.refuse("configuration space is not offered")
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        self.refuse("configuration space is not offered")
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        self.refuse("this is no GPU")
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        self.refuse("shared objects are not offered")
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        self.refuse("inflight tracking is not offered: chains are completed in order")
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        self.refuse("inflight tracking is not offered: chains are completed in order")
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        self.refuse("device state is not offered")
    }

    fn check_device_state(&mut self) -> Result<()> {
        self.refuse("device state is not offered")
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        self.refuse("shared memory regions are not offered")
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        self.refuse("logging of written pages is not offered")
    }
}
