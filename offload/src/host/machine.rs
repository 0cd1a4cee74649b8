//! Machines: how they come and go, which path their packets take, and their side of the
//! synthetic path.

use core::fmt;

use vesper_esp::Buffer;
use vesper_sa::VmId;

use super::{Host, Machine, Outstanding};
use crate::fate::Losses;
use crate::filter::ReceiveFilter;
use crate::nic::RemoveVmError;
use crate::queue::QueueId;
use crate::rings::move_front;
use crate::settings::{Admission, Fallback, SettingsError, VmAddress, VmSettings};
use crate::sriov::{SriovError, VfId};
use crate::transfer::HostSend;
use crate::unit::PortId;
use crate::vswitch::{PortVlan, SwitchPort};

/// Frames that wait between a machine and the software switch, in each direction.
const RING: usize = 1024;

/// Buffers that stay with the synthetic path of a machine that has a queue: for what comes to
/// it through the software switch.
const KEPT_BUFFERS: usize = 128;

/// Which way a machine's packets take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPath {
    /// The software switch both ways; received packets are copied.
    Synthetic,
    /// Sends through the software switch; received packets come in the machine's own queue
    /// (VMQ) and are not copied.
    Queue(QueueId),
    /// A virtual function: past the host both ways.
    Function {
        /// The function.
        vf: VfId,
        /// Its queue.
        queue: QueueId,
    },
}

/// What the host has done for a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachineCounters {
    /// Frames that the machine gave to the synthetic path.
    pub sent: u64,
    /// Frames that the machine got from the host.
    pub received: u64,
    /// Of those, the ones that had to be copied.
    pub copies: u64,
    /// Packets that software sealed.
    pub sealed: u64,
    /// Packets that software opened, or finished opening for crypto mode.
    pub opened: u64,
    /// Received packets that the adapter indicated with a bad status.
    pub crypto_failures: u64,
    /// Frames lost in the host.
    pub losses: Losses,
}

/// Why a machine was not added, changed or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineError {
    /// Its settings, or its address.
    Settings(SettingsError),
    /// No such machine.
    Unknown(VmId),
    /// The NIC switch refused.
    Sriov(SriovError),
    /// It still has something of the adapter.
    Remove(RemoveVmError),
    /// A trunk, of a machine that does not receive through the software switch.
    Trunk(VmId),
}

impl fmt::Display for MachineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Settings(error) => error.fmt(f),
            Self::Unknown(vm) => write!(f, "{vm} does not exist"),
            Self::Sriov(error) => error.fmt(f),
            Self::Remove(error) => error.fmt(f),
            Self::Trunk(vm) => write!(
                f,
                "{vm} has a queue or a function, whose filter is one VLAN; for a trunk set \
                 vmq_weight and iov_weight to 0"
            ),
        }
    }
}

impl core::error::Error for MachineError {}

impl From<SriovError> for MachineError {
    fn from(error: SriovError) -> Self {
        Self::Sriov(error)
    }
}

impl<B: Buffer> Host<B> {
    pub(super) fn admit_machine(
        &mut self,
        vm: VmId,
        address: VmAddress,
        settings: VmSettings,
    ) -> Result<Admission, MachineError> {
        let added = self.nic.add_vm(vm, address, settings);
        let port = added.map_err(MachineError::Settings)?;
        let mut admission = Admission::default();
        if settings.ipsec_offload_limit > 0 && !self.nic.supported().esp {
            admission.fallbacks.push(Fallback::NoIpsecOffload);
        }
        let functions = self.nic.nic_switch().map(|switch| {
            let used = switch.virtual_functions.len();
            (
                usize::from(switch.params.virtual_functions) - used,
                switch.params.virtual_functions > 0,
            )
        });
        let wants_function = settings.iov_weight > 0;
        if wants_function {
            match functions {
                None | Some((_, false)) => admission.fallbacks.push(Fallback::NoNicSwitch),
                Some((0, true)) => admission.fallbacks.push(Fallback::NoVirtualFunction),
                Some((_, true)) => admission.fallbacks.push(Fallback::NoGuestDriver),
            }
        }
        let has_functions = functions.is_some_and(|(_, any)| any);
        let mut path = DataPath::Synthetic;
        if settings.vmq_weight > 0 && !(wants_function && has_functions) {
            match self.give_queue(vm, address, has_functions) {
                Ok(queue) => path = DataPath::Queue(queue),
                Err(fallback) => admission.fallbacks.push(fallback),
            }
        }
        self.switch.set_port(
            port,
            SwitchPort {
                vlan: PortVlan::Access(address.vlan),
                isolated: false,
                guard: (!settings.trusted).then_some(address.mac),
            },
        );
        self.switch.set_address(address.mac, address.vlan, port);
        self.ports.insert(port, vm);
        self.order.push(vm);
        self.machines.insert(
            vm,
            Machine {
                port,
                address,
                settings,
                path,
                sends: Default::default(),
                unsent: Vec::new(),
                has_refused: false,
                deficit: 0,
                posted: Default::default(),
                ready: Default::default(),
                outstanding: Outstanding::default(),
                counters: MachineCounters::default(),
            },
        );
        Ok(admission)
    }

