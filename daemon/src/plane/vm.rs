//! Verbs on machines.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use vesper_offload::{Admission, MachineError, OffloadMode, RemoveVmError, VmUsage};
use vesper_sa::VmId;

use super::change::{Draft, NewMachine, NewPolicies};
use super::event::Subject;
use super::force::table;
use super::record::{Origin, VmRecord};
use super::spec::MachineSpec;
use super::{Change, Node, Plane, Refusal, SaFilter, Scope, kept};
use crate::node::{Attach, AttachError};
use crate::port::Port;

/// What may change of a machine while packets pass. `None` leaves things as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmChange {
    /// How many associations it may have, offloaded or not.
    pub sa_limit: Option<u32>,
    /// How many of them may be offloaded.
    pub ipsec_offload_limit: Option<u32>,
    /// The processor of the adapter that serves it.
    pub processor: Option<usize>,
    /// How its associations are offloaded from now on unless their words say it.
    pub offload: Option<Vec<OffloadMode>>,
    /// Packets that no policy matches are discarded.
    pub require_protection: Option<bool>,
}

/// How long the adapter may take to let go of a machine's queue, which is one turn of a processor.
const FREEING: Duration = Duration::from_secs(2);

/// How often it is asked.
const FREED: Duration = Duration::from_millis(1);

impl Plane {
    /// Adds a machine to its host and adapter. Until it has policies nothing of it passes, if
    /// it requires protection.
    pub fn add_vm(
        &self,
        spec: MachineSpec,
        port: Option<Box<dyn Port>>,
        origin: Origin,
    ) -> Result<Arc<VmRecord>, Refusal> {
        self.add_vm_behind(spec, port, None, origin)
    }

    /// The same; `table` describes the port as the configuration would, so that a machine that
    /// was added by request comes again at the next start.
    pub fn add_vm_behind(
        &self,
        spec: MachineSpec,
        port: Option<Box<dyn Port>>,
        table: Option<Value>,
        origin: Origin,
    ) -> Result<Arc<VmRecord>, Refusal> {
        let _changing = self.begin_change();
        let (node, id) = self.admit(&spec)?;
        if origin == Origin::Requested {
            let settings = kept::settings(&spec, table.as_ref());
            let (host, vm) = (&spec.host, &spec.name);
            self.persistence
                .commit(&[Change::PutVm { host, vm, settings }])?;
        }
        let added = self.attach(&node, id, &spec, port);
        let (admission, has_port) = match added {
            Ok(added) => added,
            Err(refusal) => {
                if origin == Origin::Requested {
                    let (host, vm) = (&spec.host, &spec.name);
                    self.persistence.commit(&[Change::DeleteVm { host, vm }])?;
                }
                return Err(refusal);
            }
        };
        let fallbacks = admission.fallbacks.iter().map(ToString::to_string);
        let (index, _) = self.node_named(Some(&spec.host))?;
        let record = VmRecord {
            id,
            origin,
            node: index,
            spec,
            fallbacks: fallbacks.collect(),
            has_port,
            port: table.map(Arc::new),
        };
        Ok(self.register(record))
    }

    fn attach(
        &self,
        node: &Node,
        id: VmId,
        spec: &MachineSpec,
        port: Option<Box<dyn Port>>,
    ) -> Result<(Admission, bool), Refusal> {
        let has_port = port.is_some();
        let policies = table(&[], spec.require_protection);
        let (address, settings) = (spec.address, spec.settings);
        let admission = match port {
            Some(port) => node
                .handle
                .attach(Attach {
                    vm: id,
                    name: spec.name.clone(),
                    address,
                    settings,
                    policies,
                    port,
                })?
                .map_err(|error| attach_refused(spec, &error))?,
            None => node
                .handle
                .call(move |host, _| {
                    let admission = host.add_machine(id, address, settings)?;
                    host.set_policies(id, policies);
                    Ok(admission)
                })?
                .map_err(|error| machine_refused(spec, &error))?,
        };
        let limit = spec.sa_limit;
        node.handle
            .call(move |host, _| host.set_sa_limit(id, limit))?;
        Ok((admission, has_port))
    }

