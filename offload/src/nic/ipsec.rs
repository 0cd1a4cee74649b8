//! The verbs of IPsec offload, and what takes associations away from the adapter.

use std::sync::Arc;

use vesper_esp::{Buffer, EspSa, Suite};
use vesper_sa::{Event, SaIdentity, SaParams, SaStatistics, SaUpdate, Scope, Spd, Timestamp, VmId};

use super::{Config, Nic, NicEvent};
use crate::capability::{Capabilities, OffloadMode, WhyNot};
use crate::fate::Loss;
use crate::fault::Fault;
use crate::rings::lock;
use crate::sends::Poster;
use crate::unit::{AddSaError, OffloadHandle, SaOffload, UpdateSaError};

impl<B: Buffer> Nic<B> {
    /// Whether the adapter would take this association now, or every reason why not.
    pub fn why_not(&self, params: &SaParams, suite: &Suite, offload: &SaOffload) -> Vec<WhyNot> {
        self.read().why_not(params, suite, offload)
    }

    /// Takes an association (`OID_TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA_EX`). The host keeps it as
    /// well: the state is one and the same, so that either can go on where the other stopped.
    pub fn add_sa(&self, sa: Arc<EspSa>, offload: SaOffload) -> Result<OffloadHandle, AddSaError> {
        let mut config = self.write();
        let reasons = config.why_not(sa.params(), sa.context().cipher().suite(), &offload);
        if !reasons.is_empty() {
            return Err(AddSaError { reasons });
        }
        let handle = config.unit.add(sa, offload)?;
        let (used, limit) = (config.unit.len(), config.unit.capacity());
        drop(config);
        if used == limit - limit / 8 {
            self.emit(NicEvent::Sa(Event::CapacityLow {
                owner: VmId::HOST,
                used,
                limit,
            }));
        }
        Ok(handle)
    }

    /// Takes a list of associations (`OID_TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA`): each succeeds or
    /// fails by itself.
    pub fn add_sas(
        &self,
        sas: impl IntoIterator<Item = (Arc<EspSa>, SaOffload)>,
    ) -> Vec<Result<OffloadHandle, AddSaError>> {
        sas.into_iter()
            .map(|(sa, offload)| self.add_sa(sa, offload))
            .collect()
    }

    /// Crypto mode: tells the adapter the 64-bit sequence number that the association has got
    /// to (`OID_TCP_TASK_IPSEC_OFFLOAD_V2_UPDATE_SA`). The adapter takes a number on the wire
    /// for the nearest one.
    ///
    /// NDIS pushes the high half alone; that is `high << 32 | 0x8000_0000`, the middle of the
    /// subspace, to which all of its numbers are nearest.
    pub fn update_sa(
        &self,
        owner: VmId,
        handle: OffloadHandle,
        sequence: u64,
        now: Timestamp,
    ) -> Result<(), UpdateSaError> {
        let offloaded = {
            let config = self.read();
            let found = config.unit.get(owner, handle);
            Arc::clone(found.ok_or(UpdateSaError::Unknown(handle))?)
        };
        if !offloaded.sa.esn() {
            return Err(UpdateSaError::NotExtended);
        }
        if offloaded.offload.mode == OffloadMode::Packet {
            return Err(UpdateSaError::PacketMode);
        }
        let late_by = {
            let mut faults = lock(&self.faults);
            let rate = faults.plan.late_esn;
            faults.strikes(rate).then(|| {
                faults.counters.late_esn += 1;
                faults.plan.late_by
            })
        };
        match late_by {
            None => offloaded.push(sequence),
            Some(late_by) => {
                let due = Timestamp::from_nanos(now.as_nanos().saturating_add(late_by));
                let mut config = self.write();
                config.late_pushes.push((due, handle, owner, sequence));
            }
        }
        Ok(())
    }

    /// Packet mode: changes lifetimes or path MTU of an association while packets pass.
    pub fn update_lifetime(
        &self,
        owner: VmId,
        handle: OffloadHandle,
        update: &SaUpdate,
    ) -> Result<(), UpdateSaError> {
        let sa = {
            let config = self.read();
            let found = config.unit.get(owner, handle);
            Arc::clone(&found.ok_or(UpdateSaError::Unknown(handle))?.sa)
        };
        let events = sa.update(update).map_err(|_| UpdateSaError::NotExtended)?;
        for event in sa.messages(events) {
            self.emit(NicEvent::Sa(event));
        }
        Ok(())
    }

    /// Stops offloading an association (`OID_TCP_TASK_IPSEC_OFFLOAD_V2_DELETE_SA`). It does not
    /// end: the host may go on with it.
    ///
    /// Two phases, as in Linux: no packet posted from now on uses it, those in flight finish;
    /// [`reap_sas`](Self::reap_sas) tells when the adapter has let go of it. A delete for a
    /// known handle never fails.
    pub fn delete_sa(&self, owner: VmId, handle: OffloadHandle) -> Result<(), UpdateSaError> {
        let removed = self.write().unit.remove(owner, handle);
        removed.map(drop).ok_or(UpdateSaError::Unknown(handle))
    }

    /// Lets go of deleted associations that no packet in flight uses any more, and says which.
    pub fn reap_sas(&self) -> Vec<(OffloadHandle, SaIdentity)> {
        let mut config = self.write();
        // Nothing is being processed while the configuration is held for writing: what is in
        // flight is in the owner's ring.
        let Config { unit, vms, .. } = &mut *config;
        unit.reap(|offloaded| {
            let entry = vms.get(&offloaded.sa.owner());
            entry.is_some_and(|entry| lock(&entry.port.sends).binds(offloaded.handle))
        })
    }

