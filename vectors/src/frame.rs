//! From a captured frame to the IP packet in it.

use crate::capture::{LinkType, Record};

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// An IP packet, with whatever the link appends to it (padding, checksums).
    Ip {
        /// The packet.
        packet: &'a [u8],
        /// The numbers of its VLAN tags, the inner one in the low 12 bits; 0 if it has none.
        vlan: u32,
    },
    /// Something else: ARP, LLDP, a protocol that this crate does not know.
    Other,
    /// The frame contradicts itself.
    Malformed(Defect),
}

/// How a frame contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// It ends inside the link header.
    Runt,
    /// The link header announces one IP version, the packet says another.
    Version,
}

impl core::fmt::Display for Defect {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Runt => "the frame ends inside its link header",
            Self::Version => "the link header announces another IP version",
        })
    }
}

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Takes the link header off a frame, VLAN tags included.
pub fn ip_packet<'a>(record: &Record<'a>) -> Frame<'a> {
    let data = record.data;
    let found = match record.link {
        LinkType::Raw => return any_version(data),
        LinkType::Ipv4 => Some(versioned(data, 4, 0)),
        LinkType::Ipv6 => Some(versioned(data, 6, 0)),
        LinkType::Ethernet => after(data, 12).and_then(ethertype),
        LinkType::LinuxCooked => after(data, 14).and_then(ethertype),
        LinkType::LinuxCooked2 => cooked2(data),
        LinkType::Loopback => loopback(data),
    };
    found.unwrap_or(Frame::Malformed(Defect::Runt))
}

fn after(data: &[u8], length: usize) -> Option<&[u8]> {
    data.get(length..)
}

fn number(data: &[u8]) -> Option<(u16, &[u8])> {
    let (head, rest) = data.split_first_chunk()?;
    Some((u16::from_be_bytes(*head), rest))
}

/// `data` begins with an EtherType.
fn ethertype(mut data: &[u8]) -> Option<Frame<'_>> {
    let mut vlan = 0_u32;
    loop {
        let (kind, rest) = number(data)?;
        match kind {
            ETHERTYPE_IPV4 => return Some(versioned(rest, 4, vlan)),
            ETHERTYPE_IPV6 => return Some(versioned(rest, 6, vlan)),
            // A VLAN tag: two bytes of priority and number, and the next EtherType.
            0x8100 | 0x88a8 | 0x9100 => {
                let (tag, next) = number(rest)?;
                vlan = vlan << 12 | u32::from(tag & 0xfff);
                data = next;
            }
            _ => return Some(Frame::Other),
        }
    }
}

/// Linux cooked, version 2: the protocol comes first, in a header of 20 bytes.
fn cooked2(data: &[u8]) -> Option<Frame<'_>> {
    let (protocol, _) = number(data)?;
    let rest = after(data, 20)?;
    match protocol {
        ETHERTYPE_IPV4 => Some(versioned(rest, 4, 0)),
        ETHERTYPE_IPV6 => Some(versioned(rest, 6, 0)),
        // The tag's number follows, then the next EtherType.
        0x8100 | 0x88a8 | 0x9100 => ethertype(after(rest, 2)?),
        _ => Some(Frame::Other),
    }
}

/// The address family in four bytes of either order; IPv6 has a number per system.
fn loopback(data: &[u8]) -> Option<Frame<'_>> {
    let (head, rest) = data.split_first_chunk()?;
    let family = u32::from_le_bytes(*head).min(u32::from_be_bytes(*head));
    Some(match family {
        2 => versioned(rest, 4, 0),
        10 | 24 | 28 | 30 => versioned(rest, 6, 0),
        _ => Frame::Other,
    })
}

/// A packet that has to be of this IP version.
fn versioned(packet: &[u8], version: u8, vlan: u32) -> Frame<'_> {
    match packet.first() {
        None => Frame::Malformed(Defect::Runt),
        Some(first) if first >> 4 == version => Frame::Ip { packet, vlan },
        Some(_) => Frame::Malformed(Defect::Version),
    }
}

