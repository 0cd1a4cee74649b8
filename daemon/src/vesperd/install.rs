//! Gives machines the associations and policies that they begin with.

use std::sync::Arc;

use vesper_esp::association;
use vesper_offload::{MacAddress, OffloadWish, Rewrite};
use vesper_sa::{Action, Direction, Mode, Policy, Protection, Spd, Timestamp, VmId};
use vesper_verify::xfrm::{Entry, PolicyAction, PolicyLine, parse, parse_policies};

use crate::config::{Config, HostConfig, VmConfig};
use crate::node::{NodeHandle, Nodes};
use crate::pair::PairedVm;

/// Installs what a machine of a pair gets.
pub(super) fn pair(
    nodes: &Nodes,
    config: &Config,
    paired: &PairedVm,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut hosts = nodes.handles().zip(&config.hosts);
    let Some((handle, host)) = hosts.find(|(_, host)| **host.name == *paired.host) else {
        return Err(format!("host {} does not exist", paired.host).into());
    };
    let mut vms = (1..).map(vesper_sa::VmId).zip(&host.vms);
    let Some((id, vm)) = vms.find(|(_, vm)| **vm.name == *paired.vm) else {
        return Err(format!("vm {}/{} does not exist", paired.host, paired.vm).into());
    };
    let now = nodes.clock().now();
    for words in &paired.sas {
        install(handle, host, vm, id, words.expose(), "pair", now)?;
    }
    let policies = Spd::new(paired.policies());
    handle.call(move |node, _| node.set_policies(id, Some(policies)))?;
    Ok(())
}

/// Installs what the configuration gives to machines.
pub(super) fn configured(nodes: &Nodes, config: &Config) -> Result<(), Box<dyn std::error::Error>> {
    let now = nodes.clock().now();
    for (handle, host) in nodes.handles().zip(&config.hosts) {
        for (id, vm) in (1..).map(vesper_sa::VmId).zip(&host.vms) {
            for words in &vm.sa {
                install(handle, host, vm, id, words.expose(), "sa", now)?;
            }
            if let Some(file) = &vm.sa_file {
                let text = zeroize::Zeroizing::new(std::fs::read_to_string(&**file)?);
                let name = file.display().to_string();
                install(handle, host, vm, id, &text, &name, now)?;
            }
            if vm.policy.is_empty() {
                continue;
            }
            let mut policies = Vec::new();
            for words in &vm.policy {
                for line in parse_policies(words, "policy")? {
                    policies.push(policy(&line));
                }
            }
            let policies = Spd::new(policies);
            handle.call(move |node, _| node.set_policies(id, Some(policies)))?;
        }
    }
    Ok(())
}

fn policy(line: &PolicyLine) -> Policy {
    Policy {
        direction: line.direction,
        selector: line.selector.clone(),
        action: match line.action {
            PolicyAction::Block => Action::Discard,
            PolicyAction::Pass => Action::Bypass,
            PolicyAction::Protect(template) => Action::Protect(Protection {
                reqid: template.reqid,
                tunnel: match template.mode {
                    Mode::Tunnel => template.destination,
                    Mode::Transport => None,
                },
            }),
        },
    }
}

fn install(
    handle: &NodeHandle,
    host: &HostConfig,
    vm: &VmConfig,
    id: VmId,
    words: &str,
    name: &str,
    now: Timestamp,
) -> Result<(), Box<dyn std::error::Error>> {
    // Nobody's address: the uplink has to find the next hop.
    let gateway = host
        .tunnel
        .gateway_mac
        .map_or(MacAddress::default(), |mac| mac.0);
    for entry in parse(words, name)? {
        let Entry::State(state) = entry else {
            continue;
        };
        let direction = match state.direction {
            Some(direction) => direction,
            None if state.destination == host.tunnel.address => Direction::Inbound,
            None => Direction::Outbound,
        };
        let mut params = state.params(direction);
        params.owner = id;
        let sa = Arc::new(
            association(params, state.keys.fastest_cipher()?, now)
                .map_err(|error| format!("{error:?}"))?,
        );
        let (destination, source) = match direction {
            Direction::Outbound => (gateway, host.tunnel.mac.0),
            Direction::Inbound => (vm.mac.0, host.tunnel.mac.0),
        };
        let wish = OffloadWish {
            modes: vm.offload.iter().copied().map(Into::into).collect(),
            vlan: None,
            rewrite: (state.mode == Mode::Tunnel).then_some(Rewrite {
                destination,
                source,
            }),
            inner_checksum: false,
        };
        handle.call(move |node, _| node.add_sa(sa, wish))??;
    }
    Ok(())
}
