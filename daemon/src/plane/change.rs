//! One set of changes: checked as a whole, made durable, and put in force in one call per node.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use vesper_esp::EspSa;
use vesper_offload::OffloadWish;
use vesper_sa::{AddError, Lifetime, VmId};
use zeroize::Zeroizing;

use super::force::{
    Added, Done, MachineLimits, NewModes, NewTable, NodeChange, NodeRefusal, table,
};
use super::persistence::{Change, Secret};
use super::record::{Origin, PolicyRecord, SaId, SaRecord, VmRecord};
use super::registry::{Registry, SaName};
use super::spec::MachineSpec;
use super::{Plane, Refusal, kept};

/// What a set of changes has changed: a line for each thing, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// What is new.
    pub added: Vec<String>,
    /// What is different: a machine with other settings, an association with other keys.
    pub changed: Vec<String>,
    /// What is gone.
    pub removed: Vec<String>,
}

/// Changes that are made together, or not at all.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) add: Vec<NewSa>,
    pub(super) remove: Vec<Arc<SaRecord>>,
    /// The policies that these machines are to have, all of them in their order.
    pub(super) policies: BTreeMap<VmId, NewPolicies>,
    /// Machines that get other limits.
    pub(super) machines: Vec<NewMachine>,
}

/// Other limits of a machine.
pub(super) struct NewMachine {
    pub(super) record: Arc<VmRecord>,
    pub(super) spec: MachineSpec,
    /// Another processor of the adapter.
    pub(super) processor: Option<usize>,
}

/// An association that is made, but not in force.
pub(super) struct NewSa {
    pub(super) node: usize,
    pub(super) host: Arc<str>,
    pub(super) vm: Option<Arc<str>>,
    pub(super) sa: Arc<EspSa>,
    pub(super) wish: OffloadWish,
    /// It must be in the adapter, or not be at all.
    pub(super) packet_only: bool,
    /// Its words leave it to the machine how it is offloaded.
    pub(super) follows_machine: bool,
    pub(super) limit: u32,
    pub(super) lifetime: Lifetime,
    pub(super) words: Arc<str>,
    pub(super) secret: Zeroizing<String>,
    pub(super) fingerprint: [u8; 32],
    pub(super) origin: Origin,
    pub(super) needs_rekey: Option<Arc<str>>,
    /// It is in the store already.
    pub(super) recovered: bool,
}

/// All policies of a machine.
pub(super) struct NewPolicies {
    pub(super) node: usize,
    pub(super) host: Arc<str>,
    pub(super) vm: Arc<str>,
    pub(super) require_protection: bool,
    pub(super) list: Vec<Arc<PolicyRecord>>,
}

impl Plane {
    /// Makes all of the changes, or none. The caller holds [`Plane::begin_change`].
    pub(super) fn apply(&self, draft: Draft) -> Result<Vec<SaId>, Refusal> {
        let (mut nodes, replaced) = {
            let registry = self.registry();
            let replaced = check(&registry, &draft)?;
            (nodes_of(&registry, &draft, &replaced), replaced)
        };
        // A node that has ended fails here, where nothing has changed.
        for index in nodes.keys() {
            Self::now(&self.node(*index)?)?;
        }
        let undo = self.undo_of(&draft)?;
        let changes = changes_of(&draft);
        let begun = match draft.add.is_empty() {
            true => {
                self.persistence.commit(&changes)?;
                Ok(())
            }
            // One synchronisation of the disk for them and for what they begin with.
            false => (self.persistence.prepare(&changes))
                .map_err(Refusal::from)
                .and_then(|()| self.begin(&draft)),
        };
        let done = begun.and_then(|()| self.call_nodes(&draft, &mut nodes));
        let mut added = match done {
            Ok(added) => added,
            Err(refusal) => {
                let undo: Vec<_> = undo.iter().map(Undo::change).collect();
                // If this fails as well, the store is what the operator hears of.
                let reverted = self.persistence.revert(&undo);
                self.watch_again(&draft, &replaced)?;
                let hosts: HashSet<_> = draft.remove.iter().map(|record| &*record.host).collect();
                for host in hosts {
                    // What was put back may have another place in the adapter.
                    self.refresh_placements(host);
                }
                reverted?;
                return Err(refusal);
            }
        };
        Ok(self.record(draft, &mut added))
    }

    fn begin(&self, draft: &Draft) -> Result<(), Refusal> {
        let (waiting, ready): (Vec<_>, Vec<_>) =
            (draft.add.iter()).partition(|new| new.needs_rekey.is_some());
        for new in waiting {
            new.sa.close();
        }
        let ready: Vec<_> = ready.iter().map(|new| (&*new.host, &new.sa)).collect();
        Ok(self.persistence.begin(&ready)?)
    }

