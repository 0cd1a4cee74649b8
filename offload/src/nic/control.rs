//! Machines: adding and removing them, settings, what they use, affinity.

use core::fmt;
use std::sync::Arc;

use vesper_esp::Buffer;
use vesper_sa::VmId;

use super::{Nic, VmEntry};
use crate::queue::QueueId;
use crate::rings::{VmPort, lock};
use crate::sends::{Poster, VmCounters};
use crate::settings::{SettingsError, Usage, VmAddress, VmSettings};
use crate::sriov::VfId;
use crate::unit::PortId;

/// What a machine uses of the adapter (`Get-VMNetworkAdapter` reads the same back).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmUsage {
    /// Offloaded associations, of how many it may have.
    pub ipsec_sas: Usage,
    /// Its receive queue (`VMQId`).
    pub queue: Option<QueueId>,
    /// Its virtual function (`IovVfId`).
    pub function: Option<VfId>,
    /// Its port of the software switch.
    pub port: PortId,
    /// The processor of the adapter that serves it.
    pub processor: usize,
}

/// What all machines together use of the adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NicUsage {
    /// Offloaded associations.
    pub ipsec_sas: Usage,
    /// Receive queues beside the default queue.
    pub queues: Usage,
    /// Receive filters.
    pub filters: Usage,
    /// Virtual functions.
    pub virtual_functions: Usage,
    /// Queue pairs of the NIC switch.
    pub queue_pairs: Usage,
}

/// Why a machine was not removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoveVmError {
    /// It does not exist, or is the host.
    Unknown(VmId),
    /// It has a virtual function; detach that first.
    HasFunction(VfId),
    /// It has a queue; free that first.
    HasQueue(QueueId),
}

impl fmt::Display for RemoveVmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(vm) => write!(f, "{vm} does not exist"),
            Self::HasFunction(vf) => write!(f, "the machine has {vf}; detach it first"),
            Self::HasQueue(queue) => write!(f, "the machine has {queue}; free it first"),
        }
    }
}

impl core::error::Error for RemoveVmError {}

impl<B: Buffer> Nic<B> {
    /// Makes a machine known: it can send through the host, own associations, and get a queue
    /// or a function. The port of the software switch names it to the adapter.
    pub fn add_vm(
        &self,
        vm: VmId,
        address: VmAddress,
        settings: VmSettings,
    ) -> Result<PortId, SettingsError> {
        settings.check(&self.profile)?;
        if address.mac.is_group() {
            return Err(SettingsError::Address(address.mac));
        }
        let mut config = self.write();
        if config.vms.contains_key(&vm) {
            return Err(SettingsError::Exists(vm));
        }
        let taken =
            |entry: &VmEntry<B>| entry.port.vm != VmId::HOST && entry.port.address == address;
        if config.vms.values().any(taken) {
            return Err(SettingsError::AddressInUse(address));
        }
        let port = PortId(config.next_port);
        config.next_port += 1;
        config.unit.set_limit(vm, settings.ipsec_offload_limit);
        // Static affinity: in turn. The host can change it, or spread by load.
        let processor = (config.vms.len() - 1) % self.processors.len();
        let entry = VmEntry {
            port: Arc::new(VmPort::new(vm, port, address, settings, self.profile.ring)),
            queue: None,
            function: None,
            processor,
            guest_driver: false,
        };
        config.vms.insert(vm, entry);
        config.addresses.insert(address.into(), vm);
        config.rebuild_flows(self.processors.len());
        Ok(port)
    }

