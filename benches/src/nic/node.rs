//! A host with its adapter and machines, ready to send to and receive from another.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use vesper_esp::aead::Cipher;
use vesper_esp::{EspSa, association};
use vesper_offload::{
    DataPath, Host, MacAddress, Nic, NicSwitchParams, OffloadMode, OffloadWish, Profile, QueueId,
    Rewrite, SwitchLimits, VfId, VmAddress, VmSettings,
};
use vesper_sa::{
    Action, Direction, Lifetime, Limits, Mode, Policy, Protection, ReplayProtection, SaParams,
    Selector, Spd, Spi, Timestamp, VmId, WindowSize,
};

use super::mbuf::Mbuf;
use crate::case::Case;
use crate::contest::Fault;

/// Buffers of a machine with a queue that do not get there.
const KEPT: usize = 128;

/// How a machine's packets travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Path {
    pub(super) kind: Kind,
    pub(super) ipsec: Ipsec,
}

/// Who does IPsec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ipsec {
    /// Nobody: packets travel in clear.
    None,
    /// The host's software.
    Software,
    /// The adapter.
    Offloaded(OffloadMode),
}

/// Who is between a machine and the adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
    /// The host, with a copy on receiving.
    Synthetic,
    /// The host, without a copy (VMQ).
    Queue,
    /// Nobody (SR-IOV).
    Function,
}

/// One of two hosts: number 0 sends, number 1 receives.
pub(super) struct Node {
    pub(super) host: Host<Mbuf>,
    pub(super) number: u8,
    /// The function and its queue, if the machine has one.
    pub(super) function: Option<(VfId, QueueId)>,
}

/// The Ethernet address of a machine.
pub(super) fn mac(node: u8, vm: VmId) -> MacAddress {
    MacAddress([2, 0, 0, node, 0, vm.0 as u8])
}

fn tunnel(node: u8) -> IpAddr {
    [192, 0, 2, node + 1].into()
}

/// The association of a machine's packets from node 0 to node 1, as one end has it.
pub(super) fn sa(case: &Case, vm: VmId, direction: Direction) -> Result<Arc<EspSa>, Fault> {
    let fault = |what: &dyn std::fmt::Display| Fault::new("nic", what);
    let spi = Spi::new(0x1000 + vm.0).ok_or_else(|| fault(&"reserved SPI"))?;
    let mut params = SaParams::new(spi, direction, Mode::Tunnel, tunnel(0), tunnel(1));
    params.owner = vm;
    params.reqid = vm.0;
    params.esn = true;
    params.replay = WindowSize::new(1024).map_or(params.replay, ReplayProtection::Window);
    let far = Limits {
        bytes: Some(u64::MAX / 2),
        packets: Some(u64::MAX / 2),
        time: Some(Duration::from_secs(86_400)),
        idle: None,
    };
    params.lifetime = Lifetime {
        soft: far,
        hard: far,
    };
    let (key, auth_key) = case.keys(vm.0 as usize);
    let cipher = Cipher::new(case.suite, &key, &auth_key).map_err(|error| fault(&error))?;
    let sa = association(params, cipher, Timestamp::ZERO).map_err(|error| fault(&error))?;
    Ok(Arc::new(sa))
}

impl Path {
    /// All that are compared.
    pub(super) const ALL: [Path; 9] = [
        Path::new(Kind::Synthetic, Ipsec::None),
        Path::new(Kind::Synthetic, Ipsec::Software),
        Path::new(Kind::Synthetic, Ipsec::Offloaded(OffloadMode::Packet)),
        Path::new(Kind::Queue, Ipsec::None),
        Path::new(Kind::Queue, Ipsec::Software),
        Path::new(Kind::Queue, Ipsec::Offloaded(OffloadMode::Crypto)),
        Path::new(Kind::Queue, Ipsec::Offloaded(OffloadMode::Packet)),
        Path::new(Kind::Function, Ipsec::None),
        Path::new(Kind::Function, Ipsec::Offloaded(OffloadMode::Packet)),
    ];

    pub(super) const fn new(kind: Kind, ipsec: Ipsec) -> Self {
        Self { kind, ipsec }
    }

