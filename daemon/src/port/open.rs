//! From the configuration to ports.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;

use vesper_offload::MacAddress;

use super::Port;
use super::cable::Cable;
use super::generator::Generator;
use super::loopback::Loopback;
use super::sink::Sink;
use crate::config::PortConfig;

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
}

impl Opener {
    /// An opener that has not opened anything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens a port.
    pub fn open(&mut self, config: &PortConfig, place: &Place) -> Result<Box<dyn Port>, PortError> {
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
            PortConfig::Pcap(pcap) => super::pcap::open(pcap, place)?,
        })
    }
}

impl fmt::Display for PortError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System(error) => write!(f, "the system refuses a descriptor: {error}"),
            Self::File { path, error } => write!(f, "{}: {error}", path.display()),
        }
    }
}

impl std::error::Error for PortError {}
