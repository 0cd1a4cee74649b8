//! Views of IP, UDP and ESP headers: parse once, never panic after.

mod checksum;
mod ip;
mod locate;

pub use checksum::{Checksum, adjusted};
pub(crate) use ip::{Brief, DONT_FRAGMENT, upper_layer};
pub use ip::{Fragment, IpHeader, IpVersion, WireError, flow};
pub use locate::{EncapsulationPorts, EspLocation, Located, NotEsp, locate};
pub(crate) use locate::{PlainLocation, locate_plain, plain_key};

/// IP protocol numbers that this crate acts upon.
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// IPv4 in IP.
    pub const IPV4: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// DCCP.
    pub const DCCP: u8 = 33;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// Encapsulating Security Payload.
    pub const ESP: u8 = 50;
    /// Authentication header.
    pub const AH: u8 = 51;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// No next header: in ESP, a dummy packet.
    pub const NONE: u8 = 59;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// IPv6 mobility header.
    pub const MOBILITY: u8 = 135;
    /// UDP-Lite.
    pub const UDP_LITE: u8 = 136;
}
