//! The IPsec unit: which associations the adapter holds, whose they are, and for which port.

use core::fmt;
use core::net::IpAddr;
use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::HashMap;
use std::sync::Arc;

use vesper_esp::EspSa;
use vesper_sa::{AddError, ReceiveKey, SaHandle, SaIdentity, Sad, Spd, VmId};

use crate::capability::{OffloadMode, WhyNot};
use crate::ethernet::{Link, ethertype};
use crate::ethernet::{MacAddress, VlanId};

/// Names an offloaded association: slot and generation. A stale handle, or one of another
/// virtual machine, names nothing.
pub type OffloadHandle = SaHandle;

/// Names a port of the software switch, as `SourceSwitchPortId` does; 0 is the host's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u32);

impl PortId {
    /// The host's own port.
    pub const HOST: PortId = PortId(0);
}

/// How an association is offloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SaOffload {
    /// Who does what.
    pub mode: OffloadMode,
    /// The port of the owner, from which alone outbound packets may use the association.
    pub port: PortId,
    /// The VLAN on which its ESP packets travel.
    pub vlan: Option<VlanId>,
    /// Packet mode: the Ethernet addresses around the outcome, if they are not those of the
    /// packet itself. Outbound the next hop of the tunnel, inbound the virtual machine.
    pub rewrite: Option<Rewrite>,
    /// Packet mode, inbound: check the TCP or UDP checksum of the inner packet.
    pub inner_checksum: bool,
}

/// Ethernet addresses that replace those of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// Who is to receive the frame.
    pub destination: MacAddress,
    /// Who sends it.
    pub source: MacAddress,
}

/// Why an association was not offloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddSaError {
    /// Every reason, never none.
    pub reasons: Vec<WhyNot>,
}

impl fmt::Display for AddSaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, reason) in self.reasons.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            reason.fmt(f)?;
        }
        Ok(())
    }
}

impl core::error::Error for AddSaError {}

impl From<WhyNot> for AddSaError {
    fn from(reason: WhyNot) -> Self {
        Self {
            reasons: vec![reason],
        }
    }
}

/// Why an offloaded association was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateSaError {
    /// The handle names nothing of this owner.
    Unknown(OffloadHandle),
    /// The association has no extended sequence numbers (`NDIS_STATUS_INVALID_PARAMETER`).
    NotExtended,
    /// Packet mode keeps the sequence numbers by itself: nothing to push.
    PacketMode,
}

impl fmt::Display for UpdateSaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(handle) => write!(f, "{handle} names no offloaded SA of this owner"),
            Self::NotExtended => f.write_str("the SA has no extended sequence numbers"),
            Self::PacketMode => f.write_str("in packet mode the adapter counts by itself"),
        }
    }
}

impl core::error::Error for UpdateSaError {}

/// An association in the adapter.
#[derive(Debug)]
pub(crate) struct Offloaded {
    pub(crate) sa: Arc<EspSa>,
    pub(crate) handle: OffloadHandle,
    pub(crate) offload: SaOffload,
    /// Crypto mode: the 64-bit number that the host has pushed last; a number on the wire is
    /// taken for the nearest one.
    pushed: AtomicU64,
}

impl Offloaded {
    /// The 64-bit sequence number of a packet that carries `low`.
    pub(crate) fn infer(&self, low: u32) -> u64 {
        if !self.sa.esn() {
            return u64::from(low);
        }
        let pushed = self.pushed.load(Ordering::Relaxed);
        let distance = low.wrapping_sub(pushed as u32).cast_signed();
        let nearest = pushed.wrapping_add_signed(i64::from(distance));
        // At the very beginning "nearest" may lie before 0.
        if nearest > pushed && distance < 0 {
            u64::from(low)
        } else {
            nearest
        }
    }

    /// The Ethernet header around what it makes of packets that had this one, in tunnel mode:
    /// with other addresses, if there are any.
    pub(crate) fn link(&self, packet: Link) -> Link {
        let rewrite = self.offload.rewrite.as_ref();
        tunnel_link(packet, rewrite, self.sa.params().destination)
    }

    pub(crate) fn push(&self, sequence: u64) {
        self.pushed.store(sequence, Ordering::Relaxed);
    }
}

/// The header around the packets of a tunnel to this address.
pub(crate) fn tunnel_link(packet: Link, rewrite: Option<&Rewrite>, destination: IpAddr) -> Link {
    Link {
        destination: rewrite.map_or(packet.destination, |rewrite| rewrite.destination),
        source: rewrite.map_or(packet.source, |rewrite| rewrite.source),
        ethertype: match destination {
            IpAddr::V4(_) => ethertype::IPV4,
            IpAddr::V6(_) => ethertype::IPV6,
        },
    }
}

/// The offloaded associations and policies.
#[derive(Debug)]
pub(crate) struct Unit {
    sad: Sad<vesper_esp::EspContext>,
    slots: Vec<Option<Arc<Offloaded>>>,
    /// Removed, but perhaps in use by packets in flight.
    draining: Vec<Arc<Offloaded>>,
    policies: HashMap<VmId, Arc<Spd>, foldhash::fast::RandomState>,
    capacity: u32,
}

impl Unit {
    pub(crate) fn new(capacity: u32) -> Self {
        Self {
            sad: Sad::new(),
            slots: Vec::new(),
            draining: Vec::new(),
            policies: HashMap::default(),
            capacity,
        }
    }

    pub(crate) fn capacity(&self) -> u32 {
        self.capacity
    }

    pub(crate) fn len(&self) -> u32 {
        self.sad.len() as u32
    }