    /// Forgets a machine: its associations are withdrawn, what it had posted comes back as
    /// recycled buffers. Its queue and function have to be gone before.
    pub fn remove_vm(&self, vm: VmId) -> Result<(), RemoveVmError> {
        let mut config = self.write();
        let entry = config
            .vms
            .get(&vm)
            .filter(|_| vm != VmId::HOST)
            .ok_or(RemoveVmError::Unknown(vm))?;
        if let Some(vf) = entry.function {
            return Err(RemoveVmError::HasFunction(vf));
        }
        let mut queues = config.queues.iter().flatten();
        if let Some(queue) = queues.find(|queue| queue.owner == Some(vm)) {
            return Err(RemoveVmError::HasQueue(queue.id));
        }
        let port = Arc::clone(&entry.port);
        config.vms.remove(&vm);
        config.addresses.remove(&port.address.into());
        for (owner, handle) in config.unit.of(Some(vm)) {
            config.unit.remove(owner, handle);
        }
        config.unit.set_policies(vm, None);
        config.rebuild_flows(self.processors.len());
        drop(config);
        let mut sends = lock(&port.sends);
        let mut recycled = lock(&self.recycled);
        for poster in [Poster::Host, Poster::Guest] {
            recycled.extend(sends.take_all(poster).into_iter().map(|send| send.frame));
            let ring = sends.ring_mut(poster);
            let mut completions = Vec::new();
            ring.completions.drain_into(&mut completions);
            let late = ring.late.drain(..).map(|(_, completion)| completion);
            let buffers = completions.into_iter().chain(late);
            recycled.extend(buffers.filter_map(|completion| completion.buffer));
        }
        Ok(())
    }

    /// Changes how many associations a machine may have offloaded. Those beyond the new limit
    /// remain until they are deleted.
    pub fn set_ipsec_offload_limit(&self, vm: VmId, limit: u32) -> Result<(), SettingsError> {
        let mut config = self.write();
        if !config.vms.contains_key(&vm) {
            return Err(SettingsError::Unknown(vm));
        }
        config.unit.set_limit(vm, limit);
        Ok(())
    }

    /// Moves a machine, its queue and its sends, to another processor of the adapter.
    pub fn set_processor(&self, vm: VmId, processor: usize) -> Result<(), SettingsError> {
        let mut config = self.write();
        let processors = self.processors.len();
        let entry = config.vms.get_mut(&vm).ok_or(SettingsError::Unknown(vm))?;
        entry.processor = processor % processors;
        config.rebuild_flows(processors);
        Ok(())
    }

    /// What a machine uses.
    pub fn vm_usage(&self, vm: VmId) -> Option<VmUsage> {
        let config = self.read();
        let entry = config.vms.get(&vm)?;
        Some(VmUsage {
            ipsec_sas: Usage {
                used: config.unit.used_by(vm),
                capacity: config.unit.limit(vm),
            },
            queue: entry.queue,
            function: entry.function,
            port: entry.port.port,
            processor: entry.processor,
        })
    }

    /// What all machines together use.
    pub fn usage(&self) -> NicUsage {
        let config = self.read();
        let queues = config.queues.iter().skip(1).flatten().count() as u32;
        let (functions, function_capacity, pairs, pair_capacity) =
            config.switch.as_ref().map_or((0, 0, 0, 0), |switch| {
                (
                    switch.functions.iter().flatten().count() as u32,
                    u32::from(switch.params.virtual_functions),
                    u32::from(switch.queue_pairs_used()),
                    u32::from(switch.queue_pair_capacity),
                )
            });
        let usage = |used, capacity| Usage { used, capacity };
        NicUsage {
            ipsec_sas: usage(config.unit.len(), config.unit.capacity()),
            queues: usage(queues, self.profile.queues.into()),
            filters: usage(config.filters.len() as u32, self.profile.filters.into()),
            virtual_functions: usage(functions, function_capacity),
            queue_pairs: usage(pairs, pair_capacity),
        }
    }

    /// What a machine, or the host itself, has sent and lost.
    pub fn vm_counters(&self, vm: VmId) -> Option<VmCounters> {
        let config = self.read();
        let entry = config.vms.get(&vm)?;
        let counters = lock(&entry.port.sends).counters;
        Some(counters)
    }
}
