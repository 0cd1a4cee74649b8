//! What differs between two configurations: what a reload would do.

use std::fmt;

use super::model::{Config, HostConfig, VmConfig};

/// What differs, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// Each difference.
    pub changes: Vec<Change>,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A field of `[daemon]`.
    Daemon(&'static str),
    /// `[control]`.
    Control,
    /// A host that is new.
    HostAdded(String),
    /// A host that is not there any more.
    HostRemoved(String),
    /// A field of a host: host, field.
    Host(String, &'static str),
    /// A machine that is new: host, machine.
    VmAdded(String, String),
    /// A machine that is not there any more: host, machine.
    VmRemoved(String, String),
    /// A field of a machine: host, machine, field.
    Vm(String, String, &'static str),
    /// `[[pair]]`.
    Pairs,
}

impl Diff {
    /// What leads from one configuration to another.
    pub fn between(old: &Config, new: &Config) -> Self {
        let mut changes = Vec::new();
        macro_rules! fields {
            ($old:expr, $new:expr, $change:expr, $($field:ident),*) => {
                $(if $old.$field != $new.$field {
                    changes.push($change(stringify!($field)));
                })*
            };
        }
        let (from, to) = (&old.daemon, &new.daemon);
        fields!(
            from,
            to,
            Change::Daemon,
            state,
            key,
            anchor,
            control,
            status,
            log,
            log_format
        );
        if old.control != new.control {
            changes.push(Change::Control);
        }
        for host in &new.hosts {
            let name = || host.name.to_string();
            let Some(before) = find(&old.hosts, |other| other.name == host.name) else {
                changes.push(Change::HostAdded(name()));
                continue;
            };
            let change = |field| Change::Host(name(), field);
            fields!(
                before, host, change, adapter, processors, workers, cpus, nic_switch, switch,
                buffers, frame, tunnel, uplink
            );
            for vm in &host.vms {
                let Some(before) = find(&before.vms, |other| other.name == vm.name) else {
                    changes.push(Change::VmAdded(name(), vm.name.to_string()));
                    continue;
                };
                let change = |field| Change::Vm(name(), vm.name.to_string(), field);
                fields!(
                    before,
                    vm,
                    change,
                    mac,
                    vlan,
                    port,
                    ipsec_offload_limit,
                    sa_limit,
                    offload,
                    vmq_weight,
                    iov_weight,
                    iov_queue_pairs,
                    interrupt_packets,
                    interrupt_delay,
                    rate_limit,
                    trusted,
                    require_protection,
                    sa,
                    sa_file,
                    policy
                );
            }
            for vm in &before.vms {
                if find(&host.vms, |other: &VmConfig| other.name == vm.name).is_none() {
                    changes.push(Change::VmRemoved(name(), vm.name.to_string()));
                }
            }
        }
        for host in &old.hosts {
            if find(&new.hosts, |other: &HostConfig| other.name == host.name).is_none() {
                changes.push(Change::HostRemoved(host.name.to_string()));
            }
        }
        if old.pairs != new.pairs {
            changes.push(Change::Pairs);
        }
        Self { changes }
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

impl Change {
    /// Whether it takes effect only when vesperd is started anew.
    pub fn needs_restart(&self) -> bool {
        match self {
            Self::Daemon(_)
            | Self::Control
            | Self::HostAdded(_)
            | Self::HostRemoved(_)
            | Self::Host(..)
            | Self::Pairs => true,
            Self::VmAdded(..) | Self::VmRemoved(..) => true,
            Self::Vm(.., field) => matches!(
                *field,
                "mac"
                    | "vlan"
                    | "port"
                    | "vmq_weight"
                    | "iov_weight"
                    | "iov_queue_pairs"
                    | "interrupt_packets"
                    | "interrupt_delay"
                    | "rate_limit"
                    | "trusted"
            ),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Daemon(field) => write!(f, "~ daemon: {field}"),
            Self::Control => f.write_str("~ control"),
            Self::HostAdded(host) => write!(f, "+ host {host}"),
            Self::HostRemoved(host) => write!(f, "- host {host}"),
            Self::Host(host, field) => write!(f, "~ host {host}: {field}"),
            Self::VmAdded(host, vm) => write!(f, "+ vm {host}/{vm}"),
            Self::VmRemoved(host, vm) => write!(f, "- vm {host}/{vm}"),
            Self::Vm(host, vm, field) => write!(f, "~ vm {host}/{vm}: {field}"),
            Self::Pairs => f.write_str("~ pair"),
        }
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, change) in self.changes.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            change.fmt(f)?;
        }
        Ok(())
    }
}

fn find<T>(all: &[T], is_it: impl Fn(&T) -> bool) -> Option<&T> {
    all.iter().find(|one| is_it(one))
}
