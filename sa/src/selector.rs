//! Which packets a policy or an association applies to (RFC 4301 section 4.4.1.1).

use core::net::IpAddr;
use core::ops::RangeInclusive;

/// Matches packets by addresses, protocol and ports; what is `None` matches anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// Source addresses.
    pub source: Option<AddressRange>,
    /// Destination addresses.
    pub destination: Option<AddressRange>,
    /// IP protocol or, past the extension headers, IPv6 next header.
    pub protocol: Option<u8>,
    /// Source port (TCP, UDP, SCTP, DCCP, UDP-Lite), or ICMP type.
    pub source_port: Option<PortRange>,
    /// Destination port, or ICMP code.
    pub destination_port: Option<PortRange>,
}

/// An inclusive range of addresses of one version; a prefix is a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

/// An inclusive range of ports, ICMP types or ICMP codes.
pub type PortRange = RangeInclusive<u16>;

/// What selectors look at in one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IP protocol, or next header past the IPv6 extension headers.
    pub protocol: u8,
    /// Ports, or ICMP type and code.
    pub ports: Ports,
}

/// The part of a flow that only some protocols and some fragments have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Source and destination port; for ICMP, type and code.
    Known(u16, u16),
    /// The protocol has no ports.
    None,
    /// Not visible: a non-initial fragment, or a truncated header (OPAQUE in RFC 4301).
    Opaque,
}

impl AddressRange {
    /// `None` if the versions differ or `first` is greater than `last`.
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (first.is_ipv4() == last.is_ipv4() && first <= last).then_some(Self { first, last })
    }

    /// A single address.
    pub const fn single(address: IpAddr) -> Self {
        Self {
            first: address,
            last: address,
        }
    }

    /// All addresses with the first `length` bits of `address`; `None` if `length` is greater
    /// than 32 or 128.
    pub fn prefix(address: IpAddr, length: u8) -> Option<Self> {
        match address {
            IpAddr::V4(address) => {
                let host = u32::MAX.checked_shr(u32::from(length)).unwrap_or(0);
                let network = u32::from(address) & !host;
                (length <= 32).then(|| Self {
                    first: IpAddr::V4(network.into()),
                    last: IpAddr::V4((network | host).into()),
                })
            }
            IpAddr::V6(address) => {
                let host = u128::MAX.checked_shr(u32::from(length)).unwrap_or(0);
                let network = u128::from(address) & !host;
                (length <= 128).then(|| Self {
                    first: IpAddr::V6(network.into()),
                    last: IpAddr::V6((network | host).into()),
                })
            }
        }
    }

    /// The lowest address.
    pub const fn first(&self) -> IpAddr {
        self.first
    }

    /// The highest address.
    pub const fn last(&self) -> IpAddr {
        self.last
    }

    /// Whether `address` lies in the range; an address of the other version never does.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && self.first <= address && address <= self.last
    }
}

impl Selector {
    /// Whether every field that is set matches.
    ///
    //= https://www.rfc-editor.org/rfc/rfc4301#section-4.4.1.1
    //# ANY matches any value (including OPAQUE)
    pub fn matches(&self, flow: &Flow) -> bool {
        fn port(range: Option<&PortRange>, value: Option<u16>) -> bool {
            match (range, value) {
                (None, _) => true,
                (Some(range), Some(value)) => range.contains(&value),
                (Some(range), None) => *range == (0..=u16::MAX),
            }
        }
        let (source_port, destination_port) = match flow.ports {
            Ports::Known(source, destination) => (Some(source), Some(destination)),
            Ports::None | Ports::Opaque => (None, None),
        };
        self.source.is_none_or(|range| range.contains(flow.source))
            && self
                .destination
                .is_none_or(|range| range.contains(flow.destination))
            && self
                .protocol
                .is_none_or(|protocol| protocol == flow.protocol)
            && port(self.source_port.as_ref(), source_port)
            && port(self.destination_port.as_ref(), destination_port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(source: &str, destination: &str, protocol: u8, ports: Ports) -> Flow {
        Flow {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol,
            ports,
        }
    }

    #[test]
    fn prefixes_are_ranges() {
        let range = AddressRange::prefix("10.1.2.3".parse().unwrap(), 24).unwrap();
        assert_eq!(range.first(), "10.1.2.0".parse::<IpAddr>().unwrap());
        assert_eq!(range.last(), "10.1.2.255".parse::<IpAddr>().unwrap());
        let all = AddressRange::prefix("10.1.2.3".parse().unwrap(), 0).unwrap();
        assert!(all.contains("255.255.255.255".parse().unwrap()));
        assert!(!all.contains("::".parse().unwrap()));
        assert_eq!(AddressRange::prefix("10.1.2.3".parse().unwrap(), 33), None);
        let host = AddressRange::prefix("fd00::1".parse().unwrap(), 128).unwrap();
        assert_eq!(host, AddressRange::single("fd00::1".parse().unwrap()));
    }

    #[test]
    fn every_set_field_must_match() {
        let selector = Selector {
            source: AddressRange::prefix("10.0.0.0".parse().unwrap(), 8),
            destination: None,
            protocol: Some(17),
            source_port: None,
            destination_port: Some(53..=53),
        };
        let dns = flow("10.9.9.9", "1.1.1.1", 17, Ports::Known(4000, 53));
        assert!(selector.matches(&dns));
        assert!(!selector.matches(&flow("11.9.9.9", "1.1.1.1", 17, dns.ports)));
        assert!(!selector.matches(&Flow { protocol: 6, ..dns }));
        assert!(!selector.matches(&Flow {
            ports: Ports::Known(53, 54),
            ..dns
        }));
        assert!(!selector.matches(&Flow {
            ports: Ports::Opaque,
            ..dns
        }));
        assert!(Selector::default().matches(&Flow {
            ports: Ports::Opaque,
            ..dns
        }));
    }
}
