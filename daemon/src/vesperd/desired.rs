//! From the configuration to what the plane is asked for.

use crate::config::{Config, HostConfig, VmConfig};
use crate::plane::{Desired, MachineSpec, NodeSpec};

/// What the plane has to know of a host.
pub(super) fn node(host: &HostConfig) -> NodeSpec {
    NodeSpec {
        addresses: vec![host.tunnel.address],
        mac: host.tunnel.mac.0,
        gateway: host.tunnel.gateway_mac.map(|mac| mac.0),
        vlan: None,
        frame: *host.frame,
    }
}

/// A machine as it should be.
pub(super) fn machine(host: &HostConfig, vm: &VmConfig) -> MachineSpec {
    MachineSpec {
        host: host.name.to_string(),
        name: vm.name.to_string(),
        address: vm.address(),
        settings: vm.settings(),
        sa_limit: vm.sa_limit,
        offload: vm.offload.iter().copied().map(Into::into).collect(),
        require_protection: vm.require_protection,
    }
}

/// Everything that a configuration asks for, pairs apart.
///
/// # Errors
/// A file of associations has changed since the configuration was checked, and can not be used.
pub(super) fn everything(config: &Config) -> Result<Desired, String> {
    let mut desired = Desired::default();
    let said = |problems: Vec<crate::config::Problem>| {
        let messages = problems.into_iter().map(|problem| problem.message);
        messages.collect::<Vec<_>>().join("; ")
    };
    for host in &config.hosts {
        for vm in &host.vms {
            desired.machines.push(machine(host, vm));
            desired.sas.extend(vm.states(host).map_err(said)?);
            desired.policies.extend(vm.policies(host).map_err(said)?);
        }
    }
    Ok(desired)
}