    fn give_queue(
        &self,
        vm: VmId,
        address: VmAddress,
        has_functions: bool,
    ) -> Result<QueueId, Fallback> {
        let queue = match has_functions {
            true => self
                .nic
                .create_pf_vport(vm)
                .map(|(_, queue)| queue)
                .map_err(|_| Fallback::NoReceiveQueue)?,
            false => self
                .nic
                .allocate_queue(vm, 0)
                .map_err(|_| Fallback::NoReceiveQueue)?,
        };
        let filter = ReceiveFilter {
            mac: address.mac,
            vlan: address.vlan,
        };
        if self.nic.set_filter(queue, filter).is_err() {
            // Without a filter it would receive nothing: give it back.
            let _ = self.nic.free_queue(queue);
            return Err(Fallback::NoFilter);
        }
        self.nic.complete_allocation(&[queue]);
        Ok(queue)
    }

    /// Sets which VLANs the port of a machine carries. With a trunk the machine itself sees and
    /// sets the tags, which only the software switch can serve: not for machines with a queue
    /// or a function.
    pub fn set_port_vlan(&mut self, vm: VmId, vlan: PortVlan) -> Result<(), MachineError> {
        let machine = self.machine(vm)?;
        if machine.path != DataPath::Synthetic && matches!(vlan, PortVlan::Trunk { .. }) {
            return Err(MachineError::Trunk(vm));
        }
        let port = machine.port;
        self.switch.change_port(port, |port| port.vlan = vlan);
        Ok(())
    }

    /// Isolates a machine, or ends that: in the software switch, isolated machines and the uplink
    /// reach each other, isolated machines do not. What the adapter passes from function to
    /// function is beyond the software switch.
    pub fn set_isolated(&mut self, vm: VmId, isolated: bool) -> Result<(), MachineError> {
        let port = self.machine(vm)?.port;
        self.switch
            .change_port(port, |port| port.isolated = isolated);
        Ok(())
    }

    /// Removes a machine without a virtual function. A machine with a queue is removed in two
    /// steps: the first call frees the queue and says so; when the adapter has run and reported
    /// [`QueueFreed`](crate::NicEvent::QueueFreed), the second one succeeds.
    pub fn remove_machine(&mut self, vm: VmId) -> Result<(), MachineError> {
        let machine = self.machine(vm)?;
        if let DataPath::Queue(queue) = machine.path {
            for (id, _) in self.nic.filters(queue) {
                let _ = self.nic.clear_filter(id);
            }
            let _ = self.nic.free_queue(queue);
        }
        self.nic.remove_vm(vm).map_err(MachineError::Remove)?;
        if let Some(machine) = self.machines.remove(&vm) {
            self.switch.remove_port(machine.port);
            self.ports.remove(&machine.port);
            self.order.retain(|other| *other != vm);
            let Machine {
                sends,
                unsent,
                posted,
                ready,
                ..
            } = machine;
            let sends = sends.into_iter().map(|send| send.frame);
            let unsent = unsent.into_iter().map(|send| send.frame);
            for buffer in sends.chain(unsent).chain(posted).chain(ready) {
                self.nic.recycle(buffer);
            }
        }
        self.policies.remove(&vm);
        let sas: Vec<_> = self
            .sad
            .iter()
            .filter(|(_, sa)| sa.owner() == vm)
            .map(|(handle, _)| handle)
            .collect();
        for handle in sas {
            let _ = self.delete_sa(vm, handle);
        }
        Ok(())
    }

    /// Gives a machine a virtual function with its port and queue. The synthetic path goes on;
    /// the machine's driver posts buffers, then calls
    /// [`activate_function`](Self::activate_function).
    pub fn attach_function(&mut self, vm: VmId) -> Result<(VfId, QueueId), MachineError> {
        self.machine(vm)?;
        let vf = self.nic.allocate_vf(vm)?;
        match self.nic.create_vf_vport(vf) {
            Ok((_, queue)) => Ok((vf, queue)),
            Err(error) => {
                let _ = self.nic.reset_vf(vf);
                let _ = self.nic.free_vf(vf);
                Err(error.into())
            }
        }
    }