    /// Deleted associations that packets in flight still use.
    pub fn draining_sas(&self) -> usize {
        self.read().unit.draining()
    }

    /// Whether the adapter can protect this IP packet with an association of its own. It can
    /// not where IPv4 options or IPv6 extension headers are beyond it in transport mode.
    pub fn offload_ok(&self, owner: VmId, handle: OffloadHandle, packet: &[u8]) -> bool {
        let config = self.read();
        let found = config.unit.get(owner, handle);
        found.is_some_and(|offloaded| config.enabled.carries(offloaded.sa.mode(), packet))
    }

    /// What an association has done, in the adapter and in software together.
    pub fn sa_statistics(&self, owner: VmId, handle: OffloadHandle) -> Option<SaStatistics> {
        let config = self.read();
        let found = config.unit.get(owner, handle);
        found.map(|offloaded| offloaded.sa.statistics())
    }

    /// Sets the policies that the adapter applies to a machine's packets (packet mode;
    /// `xdo_dev_policy_add`). Without policies its packets pass as they are.
    pub fn set_policies(&self, owner: VmId, policies: Option<Arc<Spd>>) {
        self.write().unit.set_policies(owner, policies);
    }

    /// Restricts what the adapter does to a part of what it supports. Associations that do not
    /// fit any more are lost to the host's software, each with its reason.
    pub fn set_enabled(&self, wanted: &Capabilities) {
        let mut lost = Vec::new();
        {
            let mut config = self.write();
            config.enabled = self.profile.ipsec.restricted_to(wanted);
            let capacity = config.enabled.sa_capacity;
            let enabled = config.enabled.clone();
            for (owner, handle) in config.unit.of(None) {
                let Some(offloaded) = config.unit.at(handle) else {
                    continue;
                };
                let suite = offloaded.sa.context().cipher().suite();
                let mode = offloaded.offload.mode;
                let reasons = enabled.why_not(offloaded.sa.params(), suite, mode);
                if let Some(why) = reasons.into_iter().next() {
                    config.unit.remove(owner, handle);
                    lost.push((owner, handle, why));
                }
            }
            lost.extend(config.shrink(capacity));
        }
        self.emit(NicEvent::CapabilitiesChanged);
        self.report_lost(lost);
    }

    /// Makes something go wrong now.
    pub fn inject(&self, fault: Fault) {
        match fault {
            Fault::Reset => self.reset(),
            Fault::Capacity(capacity) => {
                let lost = self.write().shrink(capacity);
                self.report_lost(lost);
            }
            Fault::Stall { processor, until } => {
                if let Some(processor) = self.processors.get(processor) {
                    lock(processor).stalled_until = until;
                }
            }
            Fault::SurpriseRemoval(vf) => self.surprise_removal(vf),
        }
    }

    fn report_lost(&self, lost: Vec<(VmId, OffloadHandle, WhyNot)>) {
        for (owner, handle, why) in lost {
            self.emit(NicEvent::SaLost { owner, handle, why });
        }
    }

    /// Forgets the associations and what is in the rings; filters, queues and functions stay,
    /// as a driver would restore them.
    fn reset(&self) {
        let mut config = self.write();
        for (owner, handle) in config.unit.of(None) {
            config.unit.remove(owner, handle);
        }
        config.late_pushes.clear();
        let mut losses = lock(&self.receive_losses);
        let mut recycled = lock(&self.recycled);
        for queue in config.queues.iter().flatten() {
            for (frame, _) in lock(&queue.inner).waiting.drain() {
                recycled.push(frame.payload);
                losses.count(Loss::Reset);
            }
        }
        for entry in config.vms.values() {
            let mut sends = lock(&entry.port.sends);
            for poster in [Poster::Host, Poster::Guest] {
                for send in sends.take_all(poster) {
                    sends.refuse(poster, send, Loss::Reset);
                }
            }
        }
        drop((losses, recycled));
        drop(config);
        self.emit(NicEvent::Reset);
    }

    /// Late pushes of sequence numbers whose time has come.
    pub(crate) fn apply_late_pushes(&self, now: Timestamp) {
        let mut config = self.write();
        let due: Vec<_> = config
            .late_pushes
            .extract_if(.., |(due, ..)| *due <= now)
            .collect();
        for (_, handle, owner, sequence) in due {
            if let Some(offloaded) = config.unit.get(owner, handle) {
                offloaded.push(sequence);
            }
        }
    }
}

impl<B: Buffer> Config<B> {
    fn why_not(&self, params: &SaParams, suite: &Suite, offload: &SaOffload) -> Vec<WhyNot> {
        let mut reasons = self.enabled.why_not(params, suite, offload.mode);
        if reasons == [WhyNot::NoIpsec] {
            return reasons;
        }
        let on_port = self.vms.get(&params.owner).is_some_and(|entry| {
            let vlan_fits = match params.scope {
                // The packets are the machine's own: they travel on its VLAN.
                Scope::Vm => offload.vlan == entry.port.address.vlan,
                Scope::Host => true,
            };
            entry.port.port == offload.port && vlan_fits
        });
        if !on_port {
            reasons.push(WhyNot::Port);
        }
        reasons.extend(self.unit.why_full(params.owner));
        reasons
    }

    fn shrink(&mut self, capacity: u32) -> Vec<(VmId, OffloadHandle, WhyNot)> {
        let lost = self.unit.set_capacity(capacity);
        lost.into_iter()
            .map(|(owner, handle)| {
                self.unit.remove(owner, handle);
                (owner, handle, WhyNot::Capacity { capacity })
            })
            .collect()
    }
}