    /// What was refused gets no more numbers, and what it would have replaced goes on.
    fn watch_again(&self, draft: &Draft, replaced: &HashSet<SaId>) -> Result<(), Refusal> {
        let stay = draft
            .remove
            .iter()
            .filter(|record| replaced.contains(&record.id) && record.needs_rekey.is_none());
        let stay: Vec<_> = stay.map(|record| (&*record.host, &record.sa)).collect();
        let names: HashSet<_> = stay
            .iter()
            .map(|(host, sa)| (*host, sa.identity()))
            .collect();
        for new in draft.add.iter() {
            let name = (&*new.host, new.sa.identity());
            if !names.contains(&name) {
                self.persistence.end(name.0, &name.1);
            }
        }
        if stay.is_empty() {
            return Ok(());
        }
        Ok(self.persistence.begin(&stay)?)
    }

    /// Puts the parts of all nodes in force, or of none.
    fn call_nodes(
        &self,
        draft: &Draft,
        nodes: &mut BTreeMap<usize, NodeChange>,
    ) -> Result<HashMap<usize, Added>, Refusal> {
        let mut added = HashMap::new();
        let mut done = Vec::new();
        let is_one = nodes.len() == 1;
        for (index, change) in core::mem::take(nodes) {
            match self.call_node(draft, index, change, is_one) {
                Ok((here, taken)) => {
                    added.insert(index, here);
                    done.push((index, taken));
                }
                Err(refusal) => {
                    for (index, done) in done.into_iter().rev() {
                        // What has ended holds nothing that could be taken back.
                        if let Ok(node) = self.node(index) {
                            let _ = node.handle.call(move |host, now| done.undo(host, now));
                        }
                    }
                    return Err(refusal);
                }
            }
        }
        for (index, done) in done.into_iter().filter(|_| !is_one) {
            // It is in force: a node that ends now carries nothing.
            if let Ok(node) = self.node(index) {
                let _ = node.handle.call(move |host, _| done.confirm(host));
            }
        }
        Ok(added)
    }

    fn call_node(
        &self,
        draft: &Draft,
        index: usize,
        change: NodeChange,
        is_final: bool,
    ) -> Result<(Added, Done), Refusal> {
        let answer = self.node(index)?.handle.call(move |host, now| {
            let (added, done) = change.put_in_force(host, now)?;
            match is_final {
                true => {
                    done.confirm(host);
                    Ok((added, Done::default()))
                }
                false => Ok((added, done)),
            }
        })?;
        answer.map_err(|refusal| {
            let mut here = draft.add.iter().filter(|new| new.node == index);
            match refusal {
                NodeRefusal::Add(place, error) => {
                    add_refused(here.nth(place).map(|new| &*new.sa), &error)
                }
                NodeRefusal::Packet(reason) => packet_refused(&reason.to_string()),
                NodeRefusal::Machine(vm, error) => {
                    Refusal::conflict("vm", vm, error.to_string(), "change its settings")
                }
            }
        })
    }

    /// Writes into the registry what is in force now.
    fn record(&self, draft: Draft, added: &mut HashMap<usize, Added>) -> Vec<SaId> {
        let mut ended = Vec::new();
        let begun: HashSet<_> = draft
            .add
            .iter()
            .map(|new| (Arc::clone(&new.host), new.sa.identity()))
            .collect();
        let mut ids = Vec::new();
        let nodes: HashSet<usize> = draft.remove.iter().map(|record| record.node).collect();
        {
            let mut registry = self.registry_mut();
            for record in draft.remove {
                registry.remove_sa(record.id);
                ended.push(record);
            }
            for new in draft.add {
                let id = SaId(registry.next_id());
                let place = added.get_mut(&new.node).and_then(Iterator::next);
                // Each node has answered for each of its associations.
                let Some((handle, placement)) = place else {
                    continue;
                };
                ids.push(id);
                registry.insert_sa(SaRecord {
                    id,
                    origin: new.origin,
                    node: new.node,
                    host: new.host,
                    vm: new.vm,
                    sa: new.sa,
                    handle,
                    words: new.words,
                    fingerprint: new.fingerprint,
                    lifetime: new.lifetime,
                    added: SystemTime::now(),
                    placement,
                    follows_machine: new.follows_machine,
                    needs_rekey: new.needs_rekey,
                });
            }
            for (vm, policies) in draft.policies {
                registry.policies.insert(vm, policies.list);
            }
            for machine in draft.machines {
                let changed = VmRecord {
                    spec: machine.spec,
                    ..(*machine.record).clone()
                };
                registry.vms.insert(changed.id, Arc::new(changed));
            }
        }
        // One of the same name has taken the place of those that were replaced.
        for record in &ended {
            let name = (Arc::clone(&record.host), record.identity());
            if !begun.contains(&name) {
                self.persistence.end(&name.0, &name.1);
            }
        }
        drop(ended);
        // The registry has let go of them: their keys are wiped now, or with the last packet.
        for index in nodes {
            if let Ok(node) = self.node(index) {
                let _ = node.handle.call(|host, _| host.reap_sas());
            }
        }
        ids
    }

