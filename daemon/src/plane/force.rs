//! What a change does on one node: one call of its worker, between two batches.

use std::collections::HashMap;
use std::sync::Arc;

use vesper_esp::{EspSa, PacketBuf};
use vesper_offload::{
    Host, Nic, OffloadMode, OffloadWish, Placement, SettingsError, SoftwareReason,
};
use vesper_sa::{Action, AddError, Mode, Policy, Protection, SaHandle, Spd, Timestamp, VmId};
use vesper_verify::xfrm::{PolicyAction, Template};

use super::record::PolicyRecord;

/// What one node is asked to do.
#[derive(Default)]
pub(super) struct NodeChange {
    /// Deleted first, since others take their names.
    pub(super) replaced: Vec<(VmId, SaHandle)>,
    /// Whether it must be in the adapter, or not be at all, stands beside each.
    pub(super) add: Vec<(Arc<EspSa>, OffloadWish, bool)>,
    pub(super) policies: Vec<(VmId, Option<Spd>)>,
    pub(super) remove: Vec<(VmId, SaHandle)>,
    /// The limits of the owners that get associations or other limits, before and after. They
    /// are lifted while both the new and the old associations are there.
    pub(super) limits: HashMap<VmId, [u32; 2]>,
    pub(super) machines: Vec<MachineLimits>,
    /// Associations that stay and are to be offloaded in other modes.
    pub(super) modes: Vec<(VmId, SaHandle, Vec<OffloadMode>)>,
}

/// What the adapter is told of a machine that is there.
pub(super) struct MachineLimits {
    pub(super) vm: VmId,
    pub(super) offload_before: u32,
    pub(super) offload: u32,
    pub(super) processor: Option<usize>,
}

/// What was added, in the order in which it was asked for.
pub(super) type Added = std::vec::IntoIter<(SaHandle, Placement)>;

/// Why a node has refused.
pub(super) enum NodeRefusal {
    /// The association at this place in the list.
    Add(usize, AddError),
    /// It was to be in the adapter.
    Packet(SoftwareReason),
    /// What was asked for of a machine.
    Machine(VmId, SettingsError),
}

/// How often the adapter is asked to go on with what waits in it.
const ROUNDS: usize = 64;

/// Packets that it moves each time.
const BUDGET: usize = 512;

impl NodeChange {
    /// Runs on the worker, between two batches of the host and of all processors of the adapter:
    /// no packet sees a part of the change.
    pub(super) fn put_in_force(
        self,
        host: &mut Host<PacketBuf>,
        now: Timestamp,
    ) -> Result<Added, NodeRefusal> {
        let nic = Arc::clone(host.nic());
        if !(self.replaced.is_empty() && self.remove.is_empty()) {
            finish_waiting(&nic, now);
        }
        let _paused = nic.pause();
        for (place, machine) in self.machines.iter().enumerate() {
            if let Err(error) = machine.put_in_force(&nic) {
                for undone in self.machines.iter().take(place) {
                    // It was there a moment ago.
                    let _ = nic.set_ipsec_offload_limit(undone.vm, undone.offload_before);
                }
                return Err(NodeRefusal::Machine(machine.vm, error));
            }
        }
        for owner in self.limits.keys() {
            host.set_sa_limit(*owner, u32::MAX);
        }
        let makes_room = !(self.replaced.is_empty() && self.remove.is_empty());
        // They are there: the registry mirrors the database.
        host.delete_sas(self.replaced);
        let (mut added, refusal) = add(host, self.add);
        if refusal.is_some() {
            host.delete_sas(added.iter().map(|(owner, handle, _)| (*owner, *handle)));
            for undone in &self.machines {
                let _ = nic.set_ipsec_offload_limit(undone.vm, undone.offload_before);
            }
        } else {
            for (vm, policies) in self.policies {
                host.set_policies(vm, policies);
            }
            host.delete_sas(self.remove);
            let moves = !self.modes.is_empty();
            for (owner, handle, modes) in self.modes {
                host.set_modes(owner, handle, modes);
            }
            if moves {
                host.reap_sas();
            }
            if makes_room {
                // There is room now that was not there while both were.
                for (owner, handle, placement) in &mut added {
                    if host.offload(*owner, *handle)
                        && let Some(now) = host.placement(*owner, *handle)
                    {
                        *placement = now.clone();
                    }
                }
            }
            if !self.machines.is_empty() {
                // A higher limit may let in what was refused before.
                host.restore();
            }
        }
        for (owner, [before, after]) in self.limits {
            let limit = if refusal.is_some() { before } else { after };
            host.set_sa_limit(owner, limit);
        }
        match refusal {
            Some(refusal) => Err(refusal),
            None => Ok(added
                .into_iter()
                .map(|(_, handle, placement)| (handle, placement))
                .collect::<Vec<_>>()
                .into_iter()),
        }
    }
}

/// Lets the adapter finish what it was given for associations that are about to go: it would
/// refuse it afterwards. The host's worker, which runs this, is the only one that gives it more.
fn finish_waiting(nic: &Nic<PacketBuf>, now: Timestamp) {
    for _ in 0..ROUNDS {
        let processors = 0..nic.processors();
        let done: usize = processors
            .map(|processor| nic.run_processor(processor, now, BUDGET))
            .sum();
        if done == 0 {
            return;
        }
    }
}

/// Adds associations until one is refused.
fn add(
    host: &mut Host<PacketBuf>,
    sas: Vec<(Arc<EspSa>, OffloadWish, bool)>,
) -> (Vec<(VmId, SaHandle, Placement)>, Option<NodeRefusal>) {
    let mut added = Vec::with_capacity(sas.len());
    for (place, (sa, wish, packet_only)) in sas.into_iter().enumerate() {
        let owner = sa.owner();
        let handle = match host.add_sa(sa, wish) {
            Ok(handle) => handle,
            Err(error) => return (added, Some(NodeRefusal::Add(place, error))),
        };
        let placement = host.placement(owner, handle).cloned();
        let placement = placement.unwrap_or(Placement::Software(SoftwareReason::NotAsked));
        added.push((owner, handle, placement.clone()));
        if let (true, Placement::Software(reason)) = (packet_only, placement) {
            return (added, Some(NodeRefusal::Packet(reason)));
        }
    }
    (added, None)
}

impl MachineLimits {
    fn put_in_force(&self, nic: &Nic<PacketBuf>) -> Result<(), SettingsError> {
        nic.set_ipsec_offload_limit(self.vm, self.offload)?;
        match self.processor {
            Some(processor) => nic.set_processor(self.vm, processor),
            None => Ok(()),
        }
    }
}

/// The table that a node looks packets up in; `None`: they pass as they are.
pub(super) fn table(list: &[Arc<PolicyRecord>], require_protection: bool) -> Option<Spd> {
    let policies: Vec<_> = list
        .iter()
        .map(|record| Policy {
            direction: record.line.direction,
            selector: record.line.selector.clone(),
            action: action(&record.line.action),
        })
        .collect();
    match (require_protection, policies.is_empty()) {
        (true, _) => Some(Spd::new(policies)),
        (false, true) => None,
        (false, false) => Some(Spd::with_default(policies, Action::Bypass)),
    }
}

fn action(action: &PolicyAction) -> Action {
    match action {
        PolicyAction::Block => Action::Discard,
        PolicyAction::Pass => Action::Bypass,
        PolicyAction::Protect(Template {
            destination,
            reqid,
            mode,
            ..
        }) => Action::Protect(Protection {
            reqid: *reqid,
            tunnel: destination.filter(|_| *mode == Mode::Tunnel),
        }),
    }
}
