//! What the plane is asked for, as plain values.

use std::net::IpAddr;

use vesper_offload::{MacAddress, OffloadMode, VlanId, VmAddress, VmSettings};
use vesper_verify::xfrm::{PolicyLine, State};

/// What the plane has to know of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// Where its tunnels end. They tell which direction an association serves whose words do
    /// not say it.
    pub addresses: Vec<IpAddr>,
    /// Its Ethernet address on the uplink.
    pub mac: MacAddress,
    /// The Ethernet address of the next hop towards the peers; without it frames leave with
    /// the address zero, which the uplink's neighbour table has to fill in.
    pub gateway: Option<MacAddress>,
    /// The VLAN of its ESP packets.
    pub vlan: Option<VlanId>,
    /// The longest frame in bytes that its packet buffers take.
    pub frame: u32,
}

impl Default for NodeSpec {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            mac: MacAddress::default(),
            gateway: None,
            vlan: None,
            frame: 1600,
        }
    }
}

/// A virtual machine as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineSpec {
    /// The host.
    pub host: String,
    /// Its name, unique on the host: letters, digits, `.`, `_` and `-`, at most 64 of them.
    pub name: String,
    /// Where it is on the network.
    pub address: VmAddress,
    /// What the adapter is told about it.
    pub settings: VmSettings,
    /// How many associations it may have, offloaded or not.
    pub sa_limit: u32,
    /// How its associations are offloaded unless their words say it, the preferred mode first.
    pub offload: Vec<OffloadMode>,
    /// Packets that no policy matches are discarded, also when there is no policy at all.
    pub require_protection: bool,
}

impl MachineSpec {
    /// A machine with the defaults of the hypervisor, which requires protection.
    pub fn new(host: &str, name: &str, mac: MacAddress) -> Self {
        Self {
            host: host.to_owned(),
            name: name.to_owned(),
            address: VmAddress { mac, vlan: None },
            settings: VmSettings::default(),
            sa_limit: vesper_sa::DEFAULT_SA_LIMIT,
            offload: vec![OffloadMode::Packet, OffloadMode::Crypto],
            require_protection: true,
        }
    }
}

/// An association as it should be.
#[derive(Clone, Debug)]
pub struct SaSpec {
    /// Its words, with `host` and `vm` in front where they are needed.
    pub state: State,
    /// Where it goes on.
    pub resume: Resume,
}

impl SaSpec {
    /// A new association.
    pub const fn new(state: State) -> Self {
        Self {
            state,
            resume: Resume::New,
        }
    }
}

/// Where an association goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// It is new: at what its words say.
    New,
    /// It was in use before. Inbound, everything up to this number counts as received;
    /// outbound its lease decides.
    After(u64),
    /// It must not be used any more, for this reason: it is listed, sends and accepts nothing,
    /// and waits for its replacement.
    NeedsRekey(String),
}

/// What a configuration asks for. What was added otherwise is not touched by it.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// Machines.
    pub machines: Vec<MachineSpec>,
    /// Associations.
    pub sas: Vec<State>,
    /// Policies.
    pub policies: Vec<PolicyLine>,
}
