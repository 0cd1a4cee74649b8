//! Security associations and policy for IPsec ESP.
#![forbid(unsafe_code)]

mod ident;
mod params;
mod selector;

pub use ident::{Direction, Spi, Timestamp, VmId};
pub use params::{
    Df, Dscp, Ecn, Lifetime, Limits, Mode, NAT_TRAVERSAL_PORT, NatChecksum, ReplayProtection,
    SaParams, Scope, TunnelHeader, UdpEncapsulation, WindowSize,
};
pub use selector::{AddressRange, Flow, PortRange, Ports, Selector};