/// A packet that nothing announces.
fn any_version(packet: &[u8]) -> Frame<'_> {
    match packet.first() {
        None => Frame::Malformed(Defect::Runt),
        Some(first) if matches!(first >> 4, 4 | 6) => Frame::Ip { packet, vlan: 0 },
        Some(_) => Frame::Malformed(Defect::Version),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(link: LinkType, data: &[u8]) -> Frame<'_> {
        ip_packet(&Record {
            number: 1,
            timestamp: 0,
            link,
            original_len: data.len() as u32,
            data,
        })
    }

    #[test]
    fn link_headers_come_off() {
        let v4: &[u8] = &[0x45, 1, 2];
        let v6: &[u8] = &[0x60, 1, 2];
        let macs = [0xa; 12];
        let cooked = [0xb; 14];
        let cases: &[(LinkType, Vec<u8>, &[u8])] = &[
            (LinkType::Raw, v4.into(), v4),
            (LinkType::Raw, v6.into(), v6),
            (LinkType::Ipv4, v4.into(), v4),
            (LinkType::Ipv6, v6.into(), v6),
            (LinkType::Ethernet, [&macs, &[8, 0][..], v4].concat(), v4),
            (
                LinkType::Ethernet,
                [&macs, &[0x86, 0xdd][..], v6].concat(),
                v6,
            ),
            (
                LinkType::Ethernet,
                [&macs, &[0x81, 0, 0, 7, 8, 0][..], v4].concat(),
                v4,
            ),
            (
                LinkType::Ethernet,
                [
                    &macs,
                    &[0x88, 0xa8, 0, 7, 0x91, 0, 0, 7, 0x81, 0, 0, 8, 0x86, 0xdd][..],
                    v6,
                ]
                .concat(),
                v6,
            ),
            (
                LinkType::LinuxCooked,
                [&cooked, &[8, 0][..], v4].concat(),
                v4,
            ),
            (
                LinkType::LinuxCooked2,
                [&[0x86, 0xdd][..], &[0; 18], v6].concat(),
                v6,
            ),
            (LinkType::Loopback, [&[0, 0, 0, 2][..], v4].concat(), v4),
            (LinkType::Loopback, [&[2, 0, 0, 0][..], v4].concat(), v4),
            (LinkType::Loopback, [&[30, 0, 0, 0][..], v6].concat(), v6),
        ];
        for (link, data, expected) in cases {
            match frame(*link, data) {
                Frame::Ip { packet, .. } => assert_eq!(packet, *expected, "{link:?}"),
                other => panic!("{link:?} {data:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn vlan_numbers_are_kept_apart() {
        let vlan = |tags: &[u8]| {
            let data = [&[0; 12], tags, &[8, 0, 0x45]].concat();
            match frame(LinkType::Ethernet, &data) {
                Frame::Ip { vlan, .. } => vlan,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(vlan(&[]), 0);
        assert_eq!(vlan(&[0x81, 0, 0xe1, 7]), 0x107);
        assert_eq!(vlan(&[0x88, 0xa8, 0, 2, 0x81, 0, 0, 7]), 0x2007);
    }

    #[test]
    fn other_protocols_are_other() {
        let arp = [&[0; 12][..], &[8, 6, 0, 1]].concat();
        assert_eq!(frame(LinkType::Ethernet, &arp), Frame::Other);
        let llc = [&[0; 12][..], &[0, 38, 0x42, 0x42]].concat();
        assert_eq!(frame(LinkType::Ethernet, &llc), Frame::Other);
        assert_eq!(frame(LinkType::Loopback, &[7, 0, 0, 0]), Frame::Other);
    }

    #[test]
    fn contradictions_are_named() {
        let wrong = [&[0; 12][..], &[8, 0, 0x60]].concat();
        assert_eq!(
            frame(LinkType::Ethernet, &wrong),
            Frame::Malformed(Defect::Version)
        );
        assert_eq!(
            frame(LinkType::Raw, &[0x15]),
            Frame::Malformed(Defect::Version)
        );
        let tagged = [&[0; 12][..], &[0x81, 0, 0, 7, 8, 0, 0x45]].concat();
        for length in 0..tagged.len() {
            assert_eq!(
                frame(LinkType::Ethernet, &tagged[..length]),
                Frame::Malformed(Defect::Runt),
                "{length}"
            );
        }
    }
}
