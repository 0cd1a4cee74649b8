//! Verbs on policies.

use std::sync::Arc;

use vesper_verify::xfrm::PolicyLine;

use super::change::{Draft, NewPolicies};
use super::event::Subject;
use super::record::{Origin, PolicyRecord, SaId, VmRecord};
use super::sa::Making;
use super::spec::SaSpec;
use super::{Plane, PolicyFilter, Refusal, Scope};

impl Plane {
    /// Adds policies, all or none. With `replace`, one for the same machine, direction and
    /// packets is replaced (`ip xfrm policy update`), else it is in the way.
    ///
    /// Lower priorities decide first; of equal ones the older.
    pub fn add_policies(
        &self,
        lines: Vec<PolicyLine>,
        replace: bool,
        origin: Origin,
    ) -> Result<usize, Refusal> {
        let _changing = self.begin_change();
        let count = lines.len();
        let mut draft = Draft::default();
        for line in lines {
            self.draft_policy(&mut draft, line, replace, origin)?;
        }
        self.apply_policies(draft)?;
        Ok(count)
    }

    /// Adds associations and policies, all or none.
    pub fn import(
        &self,
        scope: Scope,
        sas: Vec<SaSpec>,
        policies: Vec<PolicyLine>,
        origin: Origin,
    ) -> Result<(), Refusal> {
        self.check_quotas(scope, &sas)?;
        let _changing = self.begin_change();
        let mut draft = Draft::default();
        let mut making = Making::default();
        for spec in sas {
            draft.add.push(self.make(scope, spec, origin, &mut making)?);
        }
        for line in policies {
            self.draft_policy(&mut draft, line, false, origin)?;
        }
        let ids = self.apply_policies(draft)?;
        for record in ids.iter().filter_map(|id| self.sa(Scope::All, *id)) {
            self.tell_sa("sa-added", &record);
        }
        Ok(())
    }

    /// Deletes the policies that are meant; how many there were.
    pub fn delete_policies(&self, filter: &PolicyFilter) -> Result<usize, Refusal> {
        let _changing = self.begin_change();
        let mut draft = Draft::default();
        let mut count = 0;
        let vms: Vec<_> = self.registry().policies.keys().copied().collect();
        for vm in vms {
            let Some(record) = self.registry().vms.get(&vm).cloned() else {
                continue;
            };
            let policies = self.policies_of(&record);
            let before = policies.list.len();
            let list: Vec<_> = policies
                .list
                .into_iter()
                .filter(|policy| !filter.matches(policy))
                .collect();
            if list.len() < before {
                count += before - list.len();
                draft.policies.insert(vm, NewPolicies { list, ..policies });
            }
        }
        if count == 0 && !filter.is_empty() {
            return Err(Refusal::not_found("policy", filter));
        }
        self.apply_policies(draft)?;
        Ok(count)
    }

    /// The policies that are meant, machine by machine in the order in which they decide.
    pub fn policies(&self, filter: &PolicyFilter) -> Vec<Arc<PolicyRecord>> {
        let registry = self.registry();
        let policies = registry.all_policies().map(|(_, policy)| policy);
        policies
            .filter(|policy| filter.matches(policy))
            .cloned()
            .collect()
    }

    /// Adds a policy to the draft, in its place.
    pub(super) fn draft_policy(
        &self,
        draft: &mut Draft,
        mut line: PolicyLine,
        replace: bool,
        origin: Origin,
    ) -> Result<(), Refusal> {
        let (_, _, vm) = self.locate(Scope::All, line.host.as_deref(), line.vm.as_deref())?;
        let vm = vm.ok_or_else(|| {
            Refusal::words(
                "vm",
                "",
                "missing: a policy is about the packets of a virtual machine",
                "say `vm NAME`",
            )
        })?;
        line.host = Some(vm.spec.host.clone());
        line.vm = Some(vm.spec.name.clone());
        let id = self.registry_mut().next_id();
        let policies = draft
            .policies
            .entry(vm.id)
            .or_insert_with(|| self.policies_of(&vm));
        let same = |policy: &Arc<PolicyRecord>| {
            policy.line.direction == line.direction && policy.line.selector == line.selector
        };
        if let Some(place) = policies.list.iter().position(same) {
            if !replace {
                return Err(Refusal::conflict(
                    "policy",
                    &line,
                    "there is one for the same packets already",
                    "use `update`, or delete that one",
                ));
            }
            policies.list.remove(place);
        }
        let place = policies
            .list
            .partition_point(|policy| policy.line.priority <= line.priority);
        let record = PolicyRecord {
            id,
            origin,
            host: Arc::clone(&policies.host),
            vm: Arc::clone(&policies.vm),
            line,
        };
        policies.list.insert(place, Arc::new(record));
        Ok(())
    }

    /// The policies that a machine has.
    pub(super) fn policies_of(&self, vm: &VmRecord) -> NewPolicies {
        let list = self.registry().policies.get(&vm.id).cloned();
        NewPolicies {
            node: vm.node,
            host: vm.spec.host.as_str().into(),
            vm: vm.spec.name.as_str().into(),
            require_protection: vm.spec.require_protection,
            list: list.unwrap_or_default(),
        }
    }

    fn apply_policies(&self, draft: Draft) -> Result<Vec<SaId>, Refusal> {
        let told: Vec<_> = draft
            .policies
            .iter()
            .map(|(vm, policies)| {
                let subject = Subject {
                    owner: Some(*vm),
                    vm: Some(Arc::clone(&policies.vm)),
                    ..Subject::default()
                };
                let text = format!("{} has {} policies", policies.vm, policies.list.len());
                (Arc::clone(&policies.host), subject, text)
            })
            .collect();
        let ids = self.apply(draft)?;
        for (host, subject, text) in told {
            self.events.tell("policies-changed", &host, subject, text);
        }
        Ok(ids)
    }
}
