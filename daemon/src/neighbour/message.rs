//! ARP (RFC 826) and neighbour discovery (RFC 4861): the questions and answers, as frames.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use vesper_esp::wire::Checksum;
use vesper_offload::{MacAddress, VlanId, ethertype};

/// What a frame of ARP or neighbour discovery says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Who has `target`?
    Question {
        /// The address asked for.
        target: IpAddr,
        /// Who asks; `None` if it only looks whether the address is in use (RFC 5227,
        /// RFC 4862).
        asker: Option<(IpAddr, MacAddress)>,
    },
    /// `address` is at `mac`.
    Answer {
        /// The address.
        address: IpAddr,
        /// Where it is.
        mac: MacAddress,
    },
}

/// A frame taken apart as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Its VLAN.
    pub vlan: Option<VlanId>,
    /// Who sent it.
    pub source: MacAddress,
    /// What it says.
    pub message: Message,
}

const ARP_LEN: usize = 28;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const ICMPV6: u8 = 58;
const SOURCE_OPTION: u8 = 1;
const TARGET_OPTION: u8 = 2;

/// Room for the longest message with an Ethernet header and a tag.
pub const LONGEST: usize = 14 + 4 + 40 + 32;

/// ARP, and ICMPv6 of neighbours, by a look at two bytes.
pub(super) fn may_be_message(frame: &[u8]) -> bool {
    let at = match frame.get(12..14) {
        Some([0x81, 0]) => 16,
        _ => 12,
    };
    match frame.get(at..at + 2) {
        Some([8, 6]) => true,
        Some([0x86, 0xdd]) => frame.get(at + 8) == Some(&58),
        _ => false,
    }
}

/// Reads a frame; `None` if it is something else, or not as the RFCs demand.
pub fn read(frame: &[u8]) -> Option<Heard> {
    let mut at = 12;
    let mut kind = word(frame, at)?;
    let mut vlan = None;
    if kind == ethertype::VLAN {
        vlan = VlanId::new(word(frame, 14)? & 0xfff);
        at = 16;
        kind = word(frame, at)?;
    }
    let source = MacAddress(*frame.get(6..)?.first_chunk()?);
    let payload = frame.get(at + 2..)?;
    let message = match kind {
        ethertype::ARP => read_arp(payload)?,
        ethertype::IPV6 => read_ndp(payload)?,
        _ => return None,
    };
    Some(Heard {
        vlan,
        source,
        message,
    })
}

/// Asks who has `target`: everybody, or only the one who had it last.
pub fn question(
    from: (IpAddr, MacAddress),
    target: IpAddr,
    last: Option<MacAddress>,
    vlan: Option<VlanId>,
) -> Option<Vec<u8>> {
    match (from.0, target) {
        (IpAddr::V4(sender), IpAddr::V4(target)) => {
            let to = last.unwrap_or(MacAddress::BROADCAST);
            let mut frame = ethernet(to, from.1, vlan, ethertype::ARP);
            let nobody = MacAddress::default();
            arp(&mut frame, 1, (sender, from.1), (target, nobody));
            Some(frame)
        }
        (IpAddr::V6(sender), IpAddr::V6(target)) => {
            let group = solicited_node(target);
            let [.., a, b, c, d] = group.octets();
            let (to, destination) = match last {
                Some(mac) => (mac, target),
                None => (MacAddress([0x33, 0x33, a, b, c, d]), group),
            };
            let mut frame = ethernet(to, from.1, vlan, ethertype::IPV6);
            let option = (SOURCE_OPTION, from.1);
            ndp(
                &mut frame,
                SOLICITATION,
                0,
                (sender, destination),
                target,
                option,
            );
            Some(frame)
        }
        _ => None,
    }
}

