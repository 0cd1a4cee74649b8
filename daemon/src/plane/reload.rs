//! A new configuration as one transaction: all of it, or nothing.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use vesper_verify::xfrm::State;

use super::change::{Diff, Draft, NewMachine, check};
use super::record::{Origin, SaId};
use super::sa::Making;
use super::spec::{Desired, MachineSpec, SaSpec};
use super::{Plane, Refusal, Scope};

impl Plane {
    /// Makes what the configuration asks for so: adds, replaces and deletes associations and
    /// policies, and changes machines. What did not come from the configuration stays, and so
    /// does what has not changed, with its counters and sequence numbers. With `only_check`
    /// nothing is done.
    ///
    /// # Errors
    /// The first thing that can not be done; then nothing is.
    pub fn reload(&self, desired: Desired, only_check: bool) -> Result<Diff, Refusal> {
        let mut diff = Diff::default();
        let _changing = self.begin_change();
        let mut draft = Draft {
            machines: self.machine_changes(&desired.machines, &mut diff)?,
            ..Draft::default()
        };
        self.draft_sas(&mut draft, &desired.sas, &mut diff)?;
        self.draft_policies(&mut draft, &desired, &mut diff)?;
        if only_check {
            check(&self.registry(), &draft)?;
            return Ok(diff);
        }
        let changed: Vec<_> = (draft.machines.iter())
            .map(|machine| Arc::clone(&machine.record))
            .collect();
        self.apply(draft)?;
        for vm in changed {
            self.refresh_placements(&vm.spec.host);
            self.tell_vm("vm-changed", &vm, "changed");
        }
        if !diff.is_empty() {
            let text = format!(
                "{} added, {} changed, {} removed",
                diff.added.len(),
                diff.changed.len(),
                diff.removed.len()
            );
            self.events
                .tell("reload", &"".into(), Default::default(), text);
        }
        Ok(diff)
    }

    /// Machines come and go with their ports, which a reload does not touch; their limits it
    /// changes.
    fn machine_changes(
        &self,
        machines: &[MachineSpec],
        diff: &mut Diff,
    ) -> Result<Vec<NewMachine>, Refusal> {
        let mut changes = Vec::new();
        let mut named = HashSet::new();
        for spec in machines {
            let vm = self
                .vm_named(Some(&spec.host), &spec.name)
                .map_err(|_| needs_restart(spec, "is new"))?;
            named.insert(vm.id);
            let fixed = |spec: &MachineSpec| MachineSpec {
                sa_limit: 0,
                offload: Vec::new(),
                require_protection: true,
                settings: vesper_offload::VmSettings {
                    ipsec_offload_limit: 0,
                    ..spec.settings
                },
                ..spec.clone()
            };
            if fixed(spec) != fixed(&vm.spec) {
                return Err(needs_restart(spec, "has another address or other weights"));
            }
            if *spec != vm.spec {
                diff.changed.push(format!("vm {}/{}", spec.host, spec.name));
                changes.push(NewMachine {
                    record: vm,
                    spec: spec.clone(),
                    processor: None,
                });
            }
        }
        let vms = self.vms();
        let gone = vms
            .iter()
            .find(|vm| vm.origin == Origin::Configured && !named.contains(&vm.id));
        match gone {
            Some(vm) => Err(needs_restart(&vm.spec, "is gone")),
            None => Ok(changes),
        }
    }

    fn draft_sas(
        &self,
        draft: &mut Draft,
        states: &[State],
        diff: &mut Diff,
    ) -> Result<(), Refusal> {
        let configured: HashMap<[u8; 32], SaId> = {
            let registry = self.registry();
            let records = registry.sas.values();
            records
                .filter(|record| record.origin == Origin::Configured)
                .map(|record| (record.fingerprint, record.id))
                .collect()
        };
        let mut kept = HashSet::new();
        let mut making = Making::default();
        for machine in &draft.machines {
            let modes = machine.spec.offload.clone();
            making.modes.insert(machine.record.id, modes);
        }
        for state in states {
            let same = configured
                .get(&self.fingerprint(state))
                .and_then(|id| self.sa(Scope::All, *id))
                .filter(|record| record.lifetime == state.lifetime && !kept.contains(&record.id));
            if let Some(record) = same {
                kept.insert(record.id);
                continue;
            }
            let spec = SaSpec::new(state.clone());
            let new = self.make(Scope::All, spec, Origin::Configured, &mut making)?;
            draft.add.push(new);
        }
        let registry = self.registry();
        let gone = registry
            .sas
            .values()
            .filter(|record| record.origin == Origin::Configured && !kept.contains(&record.id));
        draft.remove = gone.cloned().collect();
        let describe = |host: &str, vm: Option<&str>, words: &str| {
            format!("sa {host}/{} {words}", vm.unwrap_or("-"))
        };
        let removed: HashSet<_> = draft
            .remove
            .iter()
            .map(|record| (record.node, record.identity()))
            .collect();
        let mut replaced = HashSet::new();
        for new in &draft.add {
            let line = describe(&new.host, new.vm.as_deref(), &new.words);
            let name = (new.node, new.sa.identity());
            if removed.contains(&name) {
                replaced.insert(name);
                diff.changed.push(line);
            } else {
                diff.added.push(line);
            }
        }
        for record in &draft.remove {
            if !replaced.contains(&(record.node, record.identity())) {
                let line = describe(&record.host, record.vm.as_deref(), &record.words);
                diff.removed.push(line);
            }
        }
        Ok(())
    }

    fn draft_policies(
        &self,
        draft: &mut Draft,
        desired: &Desired,
        diff: &mut Diff,
    ) -> Result<(), Refusal> {
        let before: HashSet<String> = {
            let registry = self.registry();
            let policies = registry.all_policies();
            policies
                .filter(|(_, policy)| policy.origin == Origin::Configured)
                .map(|(_, policy)| policy.line.to_string())
                .collect()
        };
        // From what was requested otherwise, with all that is configured added anew.
        for vm in self.vms() {
            let mut policies = self.policies_of(&vm);
            policies
                .list
                .retain(|policy| policy.origin == Origin::Requested);
            let machine = (draft.machines.iter()).find(|machine| machine.record.id == vm.id);
            if let Some(machine) = machine {
                policies.require_protection = machine.spec.require_protection;
            }
            draft.policies.insert(vm.id, policies);
        }
        for line in &desired.policies {
            self.draft_policy(draft, line.clone(), false, Origin::Configured)?;
        }
        let mut after = HashSet::new();
        for policies in draft.policies.values() {
            let configured = policies.list.iter();
            let configured = configured.filter(|policy| policy.origin == Origin::Configured);
            after.extend(configured.map(|policy| policy.line.to_string()));
        }
        let mut added: Vec<_> = after.difference(&before).collect();
        let mut removed: Vec<_> = before.difference(&after).collect();
        added.sort_unstable();
        removed.sort_unstable();
        let line = |words: &String| format!("policy {words}");
        diff.added.extend(added.into_iter().map(line));
        diff.removed.extend(removed.into_iter().map(line));
        Ok(())
    }
}

fn needs_restart(spec: &MachineSpec, what: &str) -> Refusal {
    Refusal::conflict(
        "vm",
        format!("{}/{}", spec.host, spec.name),
        format!("{what}, which a reload does not do"),
        "restart vesperd",
    )
}
