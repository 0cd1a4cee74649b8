//! The grammar of `sel`: addresses and the upper-layer protocol that an association may carry.

use std::net::IpAddr;

use vesper_sa::{AddressRange, Selector};

use super::Reason;
use super::lexeme::{number, prefix};
use super::words::{Fault, Words};

/// Reads the words after `sel`, up to the first that is not part of a selector.
///
/// `proto any` and port 0 leave their field open, as in the kernel; a prefix of length 0
/// matches every address of its IP version and none of the other.
pub(super) fn parse(words: &mut Words<'_>) -> Result<Selector, Fault> {
    let mut parts = Parts::default();
    let mut any = false;
    while let Some(word) = words.peek() {
        let part = match word {
            "src" => &mut parts.source,
            "dst" => &mut parts.destination,
            "proto" | "sport" | "dport" | "type" | "code" => {
                words.step();
                parts.upper_layer(words)?;
                any = true;
                continue;
            }
            "key" => {
                return Err(words.fault_here(Reason::Unsupported(
                    "selecting by GRE key is not supported; select by addresses and protocol",
                )));
            }
            "dev" => {
                words.step();
                if words.value()? != "none" {
                    return Err(words.fault(Reason::Unsupported(
                        "a capture does not say the interface; leave `dev` out",
                    )));
                }
                any = true;
                continue;
            }
            _ => break,
        };
        if part.is_some() {
            return Err(words.fault_here(Reason::Twice));
        }
        words.step();
        let value = words.value()?;
        *part = Some(
            prefix(value)
                .ok_or_else(|| words.fault(Reason::Expected("an address or ADDRESS/LENGTH")))?,
        );
        any = true;
    }
    if !any {
        return Err(words.fault(Reason::Expected("src, dst, dev or proto after `sel`")));
    }
    parts.selector(words)
}

#[derive(Default)]
struct Parts {
    source: Option<(IpAddr, u8)>,
    destination: Option<(IpAddr, u8)>,
    protocol: Option<u8>,
    /// Ports, which are not ICMP's.
    ports: [Option<u16>; 2],
    /// ICMP type and code.
    icmp: [Option<u16>; 2],
}

impl Parts {
    /// `proto`, `sport`, `dport`, `type` or `code`: the current word.
    fn upper_layer(&mut self, words: &mut Words<'_>) -> Result<(), Fault> {
        let name = words.current();
        let value = words.value()?;
        if name == "proto" {
            let protocol = protocol(value).ok_or_else(|| {
                words.fault(Reason::Expected("a protocol name or number, or any"))
            })?;
            self.protocol = Some(protocol);
            return Ok(());
        }
        let (slot, limit, expected) = match name {
            "sport" => (&mut self.ports[0], 0xffff, "a port, 0 to 65535"),
            "dport" => (&mut self.ports[1], 0xffff, "a port, 0 to 65535"),
            "type" => (&mut self.icmp[0], 0xff, "an ICMP type, 0 to 255"),
            _ => (&mut self.icmp[1], 0xff, "an ICMP code, 0 to 255"),
        };
        let value = number(value)
            .filter(|&value| value <= limit)
            .and_then(|value| u16::try_from(value).ok())
            .ok_or_else(|| words.fault(Reason::Expected(expected)))?;
        if slot.replace(value).is_some() {
            return Err(words.fault(Reason::Twice));
        }
        Ok(())
    }

    fn selector(self, words: &Words<'_>) -> Result<Selector, Fault> {
        let range = |part: Option<(IpAddr, u8)>| {
            part.and_then(|(address, length)| AddressRange::prefix(address, length))
        };
        if let (Some((source, _)), Some((destination, _))) = (self.source, self.destination)
            && source.is_ipv4() != destination.is_ipv4()
        {
            return Err(words.fault_at("sel", Reason::Expected("src and dst of one IP version")));
        }
        let protocol = self.protocol.filter(|&protocol| protocol != 0);
        let has_ports = matches!(protocol, None | Some(6 | 17 | 33 | 132));
        let has_icmp = matches!(protocol, Some(1 | 58));
        if self.ports.iter().any(Option::is_some) && !has_ports {
            return Err(words.fault_at(
                "sel",
                Reason::Expected("ports with tcp, udp, sctp, dccp or any only"),
            ));
        }
        if self.icmp.iter().any(Option::is_some) && !has_icmp {
            return Err(words.fault_at(
                "sel",
                Reason::Expected("type and code with icmp or ipv6-icmp only"),
            ));
        }
        let [source_port, destination_port] = if has_icmp {
            self.icmp
        } else {
            self.ports.map(|port| port.filter(|&port| port != 0))
        }
        .map(|value| value.map(|value| value..=value));
        Ok(Selector {
            source: range(self.source),
            destination: range(self.destination),
            protocol,
            source_port,
            destination_port,
        })
    }
}

/// A protocol by its name in `/etc/protocols`, or by its number; 0 is any.
fn protocol(text: &str) -> Option<u8> {
    Some(match text {
        "any" | "ip" | "IP" => 0,
        "icmp" | "ICMP" => 1,
        "igmp" | "IGMP" => 2,
        "ipencap" | "IP-ENCAP" => 4,
        "tcp" | "TCP" => 6,
        "udp" | "UDP" => 17,
        "dccp" | "DCCP" => 33,
        "ipv6" | "IPv6" => 41,
        "gre" | "GRE" => 47,
        "esp" | "IPSEC-ESP" => 50,
        "ah" | "IPSEC-AH" => 51,
        "ipv6-icmp" | "IPv6-ICMP" => 58,
        "ospf" | "OSPFIGP" => 89,
        "ipip" | "IPIP" => 94,
        "pim" | "PIM" => 103,
        "vrrp" | "VRRP" => 112,
        "l2tp" | "L2TP" => 115,
        "sctp" | "SCTP" => 132,
        "udplite" | "UDPLite" => 136,
        _ => return number(text).and_then(|value| u8::try_from(value).ok()),
    })
}