    /// Moves a machine behind another port, which `table` describes as the configuration would;
    /// its associations, policies and counters stay.
    pub fn move_vm(
        &self,
        host: Option<&str>,
        name: &str,
        port: Box<dyn Port>,
        table: &Value,
    ) -> Result<(), Refusal> {
        let _changing = self.begin_change();
        let vm = self.vm_named(host, name)?;
        if !vm.has_port {
            return Err(Refusal::conflict(
                "vm",
                name,
                "has no port to be moved from",
                "remove it, and add it with a port",
            ));
        }
        let node = self.node(vm.node)?;
        let keep = |table: Option<&Value>| match vm.origin {
            Origin::Configured => Ok(()),
            Origin::Requested => self.persistence.commit(&[Change::PutVm {
                host: &vm.spec.host,
                vm: &vm.spec.name,
                settings: kept::settings(&vm.spec, table),
            }]),
        };
        keep(Some(table))?;
        if let Err(error) = node.handle.replace_port(vm.id, port)? {
            keep(vm.port.as_deref())?;
            return Err(attach_refused(&vm.spec, &error));
        }
        let moved = Arc::new(VmRecord {
            port: Some(Arc::new(table.clone())),
            ..(*vm).clone()
        });
        self.registry_mut().vms.insert(vm.id, moved);
        self.tell_vm("vm-moved", &vm, "moved to another port");
        Ok(())
    }

    /// What a machine uses of the adapter.
    pub fn vm_usage(&self, vm: &VmRecord) -> Option<VmUsage> {
        let node = self.node(vm.node).ok()?;
        node.handle.nic().vm_usage(vm.id)
    }

    /// How many associations a machine has.
    pub fn sas_of(&self, vm: &VmRecord) -> u32 {
        self.registry().owned(vm.node, vm.id)
    }

    /// Changes a machine while its packets pass.
    pub fn change_vm(
        &self,
        host: Option<&str>,
        name: &str,
        change: &VmChange,
    ) -> Result<Arc<VmRecord>, Refusal> {
        let _changing = self.begin_change();
        let vm = self.vm_named(host, name)?;
        let machine = self.changed(&vm, change)?;
        let mut draft = Draft::default();
        draft.policies.insert(
            vm.id,
            NewPolicies {
                require_protection: machine.spec.require_protection,
                ..self.policies_of(&vm)
            },
        );
        draft.machines.push(machine);
        self.apply(draft)?;
        self.refresh_placements(&vm.spec.host);
        self.tell_vm("vm-changed", &vm, "changed");
        self.vm_named(Some(&vm.spec.host), &vm.spec.name)
    }

    /// A machine with what is to change of it.
    fn changed(&self, vm: &Arc<VmRecord>, change: &VmChange) -> Result<NewMachine, Refusal> {
        let mut spec = vm.spec.clone();
        if let Some(limit) = change.sa_limit {
            spec.sa_limit = limit;
        }
        if let Some(limit) = change.ipsec_offload_limit {
            spec.settings.ipsec_offload_limit = limit;
        }
        if let Some(offload) = &change.offload {
            spec.offload.clone_from(offload);
        }
        if let Some(require) = change.require_protection {
            spec.require_protection = require;
        }
        let processors = self.node(vm.node)?.handle.nic().processors();
        if let Some(processor) = change
            .processor
            .filter(|&processor| processor >= processors)
        {
            return Err(Refusal::words(
                "processor",
                processor,
                format!("the adapter has {processors} processors, counted from 0"),
                "choose one of them",
            ));
        }
        Ok(NewMachine {
            record: Arc::clone(vm),
            spec,
            processor: change.processor,
        })
    }

    /// Removes a machine with its port, policies and associations. Waits until the adapter has let
    /// go of its receive queue.
    ///
    /// # Errors
    /// The adapter keeps the queue for longer than two seconds: the machine is there without its
    /// policies and associations, and is to be removed again.
    pub fn remove_vm(&self, host: Option<&str>, name: &str) -> Result<(), Refusal> {
        let _changing = self.begin_change();
        let vm = self.vm_named(host, name)?;
        let mut draft = Draft {
            remove: self.sas(Scope::Vm(vm.id), &SaFilter::default()),
            ..Draft::default()
        };
        if self.registry().policies.contains_key(&vm.id) {
            let mut policies = self.policies_of(&vm);
            policies.list.clear();
            // Until it is gone nothing of it passes in clear text.
            policies.require_protection = true;
            draft.policies.insert(vm.id, policies);
        }
        self.apply(draft)?;
        let (node, id) = (self.node(vm.node)?, vm.id);
        let deadline = Instant::now() + FREEING;
        if vm.has_port {
            node.handle
                .detach(id)?
                .map_err(|error| attach_refused(&vm.spec, &error))?;
            // Its worker goes on with it; one of the same name may come as soon as it is gone.
            while node
                .handle
                .call(move |host, _| host.data_path(id).is_some())?
            {
                if Instant::now() >= deadline {
                    return Err(Refusal::conflict(
                        "vm",
                        &vm.spec.name,
                        "its receive queue is still in use",
                        "remove it again in a moment",
                    ));
                }
                thread::sleep(FREED);
            }
        } else {
            loop {
                match node.handle.call(move |host, _| host.remove_machine(id))? {
                    Err(MachineError::Remove(RemoveVmError::HasQueue(_)))
                        if Instant::now() < deadline =>
                    {
                        thread::sleep(FREED);
                    }
                    removed => {
                        removed.map_err(|error| machine_refused(&vm.spec, &error))?;
                        break;
                    }
                }
            }
        }
        {
            let mut registry = self.registry_mut();
            registry.vms.remove(&id);
            registry.policies.remove(&id);
        }
        if vm.origin == Origin::Requested {
            let (host, vm) = (&vm.spec.host, &vm.spec.name);
            self.persistence.commit(&[Change::DeleteVm { host, vm }])?;
        }
        self.tell_vm("vm-removed", &vm, "removed");
        Ok(())
    }

