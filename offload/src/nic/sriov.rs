//! The verbs of SR-IOV.

use std::sync::Arc;

use vesper_esp::Buffer;
use vesper_sa::VmId;

use super::{Config, Nic, NicEvent, QueueError};
use crate::fate::Loss;
use crate::filter::ReceiveFilter;
use crate::queue::{QueueEvent, QueueId};
use crate::rings::lock;
use crate::sends::Poster;
use crate::sriov::{
    Function, NicSwitch, NicSwitchParams, NicSwitchState, SriovError, VPort, VPortId, VfEvent,
    VfId, VfState, VirtualFunction,
};

impl<B: Buffer> Nic<B> {
    /// Makes the NIC switch (`OID_NIC_SWITCH_CREATE_SWITCH`), with virtual functions or
    /// without: once, and before the first machine.
    pub fn create_nic_switch(&self, params: NicSwitchParams) -> Result<(), SriovError> {
        let mut config = self.write();
        if let Some(switch) = &config.switch {
            return Err(SriovError::AlreadyCreated(switch.params));
        }
        let available = self.profile.virtual_functions;
        if available == 0 && params.virtual_functions > 0 {
            return Err(SriovError::NotSupported);
        }
        if params.virtual_functions > available {
            return Err(SriovError::TooManyFunctions {
                asked: params.virtual_functions,
                available,
            });
        }
        let pairs = self.profile.queue_pairs;
        if params.default_queue_pairs > pairs {
            return Err(SriovError::TooManyQueuePairs {
                asked: params.default_queue_pairs,
                available: pairs,
            });
        }
        if config.vms.len() > 1 {
            return Err(SriovError::InUse);
        }
        config.switch = Some(NicSwitch::new(params, pairs));
        Ok(())
    }

    /// What is to be known of the NIC switch.
    pub fn nic_switch(&self) -> Option<NicSwitchState> {
        let config = self.read();
        let switch = config.switch.as_ref()?;
        let functions = (0..).zip(&switch.functions).filter_map(|(number, place)| {
            let function = place.as_ref()?;
            Some((VfId(number), function.vm, function.state))
        });
        let vports = (0..).zip(&switch.vports).filter_map(|(number, place)| {
            let vport = place.as_ref()?;
            Some((VPortId(number), vport.function, vport.queue))
        });
        Some(NicSwitchState {
            params: switch.params,
            virtual_functions: functions.collect(),
            vports: vports.collect(),
            queue_pairs: switch.queue_pairs_used(),
            queue_pair_capacity: switch.queue_pair_capacity,
        })
    }

    /// The machine says that it has a driver for virtual functions, or no longer.
    pub fn declare_guest_driver(&self, vm: VmId, present: bool) -> Result<(), SriovError> {
        let mut config = self.write();
        let entry = config.vms.get_mut(&vm).ok_or(SriovError::UnknownVm(vm))?;
        entry.guest_driver = present;
        Ok(())
    }

    /// Gives a machine a virtual function (`OID_NIC_SWITCH_ALLOCATE_VF`). The synthetic path
    /// goes on until [`activate_vf`](Self::activate_vf).
    pub fn allocate_vf(&self, vm: VmId) -> Result<VfId, SriovError> {
        let mut config = self.write();
        let entry = config
            .vms
            .get(&vm)
            .filter(|_| vm != VmId::HOST)
            .ok_or(SriovError::UnknownVm(vm))?;
        let wants = entry.port.settings.iov_weight > 0;
        let (has, driver) = (entry.function, entry.guest_driver);
        let switch = config.switch.as_mut().ok_or(SriovError::NoSwitch)?;
        if !wants {
            return Err(SriovError::NotWanted(vm));
        }
        if let Some(vf) = has {
            return Err(SriovError::HasFunction(vf));
        }
        if !driver {
            return Err(SriovError::NoGuestDriver(vm));
        }
        let free = switch.functions.iter().position(Option::is_none);
        let vf = VfId(free.ok_or(SriovError::NoFunctionLeft)? as u16);
        switch.set_function(
            vf,
            Some(VirtualFunction {
                vm,
                state: VfState::Allocated,
                vport: None,
            }),
        );
        if let Some(entry) = config.vms.get_mut(&vm) {
            entry.function = Some(vf);
        }
        Ok(vf)
    }

