//! Capture files as a port.

use super::{Place, Port, PortError};
use crate::config::PcapConfig;

pub(super) fn open(_config: &PcapConfig, _place: &Place) -> Result<Box<dyn Port>, PortError> {
    Err(PortError::System(std::io::ErrorKind::Unsupported.into()))
}