    /// All machines.
    pub fn vms(&self) -> Vec<Arc<VmRecord>> {
        self.registry().vms.values().cloned().collect()
    }

    /// The machine with this name, which may be `HOST/NAME`.
    pub fn vm_named(&self, host: Option<&str>, name: &str) -> Result<Arc<VmRecord>, Refusal> {
        let (host, short) = match name.split_once('/') {
            Some((before, short)) => (Some(before), short),
            None => (host, name),
        };
        let registry = self.registry();
        let vms = registry.vms.values();
        let mut found =
            vms.filter(|vm| vm.spec.name == short && host.is_none_or(|host| vm.spec.host == host));
        match (found.next(), found.next()) {
            (None, _) => Err(match host {
                Some(host) => Refusal::not_found("vm", format!("{host}/{short}")),
                None => Refusal::not_found("vm", name),
            }),
            (Some(vm), None) => Ok(Arc::clone(vm)),
            (Some(one), Some(other)) => Err(Refusal::words(
                "vm",
                name,
                format!(
                    "several hosts have one: {} and {}",
                    one.spec.host, other.spec.host
                ),
                "say `host NAME` as well, or `vm HOST/NAME`",
            )),
        }
    }

    /// The node of a machine that does not exist yet, and the number that it gets.
    fn admit(&self, spec: &MachineSpec) -> Result<(Node, VmId), Refusal> {
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
        if spec.name.is_empty() || spec.name.len() > 64 || !spec.name.chars().all(is_plain) {
            return Err(Refusal::words(
                "vm",
                &spec.name,
                "a name has 1 to 64 letters, digits, `.`, `_` or `-`",
                "choose another name",
            ));
        }
        let (index, node) = self.node_named(Some(&spec.host))?;
        if self.registry().vm_on(index, &spec.name).is_some() {
            return Err(Refusal::conflict(
                "vm",
                &spec.name,
                format!("exists already on {}", spec.host),
                "choose another name, or remove that one",
            ));
        }
        let id = self.persistence.vm_id(&spec.host, &spec.name)?;
        Ok((node, id))
    }

    fn register(&self, record: VmRecord) -> Arc<VmRecord> {
        let record = Arc::new(record);
        self.registry_mut()
            .vms
            .insert(record.id, Arc::clone(&record));
        self.tell_vm("vm-added", &record, "added");
        record
    }

    pub(super) fn tell_vm(&self, kind: &'static str, vm: &VmRecord, verb: &str) {
        let subject = Subject {
            owner: Some(vm.id),
            vm: Some(vm.spec.name.as_str().into()),
            ..Subject::default()
        };
        let host: Arc<str> = vm.spec.host.as_str().into();
        let text = format!("{} {verb}", vm.spec.name);
        self.events.tell(kind, &host, subject, text);
    }
}

fn attach_refused(spec: &MachineSpec, error: &AttachError) -> Refusal {
    match error {
        AttachError::Machine(error) => machine_refused(spec, error),
        AttachError::Unknown(_) => Refusal::not_found("vm", &spec.name),
    }
}

fn machine_refused(spec: &MachineSpec, error: &MachineError) -> Refusal {
    let remedy = match error {
        MachineError::Settings(_) => "change its settings",
        MachineError::Remove(RemoveVmError::HasQueue(_)) => {
            "the adapter does not let go of it; look at `vesper doctor`, and remove the machine again"
        }
        MachineError::Remove(RemoveVmError::HasFunction(_)) => "detach its virtual function first",
        MachineError::Unknown(_) | MachineError::Remove(RemoveVmError::Unknown(_)) => {
            "list the machines"
        }
        MachineError::Sriov(_) => "look at the NIC switch",
        MachineError::Trunk(_) => "set vmq_weight and iov_weight to 0",
    };
    Refusal::conflict("vm", &spec.name, error.to_string(), remedy)
}