    /// Creates the port of a virtual function, with its queue
    /// (`OID_NIC_SWITCH_CREATE_VPORT`).
    pub fn create_vf_vport(&self, vf: VfId) -> Result<(VPortId, QueueId), SriovError> {
        let mut config = self.write();
        let switch = config.switch.as_ref().ok_or(SriovError::NoSwitch)?;
        let function = switch.function(vf)?;
        let next = function.state.on(VfEvent::CreateVport)?;
        let pairs = config
            .vms
            .get(&function.vm)
            .map_or(1, |entry| entry.port.settings.iov_queue_pairs);
        let created = self.new_vport(&mut config, function.vm, Function::Virtual(vf), pairs)?;
        if let Some(switch) = config.switch.as_mut() {
            switch.set_function(
                vf,
                Some(VirtualFunction {
                    state: next,
                    vport: Some(created.0),
                    ..function
                }),
            );
        }
        Ok(created)
    }

    /// Creates a port of the physical function for a machine without a virtual function: what
    /// a receive queue is where there is no NIC switch. The host drives it.
    pub fn create_pf_vport(&self, vm: VmId) -> Result<(VPortId, QueueId), SriovError> {
        let mut config = self.write();
        self.new_vport(&mut config, vm, Function::Physical, 1)
    }

    fn new_vport(
        &self,
        config: &mut Config<B>,
        vm: VmId,
        function: Function,
        queue_pairs: u16,
    ) -> Result<(VPortId, QueueId), SriovError> {
        let switch = config.switch.as_ref().ok_or(SriovError::NoSwitch)?;
        let available = switch.queue_pair_capacity - switch.queue_pairs_used();
        if queue_pairs > available {
            return Err(SriovError::TooManyQueuePairs {
                asked: queue_pairs,
                available,
            });
        }
        let queue = self
            .new_queues(config, vm, function, queue_pairs)
            .map_err(SriovError::Queue)?;
        config
            .change(queue, QueueEvent::AllocationComplete)
            .map_err(SriovError::Queue)?;
        let switch = config.switch.as_mut().ok_or(SriovError::NoSwitch)?;
        let free = switch.vports.iter().skip(1).position(Option::is_none);
        let number = free.map_or(switch.vports.len(), |position| position + 1);
        if number == switch.vports.len() {
            switch.vports.push(None);
        }
        if let Some(place) = switch.vports.get_mut(number) {
            *place = Some(VPort {
                function,
                queue,
                queue_pairs,
            });
        }
        Ok((VPortId(number as u16), queue))
    }

    /// Lets a virtual function carry its machine's traffic: the machine's filter moves to it
    /// in one step, from wherever it is.
    pub fn activate_vf(&self, vf: VfId) -> Result<(), SriovError> {
        let mut config = self.write();
        let switch = config.switch.as_ref().ok_or(SriovError::NoSwitch)?;
        let function = switch.function(vf)?;
        let next = function.state.on(VfEvent::MoveFiltersIn)?;
        let vport = function.vport.and_then(|vport| switch.vport(vport));
        let queue = vport.ok_or(SriovError::UnknownFunction(vf))?.queue;
        config.steer_vm(function.vm, queue)?;
        config.set_vf_state(vf, function, next);
        Ok(())
    }

    /// Takes the traffic away from a virtual function: the fallback receives first, everything
    /// else comes later. What the function has posted is still sent.
    pub fn release_vf(&self, vf: VfId) -> Result<(), SriovError> {
        let mut config = self.write();
        let switch = config.switch.as_ref().ok_or(SriovError::NoSwitch)?;
        let function = switch.function(vf)?;
        let next = function.state.on(VfEvent::MoveFiltersOut)?;
        config.steer_vm(function.vm, QueueId::DEFAULT)?;
        config.set_vf_state(vf, function, next);
        Ok(())
    }

    /// Deletes the port of a virtual function (`OID_NIC_SWITCH_DELETE_VPORT`). Its queue goes
    /// through [the states of freeing](crate::QueueState) until the machine has returned every
    /// packet.
    pub fn delete_vf_vport(&self, vf: VfId) -> Result<(), SriovError> {
        let mut config = self.write();
        let switch = config.switch.as_ref().ok_or(SriovError::NoSwitch)?;
        let function = switch.function(vf)?;
        let next = function.state.on(VfEvent::DeleteVport)?;
        if let Some(vport) = function.vport {
            config.take_vport(vport)?;
        }
        let gone = VirtualFunction {
            vport: None,
            ..function
        };
        config.set_vf_state(vf, gone, next);
        Ok(())
    }

    /// Deletes a port of the physical function; its filters go to the default queue first.
    pub fn delete_pf_vport(&self, vport: VPortId) -> Result<(), SriovError> {
        if vport == VPortId::DEFAULT {
            return Err(SriovError::DefaultVport);
        }
        let mut config = self.write();
        let switch = config.switch.as_ref().ok_or(SriovError::NoSwitch)?;
        let found = switch
            .vport(vport)
            .filter(|found| found.function == Function::Physical)
            .ok_or(SriovError::UnknownVport(vport))?;
        let filters: Vec<_> = config.filters.of(found.queue).collect();
        for (id, _) in filters {
            config
                .move_filter(id, QueueId::DEFAULT)
                .map_err(|_| SriovError::UnknownVport(vport))?;
        }
        config.take_vport(vport)
    }

