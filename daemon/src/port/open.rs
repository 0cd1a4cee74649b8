//! From the configuration to ports.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;

use vesper_offload::MacAddress;

use super::Port;
use super::af_packet::AfPacket;
use super::cable::Cable;
use super::generator::Generator;
use super::loopback::Loopback;
use super::pcap::Pcap;
use super::sink::Sink;
use super::tap::Tap;
use super::vhost_user::{Role, SocketError, VhostUser, VhostUserOptions};
use crate::config::{PortConfig, TunnelConfig, VhostUserMode};
use crate::neighbour::{CacheLimits, Edge, EdgeOptions, Uplink, UplinkOptions};

/// Where a port is.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The Ethernet address of who is behind it.
    pub mac: MacAddress,
    /// The Ethernet address of the host.
    pub gateway: MacAddress,
    /// The longest frame in bytes that the host's buffers take.
    pub frame: u32,
}

/// Opens the ports of one process.
#[derive(Debug, Default)]
pub struct Opener {
    /// Second ends of cables, whose first end is in use.
    cables: BTreeMap<String, Cable>,
}

/// Why a port could not be opened.
#[derive(Debug)]
#[non_exhaustive]
pub enum PortError {
    /// The system refused a descriptor.
    System(io::Error),
    /// A file could not be used.
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A vhost-user socket could not be made.
    Socket(SocketError),
    /// An interface could not be used.
    Interface {
        /// Which.
        name: String,
        /// Why.
        error: io::Error,
    },
}

impl PortError {
    fn interface(name: &str, error: io::Error) -> Self {
        Self::Interface {
            name: name.to_owned(),
            error,
        }
    }
}

impl Opener {
    /// An opener that has not opened anything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens the port of a machine, with the edge of its network.
    pub fn open(&mut self, config: &PortConfig, place: &Place) -> Result<Box<dyn Port>, PortError> {
        let port = self.open_bare(config, place)?;
        let edge = match config {
            PortConfig::VhostUser(config) => config.edge,
            PortConfig::Tap(config) => config.edge,
            PortConfig::AfPacket(config) => config.edge,
            _ => return Ok(port),
        };
        let options = EdgeOptions {
            mac: place.gateway,
            answers: edge.neighbours,
            tunnel_mtu: edge.tunnel_mtu,
            clamp: edge.clamp_mss,
        };
        Ok(Box::new(Edge::new(port, options)))
    }

    /// Opens the port to the network, with its neighbours.
    pub fn open_uplink(
        &mut self,
        config: &PortConfig,
        place: &Place,
        tunnel: &TunnelConfig,
    ) -> Result<Box<dyn Port>, PortError> {
        let port = self.open_bare(config, place)?;
        if !matches!(
            config,
            PortConfig::VhostUser(_) | PortConfig::Tap(_) | PortConfig::AfPacket(_)
        ) {
            return Ok(port);
        }
        let options = UplinkOptions {
            address: tunnel.address,
            mac: tunnel.mac.0,
            gateway: tunnel.gateway,
        };
        let limits = CacheLimits::default();
        Ok(Box::new(Uplink::new(port, options, limits)))
    }

    fn open_bare(
        &mut self,
        config: &PortConfig,
        place: &Place,
    ) -> Result<Box<dyn Port>, PortError> {
        Ok(match config {
            PortConfig::Cable(cable) => match self.cables.remove(&cable.name) {
                Some(end) => Box::new(end),
                None => {
                    let (end, other) = Cable::new(place.mtu()).map_err(PortError::System)?;
                    self.cables.insert(cable.name.clone(), other);
                    Box::new(end)
                }
            },
            PortConfig::Generator(generator) => {
                Box::new(Generator::new(generator, place).map_err(PortError::System)?)
            }
            PortConfig::Sink => Box::new(Sink::new(place.mtu()).map_err(PortError::System)?),
            PortConfig::Loopback => {
                Box::new(Loopback::new(place.mtu()).map_err(PortError::System)?)
            }
            PortConfig::Pcap(pcap) => Box::new(Pcap::open(pcap, place)?),
            PortConfig::VhostUser(config) => {
                let options = VhostUserOptions {
                    socket: config.socket.clone(),
                    role: match config.mode {
                        VhostUserMode::Server => Role::Server {
                            permissions: config.permissions,
                        },
                        VhostUserMode::Client => Role::Client,
                    },
                    queue_pairs: config.queues,
                    mtu: config.mtu,
                    sealed: config.sealed,
                };
                Box::new(VhostUser::open(&options).map_err(PortError::Socket)?)
            }
            PortConfig::Tap(config) => {
                let opened = Tap::open(&config.interface, config.queues, config.mtu);
                Box::new(opened.map_err(|error| PortError::interface(&config.interface, error))?)
            }
            PortConfig::AfPacket(config) => {
                let opened = AfPacket::open(&config.interface, place.mac);
                Box::new(opened.map_err(|error| PortError::interface(&config.interface, error))?)
            }
        })
    }
}

impl fmt::Display for PortError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System(error) => write!(f, "the system refuses a descriptor: {error}"),
            Self::File { path, error } => write!(f, "{}: {error}", path.display()),
            Self::Socket(error) => error.fmt(f),
            Self::Interface { name, error } => {
                write!(f, "interface {name}: {error}")?;
                match error.kind() {
                    io::ErrorKind::PermissionDenied => f.write_str(
                        "; vesperd needs CAP_NET_RAW for packet sockets and CAP_NET_ADMIN for TAP",
                    ),
                    io::ErrorKind::NotFound => {
                        f.write_str("; `ip link` lists the interfaces that there are")
                    }
                    _ => Ok(()),
                }
            }
        }
    }
}

impl std::error::Error for PortError {}