    /// The name of the path.
    pub(super) const fn name(self) -> &'static str {
        match self.kind {
            Kind::Synthetic => "synthetic",
            Kind::Queue => "queue",
            Kind::Function => "function",
        }
    }

    /// Who does IPsec.
    pub(super) const fn ipsec_name(self) -> &'static str {
        match self.ipsec {
            Ipsec::None => "none",
            Ipsec::Software => "software",
            Ipsec::Offloaded(OffloadMode::Crypto) => "crypto",
            Ipsec::Offloaded(OffloadMode::Packet) => "packet",
        }
    }
}

impl Node {
    /// A node whose adapter has `processors`, without machines.
    pub(super) fn new(number: u8, path: Path, processors: u16) -> Result<Self, Fault> {
        let profile = Profile {
            processors,
            ..Profile::full()
        };
        let nic = Arc::new(Nic::new(profile));
        if path.kind == Kind::Function {
            nic.create_nic_switch(NicSwitchParams {
                virtual_functions: 4,
                default_queue_pairs: 1,
            })
            .map_err(|error| Fault::new("nic", error))?;
        }
        Ok(Self {
            host: Host::new(nic, SwitchLimits::default()),
            number,
            function: None,
        })
    }

    /// Adds a machine; if there is IPsec, all of its packets are protected with an association of
    /// its own.
    pub(super) fn add(&mut self, case: &Case, path: Path, vm: VmId) -> Result<(), Fault> {
        let fault = |what: &dyn std::fmt::Display| Fault::new("nic", what);
        let settings = VmSettings {
            vmq_weight: if path.kind == Kind::Synthetic { 0 } else { 100 },
            iov_weight: if path.kind == Kind::Function { 100 } else { 0 },
            ..VmSettings::default()
        };
        let address = VmAddress {
            mac: mac(self.number, vm),
            vlan: None,
        };
        self.host
            .add_machine(vm, address, settings)
            .map_err(|error| fault(&error))?;
        let modes = match path.ipsec {
            Ipsec::None => None,
            Ipsec::Software => Some(Vec::new()),
            Ipsec::Offloaded(mode) => Some(vec![mode]),
        };
        if let Some(modes) = modes {
            self.protect(case, vm, modes)?;
        }
        if path.kind == Kind::Function {
            let nic = Arc::clone(self.host.nic());
            nic.declare_guest_driver(vm, true)
                .map_err(|error| fault(&error))?;
            let (vf, queue) = self
                .host
                .attach_function(vm)
                .map_err(|error| fault(&error))?;
            self.host
                .activate_function(vm, vf, queue)
                .map_err(|error| fault(&error))?;
            self.function = Some((vf, queue));
        }
        if path.kind == Kind::Queue {
            // What the host keeps back for what comes through the software switch.
            let kept = (0..KEPT).map(|_| Mbuf::empty());
            self.host
                .post_buffers(vm, kept)
                .map_err(|error| fault(&error))?;
        }
        let has = match self.host.data_path(vm) {
            Some(DataPath::Synthetic) => Kind::Synthetic,
            Some(DataPath::Queue(_)) => Kind::Queue,
            _ => Kind::Function,
        };
        match has == path.kind {
            true => Ok(()),
            false => Err(fault(&"the adapter gave the machine another path")),
        }
    }

    /// Protects all packets of a machine, with one of these modes of offload if there are any.
    fn protect(&mut self, case: &Case, vm: VmId, modes: Vec<OffloadMode>) -> Result<(), Fault> {
        let policies = [Direction::Outbound, Direction::Inbound].map(|direction| Policy {
            direction,
            selector: Selector::default(),
            action: Action::Protect(Protection {
                reqid: vm.0,
                tunnel: Some(tunnel(1)),
            }),
        });
        self.host
            .set_policies(vm, Some(Spd::new(policies.to_vec())));
        let (direction, destination) = match self.number {
            0 => (Direction::Outbound, mac(1, VmId(0xff))),
            _ => (Direction::Inbound, mac(1, vm)),
        };
        let wish = OffloadWish {
            modes,
            rewrite: Some(Rewrite {
                destination,
                source: mac(0, VmId(0xff)),
            }),
            ..OffloadWish::default()
        };
        self.host
            .add_sa(sa(case, vm, direction)?, wish)
            .map_err(|error| Fault::new("nic", error))?;
        Ok(())
    }
}