    /// What puts the store back to where it was.
    fn undo_of<'a>(&self, draft: &'a Draft) -> Result<Vec<Undo<'a>>, Refusal> {
        let mut undo = Vec::new();
        for new in draft.add.iter().filter(|new| !new.recovered) {
            undo.push(Undo::Delete(&new.host, &new.sa));
        }
        for record in &draft.remove {
            let words = self.persistence.words(&record.host, &record.identity())?;
            undo.extend(words.map(|words| Undo::Put(Arc::clone(record), words)));
        }
        let registry = self.registry();
        for (vm, policies) in &draft.policies {
            let before = registry.policies.get(vm).cloned().unwrap_or_default();
            undo.push(Undo::Policies(&policies.host, &policies.vm, before));
        }
        let machines = draft.machines.iter().filter(|machine| machine.is_kept());
        undo.extend(machines.map(|machine| Undo::Machine(&machine.record)));
        Ok(undo)
    }
}

/// What would put one thing in the store back.
enum Undo<'a> {
    Delete(&'a str, &'a Arc<EspSa>),
    Put(Arc<SaRecord>, Zeroizing<String>),
    Policies(&'a str, &'a str, Vec<Arc<PolicyRecord>>),
    Machine(&'a VmRecord),
}

impl Undo<'_> {
    fn change(&self) -> Change<'_> {
        match self {
            Self::Delete(host, sa) => Change::DeleteSa {
                host,
                sa: sa.identity(),
            },
            Self::Put(record, words) => Change::PutSa {
                host: &record.host,
                sa: record.identity(),
                words: Secret(words),
                configured: record.origin == Origin::Configured,
            },
            Self::Policies(host, vm, list) => set_policies(host, vm, list),
            Self::Machine(record) => put_vm(record, &record.spec),
        }
    }
}

fn changes_of(draft: &Draft) -> Vec<Change<'_>> {
    let removed = draft.remove.iter().map(|record| Change::DeleteSa {
        host: &record.host,
        sa: record.identity(),
    });
    let added = draft
        .add
        .iter()
        .filter(|new| !new.recovered)
        .map(|new| Change::PutSa {
            host: &new.host,
            sa: new.sa.identity(),
            words: Secret(&new.secret),
            configured: new.origin == Origin::Configured,
        });
    let policies = draft
        .policies
        .values()
        .map(|policies| set_policies(&policies.host, &policies.vm, &policies.list));
    let machines = draft.machines.iter().filter(|machine| machine.is_kept());
    let machines = machines.map(|machine| put_vm(&machine.record, &machine.spec));
    (removed.chain(added).chain(policies).chain(machines)).collect()
}

fn put_vm<'a>(record: &'a VmRecord, spec: &MachineSpec) -> Change<'a> {
    Change::PutVm {
        host: &record.spec.host,
        vm: &record.spec.name,
        settings: kept::settings(spec, record.port.as_deref()),
    }
}

impl NewMachine {
    /// Those of the configuration come from there at every start.
    fn is_kept(&self) -> bool {
        self.record.origin == Origin::Requested
    }
}

fn set_policies<'a>(host: &'a str, vm: &'a str, list: &[Arc<PolicyRecord>]) -> Change<'a> {
    let line =
        |record: &Arc<PolicyRecord>| (record.line.to_string(), record.origin == Origin::Configured);
    Change::SetPolicies {
        host,
        vm,
        policies: list.iter().map(line).collect(),
    }
}