    /// Lets the function carry the machine's traffic, both ways.
    pub fn activate_function(
        &mut self,
        vm: VmId,
        vf: VfId,
        queue: QueueId,
    ) -> Result<(), MachineError> {
        self.machine(vm)?;
        self.nic.activate_vf(vf)?;
        if let Some(machine) = self.machines.get_mut(&vm) {
            machine.path = DataPath::Function { vf, queue };
            let VmAddress { mac, vlan } = machine.address;
            self.switch.set_address(mac, vlan, PortId::HOST);
        }
        Ok(())
    }

    /// Takes the function away, the fallback receiving first: filters to the synthetic path,
    /// then the port, then the reset, then the function. The queue lives until its last packet
    /// is returned.
    pub fn detach_function(&mut self, vm: VmId) -> Result<(), MachineError> {
        let DataPath::Function { vf, .. } = self.machine(vm)?.path else {
            return Err(MachineError::Unknown(vm));
        };
        self.nic.release_vf(vf)?;
        self.back_to_synthetic(vm);
        self.nic.delete_vf_vport(vf)?;
        self.nic.reset_vf(vf)?;
        self.nic.free_vf(vf)?;
        Ok(())
    }

    /// The software switch delivers to the machine again.
    pub(super) fn back_to_synthetic(&mut self, vm: VmId) {
        if let Some(machine) = self.machines.get_mut(&vm) {
            machine.path = DataPath::Synthetic;
            let VmAddress { mac, vlan } = machine.address;
            self.switch.set_address(mac, vlan, machine.port);
        }
    }

    /// Which way a machine's packets take.
    pub fn data_path(&self, vm: VmId) -> Option<DataPath> {
        self.machines.get(&vm).map(|machine| machine.path)
    }

    /// What the host has done for a machine.
    pub fn machine_counters(&self, vm: VmId) -> Option<MachineCounters> {
        self.machines.get(&vm).map(|machine| machine.counters)
    }

    /// Sends of a machine that the adapter has not completed.
    pub fn outstanding(&self, vm: VmId) -> Option<&Outstanding> {
        self.machines.get(&vm).map(|machine| &machine.outstanding)
    }

    /// The machine sends Ethernet frames on the synthetic path; what does not fit stays in
    /// `frames`. Returns how many were taken.
    pub fn send(&mut self, vm: VmId, frames: &mut Vec<B>) -> Result<usize, MachineError> {
        self.take_sends(vm, frames, HostSend::new)
    }

    /// Like [`send`](Self::send), for frames that are to be cut or want checksums. Where the
    /// host has to cut, it takes from the buffers of
    /// [`Nic::post_segment_buffers`](crate::Nic::post_segment_buffers).
    pub fn send_frames(
        &mut self,
        vm: VmId,
        frames: &mut Vec<HostSend<B>>,
    ) -> Result<usize, MachineError> {
        self.take_sends(vm, frames, |send| send)
    }

    fn take_sends<F>(
        &mut self,
        vm: VmId,
        frames: &mut Vec<F>,
        to_send: impl FnMut(F) -> HostSend<B>,
    ) -> Result<usize, MachineError> {
        let machine = self.machines.get_mut(&vm);
        let machine = machine.ok_or(MachineError::Unknown(vm))?;
        let room = RING.saturating_sub(machine.sends.len()).min(frames.len());
        machine.counters.sent += room as u64;
        machine.sends.extend(frames.drain(..room).map(to_send));
        Ok(room)
    }

    /// The machine posts buffers to receive into; all of the memory of a buffer is its data.
    /// With a virtual function, its driver posts to the function's queue instead.
    pub fn post_buffers(
        &mut self,
        vm: VmId,
        buffers: impl IntoIterator<Item = B>,
    ) -> Result<(), MachineError> {
        let machine = self.machines.get_mut(&vm);
        let machine = machine.ok_or(MachineError::Unknown(vm))?;
        let mut buffers = buffers.into_iter();
        match machine.path {
            DataPath::Queue(queue) => {
                let kept = KEPT_BUFFERS.saturating_sub(machine.posted.len());
                machine.posted.extend(buffers.by_ref().take(kept));
                // The queue of a path exists as long as the path.
                let _ = self.nic.post_buffers(queue, buffers);
            }
            DataPath::Synthetic | DataPath::Function { .. } => machine.posted.extend(buffers),
        }
        Ok(())
    }

    /// The machine takes the Ethernet frames that the host has for it.
    pub fn take_received(&mut self, vm: VmId, frames: &mut Vec<B>) -> Result<(), MachineError> {
        let machine = self.machines.get_mut(&vm);
        let machine = machine.ok_or(MachineError::Unknown(vm))?;
        let count = machine.ready.len();
        move_front(&mut machine.ready, count, frames);
        Ok(())
    }

    fn machine(&self, vm: VmId) -> Result<&Machine<B>, MachineError> {
        self.machines.get(&vm).ok_or(MachineError::Unknown(vm))
    }
}