/// Answers a question: `address` is at `mac`. To somebody who only looks whether the address is
/// in use, the answer goes to all.
pub fn answer(
    address: IpAddr,
    mac: MacAddress,
    asker: Option<(IpAddr, MacAddress)>,
    vlan: Option<VlanId>,
) -> Option<Vec<u8>> {
    match (address, asker) {
        (IpAddr::V4(address), Some((IpAddr::V4(to), to_mac))) => {
            let mut frame = ethernet(to_mac, mac, vlan, ethertype::ARP);
            arp(&mut frame, 2, (address, mac), (to, to_mac));
            Some(frame)
        }
        (IpAddr::V4(address), None) => {
            let mut frame = ethernet(MacAddress::BROADCAST, mac, vlan, ethertype::ARP);
            let nobody = MacAddress::default();
            arp(
                &mut frame,
                2,
                (address, mac),
                (Ipv4Addr::UNSPECIFIED, nobody),
            );
            Some(frame)
        }
        (IpAddr::V6(address), asker) => {
            let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
            // Solicited and override; without an asker only override (RFC 4861 section 7.2.4).
            let (to, to_mac, flags) = match asker {
                Some((IpAddr::V6(to), mac)) => (to, mac, 0x60),
                _ => (all, MacAddress([0x33, 0x33, 0, 0, 0, 1]), 0x20),
            };
            let mut frame = ethernet(to_mac, mac, vlan, ethertype::IPV6);
            let option = (TARGET_OPTION, mac);
            ndp(
                &mut frame,
                ADVERTISEMENT,
                flags,
                (address, to),
                address,
                option,
            );
            Some(frame)
        }
        _ => None,
    }
}

fn read_arp(packet: &[u8]) -> Option<Message> {
    let packet: &[u8; ARP_LEN] = packet.first_chunk()?;
    // Ethernet, IPv4, their lengths.
    if packet[..6] != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    let mac = MacAddress(*packet[8..].first_chunk()?);
    let v4 = |at: usize| Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?));
    let (sender, target) = (v4(14)?, v4(24)?);
    if mac.is_group() || sender.is_broadcast() || sender.is_multicast() {
        return None;
    }
    match word(packet, 6)? {
        1 => Some(Message::Question {
            target: target.into(),
            asker: (!sender.is_unspecified()).then_some((sender.into(), mac)),
        }),
        2 if !sender.is_unspecified() => Some(Message::Answer {
            address: sender.into(),
            mac,
        }),
        _ => None,
    }
}

fn read_ndp(packet: &[u8]) -> Option<Message> {
    let len = 40 + usize::from(word(packet, 4)?);
    let packet = packet.get(..len)?;
    // From this link and nowhere else: no router has let it pass.
    if packet[6] != ICMPV6 || packet[7] != 255 || len < 64 {
        return None;
    }
    let v6 = |at: usize| Some(Ipv6Addr::from(*packet.get(at..)?.first_chunk::<16>()?));
    let (source, target) = (v6(8)?, v6(48)?);
    let sum = pseudo(&packet[8..40], len - 40)
        .bytes(&packet[40..])
        .finish();
    if sum != 0 || packet[41] != 0 || target.is_multicast() {
        return None;
    }
    let mut options = &packet[64..];
    let mut mac = None;
    while let [kind, units, ..] = *options {
        let option = options
            .get(..usize::from(units) * 8)
            .filter(|o| !o.is_empty())?;
        let wanted = match packet[40] {
            SOLICITATION => SOURCE_OPTION,
            _ => TARGET_OPTION,
        };
        if kind == wanted {
            mac = Some(MacAddress(*option.get(2..)?.first_chunk()?));
        }
        options = &options[option.len()..];
    }
    match packet[40] {
        SOLICITATION if source.is_unspecified() => Some(Message::Question {
            target: target.into(),
            asker: None,
        }),
        SOLICITATION => Some(Message::Question {
            target: target.into(),
            asker: Some((source.into(), mac?)),
        }),
        ADVERTISEMENT => Some(Message::Answer {
            address: target.into(),
            mac: mac.filter(|mac| !mac.is_group())?,
        }),
        _ => None,
    }
}

fn ethernet(to: MacAddress, from: MacAddress, vlan: Option<VlanId>, kind: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(LONGEST);
    frame.extend(to.0);
    frame.extend(from.0);
    if let Some(vlan) = vlan {
        frame.extend(ethertype::VLAN.to_be_bytes());
        frame.extend(vlan.get().to_be_bytes());
    }
    frame.extend(kind.to_be_bytes());
    frame
}