    pub(crate) fn used_by(&self, owner: VmId) -> u32 {
        self.sad.usage(owner).associations
    }

    pub(crate) fn set_limit(&mut self, owner: VmId, limit: u32) {
        self.sad.set_limit(owner, limit);
    }

    pub(crate) fn limit(&self, owner: VmId) -> u32 {
        self.sad.usage(owner).limit
    }

    pub(crate) fn set_policies(&mut self, owner: VmId, policies: Option<Arc<Spd>>) {
        match policies {
            Some(policies) => self.policies.insert(owner, policies),
            None => self.policies.remove(&owner),
        };
    }

    pub(crate) fn policies(&self, owner: VmId) -> Option<&Spd> {
        self.policies.get(&owner).map(|spd| &**spd)
    }

    /// Quota and capacity, in the order in which an administrator can do something about it.
    pub(crate) fn why_full(&self, owner: VmId) -> Option<WhyNot> {
        let usage = self.sad.usage(owner);
        if usage.limit == 0 {
            Some(WhyNot::OffloadDisabled)
        } else if usage.associations >= usage.limit {
            Some(WhyNot::Quota { limit: usage.limit })
        } else if self.len() >= self.capacity {
            Some(WhyNot::Capacity {
                capacity: self.capacity,
            })
        } else {
            None
        }
    }

    pub(crate) fn add(
        &mut self,
        sa: Arc<EspSa>,
        offload: SaOffload,
    ) -> Result<OffloadHandle, WhyNot> {
        if let Some(reason) = self.why_full(sa.owner()) {
            return Err(reason);
        }
        let handle = self.sad.add(Arc::clone(&sa)).map_err(|error| match error {
            AddError::QuotaExceeded { limit, .. } => WhyNot::Quota { limit },
            AddError::SpiInUse { .. } => WhyNot::SpiInUse,
            _ => WhyNot::Capacity {
                capacity: self.capacity,
            },
        })?;
        let slot = slot(handle);
        if slot >= self.slots.len() {
            self.slots.resize_with(slot + 1, || None);
        }
        let pushed = AtomicU64::new(sa.sequence());
        self.slots[slot] = Some(Arc::new(Offloaded {
            sa,
            handle,
            offload,
            pushed,
        }));
        Ok(handle)
    }

    pub(crate) fn get(&self, owner: VmId, handle: OffloadHandle) -> Option<&Arc<Offloaded>> {
        self.at(handle)
            .filter(|offloaded| offloaded.sa.owner() == owner)
    }

    /// By handle alone, for packets that the adapter itself has matched.
    pub(crate) fn at(&self, handle: OffloadHandle) -> Option<&Arc<Offloaded>> {
        self.slots
            .get(slot(handle))?
            .as_ref()
            .filter(|offloaded| offloaded.handle == handle)
    }

    pub(crate) fn inbound(&self, key: &ReceiveKey) -> Option<&Arc<Offloaded>> {
        let (handle, _) = self.sad.inbound(key)?;
        self.at(handle)
    }

    pub(crate) fn outbound(
        &self,
        owner: VmId,
        reqid: u32,
        destination: IpAddr,
    ) -> Option<&Arc<Offloaded>> {
        let (handle, _) = self.sad.outbound(owner, reqid, destination)?;
        self.at(handle)
    }

    /// Stops the use of an association by packets to come. Those in flight finish.
    pub(crate) fn remove(&mut self, owner: VmId, handle: OffloadHandle) -> Option<Arc<Offloaded>> {
        self.sad.withdraw(owner, handle).ok()?;
        let offloaded = self.slots.get_mut(slot(handle))?.take()?;
        self.draining.push(Arc::clone(&offloaded));
        Some(offloaded)
    }

    /// Every association, of one owner or of all.
    pub(crate) fn of(&self, owner: Option<VmId>) -> Vec<(VmId, OffloadHandle)> {
        let all = self.slots.iter().flatten();
        all.map(|offloaded| (offloaded.sa.owner(), offloaded.handle))
            .filter(|(found, _)| owner.is_none_or(|owner| owner == *found))
            .collect()
    }

    /// Sets the capacity; returns what has no place any more, the youngest slots first.
    pub(crate) fn set_capacity(&mut self, capacity: u32) -> Vec<(VmId, OffloadHandle)> {
        self.capacity = capacity;
        let surplus = self.len().saturating_sub(capacity) as usize;
        let all = self.slots.iter().rev().flatten();
        all.take(surplus)
            .map(|offloaded| (offloaded.sa.owner(), offloaded.handle))
            .collect()
    }

    /// By handle alone, for frames that were bound to it before it was removed.
    pub(crate) fn at_or_draining(&self, handle: OffloadHandle) -> Option<&Arc<Offloaded>> {
        self.at(handle).or_else(|| {
            let mut draining = self.draining.iter();
            draining.find(|offloaded| offloaded.handle == handle)
        })
    }

    /// Frees removed associations that no packet in flight uses any more.
    pub(crate) fn reap(
        &mut self,
        mut in_flight: impl FnMut(&Offloaded) -> bool,
    ) -> Vec<(OffloadHandle, SaIdentity)> {
        self.draining
            .extract_if(.., |offloaded| !in_flight(offloaded))
            .map(|offloaded| (offloaded.handle, offloaded.sa.identity()))
            .collect()
    }

    pub(crate) fn draining(&self) -> usize {
        self.draining.len()
    }
}

fn slot(handle: OffloadHandle) -> usize {
    // The low half of a handle is its slot.
    (handle.to_bits() & u64::from(u32::MAX)) as usize
}
