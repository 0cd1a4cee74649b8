//! What a change does on one node: one call of its worker, between two batches.

use std::collections::HashMap;
use std::sync::Arc;

use vesper_esp::{EspSa, PacketBuf};
use vesper_offload::{
    Host, Nic, OffloadMode, OffloadWish, Placement, SetAside, SettingsError, SoftwareReason,
};
use vesper_sa::{Action, AddError, Mode, Policy, Protection, SaHandle, Spd, Timestamp, VmId};
use vesper_verify::xfrm::{PolicyAction, Template};

use super::record::PolicyRecord;

/// What one node is asked to do.
#[derive(Default)]
pub(super) struct NodeChange {
    /// Out of use first, since others take their names.
    pub(super) replaced: Vec<(VmId, SaHandle)>,
    /// Whether it must be in the adapter, or not be at all, stands beside each.
    pub(super) add: Vec<(Arc<EspSa>, OffloadWish, bool)>,
    pub(super) policies: Vec<NewTable>,
    pub(super) remove: Vec<(VmId, SaHandle)>,
    /// The limits of the owners that get associations or other limits, before and after. They
    /// are lifted while both the new and the old associations are there.
    pub(super) limits: HashMap<VmId, [u32; 2]>,
    pub(super) machines: Vec<MachineLimits>,
    /// Associations that stay and are to be offloaded in other modes.
    pub(super) modes: Vec<NewModes>,
}

/// The policies of a machine, before and after.
pub(super) struct NewTable {
    pub(super) vm: VmId,
    pub(super) before: Option<Spd>,
    pub(super) after: Option<Spd>,
}

/// In which modes an association is to be offloaded, before and after.
pub(super) struct NewModes {
    pub(super) vm: VmId,
    pub(super) handle: SaHandle,
    pub(super) before: Vec<OffloadMode>,
    pub(super) after: Vec<OffloadMode>,
}

/// What takes a change back that is in force, or makes it final.
#[derive(Default)]
#[must_use = "what was replaced is neither in use nor ended"]
pub(super) struct Done {
    added: Vec<(VmId, SaHandle)>,
    aside: Vec<SetAside>,
    policies: Vec<(VmId, Option<Spd>)>,
    limits: Vec<(VmId, u32)>,
    /// Limits of machines in the adapter.
    machines: Vec<(VmId, u32)>,
    modes: Vec<(VmId, SaHandle, Vec<OffloadMode>)>,
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
    /// no packet sees a part of the change. If it is refused, everything is as it was.
    pub(super) fn put_in_force(
        self,
        host: &mut Host<PacketBuf>,
        now: Timestamp,
    ) -> Result<(Added, Done), NodeRefusal> {
        let nic = Arc::clone(host.nic());
        let makes_room = !(self.replaced.is_empty() && self.remove.is_empty());
        if makes_room {
            finish_waiting(&nic, now);
        }
        let _paused = nic.pause();
        let mut done = Done::default();
        for machine in &self.machines {
            done.machines.push((machine.vm, machine.offload_before));
            if let Err(error) = machine.put_in_force(&nic) {
                done.take_back(host);
                return Err(NodeRefusal::Machine(machine.vm, error));
            }
        }
        for (owner, [before, _]) in &self.limits {
            done.limits.push((*owner, *before));
            host.set_sa_limit(*owner, u32::MAX);
        }
        done.set_aside(host, self.replaced);
        let (mut added, refusal) = add(host, self.add);
        done.added = added.iter().map(|(vm, handle, _)| (*vm, *handle)).collect();
        if let Some(refusal) = refusal {
            done.take_back(host);
            return Err(refusal);
        }
        for table in self.policies {
            done.policies.push((table.vm, table.before));
            host.set_policies(table.vm, table.after);
        }
        done.set_aside(host, self.remove);
        let moves = !self.modes.is_empty();
        for modes in self.modes {
            done.modes.push((modes.vm, modes.handle, modes.before));
            host.set_modes(modes.vm, modes.handle, modes.after);
        }
        if moves || makes_room {
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
        for (owner, [_, after]) in self.limits {
            host.set_sa_limit(owner, after);
        }
        let added: Vec<_> = (added.into_iter())
            .map(|(_, handle, placement)| (handle, placement))
            .collect();
        Ok((added.into_iter(), done))
    }
}

impl Done {
    fn set_aside(&mut self, host: &mut Host<PacketBuf>, sas: Vec<(VmId, SaHandle)>) {
        // They are there: the registry mirrors the database.
        let sas = sas.into_iter();
        self.aside
            .extend(sas.filter_map(|(owner, handle)| host.set_aside(owner, handle).ok()));
    }

    /// Ends what was replaced.
    pub(super) fn confirm(self, host: &mut Host<PacketBuf>) {
        host.end_aside(self.aside);
    }

    /// Runs on the worker, as the change did: another node has refused its part.
    pub(super) fn undo(self, host: &mut Host<PacketBuf>, now: Timestamp) {
        let nic = Arc::clone(host.nic());
        finish_waiting(&nic, now);
        let _paused = nic.pause();
        self.take_back(host);
    }

    /// Everything is as it was. The adapter is paused.
    fn take_back(self, host: &mut Host<PacketBuf>) {
        host.delete_sas(self.added);
        for (vm, offload) in self.machines {
            // It was there a moment ago.
            let _ = host.nic().set_ipsec_offload_limit(vm, offload);
        }
        for (vm, handle, modes) in self.modes {
            host.set_modes(vm, handle, modes);
        }
        for (vm, policies) in self.policies {
            host.set_policies(vm, policies);
        }
        // The latest first, so that each finds the place that it had.
        for aside in self.aside.into_iter().rev() {
            host.put_back(aside);
        }
        for (owner, limit) in self.limits {
            host.set_sa_limit(owner, limit);
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