    /// Resets a virtual function (`OID_SRIOV_RESET_VF`, function level reset): what it had
    /// posted and was not sent fails.
    pub fn reset_vf(&self, vf: VfId) -> Result<(), SriovError> {
        let mut config = self.write();
        let switch = config.switch.as_ref().ok_or(SriovError::NoSwitch)?;
        let function = switch.function(vf)?;
        let next = function.state.on(VfEvent::Reset)?;
        config.fail_sends_of(function.vm);
        config.set_vf_state(vf, function, next);
        Ok(())
    }

    /// Frees a virtual function that was reset (`OID_NIC_SWITCH_FREE_VF`).
    pub fn free_vf(&self, vf: VfId) -> Result<(), SriovError> {
        let mut config = self.write();
        let switch = config.switch.as_mut().ok_or(SriovError::NoSwitch)?;
        let function = switch.function(vf)?;
        // Only a function that was reset may be reset again.
        if function.state != VfState::Reset {
            return Err(SriovError::State(crate::sriov::WrongVfState {
                state: function.state,
                event: VfEvent::Reset,
            }));
        }
        switch.set_function(vf, None);
        if let Some(entry) = config.vms.get_mut(&function.vm) {
            entry.function = None;
        }
        Ok(())
    }

    /// A function is pulled out: the same order, all at once, and nobody has been asked.
    pub(crate) fn surprise_removal(&self, vf: VfId) {
        let vm = {
            let mut config = self.write();
            let Some(function) = config
                .switch
                .as_ref()
                .and_then(|switch| switch.function(vf).ok())
            else {
                return;
            };
            let _ = config.steer_vm(function.vm, QueueId::DEFAULT);
            if let Some(vport) = function.vport {
                let _ = config.take_vport(vport);
            }
            config.fail_sends_of(function.vm);
            if let Some(switch) = config.switch.as_mut() {
                switch.set_function(vf, None);
            }
            if let Some(entry) = config.vms.get_mut(&function.vm) {
                entry.function = None;
            }
            function.vm
        };
        self.emit(NicEvent::FunctionLost(vf, vm));
    }
}

impl NicSwitch {
    fn vport(&self, vport: VPortId) -> Option<VPort> {
        self.vports.get(usize::from(vport.0)).copied().flatten()
    }
}

impl<B: Buffer> Config<B> {
    fn set_vf_state(&mut self, vf: VfId, function: VirtualFunction, state: VfState) {
        if let Some(switch) = self.switch.as_mut() {
            switch.set_function(vf, Some(VirtualFunction { state, ..function }));
        }
    }

    /// Lets the frames for a machine's address go to this queue; sets the filter if there is
    /// none yet.
    fn steer_vm(&mut self, vm: VmId, queue: QueueId) -> Result<(), SriovError> {
        let entry = self.vms.get(&vm).ok_or(SriovError::UnknownVm(vm))?;
        let address = entry.port.address;
        let filter = ReceiveFilter {
            mac: address.mac,
            vlan: address.vlan,
        };
        let refused = |_| SriovError::Queue(QueueError::Unknown(queue));
        match self.filters.id_of(&filter) {
            Some(id) => self.move_filter(id, queue).map_err(refused),
            None if queue == QueueId::DEFAULT => Ok(()),
            None => {
                self.filters.set(filter, queue).map_err(refused)?;
                self.change(queue, QueueEvent::SetFilter)
                    .map_err(SriovError::Queue)?;
                Ok(())
            }
        }
    }

    /// Takes a port out of the switch and begins to free its queue, which has no filter.
    fn take_vport(&mut self, vport: VPortId) -> Result<(), SriovError> {
        let unknown = SriovError::UnknownVport(vport);
        let switch = self.switch.as_mut().ok_or(SriovError::NoSwitch)?;
        let place = switch.vports.get_mut(usize::from(vport.0));
        let taken = place.and_then(Option::take).ok_or(unknown)?;
        self.change(taken.queue, QueueEvent::Free)
            .map_err(SriovError::Queue)?;
        Ok(())
    }

    /// What a machine has posted through its function and was not sent.
    fn fail_sends_of(&self, vm: VmId) {
        let Some(entry) = self.vms.get(&vm) else {
            return;
        };
        let port = Arc::clone(&entry.port);
        let mut sends = lock(&port.sends);
        for send in sends.take_all(Poster::Guest) {
            sends.refuse(Poster::Guest, send, Loss::Gone);
        }
    }
}
