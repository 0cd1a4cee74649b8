//! What there is, by all of its names.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use vesper_esp::EspSa;
use vesper_sa::{Direction, ReceiveKey, SaIdentity, VmId};

use super::record::{PolicyRecord, SaId, SaRecord, VmRecord};

/// What there is. Every database of every node mirrors it.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    pub(crate) sas: BTreeMap<SaId, Arc<SaRecord>>,
    names: HashMap<SaName, SaId>,
    owned: HashMap<(usize, VmId), u32>,
    pub(crate) vms: BTreeMap<VmId, Arc<VmRecord>>,
    /// In the order in which they decide.
    pub(crate) policies: BTreeMap<VmId, Vec<Arc<PolicyRecord>>>,
    last_id: u64,
}

/// What only one association of a node can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SaName {
    Inbound(usize, ReceiveKey),
    Outbound(usize, SaIdentity),
}

impl SaName {
    pub(crate) fn of(node: usize, sa: &EspSa) -> Self {
        match sa.direction() {
            Direction::Inbound => Self::Inbound(node, ReceiveKey::of(sa.params())),
            Direction::Outbound => Self::Outbound(node, sa.identity()),
        }
    }
}

impl Registry {
    /// A number that nothing has had yet.
    pub(crate) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(crate) fn insert_sa(&mut self, record: SaRecord) {
        let name = SaName::of(record.node, &record.sa);
        self.names.insert(name, record.id);
        let owner = (record.node, record.sa.owner());
        if self.sas.insert(record.id, Arc::new(record)).is_none() {
            *self.owned.entry(owner).or_default() += 1;
        }
    }

    pub(crate) fn remove_sa(&mut self, id: SaId) -> Option<Arc<SaRecord>> {
        let record = self.sas.remove(&id)?;
        self.names.remove(&SaName::of(record.node, &record.sa));
        if let Some(count) = self.owned.get_mut(&(record.node, record.sa.owner())) {
            *count = count.saturating_sub(1);
        }
        Some(record)
    }

    /// The association that has this name.
    pub(crate) fn sa_named(&self, name: &SaName) -> Option<&Arc<SaRecord>> {
        self.sas.get(self.names.get(name)?)
    }

    /// How many associations an owner has on a node.
    pub(crate) fn owned(&self, node: usize, owner: VmId) -> u32 {
        self.owned.get(&(node, owner)).copied().unwrap_or(0)
    }

    /// The machine with this name on this node.
    pub(crate) fn vm_on(&self, node: usize, name: &str) -> Option<&Arc<VmRecord>> {
        let mut vms = self.vms.values();
        vms.find(|vm| vm.node == node && vm.spec.name == name)
    }

    /// The policies of all machines, machine by machine in their order.
    pub(crate) fn all_policies(&self) -> impl Iterator<Item = (VmId, &Arc<PolicyRecord>)> {
        self.policies
            .iter()
            .flat_map(|(vm, policies)| policies.iter().map(|policy| (*vm, policy)))
    }
}
