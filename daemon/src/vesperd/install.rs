//! Gives machines the associations and policies that they begin with.

use std::sync::Arc;

use vesper_esp::association;
use vesper_offload::{OffloadWish, Rewrite};
use vesper_sa::{Direction, Spd};
use vesper_verify::xfrm::{Entry, parse};

use crate::config::Config;
use crate::node::Nodes;
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
    let gateway = host.tunnel.gateway_mac.unwrap_or(host.tunnel.mac);
    for words in &paired.sas {
        for entry in parse(words.expose(), "pair")? {
            let Entry::State(state) = entry else {
                continue;
            };
            let direction = state.direction.unwrap_or(Direction::Outbound);
            let mut params = state.params(direction);
            params.owner = id;
            let sa = Arc::new(
                association(params, state.keys.fastest_cipher()?, now)
                    .map_err(|error| format!("{error:?}"))?,
            );
            let (destination, source) = match direction {
                Direction::Outbound => (gateway.0, host.tunnel.mac.0),
                Direction::Inbound => (vm.mac.0, host.tunnel.mac.0),
            };
            let wish = OffloadWish {
                modes: vm.offload.iter().copied().map(Into::into).collect(),
                vlan: None,
                rewrite: Some(Rewrite {
                    destination,
                    source,
                }),
                inner_checksum: false,
            };
            handle.call(move |node, _| node.add_sa(sa, wish))??;
        }
    }
    let policies = Spd::new(paired.policies());
    handle.call(move |node, _| node.set_policies(id, Some(policies)))?;
    Ok(())
}