/// Checks names and quotas as the databases of the nodes will; which of those that go are
/// replaced by one of the same name.
pub(super) fn check(registry: &Registry, draft: &Draft) -> Result<HashSet<SaId>, Refusal> {
    let mut going: HashMap<SaName, SaId> = HashMap::new();
    let mut counts: HashMap<(usize, VmId), i64> = HashMap::new();
    for record in &draft.remove {
        going.insert(SaName::of(record.node, &record.sa), record.id);
        *counts.entry((record.node, record.sa.owner())).or_default() -= 1;
    }
    let limits: HashMap<VmId, u32> = (draft.machines.iter())
        .map(|machine| (machine.record.id, machine.spec.sa_limit))
        .collect();
    let mut replaced = HashSet::new();
    let mut coming = HashSet::new();
    for new in &draft.add {
        let name = SaName::of(new.node, &new.sa);
        let exists = registry.sa_named(&name).is_some();
        match going.get(&name) {
            Some(id) => {
                replaced.insert(*id);
            }
            None if exists => return Err(exists_already(&new.sa)),
            None => {}
        }
        if !coming.insert(name) {
            return Err(exists_already(&new.sa));
        }
        let owner = (new.node, new.sa.owner());
        let count = counts.entry(owner).or_default();
        *count += 1;
        let limit = limits.get(&owner.1).copied().unwrap_or(new.limit);
        if i64::from(registry.owned(owner.0, owner.1)) + *count > i64::from(limit) {
            return Err(quota_exceeded(new.vm.as_deref(), limit));
        }
    }
    Ok(replaced)
}

fn nodes_of(
    registry: &Registry,
    draft: &Draft,
    replaced: &HashSet<SaId>,
) -> BTreeMap<usize, NodeChange> {
    let mut nodes: BTreeMap<usize, NodeChange> = BTreeMap::new();
    for record in &draft.remove {
        let node = nodes.entry(record.node).or_default();
        let list = match replaced.contains(&record.id) {
            true => &mut node.replaced,
            false => &mut node.remove,
        };
        list.push((record.sa.owner(), record.handle));
    }
    for new in &draft.add {
        let node = nodes.entry(new.node).or_default();
        node.limits.insert(new.sa.owner(), [new.limit; 2]);
        node.add
            .push((Arc::clone(&new.sa), new.wish.clone(), new.packet_only));
    }
    for (vm, policies) in &draft.policies {
        let before = registry.policies.get(vm).map_or(&[][..], Vec::as_slice);
        // A machine that is not known any more has no packets either.
        let required = registry
            .vms
            .get(vm)
            .is_none_or(|vm| vm.spec.require_protection);
        let node = nodes.entry(policies.node).or_default();
        node.policies.push(NewTable {
            vm: *vm,
            before: table(before, required),
            after: table(&policies.list, policies.require_protection),
        });
    }
    for NewMachine {
        record,
        spec,
        processor,
    } in &draft.machines
    {
        let node = nodes.entry(record.node).or_default();
        let limits = [record.spec.sa_limit, spec.sa_limit];
        node.limits.insert(record.id, limits);
        node.machines.push(MachineLimits {
            vm: record.id,
            offload_before: record.spec.settings.ipsec_offload_limit,
            offload: spec.settings.ipsec_offload_limit,
            processor: *processor,
        });
        if spec.offload != record.spec.offload {
            let going: HashSet<SaId> = draft.remove.iter().map(|record| record.id).collect();
            let stay = registry.sas.values().filter(|sa| {
                sa.sa.owner() == record.id && sa.follows_machine && !going.contains(&sa.id)
            });
            node.modes.extend(stay.map(|sa| NewModes {
                vm: record.id,
                handle: sa.handle,
                before: record.spec.offload.clone(),
                after: spec.offload.clone(),
            }));
        }
    }
    nodes
}

pub(super) fn quota_exceeded(vm: Option<&str>, limit: u32) -> Refusal {
    Refusal::conflict(
        "vm",
        vm.unwrap_or("(host)"),
        format!("has its {limit} SAs already"),
        "delete one, or raise its sa_limit",
    )
}

fn exists_already(sa: &EspSa) -> Refusal {
    Refusal::conflict(
        "spi",
        sa.spi(),
        format!(
            "in use: there is an {} SA to {} with it",
            sa.direction(),
            sa.params().destination
        ),
        "choose another SPI, or delete that SA",
    )
}

pub(super) fn packet_refused(reasons: &str) -> Refusal {
    Refusal::conflict(
        "offload",
        "packet",
        format!("the adapter can not: {reasons}"),
        "leave `packet` out, so that software may do it",
    )
}

fn add_refused(sa: Option<&EspSa>, error: &AddError) -> Refusal {
    match sa {
        Some(sa) => Refusal::conflict("spi", sa.spi(), error.to_string(), ""),
        None => Refusal::conflict("", "", error.to_string(), ""),
    }
}

impl Diff {
    /// Whether nothing has changed.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing has changed");
        }
        let removed = self.removed.iter().map(|line| ('-', line));
        let changed = self.changed.iter().map(|line| ('~', line));
        let added = self.added.iter().map(|line| ('+', line));
        for (index, (sign, line)) in removed.chain(changed).chain(added).enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{sign} {line}")?;
        }
        Ok(())
    }
}