fn arp(
    frame: &mut Vec<u8>,
    operation: u16,
    sender: (Ipv4Addr, MacAddress),
    target: (Ipv4Addr, MacAddress),
) {
    frame.extend([0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    for (address, mac) in [sender, target] {
        frame.extend(mac.0);
        frame.extend(address.octets());
    }
}

fn ndp(
    frame: &mut Vec<u8>,
    kind: u8,
    flags: u8,
    (source, destination): (Ipv6Addr, Ipv6Addr),
    target: Ipv6Addr,
    (option, mac): (u8, MacAddress),
) {
    let at = frame.len();
    frame.extend([0x60, 0, 0, 0, 0, 32, ICMPV6, 255]);
    frame.extend(source.octets());
    frame.extend(destination.octets());
    frame.extend([kind, 0, 0, 0, flags, 0, 0, 0]);
    frame.extend(target.octets());
    frame.extend([option, 1]);
    frame.extend(mac.0);
    let sum = pseudo(&frame[at + 8..at + 40], 32).bytes(&frame[at + 40..]);
    let sum = sum.finish().to_be_bytes();
    frame[at + 42..at + 44].copy_from_slice(&sum);
}

fn pseudo(addresses: &[u8], len: usize) -> Checksum {
    let sum = Checksum::new().bytes(addresses).word(len as u16);
    sum.word(ICMPV6.into())
}

/// The group that whoever has `target` listens to (RFC 4291 section 2.7.1).
fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    let word = bytes.get(at..)?.first_chunk::<2>()?;
    Some(u16::from_be_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
    const THEM: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn questions_and_answers_say_what_they_should() {
        for (us, them) in [("192.0.2.1", "192.0.2.2"), ("fd00::1", "fd00::2")] {
            for vlan in [None, VlanId::new(7)] {
                let (us, them) = (ip(us), ip(them));
                let asked = question((us, US), them, None, vlan).unwrap();
                let heard = read(&asked).unwrap();
                assert_eq!(heard.vlan, vlan);
                assert_eq!(heard.source, US);
                let asker = Some((us, US));
                let expected = Message::Question {
                    target: them,
                    asker,
                };
                assert_eq!(heard.message, expected);
                assert!(MacAddress(*asked.first_chunk().unwrap()).is_group());
                for asker in [asker, None] {
                    let answered = answer(them, THEM, asker, vlan).unwrap();
                    let to = MacAddress(*answered.first_chunk().unwrap());
                    assert_eq!(to == US, asker.is_some());
                    let message = read(&answered).unwrap().message;
                    let expected = Message::Answer {
                        address: them,
                        mac: THEM,
                    };
                    assert_eq!(message, expected);
                }
                let asked = question((us, US), them, Some(THEM), vlan).unwrap();
                assert_eq!(asked[..6], THEM.0);
            }
        }
        assert_eq!(
            question((ip("fd00::1"), US), ip("192.0.2.2"), None, None),
            None
        );
    }

    /// Bytes of a request as `tcpdump` shows those of Linux, and an advertisement of it.
    #[test]
    fn messages_of_linux_are_understood() {
        let arp = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 8, 6, 0, 1, 8, 0,
            6, 4, 0, 1, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 10, 99, 0, 2, 0, 0, 0, 0, 0, 0, 10, 99, 0,
            1,
        ];
        let mac = MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        let expected = Message::Question {
            target: ip("10.99.0.1"),
            asker: Some((ip("10.99.0.2"), mac)),
        };
        assert_eq!(read(&arp).unwrap().message, expected);
        assert_eq!(
            question((ip("10.99.0.2"), mac), ip("10.99.0.1"), None, None).unwrap(),
            arp
        );
    }

    #[test]
    fn what_is_not_as_it_has_to_be_is_ignored() {
        let solicitation = question((ip("fd00::1"), US), ip("fd00::2"), None, None).unwrap();
        for at in [20, 21, 54, 55, 56, 57, 62, 63, 78, 79, 80] {
            let mut wrong = solicitation.clone();
            wrong[at] ^= 1;
            assert_eq!(read(&wrong), None, "{at}");
        }
        for len in 0..solicitation.len() {
            assert_eq!(read(&solicitation[..len]), None, "{len}");
        }
        let request = question((ip("192.0.2.1"), US), ip("192.0.2.2"), None, None).unwrap();
        for at in [14, 15, 16, 18, 19, 20, 21, 22] {
            let mut wrong = request.clone();
            wrong[at] ^= 0x11;
            assert_eq!(read(&wrong), None, "{at}");
        }
        for len in 0..request.len() {
            assert_eq!(read(&request[..len]), None, "{len}");
        }
    }
}
